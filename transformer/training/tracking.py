"""Where a run is recorded: Weights & Biases, online or offline, or a CSV file."""

import csv
import netrc
import os
import random
import re
import subprocess
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlparse

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from transformer.inference.translator import Translator
from transformer.training.callbacks import of_training
from transformer.training.module import Seq2SeqModule

LoggerName = Literal["wandb", "csv", "none"]
SAMPLES = 8  # sentences in the table of each validation
DRAWN = 200  # characters, at most as many pieces: a picture can show them


def make_logger(kind: LoggerName, folder: Path, name: str, run_id: str | None) -> Logger | None:
    """The logger of a run; W&B is offline where there is no key, and never asks for one.

    Args:
        kind: which one.
        folder: the run folder.
        name: of the run.
        run_id: W&B's id of the run that is resumed.

    Returns:
        The logger, or None for `none`.
    """
    if kind == "wandb":
        return _wandb_logger(folder, name, run_id)
    if kind == "csv":
        return _csv_logger(folder)
    return None


def _wandb_logger(folder: Path, name: str, run_id: str | None) -> WandbLogger:
    mode: dict[str, Any] = (
        {} if os.environ.get("WANDB_MODE") or has_wandb_key() else {"mode": "offline"}
    )
    import wandb

    settings = wandb.Settings(silent=True)
    folder.mkdir(parents=True, exist_ok=True)  # else W&B takes a temporary folder
    project = os.environ.get("WANDB_PROJECT", "transformer")
    logger = WandbLogger(
        name=name, save_dir=folder, project=project, id=run_id, settings=settings, **mode
    )
    logger._wandb_init.pop("anonymous", None)  # Lightning passes it on, and W&B warns about it
    return logger


def has_wandb_key() -> bool:
    """Whether W&B would find an API key without asking for it."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    path = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        return netrc.netrc(str(path)).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _csv_logger(folder: Path) -> CSVLogger:
    logger = CSVLogger(folder, name="", version="", flush_logs_every_n_steps=1)
    written = folder / "metrics.csv"
    if written.is_file() and getattr(rank_zero_only, "rank", 0) == 0:
        # A resumed run goes on in the same file, which Lightning would delete.
        aside = written.rename(folder / "metrics.before.csv")
        writer = logger.experiment
        aside.rename(written)
        with written.open(newline="") as file:
            writer.metrics_keys = next(csv.reader(file), [])
    return logger


class WandbTracker(Callback):
    """What W&B shows beside the curves: the recipe, sample translations, attention, the bundle."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record what is being trained."""
        module = cast(Seq2SeqModule, pl_module)
        if not isinstance(trainer.logger, WandbLogger):
            return
        config = {
            **module.recipe.get("config", {}),
            "recipe": module.recipe.get("name"),
            "git_revision": git_revision(),
            "parameters": module.model.count_parameters(),
        }
        trainer.logger.log_hyperparams(config)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A table of translations, and where the model looked when it made one of them."""
        logger, module = trainer.logger, cast(Seq2SeqModule, pl_module)
        if not of_training(trainer) or not isinstance(logger, WandbLogger):
            return
        rows = samples(module, "val", SAMPLES)
        if not rows or not trainer.is_global_zero:
            return
        table: list[Any] = [[trainer.global_step, *row] for row in rows]
        columns = ["step", "source", "reference", "translation"]
        logger.log_text("val/translations", columns, table, step=trainer.global_step)
        if figure := attention_figure(module, rows):
            logger.log_image("val/attention", [figure], step=trainer.global_step)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Remember the run, so that resuming continues it."""
        if isinstance(trainer.logger, WandbLogger) and trainer.is_global_zero:
            checkpoint["wandb_id"] = trainer.logger.version


def samples(
    module: Seq2SeqModule, split: Literal["val", "test"], count: int
) -> list[tuple[str, str, str]]:
    """Source, reference and translation of some sentences, the same ones every time."""
    sources, references = module.data.texts(split)
    known = sorted(module.scorer.translations)
    chosen = random.Random(0).sample(known, min(count, len(known)))
    return [(sources[i], references[i], module.scorer.translations[i]) for i in chosen]


def attention_figure(module: Seq2SeqModule, rows: list[tuple[str, str, str]]) -> Any:
    """Cross-attention of the last layer for a translation, as a matplotlib figure.

    It is the first of some `samples` that fits on a page; None where all are longer.
    """
    from transformer.evaluation.plots import attention_heatmap

    short = (row for row in rows if max(len(row[0]), len(row[2])) <= DRAWN)
    if (row := next(short, None)) is None:
        return None
    source, _, translation = row
    translator = Translator(module.model, module.tokenizer, tgt=module.data.tgt)
    weights, src_pieces, tgt_pieces = translator.attention(source, translation)
    title = module.model.describe() + (", last layer" if len(weights) > 1 else "")
    return attention_heatmap(weights[-1].cpu(), src_pieces, tgt_pieces, title)


def log_bundle(trainer: Trainer, folder: Path, name: str, results: dict[str, Any]) -> None:
    """Give W&B the bundle and the final scores, and close the run."""
    if not isinstance(trainer.logger, WandbLogger) or not trainer.is_global_zero:
        return
    import wandb

    run = trainer.logger.experiment
    numbers = {k: v for k, v in results.items() if isinstance(v, int | float)}
    run.summary.update({f"final/{key}": value for key, value in numbers.items()})
    # Of other characters W&B takes none.
    allowed = re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-")[:128] or "bundle"
    artifact = wandb.Artifact(allowed, type="model", metadata=numbers)
    for path in folder.iterdir():  # add_dir() would talk about it
        artifact.add_file(str(path), name=path.name)
    run.log_artifact(artifact)
    run.finish()


def git_revision() -> str | None:
    """The commit that the code was run from, with `+` when files were changed; None outside git."""
    folder = Path(__file__).resolve().parent

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", *args], cwd=folder, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    try:
        # An installed package may lie inside somebody else's repository.
        if "transformer/__init__.py" not in git("ls-files", "--full-name", str(folder.parent)):
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
