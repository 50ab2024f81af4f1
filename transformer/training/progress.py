"""The display of a run: a live bar on a terminal, plain lines elsewhere."""

import sys
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm

from transformer.training.logging import TrainingLog, of_training


class Progress(TQDMProgressBar):
    """Lightning's bar with our numbers, on a terminal; elsewhere a line every ten seconds.

    Either shows the newest numbers of the log, and one line that stays for each validation.
    """

    BAR_FORMAT = "{desc} {percentage:3.0f}% |{bar}| {n_fmt}/{total_fmt}{postfix}"
    SECONDS = 10.0

    def __init__(self, log: TrainingLog) -> None:
        super().__init__(refresh_rate=5)
        self.log_source = log
        self._last = time.monotonic()
        if not sys.stdout.isatty():
            self.disable()

    def init_train_tqdm(self) -> Tqdm:
        """One bar for the whole run; it disappears at its end."""
        bar = super().init_train_tqdm()
        bar.leave = False
        return bar

    def get_metrics(self, trainer: Trainer, pl_module: Any) -> dict[str, Any]:
        """Loss, learning rate and throughput of the newest window of steps, and the time left."""
        latest = self.log_source.latest
        if "train/loss" not in latest:
            return {}
        bleu = {"BLEU": f"{latest['val/bleu']:.1f}"} if "val/bleu" in latest else {}
        return {
            "loss": f"{latest['train/loss']:.3f}",
            "lr": f"{latest['train/learning_rate']:.1e}",
            "tgt tok/s": f"{latest['train/tgt_tokens_per_second']:,.0f}",
            "left": self._time_left(trainer),
            **bleu,
        }

    def _time_left(self, trainer: Trainer) -> str:
        """The time of the rest at the pace so far, validations included; `?` if it has no end."""
        total = trainer.max_steps
        if total < 0 and trainer.max_epochs and isinstance(trainer.num_training_batches, int):
            steps = -(-trainer.num_training_batches // trainer.accumulate_grad_batches)
            total = int(trainer.max_epochs * steps)
        done = trainer.global_step - self.log_source.first_step
        if total < 0 or done < 1:
            return "?"
        pace = (time.monotonic() - self.log_source.started) / done
        return str(timedelta(seconds=round(max(pace * (total - trainer.global_step), 0))))

    def on_train_epoch_start(self, trainer: Trainer, *args: Any) -> None:
        super().on_train_epoch_start(trainer, *args)
        self.train_progress_bar.set_description(epoch(trainer))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        super().on_train_batch_end(trainer, pl_module, *args)
        if self.is_enabled or time.monotonic() - self._last < self.SECONDS:
            return
        if numbers := self.get_metrics(trainer, pl_module):
            self._last = time.monotonic()
            self._say(trainer, "  ".join(f"{name} {value}" for name, value in numbers.items()))

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        super().on_validation_end(trainer, pl_module)
        latest = self.log_source.latest
        if of_training(trainer) and "val/loss" in latest:
            self._say(
                trainer,
                f"validation  loss {latest['val/loss']:.3f}  "
                f"perplexity {latest['val/perplexity']:.2f}  "
                f"BLEU {latest['val/bleu']:.2f}  chrF {latest['val/chrf']:.2f}",
            )

    def _say(self, trainer: Trainer, text: str) -> None:
        if trainer.is_global_zero:
            step = "" if self.is_enabled else f"  step {trainer.global_step:>6,}"
            self.print(f"{epoch(trainer)}{step}  {text}")

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print a line above the bar, or where there is none."""
        if self.is_enabled:
            super().print(*args, **kwargs)
        else:
            print(*args, flush=True)


def epoch(trainer: Trainer) -> str:
    """The epoch as people count them."""
    last = f"/{trainer.max_epochs}" if trainer.max_epochs and trainer.max_epochs > 0 else ""
    return f"epoch {trainer.current_epoch + 1}{last}"
