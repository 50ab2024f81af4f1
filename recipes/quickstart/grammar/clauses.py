"""Noun phrases, predicates and clauses, in Korean and English side by side.

What Korean says decides what English says: 그 is "the", a bare count noun is "a", 들 or a number
is a plural, and a noun with a relative clause is definite. What English lacks (politeness, topic
or subject particle, 안 or -지 않다) is free on the Korean side.
"""

from functools import lru_cache
from itertools import product
from typing import NamedTuple

from grammar import morphology as morph
from grammar.lexicon import NAMES, Noun
from grammar.morphology import Word, particle

Pairs = tuple[tuple[str, str], ...]
Entry = tuple[tuple[str, str, str], str, str]

NUMBERS = ("", "한", "두", "세", "네", "다섯", "여섯", "일곱", "여덟", "아홉", "열")
COUNTED = ("", "a", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
THE = {"그": ("the", "the"), "이": ("this", "these"), "저": ("that", "those")}
# Korean by politeness level, English, agreement. "you" is one person where it is 너.
I_WE = ((("나", "저", "저"), "I", "am"), (("우리", "우리", "저희"), "we", "are"))
YOU = ((("너", "여러분", "여러분"), "you", "are"),)
THEY = ((("그",) * 3, "he", "is"), (("그녀",) * 3, "she", "is"), (("그들",) * 3, "they", "are"))
OWNERS = (
    (("내", "제", "제"), "my"),
    (("우리", "우리", "저희"), "our"),
    (("그의",) * 3, "his"),
    (("그녀의",) * 3, "her"),
    (("그들의",) * 3, "their"),
)


class Mood(NamedTuple):
    """The meaning of a verb form: mode, tense, politeness, negation, question."""

    mode: str
    tense: str
    level: int
    negative: bool = False
    question: bool = False


class Form(NamedTuple):
    """A mood with an adverb of time that stands at the ``start``, ``end`` or by the ``verb``."""

    mood: Mood
    time: tuple[str, str] = ("", "")
    slot: str = "end"


class Phrase(NamedTuple):
    """A noun phrase; ``be`` is the form of "be" that agrees with it, ``key`` its head word."""

    ko: str
    en: str
    be: str
    key: str


class Predicate(NamedTuple):
    """A verb with its objects: Korean words before it, English base form and words after it."""

    before: str
    word: Word
    english: str
    after: str = ""
    pairs: Pairs = ()


class Modifier(NamedTuple):
    """The words around a noun, except adjectives and relative clauses."""

    det: str = ""
    plural: bool = False
    number: int = 0
    counter_first: bool = False
    owner: tuple[tuple[str, ...], str] | None = None


BARE = (Modifier(),)
PLURAL = (Modifier(plural=True),)
DEFINITE = tuple(Modifier(det) for det in THE)
DEFINITES = DEFINITE + tuple(Modifier(det, plural=True) for det in THE)
COUNTS = tuple(
    Modifier(det, number=number, counter_first=first)
    for number, first, det in product(range(1, 11), (False, True), ("", "그"))
    if number > 1 or not det
)
SEVERAL = tuple(mod for mod in COUNTS if not mod.det)
OWNED = tuple(Modifier(owner=owner) for owner in OWNERS)
ONE = (Modifier("한"),)


# --- noun phrases -------------------------------------------------------------------------------


def noun_phrase(noun: Noun, mod: Modifier, level: int, adjective: Word | None = None) -> Phrase:
    """A noun with its modifiers.

    Args:
        noun: the head.
        mod: determiner, plural, number, owner.
        level: politeness, which shows in "my" (내, 제) and "our" (우리, 저희).
        adjective: an attribute, or None.

    Returns:
        The phrase; a bare count noun is indefinite in English.
    """
    return Phrase(*_korean_noun(noun, mod, level, adjective), noun.ko)


def _korean_noun(
    noun: Noun, mod: Modifier, level: int, adjective: Word | None
) -> tuple[str, str, str]:
    ko = f"{morph.modifier(adjective)} {noun.ko}" if adjective else noun.ko
    ko += "들" * mod.plural
    if mod.number and mod.counter_first:
        ko = f"{NUMBERS[mod.number]} {noun.counter}의 {ko}"
    elif mod.number:
        ko = f"{ko} {NUMBERS[mod.number]} {noun.counter}"
    before = mod.owner[0][level] if mod.owner else mod.det
    return (f"{before} {ko}".strip(), *_english_noun(noun, mod, adjective))


def _english_noun(noun: Noun, mod: Modifier, adjective: Word | None) -> tuple[str, str]:
    many = mod.plural or mod.number > 1
    en = noun.en
    if adjective:
        en = f"{adjective.english} {en}"
    if noun.unit and mod.number:
        unit = noun.unit if not many else morph.plural(noun.unit)
        en = f"{unit} of {en}"
    elif noun.countable and many:
        en = morph.plural(en)
    many = many or (noun.unit == "pair" and not mod.number)
    be = "are" if many else "is"
    if mod.number > 1:
        en = f"{COUNTED[mod.number]} {en}"
    if mod.owner:
        return f"{mod.owner[1]} {en}", be
    if mod.det in THE:
        return f"{THE[mod.det][many]} {en}", be
    countable = noun.countable or mod.number == 1
    return (morph.article(en) if countable and not many else en), be


def pronoun(entry: Entry, level: int) -> Phrase:
    """A pronoun of ``I_WE``, ``YOU`` or ``THEY`` at a politeness level."""
    ko, en, be = entry
    one = "you" if en == "you" and level == morph.PLAIN else be
    return Phrase(ko[level], en, one, en)


def name(noun: Noun, level: int) -> Phrase:
    """A person's name, with 씨 where the sentence is polite."""
    return Phrase(noun.ko + " 씨" * (level > morph.PLAIN), noun.en, "is", noun.ko)


def other(noun: Noun, subject: Phrase) -> Noun:
    """``noun``, or where it is the subject itself the name that no list of others contains."""
    return NAMES[-1] if noun.ko == subject.key else noun


def inflect(verb: str, tense: str, be: str) -> str:
    """The finite English verb, for a subject with that form of "be"."""
    if tense == "future":
        return f"will {verb}"
    head, _, tail = verb.partition(" ")
    if head == "be":
        return f"{_BE[tense][be]} {tail}".strip()
    if tense == "past":
        return morph.preterite(verb)
    return morph.third(verb) if be == "is" else verb


_BE = {
    "present": {"am": "am", "is": "is", "are": "are", "you": "are"},
    "past": {"am": "was", "is": "was", "are": "were", "you": "were"},
}


# --- verb forms and sentences -------------------------------------------------------------------


@lru_cache(maxsize=1 << 14)
def korean_verb(word: Word, mood: Mood, third: bool) -> str:
    """The sentence-final verb with its auxiliaries (-고 있다, -고 싶다, -을 수 있다, -아야 하다).

    Args:
        word: verb, adjective or copula.
        mood: what to say.
        third: whether the subject is a third person, whose wish is -고 싶어 하다.

    Returns:
        The Korean verb group.
    """
    negative = mood.negative
    if mood.mode == "progressive":
        word = Word(word.stem + "고 있", "exist")
    elif mood.mode == "want":
        word = Word(word.stem + "고 싶" + "어 하" * third, "verb" if third else "adjective")
    elif mood.mode == "can":
        word = Word(f"{morph.soft(word, 'ㄹ')} 수 {'없' if negative else '있'}", "exist")
        negative = False
    elif mood.mode == "must":
        must, must_not = morph.infinitive(word) + "야 하", morph.soft(word, "면") + " 안 되"
        word = Word(must_not if negative else must)
        negative = False
    if negative:
        word = morph.negate(word, short=mood.level == morph.POLITE)
    return morph.conjugate(word, mood.tense, mood.level, mood.question)


@lru_cache(maxsize=1 << 14)
def _english_verb(verb: str, mode: str, tense: str, be: str) -> tuple[str, str]:
    """The operator, which questions and negation use, and the rest of the verb group."""
    if mode == "can":
        return ("could" if tense == "past" else "can"), verb
    if mode == "must" and tense == "present":
        return "must", verb
    if tense == "future":
        return "will", verb
    if mode == "progressive":
        verb = f"be {morph.ing(verb)}"
    elif mode in ("want", "must"):
        verb = f"want to {verb}" if mode == "want" else f"have to {verb}"
    head, _, tail = verb.partition(" ")
    if head == "be":
        return _BE[tense][be], tail
    return ("did" if tense == "past" else "does" if be == "is" else "do"), verb


def _denied(operator: str) -> str:
    if operator in ("am", "must"):
        return f"{operator} not"
    return "can't" if operator == "can" else "won't" if operator == "will" else f"{operator}n't"


def english_clause(subject: Phrase, what: Predicate, form: Form) -> str:
    """The English clause, without capital letter or question mark."""
    mood, (_, time) = form.mood, form.time
    operator, rest = _english_verb(what.english, mood.mode, mood.tense, subject.be)
    often = time if form.slot == "verb" else ""
    words: tuple[str, ...]
    if mood.question:
        words = (operator, subject.en, often, rest)
    elif mood.negative:
        words = (subject.en, _denied(operator), often, rest)
    elif operator in ("do", "does", "did"):
        words = (subject.en, often, inflect(rest, mood.tense, subject.be))
    else:
        words = (subject.en, operator, often, rest)
    start, end = (time, "") if form.slot == "start" else ("", "" if often else time)
    return " ".join(filter(None, (start, *words, what.after, end)))


def korean_clause(subject: Phrase, mark: str, what: Predicate, form: Form, third: bool) -> str:
    """The Korean clause, without question mark; ``mark`` names the subject's particle."""
    who, (time, _) = particle(subject.ko, mark), form.time
    words = (time, who) if form.slot == "start" else (who, time)
    verb = korean_verb(what.word, form.mood, third)
    return " ".join(filter(None, (*words, what.before, verb)))
