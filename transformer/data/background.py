"""Work that holds up a process from a thread beside it, so that Ctrl-C is heard meanwhile."""

from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from threading import Thread
from typing import TypeVar

Result = TypeVar("Result")
Fail = Callable[[BaseException], None]


def in_background(work: Callable[[Fail], Result], seconds: float | None = None) -> Result:
    """Runs a function in a thread of its own and waits for it, for ever or some seconds.

    Args:
        work: Is given a function that ends the waiting at once with an error, for libraries that
            keep an error to themselves until they are done.
        seconds: To wait at most. The thread is left alone when they are over.

    Raises:
        concurrent.futures.TimeoutError: The time is over.
    """
    done: Future[Result] = Future()

    def run() -> None:
        with suppress(InvalidStateError):  # nobody waits any more
            try:
                done.set_result(work(done.set_exception))
            except BaseException as error:
                done.set_exception(error)

    Thread(target=run, daemon=True).start()  # the process does not wait for it at its end
    return done.result(seconds)
