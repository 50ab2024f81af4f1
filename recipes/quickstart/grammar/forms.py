"""The verb forms that suit a clause, with the adverbs of time that suit them."""

from collections.abc import Iterator
from functools import cache
from itertools import product
from typing import Any

from grammar.clauses import Form, Mood
from grammar.morphology import LEVELS

EVERY = (("매일", "every day"), ("매일 아침", "every morning"), ("주말마다", "every weekend"))
ONCE = (("어제", "yesterday"), ("지난주에", "last week"), ("그저께", "the day before yesterday"))
SOON = (("내일", "tomorrow"), ("다음 주에", "next week"), ("오늘 밤에", "tonight"))
OFTEN = (("자주", "often"), ("가끔", "sometimes"), ("항상", "always"), ("보통", "usually"))
TIMES = {
    ("simple", "present"): EVERY,
    ("simple", "past"): ONCE,
    ("simple", "future"): SOON,
    ("progressive", "present"): (("지금", "now"),),
    ("progressive", "past"): (("그때", "then"),),
    ("want", "present"): SOON,
    ("want", "past"): ONCE,
    ("can", "present"): SOON[:2],
    ("can", "past"): ONCE,
    ("must", "present"): EVERY[:2] + SOON,
    ("must", "past"): ONCE,
}
SIMPLE = (("simple", "present"), ("simple", "past"), ("simple", "future"))
MODES: dict[str, tuple[tuple[str, str], ...]] = {
    "action": tuple(TIMES),
    "animal": tuple(TIMES)[:5],
    "state": SIMPLE,
    "event": SIMPLE[1:2],
    "quality": SIMPLE,
    "being": SIMPLE[:2],
    "becoming": (*SIMPLE[1:], ("want", "present"), ("want", "past")),
}
TIMED = ("action", "animal", "event")
TOLD, DENIED, ASKED = "told", "denied", "asked"


def _times(mode: str, tense: str, speech: str, slots: frozenset[str]) -> Iterator[tuple[Any, str]]:
    """No adverb, then each adverb of time with each place where it can stand."""
    yield ("", ""), "end"
    ends = [slot for slot in ("start", "end") if slot in slots]
    ends = [slot for slot in ends if slot == "end" or speech != ASKED]
    yield from product(TIMES[mode, tense], ends)
    if (mode, tense) == ("simple", "present") and speech != DENIED and "verb" in slots:
        yield from product(OFTEN, ("verb",))


@cache
def forms(kind: str, person: int, speech: str, slots: frozenset[str]) -> tuple[Form, ...]:
    """The verb forms that suit a clause.

    Args:
        kind: a key of ``MODES``.
        person: of the subject: one does not ask about oneself, nor tell "you" what you want.
        speech: ``told``, ``denied`` or ``asked``.
        slots: where adverbs of time can stand.

    Returns:
        The forms, each with a level of politeness and with or without an adverb.
    """
    found = []
    for (mode, tense), level in product(MODES[kind], LEVELS):
        you_may = mode in ("can", "must") or kind in ("quality", "being")
        unfit = (
            (person == 1 and speech == ASKED)
            or (person == 2 and speech != ASKED and not you_may)
            or (mode == "must" and (speech == ASKED or (speech == DENIED and tense == "past")))
        )
        if not unfit:
            mood = Mood(mode, tense, level, speech == DENIED, speech == ASKED)
            times = (
                list(_times(mode, tense, speech, slots)) if kind in TIMED else [(("", ""), "end")]
            )
            found += [Form(mood, time, slot) for time, slot in times]
    return tuple(found)
