"""Files and folders appear under their names when they are whole, or not at all."""

import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from transformer.errors import UserError

PART = ".part"


def part(path: Path) -> Path:
    """The name under which a file or a folder grows, beside the place where it shall be."""
    # Not the number of the process: in two containers that share a folder it may be the same.
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")


def is_part(path: Path) -> bool:
    """Whether a name is one of `part`; a process that was killed leaves such files behind."""
    return path.name.startswith(".") and path.name.endswith(PART)


@contextmanager
def whole(path: Path) -> Iterator[IO[bytes]]:
    """Opens a file that takes its place when it is whole; what was there before stays until then.

    Raises:
        OSError: It cannot be written, for example since the disk is full; names `path`.
    """
    growing = part(path)
    path.parent.mkdir(parents=True, exist_ok=True)  # its error names the folder
    try:
        with growing.open("xb") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        growing.replace(path)
        _flush(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):  # of a disk that has become read-only: the first error says more
            growing.unlink()


def _flush(path: Path) -> None:
    """Writes to the disk what the system has of a file, or which names there are in a folder."""
    opened = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems do it for files alone
            os.fsync(opened)
    finally:
        os.close(opened)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Makes a folder that takes its name when it is whole, and that an error takes away.

    Args:
        path: Where the folder shall be; it must not exist.

    Raises:
        UserError: It exists already.
        OSError: It cannot be written, for example since the disk is full.
    """
    if path.exists():
        raise UserError(f"{path} exists already: choose another folder, or move it away")
    growing = part(path)
    growing.mkdir(parents=True)
    try:
        yield growing
        for written in growing.rglob("*"):
            _flush(written)
        growing.rename(path)
        _flush(path.parent)
    except BaseException as error:
        shutil.rmtree(growing, ignore_errors=True)
        told = re.search(r"\(os error (\d+)\)", str(error))  # so says safetensors
        number = int(told[1]) if told else getattr(error, "errno", None)
        if number and not getattr(error, "filename", None):  # a full disk does not say which file
            raise OSError(number, os.strerror(number), str(path)) from error
        raise


def write(path: Path, text: str) -> None:
    """Writes a UTF-8 file, whole or not at all."""
    with whole(path) as stream:
        stream.write(text.encode())


def clear(folder: Path, idle: float = 0) -> None:
    """Removes from a folder, if there is one, what killed processes have begun to write.

    Where others may be writing, `idle` is the seconds for which nothing was added.
    """
    for path in folder.glob(f".*{PART}"):
        with suppress(OSError):  # another process clears up, too
            if time.time() - path.stat().st_mtime >= idle:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
