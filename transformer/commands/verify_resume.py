"""`transformer verify-resume`: kill a run again and again, and show that nothing is lost."""

from __future__ import annotations

import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from transformer.commands.arguments import Peek
from transformer.commands.fit import default_network
from transformer.commands.keys import parser_of
from transformer.commands.lives import BATCH, PHASES, Aim, Life, live
from transformer.commands.story import Story, count_tensors
from transformer.errors import UserError
from transformer.training.checks import check

DESCRIPTION = """Train some steps of a recipe in a temporary folder, then again with the process
killed (SIGKILL) at random moments and started again until it ends; compare the pairs of every
batch, every loss, every validation, the final weights and scores, bit for bit on a CPU. The exit
code is 1 if anything differs."""
EPILOG = """All further options are those of `transformer fit`, such as --config <recipe> and
--trainer.devices 2. Text is prepared anew, since kills fall into that, too."""
#: What `fit` imports as late as it can: a process that is forked need not do it again.
WARM = ("pandas", "transformer.evaluation.plots", "transformer.training.tracking")
ON_GPU = 1e-2  # relative: there sums have no order


def main(args: Sequence[str]) -> int:
    """Runs the command; the exit code is 0 if the run resumed exactly."""
    parser = Peek(
        prog="transformer verify-resume", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False
    )
    parser.add_argument("--steps", type=int, default=40, help="optimizer steps (%(default)s)")
    parser.add_argument("--kills", type=int, default=6, help="kills altogether (%(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of the moments of the kills")
    given, options = parser.parse_known_args(args)
    with tempfile.TemporaryDirectory(prefix="verify-resume-") as folder:
        verdict = verify(options, Path(folder), given.steps, given.kills, given.seed)
    print(verdict)
    return 1 if verdict.difference else 0


@dataclass
class Verdict:
    """What came out, in one line as text; `difference` is the first thing that differs, if any."""

    steps: int
    tolerance: float = 0.0
    batches: int = 0
    tensors: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    difference: str | None = None

    def __str__(self) -> str:
        fell = ", ".join(f"{self.kills[p]} {p}" for p in PHASES if self.kills[p])
        total = self.kills.total()
        kills = f"{total} kill{'s' * (total != 1)} ({fell or 'none'})"
        if self.difference:
            return f"did not resume exactly after {kills}: {self.difference}"
        how = f"to {self.tolerance:g}" if self.tolerance else "bit for bit"
        return (
            f"resumed exactly: {kills}, {self.steps} steps, {self.batches:,} batches, "
            f"{self.tensors:,} tensors equal {how}"
        )


def verify(args: Sequence[str], folder: Path, steps: int, kills: int, seed: int) -> Verdict:
    """Compares a run that is killed so many times with the same run that is not.

    Args:
        args: The arguments after `fit`.
        folder: A new or empty folder for both runs.
        steps: Optimizer steps of the run.
        kills: How many lives are to be killed, in all phases about alike often.
        seed: Decides when.

    Raises:
        UserError: The run does not come to its end when nobody kills it.
    """
    config = parser_of(default_network(args)).parse_args(args)
    check(config)
    folder.mkdir(parents=True, exist_ok=True)
    for module in WARM:
        import_module(module)
    # A unigram vocabulary is learned a little differently each time: the runs share one.
    cache = folder / "cache" if config.data.tokenizer.kind == "unigram" else None
    options = [*args, *short(args, config, steps)]
    ranks, log = _processes(config), folder / "log.txt"

    def lived(story: Story, aim: Aim | None = None) -> Life:
        where = cache or story.folder.with_name("cache")
        places = [f"--run_dir={story.folder}", f"--data.cache={where}", "--existing=resume"]
        return live([*options, *places], ranks, log, aim)

    verdict, straight = Verdict(steps), Story(folder / "straight" / "run")
    life = lived(straight)
    if life.code:
        raise UserError(f"the run stops when nobody kills it: {life.words}")
    straight.tolerance = verdict.tolerance = 0.0 if life.device == "cpu" else ON_GPU
    straight.moments.update(life.moments)
    verdict.batches = sum(name.startswith(BATCH) for name in straight.moments)
    verdict.tensors = count_tensors(straight.outcome())
    aims = Aims(life, kills, ranks, random.Random(seed))
    verdict.difference = next(_differences(lived, straight, aims, verdict), None)
    return verdict


