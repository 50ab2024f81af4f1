"""Old weights -> new vocabulary, and which of them learn: all, some, or adapters beside them.

Everything but the embeddings and the output projection fits as it is. Of those, a row of a piece
that both vocabularies hold is copied. A new piece begins as the mean of the old pieces that spell
it, as in fast vocabulary transfer (Gee et al. 2022). Pieces that the old vocabulary cannot spell
keep the initial values of a new model. Low-rank adapters are those of Hu et al. (2022).
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from math import sqrt
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding_bag
from torch.nn.utils import parametrize

from transformer.bundle import Bundle, load_bundle
from transformer.data.spelling import spellings
from transformer.data.tokenizer import Side, Tokenizer
from transformer.errors import UserError, nearest
from transformer.models import ARCHITECTURES, ModelConfig, Seq2Seq, architecture_of

NewRows = Literal["mean", "random"]
#: Settings of a network that may change: they say nothing about its weights.
DROPOUTS = ("dropout", "activation_dropout", "attention_dropout")


class Rows(NamedTuple):
    """The number of rows of a vocabulary that came each way."""

    copied: int
    mean: int
    fresh: int

    def __str__(self) -> str:
        return (
            f"{self.copied:,} rows copied, {self.mean:,} the mean of old pieces, "
            f"{self.fresh:,} with initial values"
        )


def begin_from(folder: str, model: Seq2Seq, tokenizer: Tokenizer, new_rows: NewRows) -> list[str]:
    """Put the weights of a bundle of the same shape into a new model; returns their origin."""
    old = load_bundle(folder)
    fix = "leave it out of the recipe, or begin from another bundle"
    _check_shape(model.config, old.model.config, folder, (*DROPOUTS, "tied"), fix)
    rows = transplant(model, tokenizer, old, new_rows)
    return [
        f"begun from {folder} ({old.config['src']} → {old.config['tgt']})",
        *(f"{vocabulary} vocabulary: {counts}" for vocabulary, counts in rows.items()),
    ]


def check_resumed(trained: dict[str, Any], config: ModelConfig, tokenizer: Tokenizer) -> None:
    """Refuse a checkpoint whose `bundle` has another shape or vocabulary than a run."""
    shape = ARCHITECTURES[trained["architecture"]](**trained["network"])
    fix = "resume with that, or begin a new run"
    _check_shape(config, shape, "the checkpoint", DROPOUTS, fix)
    theirs = Tokenizer(trained["tokenizer"])
    if theirs.to_text() != tokenizer.to_text():
        raise UserError(
            "the vocabulary does not fit the checkpoint: this run has "
            f"{tokenizer.src_vocab_size:,} source and {tokenizer.tgt_vocab_size:,} target entries, "
            f"the checkpoint {theirs.src_vocab_size:,} and {theirs.tgt_vocab_size:,} of its own: "
            "resume with the checkpoint's tokenizer, or begin a new run"
        )


def _check_shape(
    ours: ModelConfig, theirs: ModelConfig, what: str, free: tuple[str, ...], fix: str
) -> None:
    """Refuse weights of another architecture or size; the settings in `free` may differ."""
    names = architecture_of(ours), architecture_of(theirs)
    if names[0] != names[1]:
        raise UserError(
            f"architecture is {names[0]}, but {what} was trained with {names[1]}: {fix}"
        )
    trained = asdict(theirs)  # type: ignore[call-overload]
    for key, value in asdict(ours).items():  # type: ignore[call-overload]
        if key not in free and trained[key] != value:
            raise UserError(
                f"model.network.{key} is {value!r}, but {what} was trained with {trained[key]!r}: "
                f"{fix}"
            )


@torch.no_grad()
def transplant(
    model: Seq2Seq, tokenizer: Tokenizer, old: Bundle, new_rows: NewRows
) -> dict[str, Rows]:
    """Puts old weights into a model with another vocabulary.

    Args:
        model: freshly initialised; its weights are replaced.
        tokenizer: of this model.
        old: the trained model and its tokenizer.
        new_rows: pieces that the old vocabulary does not hold begin as the `mean` of the pieces
            that spell them, or with `random` initial values.

    Returns:
        How many rows came which way, of the vocabulary `shared`, or of `source` and `target`.
    """
    first: dict[int, str] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name not in model.ROWS:
            continue
        other = first.setdefault(id(parameter), name)
        if old.model.get_parameter(other) is not old.model.get_parameter(name):
            raise UserError(
                f"model.network.tied is {model.config.tied!r}, but model.init_from has two "
                f"matrices for {other} and {name} ({old.model.config.tied!r}): set "
                f"model.network.tied to {old.model.config.tied!r}"
            )
    sides: tuple[Side, ...] = ("src", "tgt")
    spelled = {side: spellings(tokenizer, old.tokenizer, side) for side in sides}
    trained = dict(old.model.named_parameters(remove_duplicate=False))
    its = [{id(p) for name, p in trained.items() if model.ROWS.get(name) == side} for side in sides]
    shared = tokenizer.shared and (old.tokenizer.shared or not its[0].isdisjoint(its[1]))
    if shared:  # two vocabularies of the same ids, such as Marian's, may spell a piece differently
        pairs = zip(*spelled.values(), strict=True)
        spelled = {"src": [min(filter(None, pair), key=len, default=[]) for pair in pairs]}
    if new_rows == "random":
        spelled = {side: [i if len(i) == 1 else [] for i in ids] for side, ids in spelled.items()}
    for name, parameter in model.named_parameters():
        if name in model.ROWS:
            _fill(parameter, trained[name], spelled["src" if shared else model.ROWS[name]])
        else:
            parameter.copy_(trained[name])
    names = {"src": "shared" if shared else "source", "tgt": "target"}
    counts = {}
    for side, pieces in spelled.items():
        copied, fresh = (sum(len(ids) == size for ids in pieces) for size in (1, 0))
        counts[names[side]] = Rows(copied, len(pieces) - copied - fresh, fresh)
    return counts


def _fill(parameter: Tensor, trained: Tensor, spelled: list[list[int]]) -> None:
    """Sets row i of a parameter to the mean of the trained rows `spelled[i]`, if there are any."""
    at, exact = trained.device, torch.float64
    ids = torch.tensor([i for row in spelled for i in row], dtype=torch.long, device=at)
    sizes = torch.tensor([len(row) for row in spelled], device=at)
    starts, known = sizes.cumsum(0) - sizes, (sizes > 0)[:, None]
    old, own = (rows.to(at, exact).view(len(rows), -1) for rows in (trained, parameter))
    means = embedding_bag(ids, old, starts, mode="mean")
    parameter.copy_(torch.where(known, means, own).view_as(parameter))


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters: W + alpha / rank * B A, of which only A and B learn.

    Args:
        rank: rows of A and columns of B; 0 for no adapters.
        alpha: how much of what the adapters say is added: alpha / rank times.
        targets: patterns such as `*attention*` for the names of the matrices that get one; all
            linear layers but the output projection when left out. The recurrences of an RNN cannot.
    """

    rank: int = 0
    alpha: float = 16.0
    targets: tuple[str, ...] = ("*",)

    def __post_init__(self) -> None:
        if self.rank < 0:
            raise UserError(f"model.lora.rank is {self.rank}: it must be 1 or more, or 0 for none")


