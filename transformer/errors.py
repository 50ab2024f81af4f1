"""Errors that the user can mend are one line; all others keep their traceback."""

import errno
from collections.abc import Iterable
from difflib import SequenceMatcher

#: Errors of the system that name no file when it is open already.
OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EFBIG, errno.ESTALE}


class UserError(ValueError):
    """One line that names the recipe key, or the file and line, then the value and the fix."""


class Done(Exception):
    """There is nothing to do: the command says so, if there is something to say, and succeeds."""


def is_for_the_user(error: BaseException) -> bool:
    """Says whether the user can mend it: one of ours, or the system's about a file or a disk.

    No such file, no permission or a full disk is nobody's bug; a library's error may be one.
    """
    return isinstance(error, UserError) or (
        isinstance(error, OSError)
        and bool(error.strerror and (error.filename or error.errno in OF_THE_DISK))
    )


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Ends a message about a wrong name with the valid one most like it, if one is like it at all.

    Args:
        name: that was given; of a dotted one the last part counts twice, as groups are long.
        known: that there are.
        cutoff: how much alike they must be, from 0 to 1.
    """

    def likeness(other: str) -> float:
        pairs = (name, other), (name.rpartition(".")[2], other.rpartition(".")[2])
        return sum(SequenceMatcher(None, *pair).ratio() for pair in pairs) / len(pairs)

    near = max(known, key=likeness, default="")
    return f", the nearest is {near!r}" if near and likeness(near) >= cutoff else ""


def message(error: Exception) -> str:
    """Puts what an error says on one line; for a file that is its name and the reason."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(str(error).split()) or type(error).__name__
