"""Fast settings give the same result: bfloat16 in training against float32."""

from __future__ import annotations

import contextlib
import math
import multiprocessing
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch import Callback
from toys import SHAPE, FixedData, fit, module, recipe, trainer

from transformer.commands.fit import prepared
from transformer.data.datamodule import DataModule
from transformer.data.tokenizer import TokenizerConfig
from transformer.kernels import find_precision, has_bfloat16
from transformer.models import TransformerConfig
from transformer.training.logging import Meter
from transformer.training.module import Seq2SeqModule
from transformer.training.runs import SameStart, choose_precision

STEPS, WINDOW = 500, 25


class Curve(Callback):
    """Mean plain loss in nats per token over each window of steps."""

    def __init__(self) -> None:
        self.windows: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if trainer.global_step % WINDOW == 0:
            reading = pl_module.meter.read(trainer)
            self.windows.append(reading.nll / reading.tgt_tokens)
            pl_module.meter = Meter()


def curve(folder: Path, seed: int, precision: Any) -> torch.Tensor:
    model = Seq2SeqModule(
        TransformerConfig(d_model=64, d_ff=128, num_heads=4, num_layers=2, dropout=0.1),
        schedule="inverse_sqrt", learning_rate=0.005, warmup_steps=100, seed=seed,
    )  # fmt: skip
    data = DataModule(
        train="recipes/quickstart/train.tsv.gz", src="ko", tgt="en", limit=20_000, max_tokens=512,
        seed=seed, cache=str(folder / "cache"), tokenizer=TokenizerConfig(vocab_size=1000),
    )  # fmt: skip
    found = Curve()
    options = {"precision": precision, "max_steps": STEPS, "limit_val_batches": 0}
    trainer(folder, found, **options).fit(model, datamodule=data)
    return torch.tensor(found.windows)


@pytest.mark.slow
@pytest.mark.skipif(not has_bfloat16("cpu"), reason="this CPU only emulates bfloat16")
def test_the_loss_curve_of_bfloat16_stays_within_the_spread_of_seeds(tmp_path: Path) -> None:
    seeds = torch.stack([curve(tmp_path, seed, "32-true") for seed in (1, 2, 3)])
    fast = curve(tmp_path, 1, "bf16-mixed")
    assert len(fast) == STEPS // WINDOW
    assert fast[0] - fast[-1] > 2, "nothing was learned"
    spread = seeds.amax(0) - seeds.amin(0)
    # Its distance from float32 with its own seed is no more than that of two seeds.
    assert (fast - seeds[0]).abs().mean() <= spread.mean()
    assert abs(fast[-4:].mean() - seeds[0, -4:].mean()) <= spread[-4:].max()


def test_evaluation_on_a_cpu_is_in_full_precision(tmp_path: Path) -> None:
    model, data = module(), FixedData([4, 4], [3, 2])
    mixed: Any = {"precision": "bf16-mixed"}
    trainer(tmp_path, max_epochs=1, **mixed).fit(model, datamodule=data)
    during = model.scorer.scores
    trainer(tmp_path).validate(model, datamodule=data, verbose=False)
    assert math.isfinite(during["loss"])
    assert during == model.scorer.scores


