"""`transformer fit` from the recipe to the bundle, and what it says when something is wrong."""

from __future__ import annotations

import contextlib
import csv
import fcntl
import json
import os
import pty
import re
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from argparse import Namespace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from toys import recipe

from transformer import Translator
from transformer.__main__ import main
from transformer.data.datamodule import DataModule
from transformer.training.runs import best_precision, claim, program, resumable
from transformer.training.stopping import Interrupted, StopSafely, goodbye

ROOT = Path(__file__).resolve().parent.parent
KEYS = {
    "bleu", "chrf", "signature", "loss", "perplexity", "parameters", "epochs", "steps", "seconds",
    "src_tokens_per_second", "tgt_tokens_per_second", "recipe", "versions",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_API_KEY", "WANDB_MODE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def fit(*args: str | Path) -> int:
    return main(["fit", *map(str, args)])


def table(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_recipe_becomes_a_bundle(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path, "recipes/toys/one.yaml", extra="average: 2\n")
    assert fit("--config", path, "--logger", "csv") == 0
    run = Path("runs/toys/one")
    results = json.loads((run / "results.json").read_text())
    assert results.keys() >= KEYS
    assert results["recipe"] == "toys/one"
    assert results["epochs"] == 2
    assert results["steps"] > 0
    assert 0 < results["seconds"] < 100
    assert results["split"] == "test"
    assert results["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|")
    assert {"python", "torch", "lightning", "sacrebleu", "transformer"} <= results[
        "versions"
    ].keys()

    said = capsys.readouterr().out
    assert f"test BLEU {results['bleu']:.2f}   {results['signature']}" in said
    assert said.count("    reference ") == said.count("    translation ") == 5
    assert f"Where the model looked: {run / 'attention.png'}" in said
    assert f"transformer translate {run / 'bundle'}" in said
    assert "mean of the last 2 checkpoints" in said
    assert "epoch 2/2" in said
    assert (run / "attention.png").read_bytes().startswith(b"\x89PNG")

    card = (run / "bundle" / "README.md").read_text()
    assert results["signature"] in card
    assert f"{results['bleu']:.2f}" in card
    assert len(Translator.load(run / "bundle", device="cpu").translate(["rot haus", ""])) == 2
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["average"] == 2
    assert config["data"]["max_tokens"] == 200

    rows = table(run / "metrics.csv")
    for key in ("loss", "nll", "perplexity", "learning_rate", "gradient_norm", "padding_share",
                "src_tokens_per_second", "tgt_tokens_per_second", "memory_gib"):  # fmt: skip
        assert any(row[f"train/{key}"] for row in rows), key
    assert sum(bool(row["val/bleu"]) for row in rows) == 2


@pytest.mark.parametrize("attention", ["none", "additive"])
def test_a_recurrent_model_becomes_a_bundle(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], attention: str
) -> None:
    """The whole way of a recipe with another architecture: mean of checkpoints, resume, score."""
    path = recipe(tmp_path, extra="architecture: rnn\naverage: 2\n")
    text = path.read_text()
    shape = f"{{d_model: 16, cell: lstm, attention: {attention}}}"
    path.write_text(re.sub(r"network: \{[^}]*\}", f"network: {shape}", text))
    assert fit("--config", path, "--run_dir", "run", "--logger", "none") == 0
    assert "mean of the last 2 checkpoints" in capsys.readouterr().out
    numbers = json.loads(Path("run/results.json").read_text())
    assert numbers["model"].startswith("A recurrent encoder–decoder (LSTM)")
    assert Path("run/attention.png").exists()
    assert main(["test", "run/bundle", "--data.test", "corpus/test"]) == 0
    again = json.loads(Path("run/test-corpus-test/results.json").read_text())
    assert again["bleu"] == pytest.approx(numbers["bleu"])
    assert again["loss"] == pytest.approx(numbers["loss"], rel=1e-5)
    more = ("--trainer.max_epochs", "3", "--ckpt_path", "run/checkpoints/last.ckpt")
    assert main(["fit", "--config", "run/config.yaml", *more]) == 0
    assert len(json.loads(Path("run/results.json").read_text())["validation_bleu"]) == 3


def test_an_architecture_brings_its_own_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path)
    assert fit("--config", path, "--architecture", "rnm") == 2
    assert "--architecture 'rnm' is unknown: use transformer or rnn" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        fit("--config", path, "--architecture", "rnn")
    assert "key 'model.network.d_ff' does not exist" in capsys.readouterr().err
    path.write_text(path.read_text() + "architecture: [rnn]\n")
    assert fit("--config", path) == 2
    assert "toy.yaml: architecture \"['rnn']\" is unknown" in capsys.readouterr().err


