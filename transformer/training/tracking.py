"""Weights & Biases: the run, sample translations, a picture of attention, the bundle."""

import atexit
import logging
import netrc
import os
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import WandbLogger

from transformer.training.logging import of_training
from transformer.training.scoring import attention_figure

log = logging.getLogger(__name__)
PATIENCE = 600  # seconds that uploads may take at the end: they are on the disk, for `wandb sync`
SAMPLES = 8  # sentences in the table of each validation


class TrackingLogger(WandbLogger):
    """W&B's logger, which stops no training.

    Where the server does not answer, the run is recorded offline; when W&B's own process has died,
    no more is recorded.
    """

    lost = False

    @property
    def experiment(self) -> Any:
        import wandb
        from wandb.errors import CommError

        try:
            return super().experiment
        except CommError as error:
            reason = " ".join(str(error).split())
            log.warning("warning: W&B records offline, for its server does not answer: %s", reason)
            wandb.teardown()  # else it keeps the number of the run, and waits for the server
            self._wandb_init["mode"] = "offline"
            return super().experiment

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        attempt(self, lambda: super(TrackingLogger, self).log_metrics(metrics, step))

    def log_hyperparams(self, params: Any) -> None:
        attempt(self, lambda: super(TrackingLogger, self).log_hyperparams(params))


def attempt(logger: Any, record: Callable[[], None]) -> None:
    """Record something, unless W&B is lost; a recipe may have named Lightning's own logger."""
    try:
        if not getattr(logger, "lost", False):
            record()
    except Exception as error:  # of many kinds: its process, the disk, the network
        logger.lost = True
        atexit.register(_end)  # before W&B's own hook, which raises where its process is gone
        log.warning("warning: W&B records no more: %s: %s", type(error).__name__, error)


def _end() -> None:
    import wandb

    with suppress(Exception):
        wandb.teardown()


def wandb_logger(folder: Path, name: str, run_id: str | None) -> TrackingLogger:
    """Make W&B's logger, offline where there is no key: W&B never asks for one."""
    import wandb

    folder.mkdir(parents=True, exist_ok=True)  # else W&B takes a temporary folder
    known = os.environ.get("WANDB_MODE") or has_wandb_key()
    mode: dict[str, Any] = {} if known else {"mode": "offline"}
    logger = TrackingLogger(
        name=name,
        save_dir=folder,
        project=os.environ.get("WANDB_PROJECT", "transformer"),
        id=run_id,
        settings=wandb.Settings(silent=True, finish_timeout=PATIENCE),
        **mode,
    )
    logger._wandb_init.pop("anonymous", None)  # Lightning passes it on, and W&B warns about it
    return logger


def has_wandb_key() -> bool:
    """Whether W&B would find an API key without asking for it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.path.expanduser(os.environ.get("NETRC", "~/.netrc")))
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


class WandbTracker(Callback):
    """Shows the recipe, translations and attention beside W&B's curves."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        if isinstance(trainer.logger, WandbLogger):
            config = {
                **pl_module.recipe.get("config", {}),
                "recipe": pl_module.recipe.get("name"),
                "parameters": pl_module.model.count_parameters(),
            }
            trainer.logger.log_hyperparams(config)

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Log a table of translations, and where the model looked when it made one of them."""
        logger, step = trainer.logger, trainer.global_step
        if not of_training(trainer) or not isinstance(logger, WandbLogger):
            return
        rows = pl_module.scorer.samples(SAMPLES)
        if not rows or not trainer.is_global_zero:
            return
        columns = ["step", "source", "reference", "translation"]
        table: list[Any] = [[step, *row] for row in rows]
        figure = attention_figure(pl_module.model, pl_module.data, rows)

        def record() -> None:
            logger.log_text("val/translations", columns, table, step=step)
            if figure:
                logger.log_image("val/attention", [figure], step=step)

        attempt(logger, record)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: Any, checkpoint: dict[str, Any]
    ) -> None:
        """Remember the run, so that resuming continues it."""
        if isinstance(trainer.logger, WandbLogger) and trainer.is_global_zero:
            checkpoint["wandb_id"] = trainer.logger.version


def log_bundle(trainer: Trainer, folder: Path, name: str, results: dict[str, Any]) -> None:
    """Give W&B the bundle and the final scores, and close the run."""
    logger = trainer.logger
    if not isinstance(logger, WandbLogger) or not trainer.is_global_zero:
        return
    attempt(logger, partial(_log_bundle, logger, folder, name, results))


def _log_bundle(logger: WandbLogger, folder: Path, name: str, results: dict[str, Any]) -> None:
    import wandb

    run = logger.experiment
    numbers = {k: v for k, v in results.items() if isinstance(v, int | float)}
    run.summary.update({f"final/{key}": value for key, value in numbers.items()})
    # W&B takes no other characters.
    allowed = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-")[:128] or "bundle"
    artifact = wandb.Artifact(allowed, type="model", metadata=numbers)
    for path in folder.iterdir():  # add_dir() would talk about it
        artifact.add_file(str(path), name=path.name)
    run.log_artifact(artifact)
    run.finish()
