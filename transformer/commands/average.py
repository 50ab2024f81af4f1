"""`transformer average`: checkpoints in, a bundle out."""

from collections.abc import Sequence
from pathlib import Path

from transformer.commands.arguments import OptionParser
from transformer.errors import UserError
from transformer.training.checkpoints import average_checkpoints
from transformer.training.report import checkpoint_to_bundle
from transformer.training.runs import program

DESCRIPTION = """Average the weights of checkpoints of one run (paper, section 6.1) and make a
bundle of them. A single checkpoint, such as that of an interrupted run, becomes a bundle as it
is."""


def main(args: Sequence[str]) -> None:
    """Runs the command."""
    parser = OptionParser(prog="transformer average", description=DESCRIPTION)
    parser.add(average, {"checkpoints": "+", "bundle": None})
    average(**vars(parser.parse_args(args)))


def average(checkpoints: Sequence[str], bundle: str) -> None:
    """Makes a bundle of checkpoints.

    Args:
        checkpoints: Files that `transformer fit` wrote into checkpoints/.
        bundle: Folder to write, which must not exist.

    Raises:
        UserError: If the checkpoints do not belong together, or the folder exists.
    """
    if Path(bundle).exists():  # before the work, which may be long
        raise UserError(
            f"{bundle} exists already: the last argument is the new bundle's folder: choose "
            "another one, or move it away"
        )
    checkpoint = average_checkpoints(checkpoints)
    checkpoint_to_bundle(checkpoint, bundle, described(checkpoints))
    print(f"{described(checkpoints)} -> {bundle}\nTry: {program()} translate {bundle} <text>")


def described(checkpoints: Sequence[str]) -> str:
    """Says what the weights are."""
    names = ", ".join(Path(path).name for path in checkpoints)
    return f"mean of {len(checkpoints)} checkpoints ({names})" if len(checkpoints) > 1 else names
