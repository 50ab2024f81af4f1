"""The benchmark works: the parts by hand, the whole in its short form. Nothing here is timed."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import arena, limit, peers, report, worker, works
from benchmarks.__main__ import main
from benchmarks.workload import Text, make
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from transformer.models import TransformerConfig


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def workload(bench: Path) -> worker.Workload:
    return worker.Workload(make(Text(limit=300, max_tokens=500), bench) / "workload.npz")


def test_the_workload_is_what_the_package_trains_on(bench: Path, workload: worker.Workload) -> None:
    data = Text(limit=300, max_tokens=500).data(bench / "cache")
    for loader, batches in (
        (data.train_dataloader(), workload.train),
        (data.val_dataloader(), workload.val),
    ):
        expected = list(loader)
        assert len(expected) == len(batches) > 3
        for ours, theirs in zip(expected, batches, strict=True):
            for one, other in zip(ours[1:], theirs, strict=True):
                assert np.array_equal(one.numpy(), other)
    src, tgt = data.texts("test")
    assert workload.test_src == data.tokenizer.encode_src(src)
    assert workload.test_tgt == data.tokenizer.encode_tgt(tgt)


def test_model_flops_are_those_that_torch_counts(workload: worker.Workload) -> None:
    vocab = workload.vocab
    model = TransformerConfig(d_model=16, d_ff=32, num_heads=2, num_layers=2).build(vocab, vocab)
    shape = {"d_model": 16, "d_ff": 32, "num_layers": 2, "vocab": vocab}
    row = torch.full((1, 7), 5)
    # It does not know the fused attention kernel of the CPU.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.project(model(row, torch.tensor([7]), row)).sum().backward()
    length = np.array([7])
    ids = row.numpy()
    only = worker.Batch(ids, length, ids, ids, length)
    # torch counts the masked half of the decoder's own scores, too: 7 * 6 / 2 of 49.
    masked = 6 * 2 * 2 * 16 * 7 * 6 / 2
    assert counter.get_total_flops() == pytest.approx(6 * limit.products(only, shape) + masked)


def test_sentences_are_sorted_and_dealt_out() -> None:
    assert worker.by_length([[1], [1, 2, 3], [1, 2]], 2) == [[1, 2], [0]]
    found = worker.translated(0.5, [[5, 2], [6, 7, 2]], [[8], []])
    assert (found["src_tokens"], found["tgt_tokens"]) == (5, 3)


CONTESTANT = """
import sys
sys.path.insert(0, {tests!r})
from benchmarks.worker import run
def build(job):
    print("chatter")
    if job["setting"] == "broken":
        raise RuntimeError("no such setting")
    def steps(command):
        print("more chatter")
        return {{"value": command["n"] / job["speed"]}}
    return {{"steps": steps}}, {{"parameters": 3}}
run(build)
"""


class Scripted(arena.Contestant):
    """A contestant that is a script, not one of the modules."""

    def command(self, job: Path) -> list[str]:
        return [sys.executable, str(self.folder / "script.py"), str(job)]


def contestant(folder: Path, setting: str, speed: float) -> arena.Contestant:
    text = CONTESTANT.format(tests=str(Path(__file__).parent))
    (folder / "script.py").write_text(text)
    return Scripted("script", setting, sys.executable, {"threads": 1, "speed": speed}, folder)


def turn(contestant: arena.Contestant) -> dict[str, Any]:
    return {"rate": 1 / contestant.ask(do="steps", n=1)["value"]}


def test_contestants_take_turns_and_who_fails_is_left_out(tmp_path: Path) -> None:
    speeds = {"fast": 4.0, "slow": 2.0, "broken": 1.0, "other": 1.0}
    found = [contestant(tmp_path, setting, speed) for setting, speed in speeds.items()]
    arena.compete(found, lambda c: None, turn, rounds=2, together=3)
    assert [len(c.turns) for c in found] == [4, 2, 0, 2]  # the first one is in both groups
    assert found[2].problem == "RuntimeError: no such setting"
    assert [t["round"] for t in found[3].turns] == [2, 3]
    assert arena.ratios(found[0], found[1], "rate") == {"median": 2.0, "min": 2.0, "max": 2.0}
    assert arena.ratios(found[1], found[3], "rate") is None
    assert found[0].about["peak_mib"] > 1


def test_a_contestant_that_dies_is_told_by_its_last_words(tmp_path: Path) -> None:
    one = contestant(tmp_path, "fast", 1.0)
    (tmp_path / "script.py").write_text("import no_such_module")
    arena.compete([one], lambda c: None, turn, rounds=1)
    assert one.problem == "ModuleNotFoundError: No module named 'no_such_module'"


def test_an_environment_that_cannot_be_made_is_named(
    bench: Path, workload: worker.Workload, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = bench / "python"
    python.write_text("#!/bin/sh\necho ERROR: no network >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    setup = works.Setup(bench, workload.path.parent, "cpu", 1, 1)
    (one,) = setup.field([peers.Entry("joeynmt", ("float32",), peer="joeynmt")], "train", "tiny")
    assert one.problem == "its environment cannot be made: ERROR: no network"
    arena.compete([one], lambda c: None, turn, rounds=1)
    assert not one.turns


def test_cuda_is_skipped_where_there_is_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--device", "cuda"]) == 0
    assert capsys.readouterr().out == "no CUDA device here: nothing measured\n"


@pytest.mark.parametrize("option", ["work", "shapes", "peers"])
def test_a_misspelt_name_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([f"--{option}", "hugginface"])
    assert f"--{option} has no 'hugginface', there are: " in capsys.readouterr().err


def test_the_short_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--steps", "1", "--threads", "1", "--bench", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "| this package |" in out and "| torch.nn.Transformer |" in out
    assert "not measured" not in out
    rows = json.loads((tmp_path / "results.json").read_text())["train-tiny"]["rows"]
    assert [row["name"] for row in rows] == ["ours", "torch_nn"]
    assert report.best(rows, "ours") == rows[0]
