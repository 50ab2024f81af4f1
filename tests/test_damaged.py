"""Damaged and odd files, each refused in a line; `make reliability` tries thousands of them."""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reliability import fuzz_files
from reliability.cases import READ, REFUSED, outcome
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_average import checkpoint
from test_translator import save

from transformer import hub
from transformer.bundle import load_bundle
from transformer.checksum import checksum
from transformer.data.dataset import cached
from transformer.errors import UserError
from transformer.training.checkpoint_files import WholeFiles, read_checkpoint
from transformer.training.runs import recipe_name

FEW = settings(
    derandomize=True, deadline=None, database=None, max_examples=25,
    suppress_health_check=list(HealthCheck),
)  # fmt: skip
RANDOM = st.randoms(use_true_random=False)


@FEW
@given(rng=RANDOM, kind=st.sampled_from(["bundles", "bundles", "bundles", "results", "recipes"]))
def test_files_that_few_expect(shared: Path, rng: Any, kind: str) -> None:
    place = shared / "place"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    found = outcome(fuzz_files.KINDS[kind](rng, place, shared))
    assert found in (READ, REFUSED), found


def told(bundle: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    with safe_open(bundle / "model.safetensors", "pt") as file:
        return load_file(bundle / "model.safetensors"), dict(file.metadata())


def test_weights_that_are_not_those_that_were_saved(tmp_path: Path) -> None:
    """A bit that flipped, two matrices exchanged; a bundle from before checksums is read."""
    save(tmp_path / "b")
    file = tmp_path / "b" / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:])
    with pytest.raises(UserError, match=r"the weights or the network are not those that were"):
        load_bundle(tmp_path / "b")
    file.write_bytes(whole)
    weights, metadata = told(tmp_path / "b")
    one, other = (f"encoder.{n}.feed_forward.inner.weight" for n in (0, 1))
    weights[one], weights[other] = weights[other], weights[one]
    save_file(weights, file, metadata)
    with pytest.raises(UserError, match=r"the weights or the network are not those that were"):
        load_bundle(tmp_path / "b")
    del metadata["checksum"]
    save_file(weights, file, metadata)
    load_bundle(tmp_path / "b")


