"""The documentation is built without a warning, and its pages have what the sources have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytest.importorskip("mkdocstrings", reason="which is installed for Python 3.11 or later")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a link that leads nowhere is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(folder)]
    env = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_every_page_and_every_module_is_there(site: Path) -> None:
    pages = [f"{path.stem}.html" for path in (ROOT / "docs").glob("*.md")]
    assert len(pages) >= 5 and all((site / page).exists() for page in pages)
    for module in (ROOT / "transformer").rglob("*.py"):
        stem = module.relative_to(ROOT).with_suffix("").as_posix().replace("__init__", "index")
        assert (site / "reference" / f"{stem}.html").exists(), stem


def test_the_reference_has_signatures_and_docstrings(site: Path) -> None:
    page = (site / "reference/transformer/models/attention.html").read_text(encoding="utf-8")
    assert "scaled_dot" in page and "section 3.2.1" in page and "need_weights" in page


def test_links_to_the_code_lead_to_the_reference(site: Path) -> None:
    page = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="reference/transformer/models/attention.html"' in page
    assert 'src="recipes/pictures/quickstart-ko_en.png"' in page
    assert (site / "recipes/pictures/quickstart-ko_en.png").stat().st_size > 10_000


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "fonts.googleapis" not in text and 'src="http' not in text, page