def _differences(
    lived: Callable[..., Life], straight: Story, aims: Aims, verdict: Verdict
) -> Iterator[str]:
    """Lets runs live until so many lives were killed, and says what became different."""
    for number in range(1, aims.kills + 1):
        place = straight.folder.parents[1] / f"killed-{number}" / "run"
        killed = Story(place, straight.tolerance)
        while True:
            saved = killed.saved()
            life = lived(killed, aims.choose(verdict.kills))
            if life.first not in (None, saved + 1):
                yield f"a life begins with micro-batch {life.first}, {saved} were saved before"
            yield from killed.add(life, straight)
            if life.killed is None:
                break
            verdict.kills[life.killed] += 1
            aims.learn(life)
        if life.code:
            yield f"a run that goes on stops with {life.code}: {life.words}"
        yield from straight.compare(killed)
        if verdict.kills.total() >= aims.kills:
            return


def short(args: Sequence[str], config: Any, steps: int) -> list[str]:
    """Options that make a run short, with all that a long one has, unless `args` have them."""
    window = config.trainer.accumulate_grad_batches
    epoch = max(1, steps // 4) * window - (window > 1)  # the last step of an epoch is a short one
    ours = {
        "trainer.max_steps": steps,
        "trainer.max_epochs": -1,
        "trainer.limit_train_batches": epoch,
        "trainer.val_check_interval": 1.0,
        "trainer.check_val_every_n_epoch": 1,
        "trainer.enable_progress_bar": False,
        "save_every": max(1, steps // 8),
        "logger": "none",
    }
    there = {arg.partition("=")[0] for arg in args}
    options = [f"--{key}={value}" for key, value in ours.items() if f"--{key}" not in there]
    if _named(config):
        return options
    # Of all devices Lightning would start this command on each.
    return [*options, f"--trainer.devices={_processes(config)}"]


def _named(config: Any) -> list[Any]:
    """The devices that are named one by one."""
    devices = config.trainer.devices
    if isinstance(devices, str) and "," in devices:
        return [part for part in devices.split(",") if part.strip()]
    return devices if isinstance(devices, list) else []


def _processes(config: Any) -> int:
    devices = str(config.trainer.devices)
    return len(_named(config)) or (max(int(devices), 1) if devices.isdigit() else 1)


class Aims:
    """Chooses when to kill: in each phase about alike often, the test last, for it comes once."""

    def __init__(self, straight: Life, kills: int, ranks: int, rng: random.Random) -> None:
        self.kills, self.ranks, self.rng = kills, ranks, rng
        names, begun = zip(*straight.phases, strict=True)
        self.counts = Counter(names)
        phases = rng.sample(list(self.counts), len(self.counts))
        self.quotas = Counter(phases[i % len(phases)] for i in range(kills))
        self.spans: dict[str, list[float]] = {}
        for name, at, until in zip(names, begun, [*begun[1:], straight.ended], strict=True):
            self.spans.setdefault(name, []).append(until - at)

    def choose(self, fell: Counter[str]) -> Aim | None:
        """The next aim, after so many kills in each phase; None when that is enough."""
        if fell.total() >= self.kills:
            return None
        left, tests = self.kills - fell.total(), self.quotas["test"] - fell["test"]
        # Kills that fell into another phase than they were to leave the test its own.
        due = {p: self.quotas[p] - fell[p] for p in self.quotas if p != "test" and left > tests}
        order = {p: (n, p == "preparation" and not fell, self.rng.random()) for p, n in due.items()}
        phase = max(order, key=lambda p: order[p], default="test")
        if due.get(phase, 0) <= 0 and "test" in self.quotas:
            phase = "test"
        # Small steps, so that a run is long enough for most of them; another one has the rest.
        farthest = max(min(3, self.counts[phase]), self.counts[phase] // (self.kills + 1))
        delay = self.rng.uniform(0, self.rng.choice(self.spans[phase]))
        ranks = self.rng.choice([*((r,) for r in range(self.ranks)), tuple(range(self.ranks))])
        return Aim(phase, self.rng.randint(1, farthest), delay, ranks)

    def learn(self, life: Life) -> None:
        """Remembers how long the preparation of a life took that found text in the cache."""
        if len(life.phases) > 1:
            self.spans["preparation"] = [life.phases[1][1] - life.phases[0][1]]
