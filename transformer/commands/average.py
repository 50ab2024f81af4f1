"""`transformer average`: checkpoints in, a bundle out."""

import shlex
from collections.abc import Sequence
from pathlib import Path

from transformer.commands.arguments import run_function
from transformer.errors import UserError
from transformer.training.checkpoint_files import average_checkpoints
from transformer.training.results import checkpoint_to_bundle
from transformer.training.runs import program


def main(args: Sequence[str]) -> None:
    """Runs the command."""
    run_function(average, args)


def average(checkpoints: Sequence[str], bundle: str) -> None:
    """Average the weights of checkpoints of one run (paper, section 6.1) and make a bundle of them.

    A single checkpoint, such as that of an interrupted run, becomes a bundle as it is.

    Args:
        checkpoints: Files that `transformer fit` wrote into checkpoints/.
        bundle: Folder to write, which must not exist.
    """
    if Path(bundle).exists():  # before the work, which may be long
        raise UserError(
            f"{bundle} exists already: the last argument is the new bundle's folder: choose "
            "another one, or move it away"
        )
    names = ", ".join(Path(path).name for path in checkpoints)
    count = len(checkpoints)
    weights = f"mean of {count} checkpoints ({names})" if count > 1 else names
    checkpoint_to_bundle(average_checkpoints(checkpoints), bundle, weights)
    print(f"{weights} -> {bundle}\nTry: {program()} translate {shlex.quote(bundle)} <text>")
