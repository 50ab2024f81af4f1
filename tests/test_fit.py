"""`transformer fit` from the recipe to the bundle, and what it says when something is wrong."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
import yaml
from toys import ROOT, fit, recipe, table

from transformer import Translator
from transformer.__main__ import main

pytestmark = pytest.mark.usefixtures("own_folder")


KEYS = {
    "bleu", "chrf", "signature", "loss", "perplexity", "parameters", "epochs", "steps", "seconds",
    "src_tokens_per_second", "tgt_tokens_per_second", "recipe", "versions",
}  # fmt: skip


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
    # In a table GitHub would split the signature at each |.
    assert f"```text\nBLEU {results['bleu']:.2f}   {results['signature']}\n" in card
    assert "\n|" not in card
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
    assert fit("--config", path, "--architecture", "rnn") == 2
    assert "key 'model.network.d_ff' does not exist" in capsys.readouterr().err
    path.write_text(path.read_text() + "architecture: [rnn]\n")
    assert fit("--config", path) == 2
    assert "toy.yaml: architecture \"['rnn']\" is unknown" in capsys.readouterr().err


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
            "trainer.val_check_interval 5 may end inside of an optimizer step, which has "
            "trainer.accumulate_grad_batches 2: give a multiple of it, such as 6",
        ),
        (["--trainer.devices", "0"], "transformer: error: `Trainer(devices='0')` value is not"),
        (["--trainer.devices", "2,3"], "error: trainer: "),
        (
            ["--trainer.val_check_interval=0.3", "--trainer.accumulate_grad_batches=4"],
            "trainer.val_check_interval 0.3 may end inside of an optimizer step",
        ),
        (
            ["--trainer.val_check_interval=00:00:10:00", "--trainer.accumulate_grad_batches=4"],
            "trainer.val_check_interval 00:00:10:00 may end inside of an optimizer step, which has "
            "trainer.accumulate_grad_batches 4: give a multiple of it, such as 400",
        ),
        (
            ["--trainer.accumulate_grad_batches=2", "--trainer.check_val_every_n_epoch=null"],
            "trainer.check_val_every_n_epoch null counts batches beyond the end of an epoch",
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
        (["--data.tokenizer.shared=false"], "model.network.tied three_way needs one vocabulary"),
        (["--save_every=0"], "save_every is 0: it must be at least 1"),
        (["--seed_everything=-1"], "seed_everything is -1: it must be from 0 to 4294967295"),
        (["--seed_everything=true"], "seed_everything: expected int, got 'True'"),
        (["--trainer.strategy=fsdp"], "trainer.strategy fsdp is not known here"),
        (["--trainer.strategy=deepspeed_stage_2"], "trainer.strategy deepspeed_stage_2 is not"),
        (["--trainer.strategy=ddp_spawn"], "use ddp, or leave it out; a model"),
        (
            ["--trainer.strategy=lightning.pytorch.strategies.ModelParallelStrategy"],
            "trainer.strategy lightning.pytorch.strategies.ModelParallelStrategy is not known",
        ),
        (["--trainer.default_root_dir=x"], "trainer.default_root_dir is not used here: take run"),
        (["--trainer.overfit_batches=1"], "trainer.overfit_batches is not used here: take data.l"),
        (["--parent.max_drop=1"], "parent.max_drop 1.0 does nothing without parent.test"),
        (["stray.yaml"], "'stray.yaml': a recipe is given as --config stray.yaml"),
    ],
)
def test_mistakes_cost_one_line_and_leave_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    path = recipe(tmp_path)
    assert fit("--config", path, "--logger", "none", *options) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not Path("runs/toy").exists()


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_line_beyond_the_learned_positions_costs_no_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], split: str
) -> None:
    path = recipe(tmp_path)
    with (tmp_path / f"corpus/{split}.de").open("a") as source:
        source.write("\U0001f600" * 20 + "\n")
    with (tmp_path / f"corpus/{split}.en").open("a") as target:
        target.write("x\n")
    learned = ("--model.network.positions=learned", "--model.network.max_positions=60")
    assert fit("--config", path, "--logger", "none", *learned) == 2
    printed = capsys.readouterr()
    line = 13 if split == "val" else 11
    message = (
        f"data.{split}: {tmp_path}/corpus/{split}, line {line}: 81 tokens of de, the model has 60"
    )
    assert message in printed.err
    assert "epoch 1" not in printed.out
    assert not Path("runs/toy").exists()


@pytest.mark.parametrize("value", ["no", "5"])
def test_text_that_yaml_reads_as_something_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], value: str
) -> None:
    path = recipe(tmp_path)
    path.write_text(path.read_text().replace("src: de", f"\n  src: {value}"))
    assert fit("--config", path) == 2
    said = capsys.readouterr().err
    assert f"{path}:3: data.src: expected str, got " in said
    assert 'quote it, as in "no", which YAML reads as false' in said
    path.write_text(path.read_text().replace(f"src: {value}", f'src: "{value}"'))
    assert fit("--config", path) == 2
    assert f"corpus/train.{value} nor train.{value}.gz exists" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["model", "data", "trainer", "parent"])
def test_a_group_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str) -> None:
    path = recipe(tmp_path)
    lines = [line for line in path.read_text().splitlines() if not line.startswith(f"{key}:")]
    path.write_text("\n".join([*lines, f"{key}: 3"]))
    assert fit("--config", path) == 2
    said = capsys.readouterr().err
    assert f"{path}:{len(lines) + 1}: {key} is 3, not a group of settings" in said
    assert said.count("\n") == 1


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
    assert fit("--config", path) == 2
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
