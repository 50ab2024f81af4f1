"""The surroundings of a run: its folder and name, the checkpoint to resume, its precision."""

import fcntl
import json
import logging
import os
import shlex
import shutil
import sys
import warnings
from itertools import count
from pathlib import Path
from typing import IO, Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer

from transformer.errors import UserError
from transformer.kernels import refuse_emulated, trains_in_bfloat16
from transformer.training.checkpoints import name_newest, read_checkpoint
from transformer.writing import clear, is_part

#: Tells the processes that Lightning starts where the first one writes.
RUN_DIR = "TRANSFORMER_RUN_DIR"
#: Below a run folder: the file that a process locks while it prepares its data.
LOCK = Path("checkpoints", ".taken")
_LOCKS: dict[Path, IO[str]] = {}
#: Environment variables, in some of which whoever starts the processes numbers them.
PROCESS_NUMBERS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


def lock_folder(config: Any, name: str) -> tuple[Path, bool]:
    """Lock the folder of a new run, or return to that of a run that is resumed.

    Returns:
        The folder, and whether this process has made it for itself.

    Raises:
        UserError: when another run has it.
    """
    folder = Path(config.run_dir or Path("runs", name))
    if any(os.environ.get(name, "0") != "0" for name in PROCESS_NUMBERS):
        return Path(os.environ.get(RUN_DIR, folder)), False
    if config.ckpt_path and Path(config.ckpt_path).parent.name == "checkpoints":
        folder = _folder_of(config)
        _clear(folder)
        return folder, False
    if _lock(folder):
        return folder, True
    if config.existing == "number":
        return next(f for n in count(2) if _lock(f := Path(f"{folder}-{n}"))), True
    resume = name_newest(folder / "checkpoints", "resume it with --ckpt_path {}, ")
    raise UserError(
        f"{folder} exists already: choose another --run_dir, {resume}or take the next free number "
        "with --existing number"
    )


def _folder_of(config: Any) -> Path:
    folder = Path(config.ckpt_path).parent.parent
    if config.run_dir and Path(config.run_dir).resolve() != folder.resolve():
        raise UserError(
            f"run_dir is {config.run_dir}, but --ckpt_path {config.ckpt_path} is resumed in its "
            f"own run folder: give --run_dir {shlex.quote(str(folder))} if the folder was moved, "
            "else leave run_dir out"
        )
    return folder


def _lock(folder: Path) -> bool:
    """Lock a folder in which no run has written yet; of several processes one succeeds.

    Until the run writes there, the process holds a lock, which goes away with it: whoever is
    killed while data is prepared leaves a folder that is free.
    """
    if not _is_free(folder):
        return False
    (folder / LOCK).parent.mkdir(parents=True, exist_ok=True)
    lock = (folder / LOCK).open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever held it may meanwhile have begun to train, or removed the folder.
        mine = os.path.samestat(os.fstat(lock.fileno()), (folder / LOCK).stat())
    except OSError:
        mine = False
    if not (mine and _is_free(folder)):
        lock.close()
        return False
    _clear(folder)
    _LOCKS[folder] = lock
    return True


def _is_free(folder: Path) -> bool:
    """Whether there is nothing in a folder but what killed processes leave before they train."""
    found = {
        path.relative_to(folder)
        for pattern in ("*", "checkpoints/*")
        for path in folder.glob(pattern)
    }
    return all(path in (LOCK, LOCK.parent) or is_part(path) for path in found)


def _clear(folder: Path) -> None:
    for place in (folder, folder / "checkpoints"):
        clear(place)


def unlock(folder: Path) -> None:
    """Unlock a folder, in which the run has written by now, or which is gone."""
    if lock := _LOCKS.pop(folder, None):
        (folder / LOCK).unlink(missing_ok=True)
        lock.close()


