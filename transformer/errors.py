"""Errors that the user can mend are one line; all others keep their traceback."""


class UserError(ValueError):
    """One line that names the recipe key, or the file and line, then the value and the fix."""


def is_for_the_user(error: BaseException) -> bool:
    """Whether an error says what the user can mend: one of ours, or the system's about a file."""
    return isinstance(error, UserError) or (
        isinstance(error, OSError) and bool(error.filename and error.strerror)
    )


def message(error: Exception) -> str:
    """Puts what an error says on one line; for a file that is its name and the reason."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
