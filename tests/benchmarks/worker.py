"""The contestants' side of the benchmark: the workload, and the conversation with the arena.

A contestant is a module of `contestants/` with a function `build(job)` that returns its handlers
and what it says of itself, and ends with `run(build)` below `if __name__ == "__main__"`. The arena
starts it with the Python of its environment; by hand, from the checkout:

    PYTHONPATH=tests python -m benchmarks.contestants.<name> job.json

It is run as a module because `contestants/` holds files that are named as the libraries they use.
This file runs in foreign environments: it needs the standard library and numpy alone.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Ids = list[list[int]]
Handlers = dict[str, Callable[[dict[str, Any]], dict[str, Any]]]


class Batch(NamedTuple):
    """Padded pairs; padding is 0. All int64.

    src: (B, S), EOS last. src_lengths: (B,). tgt_in: (B, T), BOS first. tgt_out: (B, T), EOS last.
    tgt_lengths: (B,), BOS or EOS included.
    """

    src: Ints
    src_lengths: Ints
    tgt_in: Ints
    tgt_out: Ints
    tgt_lengths: Ints

    @property
    def src_tokens(self) -> int:
        """Real source tokens, EOS included."""
        return int(self.src_lengths.sum())

    @property
    def tgt_tokens(self) -> int:
        """Real target tokens, EOS included."""
        return int(self.tgt_lengths.sum())


class Workload:
    """The token ids and batches that every contestant gets.

    Args:
        path: the file that `workload.py` wrote.

    `train` and `val` are lists of `Batch`; `test_src` and `test_tgt` lists of lists of ids, EOS
    last, in the order of the text; `vocab` the number of ids; `pad`, `bos`, `eos`, `unk` ids.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        with np.load(path) as file:
            arrays = dict(file)
        self.vocab, self.pad, self.bos, self.eos, self.unk = (
            int(arrays[name]) for name in ("vocab", "pad", "bos", "eos", "unk")
        )
        self.train = self._batches(arrays, "")
        self.val = self._batches(arrays, "val_")
        self.test_src: Ids = [row.tolist() for row in split(arrays, "test_src")]
        self.test_tgt: Ids = [row.tolist() for row in split(arrays, "test_tgt")]

    def rounds(self) -> Iterator[Batch]:
        """The training batches, again and again."""
        return cycle(self.train)

    def _batches(self, arrays: dict[str, NDArray[Any]], prefix: str) -> list[Batch]:
        src, tgt = (split(arrays, f"{prefix}{side}") for side in ("src", "tgt"))
        return [
            self._batch([src[i] for i in rows], [tgt[i] for i in rows])
            for rows in split(arrays, f"{prefix}batch", "rows")
        ]

    def _batch(self, src: list[NDArray[Any]], tgt: list[NDArray[Any]]) -> Batch:
        shifted = [np.concatenate([[self.bos], row[:-1]]) for row in tgt]
        lengths = [np.array([len(row) for row in side], np.int64) for side in (src, tgt)]
        return Batch(
            self._padded(src), lengths[0], self._padded(shifted), self._padded(tgt), lengths[1]
        )

    def _padded(self, rows: list[NDArray[Any]]) -> Ints:
        padded = np.full((len(rows), max(map(len, rows))), self.pad, np.int64)
        for place, row in zip(padded, rows, strict=True):
            place[: len(row)] = row
        return padded


def split(arrays: dict[str, NDArray[Any]], name: str, values: str = "") -> list[NDArray[Any]]:
    """The lists that lie end to end in `<name>` (or `<name>_<values>`), up to `<name>_ends`."""
    flat = arrays[f"{name}_{values}" if values else name]
    return np.split(flat, arrays[f"{name}_ends"][:-1])


def by_length(sentences: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Numbers of the sentences, longest first, in batches of `size`."""
    order = sorted(range(len(sentences)), key=lambda i: -len(sentences[i]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def translated(seconds: float, src: Ids, found: Ids) -> dict[str, Any]:
    """The answer to `translate`.

    Args:
        seconds: what it took, sorting by length included.
        src: source ids, EOS last.
        found: the best hypotheses in the order of `src`, without start and end symbol.
    """
    tokens = {"src_tokens": sum(map(len, src)), "tgt_tokens": sum(len(ids) + 1 for ids in found)}
    return {"seconds": seconds, **tokens, "ids": found}


def peak_mib() -> float:
    """The most memory taken so far: of the tensors on a GPU, else of this process and its children.

    Off Linux the children are left out.
    """
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available() and torch.cuda.is_initialized():
        return float(torch.cuda.max_memory_allocated()) / 2**20
    if Path("/proc/self/status").exists():
        return sum(map(_high_water, _family(os.getpid()))) / 2**10
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)


def _family(pid: int) -> Iterator[int]:
    yield pid
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in listed.read_text().split():
            yield from _family(int(child))


def _high_water(pid: int) -> int:
    """VmHWM in KiB; 0 of a process that has just ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def run(build: Callable[[dict[str, Any]], tuple[Handlers, dict[str, Any]]]) -> None:
    """Builds a contestant from the job file named on the command line, and serves.

    Args:
        build: takes the job; returns the handlers and what is said when ready: `versions`,
            `parameters` and `setting`, in words for the table.
    """
    out = claim_stdout()
    try:
        handlers, ready = build(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    except Exception as error:
        _say(out, _failure(error))
        return
    serve(handlers, ready, out)


def serve(handlers: Handlers, ready: dict[str, Any], out: TextIO | None = None) -> None:
    """Says `ready`, then answers one command a line until `quit` or the end of the input.

    Args:
        handlers: from the name of a command to the function that takes the whole command and
            returns the answer. `memory` need not be among them.
        ready: what the contestant says of itself.
        out: where the answers go, from `claim_stdout`.
    """
    out = out or claim_stdout()
    handlers = {"memory": lambda _: {"peak_mib": peak_mib()}, **handlers}
    _say(out, {"ready": True, **ready})
    for line in iter(sys.stdin.readline, ""):
        command = json.loads(line)
        if command["do"] == "quit":
            return
        try:
            _say(out, handlers[command["do"]](command))
        except Exception as error:
            _say(out, _failure(error))


def claim_stdout() -> TextIO:
    """Takes the standard output for the answers; whatever else is printed goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what is written below Python goes there, too
    sys.stdout = sys.stderr
    return out


def _failure(error: Exception) -> dict[str, Any]:
    traceback.print_exc()
    return {"error": f"{type(error).__name__}: {error}"}


def _say(out: TextIO, message: dict[str, Any]) -> None:
    print(json.dumps(message), file=out, flush=True)
