"""Fixtures of several files of tests."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from texts import write_texts

from transformer.__main__ import main

# What these import is installed for Python 3.11 or later.
OPTIONAL = [
    "ctranslate2*",
    "export_hf",
    "gate",
    "import",
    "onnx",
    "page",
    "queue",
    "sentencepiece",
    "serving",
]
collect_ignore_glob = [f"test_{name}.py" for name in OPTIONAL if sys.version_info < (3, 11)]


@pytest.fixture
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder of its own, and nothing of the user's account or of a parent process."""
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


@pytest.fixture
def own_log(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands log to the standard output of their process, which here changes with every test."""
    monkeypatch.setattr(logging.getLogger("transformer"), "handlers", [])


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe and a bundle that odd files and payloads are made of."""
    from reliability.fuzz_files import settings
    from test_translator import save

    folder = tmp_path_factory.mktemp("shared")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings(folder)))
    save(folder / "run" / "bundle")
    return folder


@pytest.fixture
def device() -> str:
    """The device of the tests marked `gpu`: a GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Runs a command that must succeed; returns the lines it printed."""

    def command(*args: object) -> list[str]:
        code = main([str(arg) for arg in args])
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out.splitlines()

    return command


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command that must fail; returns its one line of error."""

    def command(*args: object) -> str:
        assert main([str(arg) for arg in args]) == 2
        printed = capsys.readouterr().err
        assert printed.startswith("transformer: error: ")
        assert printed.count("\n") == 1
        return printed

    return command


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Files train, val and test of 400, 30 and 20 lines, in English and German."""
    return write_texts(tmp_path)
