"""Forced decoding: what a model makes of a translation that is given."""

from collections.abc import Sequence

import torch
from torch import Tensor

from transformer.data.tokenizer import BOS, Tokenizer
from transformer.inference.search import pad
from transformer.models import Seq2Seq


@torch.inference_mode()
def log_probs(
    model: Seq2Seq, src_ids: Sequence[list[int]], tgt_ids: Sequence[list[int]]
) -> list[float]:
    """The log-probability of each target, in nats.

    Args:
        model: in evaluation mode.
        src_ids: of each source sentence, EOS last.
        tgt_ids: of each target sentence, EOS last.
    """
    device = next(model.parameters()).device
    src, src_lengths = pad(src_ids, device)
    tgt_in, _ = pad([[BOS, *row[:-1]] for row in tgt_ids], device)
    tgt_out, tgt_lengths = pad(tgt_ids, device)
    logits = model.project(model(src, src_lengths, tgt_in)).float()
    chosen = logits.gather(-1, tgt_out[:, :, None]).squeeze(-1) - logits.logsumexp(-1)
    real = torch.arange(tgt_in.size(1), device=device) < tgt_lengths[:, None]
    return (chosen * real).sum(1).tolist()


@torch.inference_mode()
def cross_attention(model: Seq2Seq, src: list[int], tgt: list[int]) -> Tensor:
    """The weights (L, H, T, S) of one sentence pair; both end with EOS."""
    device = next(model.parameters()).device
    ids, lengths = pad([src], device)
    tgt_in, _ = pad([[BOS, *tgt[:-1]]], device)
    return model.cross_attention(ids, lengths, tgt_in)[0].float()


def align(
    model: Seq2Seq, tokenizer: Tokenizer, src: list[int], tgt: list[int]
) -> list[tuple[int, int]]:
    """For each target word the source word with the most attention, over layers and heads.

    Args:
        model: in evaluation mode.
        tokenizer: of the ids.
        src: source ids, EOS last.
        tgt: target ids, without EOS.

    Returns:
        Pairs (source word, target word), counted from 0.
    """
    if not tgt:
        return []
    weights = cross_attention(model, src, [*tgt, BOS])  # the last id only closes the row
    weights = weights.mean((0, 1))[:-1, :-1]  # the end symbols are no words,
    weights[:, : bool(tokenizer.tags)] = 0  # and neither is a tag
    src_words, tgt_words = tokenizer.src_words(src[:-1]), tokenizer.tgt_words(tgt)
    words = weights.new_zeros(tgt_words[-1] + 1, src_words[-1] + 1)
    rows, columns = torch.tensor(tgt_words)[:, None], torch.tensor(src_words)
    words.index_put_((rows, columns), weights, accumulate=True)
    return [(s, t) for t, s in enumerate(words.argmax(-1).tolist())]
