"""Several corpora in one run: their shares, their order, and tags from the recipe to `--to`."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_batching import BUDGET, Spelled, cached, ids, random_table
from test_datamodule import StopAt, make, ready, run
from toys import recipe, write_corpus

from transformer.__main__ import main
from transformer.commands.reproduce import moved
from transformer.data import loaders
from transformer.data.batching import Plan, collate
from transformer.data.corpus import Corpus, Pair
from transformer.data.datamodule import DataModule
from transformer.data.dataset import Counts, TokenTable, digest, select, write_table
from transformer.data.learning import tokenizer_path
from transformer.data.loaders import CachedLoader
from transformer.data.mixture import ExtraCorpus, Mixture, proportions, walk
from transformer.data.tokenizer import EOS, UNK, Tokenizer, TokenizerConfig
from transformer.inference import forced
from transformer.inference.translator import Translator

SIZES = (500, 90, 40)


pytestmark = pytest.mark.usefixtures("own_log")


@pytest.fixture(autouse=True)
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "POOL", 120)


def parts(*sizes: int) -> list[Any]:
    """The rows of corpora of these sizes, one behind the other."""
    return np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])


def mixture(shares: tuple[float | None, ...] = (None, 0.2), temperature: float = 2.0) -> Mixture:
    return Mixture(parts(*SIZES), shares, temperature)


def make_loader(
    rank: int = 0, plan: Plan = Plan(BUDGET), **options: Any  # noqa: B008
) -> CachedLoader:  # fmt: skip
    return CachedLoader(random_table(sum(SIZES)), mixture(**options), plan, rank)


def flat(batches: list[list[int]]) -> list[int]:
    return sorted(row for batch in batches for row in batch)


# Shares


def test_proportions_by_hand() -> None:
    assert proportions([900, 100], [None, None], 1) == pytest.approx([0.9, 0.1])
    # Square roots are 30 and 10; a share is taken off first, and its corpus' size does not matter.
    assert proportions([900, 100], [None, None], 2) == pytest.approx([0.75, 0.25])
    assert proportions([900, 7, 100], [None, 0.2, None], 2) == pytest.approx([0.6, 0.2, 0.2])
    assert proportions([10**9, 1], [None, None], 0.01) == pytest.approx([1, 0])


def test_an_epoch_holds_the_main_corpus_once_and_the_others_by_their_shares() -> None:
    some = Mixture(parts(900, 7, 100), (0.2, None), 2)
    assert some.counts == [900, 300, 300]  # 0.6, 0.2, 0.2 of 1500
    assert some.shares == [0.6, 0.2, 0.2]
    rows = some.rows(epoch=3, seed=1)
    assert rows[:900].tolist() == list(range(900))
    assert {*rows[900:1200].tolist()} == {*range(900, 907)}
    assert len({*rows[1200:].tolist()}) == 100 and len(rows) == 1500
    assert Mixture(parts(10, 9), (0.001,), 1).counts == [10, 1]


@pytest.mark.parametrize(("size", "count"), [(7, 3), (7, 7), (3, 7), (5, 1), (1, 4)])
def test_every_row_is_seen_equally_often(size: int, count: int) -> None:
    walked = np.concatenate([walk(size, count, epoch, (1, 0)) for epoch in range(2 * size)])
    assert np.bincount(walked).tolist() == [2 * count] * size
    for start in range(0, len(walked), size):
        assert sorted(walked[start : start + size].tolist()) == list(range(size))


def test_walks_depend_on_seed_corpus_and_epoch() -> None:
    keys = [(0, (1, 0)), (0, (1, 1)), (0, (2, 0)), (1, (1, 0))]
    walks = [walk(50, 50, epoch, key).tolist() for epoch, key in keys]
    assert len({*map(tuple, walks)}) == 4
    assert walk(50, 50, 0, (1, 0)).tolist() == walks[0]


# Batches


class Words(Corpus):
    """Lines that name their corpus and their number."""

    def pairs(self, start: int = 0) -> Iterator[Pair]:
        sizes = range(start, 3 + int(self.spec) % 5)
        return iter([Pair(f"{self.spec} {i} #", f"{i} " * i + "#") for i in sizes])


def test_corpora_lie_behind_one_another_in_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformer.data.dataset.CHUNK_ROWS", 4)
    corpora = [Words(str(1000 + i), "a", "b", "k") for i in (1, 0, 4)]
    write_table(corpora, Spelled(), tmp_path / "x.arrow")  # type: ignore[arg-type]
    table = pickle.loads(pickle.dumps(TokenTable(tmp_path / "x.arrow")))
    assert table.bounds.tolist() == [0, 4, 7, 14]
    batch = collate(table, np.array([13, 0, 6, 4, 3]))
    assert batch.ids.tolist() == [13, 0, 6, 4, 3]
    for row, (corpus, number) in enumerate([(1004, 6), (1001, 0), (1000, 2), (1000, 0), (1001, 3)]):
        assert batch.src[row].tolist() == [corpus, number, EOS]
        assert batch.tgt_out[row].tolist() == [number] * number + [EOS] + [0] * (6 - number)
        assert batch.tgt_lengths[row] == number + 1
    assert collate(table, np.arange(0)).src.shape == (0, 1)
    rows, counts = select(table, corpora[2], 5, number=2)
    assert (rows.tolist(), counts) == ([7, 8, 9, 10, 11], Counts(5, too_long=2))
    with pytest.raises(ValueError, match=r"^k: 1004, line 6: 6 tokens, more than data.max_length"):
        select(table, corpora[2], 5, refuse=True, number=2)


def test_epochs_are_mixed_within_the_budget_and_keyed() -> None:
    loader, again = make_loader(), make_loader()
    first, second = list(loader), list(loader)
    counts = mixture().counts
    for epoch in (first, second):
        rows = flat(ids(epoch))
        assert np.histogram(rows, [0, 500, 590, 630])[0].tolist() == counts
        assert rows[:500] == list(range(500))
        assert all(len(b.ids) * max(b.src.shape[1], b.tgt_out.shape[1]) <= BUDGET for b in epoch)
    assert any(min(batch) < 500 <= max(batch) for batch in ids(first)), "batches hold one corpus"
    assert flat(ids(first)) != flat(ids(second))
    torch.manual_seed(7)
    np.random.seed(7)
    assert [ids(again), ids(again)] == [ids(first), ids(second)]
    assert ids(make_loader(plan=Plan(BUDGET, seed=2))) != ids(first)


@pytest.mark.parametrize(("epochs", "taken"), [(0, 1), (2, 30), (1, 60)])
def test_a_saved_position_gives_precisely_the_rest(epochs: int, taken: int) -> None:
    loader = make_loader()
    for _ in range(epochs):
        list(loader)
    whole = make_loader()
    expected = [ids(whole) for _ in range(epochs + 2)]
    head = ids(islice(iter(loader), taken))
    resumed = make_loader()
    resumed.load_state_dict(loader.state_dict())
    assert head + ids(resumed) == expected[epochs]
    assert ids(resumed) == expected[epochs + 1]


def test_processes_share_an_epoch_equally() -> None:
    plan = Plan(BUDGET, world=2)
    shares = [ids(make_loader(rank, plan=plan)) for rank in range(2)]
    assert len(shares[0]) == len(shares[1])
    assert flat(shares[0] + shares[1]) == sorted(mixture().rows(0, seed=1).tolist())


@pytest.mark.parametrize("other", [{"temperature": 1.0}, {"shares": (None, 0.3)}])
def test_another_mixture_is_refused_in_the_middle_of_an_epoch(other: dict[str, Any]) -> None:
    loader, changed = make_loader(), make_loader(**other)
    next(iter(loader))
    with pytest.raises(ValueError, match=r"cut with corpus of pairs 500 of 500 \+ .*, now there"):
        changed.load_state_dict(loader.state_dict())
    list(loader)
    changed.load_state_dict(loader.state_dict())
    assert changed.state_dict()["epoch"] == 1


def test_without_further_corpora_batches_are_those_of_the_plan() -> None:
    table, plan = random_table(), Plan(BUDGET)
    for epoch, batches in enumerate(map(ids, [loader := cached(table, plan), loader])):
        expected = [
            rows.tolist()
            for pool in plan.order(epoch, 5)
            for rows in plan.batches(table, np.arange(pool, 500, 5), (epoch, int(pool)))
        ]
        assert batches == expected


# The data module


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, lines in (("train", 400), ("more", 90), ("val", 30), ("test", 20)):
        lengths = rng.integers(1, 15, lines)
        for side in ("en", "de", "fr"):
            text = "".join(f"{name} {side} " + "w " * n + f"{i}\n" for i, n in enumerate(lengths))
            (tmp_path / f"{name}.{side}").write_text(text)
    return tmp_path


def further(corpus: Path, **options: Any) -> ExtraCorpus:
    values: dict[str, Any] = {"train": f"{corpus}/more", "src": "en", "tgt": "fr", **options}
    return ExtraCorpus(**values)


def test_each_source_carries_the_tag_of_its_target(corpus: Path) -> None:
    data = ready(
        corpus, tags=True, extra_corpora=[further(corpus), further(corpus, src="fr", tgt="en")]
    )
    tags = data.tokenizer.tags
    assert tags == {"de": 4, "en": 5, "fr": 6}
    assert (data.counts.pairs, len(data.corpora())) == (580, 5)
    bounds = {4: (0, 400), 5: (490, 580), 6: (400, 490)}
    for batch in data.train_dataloader():
        assert batch.src_lengths.max() <= 50
        for row, tag in zip(batch.ids.tolist(), batch.src[:, 0].tolist(), strict=True):
            assert bounds[tag][0] <= row < bounds[tag][1]
    for batch in data.val_dataloader():
        assert (batch.src[:, 0] == tags["de"]).all()
    stream = ready(corpus, tags=True, streaming=True)
    assert all(
        (b.src[:, 0] == stream.tokenizer.tags["de"]).all() for b in stream.train_dataloader()
    )
    shares = [(src, tgt, round(share, 3)) for src, tgt, share in data.shares()]
    assert shares == [("en", "de", 0.69), ("en", "fr", 0.155), ("fr", "en", 0.155)]


def _words(corpus: Path, name: str, count: int) -> set[str]:
    sides = ("en", "de" if name == "train" else "fr")
    texts = [(corpus / f"{name}.{side}").read_text().splitlines()[:count] for side in sides]
    return {word for lines in texts for line in lines for word in line.split()}


@pytest.mark.parametrize("shared", [True, False])
def test_the_vocabulary_is_learned_from_all_corpora(corpus: Path, shared: bool) -> None:
    config = TokenizerConfig("word", 1000, shared, min_frequency=1)
    limited = further(corpus, limit=5)
    tokenizer = ready(corpus, tags=True, extra_corpora=[limited], tokenizer=config).tokenizer
    assert UNK not in tokenizer.encode_tgt(["more fr w 4"])[0]
    assert (UNK in tokenizer.encode_src(["fr"], "de")[0]) == (not shared)
    specials = {"<pad>", "<s>", "</s>", "<unk>", "<2de>", "<2fr>"}
    words = {
        w for name, count in (("train", 400), ("more", 5)) for w in _words(corpus, name, count)
    }
    assert not shared or tokenizer.src_vocab_size == len(specials | words)


def test_caches_depend_on_the_mixture_and_those_without_one_stay(corpus: Path) -> None:
    plain = make(corpus)
    [text] = plain._text("train")
    about = ["TwoFiles", "en", "de", text.identity(), None, vars(plain.tokenizer_config)]
    assert (
        tokenizer_path(plain.cache, *plain._learned_from()).name
        == f"tokenizer-{digest(about)}.json"
    )
    options: list[dict[str, Any]] = [
        {}, {"tags": True}, {"extra_corpora": [further(corpus, tgt="de", src="fr")]},
        {"extra_corpora": [further(corpus, tgt="de", src="fr", limit=9)]},
        {"extra_corpora": [further(corpus, tgt="de", src="fr")], "tags": True},
        {"extra_corpora": [further(corpus)], "tags": True},
    ]  # fmt: skip
    made = [make(corpus, **given) for given in options]
    assert len({tokenizer_path(data.cache, *data._learned_from()) for data in made}) == len(options)


def test_a_resumed_fit_sees_what_an_uninterrupted_one_sees(corpus: Path) -> None:
    options: dict[str, Any] = {"tags": True, "extra_corpora": [further(corpus, share=0.3)]}
    whole = run(make(corpus, **options), corpus)
    size = sum(epoch == 0 for epoch, _ in whole.seen)
    assert [sum(len(b) for e, b in whole.seen if e == epoch) for epoch in range(3)] == [571] * 3
    assert whole.validations, "an epoch's end was not seen"
    for step in (size - 3, size, size + 7):
        checkpoint = corpus / f"{step}.ckpt"
        head = run(make(corpus, **options), corpus, callbacks=[StopAt(step, checkpoint)])
        rest = run(make(corpus, **options), corpus, resume=checkpoint)
        assert head.seen + rest.seen == whole.seen
    changed = make(corpus, tags=True, extra_corpora=[further(corpus, share=0.2)])
    with pytest.raises(ValueError, match="cannot resume in the middle of an epoch"):
        run(changed, corpus, resume=checkpoint)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"extra_corpora": [{"train": ""}]},
            r"data.extra_corpora\[0\].train is missing: name a corpus",
        ),
        (
            {"extra_corpora": [{"src": ""}]},
            r"data.extra_corpora\[0\].src is missing: name the language",
        ),
        (
            {"extra_corpora": [{}, {"tgt": "en"}]},
            r"data.extra_corpora\[1\].tgt: 'en' is data.extra_corpora\[1\].src too",
        ),
        (
            {"extra_corpora": [{"train": "no/x"}]},
            r"data.extra_corpora\[0\].train: neither no/x.en nor x.en.gz",
        ),
        (
            {"extra_corpora": [{"share": 1.0}]},
            r"data.extra_corpora\[0\].share: 1 must lie between 0 and 1",
        ),
        ({"extra_corpora": [{"limit": 0}]}, r"data.extra_corpora\[0\].limit: 0 must be 1 or more"),
        (
            {"extra_corpora": [{"share": 0.5}] * 2},
            "data.extra_corpora: the shares add up to 1 and leave nothing",
        ),
        (
            {"extra_corpora": [{}], "tags": False},
            r"data.extra_corpora\[0\].tgt: 'fr' is not data.tgt = 'de'.*tags",
        ),
        (
            {"extra_corpora": [{}], "streaming": True},
            "data.streaming: true does not go with data.extra_corpora",
        ),
        ({"temperature": 0.0}, "data.temperature: 0 must be more than 0"),
        ({"tokenizer": TokenizerConfig(vocab_size=260)}, "data.tokenizer.vocab_size: 260 is too"),
    ],
)
def test_errors_name_the_recipe_key(corpus: Path, options: dict[str, Any], message: str) -> None:
    also = [further(corpus, **entry) for entry in options.pop("extra_corpora", [])]
    with pytest.raises(ValueError, match=f"^{message}"):
        make(corpus, **{"tags": True, "extra_corpora": also, **options}).prepare_data()


def test_a_vocabulary_that_came_with_a_model_must_know_the_tags(corpus: Path) -> None:
    def prepared(tokenizer: Tokenizer, **options: Any) -> DataModule:
        data = make(corpus, **options)
        data.tokenizer = tokenizer
        data.prepare_data()
        return data

    lines = lambda: ["w train more"]  # noqa: E731
    config = TokenizerConfig("word", 20, min_frequency=1)
    plain, tagged = (Tokenizer.train(config, lines, lines, tags) for tags in ([], ["de", "en"]))
    prepared(plain)
    prepared(tagged, tags=True)
    with pytest.raises(ValueError, match="^data.tags: true, but the vocabulary that came with"):
        prepared(plain, tags=True)
    with pytest.raises(ValueError, match="^data.tgt: language 'fr' is unknown to this model: it "):
        prepared(tagged, tgt="fr")
    with pytest.raises(
        ValueError, match=r"^data.extra_corpora\[0\].tgt: language 'fr' is unknown to this"
    ):
        prepared(tagged, tags=True, extra_corpora=[further(corpus)])


# Tags


@pytest.mark.parametrize("kind", ["bpe", "unigram", "word"])
@pytest.mark.parametrize("shared", [True, False])
def test_text_that_spells_a_tag_is_text(kind: Any, shared: bool) -> None:
    lines = lambda: iter(["<2de> <s> ein haus", "<2en> a house </s>"] * 20)  # noqa: E731
    config = TokenizerConfig(kind, 300, shared)
    tokenizer = Tokenizer.train(config, lines, lines, ["en", "de"])
    assert tokenizer.tags == {"de": 4, "en": 5}
    assert Tokenizer.from_text(tokenizer.to_text()).tags == tokenizer.tags
    text = "<2de> <2en> ein haus"
    [found] = tokenizer.encode_src([text], "en")
    assert (found[0], found[-1]) == (5, EOS)
    assert not {4, 5} & {*found[1:], *(tokenizer.encode_tgt([text])[0] if shared else [])}
    assert (
        tokenizer.decode([[5, *tokenizer.encode_tgt(["a house"])[0]]]) == ["a house"] or not shared
    )
    assert tokenizer.src_pieces(found)[0] == "<2en>"
    assert tokenizer.src_words(found[:-1])[0] == 0
    assert tokenizer.src_words(found[:-1])[-1] == 3, "a tag was counted"
    with pytest.raises(
        ValueError, match="^language 'it' is unknown .*: it translates into de, en$"
    ):
        tokenizer.encode_src([text], "it")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy model of German to English and back."""
    folder = tmp_path_factory.mktemp("mixture")
    path = recipe(folder, extra=f"run_dir: {folder}/run\nlogger: none\n")
    also = f"{{train: {folder}/corpus/train, src: en, tgt: de, share: 0.4}}"
    path.write_text(
        path.read_text().replace("src: de,", f"src: de, tags: true, extra_corpora: [{also}],")
    )
    assert main(["fit", "--config", str(path), "--trainer.enable_progress_bar", "false"]) == 0
    return folder


