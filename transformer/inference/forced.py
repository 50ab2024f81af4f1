"""Forced decoding: what a model makes of a translation that is given."""

from collections.abc import Sequence

import torch
from torch import Tensor

from transformer.data.tokenizer import BOS, Tokenizer
from transformer.inference.batches import Pair, pad
from transformer.models import Seq2Seq
from transformer.models.recording import Kind, recorded

KINDS: tuple[Kind, ...] = ("encoder", "decoder", "cross")


@torch.inference_mode()
def log_probs(model: Seq2Seq, pairs: Sequence[Pair]) -> list[float]:
    """The log-probability of each target, in nats.

    Args:
        model: in evaluation mode.
        pairs: source and target ids, EOS last in both.
    """
    src, src_lengths, tgt_in = _inputs(model, pairs)
    tgt_out, tgt_lengths = pad([tgt for _, tgt in pairs], src.device)
    logits = model.project(model(src, src_lengths, tgt_in)).float()
    chosen = logits.gather(-1, tgt_out[:, :, None]).squeeze(-1) - logits.logsumexp(-1)
    real = torch.arange(tgt_in.size(1), device=src.device) < tgt_lengths[:, None]
    return (chosen * real).sum(1).tolist()


@torch.inference_mode()
def cross_attention(model: Seq2Seq, pairs: Sequence[Pair]) -> Tensor:
    """The weights (B, L, H, T, S) of pairs of source and target ids, a row for each target id."""
    return model.cross_attention(*_inputs(model, pairs)).float()


@torch.inference_mode()
def attention_maps(model: Seq2Seq, pair: Pair) -> dict[Kind, Tensor]:
    """The weights of self-attention, where the model has it, and of cross-attention.

    Args:
        model: in evaluation mode.
        pair: source and target ids, EOS last in both.

    Returns:
        `encoder` (L, H, S, S), `decoder` (L, H, T, T), `cross` (L, H, T, S).
    """
    with recorded(model, *KINDS) as weights:
        model(*_inputs(model, [pair]))
    return {kind: found[0].float() for kind, found in weights.items()}


def _inputs(model: Seq2Seq, pairs: Sequence[Pair]) -> tuple[Tensor, Tensor, Tensor]:
    """Source ids (B, S), their lengths (B,), and target ids (B, T) that begin with BOS."""
    tgt_in, _ = pad([[BOS, *tgt[:-1]] for _, tgt in pairs], model.device)
    return *pad([src for src, _ in pairs], model.device), tgt_in


def align(
    model: Seq2Seq, tokenizer: Tokenizer, pairs: Sequence[Pair]
) -> list[list[tuple[int, int]]]:
    """For each word of each target the source word with the most attention, over layers and heads.

    Args:
        model: in evaluation mode.
        tokenizer: of the ids.
        pairs: source ids, EOS last, and target ids without EOS.

    Returns:
        Pairs (source word, target word), counted from 0.
    """
    weights = cross_attention(model, pairs).mean((1, 2)).cpu()
    return [
        _word_pairs(tokenizer, its_weights, *pair)
        for its_weights, pair in zip(weights, pairs, strict=True)
    ]


def _word_pairs(
    tokenizer: Tokenizer, weights: Tensor, src: list[int], tgt: list[int]
) -> list[tuple[int, int]]:
    shown = tokenizer.tgt_shown(tgt)
    if not shown:
        return []
    weights = weights[shown, : len(src) - 1]  # the end symbol is no word,
    weights[:, : bool(tokenizer.tags)] = 0  # and neither is a tag
    src_words = tokenizer.words("src", src[:-1])
    tgt_words = tokenizer.words("tgt", [tgt[place] for place in shown])
    words = weights.new_zeros(tgt_words[-1] + 1, src_words[-1] + 1)
    rows = torch.tensor(tgt_words, device=words.device)[:, None]
    columns = torch.tensor(src_words, device=words.device)
    words.index_put_((rows, columns), weights, accumulate=True)
    return [(s, t) for t, s in enumerate(words.argmax(-1).tolist())]
