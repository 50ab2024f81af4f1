"""What happens around the steps: numbers for the loggers, early stopping."""

import time
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, callbacks

from transformer.training.meter import Reading
from transformer.training.module import RANK, Seq2SeqModule
from transformer.training.scoring import perplexity

WARM_UP = 20  # steps that say nothing of the pace: data workers start, kernels are made


def of_training(trainer: Trainer) -> bool:
    """Whether a validation is one of training: not the test of it, nor a trial before it."""
    return trainer.state.fn == "fit" and not trainer.sanity_checking


class TrainingLog(Callback):
    """Reads the module's meter every `log_every_n_steps` and tells every logger.

    Losses are per target token, in nats; throughput counts real tokens over training time,
    without validation. The totals survive an interruption.
    """

    def __init__(self) -> None:
        self.totals = {"seconds": 0.0, "training_seconds": 0.0, "src_tokens": 0, "tgt_tokens": 0}
        #: BLEU of each validation so far.
        self.curve: list[float] = []
        #: The newest numbers, by the names that the loggers get.
        self.latest: dict[str, float] = {}
        #: When, and after which optimizer step, this process began to train, or had warmed up.
        self.started, self.first_step = time.monotonic(), 0
        self._warm = WARM_UP
        self._mark = self.started
        self._window = 0.0
        self._last_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.started = self._mark = time.monotonic()
        self.first_step = self._last_step = trainer.global_step
        self._warm = trainer.global_step + WARM_UP

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log when enough optimizer steps have been taken."""
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        if trainer.global_step == self._warm:
            self.started, self.first_step = time.monotonic(), trainer.global_step
        # The very first step, too: it shows at once whether the run is alive.
        if (
            trainer.global_step % cast(Any, trainer).log_every_n_steps == 0
            or trainer.global_step == 1
        ):
            self._read(trainer, cast(Seq2SeqModule, pl_module))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock of training; nothing that is NaN is decoded."""
        if of_training(trainer):
            self._read(trainer, cast(Seq2SeqModule, pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log the scores, and start the clock of training again."""
        if of_training(trainer):
            self._tick(training=False)
            scores = cast(Seq2SeqModule, pl_module).scorer.scores
            self.curve.append(round(scores["bleu"], 2))
            self._log(trainer, {f"val/{key}": value for key, value in scores.items()})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count what came after the last reading."""
        self._read(trainer, cast(Seq2SeqModule, pl_module))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Put the totals into the checkpoint, with the steps that were not logged yet."""
        reading = cast(Seq2SeqModule, pl_module).meter.read(trainer)
        self._tick(training=bool(trainer.training))
        checkpoint["totals"] = _added(self.totals, reading)
        checkpoint["curve"] = list(self.curve)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go on counting."""
        self.totals = dict(checkpoint["totals"])
        self.curve = list(checkpoint["curve"])

    def _tick(self, training: bool) -> None:
        now = time.monotonic()
        elapsed, self._mark = now - self._mark, now
        self.totals["seconds"] += elapsed
        if training:
            self.totals["training_seconds"] += elapsed
            self._window += elapsed

    def _read(self, trainer: Trainer, module: Seq2SeqModule) -> None:
        reading = module.meter.read(trainer)  # waits for the device, so the clock comes after it
        self._tick(training=True)
        if reading is None:
            return
        self.totals = _added(self.totals, reading)
        metrics = {
            **_per_token(reading, self._window),
            "train/learning_rate": _last_learning_rate(trainer),
            "train/epoch": float(trainer.current_epoch),
            "train/memory_gib": _peak_memory_gib(module.device),
        }
        if module.meter.norms:
            metrics["train/gradient_norm"] = module.meter.norms[-1].item()
        self._window = 0.0
        module.meter.clear()
        self._log(trainer, metrics)

    def _log(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        self.latest.update(metrics)
        for logger in trainer.loggers:
            logger.log_metrics(metrics, step=trainer.global_step)


def _added(totals: dict[str, Any], reading: Reading | None) -> dict[str, Any]:
    if reading is None:
        return dict(totals)
    return {
        **totals,
        "src_tokens": totals["src_tokens"] + reading.src_tokens,
        "tgt_tokens": totals["tgt_tokens"] + reading.tgt_tokens,
    }


def _per_token(reading: Reading, seconds: float) -> dict[str, float]:
    nll = reading.nll / max(reading.tgt_tokens, 1)
    real = reading.src_tokens + reading.tgt_tokens
    return {
        "train/loss": reading.loss / max(reading.tgt_tokens, 1),
        "train/nll": nll,
        "train/perplexity": perplexity(nll),
        "train/src_tokens_per_second": reading.src_tokens / max(seconds, 1e-9),
        "train/tgt_tokens_per_second": reading.tgt_tokens / max(seconds, 1e-9),
        "train/padding_share": 1 - real / max(reading.padded_tokens, 1),
    }


def _last_learning_rate(trainer: Trainer) -> float:
    """That of the step just taken: the schedule has moved on already."""
    scheduler = cast(torch.optim.lr_scheduler.LambdaLR, trainer.lr_scheduler_configs[0].scheduler)
    return float(scheduler.lr_lambdas[0](trainer.global_step - 1))


def _peak_memory_gib(device: torch.device) -> float:
    """On CUDA the most that tensors took; else the most that the process took."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


class EarlyStopping(callbacks.EarlyStopping):
    """Stops when BLEU has not risen for so many validations.

    Args:
        patience: how many.
    """

    def __init__(self, patience: int) -> None:
        super().__init__(
            RANK, mode="max", patience=patience, check_on_train_epoch_end=False, verbose=False
        )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting, with the patience of this run."""
        super().load_state_dict({**state_dict, "patience": self.patience})

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Train no further where patience had ended when the run was killed."""
        if self.wait_count >= max(self.patience, 1):
            trainer.should_stop = True
