"""The surroundings of a run: its folder, what it resumes, what it is called, what is shown."""

import logging
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from transformer.training.averaging import read_checkpoint

#: Tells the processes that Lightning starts where the first one writes.
RUN_DIR = "TRANSFORMER_RUN_DIR"


def claim(config: Any, name: str) -> Path:
    """The folder of the run; that of its checkpoint when it is resumed.

    Raises:
        ValueError: when it is taken.
    """
    if os.environ.get("LOCAL_RANK", "0") != "0" and RUN_DIR in os.environ:
        return Path(os.environ[RUN_DIR])
    if config.ckpt_path and Path(config.ckpt_path).parent.name == "checkpoints":
        return Path(config.ckpt_path).parent.parent
    folder = Path(config.run_dir or Path("runs", name))
    if _is_free(folder):
        return folder
    if config.existing == "number":
        return next(f for n in range(2, sys.maxsize) if _is_free(f := Path(f"{folder}-{n}")))
    raise ValueError(
        f"{folder} exists already: choose another --run_dir, resume it with "
        f"--ckpt_path {folder / 'checkpoints' / 'last.ckpt'}, or take the next free number with "
        "--existing number"
    )


def _is_free(folder: Path) -> bool:
    return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))


def resumable(config: Any) -> dict[str, Any]:
    """The checkpoint to resume.

    Raises:
        ValueError: when it cannot be, or was trained with another vocabulary.
    """
    checkpoint = read_checkpoint(config.ckpt_path)
    if "optimizer_states" not in checkpoint:
        raise ValueError(
            f"--ckpt_path {config.ckpt_path} holds weights alone, to be averaged: resume from "
            "last.ckpt, interrupted.ckpt or best-*.ckpt"
        )
    trained = checkpoint["recipe"]["config"]["data"]["tokenizer"]
    for key, value in vars(config.data.tokenizer).items():
        if trained.get(key) != value:
            raise ValueError(
                f"data.tokenizer.{key} is {value!r}, which does not fit the checkpoint "
                f"{config.ckpt_path} with the vocabulary of {trained.get(key)!r}: resume with the "
                "checkpoint's value, or begin a new run"
            )
    return checkpoint


def recipe_name(config: Any, checkpoint: dict[str, Any] | None) -> str:
    """The recipe's path below recipes/, without .yaml; its stem where there is no such folder."""
    if checkpoint:
        return str(checkpoint["recipe"]["name"])
    if not config.config:
        return "run"
    path = Path(str(config.config[-1]))
    parts = path.with_suffix("").parts
    if "recipes" in parts[:-1]:
        return "/".join(parts[len(parts) - parts[::-1].index("recipes") :])
    return path.parent.name if path.stem == "config" else path.stem


def best_precision(accelerator: Any) -> str:
    """bfloat16 where CUDA computes in it, else float32."""
    wanted = accelerator in ("auto", "gpu", "cuda")
    can = wanted and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "bf16-mixed" if can else "32-true"


def program(name: str = "transformer") -> str:
    """What to type for a program of this environment, which need not be on the PATH."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return f"python -m {name}"
    found = shutil.which(name)
    here = path.with_name(name)
    if not here.exists() or (found and here.samefile(found)):
        return name
    return os.path.relpath(here)


class SaveConfig(Callback):
    """Writes config.yaml, as soon as training begins.

    Args:
        folder: the run folder.
        text: all settings of the run.
    """

    def __init__(self, folder: Path, text: str) -> None:
        self.path, self.text = folder / "config.yaml", text

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the file."""
        if trainer.is_global_zero:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(self.text, encoding="utf-8")


def be_quiet() -> None:
    """Keep what Lightning says to developers out of the user's sight."""
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if os.environ.get("LOCAL_RANK", "0") == "0":  # our own messages, such as what takes long
        ours = logging.getLogger("transformer")
        ours.setLevel(logging.INFO)
        ours.handlers = [logging.StreamHandler(sys.stdout)]
    warnings.filterwarnings("ignore", module=r"lightning(\.|$)")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    torch.set_float32_matmul_precision("high")