def test_a_model_translates_into_each_of_its_languages(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    translator = Translator.load(trained / "run/bundle")
    lines = ["rot haus", "", "vier baum"]
    into = {to: translator.translate(lines, to=to) for to in ("de", "en")}
    assert translator.translate(lines) == into["en"]
    scores = {to: translator.score(["rot"], ["red"], to)[0].log_prob for to in ("de", "en")}
    assert scores["de"] != scores["en"] == translator.score(["rot"], ["red"])[0].log_prob
    assert translator.attention("rot", "red", to="de")[1][0] == "<2de>"
    [[best], _, _] = translator.n_best(lines, to="de", alignments=True, n_best=1)
    assert {s for s, _ in best.alignment or []} <= {0, 1}

    bundle = str(trained / "run/bundle")
    capsys.readouterr()
    for to, expected in into.items():
        assert main(["translate", bundle, "--to", to, "--scores", *lines]) == 0
        found = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
        assert [text for *_, text in found] == expected
        assert found[0][1] == f"{translator.n_best(lines, to=to, n_best=1)[0][0].log_prob:.4f}"
    for side, text in (("src", "rot\n"), ("tgt", "red\n")):
        (trained / side).write_text(text)
    pair = ["--src", str(trained / "src"), "--tgt", str(trained / "tgt")]
    assert main(["score", bundle, *pair, "--to", "de"]) == 0
    assert float(capsys.readouterr().out.split("\t")[0]) == pytest.approx(scores["de"], abs=1e-3)
    card = (trained / "run/bundle/README.md").read_text()
    assert "- training pairs: de → en 60.0 %, en → de 40.0 %" in card
    assert 'translate(["..."], to="de")' in card


def test_a_tag_is_aligned_with_nothing(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    translator = Translator.load(trained / "run/bundle")
    src = translator.encode(["rot baum"], "de")[0]
    tgt = translator.tokenizer.encode_tgt(["red"])[0][:-1]
    weights = torch.zeros(1, 1, 1, len(tgt) + 1, len(src))
    weights[..., 0], weights[..., -2] = 0.6, 0.4  # the tag, and the end of "baum"
    monkeypatch.setattr(forced, "cross_attention", lambda *_: weights)
    assert forced.align(translator.model, translator.tokenizer, [(src, tgt)]) == [[(1, 0)]]


def test_the_test_uses_the_tag_of_its_target(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, test = str(trained / "run/bundle"), f"{trained}/corpus/test"
    command = ["test", bundle, "--data.test", test, "--data.cache", f"{trained}/cache"]
    backwards = [*command, "--data.src", "en", "--data.tgt", "de", "--run_dir", f"{trained}/de"]
    assert main(backwards) == 0
    lines = (trained / "corpus/test.en").read_text().splitlines()
    expected = Translator.load(bundle).translate(lines, to="de")
    assert (trained / "de/hypotheses.txt").read_text().splitlines() == expected
    write_corpus(trained / "other", {"test": 3})
    (trained / "other/test.it").write_text("x\n" * 3)
    capsys.readouterr()
    other = ["--data.test", f"{trained}/other/test", "--data.tgt", "it", "--run_dir"]
    assert main([*command, *other, f"{trained}/it"]) == 2
    assert "error: data.tgt: language 'it' is unknown to this model" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["translate", "score"])
def test_a_language_that_the_model_does_not_know(
    trained: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = [
        f"--{side}={trained}/corpus/test.{name}" for side, name in (("src", "de"), ("tgt", "en"))
    ]
    text = ["rot"] if command == "translate" else pair
    assert main([command, str(trained / "run/bundle"), *text, "--to", "it"]) == 2
    message = "--to it: language 'it' is unknown to this model: it translates into de, en\n"
    assert capsys.readouterr().err == f"transformer: error: {message}"


def test_a_model_without_tags_translates_into_one_language(trained: Path) -> None:
    lines = lambda: iter(["rot haus", "red house"])  # noqa: E731
    plain = Tokenizer.train(TokenizerConfig(vocab_size=300), lines, lines)
    model = Translator.load(trained / "run/bundle").model
    translator = Translator(model, plain, tgt="en")
    assert (
        translator.encode(["rot"], "en") == translator.encode(["rot"]) == plain.encode_src(["rot"])
    )
    with pytest.raises(ValueError, match="^this model translates into en alone: it was trained wi"):
        translator.translate(["rot"], to="de")


def test_reproduce_takes_the_further_files_from_another_folder_too(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    also = "[{train: a/more, src: en, tgt: de, share: 0.1}, {train: 'hub:x:train'}, 3]"
    path.write_text(path.read_text().replace("src: de,", f"src: de, extra_corpora: {also},"))
    *_, option = moved(path, Path("other"))
    key, _, value = option.partition("=")
    entry = {"train": "other/more", "src": "en", "tgt": "de", "share": 0.1}
    assert (key, json.loads(value)) == (
        "--data.extra_corpora",
        [entry, {"train": "hub:x:train"}, 3],
    )


@pytest.mark.parametrize(
    ("also", "message"),
    [
        (
            "[{train: x, src: en, tgt: de, share: much}]",
            "share: expected float or null, got 'much'",
        ),
        ("[{train: x, src: en, tgt: de, shre: 0.1}]", "key 'shre' does not exist, the nearest is"),
        ("[corpus/train]", "expected group of settings or null, got \"['corpus/train']\""),
        ("corpus/train", "expected list or null, got 'corpus/train'"),
    ],
)
def test_a_wrong_entry_is_one_line(
    tmp_path: Path, also: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path)
    path.write_text(path.read_text().replace("src: de,", f"src: de, extra_corpora: {also},"))
    assert main(["fit", "--config", str(path)]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"transformer: error: {path}:2: data.extra_corpora: ")
    assert message in line
