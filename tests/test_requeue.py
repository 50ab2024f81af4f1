"""One command that begins a run, goes on with it, and ends it, however often it is repeated."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toys import fit, raising, recipe

from transformer.training.checkpoint_files import newest_checkpoint
from transformer.training.module import Seq2SeqModule

FOLDER = Path("runs/toy")
LAST = FOLDER / "checkpoints/last.ckpt"


@pytest.fixture
def options(tmp_path: Path, own_folder: None) -> list[str]:
    """Of a run that saves every third step."""
    given = ["--logger", "none", "--save_every", "3", "--trainer.val_check_interval", "3"]
    return ["--config", str(recipe(tmp_path)), *given, "--trainer.max_epochs", "-1"]


def to(steps: int) -> list[str]:
    return ["--trainer.max_steps", str(steps)]


def steps_of(file: Path) -> int:
    return int(torch.load(file, weights_only=True)["global_step"])


def stop_after(monkeypatch: pytest.MonkeyPatch, micro_batches: int) -> None:
    """Lets a run end at once after so many micro-batches, as a process that was killed."""
    whole = Seq2SeqModule.training_step

    def step(self: Seq2SeqModule, *args: Any) -> Any:
        if self.micro_batches == micro_batches:
            raise KeyboardInterrupt
        return whole(self, *args)

    monkeypatch.setattr(Seq2SeqModule, "training_step", step)


def test_one_command_begins_goes_on_and_ends(
    options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    again = [*options, *to(8), "--existing", "resume"]
    with monkeypatch.context() as stops:
        stop_after(stops, 1)  # before there is a checkpoint
        assert fit(*again) == 130
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / "config.yaml").touch()  # a killed process would have left it
    with monkeypatch.context() as stops:
        stop_after(stops, 5)
        assert fit(*again) == 130
    assert "writing to runs/toy" in capsys.readouterr().out
    assert fit(*again) == 0
    assert "resuming in runs/toy" in capsys.readouterr().out
    assert json.loads((FOLDER / "results.json").read_text())["steps"] == 8
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    for _ in range(2):
        assert fit(*again) == 0
        said = capsys.readouterr()
        assert said.out == (
            "runs/toy has ended, nothing is left to do: its bundle is runs/toy/bundle\n"
        )
        assert not said.err
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == before
    shutil.rmtree(FOLDER / "checkpoints")  # to save room
    assert fit(*again) == 0
    kept = yaml.safe_load((FOLDER / "config.yaml").read_text())
    assert (kept["existing"], kept["ckpt_path"]) == ("refuse", None)


def test_a_run_that_ended_goes_on_when_more_is_wanted(options: list[str]) -> None:
    """Also one whose patience ended before its steps did."""
    assert fit(*options, *to(3), "--existing", "resume") == 0
    lost = ["--patience", "0", "--model.learning_rate", "1", "--existing", "resume"]
    assert fit(*options, *to(90), *lost) == 0
    assert steps_of(LAST) < 90
    before = LAST.stat().st_mtime_ns
    assert fit(*options, *to(90), *lost) == 0
    assert LAST.stat().st_mtime_ns == before


def test_a_test_that_was_stopped_is_repeated(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as stops:
        stops.setattr(Seq2SeqModule, "test_step", raising(KeyboardInterrupt()))
        assert fit(*options, *to(3), "--existing", "resume") == 130
    assert json.loads((FOLDER / "results.json").read_text())["bleu"] is None
    assert fit(*options, *to(3), "--existing", "resume") == 0
    assert json.loads((FOLDER / "results.json").read_text())["bleu"] is not None


@pytest.mark.parametrize("harm", ["torn", "flipped"])
def test_of_a_damaged_checkpoint_the_one_before_it_is_used(
    options: list[str], harm: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(*options, *to(3)) == 0
    shutil.copy(LAST, "before.ckpt")
    assert fit(*options, *to(6), "--ckpt_path", "last") == 0
    expected = torch.load(LAST, weights_only=True)["state_dict"]
    content = bytearray(LAST.read_bytes())
    content[len(content) // 2] ^= 8  # torch would read a wrong number without a word
    LAST.write_bytes(content if harm == "flipped" else content[:-100])
    for other in FOLDER.glob("checkpoints/best-*"):
        other.unlink()
    shutil.copy("before.ckpt", FOLDER / "checkpoints/best-step3-bleu0.00.ckpt")
    capsys.readouterr()
    assert fit(*options, *to(6), "--ckpt_path", str(LAST)) == 2
    said = capsys.readouterr().err
    assert f"{LAST} cannot be read as a checkpoint" in said
    assert "the newest whole one beside it is runs/toy/checkpoints/best-step3-bleu0.00.ckpt" in said
    assert fit(*options, *to(6), "--ckpt_path", "last") == 0
    (warning,) = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert f"{LAST} cannot be read: going on from" in warning
    assert warning.endswith("best-step3-bleu0.00.ckpt")
    torch.testing.assert_close(
        torch.load(LAST, weights_only=True)["state_dict"], expected, rtol=0, atol=0
    )
    for file in FOLDER.glob("checkpoints/*.ckpt"):
        file.write_bytes(file.read_bytes()[:-100])
    for way in (["--ckpt_path", "last"], ["--existing", "resume"]):
        assert fit(*options, *to(9), *way) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "cannot be read as a checkpoint, and runs/toy has no other one" in said


def test_the_newest_checkpoint_is_known_by_its_content(options: list[str]) -> None:
    folder = FOLDER / "checkpoints"
    assert fit(*options, *to(3)) == 0
    shutil.copy(LAST, folder / "a.ckpt")
    assert fit(*options, *to(9), "--ckpt_path", "last") == 0
    os.utime(LAST, (1, 1))  # as in a copy that keeps no times
    assert newest_checkpoint(folder) in (LAST, folder / "best-step9-bleu0.00.ckpt")
    # Whoever goes back to an earlier checkpoint means it: what came after it before is not newer.
    shutil.copy(LAST, folder / "b.ckpt")
    assert fit(*options, *to(6), "--ckpt_path", folder / "a.ckpt") == 0
    newest = newest_checkpoint(folder)
    assert newest
    assert steps_of(newest) == 6


def test_what_contradicts_itself_or_is_not_there_is_refused(
    options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit(*options, "--ckpt_path", "last") == 2
    assert "--ckpt_path last: runs/toy has no checkpoint: leave it out" in capsys.readouterr().err
    assert not FOLDER.exists()
    assert fit(*options, "--ckpt_path", "x.ckpt", "--existing", "resume") == 2
    assert "leave out --ckpt_path x.ckpt" in capsys.readouterr().err
    (FOLDER / "precious").mkdir(parents=True)
    assert fit(*options, "--existing", "resume") == 2
    assert "runs/toy exists already" in capsys.readouterr().err
