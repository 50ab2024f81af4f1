"""The surroundings of a run: its name, its precision, the libraries, the program's own name."""

import logging
import os
import shlex
import shutil
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer

from transformer.errors import UserError
from transformer.kernels import refuse_emulated, trains_in_bfloat16
from transformer.training.logging import of_all_processes

#: Environment variables, in some of which whoever starts the processes numbers them.
PROCESS_NUMBERS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


def is_first_process() -> bool:
    """Whether this is the process that writes, as far as can be known before they meet."""
    return all(os.environ.get(name, "0") == "0" for name in PROCESS_NUMBERS)


def speaks_for_its_machine() -> bool:
    """Whether this is the first process of its machine, or the only one."""
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "SLURM_LOCALID"))


def recipe_name(config: Any, checkpoint: dict[str, Any]) -> str:
    """The recipe's path below recipes/, without .yaml; its stem where there is no such folder.

    The run folder is named so, and stays inside of runs/ whoever wrote the checkpoint.
    """
    if checkpoint:
        return _inside(*Path(str(checkpoint["recipe"]["name"])).parts)
    if not config.config:
        return "run"
    path = Path(str(config.config[-1]))
    parts = path.with_suffix("").parts
    if "recipes" in parts[:-1]:
        return _inside(*parts[len(parts) - parts[::-1].index("recipes") :])
    return path.parent.name if path.stem == "config" else path.stem


def _inside(*parts: str) -> str:
    return "/".join(part for part in parts if part not in ("..", "/")) or "run"


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


class SameStart(Callback):
    """Refuses processes that chose different precisions, or would go on from different states.

    Each chooses before it can ask the others: by its own machine, and by the files that it sees.
    """

    def __init__(self, checkpoint: str | None) -> None:
        self.checkpoint = checkpoint

    def setup(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Compare them, as soon as the processes know each other."""
        found = of_all_processes(trainer, (str(trainer.precision), self.checkpoint))
        precisions, checkpoints = ({*values} for values in zip(*found, strict=True))
        if len(precisions) > 1:
            raise UserError(
                f"trainer.precision is {' in some processes and '.join(sorted(precisions))} in "
                "others, whose machines differ: give all of them --trainer.precision 32-true"
            )
        if len(checkpoints) > 1:
            raise UserError(
                f"this process goes on from {self.checkpoint or 'the beginning'}, the first one "
                f"from {found[0][1] or 'the beginning'}: all of them must see the same run folder; "
                "if they do by now, give the same command again"
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
    if speaks_for_its_machine():  # our own messages, such as what takes long
        ours = logging.getLogger("transformer")
        ours.setLevel(logging.INFO)
        ours.handlers = [logging.StreamHandler(sys.stdout)]
    warnings.filterwarnings("ignore", module=r"lightning(\.|$)")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
