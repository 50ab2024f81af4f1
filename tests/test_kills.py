"""A run that is killed at any moment, and resumed, is the run that was never killed."""

from __future__ import annotations

import json
import random
import re
import resource
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import Strategy
from toys import fit, recipe

from transformer.commands import verify_resume
from transformer.commands.fit import default_network
from transformer.commands.keys import parser_of
from transformer.commands.lives import PHASES, Aim, Life, live
from transformer.commands.verify_resume import Aims, short, verify
from transformer.data.loaders import TrainLoader
from transformer.training.module import Seq2SeqModule
from transformer.training.scoring import TranslationScore
from transformer.writing import is_part

LAST = "runs/toy/checkpoints/last.ckpt"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options of a run with several checkpoints, without the picture, which takes a second."""
    monkeypatch.setattr("transformer.training.results.attention_figure", lambda *_: None)
    saved = ["--save_every=2", "--average=2", "--keep_best=2", "--data.max_tokens=110"]
    return [f"--config={recipe(tmp_path)}", *saved]


@pytest.mark.parametrize(
    ("devices", "used"), [("3", "3"), ("-1", "1"), ("auto", "1"), ("[2, 3]", "[2, 3]")]
)
def test_a_killed_run_has_as_many_processes(toy: list[str], devices: str, used: str) -> None:
    """Of all devices Lightning would start the command itself on each."""
    args = [*toy, f"--trainer.devices={devices}"]
    config = parser_of(default_network(args)).parse_args(args)
    given = [*args, *short(args, config, 8)]
    last = [option for option in given if option.startswith("--trainer.devices")][-1]
    assert last == f"--trainer.devices={used}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kills", "options"),
    [
        (4, ["--trainer.accumulate_grad_batches=3", "--trainer.val_check_interval=6"]),
        (1, ["--data.streaming=true", "--data.num_workers=2"]),  # else there are no workers
        (1, ["--data.tokenizer.kind=unigram"]),
    ],
)
def test_a_killed_run_goes_on_as_if_nothing_had_been(
    tmp_path: Path, toy: list[str], kills: int, options: list[str]
) -> None:
    """With short steps at the ends of epochs."""
    verdict = verify([*toy, *options], tmp_path / "runs", steps=12, kills=kills, seed=3)
    assert verdict.difference is None
    assert str(verdict).startswith(f"resumed exactly: {kills} kill")


@pytest.mark.slow
def test_a_life_tells_each_of_its_phases(tmp_path: Path, toy: list[str]) -> None:
    window = ["--trainer.accumulate_grad_batches=2", "--trainer.val_check_interval=4"]
    places = [f"--run_dir={tmp_path}/run", "--logger=none", "--trainer.max_steps=4"]
    life = live([*toy, *window, *places], 1, tmp_path / "log.txt")
    assert {phase for phase, _ in life.phases} == set(PHASES)


def lose_the_position(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainLoader, "load_state_dict", lambda self, state: None)


def lose_the_moments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Strategy, "load_optimizer_state_dict", lambda self, checkpoint: None)


def lose_the_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run begins anew, and comes to the same end."""
    monkeypatch.setattr("transformer.training.folders.look_through", lambda folder: (None, []))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (lose_the_position, "(pairs|loss) differs"),
        (lose_the_moments, "(pairs|loss) differs"),
        (lose_the_checkpoints, "a life begins with micro-batch 1, [1-9] were saved before"),
    ],
)
def test_a_run_that_loses_something_is_found_out(
    tmp_path: Path,
    toy: list[str],
    monkeypatch: pytest.MonkeyPatch,
    fault: Callable[[pytest.MonkeyPatch], None],
    found: str,
) -> None:
    """It is killed in its second validation, when there are checkpoints."""
    fault(monkeypatch)
    begun = Aim("validation", nth=2, delay=0.0, ranks=(0,))
    monkeypatch.setattr(verify_resume.Aims, "choose", lambda self, fell: None if fell else begun)
    verdict = verify(toy, tmp_path / "runs", steps=8, kills=1, seed=1)
    assert re.search(found, str(verdict.difference))
    assert str(verdict).startswith("did not resume exactly after 1 kill (")


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("runs/toy/results.json").read_text())
    return found


