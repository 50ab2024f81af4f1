"""`make gpu` as far as it can be run without one."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from benchmarks import gpu

ROOT = Path(__file__).parents[1]
REPORT = """<testsuites><testsuite>
<testcase name="one" time="1.26">
<properties><property name="gib" value="2.5"/></properties></testcase>
<testcase name="two" time="0.0"><skipped message="needs a GPU"/></testcase>
<testcase name="three" time="3.0"><failure message="no"/></testcase>
</testsuite></testsuites>"""


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stand-ins for both parts; what the benchmark was told."""
    told: list[list[str]] = []

    def benchmark(args: list[str]) -> int:
        told.append(args)
        print("a table")
        Path(args[args.index("--json") + 1]).write_text('{"train-tiny": {}}')
        return 0

    monkeypatch.setattr(gpu, "benchmark", benchmark)
    monkeypatch.setattr(gpu, "run_tests", lambda path: path.write_text(REPORT) and 0)
    return told


@pytest.mark.parametrize("there", [False, True])
def test_one_table_and_one_file_of_numbers(
    there: bool, parts: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: there)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "a card")
    quick = [] if there else ["--quick"]
    assert gpu.main(["--out", str(tmp_path / "new"), *quick, "--shapes", "tiny"]) == 0
    (told,) = parts
    assert told[told.index("--device") + 1] == ("cuda" if there else "cpu")
    assert told[-2:] == ["--shapes", "tiny"] and ("train,decode" in told) == there
    found = json.loads((tmp_path / "new/gpu.json").read_text())
    assert found["device"] == ("a card" if there else "CPU")
    assert found["benchmark"] == {"train-tiny": {}}
    assert found["tests"][0] == {"test": "one", "outcome": "passed", "seconds": 1.26, "gib": "2.5"}
    assert [test["outcome"] for test in found["tests"]] == ["passed", "skipped", "failure"]
    text = (tmp_path / "new/gpu.md").read_text()
    assert "| one | passed | 1.3 | gib 2.5 |" in text and text.endswith("a table\n")


def test_a_test_that_failed_is_told_after_the_benchmark(
    parts: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu, "run_tests", lambda path: path.write_text(REPORT) and 1)
    assert gpu.main(["--out", str(tmp_path), "--quick"]) == 1
    assert len(parts) == 1 and (tmp_path / "gpu.json").exists()


def test_without_a_gpu_nothing_is_measured(
    parts: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "no GPU that torch can use here" in capsys.readouterr().out and not parts


def test_the_wheels_are_all_that_the_package_needs_beside_torch_and_lightning() -> None:
    makefile, project = ((ROOT / name).read_text() for name in ("Makefile", "pyproject.toml"))
    listed = re.search(r"GPU_NEEDS = (.*?)\n\S", makefile, re.DOTALL)
    needed = re.search(r"\ndependencies = \[(.*?)\n\]", project, re.DOTALL)
    assert listed and needed
    wheels: set[Any] = set(re.findall(r"[a-z][\w-]+", re.sub(r"\[.*?\]", "", listed[1])))
    names = set(re.findall(r'"([a-z][\w-]+)', needed[1]))
    assert names - wheels == {"torch", "lightning", "tokenizers", "torchmetrics"}
    assert wheels - names == {"pytest", "pytest-timeout"}
