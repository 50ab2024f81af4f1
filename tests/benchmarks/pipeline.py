"""What the input pipeline costs, and what a second process gains."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from transformer.kernels.process import keep_freed_memory
from transformer.training.logging import TrainingLog
from transformer.training.module import Seq2SeqModule
from transformer.training.objective import prepare
from transformer.training.runs import choose_precision, set_up_libraries
from transformer.training.stopping import StopSafely

from .arena import environment, spread
from .papers import TINY
from .workload import Text

WARM_UP, STEPS = 10, 60


def input_share(text: Text, bench: Path, threads: int) -> dict[str, Any]:
    """How long a batch takes from the memory-mapped corpus to the model's door, beside a step.

    Args:
        text: the corpus.
        bench: where it lies tokenised.
        threads: of the training that it is compared with.
    """
    loader = text.data(bench / "cache").train_dataloader()
    rounds = []
    for _ in range(5):
        start = time.perf_counter()
        batches = sum(1 for _ in map(prepare, loader))
        rounds.append((time.perf_counter() - start) / batches)
    seconds, step = statistics.median(rounds), _run(text, bench, 1, threads)["step"]
    return {"seconds": seconds, "step": step, "share": seconds / step}


def processes(text: Text, bench: Path, rounds: int) -> dict[str, Any]:
    """Tokens per second of two DDP processes with one thread each, and of one with two threads."""
    rates: dict[str, list[float]] = {"two processes": [], "two threads": []}
    for _ in range(rounds):
        for name, count in (("two threads", 1), ("two processes", 2)):
            rates[name].append(_run(text, bench, count, 2 // count)["rate"])
            print(f"  {name}: {rates[name][-1]:,.0f} tokens/s", flush=True)
    pairs = zip(rates["two processes"], rates["two threads"], strict=True)
    return {
        **{name: spread(values) for name, values in rates.items()},
        "ratio": spread(two / one for two, one in pairs),
    }


def _run(text: Text, bench: Path, count: int, threads: int) -> dict[str, float]:
    given = json.dumps([text.corpus, text.max_tokens // count, str(bench), count])
    command = [sys.executable, "-m", "benchmarks.pipeline", given]
    done = subprocess.run(
        command, env=environment(threads), text=True, capture_output=True, check=True
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


class Clock(Callback):
    """Real tokens of all processes per second, after a warm-up."""

    def __init__(self) -> None:
        self.start, self.tokens = 0.0, 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count."""
        if trainer.global_step == WARM_UP:
            self.start = time.perf_counter()
        elif trainer.global_step > WARM_UP:
            self.tokens += batch.src_tokens + batch.tgt_tokens

    def read(self, trainer: Trainer) -> dict[str, float]:
        """Tokens per second of all processes together, each of which must call this; a step."""
        seconds = time.perf_counter() - self.start
        tokens = torch.tensor(float(self.tokens))
        if trainer.world_size > 1:
            tokens = trainer.strategy.reduce(tokens, reduce_op="sum")
        return {"rate": float(tokens) / seconds, "step": seconds / STEPS}


def _train(corpus: str | None, max_tokens: int, bench: str, count: int) -> None:
    set_up_libraries()
    keep_freed_memory()
    clock = Clock()
    with TemporaryDirectory() as folder:
        callbacks = [clock, TrainingLog(), StopSafely(Path(folder))]  # as in `transformer fit`
        trainer = Trainer(
            accelerator="cpu", devices=count, strategy="ddp" if count > 1 else "auto",
            precision=choose_precision("cpu"), max_steps=WARM_UP + STEPS, max_epochs=-1,
            callbacks=callbacks, limit_val_batches=0, num_sanity_val_steps=0, logger=False,
            enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False, default_root_dir=folder,
        )  # fmt: skip
        data = Text(corpus, max_tokens).data(Path(bench) / "cache")
        trainer.fit(Seq2SeqModule(TINY), datamodule=data)
        found = clock.read(trainer)
    if int(os.environ.get("LOCAL_RANK", 0)) == 0:
        print(json.dumps(found))


if __name__ == "__main__":
    _train(*json.loads(sys.argv[1]))
