"""Sentences of like length in batches, and results in the order of the sentences."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Result = TypeVar("Result")
Ids = list[int]


def like_length(lengths: Sequence[int], budget: int) -> Iterator[list[int]]:
    """Cuts sentences into batches, shortest first.

    Args:
        lengths: of each sentence, in tokens.
        budget: padded tokens in a batch; a longer sentence is a batch of its own.

    Returns:
        Their indices, batch by batch.
    """
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > budget:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def of_pairs(
    compute: Callable[[Sequence[Ids], Sequence[Ids]], list[Result]],
    pairs: Sequence[tuple[Ids, Ids]],
    max_tokens: int,
) -> list[Result]:
    """What is computed of sentence pairs, batch by batch.

    Args:
        compute: is given the source ids and the target ids of a batch.
        pairs: source and target ids.
        max_tokens: padded tokens of the longer side in a batch.
    """
    results: dict[int, Result] = {}
    for batch in like_length([max(map(len, pair)) for pair in pairs], max_tokens):
        src_ids, tgt_ids = zip(*(pairs[index] for index in batch), strict=True)
        results.update(zip(batch, compute(src_ids, tgt_ids), strict=True))
    return [results[index] for index in range(len(pairs))]
