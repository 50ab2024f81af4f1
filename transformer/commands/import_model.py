"""`transformer import`: a model of another package in, a bundle out."""

import shlex
from collections.abc import Sequence

from transformer.commands.arguments import OptionParser
from transformer.interop.marian_import import import_marian
from transformer.training.runs import program

DESCRIPTION = """Make a bundle of a Marian model of Hugging Face, such as those of OPUS-MT. Both
translate 64 sentences, and the bundle is kept if they translate alike; what was compared stands in
its parity.json. A run begins from it with --model.init_from."""


def main(args: Sequence[str]) -> None:
    """Runs the command."""
    parser = OptionParser(prog="transformer import", description=DESCRIPTION)
    parser.add(import_marian)
    options = parser.parse_args(args)
    import_marian(**vars(options))
    print(f"{options.source} -> {options.bundle}")
    print(f"Try: {program()} translate {shlex.quote(options.bundle)} <text>")
