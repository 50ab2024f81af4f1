"""Predicates of doing: verbs with objects, places and companions."""

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from typing import Any

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
    OWNERS,
    PLURAL,
    Modifier,
    Phrase,
    Predicate,
    name,
    noun_phrase,
    other,
    pronoun,
)
from grammar.lexicon import Noun
from grammar.morphology import Word, particle
from grammar.parts import (
    ANIMALS,
    KIN,
    OWNABLE,
    PEOPLE,
    TENSES,
    VERBS_OF,
    VO,
    Part,
    described_nouns,
    key,
    relative_object,
    relative_subject,
)

OBJECT_PRONOUNS = (("그", "him", "he"), ("그녀", "her", "she"), ("그들", "them", "they"))
MANNERS = (("천천히", "slowly"), ("빨리", "quickly"), ("조용히", "quietly"), ("혼자", "alone"))
VEHICLES = (("버스", "bus"), ("기차", "train"), ("택시", "taxi"), ("자전거", "bicycle"),
            ("지하철", "subway"))  # fmt: skip

Objects = tuple[float, Callable[[Noun], bool], Sequence[Modifier]]
OBJECTS: tuple[Objects, ...] = (
    (2.5, lambda noun: noun.group != "kin", BARE),
    (1.2, lambda noun: bool(noun.counter) and noun.group != "kin", COUNTS),
    (1.5, lambda noun: noun.countable and noun.group != "kin", DEFINITES),
    (0.5, lambda noun: not noun.countable and noun.group != "study", DEFINITE),
    (0.5, lambda noun: noun in PEOPLE or noun in ANIMALS, PLURAL),
    (1.2, lambda noun: noun.group in OWNABLE or noun.ko in ("친구", "이웃", "개", "고양이"), OWNED),
)
Extra = tuple[tuple[str, ...], str, str]
PLACE: Sequence[Extra]
SHOP: Sequence[Extra]
PLACE, SHOP = (
    [((f"{ko}에서",) * 3, en, ko) for ko, en in places.items()]
    for places in (lex.PLACES, lex.SHOPS)
)
MANNER: Sequence[Extra] = [((ko,) * 3, en, "") for ko, en in MANNERS]
COMPANION: Sequence[Extra] = [
    (
        tuple(f"{particle(f'{mine} {kin.ko}', 'with')} 함께" for mine in owner),
        f"with {en} {kin.en}",
        "",
    )
    for owner, en in OWNERS[:4]
    for kin in KIN
]
NOTHING: Sequence[Extra] = [(("", "", ""), "", "")]
EXTRAS: dict[str, tuple[float, Sequence[Extra]]] = {
    "": (4.0, NOTHING),
    "p": (1.5, PLACE),
    "s": (1.0, SHOP),
    "m": (1.0, MANNER),
    "c": (0.7, COMPANION),
}


def _join(*words: str) -> str:
    return " ".join(filter(None, words))


def _object(
    level: int, verb: Word, noun: Noun, mod: Modifier, adjective: Word | None = None
) -> Phrase:
    """The object of a verb; a bare noun that one likes or hates is a plural in English."""
    what = noun_phrase(noun, mod, level, adjective)
    if mod == BARE[0] and noun.countable and verb.english in ("like", "hate"):
        return what._replace(en=noun_phrase(noun, PLURAL[0], level, adjective).en)
    return what


def does(
    level: int, _: Phrase, action: tuple[Word, Noun], mod: Modifier, extra: Extra
) -> Predicate:
    """A verb with its object, and where, how or with whom."""
    verb, noun = action
    what, (ko, en, place) = _object(level, verb, noun, mod), extra
    marked = particle(what.ko, "object")
    before = _join(marked, ko[level]) if extra in MANNER else _join(ko[level], marked)
    pairs = ((key(verb), noun.ko), (key(verb), place)) if place else ((key(verb), noun.ko),)
    return Predicate(before, verb, verb.english, _join(what.en, en), pairs)


