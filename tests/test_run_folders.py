"""Run folders: who gets one, what stays in it, and how a run goes on in it."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from jsonargparse import Namespace
from toys import fit, recipe

from transformer.training import bad_steps
from transformer.training.folders import release, resumable, take_folder
from transformer.training.train import Run
from transformer.writing import part

pytestmark = pytest.mark.usefixtures("own_folder")


def settings(**options: Any) -> Namespace:
    """What `take_folder` looks at."""
    return Namespace(**{"run_dir": None, "ckpt_path": None, "existing": "refuse", **options})


def test_existing_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path)
    (tmp_path / "runs/toy").mkdir(parents=True)
    (tmp_path / "runs/toy/precious").write_text("a week of work")
    assert fit("--config", path, "--logger", "none") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "runs/toy exists already" in said
    for way in ("--run_dir", "--existing number"):
        assert way in said
    assert "--ckpt_path" not in said, "there is nothing to resume"
    assert os.listdir("runs/toy") == ["precious"]

    options = ["--logger", "none", "--trainer.max_epochs", "1", "--data.test", "null"]
    assert fit("--config", path, "--existing", "number", *options) == 0
    assert json.loads(Path("runs/toy-2/results.json").read_text())["split"] == "val"
    assert fit("--config", path, "--existing", "number", "--data.val", "null", *options) == 0
    assert json.loads(Path("runs/toy-3/results.json").read_text())["bleu"] is None
    assert os.listdir("runs/toy") == ["precious"]


def test_of_two_runs_one_gets_the_folder(tmp_path: Path) -> None:
    (tmp_path / "runs/empty").mkdir(parents=True)
    for name in ("new", "empty"):
        assert take_folder(settings(), name) == (Path("runs", name), True)
        with pytest.raises(ValueError, match=f"runs/{name} exists already"):
            take_folder(settings(), name)
        assert take_folder(settings(existing="number"), name) == (Path(f"runs/{name}-2"), True)
        assert take_folder(settings(existing="number"), name) == (Path(f"runs/{name}-3"), True)


def test_of_two_runs_that_both_saw_no_folder_one_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert take_folder(settings(), "new")[1]
    monkeypatch.setattr(Path, "exists", lambda self: False)
    with pytest.raises(ValueError, match="runs/new exists already"):
        take_folder(settings(), "new")


def test_the_folder_of_a_process_that_was_killed_before_it_trained_is_free(tmp_path: Path) -> None:
    ours, its = os.pipe()
    child = os.fork()
    if child == 0:
        take_folder(settings(), "new")
        part(Path("runs/new/checkpoints/last.ckpt")).touch()
        os.write(its, b".")
        signal.pause()
    os.read(ours, 1)
    with pytest.raises(ValueError, match="runs/new exists already"):
        take_folder(settings(), "new")
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    assert take_folder(settings(), "new") == (Path("runs/new"), True)
    assert os.listdir("runs/new/checkpoints") == [".taken"]
    release(Path("runs/new"))
    Path("runs/new/wandb").mkdir()  # before config.yaml
    with pytest.raises(ValueError, match="runs/new exists already"):
        take_folder(settings(), "new")
    assert take_folder(settings(existing="resume"), "new") == (Path("runs/new"), False)


def test_other_processes_claim_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert take_folder(settings(), "new") == (Path("runs/new"), True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("TRANSFORMER_RUN_DIR", "runs/new-2")
    assert take_folder(settings(), "new") == (Path("runs/new-2"), False)


def test_a_refused_run_leaves_the_other_one_alone(tmp_path: Path) -> None:
    """The other one has taken the folder and is still preparing its data."""
    path = recipe(tmp_path)
    take_folder(settings(), "toy")
    assert fit("--config", path, "--logger", "none") == 2
    assert os.listdir("runs/toy") == ["checkpoints"]


def test_resuming_stays_in_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path)
    options = ["--logger", "none", "--trainer.max_epochs", "1"]
    assert fit("--config", path, *options, "--run_dir", "runs/a") == 0
    capsys.readouterr()
    last = "runs/a/checkpoints/last.ckpt"
    assert fit("--config", path, *options, "--ckpt_path", last, "--run_dir", "runs/b") == 2
    assert "run_dir is runs/b, but --ckpt_path runs/a/" in capsys.readouterr().err
    assert not Path("runs/b").exists()

    (Path("runs/a/bundle") / "mine").touch()
    again = ["--logger", "none", "--trainer.max_epochs", "2"]
    assert fit("--config", "runs/a/config.yaml", "--ckpt_path", last, *again) == 0
    assert Path("runs/a/bundle-before-1/mine").exists()
    assert not Path("runs/a/bundle/mine").exists()
    said = capsys.readouterr().out
    assert "The bundle that was in runs/a/bundle is now runs/a/bundle-before-1" in said

    Path("runs/a").rename("runs/moved there")
    moved = ["--config", "runs/moved there/config.yaml", "--trainer.max_epochs", "3"]
    moved += ["--logger", "none", "--ckpt_path", "runs/moved there/checkpoints/last.ckpt"]
    assert fit(*moved) == 2
    said = capsys.readouterr().err
    assert "give --run_dir 'runs/moved there' if the folder was moved" in said
    assert fit(*moved, "--run_dir", "runs/moved there") == 0
    assert Path("runs/moved there/bundle-before-2").exists()
    translate = "transformer translate 'runs/moved there/bundle' "
    assert translate in capsys.readouterr().out.replace("python -m ", "")


def test_without_validations_from_now_on_the_last_weights_are_final(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: list[str | Path] = ["--config", recipe(tmp_path), "--logger", "none"]
    options += ["--existing", "resume"]
    assert fit(*options, "--trainer.max_epochs", "1") == 0
    assert "checkpoint with the highest validation BLEU" in capsys.readouterr().out
    assert fit(*options, "--trainer.max_epochs", "2", "--data.val", "null") == 0
    assert "last weights" in capsys.readouterr().out


def test_a_resumed_run_keeps_no_second_copy_of_the_weights(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    assert fit("--config", path, "--logger", "none", "--trainer.max_epochs", "1") == 0
    config = yaml.safe_load(Path("runs/toy/config.yaml").read_text())
    tokenizer = Namespace(**config["data"]["tokenizer"])
    model = Namespace(freeze=(), lora=Namespace(**config["model"]["lora"]))
    given = settings(
        ckpt_path="runs/toy/checkpoints/last.ckpt",
        data=Namespace(tokenizer=tokenizer),
        model=model,
        trainer=Namespace(max_steps=-1, max_epochs=2, max_time=None),
        patience=None,
    )
    kept = resumable(given)
    assert kept.keys() == {"global_step", "recipe", "bundle", "wandb_id"}
    assert kept["recipe"]["name"] == "toy"


def test_vocabulary_of_another_size_cannot_resume(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path)
    assert fit("--config", path, "--logger", "none", "--trainer.max_epochs", "1") == 0
    last = "runs/toy/checkpoints/last.ckpt"
    assert fit("--config", path, "--ckpt_path", last, "--data.tokenizer.vocab_size", "310") == 2
    said = capsys.readouterr().err
    assert "data.tokenizer.vocab_size is 310, which does not fit the checkpoint" in said
    assert "with 300" in said
    assert fit("--config", path, "--ckpt_path", last, "--model.lora.rank", "2") == 2
    assert "model.lora is {'rank': 2, " in capsys.readouterr().err
    assert fit("--config", path, "--ckpt_path", last, "--model.freeze", "[encoder.*]") == 2
    assert "model.freeze is ['encoder.*'], which does not fit" in capsys.readouterr().err
    weights = torch.load(last)
    del weights["optimizer_states"], weights["checksum"]
    torch.save(weights, "weights.ckpt")
    assert fit("--config", path, "--ckpt_path", "weights.ckpt") == 2
    assert "holds weights alone" in capsys.readouterr().err


def test_fast_dev_run_goes_all_the_way_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("--config", recipe(tmp_path), "--trainer.fast_dev_run", "true") == 0
    said = capsys.readouterr().out
    assert "test BLEU" in said
    assert "nothing was kept" in said
    assert not Path("runs").exists()
    options = ["--run_dir", "runs/toy", "--logger", "none", "--existing", "resume"]
    assert fit("--config", recipe(tmp_path), *options, "--trainer.fast_dev_run", "true") == 0
    assert not Path("runs").exists(), "a run of that name is still to be made"


def test_the_file_that_a_bad_first_step_names_stays(tmp_path: Path) -> None:
    for name, stays in {"started": False, bad_steps.FILE: True}.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / name).touch()
        Run(None, "toy", folder, is_new=True, is_trial=False, again=None).tidy()
        assert folder.exists() == stays


def test_what_a_run_without_steps_wrote_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, "recipes/toys/none.yaml")
    assert fit("--config", path, "--logger", "none", "--trainer.max_steps", "0") == 0
    said = capsys.readouterr().out
    run = Path("runs/toys/none")
    assert str(run / "attention.png") in said
    assert (run / "attention.png").is_file()
    results = json.loads((run / "results.json").read_text())
    assert results["steps"] == 0
    assert results["chrf_signature"].startswith("nrefs:1|case:mixed")
