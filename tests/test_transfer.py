"""Runs that begin from old weights: what is kept, what is new, what learns."""

import contextlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toys import recipe, sentences

from transformer.__main__ import main
from transformer.bundle import Bundle, load_bundle
from transformer.data.spelling import spellings
from transformer.data.tokenizer import Tokenizer, TokenizerConfig
from transformer.models import ModelConfig, RNNConfig, Seq2Seq, TransformerConfig
from transformer.training.adapters import LoRAConfig, choose_what_learns, merge, merged
from transformer.training.transfer import transplant

DE_EN = [" ".join(pair) for pair in sentences(200, seed=1)]
FRENCH = ["un deux trois house chien", "le chat rouge house", "deux arbres bleus dog"] * 20
TRANSFORMER = {"d_model": 16, "d_ff": 32, "num_heads": 2, "num_layers": 2}
SHAPES: dict[str, ModelConfig] = {
    "three_way": TransformerConfig(**TRANSFORMER),  # type: ignore[arg-type]
    "two_way": TransformerConfig(**TRANSFORMER, tied="two_way"),  # type: ignore[arg-type]
    "untied": TransformerConfig(**TRANSFORMER, tied="none"),  # type: ignore[arg-type]
    "learned": TransformerConfig(**TRANSFORMER, positions="learned"),  # type: ignore[arg-type]
    "rnn": RNNConfig(d_model=16),
}


def vocabulary(lines: list[str], shared: bool = True) -> Tokenizer:
    config = TokenizerConfig(vocab_size=290, shared=shared)
    return Tokenizer.train(config, lambda: lines, lambda: [line[::-1] for line in lines])


def bundle(shape: ModelConfig, tokenizer: Tokenizer) -> Bundle:
    torch.manual_seed(1)
    model = shape.build(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)
    with torch.no_grad():  # so that no value is one that a new model has, too
        for parameter in model.parameters():
            parameter.normal_()
    return Bundle(model, tokenizer, {})


def new_model(shape: ModelConfig, tokenizer: Tokenizer) -> Seq2Seq:
    torch.manual_seed(2)
    return shape.build(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)


def by_hand(model: Seq2Seq, new: Tokenizer, old: Bundle, name: str) -> list[Tensor]:
    """Each row of a parameter as the mean of old rows, one after the other."""
    trained = old.model.get_parameter(name)
    untouched = model.get_parameter(name)
    return [
        torch.stack([trained[i] for i in ids]).mean(0) if ids else untouched[row]
        for row, ids in enumerate(spellings(new, old.tokenizer, model.ROWS[name]))
    ]


@pytest.mark.parametrize(
    ("kind", "shared"),
    [*((kind, True) for kind in SHAPES), *((kind, False) for kind in ("two_way", "untied", "rnn"))],
)
def test_what_is_kept_and_what_is_a_mean(kind: str, shared: bool) -> None:
    shape = SHAPES[kind]
    old, new = bundle(shape, vocabulary(DE_EN, shared)), vocabulary(FRENCH, shared)
    model, fresh = new_model(shape, new), new_model(shape, new)
    counts = transplant(model, new, old)
    assert list(counts) == (["shared"] if shared else ["source", "target"])
    for rows in counts.values():
        assert rows.copied > 260 and rows.mean > 5  # bytes; French pieces
        assert sum(rows) in (new.src_vocab_size, new.tgt_vocab_size)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in model.ROWS:
            wanted = torch.stack(by_hand(fresh, new, old, name))
            torch.testing.assert_close(parameter, wanted)
        else:
            assert torch.equal(parameter, old.model.get_parameter(name))


def test_the_same_vocabulary_gives_the_same_model() -> None:
    tokenizer = vocabulary(DE_EN)
    old = bundle(SHAPES["three_way"], tokenizer)
    model = new_model(SHAPES["three_way"], tokenizer)
    assert transplant(model, tokenizer, old)["shared"] == (tokenizer.src_vocab_size, 0, 0)
    src, lengths = torch.tensor([[5, 6, 2]]), torch.tensor([3])
    old.model.eval(), model.eval()
    hidden = [m(src, lengths, torch.tensor([[1, 7]])) for m in (old.model, model)]
    assert torch.equal(*hidden)


