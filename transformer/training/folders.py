"""The folder of a run: who has it, from which checkpoint a run goes on there, whether it ended."""

import fcntl
import json
import logging
import os
import shlex
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import IO, Any

from transformer.errors import Done, UserError
from transformer.training.checkpoint_files import look_through, name_newest, read_checkpoint
from transformer.training.runs import is_first_process, program, recipe_name
from transformer.writing import clear, is_part

log = logging.getLogger(__name__)

#: Tells the processes that Lightning starts where the first one writes.
RUN_DIR = "TRANSFORMER_RUN_DIR"
#: Below a run folder: the file that the process locks that has it.
LOCK = Path("checkpoints", ".taken")
_LOCKS: dict[Path, IO[str]] = {}
#: Settings that say when a run has ended.
LIMITS = ("trainer.max_epochs", "trainer.max_steps", "trainer.max_time", "patience")


def checkpoint_to_resume(config: Any) -> str | None:
    """Find the checkpoint from which a run goes on: the given one, the newest one, or none.

    Raises:
        UserError: when there is none that can be used, though there should be.
        Done: when `existing` is `resume` and the run has ended.
    """
    given, repeats = config.ckpt_path, config.existing == "resume"
    if given and repeats:
        raise UserError(
            f"--existing resume finds the checkpoint itself: leave out --ckpt_path {given}"
        )
    if not repeats and given != "last":
        return str(given) if given else None
    folder = Path(config.run_dir or Path("runs", recipe_name(config, {})))
    if repeats and _ended_with(folder) == limits(config):
        text = f"{folder} has ended, nothing is left to do: its bundle is {folder / 'bundle'}"
        raise Done(text if is_first_process() else "")
    newest, damaged = look_through(folder / "checkpoints")
    if newest is None and damaged:
        raise UserError(
            f"{_names(damaged)} cannot be read as a checkpoint, and {folder} has no other one to "
            "go on from: begin anew with another --run_dir"
        )
    if newest is None and given:
        raise UserError(
            f"--ckpt_path last: {folder} has no checkpoint: leave it out, or take --existing "
            "resume, which begins a run where there is none"
        )
    if newest and damaged and is_first_process():
        log.warning("warning: %s cannot be read: going on from %s", _names(damaged), newest)
    return str(newest) if newest else None


def _names(paths: list[Path]) -> str:
    return " and ".join(map(str, paths))


def take_folder(config: Any, name: str) -> tuple[Path, bool]:
    """Take the folder of a run for this process, until it ends, however it ends.

    Returns:
        The folder, and whether it is a new one.

    Raises:
        UserError: when another run has it.
    """
    home = _home(config)
    folder = home or Path(config.run_dir or Path("runs", name))
    if not is_first_process():
        return Path(os.environ.get(RUN_DIR, folder)), False
    if not home and _take_new(folder):
        return folder, True
    if not home and config.existing == "number":
        return next(f for n in count(2) if _take_new(f := Path(f"{folder}-{n}"))), True
    # One that was killed before its first checkpoint is begun anew.
    if home or (config.existing == "resume" and (folder / LOCK.parent).is_dir()):
        if not _lock(folder):
            raise UserError(f"{folder} belongs to a process that is running: wait for its end")
        return folder, False
    resume = name_newest(
        folder / "checkpoints", "resume it with --existing resume or --ckpt_path {}, "
    )
    raise UserError(
        f"{folder} exists already: choose another --run_dir, {resume}or take the next free number "
        "with --existing number"
    )


def _home(config: Any) -> Path | None:
    """The folder of the run that is resumed, if its checkpoint lies in one."""
    checkpoints = Path(config.ckpt_path or "").parent
    if checkpoints.name != "checkpoints":
        return None
    folder = checkpoints.parent
    if config.run_dir and Path(config.run_dir).resolve() != folder.resolve():
        raise UserError(
            f"run_dir is {config.run_dir}, but --ckpt_path {config.ckpt_path} is resumed in its "
            f"own run folder: give --run_dir {shlex.quote(str(folder))} if the folder was moved, "
            "else leave run_dir out"
        )
    return folder


