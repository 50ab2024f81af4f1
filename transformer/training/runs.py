"""The surroundings of a run: its folder, what it resumes, what it is called, what is shown."""

import logging
import os
import shlex
import shutil
import sys
import timeit
import warnings
from argparse import Namespace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from transformer.training.averaging import read_checkpoint

#: Tells the processes that Lightning starts where the first one writes.
RUN_DIR = "TRANSFORMER_RUN_DIR"
#: Whoever starts the processes numbers them in some of these.
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


def claim(config: Any, name: str) -> tuple[Path, bool]:
    """The folder of the run, made here; that of its checkpoint when it is resumed.

    Returns:
        The folder, and whether this process has made it for itself.

    Raises:
        ValueError: when it is taken.
    """
    folder = Path(config.run_dir or Path("runs", name))
    if any(os.environ.get(rank, "0") != "0" for rank in RANKS):
        return Path(os.environ.get(RUN_DIR, folder)), False
    if config.ckpt_path and Path(config.ckpt_path).parent.name == "checkpoints":
        return _folder_of(config), False
    if _take(folder):
        return folder, True
    if config.existing == "number":
        return next(f for n in range(2, sys.maxsize) if _take(f := Path(f"{folder}-{n}"))), True
    raise ValueError(
        f"{folder} exists already: choose another --run_dir, resume it with --ckpt_path "
        f"{shlex.quote(str(folder / 'checkpoints' / 'last.ckpt'))}, or take the next free number "
        "with --existing number"
    )


def _folder_of(config: Any) -> Path:
    folder = Path(config.ckpt_path).parent.parent
    if config.run_dir and Path(config.run_dir).resolve() != folder.resolve():
        raise ValueError(
            f"run_dir is {config.run_dir}, but --ckpt_path {config.ckpt_path} is resumed in its "
            f"own run folder: give --run_dir {shlex.quote(str(folder))} if the folder was moved, "
            "else leave run_dir out"
        )
    return folder


def _take(folder: Path) -> bool:
    """Take a folder that is not there or empty, of several processes only for one of them."""
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        (folder / "checkpoints").mkdir(parents=True)  # fails for all but one
    except FileExistsError:
        return False
    return True


def resumable(config: Any) -> dict[str, Any]:
    """What is needed of the checkpoint to resume before Lightning reads it again.

    Returns:
        Its recipe, its bundle without weights, and its W&B id: the rest would stay in memory.

    Raises:
        ValueError: when it cannot be, or other parameters were trained in it.
    """
    checkpoint = read_checkpoint(config.ckpt_path)
    if "optimizer_states" not in checkpoint:
        raise ValueError(
            f"--ckpt_path {config.ckpt_path} holds weights alone, to be averaged: resume from "
            "last.ckpt, interrupted.ckpt or best-*.ckpt"
        )
    now, trained = _plain(config), checkpoint["recipe"]["config"]
    keys = [f"data.tokenizer.{key}" for key in now["data"]["tokenizer"]]
    for key in (*keys, "model.freeze", "model.lora"):
        value, before = _at(now, key), _at(trained, key)
        if value != before:
            raise ValueError(
                f"{key} is {value!r}, which does not fit the checkpoint {config.ckpt_path} with "
                f"{before!r}: resume with the checkpoint's value, or begin a new run"
            )
    return {key: checkpoint.get(key) for key in ("recipe", "bundle", "wandb_id")}


def _plain(setting: Any) -> Any:
    """Settings as YAML has them, in which recipes are kept."""
    if isinstance(setting, list | tuple):
        return [_plain(item) for item in setting]
    if isinstance(setting, Namespace):
        return {key: _plain(value) for key, value in vars(setting).items()}
    return setting


def _at(settings: dict[str, Any], key: str) -> Any:
    for part in key.split("."):
        settings = settings.get(part, {})
    return settings


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


def choose_precision(trainer: Any) -> None:
    """Set the precision of training where the recipe's `trainer` leaves it open."""
    if trainer.precision is None:
        trainer.precision = best_precision(trainer.accelerator)
        if trainer.accelerator in ("auto", "cpu") and _trains_on_cpu(trainer.accelerator):
            trainer.precision = "bf16-mixed" if _bfloat16_is_fast() else "32-true"
    torch.set_float32_matmul_precision("high")  # TF32 for what is computed in float32


def best_precision(accelerator: Any) -> str:
    """Of evaluation: bfloat16 where CUDA computes in it, else float32."""
    wanted = accelerator in ("auto", "gpu", "cuda")
    # Older GPUs only emulate it, slower than they compute in float32.
    can = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bf16-mixed" if wanted and can else "32-true"


def _trains_on_cpu(accelerator: str) -> bool:
    gpu = torch.cuda.is_available() or torch.backends.mps.is_available()
    return accelerator == "cpu" or not gpu


def _bfloat16_is_fast() -> bool:
    """Whether matrix products in bfloat16 take less than half of the time of float32.

    Some CPUs only emulate bfloat16. With AMX the products are about eight times as fast, and a
    training step of the tiny Transformer 1.3 times, of the base model 2.6 times.
    """
    seconds = {}
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.ones(512, 512, dtype=dtype)
        seconds[dtype] = min(timeit.repeat("m @ m", globals={"m": matrix}, number=1, repeat=5))
    return seconds[torch.bfloat16] < seconds[torch.float32] / 2


def program(name: str = "transformer") -> str:
    """What to type for a program of this environment, which need not be on the PATH."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return f"python -m {name}"
    found = shutil.which(name)
    here = path.with_name(name)
    if not here.exists() or (found and here.samefile(found)):
        return name
    return shlex.quote(os.path.relpath(here))


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
