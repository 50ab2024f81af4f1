"""Old weights -> new vocabulary: a trained model as the beginning of another one.

Everything but the embeddings and the output projection fits as it is. Of those, a row of a piece
that both vocabularies hold is copied. A new piece begins as the mean of the old pieces that spell
it, as in fast vocabulary transfer (Gee et al. 2022). What the old vocabulary cannot spell keeps the
initial values of a new model.
"""

from dataclasses import asdict
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from transformer.bundle import Bundle
from transformer.data.spelling import spellings
from transformer.data.tokenizer import Side, Tokenizer
from transformer.errors import UserError
from transformer.models import ModelConfig, Seq2Seq, architecture_of

NewRows = Literal["mean", "random"]
DROPOUTS = ("dropout", "activation_dropout", "attention_dropout")
#: Settings of a network that may change: they say nothing about its weights.
FREE = (*DROPOUTS, "tied")


class Rows(NamedTuple):
    """How many rows of a vocabulary came which way."""

    copied: int
    mean: int
    fresh: int

    def __str__(self) -> str:
        return (
            f"{self.copied:,} rows copied, {self.mean:,} the mean of old pieces, "
            f"{self.fresh:,} with initial values"
        )


def check_shape(
    ours: ModelConfig, theirs: ModelConfig, what: str, free: tuple[str, ...], fix: str
) -> None:
    """Refuses weights of another architecture or size.

    Args:
        ours: the recipe's.
        theirs: of the weights.
        what: where they come from.
        free: settings that may differ.
        fix: what to do when another one does.

    Raises:
        ValueError: which setting differs.
    """
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
    model: Seq2Seq, tokenizer: Tokenizer, old: Bundle, new_rows: NewRows = "mean"
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

    Raises:
        ValueError: when the new model shares a matrix of which the old one has two.
    """
    _check_tied(model, old.model)
    shared = tokenizer.shared and old.tokenizer.shared  # then both sides are spelled alike
    sides: tuple[Side, ...] = ("src",) if shared else ("src", "tgt")
    spelled = {side: spellings(tokenizer, old.tokenizer, side) for side in sides}
    if new_rows == "random":
        spelled = {side: [i if len(i) == 1 else [] for i in ids] for side, ids in spelled.items()}
    for name, parameter in model.named_parameters():
        trained = old.model.get_parameter(name)
        if name in model.ROWS:
            _fill(parameter, trained, spelled["src" if shared else model.ROWS[name]])
        else:
            parameter.copy_(trained)
    counts = {side: _count(ids) for side, ids in spelled.items()}
    if shared:
        return {"shared": counts["src"]}
    return {"source": counts["src"], "target": counts["tgt"]}


def _check_tied(model: Seq2Seq, old: Seq2Seq) -> None:
    first: dict[int, str] = {}
    for name in model.ROWS:
        other = first.setdefault(id(model.get_parameter(name)), name)
        if old.get_parameter(other) is not old.get_parameter(name):
            raise UserError(
                f"model.network.tied is {model.config.tied!r}, but model.init_from has two "
                f"matrices for {other} and {name} ({old.config.tied!r}): set model.network.tied "
                f"to {old.config.tied!r}"
            )


def _fill(parameter: Tensor, trained: Tensor, spelled: list[list[int]]) -> None:
    """Sets row i of a parameter to the mean of the trained rows `spelled[i]`, if there are any.

    The mean is computed where the trained rows lie, in float64; the parameter may have another
    device and precision.
    """
    at, exact = trained.device, torch.float64
    ids = torch.tensor([i for row in spelled for i in row], dtype=torch.long, device=at)
    sizes = torch.tensor([len(row) for row in spelled], device=at)
    starts, known = sizes.cumsum(0) - sizes, (sizes > 0)[:, None]
    old, own = (rows.to(at, exact).view(len(rows), -1) for rows in (trained, parameter))
    means = embedding_bag(ids, old, starts, mode="mean")
    parameter.copy_(torch.where(known, means, own).view_as(parameter))


def _count(spelled: list[list[int]]) -> Rows:
    copied, fresh = (sum(len(ids) == size for ids in spelled) for size in (1, 0))
    return Rows(copied, len(spelled) - copied - fresh, fresh)