class LowRank(nn.Module):
    """W -> W + scale * B A; A is (rank, in), B is (out, rank) and begins with zeros."""

    scale: Tensor

    def __init__(self, weight: Tensor, config: LoRAConfig) -> None:
        super().__init__()
        self.a = nn.Parameter(weight.new_empty(config.rank, weight.size(1)))
        self.b = nn.Parameter(weight.new_zeros(weight.size(0), config.rank))
        nn.init.kaiming_uniform_(self.a, a=sqrt(5))
        # A buffer, so that a checkpoint alone can be merged.
        self.register_buffer("scale", weight.new_full((), config.alpha / config.rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight that is used, of the same shape."""
        return weight + (self.scale * self.b) @ self.a


def choose_what_learns(model: Seq2Seq, freeze: Iterable[str], lora: LoRAConfig) -> int:
    """Freezes parameters, then gives linear layers adapters, whose own matrices freeze, too.

    Patterns such as `encoder.*` are for the names of parameters; a tied matrix has several.

    Returns:
        How many numbers learn.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in _matches("model.freeze", freeze, list(parameters)):
        parameters[name].requires_grad_(False)
    if lora.rank:
        layers = {
            f"{name}.weight": layer
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Linear) and f"{name}.weight" not in model.ROWS
        }
        for name in _matches("model.lora.targets", lora.targets, list(layers)):
            layer = layers[name]
            layer.weight.requires_grad_(False)
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, lora))
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not learning:
        raise UserError(
            "model.freeze: every parameter is frozen: leave some out, or set model.lora.rank"
        )
    return learning


def merge(model: Seq2Seq) -> None:
    """Adds the adapters to their matrices: a plain model is left."""
    for layer in list(model.modules()):
        if parametrize.is_parametrized(layer):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def merged(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Adds the adapters in a state dictionary to their matrices; returns that of a plain model."""
    plain: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        layer, adapted, rest = name.partition(".parametrizations.weight.")
        if not adapted:
            plain[name] = tensor
        elif rest == "original":
            a, b, scale = (weights[f"{layer}{adapted}0.{part}"] for part in ("a", "b", "scale"))
            plain[f"{layer}.weight"] = tensor + (scale * b) @ a
    return plain


def _matches(key: str, patterns: Iterable[str], names: list[str]) -> list[str]:
    found = []
    for pattern in patterns:
        some = [name for name in names if fnmatchcase(name, pattern)]
        if not some:
            raise UserError(
                f"{key}: {pattern!r} matches none of the {len(names)} names that there are"
                + nearest(pattern, names, cutoff=0.0)
            )
        found += some
    return list(dict.fromkeys(found))