def _take_new(folder: Path) -> bool:
    """Take a folder in which no run has written yet; of several processes one succeeds."""
    # Whoever had it may have begun to train before it was locked here.
    if not (_is_free(folder) and _lock(folder)):
        return False
    if not _is_free(folder):
        release(folder)
        return False
    return True


def _lock(folder: Path) -> bool:
    """Lock a folder, and clear it of what killed processes have begun to write.

    The lock goes away with the process, however that ends. It is one of `lockf`: with `flock` the
    workers of a process that was killed would keep it.
    """
    if folder.resolve() in _LOCKS:
        return False
    (folder / LOCK).parent.mkdir(parents=True, exist_ok=True)
    lock = (folder / LOCK).open("w")
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # Whoever had it may meanwhile have removed the folder.
        mine = os.path.samestat(os.fstat(lock.fileno()), (folder / LOCK).stat())
    except (BlockingIOError, PermissionError, FileNotFoundError):
        mine = False
    except OSError:  # a file system without locks
        mine = True
    if mine:
        _LOCKS[folder.resolve()] = lock
        for place in (folder, folder / "checkpoints"):
            clear(place)
    else:
        lock.close()
    return mine


def release(folder: Path) -> None:
    """Release a folder, which may be gone."""
    if lock := _LOCKS.pop(folder.resolve(), None):
        with suppress(OSError):  # of a disk that has become read-only: the lock ends all the same
            (folder / LOCK).unlink()
        lock.close()


def _is_free(folder: Path) -> bool:
    """Whether there is nothing in a folder but what killed processes leave before they train."""
    found = {
        path.relative_to(folder)
        for pattern in ("*", "checkpoints/*")
        for path in folder.glob(pattern)
    }
    return all(path in (LOCK, LOCK.parent) or is_part(path) for path in found)


def limits(config: Any) -> dict[str, str]:
    """The settings of a run that say when it ends, as text."""
    return {key: str(config[key]) for key in LIMITS}


def _ended_with(folder: Path) -> Any:
    """The limits of the run that ended in a folder; None if none did, or it could not be tested."""
    try:
        return json.loads((folder / "results.json").read_text(encoding="utf-8")).get("limits", {})
    except (OSError, ValueError):
        return None


def resumable(config: Any) -> dict[str, Any]:
    """Read from the checkpoint to resume what is needed before Lightning reads it again.

    That is its step, its recipe, its bundle without weights, and its W&B id: the rest would stay in
    memory.
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
    return {key: checkpoint.get(key) for key in ("global_step", "recipe", "bundle", "wandb_id")}


def _check_rest(config: Any, checkpoint: dict[str, Any]) -> None:
    """Refuse to resume where nothing is left to train, unless its test is left."""
    folder = _home(config)
    before = _ended_with(folder) if folder else None
    ended, ended_so = before is not None, before == limits(config)
    loops = checkpoint["loops"]["fit_loop"]
    # The last epoch that was begun is over when its last batch is.
    over = loops["epoch_loop.batch_progress"]["is_last_batch"]
    epochs = loops["epoch_progress"]["total"]["started"] - (not over)
    for key, done in {"max_steps": checkpoint["global_step"], "max_epochs": epochs}.items():
        limit = getattr(config.trainer, key)
        # One that was killed in its test has nothing left to train, but has not ended.
        if limit is None or limit < 0 or limit > done or (limit == done and not ended_so):
            continue
        bundle = f"`{program()} average --help` says how to make a bundle of it"
        if ended and folder:
            bundle = f"its bundle is {folder / 'bundle'}"
        raise UserError(
            f"nothing is left to train: trainer.{key} is {limit}, and {config.ckpt_path} was saved "
            f"after {done}: give more with --trainer.{key}; {bundle}"
        )