@pytest.fixture
def options(tmp_path: Path, own_folder: None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Of a run that validates and saves every third step; its best checkpoint is by loss alone."""
    compute = TranslationScore.compute
    monkeypatch.setattr(TranslationScore, "compute", lambda self: {**compute(self), "bleu": 0.0})
    given = ["--logger", "none", "--save_every", "3", "--trainer.val_check_interval", "3"]
    return ["--config", str(recipe(tmp_path)), *given, "--trainer.max_epochs", "-1"]


#: Goes on with so high a rate that everything that was learned is lost.
LOST = ["--ckpt_path", LAST, "--model.learning_rate", "3"]


def best() -> list[str]:
    return [path.name for path in Path("runs/toy/checkpoints").glob("best-*")]


def test_a_checkpoint_knows_what_the_validation_of_its_step_found(options: list[str]) -> None:
    assert fit(*options, "--trainer.max_steps", "6") == 0
    assert best() == ["best-step6-bleu0.00.ckpt"]
    loss = results()["loss"]
    assert fit(*options, *LOST, "--trainer.max_steps", "12") == 0
    assert len(results()["validation_bleu"]) == 4
    assert best() == ["best-step6-bleu0.00.ckpt"]
    assert results()["loss"] == loss


def test_a_best_checkpoint_that_is_there_is_known_again(options: list[str]) -> None:
    """The run was killed when it had written it, and before it noted that anywhere else."""
    assert fit(*options, "--trainer.max_steps", "3") == 0
    shutil.copy(LAST, "before.ckpt")
    assert fit(*options, "--ckpt_path", LAST, "--trainer.max_steps", "6") == 0
    loss = results()["loss"]
    shutil.move("before.ckpt", LAST)
    assert fit(*options, *LOST, "--trainer.max_steps", "9") == 0
    assert best() == ["best-step6-bleu0.00.ckpt"]
    assert results()["loss"] == loss


def test_saves_that_a_kill_left_out_are_made_up_for(options: list[str]) -> None:
    """The last validation had written its best checkpoint, but not removed the one before."""
    assert fit(*options, "--trainer.max_steps", "3", "--average", "2") == 0
    folder = Path(LAST).parent
    shutil.copytree(folder, "before")
    again = ["--ckpt_path", "last", "--trainer.max_steps", "9", "--average", "2"]
    assert fit(*options, *again) == 0
    expected = {path.name: torch.load(path, weights_only=True) for path in folder.glob("*")}
    # Weights of before are removed earlier than the best checkpoint is written.
    others = shutil.ignore_patterns("weights-*")
    shutil.copytree("before", folder, dirs_exist_ok=True, ignore=others)
    Path("runs/toy/results.json").unlink()
    assert fit(*options, *again) == 0
    assert {path.name for path in folder.glob("*")} == expected.keys()
    for name, weights in torch.load(LAST, weights_only=True)["state_dict"].items():
        assert torch.equal(weights, expected["last.ckpt"]["state_dict"][name])


def test_a_longer_run_that_is_killed_in_its_test_has_not_ended(options: list[str]) -> None:
    assert fit(*options, "--trainer.max_steps", "3") == 0
    shutil.copy("runs/toy/results.json", "before.json")
    longer = [*options, "--existing", "resume", "--trainer.max_steps", "6"]
    assert fit(*longer) == 0
    loss = results()["loss"]
    shutil.move("before.json", "runs/toy/results.json")
    assert fit(*longer) == 0
    assert (results()["steps"], results()["loss"]) == (6, loss)


def test_a_run_that_went_back_averages_what_it_made_itself(options: list[str]) -> None:
    every = [*options, "--average", "3", "--trainer.max_steps"]
    assert fit(*every, "6") == 0
    back = shutil.copy(LAST, Path(LAST).with_name("back.ckpt"))
    assert fit(*every, "12", "--ckpt_path", LAST) == 0
    assert fit(*every, "10", "--ckpt_path", back, "--save_every", "5") == 0
    assert fit(*every, "15", "--ckpt_path", LAST, "--save_every", "5") == 0
    names = torch.load(LAST, weights_only=True)["callbacks"]["Checkpoints"]["to_average"]
    assert names == [f"weights-step{step}.ckpt" for step in (6, 10, 15)]


def test_copies_of_checkpoints_are_left_alone(options: list[str]) -> None:
    assert fit(*options, "--trainer.max_steps", "3", "--average", "2") == 0
    folder = Path(LAST).parent
    for path in [*folder.glob("best-*"), *folder.glob("weights-*")]:
        shutil.copy(path, folder / f"{path.stem}-keep.ckpt")
        shutil.copy(path, folder / f"{path.stem} (copy).ckpt")
    copies = {path.name for path in folder.glob("*[-)p].ckpt")}
    assert fit(*options, "--ckpt_path", LAST, "--trainer.max_steps", "9", "--average", "2") == 0
    assert {path.name for path in folder.glob("*.ckpt")} == copies | {
        "last.ckpt", "best-step9-bleu0.00.ckpt", "weights-step6.ckpt", "weights-step9.ckpt"
    }  # fmt: skip


def test_there_is_an_aim_for_each_kill() -> None:
    phases = [("preparation", 0.0), ("step", 1.0), ("validation", 2.0), ("test", 3.0)]
    life = Life(phases=phases, ended=4.0)
    aims = [Aims(life, 1, 1, random.Random(seed)).choose(Counter()) for seed in range(30)]
    assert {aim.phase for aim in aims if aim} == {"preparation", "step", "validation", "test"}
    assert None not in aims


@pytest.mark.usefixtures("own_folder")
def test_nothing_is_saved_inside_of_a_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = recipe(tmp_path)
    options = ["--logger", "none", "--save_every", "2", "--trainer.accumulate_grad_batches", "3"]
    assert fit("--config", path, *options, "--trainer.max_steps", "2") == 0
    assert torch.load(LAST, weights_only=True)["micro_batches"] == 6
    whole = Seq2SeqModule.training_step

    def fail(self: Seq2SeqModule, *args: Any) -> Any:
        if self.micro_batches == 8:
            raise KeyboardInterrupt
        return whole(self, *args)

    monkeypatch.setattr(Seq2SeqModule, "training_step", fail)
    again = ["--ckpt_path", LAST, "--trainer.max_steps", "4"]
    assert fit("--config", path, *options, *again) == 130
    assert torch.load(LAST, weights_only=True)["micro_batches"] == 6


def test_a_full_disk_costs_no_checkpoint(
    options: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fit(*options, "--trainer.max_steps", "3") == 0
    whole = Path(LAST).read_bytes()
    capsys.readouterr()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, hard))
    try:
        code = fit(*options, "--ckpt_path", LAST, "--trainer.max_steps", "6")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    said = capsys.readouterr().err
    assert code == 2
    assert said.count("\n") == 1
    assert "runs/toy/checkpoints/best-step6-bleu0.00.ckpt: File too large; training stopped" in said
    assert f"fit --config runs/toy/config.yaml --ckpt_path {LAST}" in said
    assert Path(LAST).read_bytes() == whole
    assert not [path for path in Path("runs/toy").rglob("*") if is_part(path)]


def test_checkpoints_take_no_way_over_another_file_system(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    assert fit(*options, "--trainer.max_steps", "3") == 0
    assert torch.load(LAST, weights_only=True)["global_step"] == 3


def test_an_error_of_a_library_keeps_its_trace_and_names_the_checkpoint(
    options: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Seq2SeqModule.training_step

    def fail(self: Seq2SeqModule, *args: Any) -> Any:
        return torch.zeros(2).view(3) if self.micro_batches == 4 else step(self, *args)

    monkeypatch.setattr(Seq2SeqModule, "training_step", fail)
    with pytest.raises(
        RuntimeError, match="stopped after step 4; to resume .* --ckpt_path"
    ) as stop:
        fit(*options)
    assert LAST in str(stop.value)
    assert "is invalid for input of size 2" in str(stop.value.__cause__)


@pytest.mark.parametrize(("name", "done"), [("max_steps", 3), ("max_epochs", 2)])
def test_where_nothing_is_left_to_train_nothing_is_changed(
    options: list[str], capsys: pytest.CaptureFixture[str], name: str, done: int
) -> None:
    given = [*options, *(["--save_every", "null"] if name == "max_epochs" else [])]
    assert fit(*given, f"--trainer.{name}", str(done)) == 0
    capsys.readouterr()
    before = {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")}
    for limit in (done, done - 1):
        assert fit(*given, "--ckpt_path", LAST, f"--trainer.{name}", str(limit)) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert f"nothing is left to train: trainer.{name} is {limit}, and {LAST} was" in said
        assert said.endswith("; its bundle is runs/toy/bundle\n")
    assert {path: path.stat().st_mtime_ns for path in Path("runs").rglob("*")} == before
    # A run that was stopped in its test has nothing left to train either, but has not ended.
    Path("runs/toy/results.json").unlink()
    assert fit(*given, "--ckpt_path", LAST, f"--trainer.{name}", str(done)) == 0
    assert results()["steps"] > 0