#: What oneDNN and torch say of a CPU -> what it trains in.
CPUS = {
    "with AMX": (True, True, "bf16-mixed"),
    "with AVX-512": (True, False, "32-true"),
    "whose AMX oneDNN may not use": (False, True, "32-true"),
    "without AVX-512": (False, False, "32-true"),
}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Imitates a CPU, and a CUDA GPU where `gpu` says whether it computes in bfloat16 itself.

    A second GPU, cuda:1, never does.
    """
    asked = [""]

    @contextlib.contextmanager
    def current(device: str) -> Iterator[None]:
        asked.append(device)
        yield
        asked.pop()

    def imitate(has: bool = False, amx: bool = False, gpu: bool | None = None) -> None:
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu is not None)
        monkeypatch.setattr(torch.cuda, "device", current)
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda emulated=True: emulated or (bool(gpu) and asked[-1] != "cuda:1"),
        )

    return imitate


@pytest.mark.parametrize(("has", "amx", "expected"), CPUS.values(), ids=CPUS)
def test_a_cpu_trains_in_bfloat16_where_it_is_fast(
    machine: Any, has: bool, amx: bool, expected: str
) -> None:
    machine(has, amx)
    assert choose_precision("cpu") == choose_precision("auto") == expected
    assert choose_precision("cpu", None, "32-true") == "32-true"  # that of the resumed run
    assert choose_precision("cpu", "64-true", "32-true") == "64-true"
    assert find_precision("cpu", "auto") == "float32"


@pytest.mark.parametrize("asked", ["bf16-mixed", "bf16-true", "bf16"])
def test_a_bfloat16_that_a_cpu_only_emulates_is_refused(machine: Any, asked: str) -> None:
    machine(has=True)
    assert choose_precision("cpu", asked) == asked
    assert find_precision("cpu", "bfloat16") == "bfloat16"
    machine(has=False)
    reason = "this CPU only emulates bfloat16, some 40 times slower"
    with pytest.raises(ValueError, match=f"{asked} .*{reason}.*use --trainer.precision 32-true"):
        choose_precision("cpu", asked)
    with pytest.raises(ValueError, match=f"{asked} .*{reason}"):
        choose_precision("auto", None, asked)
    with pytest.raises(ValueError, match=f"precision bfloat16 .*{reason}.*: use float32"):
        find_precision("cpu", "bfloat16")


def test_a_gpu_is_not_judged_by_its_cpu(machine: Any) -> None:
    machine(has=True, amx=True, gpu=False)
    assert choose_precision("auto") == choose_precision("cuda") == "32-true"
    assert find_precision("cuda", "auto") == "float32"
    machine(has=False, amx=False, gpu=True)
    assert choose_precision("auto") == choose_precision("gpu") == "bf16-mixed"
    assert choose_precision("gpu", "bf16-true") == "bf16-true"
    assert find_precision("cuda:0", "auto") == find_precision("cuda", "bfloat16") == "bfloat16"
    assert find_precision("cuda:1", "auto") == "float32", "another GPU than the current one"
    assert find_precision("cpu", "auto") == "float32"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the variable is about x86-64")
def test_onednn_s_own_limit_is_obeyed() -> None:
    """A CPU with AVX-512 can be told to do without."""
    code = "from transformer.kernels import has_bfloat16 as h; raise SystemExit(h('cpu'))"
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=60).returncode == 0


def test_fit_refuses_it_in_one_line_and_leaves_nothing(
    machine: Any, own_folder: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    machine(has=False)
    path = recipe(tmp_path)
    lstm = tmp_path / "lstm.yaml"
    network = path.read_text().replace(SHAPE, "{d_model: 16, cell: lstm}")
    lstm.write_text(f"{network}architecture: rnn\n")
    for config in (path, lstm):
        assert fit("--config", config, "--trainer.precision", "bf16-mixed") == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "trainer.precision bf16-mixed cannot be used here: this CPU only emulates" in said
    assert not Path("runs").exists() or not list(Path("runs").iterdir())


def test_a_resumed_run_keeps_its_precision(
    machine: Any, own_folder: None, own_log: None, tmp_path: Path
) -> None:
    """Stored by a CPU without AMX, resumed on one with it, and the other way round."""
    config = ["--config", str(recipe(tmp_path)), "--logger", "none"]
    for where, elsewhere, stored in (
        ((False, False), (True, True), "32-true"),
        ((True, True), (True, False), "bf16-mixed"),
    ):
        machine(*where)
        with prepared([*config, "--existing", "number"]) as run:
            assert run.trainer.precision == stored
        checkpoint = run.folder / "checkpoints" / "last.ckpt"
        checkpoint.parent.mkdir(parents=True)
        tokenizer = FixedData([1], []).tokenizer.to_text()
        loop = {"epoch_loop.batch_progress": {"is_last_batch": False},
                "epoch_progress": {"total": {"started": 1}}}  # fmt: skip
        saved = {
            "recipe": run.module.recipe,
            "bundle": {"tokenizer": tokenizer},
            "global_step": 1,
            "epoch": 0,
        }
        saved |= {"loops": {"fit_loop": loop}, "state_dict": {}, "optimizer_states": []}
        torch.save(saved, checkpoint)
        machine(*elsewhere)
        resume = ["--ckpt_path", str(checkpoint)]
        with prepared([*config, *resume]) as run:
            assert run.trainer.precision == stored
        other = "64-true"
        with prepared([*config, *resume, "--trainer.precision", other]) as run:
            assert run.trainer.precision == other


def compare(rank: int, store: str, chosen: tuple[str, str | None], answers: Any) -> None:
    """A process of two; puts the message that it is stopped with, None where it may go on."""
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    both: Any = SimpleNamespace(world_size=2, precision=chosen[0])
    try:
        SameStart(chosen[1]).setup(both, None, "fit")
        answers.put(None)
    except ValueError as error:
        answers.put(str(error))
    finally:
        dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    "second", [("32-true", "a.ckpt"), ("bf16-mixed", "a.ckpt"), ("32-true", None)]
)
def test_processes_that_chose_differently_are_stopped(
    tmp_path: Path, second: tuple[str, str | None]
) -> None:
    forked = multiprocessing.get_context("fork")
    answers: Any = forked.Queue()
    store = f"file://{tmp_path}/store"
    both = [
        forked.Process(target=compare, args=(rank, store, chosen, answers))
        for rank, chosen in enumerate((("32-true", "a.ckpt"), second))
    ]
    for process in both:
        process.start()
    found = [answers.get(timeout=60) for _ in both]
    for process in both:
        process.join()
    if second == ("32-true", "a.ckpt"):
        assert found == [None, None]
    elif second[1] is None:
        assert any(
            "goes on from the beginning, the first one from a.ckpt" in text for text in found
        )
    else:
        assert found[0] == found[1]
        assert "is 32-true in some processes and bf16-mixed in others" in found[0]
        assert found[0].endswith("give all of them --trainer.precision 32-true")
