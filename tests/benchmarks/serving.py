"""`python -m tests.benchmarks.serving <bundle>`: `transformer serve` under load, as a table.

Batches are measured beside lines that are decoded one at a time; with `--soak` the memory of a
server that is kept busy, with some requests at fault and some given up.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from statistics import median, quantiles
from typing import NamedTuple
from urllib.parse import urlsplit

from .arena import ROOT, environment

CLIENTS = (1, 8, 64)
BEFORE = 3.0  # seconds of load that are not counted
SAMPLES = 20  # of memory, in a soak
ALONE = ("--max_tokens", "1")  # each line is a batch of its own
HEADERS = {"content-type": "application/json"}


class Load(NamedTuple):
    """What clients saw: seconds of each answer, and answers in a second."""

    seconds: list[float]
    rate: float

    def __str__(self) -> str:
        last = quantiles(self.seconds, n=100)[-1]
        return f"{median(self.seconds) * 1000:.0f} / {last * 1000:.0f} ms, {self.rate:.1f}/s"


@contextmanager
def serving(bundle: Path, threads: int, *options: str) -> Iterator[tuple[int, str]]:
    """A server: the number of its process, and its host with the port."""
    command = [sys.executable, "-m", "transformer", "serve", str(bundle), "--port", "0", *options]
    process = subprocess.Popen(
        command, env=environment(threads), stderr=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stderr
    try:
        ready = process.stderr.readline()
        if "http" not in ready:
            raise SystemExit(ready.strip() + process.stderr.read())
        yield process.pid, urlsplit(ready.split()[-1]).netloc
        process.send_signal(signal.SIGTERM)
        if code := process.wait(60):
            raise SystemExit(f"the server ended with {code}: {process.stderr.read()}")
    finally:
        process.kill()


def load(host: str, lines: Sequence[str], clients: int, seconds: float) -> Load:
    """Lets clients ask for a line after the other, each on a connection of its own."""
    start = time.monotonic() + BEFORE

    def client(number: int) -> list[float]:
        draw, connection, found = random.Random(number), HTTPConnection(host), []
        while (begun := time.monotonic()) < start + seconds:
            asked = json.dumps({"text": draw.choice(lines)})
            connection.request("POST", "/v1/translate", asked, HEADERS)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status == 200, body
            if begun > start:
                found.append(time.monotonic() - begun)
        return found

    with ThreadPoolExecutor(clients) as pool:
        found = [one for each in pool.map(client, range(clients)) for one in each]
    return Load(found, len(found) / (time.monotonic() - start))


def soak(host: str, pid: int, lines: Sequence[str], seconds: float, clients: int = 8) -> list[int]:
    """Keeps a server busy with requests of all kinds.

    Returns:
        Its anonymous memory in KiB, at even distances.
    """
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        draw, connection = random.Random(number), HTTPConnection(host)
        while time.monotonic() < end:
            kind = draw.randrange(10)
            body = json.dumps({"text": draw.choices(lines, k=draw.randint(1, 4))})
            if kind == 0:
                body = draw.choice(["{", '{"text": 1}', body.replace("text", "next"), "[" * 9999])
            connection.request("POST", "/v1/translate", body, HEADERS)
            if kind == 1:  # given up
                connection.close()
                connection = HTTPConnection(host)
                continue
            answer = connection.getresponse()
            answer.read()
            assert answer.status == (400 if kind == 0 else 200)

    memory = []
    with ThreadPoolExecutor(clients) as pool:
        busy = [pool.submit(client, number) for number in range(clients)]
        for sample in range(SAMPLES):
            time.sleep(max(end - seconds * (1 - (sample + 1) / SAMPLES) - time.monotonic(), 0))
            memory.append(anonymous(pid))
        for each in busy:
            each.result()
    return memory


def anonymous(pid: int) -> int:
    """KiB of memory that a process has to itself."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0])


def sources(corpus: str) -> list[str]:
    """The source lines of a TSV file with a header, or of a text file; gzipped or not."""
    with (gzip.open if corpus.endswith(".gz") else open)(corpus, "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()
    return [line.split("\t")[0] for line in lines[1:]] if ".tsv" in corpus else lines


def main() -> None:
    """Measures, and prints."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.serving", description=__doc__)
    add = parser.add_argument
    add("bundle", type=Path)
    add("--corpus", default="recipes/quickstart/test.tsv.gz", help="source lines (%(default)s)")
    add("--seconds", type=float, default=20, help="of each measurement (%(default)s)")
    add("--threads", type=int, default=2, help="of the server (%(default)s)")
    add("--engines", default="torch", help="comma-separated, of torch, ctranslate2 (%(default)s)")
    add("--soak", type=float, help="in place of it all: seconds of load, watching the memory")
    options = parser.parse_args()
    bundle, lines = options.bundle.resolve(), sources(options.corpus)
    if options.soak:
        with serving(bundle, options.threads) as (pid, host):
            memory = soak(host, pid, lines, options.soak)
        print("MiB:", " ".join(f"{kib / 1024:.0f}" for kib in memory))
        return
    print(f"| server | {' | '.join(f'{n} client' + 's' * (n > 1) for n in CLIENTS)} |")
    print("|---|" + "---|" * len(CLIENTS))
    for engine in options.engines.split(","):
        for name, how in (("batches", ()), ("one at a time", ALONE)):
            its = () if engine == "torch" else ("--engine", engine)
            with serving(bundle, options.threads, *its, *how) as (_, host):
                cells = [str(load(host, lines, n, options.seconds)) for n in CLIENTS]
            print(f"| {engine}, {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
