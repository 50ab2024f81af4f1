"""Counting and logging: sums over training steps, the numbers of each window of them, the loggers.

Losses are per target token, in nats; throughput counts real tokens over training time, without
validation.
"""

import csv
import io
import math
import resource
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from transformer.errors import UserError
from transformer.training.objective import Prepared
from transformer.writing import write


class Reading(NamedTuple):
    """Sums over a window of steps and all processes; losses in nats."""

    loss: float
    nll: float
    src_tokens: int
    tgt_tokens: int
    padded_tokens: int


@dataclass
class Meter:
    """Collects a window of training steps.

    Losses stay separate scalars on the device until `read`: adding them up would cost a kernel
    each.
    """

    losses: list[Tensor] = field(default_factory=list)
    nlls: list[Tensor] = field(default_factory=list)
    tokens: list[tuple[int, ...]] = field(default_factory=list)
    norm: Tensor | None = None  # of the latest gradients, before clipping

    def add(self, loss: Tensor, nll: Tensor, prepared: Prepared) -> None:
        """Count one micro-batch; the losses are sums over its tokens."""
        self.losses.append(loss.detach())
        self.nlls.append(nll)
        self.tokens.append((prepared.src_tokens, prepared.tgt_tokens, prepared.padded_tokens))

    def read(self, trainer: Trainer) -> Reading | None:
        """Add up the window over all processes, each of which must call this; None if it is empty.

        A micro-batch whose loss is NaN or infinite, whose step was skipped, does not count.
        """
        if not self.losses:
            return None
        losses, nlls = torch.stack([*self.losses, *self.nlls]).view(2, -1).tolist()
        rows = zip(losses, nlls, *zip(*self.tokens, strict=True), strict=True)
        finite = [row for row in rows if math.isfinite(row[0] + row[1])]
        local = [math.fsum(column) for column in zip(*finite, strict=True)] or [0.0] * 5
        loss, nll, *counts = sum_over_processes(trainer, local)
        return Reading(loss, nll, *map(round, counts))


def of_all_processes(trainer: Trainer, value: Any) -> list[Any]:
    """The value of each process, all of which must call this."""
    values = [value] * trainer.world_size
    if trainer.world_size > 1:
        dist.all_gather_object(values, value)
    return values


def sum_over_processes(trainer: Trainer, values: list[float]) -> list[float]:
    """Sums of numbers over all processes, each of which must call this."""
    return [math.fsum(column) for column in zip(*of_all_processes(trainer, values), strict=True)]


def perplexity(nll: float) -> float:
    """exp of a negative log-likelihood in nats per token, as far as there are numbers for it."""
    return math.exp(min(nll, 700.0))


