"""What the user sees while a model trains: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from transformer.training.callbacks import TrainingLog, of_training


def progress(log: TrainingLog) -> Callback:
    """The display that suits standard output; it shows the newest numbers of `log`."""
    return LiveProgress(log) if sys.stdout.isatty() else PlainProgress(log)


def validation_line(latest: dict[str, float]) -> str:
    """One line about the newest validation."""
    return (
        f"validation  loss {latest['val/loss']:.3f}  perplexity {latest['val/perplexity']:.2f}  "
        f"BLEU {latest['val/bleu']:.2f}  chrF {latest['val/chrf']:.2f}"
    )


def training_line(latest: dict[str, float]) -> str:
    """Loss, learning rate and throughput of the newest window of steps."""
    return (
        f"loss {latest['train/loss']:.3f}  lr {latest['train/learning_rate']:.1e}  "
        f"{latest['train/tgt_tokens_per_second']:,.0f} tgt tok/s"
    )


def time_left(trainer: Trainer, log: TrainingLog) -> str:
    """How long the rest takes at the pace so far, validations included; `?` where it has no end."""
    total = trainer.max_steps
    if total < 0 and trainer.max_epochs and isinstance(trainer.num_training_batches, int):
        steps = -(-trainer.num_training_batches // trainer.accumulate_grad_batches)
        total = int(trainer.max_epochs * steps)
    done = trainer.global_step - log.first_step
    if total < 0 or done < 1:
        return "?"
    seconds = (time.monotonic() - log.started) / done * (total - trainer.global_step)
    return str(timedelta(seconds=round(max(seconds, 0))))


class LiveProgress(TQDMProgressBar):
    """Lightning's bar with our numbers, and one line that stays for each validation.

    Args:
        log: where the numbers come from.
    """

    BAR_FORMAT = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{postfix}"

    def __init__(self, log: TrainingLog) -> None:
        super().__init__(refresh_rate=5)
        self.log_source = log

    def init_train_tqdm(self) -> Tqdm:
        """One bar for the whole run; it disappears at its end."""
        bar = super().init_train_tqdm()
        bar.leave = False
        return bar

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """Short, for the end of the bar."""
        latest = self.log_source.latest
        if "train/loss" not in latest:
            return {}
        shown = {
            "loss": f"{latest['train/loss']:.3f}",
            "lr": f"{latest['train/learning_rate']:.1e}",
            "tok/s": f"{latest['train/tgt_tokens_per_second']:,.0f}",
            "left": time_left(trainer, self.log_source),
        }
        if "val/bleu" in latest:
            shown["BLEU"] = f"{latest['val/bleu']:.1f}"
        return shown

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        """Name the epoch as people count them."""
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(_epoch(trainer))

    def on_validation_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """There is only one set to name."""
        super().on_validation_batch_start(*args, **kwargs)
        self.val_progress_bar.set_description("validation")

    def on_test_batch_start(self, *args: Any, **kwargs: Any) -> None:
        """There is only one set to name."""
        super().on_test_batch_start(*args, **kwargs)
        self.test_progress_bar.set_description("test")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave a line about each validation above the bar."""
        super().on_validation_end(trainer, pl_module)
        if of_training(trainer) and "val/loss" in self.log_source.latest:
            self.print(f"{_epoch(trainer)}  {validation_line(self.log_source.latest)}")


class PlainProgress(Callback):
    """A line every ten seconds and one for each validation.

    Args:
        log: where the numbers come from.
        seconds: between two lines about training.
    """

    def __init__(self, log: TrainingLog, seconds: float = 10.0) -> None:
        self.log_source = log
        self.seconds = seconds
        self._last = time.monotonic()

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        """Print when it is time."""
        now = time.monotonic()
        if now - self._last < self.seconds or "train/loss" not in self.log_source.latest:
            return
        self._last = now
        left = f"  {time_left(trainer, self.log_source)} left"
        self._print(trainer, training_line(self.log_source.latest) + left)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the scores."""
        if of_training(trainer) and "val/loss" in self.log_source.latest:
            self._print(trainer, validation_line(self.log_source.latest))

    def _print(self, trainer: Trainer, text: str) -> None:
        if trainer.is_global_zero:
            print(f"{_epoch(trainer)}  step {trainer.global_step:>6,}  {text}", flush=True)


def _epoch(trainer: Trainer) -> str:
    last = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
    return f"epoch {trainer.current_epoch + 1}{last}"
