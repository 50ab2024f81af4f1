"""`transformer push`: a bundle goes to the Hugging Face hub."""

from collections.abc import Sequence
from pathlib import Path

from transformer import __version__, hub
from transformer.bundle import load_bundle
from transformer.commands.arguments import run_function
from transformer.errors import UserError


def main(args: Sequence[str]) -> None:
    """Runs the command."""
    run_function(push, args)


def push(bundle: str, name: str, *, private: bool = False, revision: str | None = None) -> None:
    """Upload a bundle to the Hugging Face hub.

    All commands that take a bundle take it from there as org/name. `hf auth login`, or HF_TOKEN in
    the environment, says who you are.

    Args:
        bundle: Folder that `transformer fit` or `transformer average` wrote.
        name: Where to, as org/name; it is made if it is not there.
        private: Let its owners alone see it, if it is made.
        revision: Branch, which is made if it is not there; the main one if left out.
    """
    if not Path(bundle).is_dir():
        raise UserError(f"{bundle} is no folder: a bundle is pushed from here")
    load_bundle(bundle)  # a damaged one stays here
    print(hub.push(bundle, name, private, revision, f"Bundle of transformer {__version__}"))
