"""What learns: everything, all but the frozen parameters, or low-rank adapters (Hu et al. 2022)."""

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from math import sqrt

from torch import Tensor, nn
from torch.nn.utils import parametrize

from transformer.errors import UserError
from transformer.models import Seq2Seq


@dataclass(frozen=True)
class LoRAConfig:
    """Low-rank adapters: W + alpha / rank * B A, of which only A and B learn (Hu et al. 2022).

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
        return _adapted(weight, self.a, self.b, self.scale)


def _adapted(weight: Tensor, a: Tensor, b: Tensor, scale: Tensor) -> Tensor:
    return weight + (scale * b) @ a


def choose_what_learns(model: Seq2Seq, freeze: Iterable[str], lora: LoRAConfig) -> int:
    """Freezes parameters, then gives linear layers adapters, whose own matrices freeze, too.

    Args:
        model: whose parameters all learn so far.
        freeze: patterns such as `encoder.*` for their names; a tied matrix has several.
        lora: which adapters.

    Returns:
        How many numbers learn.

    Raises:
        ValueError: when a pattern matches nothing, or nothing is left to learn.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name in _matches("model.freeze", freeze, list(parameters)):
        parameters[name].requires_grad_(False)
    if lora.rank:
        _adapt(model, lora)
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    if not learning:
        raise UserError(
            "model.freeze: every parameter is frozen: leave some out, or set model.lora.rank"
        )
    return learning


def _adapt(model: Seq2Seq, config: LoRAConfig) -> None:
    layers = {
        f"{name}.weight": layer
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and f"{name}.weight" not in model.ROWS
    }
    for name in _matches("model.lora.targets", config.targets, list(layers)):
        layer = layers[name]
        layer.weight.requires_grad_(False)
        parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, config))


def merge(model: Seq2Seq) -> None:
    """Puts what the adapters have learned into the matrices: a plain model is left."""
    for layer in list(model.modules()):
        if parametrize.is_parametrized(layer):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)


def merged(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same for a state dictionary: that of the plain model."""
    plain: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        layer, adapted, rest = name.partition(".parametrizations.weight.")
        if not adapted:
            plain[name] = tensor
        elif rest == "original":
            a, b, scale = (weights[f"{layer}{adapted}0.{part}"] for part in ("a", "b", "scale"))
            plain[f"{layer}.weight"] = _adapted(tensor, a, b, scale)
    return plain


def _matches(key: str, patterns: Iterable[str], names: list[str]) -> list[str]:
    found = []
    for pattern in patterns:
        some = [name for name in names if fnmatchcase(name, pattern)]
        if not some:
            near = get_close_matches(pattern, names, n=1, cutoff=0.0)
            hint = f"; the nearest is {near[0]!r}" if near else ""
            raise UserError(
                f"{key}: {pattern!r} matches none of the {len(names)} names that there are{hint}"
            )
        found += some
    return list(dict.fromkeys(found))