def resumable(config: Any) -> dict[str, Any]:
    """Read from the checkpoint to resume what is needed before Lightning reads it again.

    That is its recipe, its bundle without weights, and its W&B id: the rest would stay in memory.
    """
    checkpoint = read_checkpoint(config.ckpt_path)
    if "optimizer_states" not in checkpoint:
        hint = name_newest(Path(config.ckpt_path).parent, ": resume from {}")
        raise UserError(f"--ckpt_path {config.ckpt_path} holds weights alone, to be averaged{hint}")
    given = {f"data.tokenizer.{key}": value for key, value in vars(config.data.tokenizer).items()}
    given |= {"model.freeze": config.model.freeze, "model.lora": config.model.lora}
    for key, value in json.loads(json.dumps(given, default=vars)).items():  # as recipes are kept
        before = checkpoint["recipe"]["config"]
        for part in key.split("."):
            before = before.get(part, {})
        if value != before:
            raise UserError(
                f"{key} is {value!r}, which does not fit the checkpoint {config.ckpt_path} with "
                f"{before!r}: resume with the checkpoint's value, or begin a new run"
            )
    _check_rest(config, checkpoint)
    return {key: checkpoint.get(key) for key in ("recipe", "bundle", "wandb_id")}


def _check_rest(config: Any, checkpoint: dict[str, Any]) -> None:
    """Refuse to resume where nothing is left to train, unless its test is left."""
    at_home = Path(config.ckpt_path).parent.name == "checkpoints"
    folder = _folder_of(config) if at_home else Path()
    ended = at_home and (folder / "results.json").exists()
    loops = checkpoint["loops"]["fit_loop"]
    # The last epoch that was begun is over when its last batch is.
    over = loops["epoch_loop.batch_progress"]["is_last_batch"]
    epochs = loops["epoch_progress"]["total"]["started"] - (not over)
    for key, done in {"max_steps": checkpoint["global_step"], "max_epochs": epochs}.items():
        limit = getattr(config.trainer, key)
        if limit is None or limit < 0 or limit > done or (limit == done and not ended):
            continue
        bundle = f"`{program()} average --help` says how to make a bundle of it"
        if ended:
            bundle = f"its bundle is {folder / 'bundle'}"
        raise UserError(
            f"nothing is left to train: trainer.{key} is {limit}, and {config.ckpt_path} was saved "
            f"after {done}: give more with --trainer.{key}; {bundle}"
        )


def recipe_name(config: Any, checkpoint: dict[str, Any]) -> str:
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


def choose_precision(accelerator: Any, given: Any = None, stored: Any = None) -> Any:
    """Choose the precision: the given one, else that of the run that is resumed, else the fast one.

    That is bf16-mixed where the device is faster with it; a CPU that only emulates it is refused.
    """
    device = str(accelerator)
    if device in ("auto", "gpu"):
        mps = device == "gpu" or torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    precision = given or stored or ("bf16-mixed" if trains_in_bfloat16(device) else "32-true")
    if str(precision).startswith("bf16"):
        instead = "--trainer.precision 32-true"
        refuse_emulated(device, f"trainer.precision {precision}", instead)
    return precision


class OnePrecision(Callback):
    """Refuses processes that were started on different machines and chose different precisions."""

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Compare them, as soon as the processes know each other."""
        if trainer.world_size == 1:
            return
        found: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(found, trainer.precision)
        if len(set(found)) > 1:
            raise UserError(
                f"trainer.precision is {' in some processes and '.join(sorted(set(found)))} in "
                "others, whose machines differ: give all of them --trainer.precision 32-true"
            )


def program(name: str = "transformer") -> str:
    """The command for a program of this environment, which need not be on the PATH."""
    path = Path(sys.argv[0])
    if path.name == "__main__.py":
        return f"python -m {name}"
    found = shutil.which(name)
    here = path.with_name(name)
    if not here.exists() or (found and here.samefile(found)):
        return name
    return shlex.quote(os.path.relpath(here))


def set_up_libraries() -> None:
    """Lets GPUs take TF32 for products of float32, and keeps Lightning's advice to developers out.

    Both training and testing begin with it, so that they score a model alike.
    """
    torch.set_float32_matmul_precision("high")
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    if os.environ.get("LOCAL_RANK", "0") == "0":  # our own messages, such as what takes long
        ours = logging.getLogger("transformer")
        ours.setLevel(logging.INFO)
        ours.handlers = [logging.StreamHandler(sys.stdout)]
    warnings.filterwarnings("ignore", module=r"lightning(\.|$)")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
