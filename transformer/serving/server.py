"""The process: a port, uvicorn on it, and an end in which what was begun is answered."""

import os
import signal
import socket
import sys

import uvicorn

from transformer.errors import UserError
from transformer.kernels.process import keep_freed_memory
from transformer.serving.app import build
from transformer.serving.options import Options
from transformer.serving.service import load, name_of

GRACE = 30  # seconds for what was begun when the process is told to end


def serve(options: Options) -> None:
    """Serves bundles until SIGTERM or SIGINT.

    Raises:
        UserError: when the port is taken, or a bundle is at fault.
    """
    names = [name_of(folder) for folder in options.bundles]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"two bundles are named {name}: rename the folder of one")
    with listen(options.host, options.port) as listener:
        keep_freed_memory()
        services = [load(folder, options) for folder in options.bundles]
        config = uvicorn.Config(
            build(services, options.max_body), log_level="warning", lifespan="on",
            timeout_graceful_shutdown=GRACE,
        )  # fmt: skip
        server = uvicorn.Server(config)
        # uvicorn raises the signal again when it is done, which would be the exit code.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: setattr(server, "should_exit", True))
        # Who connects from now on waits until uvicorn runs.
        where = f"{', '.join(names)} at {address(listener)}"
        print(f"transformer: {where}", file=sys.stderr, flush=True)
        server.run([listener])


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        UserError: when the port is taken, or the host is none of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        number = getattr(error, "errno", None) or 0
        reason = os.strerror(number) if number > 0 else str(error)
        raise UserError(
            f"--host {host} --port {port} cannot be listened at ({reason}): give another, "
            "--port 0 for any free port"
        ) from None


def address(listener: socket.socket) -> str:
    """Where a socket listens, as a browser wants it."""
    host, port, *_ = listener.getsockname()
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/"