def _does_described(
    level: int, _: Phrase, action: tuple[Word, Noun, Word], mod: Modifier
) -> Predicate:
    verb, noun, adjective = action
    what = _object(level, verb, noun, mod, adjective)
    pairs = ((key(verb), noun.ko), (key(adjective), noun.ko))
    return Predicate(particle(what.ko, "object"), verb, verb.english, what.en, pairs)


def _does_related(
    level: int, subject: Phrase, action: tuple[Word, Noun, Word], who: Any, tense: str
) -> Predicate:
    verb, noun, inner = action
    person = name(other(who, subject), level) if isinstance(who, Noun) else pronoun(who, level)
    ko, en, pairs = relative_object(level, person, inner, noun, tense)
    pairs = ((key(verb), noun.ko), *pairs)
    return Predicate(particle(ko, "object"), verb, verb.english, en, pairs)


def _does_to_person(
    level: int,
    _: Phrase,
    verb: Word,
    action: tuple[Word, Noun],
    noun: Noun,
    tense: str,
    plural: bool,
) -> Predicate:
    (who, pairs) = relative_subject(level, action, noun, tense, plural)
    pairs = ((key(verb), noun.ko), *pairs)
    return Predicate(particle(who.ko, "object"), verb, verb.english, who.en, pairs)


def _does_to_name(level: int, subject: Phrase, verb: Word, noun: Noun) -> Predicate:
    who = name(other(noun, subject), level)
    pairs = ((key(verb), who.key),)
    return Predicate(particle(who.ko, "object"), verb, verb.english, who.en, pairs)


def _does_to_them(_: int, __: Phrase, verb: Word, entry: tuple[str, str, str]) -> Predicate:
    ko, en, who = entry
    return Predicate(particle(ko, "object"), verb, verb.english, en, ((key(verb), who),))


def transitive(weight: float, table: list[Any], kind: str) -> Iterator[Part]:
    """Verb and object, with what may stand around them."""
    for share, fits, mods in OBJECTS:
        for letter, (part, extras) in EXTRAS.items():
            chosen = [(v, n) for v, nouns, fit in table if letter in fit for n in nouns if fits(n)]
            light = mods is BARE and not letter and kind != "event"
            if chosen:
                whole = weight * share * part
                yield Part(whole, (chosen, mods, extras), does, kind, light=light)
    described = [(v, n, a) for v, nouns, _ in table for n, a in described_nouns(nouns)]
    yield Part(weight * 8, (described, BARE + DEFINITE), _does_described, kind)
    yield from _about_persons(weight, table, kind)


def _about_persons(weight: float, table: list[Any], kind: str) -> Iterator[Part]:
    verbs = [verb for verb, nouns, _ in table if PEOPLE[0] in nouns]
    if verbs:
        yield Part(weight * 2, (verbs, lex.NAMES[:-1]), _does_to_name, kind, light=kind != "event")
        yield Part(weight * 1, (verbs, OBJECT_PRONOUNS), _does_to_them, kind)
        factors = (verbs, VO, PEOPLE, TENSES, (False, True))
        yield Part(weight * 2, factors, _does_to_person, kind, slots=frozenset(("start",)))


def related_objects(weight: float) -> Iterator[Part]:
    """I read the book that Minsu bought."""
    actions = [
        (v, n, inner) for v, n in VO for inner in VERBS_OF[n.ko] if inner != v and n.countable
    ]
    factors = (actions, (*lex.NAMES[:-1], *I_WE), TENSES[:2])
    yield Part(weight, factors, _does_related, "action", slots=frozenset(("start",)))


def _gives(
    level: int, subject: Phrase, action: tuple[Word, Noun], mod: Modifier, to: Any
) -> Predicate:
    verb, noun = action
    what = noun_phrase(noun, mod, level)
    if isinstance(to, Noun):
        who = name(other(to, subject), level)
    else:
        who = noun_phrase(to[0], to[1], level)
    before = f"{who.ko}에게 {particle(what.ko, 'object')}"
    pairs = ((key(verb), noun.ko), (key(verb), who.key))
    return Predicate(before, verb, verb.english, f"{what.en} to {who.en}", pairs)


