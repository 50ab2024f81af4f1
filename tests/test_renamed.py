"""Weights under the names of before: bundles of format 1 and checkpoints go on as they were."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_devices import ABOUT, OLD
from toys import datamodule, module, trainer

from transformer.bundle import load_bundle, save_bundle
from transformer.models import ModelConfig, RNNConfig, TransformerConfig
from transformer.models.renamed import with_new_names
from transformer.training.checkpoint_files import read_checkpoint
from transformer.training.checkpoints import Checkpoints

KINDS = ("weight", "bias")
ATTENTION = [f"{side}_proj.{kind}" for side in ("in", "out") for kind in KINDS]
SELF = [f"attention.{name}" for name in ATTENTION]
CROSS = [f"cross_attention.{name}" for name in ATTENTION]
FEED_FORWARD = [f"feed_forward.{side}.{kind}" for side in ("inner", "outer") for kind in KINDS]
NORMS = [f"residuals.{place}.norm.{kind}" for place in range(3) for kind in KINDS]
CELLS = ["weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0"]
#: Each shape, and the names that the parameters of its model had, in their order.
BEFORE: list[tuple[ModelConfig, list[str]]] = [
    (
        TransformerConfig(d_model=16, d_ff=32, num_heads=2, num_layers=1, tied="two_way"),
        [
            *("src_embedding.tokens.weight", "tgt_embedding.tokens.weight"),
            *(f"encoder.0.{name}" for name in [*SELF, *FEED_FORWARD, *NORMS[:4]]),
            *(f"decoder.0.{name}" for name in [*SELF, *CROSS, *FEED_FORWARD, *NORMS]),
        ],
    ),
    (
        RNNConfig(d_model=16, cell="lstm"),
        [
            *("src_embedding.weight", "tgt_embedding.weight"),
            *(f"encoder.0.ahead.cells.{name}" for name in CELLS),
            *(f"encoder.0.back.cells.{name}" for name in CELLS),
            *("bridge.weight", "bridge.bias"),
            *(f"decoder.0.cells.{name}" for name in CELLS),
            *("attention.vector", "attention.query.weight", "attention.key.weight"),
            *("merge.weight", "output.weight", "output.bias"),
        ],
    ),
]
each_shape = pytest.mark.parametrize(("shape", "names"), BEFORE, ids=["transformer", "rnn"])


@each_shape
def test_old_names_become_new_ones_in_their_order(shape: ModelConfig, names: list[str]) -> None:
    model = shape.build(9, 9)
    now = [name for name, _ in model.named_parameters()]
    assert list(with_new_names(dict.fromkeys(names))) == now
    assert list(with_new_names(dict.fromkeys(now))) == now
    in_checkpoints = with_new_names({f"network.{name}": None for name in names})
    assert list(in_checkpoints) == [f"network.{name}" for name in now]


def test_adapters_are_renamed_with_their_matrix() -> None:
    adapted = "network.encoder.0.{}.parametrizations.weight.0.a"
    found = with_new_names({adapted.format("attention.in_proj"): 1})
    assert found == {adapted.format("self_attention.input_projection"): 1}


@each_shape
def test_a_bundle_of_format_1_is_read(shape: ModelConfig, names: list[str], tmp_path: Path) -> None:
    model = shape.build(OLD.src_vocab_size, OLD.tgt_vocab_size)
    save_bundle(tmp_path / "bundle", model, OLD, **ABOUT)
    path, weights = tmp_path / "bundle/config.json", tmp_path / "bundle/model.safetensors"
    tensors = load_file(weights)
    now = [name for name, _ in model.named_parameters()]
    old = {before: tensors[name] for before, name in zip(names, now, strict=True)}
    save_file(old, weights, metadata={"format": "pt"})
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 1}))
    loaded = load_bundle(tmp_path / "bundle").model
    for name, parameter in model.named_parameters():
        assert torch.equal(loaded.get_parameter(name), parameter)


@each_shape
def test_a_checkpoint_of_before_is_resumed(
    shape: ModelConfig, names: list[str], tmp_path: Path
) -> None:
    """The weights of a run that went on from it are those of one that went on from today's."""

    def run(epochs: int, checkpoint: Path | None = None) -> dict[str, torch.Tensor]:
        saved = Checkpoints(tmp_path / "run", keep_best=1, average=0, save_every=None)
        loop = trainer(tmp_path, saved, max_epochs=epochs)
        model = module(network=shape)
        data = datamodule(tmp_path)
        loop.fit(model, datamodule=data, ckpt_path=checkpoint, weights_only=True)
        return {name: tensor.clone() for name, tensor in model.model.named_parameters()}

    first = run(1)
    today, before = tmp_path / "run/last.ckpt", tmp_path / "before.ckpt"
    checkpoint: dict[str, Any] = torch.load(today, weights_only=True)
    given = checkpoint["state_dict"]
    tied = {"output.weight": "output.weight"} if "output.weight" not in first else {}
    old_names = dict(zip(first, names, strict=True)) | tied
    checkpoint["state_dict"] = {
        f"network.{old_names[name.removeprefix('network.')]}": tensor
        for name, tensor in given.items()
    }
    assert checkpoint["state_dict"].keys() != given.keys()
    del checkpoint["checksum"]  # which they did not have
    torch.save(checkpoint, before)
    assert list(read_checkpoint(before)["state_dict"]) == list(given)
    expected, found = run(2, today), run(2, before)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert not torch.equal(tensor, first[name]), name
