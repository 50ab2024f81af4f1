"""What goes wrong when a model is given strange lines: outputs that loop, are empty, or blow up."""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, NamedTuple, TypeVar, get_args

from transformer.data.tokenizer import UNK
from transformer.inference.search import Hypothesis, SearchConfig

#: The least bad first: what is too long may hold the translation, an empty output holds nothing.
Flaw = Literal["blow_up", "loop", "empty"]
FLAWS: tuple[Flaw, ...] = get_args(Flaw)

PERIOD = 16  # tokens of the longest phrase whose repetition is looked for
REPEATS = 3  # of a phrase in a row are still language: "no, no, no"
FACTOR, EXTRA = 3, 10  # target tokens that a source token warrants, and those for no token at all

EACH = 8  # probes of a kind
LONG = 3  # of the longest kind, which take the most time
DIGITS = ("7", "42", "1111111", "3.14159", "1 000 000", "2024-02-29", "23:59:59", "+82 2 123 4567")
PUNCTUATION = (".", "?", "...", "!!!!!!!!", "?!?!", "- - - -", '"("', ":-)")

Item = TypeVar("Item")
Encode = Callable[[list[str]], list[list[int]]]


class Verdict(NamedTuple):
    """What a look at a translation found.

    flaw: what is wrong with it, None for nothing. before: what was wrong with the one before it,
    where the line was decoded again.
    """

    flaw: Flaw | None = None
    before: Flaw | None = None


def find_flaw(given: Sequence[int], hypothesis: Hypothesis) -> Flaw | None:
    """What is wrong with a translation, as far as its length and its repetitions show it.

    `empty`: no token that can be seen. `loop`: a phrase of up to 16 tokens that stands more than
    three times in a row, and more than twice as often as any phrase of what was given: "no no no
    no" and "1111111" may be repeated as they are, or in smaller pieces. `blow_up`: 10 tokens and
    three more for each that was given are exceeded, or the search's limit came before the end.

    Of the 33,827 references of Multi30k en–de and Tatoeba ko–en none is flagged (BPE of 8,000).

    Args:
        given: source ids, the end symbol included, and those of a forced prefix.
        hypothesis: the translation.

    Returns:
        The worst flaw, or None.
    """
    seen = [token for token in hypothesis.ids if token > UNK]
    if not seen:
        return "empty"
    repeats = count_repeats(seen)
    if repeats > REPEATS and repeats > 2 * count_repeats([t for t in given if t > UNK]):
        return "loop"
    if len(hypothesis.ids) > FACTOR * len(given) + EXTRA or not hypothesis.ended:
        return "blow_up"
    return None


def count_repeats(ids: Sequence[int]) -> int:
    """How many times in a row the phrase stands that is repeated most often; at least 1."""
    most = 1
    for period in range(1, min(PERIOD, len(ids) // 2) + 1):
        same = 0
        for token, later in zip(ids, ids[period:], strict=False):
            same = same + 1 if token == later else 0
            most = max(most, same // period + 1)
    return most


def badness(flaw: Flaw | None) -> int:
    """How bad a flaw is; 0 for none."""
    return 0 if flaw is None else FLAWS.index(flaw) + 1


def stricter(config: SearchConfig) -> SearchConfig:
    """The search with which a line is decoded again: no trigram twice, no empty output.

    All the hypotheses of the beam come out, as one that is not the best may be the one that ends.
    An upper bound below that of `config` would only cut off what does not end.
    """
    return replace(
        config,
        n_best=config.width,
        no_repeat_ngram=config.no_repeat_ngram or 3,
        min_length=max(config.min_length, 1),
    )


def least_bad(given: Sequence[int], hypotheses: Sequence[Hypothesis]) -> Hypothesis:
    """The first of those whose flaw, as `find_flaw` sees it, is the least bad."""
    return min(hypotheses, key=lambda hypothesis: badness(find_flaw(given, hypothesis)))


def flaw_rates(flaws: Sequence[Flaw | None]) -> dict[str, float]:
    """The share of outputs with each flaw: `loop_rate`, `empty_rate` and `blow_up_rate`."""
    return {f"{flaw}_rate": flaws.count(flaw) / max(len(flaws), 1) for flaw in FLAWS}


def probes(
    encode: Encode, sources: Sequence[str], targets: Sequence[str], max_length: int
) -> dict[str, list[str]]:
    """Lines that no training sentence looks like, by their kind; the same ones every time.

    Args:
        encode: lines to source ids, as the model reads them.
        sources: sentences of the source language, such as those of the validation set.
        targets: sentences of the target language.
        max_length: longest line, in tokens; longer ones are left out.
    """
    some = _spread(sources, EACH)
    words = [re.findall(r"\w+", line)[-1:] for line in some]
    starts = _spread(range(len(sources)), LONG)
    lines = {
        # Cut off for languages that put no spaces between words.
        "word": [word[:12] for found in words for word in found],
        "capitals": [line.upper() for line in some],
        "digits": [*DIGITS],
        "punctuation": [*PUNCTUATION],
        "empty": ["", " "],
        "long": [_joined(encode, sources[start:], max_length) for start in starts],
        "wrong language": _spread(targets, EACH),
    }
    return {
        kind: [line for line in found if len(encode([line])[0]) <= max_length]
        for kind, found in lines.items()
    }


def _spread(lines: Sequence[Item], count: int) -> list[Item]:
    """Some of them, from all over."""
    return [lines[index * len(lines) // count] for index in range(min(count, len(lines)))]


def _joined(encode: Encode, lines: Sequence[str], max_length: int) -> str:
    """The first lines as one, as many as there is room for."""
    text = lines[0]
    for line in lines[1:]:
        longer = f"{text} {line}"
        if len(encode([longer])[0]) > max_length:
            break
        text = longer
    return text
