"""Runs that begin from old weights: which are kept, which are new, which mistakes are refused."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from parents import SHAPES, begin, parent_of_french
from safetensors.torch import load_file
from torch import Tensor
from toys import sentences

from transformer.bundle import Bundle, load_bundle
from transformer.data.spelling import spellings
from transformer.data.tokenizer import Tokenizer, TokenizerConfig
from transformer.data.tokenizer_training import train_tokenizer
from transformer.models import ModelConfig, Seq2Seq
from transformer.training.transfer import merged, transplant

DE_EN = [" ".join(pair) for pair in sentences(200, seed=1)]
FRENCH = ["un deux trois house chien", "le chat rouge house", "deux arbres bleus dog"] * 20


def vocabulary(lines: list[str], shared: bool = True) -> Tokenizer:
    config = TokenizerConfig(vocab_size=290, shared=shared)
    return train_tokenizer(config, lambda: ((line, line[::-1]) for line in lines))


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
    counts = transplant(model, new, old, "mean")
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


@pytest.mark.parametrize("kind", ["two_way", "untied", "rnn"])
def test_one_vocabulary_takes_its_rows_from_those_of_two_sides(kind: str) -> None:
    shape = SHAPES[kind]
    old, new = bundle(shape, vocabulary(DE_EN, shared=False)), vocabulary(FRENCH)
    model, fresh = new_model(shape, new), new_model(shape, new)
    assert list(transplant(model, new, old, "mean")) == ["source", "target"]
    for name in {*dict(model.named_parameters())} & {*model.ROWS}:
        wanted = torch.stack(by_hand(fresh, new, old, name))
        torch.testing.assert_close(model.get_parameter(name), wanted)


def test_the_same_vocabulary_gives_the_same_model() -> None:
    tokenizer = vocabulary(DE_EN)
    old = bundle(SHAPES["three_way"], tokenizer)
    model = new_model(SHAPES["three_way"], tokenizer)
    assert transplant(model, tokenizer, old, "mean")["shared"] == (tokenizer.src_vocab_size, 0, 0)
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
        transplant(model, tokenizer, old, "mean")
    other = new_model(SHAPES["untied"], tokenizer)
    transplant(other, tokenizer, bundle(SHAPES["three_way"], tokenizer), "mean")


# From the command line


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a German–English bundle `old/bundle`, and a French–English corpus."""
    return parent_of_french(tmp_path_factory.mktemp("trained"))


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
    transplant(model, new.tokenizer, old, "mean")
    dtype = torch.bfloat16 if precision == "bf16-true" else torch.float32
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter.to(dtype).float(), new.model.get_parameter(name))
    stored = load_file(tmp_path / "run/bundle/model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {dtype}


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
        (
            ["--model.init_from=nowhere", "--existing=resume"],
            "; a run that goes on does without: --model.init_from null",
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
    shutil.copytree(trained / "old/bundle", tmp_path / "bundle")
    file = tmp_path / "bundle/tokenizer.json"
    file.write_text(file.read_text().replace('"<pad>"', '"<bad>"'))
    assert begin(trained, tmp_path / "run", f"--model.init_from={tmp_path}/bundle") != 0
    assert "<pad> has id None in tokenizer.json, must be 0" in capsys.readouterr().err
