"""`make gpu`: the tests marked `gpu`, then the benchmark, on the GPU of this machine.

Writes gpu.json and gpu.md (the table, to be committed) into a folder, and prints what it does.
"""

import argparse
import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch

from .__main__ import main as benchmark
from .arena import ROOT

FILES = ("tests/test_gpu.py", "tests/test_gpu_runs.py")


class Both(StringIO):
    """Keeps what is printed, and prints it."""

    def write(self, text: str) -> int:
        """Also shows it at once."""
        sys.__stdout__.write(text)  # type: ignore[union-attr]
        return super().write(text)

    def flush(self) -> None:
        """What is shown, for nothing else can be."""
        sys.__stdout__.flush()  # type: ignore[union-attr]


def main(args: list[str]) -> int:
    """Runs both parts; the exit code is not 0 when a test failed."""
    parser = argparse.ArgumentParser(prog="make gpu", description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / ".bench" / "gpu", help="(%(default)s)")
    parser.add_argument("--quick", action="store_true", help="the short form, on a CPU, too")
    options, others = parser.parse_known_args(args)
    gpu = torch.cuda.is_available()
    if not (gpu or options.quick):
        print(
            "no GPU that torch can use here: nothing measured (make gpu ARGS=--quick tries a CPU)"
        )
        return 2
    options.out.mkdir(parents=True, exist_ok=True)
    on = torch.cuda.get_device_name() if gpu else "CPU"
    print(f"Tests on {on}, some minutes", flush=True)
    code = run_tests(options.out / "tests.xml")
    tests = outcomes(options.out / "tests.xml")
    words = table(on, tests)
    print(f"{words}\n\nBenchmark, up to 15 minutes", flush=True)
    numbers, said = options.out / "benchmark.json", Both()
    mode = ["--quick"] if options.quick else ["--work", "train,decode", "--rounds", "3"]
    mode += ["--device", "cuda" if gpu else "cpu", "--json", str(numbers), *others]
    with redirect_stdout(said):
        code = benchmark(mode) or code
    found = {"device": on, "tests": tests, "benchmark": json.loads(numbers.read_text())}
    (options.out / "gpu.json").write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n")
    (options.out / "gpu.md").write_text(f"{words}\n\n{said.getvalue()}", encoding="utf-8")
    print(f"\nTables and numbers: {options.out}/gpu.md, {options.out}/gpu.json")
    return code


def run_tests(report: Path) -> int:
    """Runs the tests marked `gpu` in a process of their own, whose memory is free afterwards."""
    options = ["-m", "gpu", "-q", "-p", "no:cacheprovider", f"--junitxml={report}"]
    return subprocess.call([sys.executable, "-m", "pytest", *options, *FILES], cwd=ROOT)


def outcomes(report: Path) -> list[dict[str, Any]]:
    """Name, outcome, seconds and recorded numbers of each test in a JUnit file."""
    found = []
    for case in ET.parse(report).iter("testcase"):
        kinds = [kind for kind in ("failure", "error", "skipped") if case.find(kind) is not None]
        properties = {p.attrib["name"]: p.attrib["value"] for p in case.iter("property")}
        about = {"test": case.attrib["name"], "outcome": kinds[0] if kinds else "passed"}
        found.append({**about, "seconds": float(case.attrib["time"]), **properties})
    return found


def table(device: str, tests: list[dict[str, Any]]) -> str:
    """The tests as Markdown."""
    lines = ["| test | outcome | seconds | numbers |", "|---|---|---|---|"]
    for test in tests:
        known = ("test", "outcome", "seconds")
        numbers = ", ".join(f"{key} {value}" for key, value in test.items() if key not in known)
        cells = test["test"], test["outcome"], f"{test['seconds']:.1f}", numbers
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([f"## Tests on {device}, torch {torch.__version__}", "", *lines])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
