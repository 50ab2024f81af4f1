"""`transformer serve`: bundles behind an HTTP interface and a page."""

from collections.abc import Sequence

from transformer.commands.arguments import OptionParser
from transformer.interop import needs
from transformer.serving.options import Options

DESCRIPTION = """Serve bundles to browsers and programs of this machine, until Ctrl-C or SIGTERM:
a page at /, this project's interface under /v1, LibreTranslate's at /translate and /languages,
and a description of it all at /docs. Requests that come together are decoded together. To serve
other machines, give --host, and put a proxy in front that knows who may ask."""


def main(args: Sequence[str]) -> None:
    """Runs the command."""
    parser = OptionParser(prog="transformer serve", description=DESCRIPTION)
    parser.add(Options)
    options = Options(**vars(parser.parse_args(args)))
    for module in ("fastapi", "uvicorn"):
        needs(module, "serve")
    from transformer.serving.server import serve

    serve(options)