def of_training(trainer: Trainer) -> bool:
    """Whether a validation is one of training: not the test of it, nor a trial before it."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking


def stepped(trainer: Trainer) -> bool:
    """Whether the batch that ends, or has ended, was the last one of an optimizer step."""
    return not trainer.fit_loop._should_accumulate()


class TrainingLog(Callback):
    """Reads the module's meter every `log_every_n_steps` and tells every logger.

    The totals survive an interruption.
    """

    def __init__(self) -> None:
        self.totals = {"seconds": 0.0, "training_seconds": 0.0, "src_tokens": 0, "tgt_tokens": 0}
        self.curve: list[float] = []  # BLEU of each validation so far
        self.latest: dict[str, float] = {}  # by the names that the loggers get
        #: When, and after which optimizer step, this process began to train.
        self.started, self.first_step = time.monotonic(), 0
        self._mark = self.started
        self._window = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.started = self._mark = time.monotonic()
        self.first_step = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if not stepped(trainer):
            return
        step = trainer.global_step
        # The very first step, too: it shows at once whether the run is alive.
        if step % trainer.log_every_n_steps == 0 or step == 1:
            self._read(trainer, pl_module)

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Stop the clock of training."""
        if of_training(trainer):
            self._read(trainer, pl_module)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        if of_training(trainer):
            self._tick(training=False)
            scores = pl_module.scorer.scores
            self.curve.append(round(scores["bleu"], 2))
            self._log(trainer, {f"val/{key}": value for key, value in scores.items()})

    def on_train_end(self, trainer: Trainer, pl_module: Any) -> None:
        self._read(trainer, pl_module)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Put the totals into the checkpoint, with the steps that were not logged yet."""
        reading = pl_module.meter.read(trainer)
        self._tick(training=bool(trainer.training))
        checkpoint["totals"] = self._totals_with(reading)
        checkpoint["curve"] = list(self.curve)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        self.totals = dict(checkpoint["totals"])
        self.curve = list(checkpoint["curve"])

    def log_parent(self, trainer: Trainer, result: dict[str, Any]) -> None:
        numbers = {f"parent/{key}": result[key] for key in ("before", "after", "p_value")}
        self._log(trainer, numbers)

    def _totals_with(self, reading: Reading | None) -> dict[str, Any]:
        counted = reading._asdict() if reading else {}
        return {key: total + counted.get(key, 0) for key, total in self.totals.items()}

    def _tick(self, training: bool) -> None:
        now = time.monotonic()
        elapsed, self._mark = now - self._mark, now
        self.totals["seconds"] += elapsed
        if training:
            self.totals["training_seconds"] += elapsed
            self._window += elapsed

    def _read(self, trainer: Trainer, module: Any) -> None:
        module.guard.look(module)  # a run that ends here decodes nothing and replaces no checkpoint
        reading = module.meter.read(trainer)  # waits for the device, so the clock comes after it
        self._tick(training=True)
        if reading is None:
            return
        self.totals = self._totals_with(reading)
        real, tokens = reading.src_tokens + reading.tgt_tokens, max(reading.tgt_tokens, 1)
        seconds = max(self._window, 1e-9)
        metrics = {
            "loss": reading.loss / tokens,
            "nll": reading.nll / tokens,
            "perplexity": perplexity(reading.nll / tokens),
            "src_tokens_per_second": reading.src_tokens / seconds,
            "tgt_tokens_per_second": reading.tgt_tokens / seconds,
            "padding_share": 1 - real / max(reading.padded_tokens, 1),
            # Of the step just taken: the schedule has moved on already.
            "learning_rate": module.rate(trainer.global_step),
            # `current_epoch` counts the last one as over already when training ends.
            "epoch": float(trainer.fit_loop.epoch_progress.current.ready - 1),
            "memory_gib": _peak_memory_gib(module.device),
        }
        if module.meter.norm is not None:
            metrics["gradient_norm"] = module.meter.norm.item()
        if module.guard.action == "skip":
            metrics["skipped_steps"] = float(module.guard.skipped)
        self._window, module.meter = 0.0, Meter()
        self._log(trainer, {f"train/{key}": value for key, value in metrics.items()})

    def _log(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self.latest.update(metrics)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)


def _peak_memory_gib(device: torch.device) -> float:
    """On CUDA the most that tensors took; else the most that the process took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


class CsvLogger(Logger):
    """Numbers in `metrics.csv` of a folder, a row for each time that something is logged.

    Args:
        folder: Of the run.
        step: The optimizer step after which a resumed run goes on: later rows, which it makes
            again, are taken out when it logs its first one.
    """

    name = version = None

    def __init__(self, folder: Path, step: int = 0) -> None:
        super().__init__()
        self.path, self._step = folder / "metrics.csv", step
        self._columns: list[str] = []
        header = self._read().partition("\n")[0].strip().split(",")
        if self.path.is_file() and "step" not in header:
            raise UserError(f"{self.path} has no column 'step': move it away")

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: config.yaml has them."""

    @rank_zero_only
    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        row = {"step": step, **metrics}
        if not {*row} <= {*self._columns} or not self.path.exists():
            rows = self._rows()
            self._columns = sorted({*row}.union(*rows))
            text = io.StringIO(newline="")
            writer = csv.DictWriter(text, self._columns)
            writer.writeheader()
            writer.writerows([*rows, row])
            return write(self.path, text.getvalue())
        try:
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(row)
        except OSError as error:  # a full disk does not say which file
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def _rows(self) -> list[dict[str, str]]:
        """What was logged up to the step; a kill may have torn the last line."""
        rows = list(csv.DictReader(self._read().rpartition("\n")[0].splitlines()))
        return [row for row in rows if self._columns or int(row["step"]) <= self._step]

    def _read(self) -> str:
        is_there = self.path.is_file()
        return self.path.read_text(encoding="utf-8", errors="replace") if is_there else ""