def test_a_network_that_is_not_the_one_that_was_saved(tmp_path: Path) -> None:
    """Heads have no weights of their own; settings of the search may be changed by hand."""
    save(tmp_path / "b")
    path = tmp_path / "b" / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"search": config["search"] | {"beam": 7}}))
    assert load_bundle(tmp_path / "b").config["search"]["beam"] == 7
    path.write_text(json.dumps(config | {"network": config["network"] | {"num_heads": 4}}))
    with pytest.raises(UserError, match=r"the weights or the network are not those that were"):
        load_bundle(tmp_path / "b")


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("d_model", 10**12, "it must be 65,536 or less"),
        ("num_layers", 10**9, "it must be 1,000 or less"),
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_built(
    tmp_path: Path, key: str, value: int, reason: str
) -> None:
    save(tmp_path / "b")
    path = tmp_path / "b" / "config.json"
    config = json.loads(path.read_text())
    config["network"][key] = value
    path.write_text(json.dumps(config))
    with pytest.raises(UserError, match=f"model.network.{key} is {value}: {reason}"):
        load_bundle(tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"[" * 100_000, r"config.json is not JSON \(.*recursion"),
        ("config.json", b"\xff", "config.json is not JSON"),
        ("tokenizer.json", b"\xff", "the tokenizer is not UTF-8"),
        ("tokenizer.json", b"{}", "tokenizer.json cannot be read"),
    ],
)
def test_files_of_a_bundle_that_are_no_text(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    save(tmp_path / "b")
    (tmp_path / "b" / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        load_bundle(tmp_path / "b")


def test_weights_of_another_type(tmp_path: Path) -> None:
    save(tmp_path / "b")
    weights, metadata = told(tmp_path / "b")
    name, weight = weights.popitem()
    for other in (weight.double(), weight.to(torch.int8)):
        save_file({**weights, name: other}, tmp_path / "b" / "model.safetensors", metadata)
        with pytest.raises(UserError, match=rf"{other.dtype}.*: must be of one float"):
            load_bundle(tmp_path / "b")


def test_a_damaged_name_of_a_checksum(tmp_path: Path) -> None:
    save(tmp_path / "b")
    file = tmp_path / "b" / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"checksum"', b'"checkrum"'))
    with pytest.raises(UserError, match="tells its 'checkrum', which no bundle does"):
        load_bundle(tmp_path / "b")


def test_tensors_of_a_checkpoint_that_were_exchanged(tmp_path: Path) -> None:
    """Each with its right checksum in the archive; a checkpoint from before checksums is read."""
    old, new, bad = (tmp_path / f"{name}.ckpt" for name in ("old", "new", "bad"))
    checkpoint(old, 1)
    content = torch.load(old, weights_only=True)
    WholeFiles().save_checkpoint(content, new)
    right, found = (read_checkpoint(path)["state_dict"] for path in (old, new))
    assert all(torch.equal(found[name], right[name]) for name in right)
    with zipfile.ZipFile(new) as source, zipfile.ZipFile(bad, "w") as target:
        entries = {entry.filename: entry.file_size for entry in source.infolist()}
        large = [name for name in entries if entries[name] == 64 * 32 * 4]
        names = dict(zip(large, large[::-1], strict=True))
        for name in entries:
            target.writestr(name, source.read(names.get(name, name)))
    with pytest.raises(UserError, match=r"bad.ckpt is not what was saved"):
        read_checkpoint(bad)
    torch.save({"bundle": {}, "state_dict": {}}, bad)
    with pytest.raises(UserError, match="is not a checkpoint that `transformer fit` wrote"):
        read_checkpoint(bad)


def test_a_checksum_knows_order_names_shapes_and_types() -> None:
    """Nothing else than what torch gives back after it was saved changes nothing."""
    content = {"a": torch.ones(2, 3), "b": [1, 2.5, None, {"c": torch.tensor(3)}], 4: "text"}
    found = checksum(content)
    others: list[Any] = [
        {"a": torch.ones(3, 2)}, {"a": torch.ones(2, 3).int()}, {"b": [2.5, 1]}, {4: "texts"},
    ]  # fmt: skip
    assert len({found, *(checksum({**content, **other}) for other in others)}) == 5
    assert found == checksum({**content, "a": torch.ones(3, 2).T})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("average: 1\naverage: 2\n", ":2: average is set a second time: leave one"),
        ("model: {warmup_steps: 1, warmup_steps: 2}\n", ":1: warmup_steps is set a second time"),
        ("<<: {average: 2}\n", ":1: a key must be a word, and `<<` is not read"),
        (f"average: {'[' * 30}{']' * 30}\n", ":1: it is nested too deeply"),
        (f"average: {'[' * 9000}{']' * 9000}\n", ": it is nested too deeply"),
        ("average: &a [*a]\n", ":1: it is nested too deeply"),
        ("average: !!python/object/apply:os.system [ls]\n", "os.system is not known"),
        ("average: \x00\n", ": unacceptable character #x0000"),
        ("model: {learning_rate: .nan}\n", "model.learning_rate is nan: it must be at least 0"),
        ("model: {learning_rate: .inf}\n", "model.learning_rate is inf: it must be at least 0"),
        ("model: {network: {d_ff: 1000000000000}}\n", "d_ff is 1000000000000: it must be"),
        ("trainer: {accelerator: '0o7'}\n", "trainer: You selected an invalid accelerator"),
        ("trainer: {callbacks: os.system}\n", "'os.system' is not imported: use classes of"),
    ],
)
def test_recipes_that_few_write(
    refused: Any, shared: Path, tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "odd.yaml").write_text(text)
    config = ["--config", shared / "recipe.yaml", "--config", tmp_path / "odd.yaml"]
    assert message in refused("fit", *config, f"--run_dir={tmp_path / 'run'}")
    assert not (tmp_path / "run").exists()


def test_aliases_that_would_fill_the_memory(refused: Any, tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 15)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    assert "it holds more than 20,000 values" in refused("fit", "--config", tmp_path / "bomb.yaml")


def test_a_number_of_the_cache_that_changed_is_seen(tmp_path: Path) -> None:
    """Ids have no checksum of their own: another id would be learned without a word."""
    made = []

    def make(path: Path) -> None:
        made.append(path)
        path.write_text("1 2 3")

    read = Path.read_text
    path = tmp_path / "ids"
    assert cached(path, read, make) == cached(path, read, make) == "1 2 3"
    path.write_text("1 2 4")
    assert cached(path, read, make) == "1 2 3"
    assert len(made) == 2


def test_rows_of_results_that_are_none(refused: Any, tmp_path: Path) -> None:
    source = Path(__file__).parent.parent / "recipes" / "results.jsonl"
    row = json.loads(source.read_text().splitlines()[0])
    (tmp_path / "results.jsonl").write_text(json.dumps({**row, "bleu_by_length": 3}))
    (tmp_path / "page.md").write_text("<!-- results -->\n<!-- /results -->\n")
    message = refused("table", tmp_path / "results.jsonl", tmp_path / "page.md")
    assert "results.jsonl: a row is not as `transformer reproduce` wrote it" in message


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "a/../../../x"])
def test_the_run_of_a_strangers_checkpoint_stays_in_runs(name: str) -> None:
    assert ".." not in recipe_name(None, {"recipe": {"name": name}})
    assert not Path(recipe_name(None, {"recipe": {"name": name}})).is_absolute()


def test_what_a_link_points_to_is_not_uploaded(tmp_path: Path) -> None:
    save(tmp_path / "b")
    (tmp_path / "b" / "README.md").unlink()
    (tmp_path / "b" / "README.md").symlink_to("/etc/hostname")
    with pytest.raises(UserError, match=r"b/README.md is a link: what it points to"):
        hub.push(tmp_path / "b", "org/name", False, None, "")
