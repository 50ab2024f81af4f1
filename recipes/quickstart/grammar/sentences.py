"""Sentences of the grammar: all of them, each once, in a keyed order, and each in one split.

The sentences of a *frame* (a clause part with its verb forms, or two clauses with a link) are
numbered by mixed radix and visited in a keyed random order, so that they are distinct without any
of them being remembered. The Korean sentence determines the English one.

A sentence belongs to ``test`` or ``val`` when it contains a combination of two words (verb and
object, subject and verb, adjective and noun, verb and place ...) that a hash holds out for that
split; training sentences contain none of either.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from hashlib import blake2b
from itertools import accumulate, product
from math import isqrt, prod
from random import Random
from typing import Any, Literal, NamedTuple

from grammar import lexicon as lex
from grammar import morphology as morph
from grammar.clauses import (
    Form,
    Mood,
    Pairs,
    Phrase,
    Predicate,
    english_clause,
    korean_clause,
)
from grammar.forms import ASKED, DENIED, TOLD, forms
from grammar.morphology import LEVELS, particle
from grammar.parts import Part, key
from grammar.scenes import clauses

Split = Literal["train", "val", "test"]
HELD_OUT_PERCENT = 2  # of the combinations of words, for val and again for test
# A verb or adjective with fewer nouns than this keeps them all: training must know every word.
FEW_NOUNS = 5


class Sentence(NamedTuple):
    """A pair of sentences and the combinations of words in it."""

    korean: str
    english: str
    pairs: Pairs


class Frame(NamedTuple):
    """The sentences of one pattern: the product of ``factors``, built by ``build``."""

    weight: float
    factors: tuple[Sequence[Any], ...]
    build: Callable[..., Sentence]

    @property
    def size(self) -> int:
        """How many sentences there are."""
        return prod(map(len, self.factors))

    def sentence(self, number: int) -> Sentence:
        """The sentence with that number, 0 <= number < size."""
        choices = []
        for factor in self.factors:
            number, digit = divmod(number, len(factor))
            choices.append(factor[digit])
        return self.build(*choices)


def _written(korean: str, english: str, pairs: Pairs, end: str = "") -> Sentence:
    return Sentence(korean + end, english[0].upper() + english[1:] + end, pairs)


def _simple(weight: float, part: Part, speech: str) -> Frame:
    def build(form: Form, mark: str, *choices: Any) -> Sentence:
        subject, what = part.build(form.mood.level, *choices)
        korean = korean_clause(subject, mark, what, form, part.person == 3)
        end = "?" if speech == ASKED else ""
        return _written(korean, english_clause(subject, what, form), what.pairs, end)

    fitting = forms(part.kind, part.person, speech, part.slots)
    return Frame(weight * part.weight, (fitting, part.marks, *part.factors), build)


def _linked_korean(subject: Phrase, mark: str, what: Predicate, mood: Mood, ending: str) -> str:
    """A clause that goes on: 민수는 책을 읽었지만."""
    word = morph.negate(what.word) if mood.negative else what.word
    word = morph.past(word) if mood.tense == "past" else word
    words = (particle(subject.ko, mark), what.before, word.stem + ending)
    return " ".join(filter(None, words))


LINKS = {"고": "and", "지만": "but", "기 때문에": "because"}


def _two(weight: float, first: Part, second: Part) -> Frame:
    """Two clauses with subjects of their own: -고, -지만, -기 때문에."""
    split = len(first.factors)

    def build(mood: Mood, link: str, denied: bool, *choices: Any) -> Sentence:
        one, what = first.build(mood.level, *choices[:split])
        two, then = second.build(mood.level, *choices[split:])
        before = mood._replace(negative=denied)
        mark = "subject" if link == "기 때문에" else "topic"
        korean = _linked_korean(one, mark, what, before, link)
        korean += " " + korean_clause(two, "topic", then, Form(mood), second.person == 3)
        halves = [english_clause(one, what, Form(before)), english_clause(two, then, Form(mood))]
        halves = halves[::-1] if link == "기 때문에" else halves
        return _written(korean, f" {LINKS[link]} ".join(halves), what.pairs + then.pairs)

    moods = [
        Mood("simple", tense, level, denied)
        for tense, level, denied in product(("present", "past"), LEVELS, (False, True))
    ]
    factors = (moods, tuple(LINKS), (False, True), *first.factors, *second.factors)
    return Frame(weight, factors, build)


SPEECH_WEIGHTS = {TOLD: 0.68, DENIED: 0.16, ASKED: 0.16}
TWO_CLAUSES = 0.12  # share of the sentences


@cache
def frames() -> tuple[Frame, ...]:
    """Every pattern of the language with how often it is used."""
    parts = clauses()
    simple = [
        _simple(weight, part, speech)
        for part in parts
        for speech, weight in SPEECH_WEIGHTS.items()
        if part.deniable or speech != DENIED
    ]
    light = [part for part in parts if part.light and part.person != 2]
    share = TWO_CLAUSES * sum(frame.weight for frame in simple if frame.size)
    share /= sum(part.weight for part in light) ** 2
    two = [
        _two(share * one.weight * two.weight, one, two)
        for one, two in product(light, light)
        if one.factors[0] is not two.factors[0]  # "Minsu ... and Minsu ..."
    ]
    return tuple(frame for frame in simple + two if frame.size)


@cache
def _keepers() -> frozenset[str]:
    """Words that go together with so few nouns that none of their combinations is held out."""
    tables = (lex.ACTIONS, lex.STATES, lex.EVENTS, lex.GIVING, lex.ANIMAL)
    sizes = [(key(word), len(nouns)) for table in tables for word, nouns, _ in table]
    sizes += [(key(word), len(nouns)) for word, nouns in lex.ADJECTIVES]
    return frozenset(word for word, size in sizes if size < FEW_NOUNS)


@cache
def home(pair: tuple[str, str]) -> Split:
    """The only split that has a combination of words: a function of the two words alone."""
    if pair[0] in _keepers():
        return "train"
    digest = blake2b("|".join(pair).encode(), digest_size=4, key=b"grammar").digest()
    percent = int.from_bytes(digest, "big") % 100
    if percent >= 2 * HELD_OUT_PERCENT:
        return "train"
    return "test" if percent < HELD_OUT_PERCENT else "val"


def split_of(sentence: Sentence) -> Split:
    """The split that a sentence belongs to."""
    homes = {home(pair) for pair in sentence.pairs}
    return "test" if "test" in homes else "val" if "val" in homes else "train"


_PRIME = 2**61 - 1


class Permutation:
    """A keyed bijection of range(size): a Feistel network with modular addition.

    Args:
        size: of the range, at least 1.
        random: gives the keys.
    """

    def __init__(self, size: int, random: Random) -> None:
        self.size = size
        self.rows = isqrt(size - 1) + 1
        self.columns = -(-size // self.rows)
        self.keys = [(random.getrandbits(61) | 1, random.getrandbits(61)) for _ in range(6)]

    def __call__(self, number: int) -> int:
        """The image of a number; what falls beyond ``size`` is sent on until it does not."""
        while True:
            left, right = divmod(number, self.columns)
            for turn, (factor, offset) in enumerate(self.keys):
                mixed = ((left if turn % 2 else right) * factor + offset) % _PRIME
                if turn % 2:
                    right = (right + (mixed >> 7)) % self.columns
                else:
                    left = (left + (mixed >> 7)) % self.rows
            number = left * self.columns + right
            if number < self.size:
                return number


def sentences(seed: int = 1) -> Iterator[Sentence]:
    """All sentences of the language, each once, in an order that the seed determines.

    The memory it takes does not grow with the number of sentences: a counter for each frame.
    """
    random = Random(seed)
    left = list(frames())
    orders = [iter(map(Permutation(f.size, random), range(f.size))) for f in left]
    while left:
        weights = list(accumulate(frame.weight for frame in left))
        spent = None
        while spent is None:
            for index in random.choices(range(len(left)), cum_weights=weights, k=1024):
                number = next(orders[index], None)
                if number is None:
                    spent = index
                    break
                yield left[index].sentence(number)
        del left[spent], orders[spent]


def pairs(split: Split, count: int, seed: int = 1) -> Iterator[tuple[str, str]]:
    """Distinct Korean-English sentence pairs of a split.

    Args:
        split: ``train``, ``val`` or ``test``. No seed makes a sentence change its split.
        count: how many pairs.
        seed: what determines which sentences come, and in which order.

    Returns:
        An iterator over (korean, english).

    Raises:
        ValueError: the split has fewer sentences (found out while iterating where the language
            as a whole has enough).
    """
    if not 0 <= count <= sum(frame.size for frame in frames()):
        raise ValueError(f"{split} cannot have {count} distinct pairs: lower --pairs")
    return _pairs(split, count, seed)


def _pairs(split: Split, count: int, seed: int) -> Iterator[tuple[str, str]]:
    found = (s for s in sentences(seed) if split_of(s) == split)
    for number in range(count):
        sentence = next(found, None)
        if sentence is None:
            raise ValueError(f"{split} has {number} distinct pairs, not {count}: lower --pairs")
        yield sentence.korean, sentence.english
