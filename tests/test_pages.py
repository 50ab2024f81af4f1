"""README and pages: links lead somewhere, names exist, both languages show the same commands."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from transformer.__main__ import main

ROOT = Path(__file__).parent.parent
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")),
                 ROOT / "recipes/README.md", ROOT / "tests/benchmarks/README.md")
]  # fmt: skip
ENGLISH, KOREAN = "README.md", "docs/README.ko.md"


def read(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def anchors(text: str) -> set[str]:
    """Headings, as GitHub turns them into anchors."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in re.findall(r"\]\((?!https?:)([^)\s]+)\)", read(page)):
        file, _, anchor = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", [ENGLISH, KOREAN])
def test_the_names_beside_the_paper_are_in_the_file_beside_them(page: str) -> None:
    rows = re.findall(r"`(\w+(?:`, `\w+)*)`(?: in|:) \[[^]]+\]\(([^)]+\.py)\)", read(page))
    assert len(rows) >= 10
    for names, file in rows:
        source = ((ROOT / page).parent / file).read_text(encoding="utf-8")
        for name in names.split("`, `"):
            assert re.search(rf"^ *(def|class) {name}\b|^{name}\b.* = ", source, re.MULTILINE), name


def code(page: str) -> list[list[str]]:
    """The blocks of code, without their comments."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", read(page), re.MULTILINE | re.DOTALL)
    return [[re.sub(r"#.*", "", line).rstrip() for line in text.splitlines()] for text in blocks]


def test_both_languages_show_the_same_commands() -> None:
    assert code(ENGLISH) == code(KOREAN)
    assert read(ENGLISH).count("\n## ") == read(KOREAN).count("\n## ")
    assert f"({KOREAN})" in read(ENGLISH)[:200] and "(../README.md)" in read(KOREAN)[:200]


def keys(settings: dict[str, Any], group: str = "") -> Iterator[str]:
    """Dotted names of settings and groups."""
    for name, value in settings.items():
        yield group + name
        if isinstance(value, dict):
            yield from keys(value, f"{group}{name}.")


def test_the_settings_that_pages_name_exist(capsys: pytest.CaptureFixture[str]) -> None:
    with contextlib.suppress(SystemExit):
        main(["fit", "--print_config"])
    known = set(keys(yaml.safe_load(capsys.readouterr().out)))
    assert {"data.train", "model.lora.rank"} <= known
    for page in PAGES:
        named = re.findall(r"--((?:data|model)\.[\w.]+)", read(page))
        assert set(named) <= known, page
    blocks = re.findall(r"^```yaml\n(.*?)^```", "".join(map(read, PAGES)), re.MULTILINE | re.DOTALL)
    for recipe in map(yaml.safe_load, blocks):
        given = {group: recipe.get(group, {}) for group in ("data", "model")}
        assert set(keys(given)) <= known
