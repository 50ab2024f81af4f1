"""`python -m tests.benchmarks`: measures this package beside others and prints a table."""

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from . import report, works
from .arena import ROOT, cores
from .growth import draw, growth
from .limit import padding_share
from .peers import DECODING, TRAINING, Entry
from .pipeline import input_share, processes
from .pupil import train_once
from .startup import startup
from .worker import Workload
from .workload import Text, make

WORKS = ("train", "loss", "decode", "latency", "startup", "pipeline", "processes", "growth")
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
    add("--work", default=",".join(WORKS), help="comma-separated (%(default)s)")
    add("--shapes", help="comma-separated (tiny,base; on a GPU big, too)")
    add("--peers", help="comma-separated; all when left out: " + ", ".join(peers()))
    add("--device", default=os.environ.get("DEVICE", "cpu"), choices=("cpu", "cuda"))
    add("--threads", type=int, default=cores(), help="of each contestant")
    add("--rounds", type=int, default=5, help="turns of each contestant (%(default)s)")
    add("--steps", type=int, help="training steps in a turn")
    add("--sentences", type=int, help="of the test set to decode; all when left out")
    add("--max-tokens", type=int, help="of a batch on each side")
    add("--target", type=float, default=TARGET, help="validation loss to reach (%(default)s)")
    add("--bundle", type=Path, help="tiny model for decoding; else one is trained")
    add("--quick", action="store_true", help="a few seconds, without any peer to be installed")
    add("--bench", type=Path, default=ROOT / ".bench", help="where everything is kept")
    add("--json", type=Path, help="where the numbers go (<bench>/results.json)")
    return parser


def peers() -> list[str]:
    """Names for `--peers`."""
    return list(dict.fromkeys(entry.peer or entry.module for entry in (*TRAINING, *DECODING)))[1:]


def entries(field: tuple[Entry, ...], options: argparse.Namespace) -> list[Entry]:
    """Who takes part, ours first."""
    wanted = options.peers.split(",") if options.peers is not None else peers()
    if options.quick:
        wanted = ["torch_nn"]
    found = [e for e in field if e.module == works.OURS or (e.peer or e.module) in wanted]
    gpu = options.device == "cuda"
    found = [entry for entry in found if (entry.on_gpu if gpu else entry.on_cpu)]
    if options.quick:
        found = [replace(entry, settings=entry.settings[:1]) for entry in found]
    return found


def main(args: list[str]) -> int:
    """Measures, prints, and keeps the numbers."""
    parser = arguments()
    options = parser.parse_args(args)
    known = {"work": WORKS, "shapes": works.SHAPES, "peers": peers()}
    for name, words in known.items():
        for word in (getattr(options, name) or "").split(","):
            if word and word not in words:
                parser.error(f"--{name} has no {word!r}, there are: {', '.join(words)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        print("no CUDA device here: nothing measured")
        return 0
    settle(options)
    text = Text(options.corpus, options.max_tokens, limit=2000 if options.quick else None)
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
        "vocab": workload.vocab, "padding": padding_share(workload.train),
    }  # fmt: skip


def measure(
    options: argparse.Namespace, setup: works.Setup, text: Text
) -> Iterator[tuple[str, dict[str, Any], str]]:
    """Yields the name, the numbers and the table of each kind of work."""
    work = options.work.split(",")
    trainers, decoders = entries(TRAINING, options), entries(DECODING, options)
    fastest = {}
    for shape in options.shapes.split(",") if "train" in work else ():
        steps = options.steps or (GPU_STEPS if options.device == "cuda" else STEPS[shape])
        part = works.train(setup, trainers, shape, steps)
        fastest[shape] = part["rows"]
        yield f"train-{shape}", part, report.training(part)
    if "loss" in work:
        racers = [champion(entry, fastest.get("tiny", [])) for entry in trainers]
        part = works.race(setup, racers, "tiny", options.target, PORTION, MOST)
        yield "loss", part, report.racing(part)
    if "pipeline" in work:
        part = input_share(text, setup.bench, setup.threads)
        yield "pipeline", part, report.feeding(part)
    if "processes" in work and options.device == "cpu":
        part = processes(text, setup.bench, setup.rounds)
        yield "processes", part, report.sharing(part)
    if "growth" in work:
        part = growth(options.device)
        draw(part, setup.bench / "growth.png")
        yield "growth", part, report.growing(part)
    if not {"decode", "latency", "startup"} & set(work):
        return
    bundle = options.bundle or train_once(text, setup.workload, setup.bench, setup.device)
    bundle = bundle.resolve()
    if "decode" in work:
        part = works.decode(setup, decoders, bundle, options.sentences)
        yield "decode", part, report.decoding(part)
    if "latency" in work:
        part = works.latency(setup, decoders, bundle, REPEATS)
        yield "latency", part, report.waiting(part)
    if "startup" in work:
        sentence = (setup.workload / "test.src").read_text(encoding="utf-8").splitlines()[0]
        part = startup(bundle, sentence, setup.threads, setup.rounds)
        yield "startup", part, report.starting(part)


def champion(entry: Entry, rows: list[dict[str, Any]]) -> Entry:
    """A contestant in its fastest setting alone; where that is not known, in its first."""
    row = report.best(rows, entry.module)
    return replace(entry, settings=(row["key"] if row else entry.settings[0],))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
