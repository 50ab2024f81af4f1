"""The kinds of work: what contestants are told to do, and what becomes of their answers."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .arena import Contestant, Failed, compete, ratios, spread
from .limit import flops_per_token, measure
from .peers import Entry, python_of
from .worker import Workload

#: d_model, d_ff, num_heads, num_layers, dropout, learning_rate, warmup_steps
SHAPES: dict[str, tuple[int, int, int, int, float, float, int]] = {
    "tiny": (128, 256, 4, 4, 0.3, 0.005, 2000),
    "base": (512, 2048, 8, 6, 0.1, 0.0007, 4000),
    "big": (1024, 4096, 16, 6, 0.3, 0.0007, 4000),
}
BATCHES = (16, 32, 64, 128)  # sentences, when decoding
OURS = "ours"


@dataclass(frozen=True)
class Setup:
    """Where and with what everything runs.

    Args:
        bench: the folder of environments, workloads and logs.
        workload: folder of the workload.
        device: `cpu` or `cuda`.
        threads: of each contestant.
        rounds: turns of each contestant.
    """

    bench: Path
    workload: Path
    device: str
    threads: int
    rounds: int

    @cached_property
    def tokens(self) -> Workload:
        """The workload itself."""
        return Workload(self.workload / "workload.npz")

    def field(
        self, entries: list[Entry], task: str, shape: str, bundle: Path | None = None
    ) -> list[Contestant]:
        """The contestants, with the reason where one cannot take part."""
        *_, peak, warmup = SHAPES[shape]
        path = self.workload / "workload.npz"
        job = {
            "task": task, "threads": self.threads, "device": self.device, "workload": str(path),
            "shape": shape_of(shape, self.tokens.vocab),
            "bundle": bundle and str(bundle), "label_smoothing": 0.1, "learning_rate": peak,
            "warmup_steps": warmup, "beam": 5, "alpha": 0.6, "max_extra": 50,
        }  # fmt: skip
        return [c for entry in entries for c in self._settings(entry, job)]

    def _settings(self, entry: Entry, job: dict[str, Any]) -> list[Contestant]:
        python, problem = python_of(entry.peer, self.bench)
        folder = self.bench / "jobs" / f"{job['task']}-{job['shape']['name']}"
        return [
            Contestant(entry.module, setting, python, job, folder, problem=problem)
            for setting in entry.settings
        ]


def shape_of(name: str, vocab: int) -> dict[str, Any]:
    """A shape by its name, as contestants are told it."""
    sizes = ("d_model", "d_ff", "num_heads", "num_layers", "dropout")
    return {"name": name, **dict(zip(sizes, SHAPES[name], strict=False)), "vocab": vocab}


def train(setup: Setup, entries: list[Entry], shape: str, steps: int) -> dict[str, Any]:
    """Tokens per second, time of a step and peak memory of training."""
    contestants = setup.field(entries, "train", shape)

    def turn(contestant: Contestant) -> dict[str, Any]:
        answer = contestant.ask(do="steps", n=steps)
        tokens = answer["src_tokens"] + answer["tgt_tokens"]
        return {**answer, "rate": tokens / answer["seconds"]}

    def warm_up(contestant: Contestant) -> None:
        check_size(contestant, contestants[0])
        contestant.ask(do="steps", n=steps)

    work = flops_per_token(setup.tokens, contestants[0].job["shape"])
    limit = measure(setup.device, setup.threads)
    compete(contestants, warm_up, turn, lambda t: f"{t['rate']:,.0f} tokens/s", setup.rounds)
    again = measure(setup.device, setup.threads)
    rows = [_row(c, contestants[0]) for c in contestants]
    for row, contestant in zip(rows, contestants, strict=True):
        if contestant.turns:
            row["ms"] = 1e3 * statistics.median(t["seconds"] / t["steps"] for t in contestant.turns)
            row["flops"] = row["rate"]["median"] * work
    return {
        "shape": contestants[0].job["shape"], "rounds": setup.rounds, "steps": steps, "rows": rows,
        "limit": {name: max(rate, again[name]) for name, rate in limit.items()},
        "flops_per_token": work,
    }  # fmt: skip


def check_size(contestant: Contestant, ours: Contestant) -> None:
    """Refuses to compare models of different sizes.

    Raises:
        Failed: when the numbers of parameters differ by more than 2 %.
    """
    theirs, expected = contestant.about["parameters"], ours.about.get("parameters")
    if expected and abs(theirs / expected - 1) > 0.02:
        raise Failed(f"it has {theirs:,} parameters, ours {expected:,}")


def race(
    setup: Setup, entries: list[Entry], shape: str, target: float, portion: int, most: int
) -> dict[str, Any]:
    """Seconds of training until the validation loss is at most `target`.

    Args:
        setup: where it runs.
        entries: each with its best setting alone.
        shape: name of the shape.
        target: negative log-likelihood in nats per target token.
        portion: steps between two validations.
        most: steps after which a contestant gives up.
    """
    contestants = setup.field(entries, "train", shape)

    def turn(contestant: Contestant) -> dict[str, Any]:
        return {
            **contestant.ask(do="steps", n=portion),
            "nll": contestant.ask(do="validate")["nll"],
        }

    def arrived(contestant: Contestant) -> bool:
        return bool(contestant.turns) and contestant.turns[-1]["nll"] <= target

    compete(
        contestants, lambda c: c.ask(do="validate"), turn,
        lambda t: f"{portion} steps, {t['nll']:.3f} nats a token", most // portion, arrived,
        together=len(contestants) + 1,
    )  # fmt: skip
    rows = []
    for c in contestants:
        done = {
            "seconds": sum(turn["seconds"] for turn in c.turns),
            "steps": sum(turn["steps"] for turn in c.turns),
            "nll": c.turns[-1]["nll"] if c.turns else None,
            "reached": arrived(c),
        }
        about = {"versions": c.about.get("versions", {}), "problem": c.problem}
        rows.append({"name": c.name, "setting": c.setting, **about, **done})
    return {"target": target, "portion": portion, "rows": rows}


def decode(
    setup: Setup, entries: list[Entry], bundle: Path, sentences: int | None
) -> dict[str, Any]:
    """Target tokens per second of beam search, each contestant with its best batch size."""
    contestants = setup.field(entries, "decode", "tiny", bundle)

    def turn(contestant: Contestant) -> dict[str, Any]:
        rates = {}
        for size in _batches(contestant):
            answer = contestant.ask(do="translate", sentences=sentences, batch=size)
            rates[size] = answer["tgt_tokens"] / answer["seconds"]
        contestant.about["ids"] = answer["ids"]
        return {"rates": rates}

    def warm_up(contestant: Contestant) -> None:
        contestant.ask(do="translate", sentences=min(BATCHES), batch=min(BATCHES))

    def words(turn: dict[str, Any]) -> str:
        rates = (f"{rate:,.0f} ({size})" for size, rate in turn["rates"].items())
        return f"target tokens/s (batch): {', '.join(rates)}"

    compete(contestants, warm_up, turn, words, setup.rounds)
    for contestant in contestants:
        _choose_batch(contestant)
    measure_ = contestants[0]
    rows = [{**_row(c, measure_), **_quality(c, measure_, setup.workload)} for c in contestants]
    return {"rows": rows, "rounds": setup.rounds, "batches": BATCHES, "bundle": str(bundle)}


def latency(setup: Setup, entries: list[Entry], bundle: Path, repeats: int) -> dict[str, Any]:
    """Milliseconds for the first sentence of the test set, with everything warm."""
    contestants = setup.field(entries, "decode", "tiny", bundle)

    def turn(contestant: Contestant) -> dict[str, Any]:
        answers = [contestant.ask(do="translate", sentences=1, batch=1) for _ in range(repeats)]
        return {"rate": 1 / statistics.median(answer["seconds"] for answer in answers)}

    compete(contestants, turn, turn, lambda t: f"{1e3 / t['rate']:.1f} ms", setup.rounds)
    rows = [_row(c, contestants[0]) for c in contestants]
    first = setup.tokens.test_src[0]
    return {"rows": rows, "tokens": len(first), "repeats": repeats, "rounds": setup.rounds}


def _row(contestant: Contestant, ours: Contestant) -> dict[str, Any]:
    """What is the same for all kinds of work; `ours_over_it` compares within each round."""
    about = {key: value for key, value in contestant.about.items() if key not in ("ready", "ids")}
    row = {"name": contestant.name, "key": contestant.setting, **about}
    if contestant.problem or not contestant.turns:
        return {**row, "problem": contestant.problem or "no turn"}
    return {
        **row,
        "rate": spread(turn["rate"] for turn in contestant.turns),
        "ours_over_it": ratios(ours, contestant, "rate"),
    }


def _batches(contestant: Contestant) -> Sequence[Any]:
    """The sizes to try; a contestant that makes its own batches is asked once a turn."""
    return contestant.about.get("batches", BATCHES)


def _choose_batch(contestant: Contestant) -> None:
    """Takes the rate of each turn at the batch size with the highest median."""
    if not contestant.turns:
        return
    medians = {
        size: statistics.median(turn["rates"][size] for turn in contestant.turns)
        for size in _batches(contestant)
    }
    best = max(medians, key=lambda size: medians[size])
    contestant.about.update(batch=best, medians=medians)
    for turn in contestant.turns:
        turn["rate"] = turn["rates"][best]


def _quality(contestant: Contestant, ours: Contestant, workload: Path) -> dict[str, Any]:
    """BLEU, and the share of translations that are ours, too."""
    from sacrebleu import corpus_bleu

    from transformer.data.tokenizer import Tokenizer

    ids, others = contestant.about.get("ids"), ours.about.get("ids")
    if not ids or not others:
        return {}
    texts = Tokenizer.load(workload).decode(ids)
    references = (workload / "test.tgt").read_text(encoding="utf-8").splitlines()[: len(ids)]
    same = sum(one == other for one, other in zip(ids, others, strict=True))
    return {"same": same / len(ids), "bleu": corpus_bleu(texts, [references]).score}
