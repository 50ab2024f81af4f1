"""The command table: imports only the command asked for, and reports errors in one line."""

import contextlib
import io
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from traceback import walk_stack
from types import ModuleType

from transformer import __version__
from transformer.errors import Done, is_for_the_user, message, nearest

COMMANDS = {
    "fit": "train a model from a recipe, test it, and leave a bundle",
    "test": "score a bundle on a test set: loss, perplexity, BLEU, chrF",
    "score": "log-probability of given translations, one for each line",
    "translate": "translate text, files or standard input with a bundle",
    "serve": "serve bundles: a page, this project's interface and LibreTranslate's",
    "average": "average checkpoints, or take a single one, and make a bundle of it",
    "push": "upload a bundle to the Hugging Face hub",
    "import": "make a bundle of a Marian model of Hugging Face (OPUS-MT)",
    "export": "write a bundle in the form of another package",
    "verify-resume": "kill a run again and again, and compare it with one that was left alone",
    "reproduce": "train a recipe whose results are known, watch its curve, note what came out",
    "table": "write the results of reproduced recipes into a Markdown file, with a plot",
}
#: Modules of the commands whose names Python keeps for itself.
MODULES = {"import": "import_model", "verify-resume": "verify_resume"}

USAGE = "usage: transformer <command> [options]"
HELP = f"""{USAGE}

Trains the Transformer of "Attention Is All You Need" from recipes, and translates with it.

commands:
{chr(10).join(f"  {name:<14}{line}" for name, line in COMMANDS.items())}

options:
  --help     this text; `transformer <command> --help` for the options of a command
  --version  the version

With TRANSFORMER_DEBUG=1 in the environment an error shows where it was raised."""

INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended
PIPE_CLOSED = 141


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: The arguments after the program's name; those of the process if None.

    Returns:
        The exit code: 0, or 2 when the arguments or the input are at fault.

    Raises:
        Exception: When something else is: the traceback says where.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    if sys.stderr is None:  # closed: `print` would take the standard output in its place
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):  # a terminal may lack a character, as of Latin-1
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with interrupts_everywhere():
            code = run(args)
        if sys.stdout:  # not where it is closed
            sys.stdout.flush()
        return code
    except Done as done:
        print(done, end="\n" if str(done) else "", flush=True)
        return 0
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # whoever read the output has had enough
        give_up_output()
        return PIPE_CLOSED
    except Exception as error:
        if os.environ.get("TRANSFORMER_DEBUG", "0") not in ("", "0") or not is_for_the_user(error):
            raise
        give_up_output()
        return fail(message(error))


def give_up_output() -> None:
    """Writes what is left for the standard output, or forgets it: Python would complain at exit."""
    try:
        if sys.stdout:
            sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextlib.contextmanager
def interrupts_everywhere() -> Iterator[None]:
    """Lets a signal count that came inside of a `__del__`: what is raised there Python only prints.

    A progress bar has one. The signal is sent again when that is over.
    """
    others = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        match unraisable.exc_value:
            case KeyboardInterrupt():
                signum = int(signal.SIGINT)
            case SystemExit(code=int(code)) if code > 128:
                signum = code - 128
            case _:
                return others(unraisable)
        threading.Thread(target=send_again, args=(signum,), daemon=True).start()

    def send_again(signum: int) -> None:
        main_thread = threading.main_thread().ident or 0
        is_there = True
        while is_there:  # in the hook, where it would be lost, too
            time.sleep(0.05)
            stack = walk_stack(sys._current_frames()[main_thread])
            is_there = any(frame.f_code is hook.__code__ for frame, _ in stack)
        signal.pthread_kill(main_thread, signum)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = others


def run(args: list[str]) -> int:
    """Runs the command that the first argument names; returns its exit code, 0 if it gives none."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(HELP)
        return 0 if args else 2
    if args[0] == "--version":
        print(f"transformer {__version__}")
        return 0
    if args[0] not in COMMANDS:
        return fail(unknown_command(args[0]))
    let_waiting_threads_sleep()
    return int(module_of(args[0]).main(args[1:]) or 0)


def let_waiting_threads_sleep() -> None:
    """Lets torch's threads wait for each other awake for a moment alone; call it before its import.

    By default each is awake for milliseconds. Beside a program of another session on one of two
    cores the quickstart trained with 450 target tokens/s, so with 5,800; alone with 17,000 both.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def module_of(command: str) -> ModuleType:
    """The module of a command."""
    return import_module(f"transformer.commands.{MODULES.get(command, command)}")


def unknown_command(name: str) -> str:
    """Says that there is no such command, and which one is nearest."""
    hint = nearest(name, COMMANDS, cutoff=0.5) or f", there are {', '.join(COMMANDS)}"
    return f"no command {name!r}{hint}"


def fail(text: str) -> int:
    """Prints an error and returns the exit code for it."""
    print(f"transformer: error: {text}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
