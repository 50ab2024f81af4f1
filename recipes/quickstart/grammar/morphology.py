"""The forms of Korean and English words.

Korean forms are computed on the letters of the syllable blocks (Unicode's Hangul arithmetic);
a word names only its irregular class. English forms are rules with a table of exceptions.
"""

from functools import cache
from typing import NamedTuple

PLAIN, POLITE, FORMAL = LEVELS = (0, 1, 2)

LETTERS = "ㄱㄲㄳㄴㄵㄶㄷㄹㄺㄻㄼㄽㄾㄿㅀㅁㅂㅄㅅㅆㅇㅈㅊㅋㅌㅍㅎ"
VOWELS = "ㅏㅐㅑㅒㅓㅔㅕㅖㅗㅘㅙㅚㅛㅜㅝㅞㅟㅠㅡㅢㅣ"
# What a stem's last vowel and the ending 아/어 melt into; other vowels keep a syllable of its own.
MELTED = dict(zip("ㅏㅓㅐㅔㅕㅗㅜㅣㅚ", "ㅏㅓㅐㅔㅕㅘㅝㅕㅙ", strict=True))
PARTICLES = {
    "topic": ("은", "는"),
    "subject": ("이", "가"),
    "object": ("을", "를"),
    "with": ("과", "와"),
    "toward": ("으로", "로"),
}
FUSED = {"나가": "내가", "저가": "제가", "너가": "네가"}


class Word(NamedTuple):
    """A Korean verb or adjective.

    Args:
        stem: dictionary form without 다; may begin with whole words ("읽고 있").
        kind: ``verb``, ``adjective`` or ``exist`` (있다, 없다: ends like an adjective, but -는).
        irregular: final letter(s) of an irregular stem: ㅂ, ㄷ, ㅎ, 르; 이 for the copula.
        english: base form, with a preposition after it where there is one ("listen to").
    """

    stem: str
    kind: str = "verb"
    irregular: str = ""
    english: str = ""


# --- Hangul -------------------------------------------------------------------------------------


@cache
def _letters(syllable: str) -> tuple[int, str, str]:
    lead, rest = divmod(ord(syllable) - 0xAC00, 588)
    vowel, final = divmod(rest, 28)
    return lead, VOWELS[vowel], LETTERS[final - 1] if final else ""


def _syllable(lead: int, vowel: str, final: str = "") -> str:
    final_index = LETTERS.index(final) + 1 if final else 0
    return chr(0xAC00 + lead * 588 + VOWELS.index(vowel) * 28 + final_index)


def _final(text: str) -> str:
    return _letters(text[-1])[2]


def _close(text: str, final: str = "") -> str:
    """``text`` with the final letter of its last syllable replaced."""
    lead, vowel, _ = _letters(text[-1])
    return text[:-1] + _syllable(lead, vowel, final)


def particle(noun: str, name: str) -> str:
    """``noun`` with the shape of a particle that its final consonant asks for.

    Args:
        noun: Korean text that ends in a Hangul syllable.
        name: a key of ``PARTICLES``.

    Returns:
        The noun with the particle; 나, 저, 너 change before 가.
    """
    closed, opened = PARTICLES[name]
    final = _final(noun)
    text = noun + (closed if final and not (name == "toward" and final == "ㄹ") else opened)
    return FUSED.get(text, text)


# --- Korean verbs and adjectives ----------------------------------------------------------------


def _bright(text: str) -> bool:
    """Whether the last syllable asks for 아 rather than 어."""
    return "가" <= text[-1:] <= "힣" and _letters(text[-1])[1] in "ㅏㅑㅗ"


def infinitive(word: Word) -> str:
    """The form before 요, with vowel harmony and contraction: 먹어, 가, 해, 추워, 들어, 불러."""
    stem, irregular = word.stem, word.irregular
    if stem.endswith("하"):
        return stem[:-1] + "해"
    if irregular == "ㅂ":
        return _close(stem) + ("와" if stem.endswith("돕") else "워")
    if irregular == "르":
        return _close(stem[:-1], "ㄹ") + ("라" if _bright(stem[:-1]) else "러")
    if irregular == "이":
        return stem[:-1] + "여" if _contracts(word) else stem + "어"
    lead, vowel, final = _letters(stem[-1])
    if irregular == "ㅎ":
        return stem[:-1] + _syllable(lead, {"ㅏ": "ㅐ", "ㅑ": "ㅒ", "ㅓ": "ㅔ"}[vowel])
    if final:
        stem = _close(stem, "ㄹ") if irregular == "ㄷ" else stem
        return stem + ("아" if _bright(stem) and final != "ㅆ" else "어")
    if vowel == "ㅡ":
        return stem[:-1] + _syllable(lead, "ㅏ" if _bright(stem[:-1]) else "ㅓ")
    return stem[:-1] + _syllable(lead, MELTED[vowel]) if vowel in MELTED else stem + "어"


def soft(word: Word, ending: str) -> str:
    """The stem before an ending with a linking 으: ``ㄴ``, ``ㄹ`` (as letters) or ``면``."""
    stem = word.stem
    if word.irregular in ("ㅂ", "ㅎ"):
        stem = _close(stem) + "우" * (word.irregular == "ㅂ")
    elif word.irregular == "ㄷ":
        stem = _close(stem, "ㄹ") + "으"
    elif _final(stem) not in ("", "ㄹ"):
        stem += "으"
    return _close(stem, ending) if ending in LETTERS else stem + ending


def _before_nasal(stem: str) -> str:
    return _close(stem) if _final(stem) == "ㄹ" else stem


