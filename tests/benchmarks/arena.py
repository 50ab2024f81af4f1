"""Starts contestants as processes, lets them take turns, and keeps what each turn gave."""

import json
import os
import statistics
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
#: Seconds that one answer may take, compilation in the first steps included.
PATIENCE = 1800
#: Processes that are alive at once: models that wait for their turn take memory.
TOGETHER = 4


class Failed(Exception):
    """A contestant cannot go on; the message says why."""


@dataclass
class Contestant:
    """One contestant in one setting.

    Args:
        name: its module in `contestants/`.
        setting: a word that the module knows.
        python: the Python that it runs with.
        job: what it is told at the start.
        folder: where its files go.
    """

    name: str
    setting: str
    python: str
    job: dict[str, Any]
    folder: Path
    #: What it said when ready, and in each turn.
    about: dict[str, Any] = field(default_factory=dict)
    turns: list[dict[str, Any]] = field(default_factory=list)
    #: Why it is not measured, if so.
    problem: str = ""
    _process: subprocess.Popen[str] | None = None

    @property
    def label(self) -> str:
        """Name and setting, as a file is called."""
        return f"{self.name}-{self.setting}"

    def command(self, job: Path) -> list[str]:
        """What is started."""
        return [self.python, "-m", f"benchmarks.contestants.{self.name}", str(job)]

    def start(self) -> None:
        """Starts the process and waits until it is ready.

        Raises:
            Failed: when it is not.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.label}.json"
        path.write_text(json.dumps({**self.job, "setting": self.setting}))
        self._log = self.folder / f"{self.label}.log"
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self.command(path.resolve()),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.folder,
                env=environment(self.job["threads"]),
            )
        self.about = self._answer()

    def ask(self, **command: Any) -> dict[str, Any]:
        """Has it do something.

        Raises:
            Failed: when it says so, or ends, or takes too long.
        """
        assert self._process is not None and self._process.stdin is not None
        with suppress(BrokenPipeError):  # the answer tells why
            print(json.dumps(command), file=self._process.stdin, flush=True)
        return self._answer()

    def stop(self) -> None:
        """Ends the process, if there is one."""
        if self._process is None:
            return
        process, self._process = self._process, None
        try:
            process.communicate('{"do": "quit"}\n', timeout=20)
        except (subprocess.TimeoutExpired, BrokenPipeError):
            process.kill()
            process.communicate()

    def _answer(self) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdout is not None
        timer = threading.Timer(PATIENCE, process.kill)
        timer.start()
        try:
            line = process.stdout.readline()
        finally:
            timer.cancel()
        if not line:
            raise Failed(self._last_words())
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it ended without a word"


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1


def environment(threads: int) -> dict[str, str]:
    """The environment variables of a contestant."""
    paths = [str(ROOT / "tests"), str(ROOT)]
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(paths),
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }


def groups(contestants: list[Contestant], together: int) -> list[list[Contestant]]:
    """At most `together` at a time, the first of all in each group: it is the others' measure."""
    first, others = contestants[0], contestants[1:]
    size = together - 1
    found = [[first, *others[start : start + size]] for start in range(0, len(others), size)]
    return found or [[first]]


def compete(
    contestants: list[Contestant],
    warm_up: Callable[[Contestant], Any],
    turn: Callable[[Contestant], dict[str, Any]],
    words: Callable[[dict[str, Any]], str],
    rounds: int,
    done: Callable[[Contestant], bool] = lambda contestant: False,
    together: int = TOGETHER,
) -> None:
    """Measures contestants in turns.

    What a turn gave goes to `turns` with its `round`, which no two groups share; `peak_mib` goes to
    `about`. One that fails is noted and left out from then on. A group starts afresh, its first
    one, too: so all of them are at the same place of the workload in each round. Each turn is
    printed when it ends.

    Args:
        contestants: the first one is the measure of the others.
        warm_up: what each does once before the rounds.
        turn: what each does once in every round.
        words: says what a turn gave.
        rounds: how often.
        done: tells who needs no further turn.
        together: processes that are alive at once.
    """
    for number, group in enumerate(groups(contestants, together)):
        try:
            for contestant in group:
                print(f"  {contestant.label} starts", flush=True)
                _try(contestant, Contestant.start)
                _try(contestant, warm_up)
            for shift in range(rounds):
                act = partial(_take, turn, number * rounds + shift)
                for contestant in rotated(group, shift):
                    if not (contestant.problem or done(contestant)) and _try(contestant, act):
                        told = f"round {shift + 1} of {rounds}: {words(contestant.turns[-1])}"
                        print(f"  {contestant.label}, {told}", flush=True)
            for contestant in group:
                _try(contestant, _remember)
        finally:
            for contestant in group:
                contestant.stop()


def rotated(group: list[Contestant], shift: int) -> list[Contestant]:
    """The same ones with another at the front, so that nobody always follows the same one."""
    shift %= len(group)
    return group[shift:] + group[:shift]


def _take(
    turn: Callable[[Contestant], dict[str, Any]], number: int, contestant: Contestant
) -> None:
    contestant.turns.append({**turn(contestant), "round": number})


def _remember(contestant: Contestant) -> None:
    contestant.about.update(contestant.ask(do="memory"))


def _try(contestant: Contestant, act: Callable[[Contestant], Any]) -> bool:
    """Whether a contestant did something; notes and prints why it did not."""
    if contestant.problem:
        return False
    try:
        act(contestant)
        return True
    except Failed as failure:
        contestant.problem = str(failure)
    except Exception:
        contestant.problem = traceback.format_exc().strip().splitlines()[-1]
    print(f"  {contestant.label} is left out: {contestant.problem}", flush=True)
    contestant.stop()
    return False


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median, lowest and highest."""
    values = sorted(values)
    return {"median": statistics.median(values), "min": values[0], "max": values[-1]}


def ratios(one: Contestant, other: Contestant, key: str) -> dict[str, float] | None:
    """How many times the rate of `other` that of `one` is, by round, then the median.

    Args:
        one: above the line.
        other: below the line.
        key: of a turn, a number per second.

    Returns:
        None where the two never met in a round.
    """
    theirs = {turn["round"]: turn[key] for turn in other.turns}
    both = [turn[key] / theirs[turn["round"]] for turn in one.turns if turn["round"] in theirs]
    return spread(both) if both else None
