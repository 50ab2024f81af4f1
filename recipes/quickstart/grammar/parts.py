"""Parts of sentences, and the subjects: who does or is something.

Every *part* is a product of independent lists of choices with a function that builds from one
choice of each, so that what it can say is counted and numbered without being written out.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from grammar import lexicon as lex
from grammar import morphology as morph
from grammar.clauses import (
    BARE,
    COUNTS,
    DEFINITE,
    DEFINITES,
    I_WE,
    ONE,
    OWNED,
    PLURAL,
    THEY,
    YOU,
    Entry,
    Modifier,
    Pairs,
    Phrase,
    Predicate,
    inflect,
    name,
    noun_phrase,
    pronoun,
)
from grammar.lexicon import Noun
from grammar.morphology import Word, particle

TENSES = ("present", "past", "future")
ANYTIME = frozenset(("start", "end", "verb"))

Subject = tuple[Phrase, Pairs]
Clause = tuple[Phrase, Predicate]


class Part(NamedTuple):
    """A product of choices and what to build of them.

    Args:
        weight: how often it is used, relative to its alternatives.
        factors: the lists of choices.
        build: (level, one of each list) -> ``Subject`` or ``Clause``; a predicate's function
            takes the subject's phrase after the level and gives a ``Predicate``.
        kind: the verb forms that go with it, a key of ``grammar.MODES``.
        person: of the subject.
        marks: names of the particles that the subject may take.
        slots: where adverbs of time can stand without changing what they belong to.
        light: short enough to be one clause of two.
        deniable: whether a negation sounds natural.
    """

    weight: float
    factors: tuple[Sequence[Any], ...]
    build: Callable[..., Any]
    kind: str = ""
    person: int = 3
    marks: tuple[str, ...] = ("topic", "subject")
    slots: frozenset[str] = ANYTIME
    light: bool = False
    deniable: bool = True


def key(word: Word) -> str:
    """Names a verb or adjective in a combination of words (보다 is "see" and "watch")."""
    return f"{word.stem}다 {word.english}"


PEOPLE = lex.group("person")
JOBS = lex.group("job")
KIN = lex.group("kin")
ANIMALS = lex.group("animal")
OWNABLE = (
    *("kin", "text", "letter", "clothes", "shoe", "thing", "furniture", "machine"),
    *("instrument", "vehicle", "pen"),
)
VO = [(verb, noun) for verb, nouns, _ in lex.ACTIONS for noun in nouns if noun.group != "kin"]
VERBS_OF: dict[str, list[Word]] = {}
for _verb, _noun in VO:
    VERBS_OF.setdefault(_noun.ko, []).append(_verb)
ADJECTIVES_OF: dict[str, list[Word]] = {}
for _adjective, _nouns in lex.ADJECTIVES:
    for _noun in _nouns:
        ADJECTIVES_OF.setdefault(_noun.ko, []).append(_adjective)


def described_nouns(nouns: Sequence[Noun]) -> list[tuple[Noun, Word]]:
    """The nouns, each with each adjective that describes it."""
    return [(noun, word) for noun in nouns for word in ADJECTIVES_OF.get(noun.ko, ())]


def _is_pronoun(level: int, entry: Entry) -> Subject:
    return pronoun(entry, level), ()


def _is_name(level: int, noun: Noun) -> Subject:
    return name(noun, level), ()


def _is_noun(level: int, noun: Noun, mod: Modifier) -> Subject:
    return noun_phrase(noun, mod, level), ()


def noun_subjects(
    weight: float, nouns: Sequence[Noun], mods: Sequence[Modifier], **more: Any
) -> Part:
    """The part of the nouns with each of the modifiers."""
    return Part(weight, (nouns, mods), _is_noun, **more)


def attributed(level: int, described: tuple[Noun, Word], mod: Modifier) -> Subject:
    """A noun with an adjective."""
    noun, adjective = described
    return noun_phrase(noun, mod, level, adjective), ((key(adjective), noun.ko),)


def relative_subject(
    level: int, action: tuple[Word, Noun], noun: Noun, tense: str, plural: bool
) -> Subject:
    """A person with a relative clause whose subject the person is: 책을 산 학생.

    Args:
        level: politeness.
        action: verb and object of the clause.
        noun: the person.
        tense: of the clause.
        plural: whether there are several.

    Returns:
        The definite phrase and its combinations of words.
    """
    verb, what = action
    thing = noun_phrase(what, BARE[0], level)
    person = morph.plural(noun.en) if plural else noun.en
    be = "are" if plural else "is"
    ko = f"{particle(thing.ko, 'object')} {morph.modifier(verb, tense)} {noun.ko}{'들' * plural}"
    en = f"the {person} who {inflect(verb.english, tense, be)} {thing.en}"
    return Phrase(ko, en, be, noun.ko), ((key(verb), what.ko), (key(verb), noun.ko))


def relative_object(
    level: int, who: Phrase, verb: Word, noun: Noun, tense: str
) -> tuple[str, str, Pairs]:
    """A noun with a relative clause whose object it is: 민수가 산 책, "the book that Minsu bought".

    Args:
        level: politeness.
        who: the subject of the clause.
        verb: its verb.
        noun: the head.
        tense: of the clause.

    Returns:
        The Korean phrase, the English one, and its combinations of words.
    """
    that = "whom" if noun in PEOPLE else "that"
    en = f"the {noun.en} {that} {who.en} {inflect(verb.english, tense, who.be)}"
    ko = f"{particle(who.ko, 'subject')} {morph.modifier(verb, tense)} {noun.ko}"
    return ko, en, ((key(verb), noun.ko), (key(verb), who.key))


INDEFINITE = ("subject",)
SOME = ANYTIME - {"start"}


def human_subjects() -> Iterator[Part]:
    """I, you, he, Minsu, my uncle, the student, a kind student, three students ..."""
    yield Part(2.5, (I_WE,), _is_pronoun, person=1, light=True)
    yield Part(1.5, (YOU,), _is_pronoun, person=2, light=True)
    yield Part(1.5, (THEY,), _is_pronoun, person=3, light=True)
    for some in (lex.NAMES[:6], lex.NAMES[6:-1]):  # two halves, for two clauses
        yield Part(1.5, (some,), _is_name, light=True)
    yield noun_subjects(1.0, KIN, OWNED, light=True)
    yield noun_subjects(2.0, PEOPLE, DEFINITES, light=True)
    yield noun_subjects(0.8, PEOPLE, BARE + PLURAL + ONE, marks=INDEFINITE)
    yield noun_subjects(0.7, PEOPLE, COUNTS, marks=INDEFINITE)
    yield Part(0.6, (described_nouns(PEOPLE), DEFINITE), attributed)
    yield Part(0.5, (described_nouns(PEOPLE), BARE + PLURAL), attributed, marks=INDEFINITE)
    factors = (VO, PEOPLE, TENSES, (False, True))
    yield Part(0.9, factors, relative_subject, slots=SOME)


def animal_subjects() -> Iterator[Part]:
    """A dog, the dog, three dogs, my dog, the big dog."""
    yield noun_subjects(1.0, ANIMALS, BARE + PLURAL, marks=INDEFINITE)
    yield noun_subjects(1.5, ANIMALS, DEFINITES)
    yield noun_subjects(0.7, ANIMALS, COUNTS, marks=INDEFINITE)
    yield noun_subjects(0.7, lex.group("개", "고양이", "말", "토끼", "소", "돼지"), OWNED)
    yield Part(0.6, (described_nouns(ANIMALS), DEFINITE), attributed)
