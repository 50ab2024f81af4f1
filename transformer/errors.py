"""Errors that the user can mend are one line; all others keep their traceback."""

from collections.abc import Iterable
from difflib import get_close_matches


class UserError(ValueError):
    """One line that names the recipe key, or the file and line, then the value and the fix."""


def is_for_the_user(error: BaseException) -> bool:
    """Says whether the user can mend it: one of ours, or the system's about a file it names.

    No such file, no permission or a full disk is nobody's bug; a library's error may be one.
    """
    return isinstance(error, UserError) or (
        isinstance(error, OSError) and bool(error.filename and error.strerror)
    )


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Ends a message about a wrong name with the valid one most like it, if one is like it at all.

    Args:
        name: that was given.
        known: that there are.
        cutoff: how much alike they must be, from 0 to 1.
    """
    near = get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f", the nearest is {near[0]!r}" if near else ""


def message(error: Exception) -> str:
    """Puts what an error says on one line; for a file that is its name and the reason."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
