"""Whose fault an error is: only what the user can mend is said in one line."""

import dis

RAISE = dis.opmap["RAISE_VARARGS"]


def is_for_the_user(error: BaseException) -> bool:
    """Whether an error says in one line what the user can mend.

    These are the errors that a `raise` of this package made, which say what to do, and those of
    the system about a file. All others, a library's or our own mistakes, keep their traceback.
    """
    if isinstance(error, OSError) and error.filename and error.strerror:
        return True
    trace = error.__traceback__
    if not isinstance(error, ValueError | OSError) or trace is None:
        return False
    while trace.tb_next:
        trace = trace.tb_next
    code, ours = trace.tb_frame.f_code.co_code, trace.tb_frame.f_globals.get("__name__", "")
    return code[trace.tb_lasti] == RAISE and ours.startswith("transformer.")


def message(error: Exception) -> str:
    """Puts what an error says on one line; for a file that is its name and the reason."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
