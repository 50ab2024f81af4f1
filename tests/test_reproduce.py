"""`transformer reproduce` and `transformer table`: checksums, the curve, rows, table and plot."""

import gzip
import hashlib
import json
import re
import shlex
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lightning.pytorch import Trainer
from toys import raising, recipe, write_corpus

from transformer.__main__ import main
from transformer.commands.reproduce import (
    CHECKSUMS,
    NEEDED,
    Curve,
    add_row,
    changes,
    mean_curve,
    moved,
    read_rows,
    where,
)
from transformer.commands.table import TRANSFER, by_length, groups, pictures
from transformer.training.stopping import StopSafely


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe with checksums beside it, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    path = recipe(tmp_path, "recipes/toys/toy.yaml")
    sums = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n"
        for file in sorted((tmp_path / "corpus").iterdir())
    ]
    (path.parent / CHECKSUMS).write_text("".join(sums))
    return path


def reproduce(path: Path, *options: str) -> int:
    return main(["reproduce", str(path), "--logger", "none", "--data.num_workers", "0", *options])


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_reproduce_appends_rows_and_table_shows_them(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in ("1", "2"):
        assert reproduce(toy, "--existing", "number", "--seed_everything", seed) == 0
    other = recipe(tmp_path, "recipes/toys/other.yaml")
    assert reproduce(other) == 0
    printed = capsys.readouterr().out
    assert "6 files of text are those of the recipe; measured runs: 0" in printed
    changed = ("--existing=number", "--model.learning_rate", "0.02")
    assert reproduce(toy, *changed, "--results", "runs/results.jsonl") == 0
    found = rows(tmp_path / "runs/results.jsonl")
    assert [row["changes"] for row in found] == [[], [], [], ["model.learning_rate=0.02"]]
    assert [row["seed"] for row in found] == [1, 2, 1, 1]
    first = found[0]
    assert first["recipe"] == "toys/toy"
    assert len(first["validation_bleu"]) == first["epochs"] == 2
    assert sum(bin_[2] for bin_ in first["bleu_by_length"]) == 10
    assert (tmp_path / "runs/pictures/toys-toy.png").stat().st_size > 1000

    target = tmp_path / "runs/README.md"
    target.write_text("before\n<!-- results -->\nold\n<!-- /results -->\nafter\n")
    assert main(["table", "runs/results.jsonl", "runs/README.md"]) == 0
    text = target.read_text()
    assert text.startswith("before\n<!-- results -->\n") and text.endswith(
        "<!-- /results -->\nafter\n"
    )
    assert "old" not in text
    mean = (found[0]["bleu"] + found[1]["bleu"]) / 2
    lines = [line for line in text.splitlines() if line.startswith("| [toys/toy](toys/toy.yaml)")]
    assert len(lines) == 2 and lines[0].endswith("| A | 1, 2 |")
    assert f"| {mean:.2f} (" in lines[0]
    assert "`--model.learning_rate=0.02`" in lines[1]
    assert "](pictures/bleu_by_length-" in text
    drawn = {path.name for path in (tmp_path / "runs/pictures").iterdir()}
    assert drawn == {"toys-toy.png", "toys-other.png", "bleu_by_length-test.de-en.png"}
    lone = tmp_path / "lone.md"
    lone.write_text("nothing to replace\n")
    assert main(["table", "runs/results.jsonl", "lone.md"]) == 2
    assert "lone.md must have the lines <!-- results -->" in capsys.readouterr().err
    assert lone.read_text() == "nothing to replace\n"
    before = text
    assert main(["table", "runs/results.jsonl", "runs/README.md"]) == 0
    assert target.read_text() == before  # written twice, it is the same


def test_the_curve_of_measured_runs_is_compared(
    toy: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("transformer.commands.reproduce.recipes_folder", lambda: toy.parent.parent)
    measured = {
        "recipe": "toys/toy", "changes": [], "validation_bleu": [100.0, 100.0], "bleu": 100.0,
        "bleu_by_length": [],
        "signature": "", "test": "", "machine": "", "versions": {},
    }  # fmt: skip
    others = [{**measured, "recipe": "toys/other"}, {**measured, "changes": ["average=1"]}]
    text = "".join(json.dumps(row) + "\n" for row in (measured, *others))
    (toy.parent.parent / "results.jsonl").write_text(text)
    assert reproduce(toy) == 0
    printed = capsys.readouterr().out
    assert "measured runs: 1" in printed
    assert printed.count("OFF the curve: BLEU") == 2
    assert reproduce(toy, "--average", "1", "--existing", "number") == 0
    assert "measured runs: 1" in capsys.readouterr().out
    assert reproduce(toy, "--average", "2", "--existing", "number") == 0
    printed = capsys.readouterr().out
    assert "measured runs: 0" in printed and "the curve:" not in printed


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--data.test", "null"], "data.test is null"),
        (
            ["--trainer.limit_test_batches=0.5", "--data.eval_max_tokens=100"],
            "a part of the test set is left out",
        ),
    ],
)
def test_what_is_no_row_is_not_appended(
    options: list[str], why: str, toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce(toy, *options, "--trainer.max_steps", "1") == 0
    printed = capsys.readouterr().out
    assert printed.count(f"Nothing will be appended to runs/results.jsonl: {why}") == 1
    assert "Appended" not in printed and not (tmp_path / "runs/results.jsonl").exists()
    assert json.loads((tmp_path / "runs/toys/toy/results.json").read_text())["bleu"] is not None


def test_no_row_is_appended_that_cannot_be_read(tmp_path: Path) -> None:
    row: dict[str, Any] = dict.fromkeys(NEEDED, "x")
    add_row(tmp_path / "results.jsonl", row)
    with pytest.raises(ValueError, match="results.jsonl, a new line: no 'bleu'"):
        add_row(tmp_path / "results.jsonl", {**row, "bleu": None})
    assert read_rows(tmp_path / "results.jsonl") == [row]


def test_a_run_without_validation_is_a_changed_one() -> None:
    assert changes(["--data.val", "x", "--data.test=y", "--existing=number"]) == []
    assert changes(["--data.val", "null"]) == changes(["--data.val=null"]) == ["data.val=null"]


def test_other_text_is_refused(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(tmp_path / "other", {"train": 40, "val": 4, "test": 4})
    assert reproduce(toy, "--corpus", "other") == 2
    error = capsys.readouterr().err
    assert "other/train.de: its text has the SHA-256" in error and "use `transformer fit`" in error
    assert not (tmp_path / "runs" / "toys" / "toy").exists()
    (tmp_path / "other" / "dev.de").write_text("eins\n")
    (tmp_path / "other" / "dev.en").write_text("one\n")
    assert reproduce(toy, "--data.train", "other/dev") == 2
    assert "has no dev.de, but test.de" in capsys.readouterr().err


def test_gzipped_text_has_the_same_checksum(toy: Path, tmp_path: Path) -> None:
    (tmp_path / "zipped").mkdir()
    for file in (tmp_path / "corpus").iterdir():
        (tmp_path / "zipped" / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    assert reproduce(toy, "--corpus", "zipped", "--trainer.fast_dev_run", "true") == 0


def test_a_damaged_file_is_named(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "broken").mkdir()
    for file in (tmp_path / "corpus").iterdir():
        data = gzip.compress(file.read_bytes())
        (tmp_path / "broken" / f"{file.name}.gz").write_bytes(data[: len(data) // 2])
    assert reproduce(toy, "--corpus", "broken") == 2
    assert "broken/train.de.gz is not a whole gzip file" in capsys.readouterr().err
    assert not (tmp_path / "runs" / "toys" / "toy").exists()


def test_an_interrupted_run_goes_on_and_is_noted(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command that it prints is that of `reproduce`, and resumes."""

    def stop(self: StopSafely, trainer: Trainer, *args: Any) -> None:
        self.signum = signal.SIGINT if trainer.global_step in (7, 8) else 0
        original(self, trainer, *args)

    original = StopSafely.on_train_batch_end
    with monkeypatch.context() as patch:
        patch.setattr(StopSafely, "on_train_batch_end", stop)
        assert reproduce(toy) == 130
        (command,) = re.findall(r"to resume: .* (reproduce .*)", capsys.readouterr().out)
        assert main(shlex.split(command)) == 130
    (command,) = re.findall(r"to resume: .* (reproduce .*)", capsys.readouterr().out)
    assert command.count("--ckpt_path") == 1
    assert not (tmp_path / "runs/results.jsonl").exists()
    assert main(shlex.split(command)) == 0
    (row,) = rows(tmp_path / "runs/results.jsonl")
    assert row["changes"] == [] and len(row["validation_bleu"]) == 2


def test_a_run_that_is_stopped_while_it_uploads_is_noted(
    toy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformer.training.train.log_bundle", raising(KeyboardInterrupt()))
    assert reproduce(toy) == 130
    longer = ["--ckpt_path", "runs/toys/toy/checkpoints/last.ckpt", "--trainer.max_epochs", "3"]
    monkeypatch.setattr("transformer.training.train.evaluate", raising(KeyboardInterrupt()))
    assert reproduce(toy, *longer) == 130, "and has no test"
    assert len(rows(tmp_path / "runs/results.jsonl")) == 1


def test_files_elsewhere_of_a_recipe_with_an_odd_entry(tmp_path: Path) -> None:
    path = tmp_path / "odd.yaml"
    path.write_text("data: {train: a/b, extra_corpora: [{train: 3}, 4]}")
    assert moved(path, Path("c")) == [
        "--data.train=c/b", '--data.extra_corpora=[{"train": "c/3"}, 4]'
    ]  # fmt: skip


def test_a_file_in_place_of_the_hub_must_be_named(
    toy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy.write_text(toy.read_text().replace(f"train: {tmp_path}/corpus/train", "train: hub:x:train"))
    assert reproduce(toy, "--corpus", "corpus") == 2
    assert "data.train from hub:x:train, not from a file" in capsys.readouterr().err


def test_no_recipe_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reproduce"]) == 2
    assert "arguments are required: recipe; see transformer reproduce" in capsys.readouterr().err
    assert main(["reproduce", "--seed_everything", "2", "recipes/quickstart/ko_en.yaml"]) == 2
    assert "the recipe must come first" in capsys.readouterr().err
    assert main(["reproduce", "recipes/quickstart/ko_en.yaml", "-c", "other.yaml"]) == 2
    assert "-c: reproduce takes one recipe" in capsys.readouterr().err
    assert main(["reproduce", "recipes/multi30k/rnn_dott_de_en.yaml"]) == 2
    assert "the nearest is 'recipes/multi30k/rnn_dot_de_en.yaml'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.jsonl", "README.md"], "nothing.jsonl has no results: run"),
        (["results.jsonl", "README.md"], "results.jsonl, line 1: no 'recipe': it must be a row"),
        (["empty.jsonl", "README.md"], "empty.jsonl has no results"),
        (["broken.jsonl", "README.md"], "broken.jsonl, line 1 is not JSON"),
    ],
)
def test_what_table_refuses(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text("nothing to replace\n")
    Path("results.jsonl").write_text("{}\n")
    Path("broken.jsonl").write_text("{\n")
    Path("empty.jsonl").write_text("")
    assert main(["table", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert Path("README.md").read_text() == "nothing to replace\n"


def test_where_a_run_is() -> None:
    assert [where(found, 20.0) for found in (17.5, 22.9, 16.0, 24.0)] == [
        "on the curve", "on the curve", "OFF the curve", "above the curve",
    ]  # fmt: skip
    curves = [{"validation_bleu": [1.0, 3.0, 9.0]}, {"validation_bleu": [2.0, 5.0]}]
    assert mean_curve(curves) == [1.5, 4.0]
    assert mean_curve([{"validation_bleu": [1.0, 5.0, 3.0]}]) == [1.0, 5.0, 5.0]


def test_a_validation_that_falls_stays_on_the_curve(capsys: pytest.CaptureFixture[str]) -> None:
    log: Any = SimpleNamespace(curve=[])
    trainer: Any = SimpleNamespace(
        is_global_zero=True, progress_bar_callback=None, sanity_checking=False,
        state=SimpleNamespace(fn="fit"),
    )  # fmt: skip
    curve: Any = Curve(log, [20.0, 25.0])
    for bleu in (24.0, 1.0, 2.0):  # the measured run was shorter than this one
        log.curve.append(bleu)
        curve.on_validation_end(trainer, None)
    assert capsys.readouterr().out.splitlines() == [
        "  above the curve: BLEU up to 24.00, the measured run 20.00",
        "  on the curve: BLEU up to 24.00, the measured run 25.00",
    ]


def test_runs_that_differ_in_their_seed_are_one_line_and_one_curve() -> None:
    row: dict[str, Any] = {"recipe": "r", "test": "a/t", "changes": [], "machine": "m"}
    seeds = [
        {**row, "bleu_by_length": [[1, 5, 2, 10.0], [6, 10, 3, 20.0]]},
        {**row, "bleu_by_length": [[1, 5, 2, 16.0], [6, 10, 3, 21.0]]},
    ]
    other = {**row, "test": "a/u"}
    assert groups([seeds[0], other, {**seeds[1], "test": "b/t"}]) == [
        [seeds[0], {**seeds[1], "test": "b/t"}], [other],
    ]  # fmt: skip
    assert by_length(seeds) == [[1, 5, 2, 13.0], [6, 10, 3, 20.5]]
    scores: dict[str, Any] = {"pair": "a-b", "before": 95.0, "after": 90.0, "p_value": 0.001}
    one: dict[str, Any] = {"steps": 1000, "parent": scores}
    other = {"steps": 800, "parent": {**scores, "after": 60.0, "p_value": 0.3}}
    assert TRANSFER["steps"]([one, other]) == "800–1,000"
    assert TRANSFER["steps"]([one]) == TRANSFER["steps"]([one, one]) == "1,000"
    assert TRANSFER["parent's pair"]([one]) == "a-b 95.00 → 90.00 (p = 0.001)"
    assert TRANSFER["parent's pair"]([one, other]) == (
        "a-b 95.00 (95.00–95.00) → 75.00 (60.00–90.00) (p ≤ 0.300)"
    )


def test_two_machines_are_two_curves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[list[str]] = []

    def draw(curves: dict[str, Any], title: str) -> Any:
        drawn.append([*curves])
        return SimpleNamespace(savefig=lambda file: None)

    monkeypatch.setattr("transformer.evaluation.plots.draw_bleu_by_length", draw)
    row: dict[str, Any] = {
        "recipe": "r",
        "test": "t",
        "src": "a",
        "tgt": "b",
        "changes": [],
        "signature": "",
    }
    row["bleu_by_length"] = [[1, 5, 2, 10.0]]
    machines = [{**row, "machine": letter, "letter": letter} for letter in "AB"]
    pictures(machines, tmp_path, tmp_path)
    pictures([machines[0], {**machines[0], "recipe": "s"}], tmp_path, tmp_path)
    pictures([*machines, {**machines[0], "recipe": "other/r"}], tmp_path, tmp_path)
    assert drawn == [["r (A)", "r (B)"], ["r", "s"], ["r (A)", "r (B)", "other/r"]]
