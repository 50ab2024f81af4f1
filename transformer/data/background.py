"""Work that holds up a process from a thread beside it, so that Ctrl-C is heard meanwhile."""

from collections.abc import Callable
from concurrent.futures import Future
from threading import Thread
from typing import TypeVar

Result = TypeVar("Result")
Fail = Callable[[BaseException], None]


def in_background(work: Callable[[Fail], Result], seconds: float | None = None) -> Result:
    """Runs a function in a thread of its own and waits for it.

    Args:
        work: Is given a function that ends the waiting at once with an error, for libraries that
            keep an error to themselves until they are done.
        seconds: To wait at most, None for ever. The thread is left alone when they are over.

    Raises:
        concurrent.futures.TimeoutError: The time is over.
    """
    done: Future[Result] = Future()

    def run() -> None:
        try:
            result = work(done.set_exception)
        except BaseException as error:
            if not done.done():
                done.set_exception(error)
        else:
            if not done.done():
                done.set_result(result)

    Thread(target=run, daemon=True).start()  # the process does not wait for it at its end
    return done.result(seconds)
