"""`transformer export`: a bundle in, a folder for another package out."""

from collections.abc import Sequence
from importlib import import_module

from transformer.commands.arguments import OptionParser
from transformer.errors import UserError, nearest

DESCRIPTION = """Write a bundle in a form that {about}. Both translate 64 sentences, and the folder
is kept if they translate alike; what was compared stands in its parity.json."""
#: Format -> module of interop and function, and who reads what it writes.
FORMATS = {
    "hf": ("marian_export", "export_hf", "transformers of Hugging Face loads (a Marian model)"),
    "ctranslate2": ("ctranslate2_export", "export_ctranslate2", "CTranslate2 loads"),
    "onnx": ("onnx", "export_onnx", "ONNX Runtime and its like read"),
}
HELP = f"""usage: transformer export <format> <bundle> <folder> [--<option> <value> ...]

Write a bundle in the form of another package, held to translate alike.

formats:
{chr(10).join(f"  {name:<13}what {about}" for name, (_, _, about) in FORMATS.items())}

`transformer export <format> --help` lists the options of a format."""


def main(args: Sequence[str]) -> None:
    """Runs the command.

    Raises:
        UserError: If the format is unknown, or the bundle cannot have it.
    """
    name = args[0] if args else "--help"
    if name in ("-h", "--help"):
        print(HELP)
        return
    if name not in FORMATS:
        hint = nearest(name, FORMATS) or f", there are {', '.join(FORMATS)}"
        raise UserError(f"no format {name!r}{hint}: the format comes before the bundle")
    module, function, about = FORMATS[name]
    export = getattr(import_module(f"transformer.interop.{module}"), function)
    description = DESCRIPTION.format(about=about)
    parser = OptionParser(prog=f"transformer export {name}", description=description)
    parser.add(export)
    options = parser.parse_args(args[1:])
    export(**vars(options))
    print(f"{options.bundle} -> {options.folder}")