def past(word: Word) -> Word:
    """The past stem: 먹었, 갔, 했."""
    return Word(_close(infinitive(word), "ㅆ"), "exist", english=word.english)


def modifier(word: Word, tense: str = "present") -> str:
    """The form before a noun: 읽는 / 읽은 / 읽을, 큰, 맛있는."""
    if tense == "future":
        return soft(word, "ㄹ")
    if tense == "present" and word.kind != "adjective":
        return _before_nasal(word.stem) + "는"
    return soft(word, "ㄴ")


def _plain(word: Word) -> str:
    if word.kind != "verb":
        return word.stem + "다"
    return (_close(word.stem, "ㄴ") if _final(word.stem) in ("", "ㄹ") else word.stem + "는") + "다"


def conjugate(word: Word, tense: str, level: int, question: bool = False) -> str:
    """The sentence-final form.

    Args:
        word: verb, adjective or copula.
        tense: ``present``, ``past`` or ``future``.
        level: ``PLAIN`` (-다), ``POLITE`` (-아요) or ``FORMAL`` (-습니다).
        question: whether the sentence asks (without the question mark).

    Returns:
        The conjugated word.
    """
    if tense == "future":
        endings = ("거니", "거예요", "것입니까") if question else ("것이다", "거예요", "것입니다")
        return f"{soft(word, 'ㄹ')} {endings[level]}"
    word = past(word) if tense == "past" else word
    if level == PLAIN:
        return _before_nasal(word.stem) + "니" if question else _plain(word)
    if level == POLITE and word.irregular == "이":
        return word.stem[:-1] + "예요" if _contracts(word) else word.stem + "에요"
    if level == POLITE:
        return infinitive(word) + "요"
    formal = _close(word.stem, "ㅂ") if _final(word.stem) in ("", "ㄹ") else word.stem + "습"
    return formal + ("니까" if question else "니다")


def negate(word: Word, short: bool = False) -> Word:
    """The word denied.

    Args:
        word: verb, adjective or copula.
        short: 안 before a simple word, in place of -지 않다.

    Returns:
        -지 않다 or 안; 없다 for 있다, 이/가 아니다 for the copula.
    """
    if word.irregular == "이":
        return Word(particle(word.stem[:-1], "subject") + " 아니", "adjective", "이")
    if word.stem == "있":
        return Word("없", "exist")
    if short and not (word.stem.endswith("하") or " " in word.stem):
        return word._replace(stem="안 " + word.stem)
    return Word(word.stem + "지 않", "verb" if word.kind == "verb" else "adjective")


def copula(noun: str) -> Word:
    """The noun with 이다, which contracts after a vowel (의사예요, 의사였다)."""
    return Word(noun + "이", "adjective", "이")


def _contracts(word: Word) -> bool:
    return word.stem.endswith("이") and not _final(word.stem[:-1])


# --- English ------------------------------------------------------------------------------------

PLURALS = {
    "child": "children", "man": "men", "woman": "women", "mouse": "mice", "sheep": "sheep",
    "potato": "potatoes", "tomato": "tomatoes", "person": "people", "knife": "knives",
}  # fmt: skip
_PASTS = """eat/ate drink/drank make/made buy/bought sell/sold read/read write/wrote
see/saw teach/taught meet/met lose/lost ride/rode drive/drove draw/drew take/took sing/sang
wear/wore cut/cut choose/chose throw/threw catch/caught break/broke find/found give/gave
send/sent lend/lent sleep/slept run/ran swim/swam go/went come/came become/became have/had
hide/hid bite/bit"""
PASTS = dict(pair.split("/") for pair in _PASTS.split())


def _stressed_end(verb: str) -> bool:
    """Whether the last consonant doubles before -ed and -ing: one syllable, one vowel before it."""
    return (
        sum(letter in "aeiou" for letter in verb) == 1
        and len(verb) > 2
        and verb[-2] in "aeiou"
        and verb[-1] not in "aeiouwxy"
    )


def _with_s(word: str) -> str:
    if word.endswith(("s", "x", "ch", "sh", "z")) or word == "go":
        return word + "es"
    return word[:-1] + "ies" if word.endswith("y") and word[-2] not in "aeiou" else word + "s"


def plural(noun: str) -> str:
    """The plural of a noun phrase, shown on its last word."""
    head, _, last = noun.rpartition(" ")
    return f"{head} {PLURALS.get(last) or _with_s(last)}".strip()


def third(verb: str) -> str:
    """The third person singular: eats, watches, studies, has."""
    head, _, tail = verb.partition(" ")
    return f"{'has' if head == 'have' else _with_s(head)} {tail}".strip()


def preterite(verb: str) -> str:
    """The past form: ate, studied, waited for."""
    head, _, tail = verb.partition(" ")
    if head in PASTS:
        form = PASTS[head]
    elif head.endswith("y") and head[-2] not in "aeiou":
        form = head[:-1] + "ied"
    else:
        form = head + head[-1] * _stressed_end(head) + ("d" if head.endswith("e") else "ed")
    return f"{form} {tail}".strip()


def ing(verb: str) -> str:
    """The -ing form: eating, making, running, listening to."""
    head, _, tail = verb.partition(" ")
    stem = head[:-1] if head.endswith("e") and head[-2] != "e" and len(head) > 2 else head
    return f"{stem + stem[-1] * (stem == head and _stressed_end(head))}ing {tail}".strip()


def article(phrase: str) -> str:
    """The phrase with a or an, by its first sound."""
    vowel = phrase[0] in "aeiou" and not phrase.startswith(("uni", "eu", "use"))
    return f"an {phrase}" if vowel or phrase.startswith(("hour", "honest")) else f"a {phrase}"
