"""The notebooks run from top to bottom, and are committed as they came out of a run."""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).resolve().parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
#: How long they train, and how long suffices for what their cells assert.
SHORTER = {"WORDS, STEPS = 16, 500": "WORDS, STEPS = 16, 150", "max_epochs=5": "max_epochs=3"}


def read(path: Path) -> Any:
    return nbformat.read(path, as_version=4)


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_two() -> None:
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02"]


def kinds(cell: Any) -> set[str]:
    """Of outputs; what is printed may come in one piece or in several."""
    return {output.output_type for output in cell.outputs}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells assert what their text says; the outputs must be of the kinds that are committed."""
    monkeypatch.setenv("HOME", str(tmp_path))  # where corpora are cached
    notebook = read(path)
    kept = [kinds(cell) for cell in code(notebook)]
    for cell in code(notebook):
        for long, short in SHORTER.items():
            cell.source = cell.source.replace(long, short)
    assert sum(short in cell.source for cell in code(notebook) for short in SHORTER.values()) == 1
    NotebookClient(notebook, timeout=400, resources={"metadata": {"path": str(FOLDER)}}).execute()
    assert [kinds(cell) for cell in code(notebook)] == kept


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_as_it_ran(path: Path) -> None:
    """In one go, with its outputs, without errors, and it is valid."""
    notebook = read(path)
    nbformat.validate(notebook)
    assert notebook.cells[0].source.startswith("# ")
    counts = [cell.execution_count for cell in code(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in code(notebook) for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [o for o in outputs if o.output_type == "error" or o.get("name") == "stderr"]
    texts = [o.get("text", "") + o.get("data", {}).get("text/plain", "") for o in outputs]
    assert not [text for text in texts if "/tmp" in text or "/home" in text]
