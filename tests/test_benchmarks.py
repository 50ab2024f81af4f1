"""The benchmark works: the parts by hand, the whole in its short form. Nothing here is timed."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks import arena, limit, peers, plan, report, worker, works
from benchmarks.__main__ import arguments, entries, main
from benchmarks.workload import Text, make
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from transformer.kernels import has_bfloat16
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


def said(turn: dict[str, Any]) -> str:
    return f"{turn['rate']:.0f} a second"


def test_contestants_take_turns_and_who_fails_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    speeds = {"fast": 4.0, "slow": 2.0, "broken": 1.0, "other": 1.0}
    found = [contestant(tmp_path, setting, speed) for setting, speed in speeds.items()]
    arena.compete(found, lambda c: None, turn, said, rounds=2, together=3)
    assert [len(c.turns) for c in found] == [4, 2, 0, 2]  # the first one is in both groups
    assert found[2].problem == "RuntimeError: no such setting"
    assert [t["round"] for t in found[3].turns] == [2, 3]
    assert arena.ratios(found[0], found[1], "rate") == {"median": 2.0, "min": 2.0, "max": 2.0}
    assert arena.ratios(found[1], found[3], "rate") is None
    assert found[0].about["peak_mib"] > 1
    lines = capsys.readouterr().out.splitlines()
    assert lines.index("  script-slow, round 1 of 2: 2 a second") < lines.index(
        "  script-fast, round 2 of 2: 4 a second"
    )
    assert "  script-broken is left out: RuntimeError: no such setting" in lines


def test_a_contestant_that_dies_is_told_by_its_last_words(tmp_path: Path) -> None:
    one = contestant(tmp_path, "fast", 1.0)
    (tmp_path / "script.py").write_text("import no_such_module")
    arena.compete([one], lambda c: None, turn, said, rounds=1)
    assert one.problem == "ModuleNotFoundError: No module named 'no_such_module'"


def test_an_environment_that_cannot_be_made_is_named(
    bench: Path,
    workload: worker.Workload,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    python = bench / "python"
    python.write_text("#!/bin/sh\necho ERROR: no network >&2\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    setup = works.Setup(bench, workload.path.parent, "cpu", 1, 1)
    entry = peers.Entry("joeynmt", ("float32",), peer="joeynmt")
    (one,) = setup.field([entry], "train", "tiny")
    assert one.problem == "its environment cannot be made: ERROR: no network"
    setup.field([entry], "decode", "tiny")  # is not tried again
    assert capsys.readouterr().out.count("Making the environment of joeynmt, some minutes") == 1
    arena.compete([one], lambda c: None, turn, said, rounds=1)
    assert not one.turns


def test_cuda_is_skipped_where_there_is_none(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main(["--device", "cuda"]) == 0
    assert capsys.readouterr().out == "no CUDA device here: nothing measured\n"


@pytest.mark.parametrize(
    ("option", "given", "near"),
    [
        ("work", "trian", "train"),
        ("shapes", "bsae", "base"),
        ("contestants", "hface", "huggingface"),
    ],
)
def test_a_misspelt_name_is_refused(
    option: str, given: str, near: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([f"--{option}", given])
    said = capsys.readouterr().err
    assert f"--{option} has no {given!r}, the nearest is {near!r}; there are: " in said


@pytest.mark.parametrize(
    ("has", "amx", "ours", "theirs"),
    [
        (True, True, ("default", "float32", "bf16"), ("float32", "bf16")),
        (True, False, ("default", "bf16"), ("float32", "bf16")),
        (False, False, ("default",), ("float32",)),
    ],
)
def test_what_a_cpu_only_emulates_is_left_out(
    monkeypatch: pytest.MonkeyPatch, has: bool, amx: bool, ours: Any, theirs: Any
) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    options = arguments().parse_args(["--contestants", "torch.nn", "--device", "cpu"])
    first, second = entries(peers.TRAINING, options)
    assert (first.settings, second.settings) == (ours, theirs)
    monkeypatch.setattr(limit, "SIZE", {"cpu": 16})
    monkeypatch.setattr(limit, "SECONDS", 0)
    assert list(limit.rates("cpu")) == ["float32", "bfloat16"][: 1 + has]


def test_the_plan_by_hand(workload: worker.Workload) -> None:
    setup = works.Setup(Path(), workload.path.parent, "cpu", 1, 1)
    tokens = sum(b.src_tokens + b.tgt_tokens for b in workload.train) / len(workload.train)
    flops = limit.flops_per_token(workload, works.shape_of("tiny", workload.vocab))
    assert plan.step_seconds(setup, "tiny", 1e9) == pytest.approx(tokens * flops / 0.4e9)
    assert [plan.turn_steps(10, seconds) for seconds in (0.1, 4, 99)] == [10, 2, 1]
    trainers = [peers.Entry("ours", ("default",)), peers.Entry("torch_nn", ("float32",))]
    found = plan.plan(trainers, trainers[:1], 4, {"base": 2}, {"tiny": 0.5, "base": 3.0})
    assert found == {
        "train-base": 3 * (5 * 2 * 3.0 + 15), "loss": 3 * 300, "pipeline": 40, "growth": 150,
        "processes": 4 * 70, "bundle": 300, "decode": 5 * 20 + 15, "latency": 5 * 2.5 + 15,
        "startup": 30,
    }  # fmt: skip
    assert list(found)[-4:] == ["bundle", "decode", "latency", "startup"]
    assert [plan.about(seconds) for seconds in (3, 70, 200)] == [
        "10 seconds", "70 seconds", "3 minutes",
    ]  # fmt: skip


def test_the_short_form(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--quick", "--steps", "1", "--threads", "1", "--bench", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "| this package |" in out and "| torch.nn.Transformer |" in out
    assert "not measured" not in out
    assert "\nTo be measured: train-tiny " in out and "; all together about " in out
    assert "\n  ours-default, round 2 of 2: " in out
    assert ("emulates bfloat16" in out) != has_bfloat16("cpu")
    rows = json.loads((tmp_path / "results.json").read_text())["train-tiny"]["rows"]
    assert [row["name"] for row in rows] == ["ours", "torch_nn"]
    assert report.best(rows, "ours") == rows[0]
