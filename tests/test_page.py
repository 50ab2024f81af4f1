"""The page of `transformer serve` in a real browser, beside what the translator itself says.

`python tests/test_page.py <bundle>` makes the picture of the README, docs/page.png.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from urllib.parse import urlencode

import pytest
import torch
from chromium import Browser, chromium, missing
from served import PAIRS, learn, serving

from transformer.inference.translator import Translator

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=missing() or ""),
]
ROOT = Path(__file__).resolve().parent.parent
TEXT, TRANSLATION = PAIRS[0]
SHOWN = {
    "text": "이 행복한 요리사가 저 변호사들을 따라가지 않았다",
    "word": "3",
}  # in the README's picture

# What is read from the page, as expressions.
SETTLED = "document.getElementById('page').ariaBusy === 'false'"
WORDS = "[...document.querySelectorAll('#target [role=button]')]"
LIT = """Object.fromEntries([...document.querySelectorAll('#source .lit')].map(
  (word) => [word.textContent, Number(word.style.getPropertyValue('--weight'))]))"""
ROWS = "[...document.querySelectorAll('#heatmap tbody tr')]"
WEIGHTS = f"""{ROWS}.map((row) => [...row.cells].slice(1).map(
  (cell) => Number(cell.style.getPropertyValue('--weight'))))"""
LOOKING = f"{ROWS}.filter((row) => row.matches('.looking')).map((row) => row.cells[0].textContent)"
# Answers the next request to a path itself: its status, headers and body.
ONCE = """const [path, status, headers, body] = args; const real = window.fetch;
  window.fetch = (asked, options) => {
    if (asked !== path) return real(asked, options);
    window.fetch = real;
    return Promise.resolve(new Response(JSON.stringify(body), {status, headers}));
  };"""
CHOSEN = """Object.fromEntries([...document.querySelectorAll('input:checked')].map(
  ({name, value}) => [name, value]))"""
STATUS = "document.getElementById('status').textContent"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return learn(tmp_path_factory.mktemp("page") / "by_heart")


@pytest.fixture(scope="module")
def translator(bundle: Path) -> Translator:
    return Translator.load(bundle)


@pytest.fixture(scope="module")
def page(bundle: Path) -> Iterator[str]:
    with serving(bundle) as address:
        yield address


@pytest.fixture(scope="module")
def shared_browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture
def browser(shared_browser: Browser, page: str) -> Browser:
    """Shows the page as one comes to it."""
    shared_browser.show(1200, 1400)
    shared_browser.requests()
    shared_browser.open(page)
    shared_browser.until(SETTLED)
    return shared_browser


def write(browser: Browser, text: str) -> None:
    """Types into the text area, which has the focus, and waits for the answers."""
    browser.press(*text)
    browser.until(f"document.getElementById('text').value === args[0] && {SETTLED}", text)


def test_a_sentence_is_translated_as_it_is_typed(browser: Browser, translator: Translator) -> None:
    write(browser, TEXT)
    assert browser.run(f"return {WORDS}.map((word) => word.textContent)") == TRANSLATION.split()
    assert read(browser, "target") == TRANSLATION
    expected = translator.n_best([TEXT], n_best=4, beam=4)[0]
    shown = browser.run(
        "return [...document.querySelectorAll('#hypotheses .choices label > span')]"
        ".map((one) => one.textContent)"
    )
    assert shown == [
        f"{'⚠ ' if one.verdict.flaw else ''}{one.text or '∅'}"
        f"score {one.score:.2f}log-probability {one.log_prob:.2f}"
        for one in expected
    ]


def test_nothing_is_asked_before_the_typing_stops(browser: Browser, translator: Translator) -> None:
    typing = """const area = document.getElementById('text');
        for (const character of args[0]) {
          area.value += character;
          area.dispatchEvent(new Event('input', {bubbles: true}));
          await new Promise((resolve) => { setTimeout(resolve, 20); });
        }"""
    browser.run(typing, TEXT * 4)
    browser.until(f"{SETTLED} && document.getElementById('spoken').textContent")
    asked = [url for url in browser.requests() if url.endswith("/v1/translate")]
    assert 1 <= len(asked) < len(TEXT)
    assert read(browser, "spoken") == translator.translate([TEXT * 4])[0]


def cross_attention(translator: Translator, layer: int, head: int | None = None) -> torch.Tensor:
    """The weights (T, S) of one head, or the mean of all; layers and heads count from 1."""
    heads = translator.attention(TEXT, TRANSLATION)[0][layer - 1]
    return heads.mean(0) if head is None else heads[head - 1]


def read(browser: Browser, part: str) -> str:
    """The text of an element of the page."""
    return str(browser.run("return document.getElementById(args[0]).textContent", part))


def choose(browser: Browser, name: str, value: str) -> None:
    browser.run(
        "document.querySelector(`[name=${args[0]}][value='${args[1]}']`).click()", name, value
    )


def test_the_heatmap_is_that_of_the_layer_and_the_head(
    browser: Browser, translator: Translator
) -> None:
    write(browser, TEXT)
    for layer, head in ((2, None), (1, None), (1, 2), (2, 1)):
        choose(browser, "layer", str(layer))
        choose(browser, "head", str(head or "mean"))
        expected = cross_attention(translator, layer, head)
        torch.testing.assert_close(
            torch.tensor(browser.run(f"return {WEIGHTS}")), expected, atol=1e-4, rtol=0
        )
    choose(browser, "kind", "decoder")
    future = torch.tensor(browser.run(f"return {WEIGHTS}")).triu(1)
    assert future.abs().max() == 0
    assert browser.run(f"return {ROWS}[0].parentElement.previousSibling.textContent")[:3] == "<s>"
    choose(browser, "kind", "encoder")
    rows = torch.tensor(browser.run(f"return {WEIGHTS}"))
    assert rows.shape == (len(translator.encode([TEXT])[0]),) * 2
    torch.testing.assert_close(rows.sum(1), torch.ones(len(rows)), atol=1e-3, rtol=0)


def test_words_light_up_and_the_link_shows_the_same(
    browser: Browser, translator: Translator
) -> None:
    write(browser, TEXT)
    choose(browser, "layer", "1")
    choose(browser, "head", "2")
    assert browser.run(f"return {LIT}") == {}
    place = browser.run(f"return {WORDS}[3].getBoundingClientRect()")  # "student"
    middle = place["x"] + place["width"] / 2, place["y"] + place["height"] / 2
    browser.point(*middle)
    lit = browser.until(f"document.querySelector('.lit') && {LIT}")
    _, src, tgt = translator.attention(TEXT, TRANSLATION)
    src_words, tgt_words = (
        [*accumulate(piece.startswith(" ") for piece in pieces[:-1])] for pieces in (src, tgt)
    )
    looking = [place for place, word in enumerate(tgt_words) if word == 3]
    row = cross_attention(translator, 1, 2)[looking].mean(0)
    for number, word in enumerate(TEXT.split()):
        expected = sum(float(row[i]) for i, its in enumerate(src_words) if its == number)
        assert lit[word] == pytest.approx(expected, abs=2e-3)
    assert "".join(browser.run(f"return {LOOKING}")) == "student"
    assert read(browser, "readout").startswith("“\u2068student\u2069” looks at ")
    browser.point(5, 5)
    browser.until("!document.querySelector('.lit')")
    browser.run(f"{WORDS}[3].click()")  # keeps it
    assert browser.run(f"return {LIT}") == lit

    first = [browser.run(f"return {what}") for what in (CHOSEN, WEIGHTS, LIT, LOOKING)]
    link = browser.run("return document.getElementById('link').href")
    with browser.new_window(link):
        browser.until(f"{SETTLED} && document.querySelector('.lit')")
        assert [browser.run(f"return {what}") for what in (CHOSEN, WEIGHTS, LIT, LOOKING)] == first


def test_all_of_it_by_keyboard(browser: Browser) -> None:
    write(browser, TEXT)
    browser.press("Tab", "Right", "Right", "Enter")
    assert browser.run("return document.activeElement.textContent") == "a"
    assert browser.run("return document.activeElement.ariaPressed") == "true"
    assert browser.run(f"return {LOOKING}") == ["a"]
    for name, keys in (
        ("beam", ["2"]), ("pick", []), ("kind", ["Right"]), ("layer", ["Left"]),
        ("head", ["Right", "Right"]),
    ):  # fmt: skip
        browser.press("Tab")
        assert browser.run("return document.activeElement.name") == name
        browser.press(*keys)
        browser.until(SETTLED)
    chosen = browser.run(f"return {CHOSEN}")
    assert chosen == {"pick": "1", "kind": "encoder", "layer": "1", "head": "2"}
    assert browser.run("return document.querySelectorAll('#hypotheses input').length") == 2
    browser.press("Tab", "Tab", "End")  # the region that scrolls, then the heatmap's rows
    assert browser.run("return document.activeElement.closest('#heatmap') !== null")
    browser.press("Enter")
    assert browser.run(f"return {LIT}")
    # A stop of the Tab key shows where one is.
    assert browser.run("return getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_nothing_leaves_the_origin(browser: Browser, page: str) -> None:
    write(browser, TEXT)
    asked = [url for url in browser.requests() if not url.startswith(("data:", "about:"))]
    assert f"{page}v1/attention" in asked
    assert all(url.startswith(page) for url in asked)
    assert all(TEXT not in url and "text=" not in url.partition("#")[0] for url in asked)
    elsewhere = page.replace("127.0.0.1", "localhost")
    blocked = "return fetch(args[0], {mode: 'no-cors'}).then(() => false, () => true)"
    assert browser.run(blocked, f"{elsewhere}v1/bundles")
    assert not browser.run(blocked, f"{page}v1/bundles")


def test_an_older_page_is_not_kept(browser: Browser) -> None:
    kept = "return (await fetch(args[0])).headers.get('cache-control')"
    assert {browser.run(kept, file) for file in ("/", "/static/page.js")} == {"no-cache"}


def test_html_is_shown_as_text(browser: Browser) -> None:
    html = "<img src=x onerror=\"document.title='run'\"><b>나는</b>"
    answer = {"translations": [[{"text": html, "score": -1, "log_prob": -2, "flaw": "loop"}]]}
    browser.run(ONCE, "v1/translate", 200, {}, answer)
    write(browser, html)
    for part in ("source", "target"):
        assert read(browser, part).removesuffix("\u200b") == html
    assert browser.run("return document.querySelectorAll('img, #page b').length") == 0
    assert browser.run("return document.title") == "transformer"
    # What `guard` finds is said beside the translation.
    flaw = read(browser, "flaw")
    assert flaw == "⚠ It repeats itself: do not trust this translation."


def test_errors_are_said_in_words(browser: Browser, page: str) -> None:
    write(browser, TEXT)
    browser.press("다")
    browser.run(ONCE, "v1/translate", 400, {}, {"error": "no such thing"})
    browser.until(f"{STATUS} === 'The server refused the text (400): no such thing'")
    assert browser.run("return document.getElementById('attention').hidden")
    browser.run(ONCE, "v1/translate", 429, {"Retry-After": "1"}, {"error": "busy"})
    browser.press("다")
    browser.until(f"{STATUS}.startsWith('The server is busy')")
    browser.until(f"{STATUS} === '' && {SETTLED}")  # it has asked again
    assert not browser.run("return document.getElementById('attention').hidden")
    browser.press(*("나는 " * 30))
    browser.until(f"{STATUS}.startsWith('Shorten the text: ')")
    assert read(browser, "target") == ""
    longest = {"text": "나는 학 " * 2000}
    browser.run("location.hash = new URLSearchParams(args[0])", longest)
    browser.until(f"{SETTLED} && document.getElementById('text').value.length === 10000")
    assert browser.run(f"return {STATUS}").startswith("Shorten the text: ")
    browser.run(ONCE, "v1/attention", 413, {}, {"error": "99 tokens"})
    browser.run("location.hash = new URLSearchParams({text: args[0]})", TEXT)
    unseen = "Where the model looks cannot be shown. Shorten the text: 99 tokens."
    browser.until(f"{STATUS} === '{unseen}'")
    assert read(browser, "target") == TRANSLATION


def test_bundles_to_choose_from_and_a_server_that_is_gone(
    shared_browser: Browser, bundle: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(bundle, tmp_path / "the_other")
    with serving(bundle, other) as address:
        shared_browser.open(f"{address}#{urlencode({'text': TEXT, 'bundle': 'the_other'})}")
        shared_browser.until(f"{SETTLED} && document.getElementById('spoken').textContent")
        assert read(shared_browser, "about").startswith("the_other · Korean → English")
        shared_browser.run("""const {bundle} = document.getElementById('page').elements;
            bundle.value = 'by_heart';
            bundle.dispatchEvent(new Event('change', {bubbles: true}))""")
        shared_browser.until(f"{SETTLED} && document.getElementById('spoken').textContent")
        assert read(shared_browser, "about").startswith("by_heart")
        assert "bundle=by_heart" in shared_browser.run("return location.hash")
    shared_browser.run("document.getElementById('text').focus()")
    shared_browser.press("나")
    shared_browser.until(f"{STATUS}.startsWith('The server does not answer')")


def test_it_speaks_korean_and_fits_a_phone_and_the_dark(browser: Browser) -> None:
    write(browser, TEXT * 4)
    browser.run("document.getElementById('language').click()")
    browser.until(SETTLED)
    assert browser.run("return document.documentElement.lang") == "ko"
    assert "크로스 어텐션" in browser.run("return document.body.innerText")
    keys = """const {LABELS} = await import('/static/labels.js');
        return Object.values(LABELS).map((labels) => Object.keys(labels).sort())"""
    english, korean = browser.run(keys)
    assert english == korean
    # The contrast of text (WCAG 2.2, 1.4.3), in both schemes, on a small screen, too.
    for dark in (False, True):
        browser.show(360, 740, dark)
        wide = "return document.documentElement.scrollWidth"
        assert browser.run(wide) == 360
        for ink, ground in (
            ("ink", "card"), ("soft", "card"), ("soft", "ground"), ("hot", "card"),
            ("flaw", "card"), ("ink", "glow"), ("on-hot", "hot"), ("ink", "cold"),
        ):  # fmt: skip
            assert contrast(browser, ink, ground) >= 4.5, (dark, ink, ground)


def contrast(browser: Browser, *names: str) -> float:
    """Of two colours of the style sheet."""
    script = """const probe = document.body.appendChild(document.createElement('i'));
        const rgb = args.map((name) => {
          probe.style.color = `var(--${name})`;
          return getComputedStyle(probe).color.match(/[0-9.]+/g).slice(0, 3).map(Number);
        });
        probe.remove(); return rgb"""
    lights = []
    for colour in browser.run(script, *names):
        linear = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in colour]
        lights.append(0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])
    return (max(lights) + 0.05) / (min(lights) + 0.05)


@pytest.mark.parametrize(
    ("text", "language", "pieces", "places"),
    [
        ("나는 학생이다", "ko", ["나", "는", " 학생", "이다", "</s>"], [0, 0, 1, 1, -1]),
        # A character in two pieces, of which the first is shown with the space alone.
        ("a 학", "ko", ["a", " ", "학", "</s>"], [0, 1, 1, -1]),
        ("I am", "en", ["<2de>", "i", " am", "</s>"], [-1, 0, 1, -1]),  # tagged, lowercased
        ("I am", "en", ["I", " am", "</s>"], [0, 1, -1]),
        ("a zebra ran", "en", ["a", "<unk>", "ran", "</s>"], [0, 1, 2, -1]),
        ("我喜欢猫", "zh", ["我", "喜欢", "猫", "</s>"], [0, 1, 1, -1]),
    ],
)
def test_pieces_find_their_words(
    browser: Browser, text: str, language: str, pieces: list[str], places: list[int]
) -> None:
    script = """const {sideOf} = await import('/static/attention.js');
        return sideOf(...args)"""
    side = browser.run(script, text, language, pieces)
    if language == "zh":  # into which words is for the browser to say
        places = [next(i for i, word in enumerate(side["words"])
                       if word["start"] <= text.index(piece) < word["end"])
                  for piece in pieces[:-1]] + [-1]  # fmt: skip
    assert side["places"] == places


def take_picture(bundle: Path, file: Path) -> None:
    """Makes the picture of the README."""
    with serving(bundle) as address, chromium() as browser:
        browser.show(1100, 1000)
        browser.open(f"{address}#{urlencode(SHOWN)}")
        browser.until(f"{SETTLED} && document.querySelector('.lit')")
        browser.run("document.activeElement.blur()")
        height = browser.run("return document.documentElement.scrollHeight")
        browser.show(1100, height)
        browser.picture(file)


if __name__ == "__main__":
    take_picture(Path(sys.argv[1]), ROOT / "docs" / "page.png")
