"""Catastrophic forgetting: the parent's pair before and after, and runs that train it along."""

import contextlib
import io
import json
from pathlib import Path

import pytest
from parents import begin, gate, parent_of_french, run

from transformer.__main__ import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a German–English bundle `old/bundle`, and a French–English corpus."""
    return parent_of_french(tmp_path_factory.mktemp("trained"))


def test_a_pair_is_added(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tags are the only rows that the old vocabulary cannot spell; both directions translate."""
    also = [
        {"train": f"{trained}/corpus/train", "src": "de", "tgt": "en", "share": 0.3},
        {"train": f"{trained}/corpus/french-train", "src": "en", "tgt": "fr"},
    ]
    mixture = ["--data.tags=true", f"--data.extra_corpora={json.dumps(also)}"]
    assert begin(trained, tmp_path / "run", *mixture, *gate(trained)) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["origin"][1].endswith(" 2 with initial values")
    assert results["parent"]["pair"] == "de-en"
    capsys.readouterr()
    for language in ("en", "fr"):
        assert main(["translate", str(tmp_path / "run/bundle"), "oins", f"--to={language}"]) == 0
    # The old bundle has no tags.
    assert main(["translate", str(trained / "old/bundle"), "eins", "--to=fr"]) != 0
    assert "--to" in capsys.readouterr().err


@pytest.fixture(scope="module")
def watched(trained: Path) -> tuple[Path, str]:
    """The folder of a run that measured what it forgot, and what it printed."""
    folder, out = trained / "watched", io.StringIO()
    with contextlib.redirect_stdout(out):
        assert begin(trained, folder, *gate(trained), "--logger=csv") == 0
    return folder, out.getvalue()


def test_the_parents_pair_is_scored_before_and_after(
    trained: Path, watched: tuple[Path, str], tmp_path: Path
) -> None:
    run, out = watched
    found = json.loads((run / "results.json").read_text())["parent"]
    # The same by the package's other way to a score.
    for name, bundle in (("before", trained / "old/bundle"), ("after", run / "bundle")):
        test = ["test", str(bundle), f"--data.test={trained}/corpus/test", "--data.src=de"]
        greedy = ["--beam=1", "--max_extra=50", f"--run_dir={tmp_path}/{name}"]
        assert main([*test, *greedy]) == 0
        scores = json.loads((tmp_path / name / "results.json").read_text())
        assert found[name] == pytest.approx(scores["bleu"])
    assert found["before"] > found["after"] and not found["forgotten"]
    before = f"parent's pair de-en ({trained}/corpus/test): BLEU {found['before']:.2f}"
    assert f"{before} before" in out and f"{before} ± " in out
    assert f"{before} ± " in (run / "bundle/README.md").read_text()
    metrics = (run / "metrics.csv").read_text()
    assert "parent/before" in metrics and str(found["after"])[:6] in metrics


@pytest.mark.parametrize(("slack", "code"), [(-0.01, 3), (0.01, 0)])
def test_a_forgotten_pair_ends_with_an_error(
    trained: Path, watched: tuple[Path, str], tmp_path: Path, slack: float, code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    found = json.loads((watched[0] / "results.json").read_text())["parent"]
    limit = found["before"] - found["after"] + slack
    options = gate(trained, f"--parent.max_drop={limit}")
    assert begin(trained, tmp_path / "run", *options) == code
    kept = json.loads((tmp_path / "run/bundle/config.json").read_text())["training"]["parent"]
    assert kept["forgotten"] == (code == 3)
    card = (tmp_path / "run/bundle/README.md").read_text()
    assert ("FORGOTTEN" in card) == ("FORGOTTEN" in capsys.readouterr().out) == (code == 3)


def test_a_parents_pair_without_a_bundle(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(trained / "french.yaml", *gate(trained)) != 0
    assert "give model.init_from, or leave parent out" in capsys.readouterr().err


def test_a_parents_pair_that_is_not_there(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert begin(trained, tmp_path / "run", f"--parent.test={trained}/corpus/tset") != 0
    error = capsys.readouterr().err
    assert "parent.test: neither" in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_table_of_runs_that_began_from_bundles(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of one that forgot, and of one from scratch to compare with."""
    monkeypatch.chdir(tmp_path)
    quiet = ["--logger=none", "--trainer.enable_progress_bar=false", "--existing=number"]
    run = ["reproduce", str(trained / "french.yaml"), "--results=runs/transfer.jsonl", *quiet]
    start = f"--model.init_from={trained}/old/bundle"
    frozen = ["--model.freeze=[encoder.*]", "--data.limit=50"]
    limit = gate(trained, "--parent.max_drop=-100")
    assert main([*run, start, *frozen, *limit]) == 3
    shape = [
        "--model.init_from=null",
        "--model.network.d_model=16",
        "--model.network.d_ff=32",
        "--model.network.num_heads=2",
    ]
    assert main([*run, *shape, "--model.network.num_layers=1"]) == 0
    (tmp_path / "README.md").write_text("<!-- transfer -->\n<!-- /transfer -->\n")
    assert main(["table", "runs/transfer.jsonl", "README.md"]) == 0
    begun, scratch = (
        line.split(" | ")
        for line in (tmp_path / "README.md").read_text().splitlines()
        if line.startswith("| [")
    )
    row = json.loads((tmp_path / "runs/transfer.jsonl").read_text().splitlines()[0])
    assert "`--data.limit=50`" in begun[0]
    assert begun[1].startswith(f"begun from {trained}/old/bundle (de → en); shared vocabulary: ")
    share = row["learned_parameters"] / row["parameters"]
    assert begun[2:4] == ["50", f"{row['learned_parameters']:,} ({share:.1%})"]
    old = row["parent"]
    assert begun[7].startswith(f"de-en {old['before']:.2f} → {old['after']:.2f} (p = ")
    assert scratch[1:4] == ["scratch", "120", "all"] and scratch[7] == "–"
