"""A file is there whole, or as it was before."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from transformer.writing import clear, part, whole, whole_folder, write


def test_a_killed_writer_leaves_the_file_of_before(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write(file, "before")
    child = os.fork()
    if child == 0:
        with whole(file) as stream:
            stream.write(b"after, but not all")
            stream.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert file.read_text() == "before"
    assert len(list(tmp_path.iterdir())) == 2
    growing = part(tmp_path / "folder")
    growing.mkdir()
    (growing / "file").touch()
    (tmp_path / ".hidden").touch()
    clear(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".hidden", "file"]


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    """Their process numbers are equal in containers that share the folder."""
    with whole(tmp_path / "file") as one:
        one.write(b"one")
        with whole(tmp_path / "file") as other:
            other.write(b"the other")
        one.write(b" and all")
    assert (tmp_path / "file").read_text() == "one and all"


def test_a_full_disk_names_the_folder(tmp_path: Path) -> None:
    def save() -> None:
        with whole_folder(tmp_path / "bundle"), Path("/dev/full").open("w") as stream:
            stream.write("text")

    with pytest.raises(OSError, match="No space left on device: '.*/bundle'"):
        save()
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "new folder" / "file"
    write(file, "before")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write(file, "after")
    assert caught.value.filename == str(file)
    assert file.read_text() == "before"
    assert os.listdir(file.parent) == ["file"]


def test_a_folder_that_goes_away_while_safetensors_writes_is_named(tmp_path: Path) -> None:
    def save() -> None:
        with whole_folder(tmp_path / "run" / "bundle") as growing:
            (tmp_path / "run").rename(tmp_path / "away")
            save_file({"weight": torch.ones(2)}, growing / "model.safetensors")

    with pytest.raises(OSError, match=r"No such file .*'.*/run/bundle'"):
        save()
