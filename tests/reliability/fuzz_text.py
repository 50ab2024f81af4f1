"""Everything that reads text is given hundreds of cases of bad text.

Each case must end in a result that a simple reference confirms, or in an error of one line. Each
kind runs in a process of its own, so that a crash, a hang and hunger for memory are found, too.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import json
import resource
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import hypothesis
from hypothesis import strategies as st

from . import fuzz_corpora, fuzz_score, fuzz_serve, fuzz_tokens, fuzz_translate
from .cases import at_most
from .table import Row

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 30  # that a case may take
MEMORY = 6 << 30  # bytes that a process may ask for
KIND_SECONDS = 500  # shrinking included

#: Draws a case and checks it, in an empty folder.
Check = Callable[[Any, Path], None]


class Kind(NamedTuple):
    """What is tried, how often, and what it is compared with."""

    check: Check
    cases: int
    what: str
    how: str


KINDS = {
    "plain": Kind(fuzz_corpora.plain, 900, "line-aligned files", "lines split by hand"),
    "tsv": Kind(fuzz_corpora.tsv, 700, "TSV files", "fields split by hand"),
    "jsonl": Kind(fuzz_corpora.jsonl, 900, "JSONL files", "Python's json"),
    "parquet": Kind(fuzz_corpora.parquet, 900, "Parquet files", "pyarrow, whole"),
    "tokenizer": Kind(fuzz_tokens.tokenizer, 700, "vocabularies", "the text, in NFC"),
    "batches": Kind(fuzz_tokens.batches, 500, "token tables and batches", "brute force"),
    "lines": Kind(fuzz_translate.lines, 500, "translate: lines", "line by line"),
    "options": Kind(fuzz_translate.options, 400, "translate: options", "the number of lines"),
    "score": Kind(fuzz_score.score, 200, "score", "pair by pair"),
    "lists": Kind(fuzz_translate.lists, 400, "Translator: lists of anything", "line by line"),
    "serve": Kind(fuzz_serve.serve, 500, "serve: bodies", "status, number of texts"),
    "test": Kind(fuzz_score.test, 16, "test", "the number of lines"),
    "processes": Kind(fuzz_translate.processes, 10, "whole processes", "exit codes, lines"),
}


def rows(folder: Path, seed: int, share: float) -> Iterator[Row]:
    """Two kinds at a time."""

    def run(name: str) -> Row:
        kind = KINDS[name]
        (own := folder / name).mkdir()
        tried, lost = _in_process(own, name, seed, max(1, round(kind.cases * share)))
        return Row(f"fuzz of {kind.what}", tried, lost, kind.how)

    with ThreadPoolExecutor(2) as pool:
        yield from pool.map(run, KINDS)


def _in_process(folder: Path, name: str, seed: int, cases: int) -> tuple[int, int]:
    """Cases that were tried, and those that were lost; says on standard error what they were."""
    command = [sys.executable, "-m", "tests.reliability.fuzz_text", name, str(seed), str(cases)]
    with contextlib.suppress(subprocess.TimeoutExpired):
        done = subprocess.run(
            [*command, str(folder)], cwd=ROOT, capture_output=True, timeout=KIND_SECONDS
        )
        if done.returncode in (0, 1):
            print(done.stderr.decode(), end="", file=sys.stderr)
            found = json.loads(done.stdout.splitlines()[-1])
            return found["tried"], found["lost"]
        print(done.stderr.decode()[-5000:], file=sys.stderr)
    print(f"died, or took too long: {' '.join(command)} FOLDER", file=sys.stderr)
    return cases, 1


def attempt(
    kind: Kind, folder: Path, cases: int, seed: int | None = None, limit: bool = False
) -> tuple[int, str]:
    """Tries cases of a kind until one fails; how many, and the smallest that failed.

    Args:
        kind: What is tried.
        folder: To work in.
        cases: How many.
        seed: Of the cases; always the same ones if it is None.
        limit: Stop a case that takes too long.
    """
    tried = 0

    @hypothesis.settings(
        max_examples=cases, deadline=None, database=None, derandomize=seed is None,
        suppress_health_check=[*hypothesis.HealthCheck], print_blob=False,
        # To explain a failure traces each line, imports included, for minutes.
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
    )  # fmt: skip
    @hypothesis.given(st.data())
    def case(data: Any) -> None:
        nonlocal tried
        stopped = _stopped() if limit else contextlib.nullcontext()
        with tempfile.TemporaryDirectory(dir=folder) as own, stopped:
            kind.check(data, Path(own))
        tried += 1  # not where hypothesis has given a case up while it was drawn

    try:
        (hypothesis.seed(seed)(case) if seed is not None else case)()
    except BaseException as error:
        return tried + 1, "".join(traceback.format_exception(error))
    return tried, ""


@contextlib.contextmanager
def _stopped() -> Iterator[None]:
    """Ends a case that takes too long; and the process, where it does not listen."""
    faulthandler.dump_traceback_later(2 * SECONDS, exit=True)
    try:
        with at_most(SECONDS):
            yield
    finally:
        faulthandler.cancel_dump_traceback_later()


def main() -> int:
    """Tries one kind in this process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("seed", type=int)
    parser.add_argument("cases", type=int)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY, MEMORY))
    faulthandler.enable()
    kind, folder = KINDS[options.kind], options.folder
    tried, problem = attempt(kind, folder, options.cases, options.seed, limit=True)
    if problem:
        print(
            f"{options.kind}, seed {options.seed}, {options.cases} cases:\n{problem}",
            file=sys.stderr,
        )
    print(json.dumps({"tried": min(tried, options.cases), "lost": int(bool(problem))}))
    return int(bool(problem))


if __name__ == "__main__":
    sys.exit(main())
