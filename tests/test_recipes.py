"""Every recipe of the project: its settings are those of its paper, and it runs."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from benchmarks.papers import BIG, TINY
from toys import recipe, write_corpus

from transformer.__main__ import main
from transformer.commands.reproduce import check_data
from transformer.data.corpus import open_corpus
from transformer.errors import UserError
from transformer.models import ARCHITECTURES, RNNConfig, TransformerConfig
from transformer.training.objective import learning_rate

FOLDER = Path(__file__).resolve().parent.parent / "recipes"
RECIPES = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.yaml"))


def read(name: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
    return content


def network(name: str) -> TransformerConfig:
    return TransformerConfig(**read(name).get("model", {}).get("network", {}))


def begun_from_a_toy(name: str, folder: Path) -> list[str]:
    """Options that replace the bundle and the further corpora that a recipe names."""
    content, corpus = read(name), f"{folder}/corpus"
    options = []
    if "init_from" in content["model"]:
        toy = [
            "fit",
            "--config",
            str(recipe(folder / "toy")),
            f"--run_dir={folder}/old",
            "--logger=none",
        ]
        assert main(toy) == 0
        options.append(f"--model.init_from={folder}/old/bundle")
    if "extra_corpora" in content["data"]:
        also = [{**entry, "train": f"{corpus}/train"} for entry in content["data"]["extra_corpora"]]
        options.append(f"--data.extra_corpora={json.dumps(also)}")
    if "parent" in content:
        options.append(f"--parent.test={corpus}/test")
        options.append("--parent.max_drop=null")  # one batch is enough to forget
    return options


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One batch of everything on a small local corpus, whatever data the recipe names."""
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "corpus", {"train": 40, "val": 4, "test": 4})
    args = ["fit", "--config", str(FOLDER / name), "--trainer.fast_dev_run", "true"]
    for split in ("train", "val", "test"):
        args += [f"--data.{split}", str(tmp_path / "corpus" / split)]
    args += ["--data.src", "de", "--data.tgt", "en", "--data.cache", str(tmp_path / "cache")]
    args += begun_from_a_toy(name, tmp_path)
    # A model that has seen one batch never ends a sentence: do not wait for all 50 extra tokens.
    args += ["--data.tokenizer.vocab_size", "300", "--model.search.max_extra", "2"]
    # For a GPU and days of training: for one batch it would compile for minutes.
    args += ["--model.compile", "false"]
    if "init_from" not in read(name).get("model", {}):  # that network is the bundle's
        args += ["--model.network.num_layers", "1"]  # as wide as it is, of big a sixth
    assert main([*args, "--trainer.accelerator", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "test BLEU" in printed
    pairs = 80 if "extra_corpora" in read(name)["data"] else 40  # all that there are
    assert f"{Path(name).with_suffix('')}: de -> en, {pairs} pairs" in printed


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_holds_only_what_differs(name: str) -> None:
    """A value that equals its default says nothing, and hides what the recipe is about."""
    shape = ARCHITECTURES[read(name).get("architecture", "transformer")]
    defaults = asdict(shape())
    for key, value in read(name).get("model", {}).get("network", {}).items():
        assert defaults[key] != value, key


@pytest.mark.parametrize(
    ("name", "preset"),
    [
        ("wmt14/base_en_de.yaml", TransformerConfig()),
        ("wmt14/base_en_fr.yaml", TransformerConfig()),
        ("wmt14/big_en_de.yaml", BIG),
        ("wmt14/big_en_fr.yaml", replace(BIG, dropout=0.1)),  # section 6.1
        ("multi30k/tiny_en_de.yaml", TINY),
        ("multi30k/tiny_en_de_lc.yaml", TINY),
    ],
)
def test_networks_are_those_of_the_papers(name: str, preset: TransformerConfig) -> None:
    assert network(name) == preset


def test_the_rungs_of_the_ladder_differ_in_their_attention_alone() -> None:
    """All `rnn_` recipes that there are; a score may be without one."""
    rungs = {}
    for name in (name for name in RECIPES if Path(name).name.startswith("rnn_")):
        content = read(name)
        shape = RNNConfig(**content["model"].pop("network"))
        assert shape == RNNConfig(num_layers=2, dropout=0.3, attention=shape.attention)
        rungs[shape.attention] = content
    assert {"none", "dot", "scaled_dot", "additive"} <= rungs.keys()
    assert all(content == rungs["none"] for content in rungs.values())


def test_the_last_rung_differs_from_them_in_its_model_and_learning_rate() -> None:
    rnn, transformer = (read(f"multi30k/{n}_de_en.yaml") for n in ("rnn", "transformer_small"))
    assert rnn.pop("architecture") == "rnn"
    positions = transformer["model"]["network"]["max_positions"]
    assert transformer["data"].pop("max_length") == positions
    for content in (rnn, transformer):
        del content["model"]["network"], content["model"]["learning_rate"]
    assert rnn == transformer


def test_no_recipe_is_without_its_checksums() -> None:
    """Every file that a recipe of Multi30k names has one."""
    sums = (FOLDER / "multi30k" / "SHA256SUMS").read_text().split()[1::2]
    for name in (name for name in RECIPES if name.startswith("multi30k/")):
        data = read(name)["data"]
        languages = {data["src"], data["tgt"]}
        for split in ("train", "val", "test"):
            if not data[split].startswith("hub:"):
                assert {f"{Path(data[split]).name}.{side}" for side in languages} <= {*sums}


def test_the_quickstarts_text_is_that_of_its_checksums() -> None:
    data = read("quickstart/ko_en.yaml")["data"]
    splits = [data[split] for split in ("train", "val", "test")]
    corpora = [open_corpus(spec, "ko", "en") for spec in splits]
    assert check_data(corpora, FOLDER / "quickstart") == 3
    with pytest.raises(UserError, match=r"has no train\.tsv"):
        check_data(corpora, FOLDER / "multi30k")


@pytest.mark.parametrize(("size", "steps", "average"), [("base", 100_000, 5), ("big", 300_000, 20)])
@pytest.mark.parametrize("pair", ["en_de", "en_fr"])
def test_wmt_recipes_train_as_the_paper_did(size: str, steps: int, average: int, pair: str) -> None:
    """Sections 5.1, 5.2 and 6.1; what is not in the recipe is the default, tested elsewhere."""
    content = read(f"wmt14/{size}_{pair}.yaml")
    assert content["trainer"]["max_steps"] == steps
    assert content["average"] == average
    assert content["data"]["max_tokens"] == 25_000
    assert content["data"]["tokenizer"]["vocab_size"] == (37_000 if pair == "en_de" else 32_000)
    assert "schedule" not in content.get("model", {})


def test_defaults_are_the_papers() -> None:
    from transformer.inference.search import SearchConfig
    from transformer.training.module import Seq2SeqModule

    module = Seq2SeqModule()
    assert module.adam == {"betas": (0.9, 0.98), "eps": 1e-9, "weight_decay": 0.0}
    assert (module.label_smoothing, module.schedule, module.warmup_steps) == (0.1, "noam", 4000)
    peak = learning_rate("noam", 4000, module.learning_rate, warmup_steps=4000, d_model=512)
    assert peak == pytest.approx(512**-0.5 * 4000**-0.5)
    assert SearchConfig() == SearchConfig(beam=4, length_norm="gnmt", alpha=0.6, max_extra=50)
