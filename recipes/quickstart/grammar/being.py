"""Predicates of being and having: adjectives, nouns with the copula, possessions."""

from collections.abc import Iterator

from grammar import lexicon as lex
from grammar import morphology as morph
from grammar.clauses import BARE, OWNED, SEVERAL, Modifier, Phrase, Predicate, noun_phrase
from grammar.lexicon import Noun
from grammar.morphology import Word, particle
from grammar.parts import ANIMALS, JOBS, OWNABLE, PEOPLE, Part, described_nouns, key

DEGREES = (("아주", "very "), ("정말", "really "))
NO_DEGREE = (("", ""),)


def is_like(_: int, subject: Phrase, adjective: Word, degree: tuple[str, str]) -> Predicate:
    """An adjective with an adverb of degree."""
    ko, en = degree
    pairs = ((key(adjective), subject.key),)
    return Predicate(ko, adjective, f"be {en}{adjective.english}", pairs=pairs)


def is_a(
    level: int, subject: Phrase, described: tuple[Noun, Word | None], mod: Modifier
) -> Predicate:
    """A noun with the copula; English gives it the number of the subject."""
    noun, adjective = described
    ko = noun_phrase(noun, mod, level, adjective).ko
    many = mod._replace(plural=subject.be == "are")
    en = noun_phrase(noun, many, level, adjective).en
    pairs = ((noun.ko, subject.key),)
    return Predicate("", morph.copula(ko), f"be {en}", pairs=pairs)


def _becomes(_: int, subject: Phrase, noun: Noun) -> Predicate:
    en = morph.plural(noun.en) if subject.be == "are" else morph.article(noun.en)
    pairs = ((noun.ko, subject.key),)
    return Predicate(particle(noun.ko, "subject"), Word("되"), f"become {en}", pairs=pairs)


def qualities(weight: float) -> Iterator[Part]:
    """I am very busy."""
    adjectives = [word for word, nouns in lex.ADJECTIVES if PEOPLE[0] in nouns]
    yield Part(weight / 2, (adjectives, NO_DEGREE), is_like, "quality", light=True)
    yield Part(weight / 2, (adjectives, DEGREES), is_like, "quality", deniable=False)


def identities(weight: float) -> Iterator[Part]:
    """I am a student; I want to become a singer."""
    topic = ("topic",)
    plain = [(noun, None) for noun in JOBS]
    friends = [(noun, None) for noun in lex.group("친구", "이웃", "사촌")]
    yield Part(weight * 2, (plain, BARE), is_a, "being", marks=topic)
    yield Part(weight, (described_nouns(JOBS), BARE), is_a, "being", marks=topic)
    yield Part(weight / 2, (friends, OWNED), is_a, "being", marks=topic)
    yield Part(weight / 2, (JOBS,), _becomes, "becoming", marks=topic)


def _has(level: int, _: Phrase, noun: Noun, mod: Modifier) -> Predicate:
    what = noun_phrase(noun, mod, level)
    word, pairs = Word("있", "exist"), (("있다 have", noun.ko),)
    return Predicate(particle(what.ko, "subject"), word, "have", what.en, pairs)


def having(weight: float) -> Iterator[Part]:
    """I have a bicycle: 나는 자전거가 있다."""
    owned = [noun for noun in lex.NOUNS.values() if noun.group in OWNABLE] + ANIMALS[:4]
    marks = ("topic",)
    yield Part(weight, (owned, BARE), _has, "being", marks=marks)
    yield Part(weight / 2, (owned, SEVERAL[::2]), _has, "being", marks=marks, deniable=False)