def test_existing_run_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path)
    (tmp_path / "runs/toy").mkdir(parents=True)
    (tmp_path / "runs/toy/precious").write_text("a week of work")
    assert fit("--config", path, "--logger", "none") == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "runs/toy exists already" in said
    for way in ("--run_dir", "--ckpt_path runs/toy/checkpoints/last.ckpt", "--existing number"):
        assert way in said
    assert os.listdir("runs/toy") == ["precious"]

    options = ["--logger", "none", "--trainer.max_epochs", "1", "--data.test", "null"]
    assert fit("--config", path, "--existing", "number", *options) == 0
    assert json.loads(Path("runs/toy-2/results.json").read_text())["split"] == "val"
    assert fit("--config", path, "--existing", "number", "--data.val", "null", *options) == 0
    assert json.loads(Path("runs/toy-3/results.json").read_text())["bleu"] is None
    assert os.listdir("runs/toy") == ["precious"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.label_smothing", "0.2"], "'--model.label_smoothing'"),
        (["--model.network.num_heads", "3"], "model.network.d_model 16 is not divisible by"),
        (["--data.train", "nowhere/train"], "data.train"),
        (
            ["--trainer.gradient_clip_val=1", "--trainer.gradient_clip_algorithm=value"],
            "trainer.gradient_clip_algorithm is 'value'",
        ),
        (["--ckpt_path", "nowhere.ckpt"], "nowhere.ckpt: no such checkpoint"),
        (["--trainer.precision", "16-mixed"], "trainer.precision 16-mixed cannot train here: use"),
        (["--trainer.precision", "16"], "trainer.precision 16 cannot train here: use bf16-mixed"),
        (["--patience", "3", "--data.val", "null"], "patience 3 counts validations, but there is"),
        (
            ["--trainer.val_check_interval=5", "--trainer.accumulate_grad_batches=2"],
            "trainer.val_check_interval 5 counts batches and is not a multiple of "
            "trainer.accumulate_grad_batches 2: use 6",
        ),
        (["--trainer.devices", "0"], "transformer: error: `Trainer(devices='0')` value is not"),
        (["--trainer.devices", "2,3"], "error: trainer: "),
        (
            ["--trainer.val_check_interval=0.3", "--trainer.accumulate_grad_batches=4"],
            "trainer.val_check_interval 0.3 is a share of an epoch",
        ),
        (
            ["--trainer.accumulate_grad_batches=0", "--trainer.val_check_interval=5"],
            "trainer.accumulate_grad_batches is 0: it must be at least 1",
        ),
        (["--trainer.log_every_n_steps=0"], "trainer.log_every_n_steps is 0: it must be at least"),
        (["--trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val is -1: it must be at"),
        (["--model.warmup_steps=-5"], "model.warmup_steps is -5: it must be at least 0"),
        (["--model.learning_rate=-1"], "model.learning_rate is -1: it must be at least 0"),
        (["--model.label_smoothing=1.5"], "model.label_smoothing is 1.5: it must be below 1"),
        (
            ["--model.network.positions=learned", "--model.network.max_positions=50"],
            "data.max_length is 60, but there are 50 learned positions",
        ),
        (["--save_every=0"], "save_every is 0: it must be at least 1"),
        (["--seed_everything=true"], "seed_everything is True: give a number"),
        (["--trainer.default_root_dir=x"], "trainer.default_root_dir is not used here: take run"),
        (["--trainer.overfit_batches=1"], "trainer.overfit_batches is not used here: take data.l"),
        (["--old_pair.max_drop=1"], "old_pair.max_drop 1.0 does nothing without old_pair.test"),
        (["stray.yaml"], "'stray.yaml': a recipe is given as --config stray.yaml"),
    ],
)
def test_mistakes_cost_one_line_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    path = recipe(tmp_path)
    try:
        code = fit("--config", path, "--logger", "none", *options)
    except SystemExit as error:  # jsonargparse
        code = int(error.code or 0)
    assert code == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not Path("runs/toy").exists()


@pytest.mark.parametrize("key", ["model", "data", "trainer", "old_pair"])
def test_a_group_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    path = recipe(tmp_path)
    lines = [line for line in path.read_text().splitlines() if not line.startswith(f"{key}:")]
    path.write_text("\n".join([*lines, f"{key}: 3"]))
    assert fit("--config", path) == 2
    said = capsys.readouterr().err
    assert f"{path}: {key} is 3, not a group of settings" in said
    assert said.count("\n") == 1


