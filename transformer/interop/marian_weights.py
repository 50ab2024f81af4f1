"""The weights of Marian's models as Hugging Face writes them, against the house's.

It is the same network, but for

- the positions: all sines, then all cosines, where the paper has them in turn. So the dimensions
  of the hidden states stand in another order, in every weight that reads or writes them;
- queries, keys and values: three matrices, here one;
- a bias of the logits, `final_logits_bias`, which is `output_bias` here;
- `<pad>`, which also begins a translation: our `<s>` gets a copy of its row.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from transformer.data.tokenizer import BOS, PAD
from transformer.errors import UserError
from transformer.models import Transformer, TransformerConfig
from transformer.models.positions import sinusoidal

#: Modules of a layer here -> those of Marian, whose rows make up ours.
MODULES = {
    "self_attention.input_projection": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
    "self_attention.output_projection": ("self_attn.out_proj",),
    "cross_attention.input_projection": (
        "encoder_attn.q_proj", "encoder_attn.k_proj", "encoder_attn.v_proj"
    ),
    "cross_attention.output_projection": ("encoder_attn.out_proj",),
    "feed_forward.inner": ("fc1",),
    "feed_forward.outer": ("fc2",),
}  # fmt: skip
NORMS = {
    "encoder": ("self_attn_layer_norm", "final_layer_norm"),
    "decoder": ("self_attn_layer_norm", "encoder_attn_layer_norm", "final_layer_norm"),
}
#: The dimension of a parameter that is d_model's, by how its name ends; others have none.
D_MODEL = {
    "tokens.weight": 1, "output.weight": 1, "input_projection.weight": 1, "inner.weight": 1,
    "output_projection.weight": 0, "output_projection.bias": 0, "outer.weight": 0,
    "outer.bias": 0, "norm.weight": 0, "norm.bias": 0,
}  # fmt: skip
#: Embeddings and output projection, by where Marian may keep them; the first that is there counts.
SRC, TGT = "src_embedding.tokens.weight", "tgt_embedding.tokens.weight"
SHARED = "model.shared.weight"
MATRICES: dict[str, dict[str, tuple[str, ...]]] = {
    "three_way": {SRC: (SHARED, "model.encoder.embed_tokens.weight", "lm_head.weight")},
    "two_way": {
        SRC: ("model.encoder.embed_tokens.weight",),
        TGT: ("model.decoder.embed_tokens.weight", "lm_head.weight"),
    },
    "none": {
        SRC: ("model.encoder.embed_tokens.weight",),
        TGT: ("model.decoder.embed_tokens.weight",),
        "output.weight": ("lm_head.weight",),
    },
}
BIAS = "final_logits_bias"
POSITIONS = ("model.encoder.embed_positions.weight", "model.decoder.embed_positions.weight")
#: The bias of `<pad>` and `<s>`, which no translation may hold: small enough to leave them no
#: probability, and not so small that label smoothing, a mean over all logits, would drown in it.
NEVER_WRITTEN = -100.0


def layers(network: TransformerConfig) -> Iterator[tuple[str, tuple[str, ...]]]:
    """The parameters of all layers: the name of each here, and of those there that make it up."""
    for stack, norms in NORMS.items():
        for layer in range(network.num_layers):
            ours, theirs = f"{stack}.{layer}", f"model.{stack}.layers.{layer}"
            for kind in ("weight", "bias"):
                for module, parts in MODULES.items():
                    if stack == "decoder" or not module.startswith("cross"):
                        names = tuple(f"{theirs}.{part}.{kind}" for part in parts)
                        yield f"{ours}.{module}.{kind}", names
                for index, norm in enumerate(norms):
                    yield f"{ours}.residuals.{index}.norm.{kind}", (f"{theirs}.{norm}.{kind}",)


@torch.no_grad()
def fill(model: Transformer, weights: dict[str, Tensor], ids: list[int], path: Path) -> None:
    """Puts the weights of Marian into a model.

    Args:
        model: of the shape that `network_of` gives.
        weights: of Marian, by their names.
        ids: of Marian, for each of ours.
        path: the file of the weights.

    Raises:
        UserError: a weight is missing, has another size, or is none of Marian's.
    """
    order = torch.argsort(_halves(model.config.d_model))
    tied = MATRICES[model.config.tied]
    for name, parts in (*layers(model.config), *tied.items()):
        parameter = model.get_parameter(name)
        size = (len(parameter) // len(parts), *parameter.shape[1:])
        if name in tied:
            parts = next(((part,) for part in parts if part in weights), parts[:1])
            rows = torch.tensor(ids[: len(parameter)])
            size = (int(rows.max()) + 1, model.config.d_model)
        value = torch.cat([_weight(weights, part, size, path) for part in parts])
        value = value[rows] if name in tied else value
        parameter.copy_(_reordered(name, value, order))
    rows = torch.tensor(ids[: model.output.out_features])
    bias = torch.zeros(1, int(rows.max()) + 1)
    if BIAS in weights:
        bias = _weight(weights, BIAS, (1, bias.size(1)), path)
    model.output.bias.copy_(bias[0, rows])
    model.output.bias[[PAD, BOS]] = NEVER_WRITTEN
    _check_others(model, weights, path)


def _weight(weights: dict[str, Tensor], name: str, shape: tuple[int, ...], path: Path) -> Tensor:
    if name not in weights:
        raise UserError(
            f"{path}: {name} is missing: the file is of another model than config.json, copy both "
            "again"
        )
    if weights[name].shape != shape:
        raise UserError(
            f"{path}: {name} is {tuple(weights[name].shape)}, by config.json it is {shape}: take "
            "both files from one model"
        )
    return weights[name].float()


def _check_others(model: Transformer, weights: dict[str, Tensor], path: Path) -> None:
    """Refuses weights of which nothing was made, and learned positions."""
    known = {part for _, parts in layers(model.config) for part in parts}
    known |= {part for tied in MATRICES.values() for parts in tied.values() for part in parts}
    for name in sorted(weights.keys() - known - {BIAS, *POSITIONS}):
        raise UserError(f"{path}: {name} is a weight that Marian's models do not have")
    for name in weights.keys() & {*POSITIONS}:
        table = weights[name].float()
        wanted = sinusoidal(*table.shape)[:, _halves(table.size(1))]
        if not torch.allclose(table, wanted, atol=1e-3):
            raise UserError(f"{path}: {name} are not sinusoids: they cannot be imported")


def weights_of(model: Transformer) -> dict[str, Tensor]:
    """The weights of a model under Marian's names, as `fill` reads them; ids stay as they are."""
    order = _halves(model.config.d_model)
    found: dict[str, Tensor] = {}
    for name, parts in (*layers(model.config), *MATRICES[model.config.tied].items()):
        value = _reordered(name, model.get_parameter(name).detach(), order)
        parts = parts[:1] if name in MATRICES["none"] else parts
        found |= zip(parts, map(Tensor.contiguous, value.chunk(len(parts))), strict=True)
    bias = model.output.bias
    found[BIAS] = torch.zeros(1, model.output.out_features) if bias is None else bias.detach()[None]
    return found


def _halves(d_model: int) -> Tensor:
    """The dimension here of each one there: those of the sines, then those of the cosines."""
    return torch.cat([torch.arange(0, d_model, 2), torch.arange(1, d_model, 2)])


def _reordered(name: str, value: Tensor, order: Tensor) -> Tensor:
    """A parameter, here named `name`, with the dimensions of hidden states in this order."""
    for end, dimension in D_MODEL.items():
        if name.endswith(end):
            return value.index_select(dimension, order)
    return value
