"""`python -m tests.benchmarks`: measures this package beside others and prints a table."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch

from transformer.kernels import has_bfloat16, trains_in_bfloat16

from . import limit, plan, report, works
from .arena import ROOT, cores
from .growth import draw, growth
from .peers import DECODING, TRAINING, Entry, python_of
from .pipeline import input_share, processes
from .pupil import train_once
from .startup import startup
from .worker import Workload
from .workload import Text, make

WORKS = ("train", "loss", "decode", "latency", "startup", "pipeline", "processes", "growth")
DECODES = {"decode", "latency", "startup"}
STEPS = {"tiny": 10, "base": 3, "big": 3}
GPU_STEPS, GPU_TOKENS = 20, 25_000
#: The validation loss to reach, in nats per target token, and when to give up, in steps.
TARGET, PORTION, MOST = 4.0, 50, 1000
REPEATS = 20  # of one sentence in a turn


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    add = parser.add_argument
    add("--corpus", help="folder with {train,val,test_2016_flickr}.{en,de}[.gz]; else generated")
    help_ = f"comma-separated, of {', '.join(WORKS)} (%(default)s)"
    add("--work", default="train,decode,latency,startup", help=help_)
    add("--shapes", help="comma-separated (tiny,base; on a GPU big, too)")
    help_ = f"comma-separated, of {', '.join(peers())} (all); ours always takes part"
    add("--contestants", default=",".join(peers()), help=help_)
    add("--device", default=os.environ.get("DEVICE", "cpu"), choices=("cpu", "cuda"))
    add("--threads", type=int, default=cores(), help="of each contestant")
    add("--rounds", type=int, default=5, help="turns of each contestant (%(default)s)")
    add("--steps", type=int, help="training steps in a turn; some seconds of them when left out")
    add("--sentences", type=int, help="of the test set to decode; all when left out")
    add("--max-tokens", type=int, help="of a batch on each side")
    add("--target", type=float, default=TARGET, help="validation loss to reach (%(default)s)")
    add("--bundle", type=Path, help="tiny model for decoding; else one is trained")
    add("--quick", action="store_true", help="a few seconds, without any peer to be installed")
    add("--bench", type=Path, default=ROOT / ".bench", help="where everything is kept")
    add("--json", type=Path, help="where the numbers go (<bench>/results.json)")
    return parser


def peers() -> list[str]:
    """The names of all contestants, ours first."""
    return list(dict.fromkeys(entry.name for entry in (*TRAINING, *DECODING)))


def settings(entry: Entry, options: argparse.Namespace) -> tuple[str, ...]:
    """What a contestant is measured in: nothing that the device emulates, nothing twice."""
    left_out = set() if has_bfloat16(options.device) else {"bf16", "bf16+compile"}
    if "default" in entry.settings and not trains_in_bfloat16(options.device):
        left_out.add("float32")  # that is the default there
    found = [setting for setting in entry.settings if setting not in left_out]
    return tuple(found[: 1 if options.quick else None])


def entries(field: tuple[Entry, ...], options: argparse.Namespace) -> list[Entry]:
    """Who takes part, ours first."""
    names = ["torch.nn"] if options.quick else options.contestants.split(",")
    gpu = options.device == "cuda"
    found = []
    for entry in field:
        if entry.name in (works.OURS, *names) and (entry.on_gpu if gpu else entry.on_cpu):
            found.append(replace(entry, settings=settings(entry, options)))
    return found


def main(args: list[str]) -> int:
    """Measures, prints, and keeps the numbers."""
    parser = arguments()
    options = parser.parse_args(args)
    known = {"work": WORKS, "shapes": works.SHAPES, "contestants": peers()}
    for name, words in known.items():
        for word in (getattr(options, name) or "").split(","):
            if word and word not in words:
                near = get_close_matches(word, words, n=1, cutoff=0.0)[0]
                parser.error(
                    f"--{name} has no {word!r}, the nearest is {near!r}; there are: "
                    + ", ".join(words)
                )
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing measured")
        return 0
    settle(options)
    text = Text(options.corpus, options.max_tokens, limit=2000 if options.quick else None)
    print(f"Reading the text and making batches, kept in {options.bench}", flush=True)
    folder = make(text, options.bench)
    setup = works.Setup(options.bench, folder, options.device, options.threads, options.rounds)
    results: dict[str, Any] = {
        "machine": report.machine(options.device, options.threads),
        "command": shlex.join(["python", "-m", "tests.benchmarks", *args]),
        "workload": about(text, folder),
    }
    print(report.heading(results), flush=True)
    for name, part, words in measure(options, setup, text):
        results[name] = part
        print(f"\n{words}", flush=True)
        options.json.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    print(f"\n{report.versions(results)}\nNumbers: {options.json}")
    return 0


def settle(options: argparse.Namespace) -> None:
    """Fills in what depends on other options."""
    gpu = options.device == "cuda"
    if options.quick:
        options.work, options.shapes, options.rounds = "train", "tiny", 2
        options.steps, options.max_tokens = options.steps or 2, options.max_tokens or 1000
    options.shapes = options.shapes or ("tiny,base,big" if gpu else "tiny,base")
    options.max_tokens = options.max_tokens or (GPU_TOKENS if gpu else 4096)
    options.bench = options.bench.resolve()
    options.json = options.json or options.bench / "results.json"


def about(text: Text, folder: Path) -> dict[str, Any]:
    """What the numbers were measured on."""
    workload = Workload(folder / "workload.npz")
    return {
        **asdict(text), "corpus": text.corpus or "generated Korean–English text",
        "vocab": workload.vocab, "padding": limit.padding_share(workload.train),
    }  # fmt: skip


def prepare(
    options: argparse.Namespace, setup: works.Setup, trainers: list[Entry], decoders: list[Entry]
) -> tuple[dict[str, int], dict[str, float]]:
    """Makes the peers' environments, and says what comes and about how long it will take.

    Returns:
        Steps of a turn for each shape, and the seconds of each kind of work, about.
    """
    if not has_bfloat16(options.device):
        print("Left out, since this CPU only emulates bfloat16: its limit, contestants in bf16")
    for entry in (*trainers, *decoders):
        python_of(entry.peer, setup.bench)
    rate = limit.measure(setup.device, setup.threads)["float32"]
    shapes = options.shapes.split(",")
    seconds = {name: plan.step_seconds(setup, name, rate) for name in ("tiny", *shapes)}
    steps = {name: options.steps or plan.turn_steps(STEPS[name], seconds[name]) for name in shapes}
    if options.device == "cuda":
        steps = dict.fromkeys(shapes, options.steps or GPU_STEPS)
    wanted = set(options.work.split(",")) - ({"processes"} if options.device == "cuda" else set())
    if wanted & DECODES and not options.bundle:
        wanted.add("bundle")
    planned = {
        name: taken
        for name, taken in plan.plan(trainers, decoders, setup.rounds, steps, seconds).items()
        if name.split("-")[0] in wanted
    }
    words = ", ".join(f"{name} {plan.about(taken)}" for name, taken in planned.items())
    total = plan.about(sum(planned.values()))
    print(f"To be measured: {words}; all together about {total}", flush=True)
    return steps, planned


def measure(
    options: argparse.Namespace, setup: works.Setup, text: Text
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yields the name, the numbers and the table of each kind of work."""
    trainers, decoders = entries(TRAINING, options), entries(DECODING, options)
    steps, planned = prepare(options, setup, trainers, decoders)
    fastest: dict[str, list[dict[str, Any]]] = {}
    bundle: Path = options.bundle
    for name, seconds in planned.items():
        print(f"\n{name}, about {plan.about(seconds)}", flush=True)
        work, _, shape = name.partition("-")
        if work == "train":
            part = works.train(setup, trainers, shape, steps[shape])
            fastest[shape] = part["rows"]
            yield name, part, report.training(part)
        elif work == "loss":
            racers = [champion(entry, fastest.get("tiny", [])) for entry in trainers]
            part = works.race(setup, racers, "tiny", options.target, PORTION, MOST)
            yield name, part, report.racing(part)
        elif work == "pipeline":
            part = input_share(text, setup.bench, setup.threads)
            yield name, part, report.feeding(part)
        elif work == "processes":
            part = processes(text, setup.bench, setup.rounds)
            yield name, part, report.sharing(part)
        elif work == "growth":
            part = growth(options.device)
            draw(part, setup.bench / "growth.png")
            yield name, part, report.growing(part)
        elif work == "bundle":
            bundle = train_once(text, setup.workload, setup.bench, setup.device)
        elif work == "decode":
            part = works.decode(setup, decoders, bundle.resolve(), options.sentences)
            yield name, part, report.decoding(part)
        elif work == "latency":
            part = works.latency(setup, decoders, bundle.resolve(), REPEATS)
            yield name, part, report.waiting(part)
        elif work == "startup":
            sentence = (setup.workload / "test.src").read_text(encoding="utf-8").splitlines()[0]
            part = startup(bundle.resolve(), sentence, setup.threads, setup.rounds)
            yield name, part, report.starting(part)


def champion(entry: Entry, rows: list[dict[str, Any]]) -> Entry:
    """A contestant in its fastest setting alone; where that is not known, in its first."""
    row = report.best(rows, entry.module)
    return replace(entry, settings=(row["key"] if row else entry.settings[0],))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