def settings(**options: Any) -> Namespace:
    """What `claim` looks at."""
    return Namespace(**{"run_dir": None, "ckpt_path": None, "existing": "refuse", **options})


def test_of_two_runs_one_gets_the_folder(tmp_path: Path) -> None:
    (tmp_path / "runs/empty").mkdir(parents=True)
    for name in ("new", "empty"):
        assert claim(settings(), name) == (Path("runs", name), True)
        with pytest.raises(ValueError, match=f"runs/{name} exists already"):
            claim(settings(), name)
        assert claim(settings(existing="number"), name) == (Path(f"runs/{name}-2"), True)
        assert claim(settings(existing="number"), name) == (Path(f"runs/{name}-3"), True)


def test_of_two_runs_that_both_saw_no_folder_one_gets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert claim(settings(), "new")[1]
    monkeypatch.setattr(Path, "exists", lambda self: False)
    with pytest.raises(ValueError, match="runs/new exists already"):
        claim(settings(), "new")


def test_other_processes_claim_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert claim(settings(), "new") == (Path("runs/new"), True)
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setenv("TRANSFORMER_RUN_DIR", "runs/new-2")
    assert claim(settings(), "new") == (Path("runs/new-2"), False)


def test_a_refused_run_leaves_the_other_one_alone(tmp_path: Path) -> None:
    """The other one has taken the folder and is still preparing its data."""
    path = recipe(tmp_path)
    claim(settings(), "toy")
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