def test_random_rows_are_those_of_a_new_model() -> None:
    shape = SHAPES["three_way"]
    old, new = bundle(shape, vocabulary(DE_EN)), vocabulary(FRENCH)
    model, fresh = new_model(shape, new), new_model(shape, new)
    counts = transplant(model, new, old, "random")["shared"]
    assert counts.mean == 0 and counts.fresh > 5
    rows, untouched = (m.get_parameter("output.weight") for m in (model, fresh))
    same = (rows == untouched).all(1)
    assert int(same.sum()) == counts.fresh
    assert not same[:4].any()


def test_a_matrix_that_was_two_is_refused() -> None:
    tokenizer = vocabulary(DE_EN)
    old = bundle(SHAPES["untied"], tokenizer)
    model = new_model(SHAPES["three_way"], tokenizer)
    with pytest.raises(ValueError, match=r"network\.tied is 'three_way'.*set .* to 'none'"):
        transplant(model, tokenizer, old)
    transplant(
        new_model(SHAPES["untied"], tokenizer), tokenizer, bundle(SHAPES["three_way"], tokenizer)
    )


def learning(model: Seq2Seq) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def one_step(model: Seq2Seq) -> None:
    """An optimizer step on whatever learns, with a loss that says nothing."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.5)
    src, lengths, tgt = torch.tensor([[5, 6, 7, 2]]), torch.tensor([4]), torch.tensor([[1, 8, 9]])
    for _ in range(2):  # of the two matrices of an adapter the first learns from the second step on
        optimizer.zero_grad()
        model.project(model(src, lengths, tgt)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", SHAPES)
def test_frozen_parameters_do_not_move(kind: str) -> None:
    model = SHAPES[kind].build(30, 30)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learned = choose_what_learns(model, ["encoder.*", "src_embedding*"], LoRAConfig())
    one_step(model)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == learning(model)
    assert not any(name.startswith(("encoder.", "src_embedding")) for name in moved)
    assert learned == sum(before[name].numel() for name in moved)
    assert "decoder.0." in " ".join(moved)


def test_a_tied_matrix_is_frozen_by_any_of_its_names() -> None:
    model = SHAPES["three_way"].build(30, 30)
    choose_what_learns(model, ["output.weight"], LoRAConfig())
    assert "src_embedding.tokens.weight" not in learning(model)


@pytest.mark.parametrize("kind", SHAPES)
def test_adapters_begin_as_nothing_and_merge_into_the_same_model(kind: str) -> None:
    torch.manual_seed(0)
    model = SHAPES[kind].build(30, 30).eval()
    src, lengths, tgt = torch.tensor([[5, 6, 7, 2]]), torch.tensor([4]), torch.tensor([[1, 8, 9]])

    def logits() -> Tensor:
        return model.project(model(src, lengths, tgt)).detach()

    plain, names = logits(), set(model.state_dict())
    learned = choose_what_learns(model, ["*"], LoRAConfig(rank=2, alpha=8))
    assert torch.equal(logits(), plain)
    assert all(".parametrizations.weight.0." in name for name in learning(model))
    assert learned == sum(p.numel() for p in model.parameters() if p.requires_grad)
    one_step(model)
    adapted, weights = logits(), merged(model.state_dict())
    assert (adapted - plain).abs().max() > 1e-4
    merge(model)
    torch.testing.assert_close(logits(), adapted)
    assert set(model.state_dict()) == set(weights) == names
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_an_adapter_is_what_the_paper_says() -> None:
    model = SHAPES["three_way"].build(30, 30)
    choose_what_learns(model, [], LoRAConfig(rank=3, alpha=6, targets=("decoder.0.*inner*",)))
    layer: Any = model.get_submodule("decoder.0.feed_forward.inner")
    original, low = layer.parametrizations.weight.original, layer.parametrizations.weight[0]
    with torch.no_grad():
        low.b.normal_()
    assert (low.a.shape, low.b.shape) == ((3, 16), (32, 3))
    wanted = original + torch.einsum("or,ri->oi", low.b, low.a) * 6 / 3
    torch.testing.assert_close(layer.weight, wanted)
    adapters = {name for name in learning(model) if ".parametrizations." in name}
    assert len(adapters) == 2
    assert "decoder.0.feed_forward.inner.bias" in learning(model)


@pytest.mark.parametrize(
    ("freeze", "lora", "message"),
    [
        (
            ["encodr.*"],
            LoRAConfig(),
            r"model\.freeze: 'encodr\.\*' matches none .* nearest is 'enc",
        ),
        ([], LoRAConfig(rank=2, targets=("*decoder*", "x")), r"model\.lora\.targets: 'x' matches"),
        (["*"], LoRAConfig(), r"model\.freeze: every parameter is frozen"),
    ],
)
def test_what_cannot_be_frozen_or_adapted(
    freeze: list[str], lora: LoRAConfig, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        choose_what_learns(SHAPES["three_way"].build(30, 30), freeze, lora)


def test_a_rank_below_zero() -> None:
    with pytest.raises(ValueError, match=r"model\.lora\.rank is -1"):
        LoRAConfig(rank=-1)


# From the command line


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a German–English bundle `old/bundle`, and a French–English corpus."""
    folder = tmp_path_factory.mktemp("transfer")
    longer = ["--trainer.max_epochs=30", "--model.search.beam=1"]
    assert run(recipe(folder), f"--run_dir={folder}/old", *longer) == 0
    for split, size in (("train", 120), ("val", 12), ("test", 10)):
        pairs = [(de.replace("ei", "oi"), en) for de, en in sentences(size, seed=size)]
        for side, lines in zip(("fr", "en"), zip(*pairs, strict=True), strict=True):
            text = "".join(f"{line}\n" for line in lines)
            (folder / "corpus" / f"french-{split}.{side}").write_text(text)
    splits = [f"{split}: {folder}/corpus/french-{split}" for split in ("train", "val", "test")]
    (folder / "french.yaml").write_text(
        "model: {schedule: constant, learning_rate: 0.01, warmup_steps: 0, search: {beam: 1}}\n"
        f"data: {{{', '.join(splits)}, src: fr, tgt: en, cache: {folder}/cache, "
        "tokenizer: {vocab_size: 290}, max_length: 60, max_tokens: 200}\n"
        "trainer: {max_epochs: 2, accelerator: cpu}\n"
    )
    return folder


