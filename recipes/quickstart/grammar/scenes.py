"""Whole clauses: people, animals and things with what can be said of them."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

from grammar import lexicon as lex
from grammar.being import DEGREES, NO_DEGREE, having, identities, is_a, is_like, qualities
from grammar.clauses import (
    BARE,
    DEFINITE,
    DEFINITES,
    I_WE,
    OWNED,
    SEVERAL,
    THEY,
    Modifier,
    Pairs,
    Phrase,
    Predicate,
    name,
    noun_phrase,
    pronoun,
)
from grammar.lexicon import Noun
from grammar.morphology import Word
from grammar.parts import (
    ANIMALS,
    INDEFINITE,
    OWNABLE,
    PEOPLE,
    SOME,
    TENSES,
    VERBS_OF,
    Clause,
    Part,
    animal_subjects,
    described_nouns,
    human_subjects,
    key,
    relative_object,
)
from grammar.predicates import (
    NOTHING,
    PLACE,
    acting,
    acts,
    does,
    doing_at,
    giving,
    related_objects,
    sequences,
    transitive,
)

THINGS = (("이것", "this", "is"), ("그것", "it", "is"), ("저것", "that", "is"),
          ("이것들", "these", "are"), ("저것들", "those", "are"))  # fmt: skip


def compose(subject: Part, what: Part) -> Part:
    """The clause part of a subject and a predicate part."""
    split = len(subject.factors)

    def build(level: int, *choices: Any) -> Clause:
        who, pairs = subject.build(level, *choices[:split])
        predicate = what.build(level, who, *choices[split:])
        both = (key(predicate.word), who.key)
        if what.kind != "quality" and predicate.word.irregular != "이":
            pairs = (*pairs, both)
        return who, predicate._replace(pairs=pairs + predicate.pairs)

    marks = tuple(mark for mark in subject.marks if mark in what.marks)
    return what._replace(
        weight=subject.weight * what.weight,
        factors=subject.factors + what.factors,
        build=build,
        person=subject.person,
        marks=marks,
        slots=subject.slots & what.slots,
        light=subject.light and what.light,
    )


def _thing_is(level: int, described: tuple[Noun, Word], mod: Modifier, degree: Any) -> Clause:
    noun, adjective = described
    thing = noun_phrase(noun, mod, level)
    return thing, is_like(level, thing, adjective, degree)


def _related_is(
    level: int, described: tuple[Noun, Word, Word], who: Any, tense: str, degree: Any
) -> Clause:
    noun, adjective, verb = described
    person = name(who, level) if isinstance(who, Noun) else pronoun(who, level)
    ko, en, pairs = relative_object(level, person, verb, noun, tense)
    thing = Phrase(ko, en, "is", noun.ko)
    what = is_like(level, thing, adjective, degree)
    return thing, what._replace(pairs=what.pairs + pairs)


def _this_is(
    level: int, this: tuple[str, str, str], described: tuple[Noun, Word | None], mod: Modifier
) -> Clause:
    subject = Phrase(*this, this[0])
    what = is_a(level, subject, described, mod)
    pairs: Pairs = ((described[0].ko, this[1]),)
    if described[1]:
        pairs += ((key(described[1]), described[0].ko),)
    return subject, what._replace(pairs=pairs)


def about_things() -> Iterator[Part]:
    """The book is expensive; the book that I bought is interesting; this is my book."""
    things = [n for n in lex.NOUNS.values() if n not in PEOPLE and n.group not in ("kin", "study")]
    counted = [noun for noun in things if noun.countable]
    mass = [noun for noun in things if not noun.countable]
    own = [noun for noun in things if noun.group in OWNABLE]
    triples = [(n, a, v) for n, a in described_nouns(counted) for v in VERBS_OF.get(n.ko, ())]
    who = (*lex.NAMES[:-1], *I_WE, *THEY[:2])
    for degrees in (NO_DEGREE, DEGREES):
        deniable = degrees is NO_DEGREE
        for weight, nouns, mods in (
            (2, counted, DEFINITES),
            (1, mass, DEFINITE),
            (1.5, own, OWNED),
        ):
            factors = (described_nouns(nouns), mods, degrees)
            yield Part(weight, factors, _thing_is, "quality", deniable=deniable)
        related = (triples, who, TENSES[:2], degrees)
        yield Part(2.5, related, _related_is, "quality", slots=SOME, deniable=deniable)
    plain = [(noun, None) for noun in counted]
    own = [noun for noun in own if noun.countable]
    topic = ("topic",)
    yield Part(2, (THINGS, plain, BARE), _this_is, "being", marks=topic)
    yield Part(2, (THINGS, described_nouns(counted), BARE), _this_is, "being", marks=topic)
    yield Part(2, (THINGS, [(noun, None) for noun in own], OWNED), _this_is, "being", marks=topic)


def _there(level: int, where: Any, noun: Noun, mod: Modifier) -> Clause:
    (ko, en), what = where, noun_phrase(noun, mod, level)
    subject = Phrase(f"{ko} {what.ko}", "there", what.be, noun.ko)
    pairs = (("있다 there", noun.ko),)
    return subject, Predicate("", Word("있", "exist"), f"be {what.en}", en, pairs)


def _lies(level: int, where: Any, noun: Noun, mod: Modifier) -> Clause:
    (ko, en), what = where, noun_phrase(noun, mod, level)
    return what, Predicate(ko, Word("있", "exist"), "be", en, (("있다 be", noun.ko),))


def existence() -> Iterator[Part]:
    """There are three books on the desk; the book is on the desk."""
    spots = [
        (f"{mark} {side}에", f"{lex.POSITIONS[side]} the {lex.NOUNS[mark].en}")
        for mark, sides in lex.LANDMARKS.items()
        for side in sides.split()
    ]
    small = [n for n in lex.group("thing", "text", "pen", "고양이", "표", "사진") if n.ko != "가방"]
    places = [(f"{ko}에", en) for ko, en in lex.PLACES.items() if ko not in ("집", "서울", "부산")]
    alive = PEOPLE + ANIMALS[:6]
    one, topic = INDEFINITE, ("topic", "subject")
    for where, nouns in ((spots, small), (places, alive)):
        yield Part(1.5, (where, nouns, BARE), _there, "being", marks=one)
        yield Part(2, (where, nouns, SEVERAL), _there, "being", marks=one, deniable=False)
        yield Part(2, (where, nouns, DEFINITES), _lies, "being", marks=topic)


def animal_clauses() -> Iterator[Part]:
    """The dog chases a cat in the garden."""
    places = [extra for extra in PLACE if extra[2] in ("집", "공원", "정원", "해변", "시골")]
    doing = [do for do in doing_at(places) if do[0].english in ("sleep", "rest", "run", "play")]
    eating = [(verb, noun) for verb, nouns, _ in lex.ANIMAL for noun in nouns]
    for subject in animal_subjects():
        predicates: tuple[tuple[float, tuple[Sequence[Any], ...], Any], ...] = (
            (1.5, (eating, BARE + DEFINITE, NOTHING), does),
            (1.0, (eating, BARE, places), does),
            (1.0, (doing,), acts),
        )
        for weight, factors, build in predicates:
            yield compose(subject, Part(weight, factors, build, "animal"))


def human_clauses() -> Iterator[Part]:
    """Everything that a person does, is or has."""
    predicates = [
        *transitive(0.5, lex.ACTIONS, "action"),
        *transitive(0.1, lex.STATES, "state"),
        *transitive(0.1, lex.EVENTS, "event"),
        *related_objects(4.0),
        *giving(0.8),
        *acting(5.0),
        *qualities(3.0),
        *identities(2.0),
        *having(1.5),
    ]
    simple = [part for part in predicates if part.light and part.kind == "action"]
    predicates += sequences(2.0 / sum(part.weight for part in simple) ** 2, simple)
    for subject in human_subjects():
        for what in predicates:
            whole = compose(subject, what)
            if whole.marks and whole.slots:
                yield whole


SHARES = (
    (human_clauses, 0.66),
    (about_things, 0.18),
    (existence, 0.09),
    (animal_clauses, 0.07),
)


def clauses() -> list[Part]:
    """All clause parts; their weights add up to 1."""
    found = []
    for parts, share in SHARES:
        some = [part for part in parts() if prod(map(len, part.factors))]
        total = sum(part.weight for part in some)
        found += [part._replace(weight=share * part.weight / total) for part in some]
    return found
