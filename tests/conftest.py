"""Fixtures of several files of tests."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch


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


@pytest.fixture
def device() -> str:
    """The device of the tests marked `gpu`: a GPU where there is one."""
    return "cuda" if torch.cuda.is_available() else "cpu"