def run(config: Path, *args: str) -> int:
    quiet = ["--logger", "none", "--trainer.enable_progress_bar", "false"]
    return main(["fit", "--config", str(config), *quiet, *args])


def begin(folder: Path, out: Path, *args: str) -> int:
    options = [f"--model.init_from={folder}/old/bundle", f"--run_dir={out}", *args]
    return run(folder / "french.yaml", *options)


def old_pair(folder: Path, *options: str) -> list[str]:
    return [f"--old_pair.test={folder}/corpus/test", *options]


def test_a_run_begins_from_a_bundle(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert begin(trained, tmp_path / "run") == 0
    out = capsys.readouterr().out
    assert f"begun from {trained}/old/bundle (de → en)" in out
    old, new = load_bundle(trained / "old/bundle"), load_bundle(tmp_path / "run/bundle")
    assert new.model.config == old.model.config  # though the recipe says nothing of the network
    spelled = spellings(new.tokenizer, old.tokenizer, "src")
    copied, fresh = (sum(len(ids) == size for ids in spelled) for size in (1, 0))
    means = len(spelled) - copied - fresh
    line = f"shared vocabulary: {copied:,} rows copied, {means:,} the mean of old pieces, "
    results = json.loads((tmp_path / "run/results.json").read_text())
    card = (tmp_path / "run/bundle/README.md").read_text()
    assert line in out and line in card and line in results["origin"][1]


@pytest.mark.parametrize("precision", ["32-true", "bf16-true"])
def test_the_first_step_starts_from_the_old_weights(
    precision: str, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One step of a model as small as this can be emulated.
    monkeypatch.setattr("transformer.kernels.has_bfloat16", lambda device: True)
    nothing = ["--model.learning_rate=0", "--trainer.max_steps=1"]
    nothing.append(f"--trainer.precision={precision}")
    assert begin(trained, tmp_path / "run", *nothing) == 0
    old, new = load_bundle(trained / "old/bundle"), load_bundle(tmp_path / "run/bundle")
    model = old.model.config.build(new.tokenizer.src_vocab_size, new.tokenizer.tgt_vocab_size)
    transplant(model, new.tokenizer, old)
    for name, parameter in model.named_parameters():
        found = new.model.get_parameter(name)
        assert torch.equal(parameter.to(found.dtype), found)
    assert found.dtype == (torch.bfloat16 if precision == "bf16-true" else torch.float32)


def test_a_run_with_adapters_leaves_a_plain_bundle(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora = ["--model.lora.rank=2", "--model.freeze=[encoder.*, decoder.*]", "--average=2"]
    assert begin(trained, tmp_path / "run", *lora) == 0
    old, new = load_bundle(trained / "old/bundle"), load_bundle(tmp_path / "run/bundle")
    assert set(new.model.state_dict()) == set(old.model.state_dict())
    for name, parameter in old.model.named_parameters():
        same = torch.equal(parameter, new.model.get_parameter(name)) if "coder" in name else False
        assert same == ("coder" in name and (parameter.dim() == 1))  # biases and norms are frozen
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert 0 < results["learned_parameters"] < results["parameters"]
    assert f"{results['learned_parameters']:,} of them learn" in capsys.readouterr().out
    # The mean of the weights, not of the adapters.
    saved = sorted((tmp_path / "run/checkpoints").glob("weights-*.ckpt"))
    states = [merged(torch.load(path, weights_only=True)["state_dict"]) for path in saved]
    name = "encoder.0.feed_forward.inner.weight"
    mean = sum(state[f"network.{name}"].double() for state in states) / 2
    assert len(states) == 2
    torch.testing.assert_close(new.model.get_parameter(name).double(), mean, check_dtype=False)


def test_a_run_with_adapters_is_resumed(trained: Path, tmp_path: Path) -> None:
    lora = ["--model.lora.rank=2", "--trainer.precision=32-true"]
    assert begin(trained, tmp_path / "whole", *lora) == 0
    assert begin(trained, tmp_path / "half", *lora, "--trainer.max_epochs=1") == 0
    (tmp_path / "half/bundle").rename(tmp_path / "half/first")
    last = f"--ckpt_path={tmp_path}/half/checkpoints/last.ckpt"
    assert begin(trained, tmp_path / "half", *lora, last) == 0
    whole, half = (load_bundle(tmp_path / name / "bundle") for name in ("whole", "half"))
    for name, parameter in whole.model.named_parameters():
        assert torch.equal(parameter, half.model.get_parameter(name))
    results = [json.loads((tmp_path / n / "results.json").read_text()) for n in ("whole", "half")]
    assert results[0]["origin"] == results[1]["origin"] != []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.network.d_model=32"], "model.network.d_model is 32, but"),
        (["--architecture=rnn"], "architecture is rnn, but model.init_from"),
        (["--model.freeze=[decoder.9.*]"], "model.freeze: 'decoder.9.*' matches none"),
        (
            ["--model.init_from=nowhere"],
            "model.init_from: nowhere is not a bundle (no such folder)",
        ),
    ],
)
def test_mistakes_leave_one_line_and_nothing_else(
    trained: Path, tmp_path: Path, options: list[str], message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert begin(trained, tmp_path / "run", *options) != 0
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "run").exists()


def test_a_pickle_is_refused_and_never_loaded(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return (Path.touch, (tmp_path / "owned",))

    import pickle
    import shutil

    pickle_file = tmp_path / "model.pt"
    pickle_file.write_bytes(pickle.dumps(Evil()))
    assert begin(trained, tmp_path / "run", f"--model.init_from={pickle_file}") != 0
    assert "may be a pickle" in capsys.readouterr().err
    inside = tmp_path / "bundle"
    shutil.copytree(trained / "old/bundle", inside)
    (inside / "model.safetensors").write_bytes(pickle.dumps(Evil()))
    assert begin(trained, tmp_path / "run", f"--model.init_from={inside}") != 0
    assert "weights must be a safetensors file" in capsys.readouterr().err
    assert not (tmp_path / "owned").exists()


def test_a_tokenizer_with_other_special_ids(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import shutil

    shutil.copytree(trained / "old/bundle", tmp_path / "bundle")
    file = tmp_path / "bundle/tokenizer.json"
    file.write_text(file.read_text().replace('"<pad>"', '"<bad>"'))
    assert begin(trained, tmp_path / "run", f"--model.init_from={tmp_path}/bundle") != 0
    assert "<pad> has id None in tokenizer.json, must be 0" in capsys.readouterr().err


def test_a_pair_is_added(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Tags are the only rows that the old vocabulary cannot spell; both directions translate."""
    also = [
        {"train": f"{trained}/corpus/train", "src": "de", "tgt": "en", "share": 0.3},
        {"train": f"{trained}/corpus/french-train", "src": "en", "tgt": "fr"},
    ]
    mixture = ["--data.tags=true", f"--data.extra_corpora={json.dumps(also)}"]
    assert begin(trained, tmp_path / "run", *mixture, *old_pair(trained)) == 0
    results = json.loads((tmp_path / "run/results.json").read_text())
    assert results["origin"][1].endswith(" 2 with initial values")
    assert results["old_pair"]["pair"] == "de-en"
    capsys.readouterr()
    for language in ("en", "fr"):
        assert main(["translate", str(tmp_path / "run/bundle"), "oins", f"--to={language}"]) == 0
    # The old bundle has no tags.
    assert main(["translate", str(trained / "old/bundle"), "eins", "--to=fr"]) != 0
    assert "--to" in capsys.readouterr().err


# What became of the old pair


@pytest.fixture(scope="module")
def watched(trained: Path) -> tuple[Path, str]:
    """The folder of a run that measured what it forgot, and what it printed."""
    folder, out = trained / "watched", io.StringIO()
    with contextlib.redirect_stdout(out):
        assert begin(trained, folder, *old_pair(trained), "--logger=csv") == 0
    return folder, out.getvalue()


def test_the_old_pair_is_scored_before_and_after(
    trained: Path, watched: tuple[Path, str], tmp_path: Path
) -> None:
    run, out = watched
    found = json.loads((run / "results.json").read_text())["old_pair"]
    # The same by the package's other way to a score.
    for name, bundle in (("before", trained / "old/bundle"), ("after", run / "bundle")):
        test = ["test", str(bundle), f"--data.test={trained}/corpus/test", "--data.src=de"]
        greedy = ["--beam=1", "--max_extra=50", f"--run_dir={tmp_path}/{name}"]
        assert main([*test, *greedy]) == 0
        scores = json.loads((tmp_path / name / "results.json").read_text())
        assert found[name] == pytest.approx(scores["bleu"])
    assert found["before"] > found["after"] and not found["forgotten"]
    before = f"old pair de-en ({trained}/corpus/test): BLEU {found['before']:.2f}"
    assert f"{before} before" in out and f"{before} ± " in out
    assert f"{before} ± " in (run / "bundle/README.md").read_text()
    metrics = (run / "metrics.csv").read_text()
    assert "old_pair/before" in metrics and str(found["after"])[:6] in metrics


@pytest.mark.parametrize(("slack", "code"), [(-0.01, 3), (0.01, 0)])
def test_a_forgotten_pair_ends_with_an_error(
    trained: Path, watched: tuple[Path, str], tmp_path: Path, slack: float, code: int,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    found = json.loads((watched[0] / "results.json").read_text())["old_pair"]
    limit = found["before"] - found["after"] + slack
    options = old_pair(trained, f"--old_pair.max_drop={limit}")
    assert begin(trained, tmp_path / "run", *options) == code
    kept = json.loads((tmp_path / "run/bundle/config.json").read_text())["training"]["old_pair"]
    assert kept["forgotten"] == (code == 3)
    card = (tmp_path / "run/bundle/README.md").read_text()
    assert ("FORGOTTEN" in card) == ("FORGOTTEN" in capsys.readouterr().out) == (code == 3)
    load_bundle(tmp_path / "run/bundle")


def test_an_old_pair_without_a_bundle(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(trained / "french.yaml", *old_pair(trained)) != 0
    assert "give model.init_from, or leave old_pair out" in capsys.readouterr().err


def test_an_old_pair_that_is_not_there(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert begin(trained, tmp_path / "run", f"--old_pair.test={trained}/corpus/tset") != 0
    error = capsys.readouterr().err
    assert "old_pair.test: neither" in error and error.count("\n") == 1
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
    gate = old_pair(trained, "--old_pair.max_drop=-100")
    assert main([*run, start, *frozen, *gate]) == 3
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
    old = row["old_pair"]
    assert begun[7].startswith(f"de-en {old['before']:.2f} → {old['after']:.2f} (p = ")
    assert scratch[1:4] == ["scratch", "120", "all"] and scratch[7] == "–"