def test_a_resumed_run_keeps_no_second_copy_of_the_weights(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    assert fit("--config", path, "--logger", "none", "--trainer.max_epochs", "1") == 0
    config = yaml.safe_load(Path("runs/toy/config.yaml").read_text())
    tokenizer = Namespace(**config["data"]["tokenizer"])
    model = Namespace(freeze=(), lora=Namespace(**config["model"]["lora"]))
    given = settings(
        ckpt_path="runs/toy/checkpoints/last.ckpt", data=Namespace(tokenizer=tokenizer), model=model
    )
    kept = resumable(given)
    assert kept.keys() == {"recipe", "bundle", "wandb_id"}
    assert kept["recipe"]["name"] == "toy"


def test_bfloat16_only_where_the_gpu_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    emulated = lambda including_emulation=True: including_emulation  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", emulated)
    assert best_precision("auto") == "32-true"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    assert best_precision("auto") == "bf16-mixed"
    assert best_precision("cpu") == "32-true"


def test_ctrl_c_while_data_is_prepared_stops_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def prepare(self: DataModule) -> None:
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("went on")

    monkeypatch.setattr(DataModule, "prepare_data", prepare)
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    assert fit("--config", recipe(tmp_path), "--logger", "none") == 130
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    said = capsys.readouterr()
    assert said.out.endswith("\nStopped at once; nothing was saved before.\n")
    assert not said.err
    assert not Path("runs/toy").exists()


def test_ctrl_c_does_not_end_data_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with StopSafely(tmp_path) as stop:
        monkeypatch.setattr(os, "getpid", lambda: -1)  # as in a process that was forked here
        signal.raise_signal(signal.SIGINT)
    assert stop.signum == signal.SIGINT


def test_printed_commands_are_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Path("runs/my run")
    said = goodbye(Interrupted(signal.SIGINT, run / "checkpoints" / "x.ckpt", 7, 1), run)
    commands = [shlex.split(line.split(": ")[1]) for line in said.splitlines()[2:]]
    assert commands[0][-4:] == [
        "--config", "runs/my run/config.yaml", "--ckpt_path", "runs/my run/checkpoints/x.ckpt"
    ]  # fmt: skip
    assert commands[1][-2:] == ["runs/my run/checkpoints/x.ckpt", "runs/my run/bundle-interrupted"]


def on_a_terminal(command: list[str]) -> tuple[int, str]:
    """Run a command on a terminal of 40 x 100; its exit code, and all that it wrote."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 100, 0, 0))
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm"}
    process = subprocess.Popen(command, env=env, stdin=its, stdout=its, stderr=its)
    os.close(its)
    parts = []
    with contextlib.suppress(OSError):  # how Linux says that the other end was closed
        while part := os.read(ours, 2**16):
            parts.append(part)
    os.close(ours)
    return process.wait(timeout=60), b"".join(parts).decode()


@pytest.mark.slow
def test_a_live_bar_on_a_terminal(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "transformer", "fit", "--config", str(recipe(tmp_path))]
    code, said = on_a_terminal([*command, "--logger", "none"])
    assert code == 0, said
    bars = re.findall(r"epoch [12]/2: +\d+% \|[^|\r\n]*\| \d+/\d+[^\r\n]*", said)
    assert any("100%" in bar and "loss=" in bar and "left=" in bar for bar in bars), said
    assert max(map(len, bars)) <= 100, "a bar that is wider than the terminal"
    lines = re.findall(r"epoch ([12])/2  validation  loss [\d.]+  perplexity .*BLEU", said)
    assert lines == ["1", "2"]
    assert "test BLEU" in said


def test_unknown_recipe_key_names_the_nearest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path, extra="avrage: 3\n")
    with pytest.raises(SystemExit):
        fit("--config", path)
    said = capsys.readouterr().err
    assert "'average'" in said
    assert f"{path}:4" in said


@pytest.mark.slow
def test_a_compiled_run_goes_all_the_way(tmp_path: Path) -> None:
    """With dropout, validation, the search, and a bundle that knows nothing of it."""
    path = recipe(tmp_path, "recipes/toys/compiled.yaml")
    args = ["--logger", "none", "--model.compile", "true", "--trainer.max_epochs", "1"]
    assert fit("--config", path, *args) == 0
    assert len(Translator.load(tmp_path / "runs/toys/compiled/bundle", "cpu").translate(["a"])) == 1


def test_fast_dev_run_goes_all_the_way_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fit("--config", recipe(tmp_path), "--trainer.fast_dev_run", "true") == 0
    said = capsys.readouterr().out
    assert "test BLEU" in said
    assert "nothing was kept" in said
    assert not Path("runs").exists()


def test_nan_stops_with_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--logger", "none", "--model.learning_rate", "1e38", "--model.schedule", "constant"]
    assert fit("--config", recipe(tmp_path), *options, "--model.warmup_steps", "0") == 2
    said = capsys.readouterr().err
    assert re.search(
        r"NaN or infinite at step \d: training stopped, no good checkpoint was replaced", said
    )
    assert "none was saved before" in said
    assert not list(Path("runs/toy").glob("checkpoints/*"))


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
    del weights["optimizer_states"]
    torch.save(weights, "weights.ckpt")
    assert fit("--config", path, "--ckpt_path", "weights.ckpt") == 2
    assert "holds weights alone" in capsys.readouterr().err


def start(*args: str | Path, **environment: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "transformer", "fit", *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True)


@pytest.mark.slow
def test_ctrl_c_prints_the_command_that_resumes(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    process = start("--config", path, "--logger", "csv", "--trainer.max_epochs", "10000")
    deadline = time.monotonic() + 60
    while not Path("runs/toy/checkpoints/last.ckpt").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 130, errors
    assert "a second Ctrl-C stops at once" in errors
    assert "Traceback" not in errors
    saved = Path("runs/toy/checkpoints/interrupted.ckpt")
    steps = torch.load(saved, weights_only=True)["global_step"]
    assert f"Stopped after step {steps:,}" in said
    assert f"python -m transformer average {saved} runs/toy/bundle-interrupted" in said

    (command,) = re.findall(r"to resume: +python -m transformer fit (.*)", said)
    epochs = str(torch.load(saved, weights_only=True)["epoch"] + 2)
    resumed = start(*shlex.split(command), "--trainer.max_epochs", epochs)
    said, errors = resumed.communicate(timeout=60)
    assert resumed.returncode == 0, errors
    assert "resuming in runs/toy" in said
    results = json.loads(Path("runs/toy/results.json").read_text())
    assert results["steps"] > steps
    rows = table("runs/toy/metrics.csv")
    logged = [int(row["step"]) for row in rows]
    assert logged == sorted(logged)
    assert logged[0] == 1
    assert logged[-1] == results["steps"]


@pytest.mark.slow
def test_a_second_ctrl_c_stops_at_once(tmp_path: Path) -> None:
    # An optimizer step that never ends: all of an epoch's batches, of a corpus without end.
    options = ["--trainer.accumulate_grad_batches", "1000000", "--trainer.max_epochs", "100000"]
    process = start("--config", recipe(tmp_path), "--logger", "none", *options)
    while "writing to" not in (process.stdout.readline() if process.stdout else "writing to"):
        pass
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode in (130, 143), errors
    assert "Traceback" not in errors


def test_csv_logger_never_imports_wandb(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    code = (
        "import sys; from transformer.__main__ import main\n"
        f"code = main(['fit', '--config', {str(path)!r}, '--logger', 'csv', "
        "'--trainer.max_epochs', '1'])\n"
        "assert 'wandb' not in sys.modules; sys.exit(code)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr.decode()


def records(folder: Path) -> list[Any]:
    """What W&B wrote: its own protocol buffers, in a file of records."""
    record = import_module("wandb.proto.wandb_internal_pb2").Record
    (path,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    data = path.read_bytes()
    assert data.startswith(b":W&B")
    found, position, parts = [], 7, b""
    while position + 7 <= len(data):  # LevelDB's log format: blocks of 32 KiB, parts of records
        rest = 2**15 - position % 2**15
        _, size, kind = struct.unpack_from("<IHB", data, position) if rest >= 7 else (0, 0, 0)
        if kind == 0:
            position += rest
            continue
        parts += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # whole, or the last part
            found.append(record.FromString(parts))
            parts = b""
    return found


@pytest.mark.slow
def test_wandb_offline_without_a_key_or_a_question(tmp_path: Path) -> None:
    path = recipe(tmp_path, "toy+1.yaml")  # a name that W&B does not take
    process = start("--config", path, WANDB_SILENT="false")
    said, errors = process.communicate(timeout=120, input="")
    assert process.returncode == 0, errors
    run = Path("runs/toy+1")
    found = records(run)

    config = {
        ".".join(item.nested_key) or item.key: item.value_json
        for record in found
        for item in [*record.run.config.update, *record.config.update]
    }
    assert json.loads(config["model"])["network"]["d_model"] == 16
    assert json.loads(config["data"])["tokenizer"]["vocab_size"] == 300
    assert json.loads(config["recipe"]) == "toy+1"
    results = json.loads((run / "results.json").read_text())
    assert json.loads(config["parameters"]) == results["parameters"]
    assert "git_revision" in config

    history: dict[str, list[str]] = {}
    for record in found:
        for item in record.history.item:
            key = item.key or ".".join(item.nested_key)
            history.setdefault(key, []).append(item.value_json)
    for key in ("loss", "nll", "perplexity", "learning_rate", "gradient_norm", "padding_share",
                "src_tokens_per_second", "tgt_tokens_per_second", "memory_gib"):  # fmt: skip
        assert f"train/{key}" in history
    for key in ("bleu", "chrf", "loss", "nll", "perplexity"):
        assert len(history[f"val/{key}"]) == 2
    steps = [int(float(step)) for step in history["trainer/global_step"]]
    assert steps == sorted(steps)
    assert steps[-1] == results["steps"]

    files = next(run.glob("wandb/offline-run-*")) / "files"
    shown = json.loads(next(files.glob("media/table/val/*.json")).read_text())
    assert shown["columns"] == ["step", "source", "reference", "translation"]
    assert len(shown["data"]) == 8
    assert next(files.glob("media/images/val/*.png")).stat().st_size > 1000
    artifacts = [r.request.log_artifact.artifact for r in found if r.HasField("request")]
    artifacts += [record.artifact for record in found if record.HasField("artifact")]
    (bundle,) = [a for a in artifacts if a.type == "model"]
    assert bundle.name == "toy-1"
    names = {entry.path for entry in bundle.manifest.contents}
    assert names >= {"config.json", "tokenizer.json", "model.safetensors", "README.md"}
    assert f"wandb sync {run}/wandb/offline-run-" in said


def test_wandb_key_and_run_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformer.training import tracking

    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password 0123\n")
    assert not tracking.has_wandb_key()
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert tracking.has_wandb_key()
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.org")
    assert not tracking.has_wandb_key()
    monkeypatch.setenv("WANDB_API_KEY", "0123")
    assert tracking.has_wandb_key()
    logger = tracking.make_logger("wandb", tmp_path / "run", "toys/one", "abc123")
    assert logger is not None
    assert logger.version == "abc123"


def test_commands_to_copy_name_a_program_that_can_be_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`make` runs a program that is on no PATH; what it prints must work when it is pasted."""
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("transformer", "wandb"):
        (folder / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setattr(sys, "argv", [".venv/bin/transformer", "fit"])
    assert (program(), program("wandb")) == (".venv/bin/transformer", ".venv/bin/wandb")
    monkeypatch.setenv("PATH", str(folder))
    assert (program(), program("wandb")) == ("transformer", "wandb")
    monkeypatch.setattr(sys, "argv", ["somewhere/transformer/__main__.py", "fit"])
    assert program() == "python -m transformer"


@pytest.mark.parametrize(("key", "mode"), [("0" * 40, None), (None, "offline")])
def test_wandb_is_online_where_there_is_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str | None, mode: str | None
) -> None:
    from transformer.training import tracking

    if key:
        monkeypatch.setenv("WANDB_API_KEY", key)
    logger: Any = tracking.make_logger("wandb", tmp_path, "name", None)
    assert logger._wandb_init.get("mode") == mode


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
