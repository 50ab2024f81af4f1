"""Forced decoding: what a model makes of a translation that is given."""

from collections.abc import Sequence

import torch
from torch import Tensor

from transformer.data.tokenizer import BOS, EOS, Tokenizer
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
def cross_attention(
    model: Seq2Seq, src_ids: Sequence[list[int]], tgt_ids: Sequence[list[int]]
) -> Tensor:
    """The weights (B, L, H, T, S) of sentence pairs whose sides end with EOS."""
    device = next(model.parameters()).device
    src, lengths = pad(src_ids, device)
    tgt_in, _ = pad([[BOS, *row[:-1]] for row in tgt_ids], device)
    return model.cross_attention(src, lengths, tgt_in).float()


def align(
    model: Seq2Seq, tokenizer: Tokenizer, src_ids: Sequence[list[int]], tgt_ids: Sequence[list[int]]
) -> list[list[tuple[int, int]]]:
    """For each word of each target the source word with the most attention, over layers and heads.

    Args:
        model: in evaluation mode.
        tokenizer: of the ids.
        src_ids: of each source sentence, EOS last.
        tgt_ids: of each target sentence, without EOS.

    Returns:
        Pairs (source word, target word), counted from 0.
    """
    weights = cross_attention(model, src_ids, [[*tgt, EOS] for tgt in tgt_ids]).mean((1, 2)).cpu()
    return [_word_pairs(tokenizer, *pair) for pair in zip(weights, src_ids, tgt_ids, strict=True)]


def _word_pairs(
    tokenizer: Tokenizer, weights: Tensor, src: list[int], tgt: list[int]
) -> list[tuple[int, int]]:
    shown = tokenizer.tgt_shown(tgt)
    if not shown:
        return []
    weights = weights[shown, : len(src) - 1]  # the end symbol is no word,
    weights[:, : bool(tokenizer.tags)] = 0  # and neither is a tag
    src_words = tokenizer.src_words(src[:-1])
    tgt_words = tokenizer.tgt_words([tgt[place] for place in shown])
    words = weights.new_zeros(tgt_words[-1] + 1, src_words[-1] + 1)
    rows = torch.tensor(tgt_words, device=words.device)[:, None]
    columns = torch.tensor(src_words, device=words.device)
    words.index_put_((rows, columns), weights, accumulate=True)
    return [(s, t) for t, s in enumerate(words.argmax(-1).tolist())]
