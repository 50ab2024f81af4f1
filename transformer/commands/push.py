"""`transformer push`: a bundle goes to the Hugging Face hub."""

from collections.abc import Sequence

from transformer import __version__
from transformer.bundle import load_bundle
from transformer.commands.arguments import OptionParser
from transformer.hub import push as upload

DESCRIPTION = """Upload a bundle to the Hugging Face hub, from which `transformer translate
<org/name>` and all other commands that take a bundle can use it. `hf auth login`, or the
environment's HF_TOKEN, says who you are."""


def main(args: Sequence[str]) -> None:
    """Runs the command."""
    parser = OptionParser(prog="transformer push", description=DESCRIPTION)
    parser.add(push, {"bundle": None, "name": None})
    push(**vars(parser.parse_args(args)))


def push(bundle: str, name: str, private: bool = False, revision: str | None = None) -> None:
    """Uploads a bundle.

    Args:
        bundle: Folder that `transformer fit` or `transformer average` wrote.
        name: Where to, as org/name; it is made if it is not there.
        private: Let its owners alone see it, if it is made.
        revision: Branch, which is made if it is not there; the main one if left out.

    Raises:
        UserError: If it is no bundle, or the hub does not answer or refuses.
    """
    load_bundle(bundle)  # a damaged one stays here
    print(upload(bundle, name, private, revision, f"Bundle of transformer-recipes {__version__}"))