def giving(weight: float) -> Iterator[Part]:
    """I gave three books to Minsu."""
    people = [(noun, mod) for noun in PEOPLE for mod in ONE + DEFINITE]
    people += [(noun, mod) for noun in KIN for mod in OWNED]
    recipients: tuple[Sequence[Any], ...] = (lex.NAMES[:-1], people)
    for to in recipients:
        for share, fits, mods in OBJECTS[:3]:
            chosen = [(v, noun) for v, nouns, _ in lex.GIVING for noun in nouns if fits(noun)]
            yield Part(weight * share, (chosen, mods, to), _gives, "action")


def acts(level: int, _: Phrase, action: tuple[Word, Extra]) -> Predicate:
    """A verb without object, and where or with whom."""
    verb, (ko, en, place) = action
    pairs = ((key(verb), place),) if place else ()
    return Predicate(ko[level], verb, verb.english, en, pairs)


def _goes(_: int, __: Phrase, verb: Word, place: str, by: Any) -> Predicate:
    to = "home" if place == "집" else "to " + lex.PLACES[place].split(" ", 1)[1]
    pairs = ((key(verb), place),)
    if isinstance(by, str):
        where = f"{place}에" if by == "to" else particle(place, by)
        return Predicate(where, verb, verb.english, to, pairs)
    before = f"{particle(by[0], 'toward')} {place}에"
    return Predicate(before, verb, verb.english, f"{to} by {by[1]}", pairs)


def doing_at(where: Sequence[Extra]) -> list[tuple[Word, Extra]]:
    """The verbs without object, each with those of the places that suit it."""
    return [(verb, at) for verb, fits in lex.DOING for at in where if at[2] in fits or not at[2]]


def acting(weight: float) -> Iterator[Part]:
    """I work at the library; I go to the library by bus."""
    yield Part(weight, (doing_at(PLACE),), acts, "action", light=True)
    yield Part(weight / 3, (doing_at(COMPANION),), acts, "action")
    yield Part(weight / 8, (doing_at(NOTHING),), acts, "action")
    places = tuple(lex.PLACES)
    near = tuple(place for place in places if place not in lex.FAR)
    for verbs, where in ((lex.MOVING[:3], places), (lex.MOVING[3:], near)):
        factors = (verbs, where, ("to", "toward"))
        yield Part(weight / 2, factors, _goes, "action", light=True)
    ridden = tuple(place for place in places if place != "정원")
    yield Part(weight / 2, (lex.MOVING[:3], ridden, VEHICLES), _goes, "action")


def sequences(weight: float, actions: Sequence[Part]) -> Iterator[Part]:
    """I wrote a letter after I read a book: two actions of one subject, the first as an adverb."""
    for first, second in product(actions, actions):
        if first.build is second.build is _goes:
            continue
        yield Part(
            weight * first.weight * second.weight,
            (("after", "before"), *first.factors, *second.factors),
            _in_sequence(first, second),
            "action",
            slots=frozenset(("start",)),
        )


def _in_sequence(first: Part, second: Part) -> Callable[..., Predicate]:
    split = len(first.factors)

    def build(level: int, subject: Phrase, link: str, *choices: Any) -> Predicate:
        what = first.build(level, subject, *choices[:split])
        then = second.build(level, subject, *choices[split:])
        word = what.word
        verb = f"{morph.soft(word, 'ㄴ')} 후에" if link == "after" else f"{word.stem}기 전에"
        after = _join(then.after, link, morph.ing(what.english), what.after)
        both = (key(word), subject.key)
        pairs = (*what.pairs, *then.pairs, both)
        return then._replace(before=_join(what.before, verb, then.before), after=after, pairs=pairs)

    return build
