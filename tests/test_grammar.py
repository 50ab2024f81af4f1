"""The grammar that made the quickstart's corpus: its word forms, its sentences, its splits."""

import gzip
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

import grammar.sentences
from grammar import forms, lexicon, morphology
from grammar.__main__ import main
from grammar.clauses import (
    I_WE,
    Modifier,
    Mood,
    korean_verb,
    name,
    noun_phrase,
    pronoun,
)
from grammar.morphology import (
    FORMAL,
    PLAIN,
    POLITE,
    Word,
    conjugate,
    copula,
    modifier,
    negate,
    particle,
    soft,
)
from grammar.sentences import Frame, Permutation, Sentence, home, pairs, split_of

QUICKSTART = Path(__file__).parent.parent / "recipes" / "quickstart"
REGULAR = "먹 가 오 쓰 모으 마시 배우 보내 쉬 되 살 만들 닫 입"
VERBS = {
    **{stem: Word(stem) for stem in REGULAR.split()},
    **{stem: Word(stem, irregular="ㄷ") for stem in ("듣", "걷")},
    **{stem: Word(stem, irregular="ㅂ") for stem in ("돕", "줍")},
    **{stem: Word(stem, irregular="르") for stem in ("부르", "자르")},
    **{stem: Word(stem, "adjective") for stem in ("바쁘", "예쁘", "길")},
    **{stem: Word(stem, "adjective", "ㅎ") for stem in ("빨갛", "하얗")},
    "하": Word("공부하"), "크": Word("키가 크", "adjective"), "춥": Word("춥", "adjective", "ㅂ"),
    "빠르": Word("빠르", "adjective", "르"), "재미있": Word("재미있", "exist"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("noun", "forms"),
    [
        ("책", "책은 책이 책을 책과 책으로"),
        ("학교", "학교는 학교가 학교를 학교와 학교로"),
        ("서울", "서울은 서울이 서울을 서울과 서울로"),
        ("병원", "병원은 병원이 병원을 병원과 병원으로"),
        ("닭", "닭은 닭이 닭을 닭과 닭으로"),
        ("의사 씨", "의사 씨는 의사 씨가 의사 씨를 의사 씨와 의사 씨로"),
        ("나", "나는 내가 나를 나와 나로"),
        ("저", "저는 제가 저를 저와 저로"),
        ("너", "너는 네가 너를 너와 너로"),
    ],
)
def test_particles_follow_the_final_consonant(noun: str, forms: str) -> None:
    names = ("topic", "subject", "object", "with", "toward")
    assert " ".join(particle(noun, name) for name in names) == forms


# plain, polite, formal; past polite; future plain; plain question; before a noun: 는/ㄴ, past
FORMS = """
먹 먹는다 먹어요 먹습니다 먹었어요 먹을 먹니 먹는 먹은
가 간다 가요 갑니다 갔어요 갈 가니 가는 간
오 온다 와요 옵니다 왔어요 올 오니 오는 온
쓰 쓴다 써요 씁니다 썼어요 쓸 쓰니 쓰는 쓴
모으 모은다 모아요 모읍니다 모았어요 모을 모으니 모으는 모은
마시 마신다 마셔요 마십니다 마셨어요 마실 마시니 마시는 마신
배우 배운다 배워요 배웁니다 배웠어요 배울 배우니 배우는 배운
보내 보낸다 보내요 보냅니다 보냈어요 보낼 보내니 보내는 보낸
쉬 쉰다 쉬어요 쉽니다 쉬었어요 쉴 쉬니 쉬는 쉰
되 된다 돼요 됩니다 됐어요 될 되니 되는 된
하 공부한다 공부해요 공부합니다 공부했어요 공부할 공부하니 공부하는 공부한
살 산다 살아요 삽니다 살았어요 살 사니 사는 산
만들 만든다 만들어요 만듭니다 만들었어요 만들 만드니 만드는 만든
듣 듣는다 들어요 듣습니다 들었어요 들을 듣니 듣는 들은
걷 걷는다 걸어요 걷습니다 걸었어요 걸을 걷니 걷는 걸은
닫 닫는다 닫아요 닫습니다 닫았어요 닫을 닫니 닫는 닫은
돕 돕는다 도와요 돕습니다 도왔어요 도울 돕니 돕는 도운
줍 줍는다 주워요 줍습니다 주웠어요 주울 줍니 줍는 주운
입 입는다 입어요 입습니다 입었어요 입을 입니 입는 입은
부르 부른다 불러요 부릅니다 불렀어요 부를 부르니 부르는 부른
자르 자른다 잘라요 자릅니다 잘랐어요 자를 자르니 자르는 자른
춥 춥다 추워요 춥습니다 추웠어요 추울 춥니 추운
바쁘 바쁘다 바빠요 바쁩니다 바빴어요 바쁠 바쁘니 바쁜
예쁘 예쁘다 예뻐요 예쁩니다 예뻤어요 예쁠 예쁘니 예쁜
크 키가~크다 키가~커요 키가~큽니다 키가~컸어요 키가~클 키가~크니 키가~큰
빠르 빠르다 빨라요 빠릅니다 빨랐어요 빠를 빠르니 빠른
빨갛 빨갛다 빨개요 빨갛습니다 빨갰어요 빨갈 빨갛니 빨간
하얗 하얗다 하얘요 하얗습니다 하얬어요 하얄 하얗니 하얀
길 길다 길어요 깁니다 길었어요 길 기니 긴
재미있 재미있다 재미있어요 재미있습니다 재미있었어요 재미있을 재미있니 재미있는
"""


@pytest.mark.parametrize("line", FORMS.strip().splitlines())
def test_conjugation(line: str) -> None:
    name, *expected = line.replace("~", "_").split()
    word = VERBS[name]
    found = [conjugate(word, "present", level) for level in (PLAIN, POLITE, FORMAL)]
    found.append(conjugate(word, "past", POLITE))
    future = conjugate(word, "future", PLAIN)
    assert future.endswith(" 것이다")
    found += [future.removesuffix(" 것이다"), conjugate(word, "present", PLAIN, question=True)]
    found.append(modifier(word))
    if word.kind == "verb":
        found.append(modifier(word, "past"))
    assert found == [form.replace("_", " ") for form in expected]


def test_questions_past_and_future() -> None:
    eat = VERBS["먹"]
    asked = [
        conjugate(eat, tense, level, question=True)
        for tense in ("past", "future")
        for level in (PLAIN, POLITE, FORMAL)
    ]
    assert asked == [
        *("먹었니", "먹었어요", "먹었습니까"),
        *("먹을 거니", "먹을 거예요", "먹을 것입니까"),
    ]


@pytest.mark.parametrize(
    ("noun", "forms"),
    [
        ("학생", "학생이다 학생이에요 학생입니다 학생이었다 학생이었어요 학생이니"),
        ("의사", "의사이다 의사예요 의사입니다 의사였다 의사였어요 의사이니"),
    ],
)
def test_copula(noun: str, forms: str) -> None:
    word = copula(noun)
    found = [conjugate(word, "present", level) for level in (PLAIN, POLITE, FORMAL)]
    found += [conjugate(word, "past", level) for level in (PLAIN, POLITE)]
    assert [*found, conjugate(word, "present", PLAIN, question=True)] == forms.split()


def test_negation() -> None:
    assert conjugate(negate(copula("의사")), "present", PLAIN) == "의사가 아니다"
    assert conjugate(negate(copula("학생")), "present", POLITE) == "학생이 아니에요"
    assert conjugate(negate(copula("학생")), "past", POLITE) == "학생이 아니었어요"
    assert conjugate(negate(Word("있", "exist")), "past", FORMAL) == "없었습니다"
    assert conjugate(negate(VERBS["듣"]), "present", PLAIN) == "듣지 않는다"
    assert conjugate(negate(VERBS["춥"]), "present", PLAIN) == "춥지 않다"
    assert conjugate(negate(VERBS["듣"], short=True), "present", POLITE) == "안 들어요"
    assert conjugate(negate(VERBS["하"], short=True), "present", POLITE) == "공부하지 않아요"


@pytest.mark.parametrize(
    ("mood", "third", "expected"),
    [
        (Mood("progressive", "present", PLAIN), True, "만들고 있다"),
        (Mood("progressive", "past", FORMAL, negative=True), True, "만들고 있지 않았습니다"),
        (Mood("want", "present", PLAIN), False, "만들고 싶다"),
        (Mood("want", "present", PLAIN), True, "만들고 싶어 한다"),
        (Mood("want", "past", POLITE, negative=True), True, "만들고 싶어 하지 않았어요"),
        (Mood("can", "present", PLAIN), True, "만들 수 있다"),
        (Mood("can", "past", POLITE, negative=True), True, "만들 수 없었어요"),
        (Mood("must", "past", FORMAL), True, "만들어야 했습니다"),
        (Mood("must", "present", POLITE, negative=True), True, "만들면 안 돼요"),
        (Mood("simple", "future", FORMAL, negative=True), True, "만들지 않을 것입니다"),
    ],
)
def test_auxiliaries(mood: Mood, third: bool, expected: str) -> None:
    assert korean_verb(VERBS["만들"], mood, third) == expected


def test_linking_vowel() -> None:
    words = ("먹", "가", "만들", "듣", "돕", "부르")
    found = [soft(VERBS[name], "면") for name in words]
    assert found == ["먹으면", "가면", "만들면", "들으면", "도우면", "부르면"]


def test_english_morphology() -> None:
    nouns = ["dog", "box", "church", "baby", "boy", "child", "man", "mouse", "sheep", "potato"]
    plurals = "dogs boxes churches babies boys children men mice sheep potatoes"
    assert [morphology.plural(noun) for noun in nouns] == plurals.split()
    assert morphology.plural("police officer") == "police officers"
    verbs = ["eat", "watch", "study", "play", "go", "have", "listen to", "run", "make", "see"]
    third = ["eats", "watches", "studies", "plays", "goes", "has", "listens to", "runs"]
    assert [morphology.third(verb) for verb in verbs] == [*third, "makes", "sees"]
    past = ["ate", "watched", "studied", "played", "went", "had", "listened to", "ran", "made"]
    assert [morphology.preterite(verb) for verb in verbs] == [*past, "saw"]
    ing = ["eating", "watching", "studying", "playing", "going", "having", "listening to"]
    assert [morphology.ing(v) for v in verbs] == [*ing, "running", "making", "seeing"]
    assert [morphology.ing(v) for v in ("be", "swim", "cut", "fix", "draw", "open")] == [
        *("being", "swimming", "cutting", "fixing", "drawing", "opening")
    ]
    phrases = ("apple", "book", "old car", "uniform", "hour", "umbrella")
    articles = "an apple, a book, an old car, a uniform, an hour, an umbrella"
    assert ", ".join(map(morphology.article, phrases)) == articles


@pytest.mark.parametrize(
    ("noun", "mod", "ko", "en", "be"),
    [
        ("사과", Modifier(), "사과", "an apple", "is"),
        ("사과", Modifier("그"), "그 사과", "the apple", "is"),
        ("학생", Modifier("이", plural=True), "이 학생들", "these students", "are"),
        ("학생", Modifier("한"), "한 학생", "a student", "is"),
        ("개", Modifier(number=3), "개 세 마리", "three dogs", "are"),
        ("개", Modifier(number=3, counter_first=True), "세 마리의 개", "three dogs", "are"),
        ("커피", Modifier(), "커피", "coffee", "is"),
        ("커피", Modifier(number=1), "커피 한 잔", "a cup of coffee", "is"),
        ("커피", Modifier("그", number=2), "그 커피 두 잔", "the two cups of coffee", "are"),
        ("구두", Modifier("저"), "저 구두", "those shoes", "are"),
        ("구두", Modifier(number=1), "구두 한 켤레", "a pair of shoes", "is"),
        ("책", Modifier(owner=(("내", "제", "제"), "my")), "제 책", "my book", "is"),
    ],
)
def test_noun_phrases(noun: str, mod: Modifier, ko: str, en: str, be: str) -> None:
    assert noun_phrase(lexicon.NOUNS[noun], mod, FORMAL)[:3] == (ko, en, be)


def test_pronouns_show_politeness() -> None:
    assert [pronoun(I_WE[0], level).ko for level in (PLAIN, POLITE, FORMAL)] == ["나", "저", "저"]
    assert [pronoun(I_WE[1], level).ko for level in (PLAIN, FORMAL)] == ["우리", "저희"]
    assert [name(lexicon.NAMES[0], level).ko for level in (PLAIN, FORMAL)] == ["민수", "민수 씨"]


@pytest.fixture(scope="module")
def splits() -> dict[str, list[Sentence]]:
    """Of one walk through the language, as many sentences of each split as are committed."""
    found: dict[str, list[Sentence]] = {"train": [], "val": [], "test": []}
    for sentence in grammar.sentences.sentences():
        found[split_of(sentence)].append(sentence)
        if len(found["train"]) == 100_000:
            break
    return {name: some[: 100_000 if name == "train" else 1000] for name, some in found.items()}


@pytest.fixture(scope="module")
def train(splits: dict[str, list[Sentence]]) -> list[Sentence]:
    return splits["train"]


@pytest.fixture(scope="module")
def held_out(splits: dict[str, list[Sentence]]) -> dict[str, list[Sentence]]:
    return {name: splits[name] for name in ("val", "test")}


def test_pairs_are_the_sentences_of_their_split(
    train: list[Sentence], held_out: dict[str, list[Sentence]]
) -> None:
    for split in ("val", "test"):
        assert list(pairs(split, 100)) == [s[:2] for s in held_out[split][:100]]
    assert list(pairs("train", 500)) == [s[:2] for s in train[:500]]


def test_the_corpus_beside_it_is_what_it_makes(
    train: list[Sentence], held_out: dict[str, list[Sentence]]
) -> None:
    """The text, and in the order in which it is committed: runs depend on both."""
    for split, made in {"train": train, **held_out}.items():
        with gzip.open(QUICKSTART / f"{split}.tsv.gz", "rt", encoding="utf-8") as file:
            assert next(file) == "ko\ten\n"
            assert [tuple(line[:-1].split("\t")) for line in file] == [s[:2] for s in made]
    assert sum(file.stat().st_size for file in QUICKSTART.glob("*.gz")) < 3_000_000


def test_readme_example_is_taught(train: list[Sentence]) -> None:
    assert ("나는 학생이다", "I am a student") in {sentence[:2] for sentence in train}


def test_korean_determines_english(
    train: list[Sentence], held_out: dict[str, list[Sentence]]
) -> None:
    english: dict[str, str] = {}
    for sentence in [*train, *held_out["val"], *held_out["test"]]:
        assert english.setdefault(sentence.korean, sentence.english) == sentence.english
    assert len(english) == 102_000  # and none comes twice, within or across the splits


def test_patterns_do_not_overlap() -> None:
    """Structure is never ambiguous: with two words of a kind, collisions would abound."""
    random = Random(7)
    seen: dict[str, tuple[int, ...]] = {}
    for index, frame in enumerate(grammar.sentences.frames()):
        for _ in range(10):
            digits = [random.randrange(len(f) if len(f) < 4 else 2) for f in frame.factors]
            choices = [factor[d] for factor, d in zip(frame.factors, digits, strict=True)]
            sentence, origin = frame.build(*choices), (index, *digits)
            assert seen.setdefault(sentence.korean, origin) == origin, sentence


def test_training_lacks_the_held_out_combinations(
    train: list[Sentence], held_out: dict[str, list[Sentence]]
) -> None:
    taught = {pair for sentence in train for pair in sentence.pairs}
    for split, sentences in held_out.items():
        assert len(sentences) == 1000
        for sentence in sentences:
            own = {pair for pair in sentence.pairs if home(pair) == split}
            assert own and not own & taught
    texts = {s.korean for sentences in held_out.values() for s in sentences}
    assert texts.isdisjoint(korean for korean, _ in pairs("train", 5000, seed=2))


def _bigrams(sentences: list[Sentence]) -> set[tuple[str, str]]:
    lines = [sentence.korean.strip("?").split() for sentence in sentences]
    return {pair for words in lines for pair in pairwise(words)}


def test_held_out_combinations_are_in_the_text(
    train: list[Sentence], held_out: dict[str, list[Sentence]]
) -> None:
    """The same from the outside: no object stands before a verb that it is held out from."""
    border = {
        (particle(noun.ko, "object"), conjugate(verb, tense, level))
        for verb, nouns, _ in lexicon.ACTIONS
        for noun in nouns
        if home((f"{verb.stem}다 {verb.english}", noun.ko)) == "test"
        for tense in ("present", "past")
        for level in (PLAIN, POLITE, FORMAL)
    }
    assert border & _bigrams(held_out["test"])
    assert not border & _bigrams(train)


def test_training_has_every_word(
    train: list[Sentence], held_out: dict[str, list[Sentence]]
) -> None:
    known = {word for sentence in train for pair in sentence.pairs for word in pair}
    for sentences in held_out.values():
        assert {word for s in sentences for pair in s.pairs for word in pair} <= known
    assert {name.ko for name in lexicon.NAMES} | set(lexicon.NOUNS) <= known
    english = {word for s in train for word in s.english.lower().strip("?").split()}
    for sentences in held_out.values():
        assert {w for s in sentences for w in s.english.lower().strip("?").split()} <= english


def test_sentences_are_well_formed(train: list[Sentence]) -> None:
    lengths = [len(sentence.korean.split()) for sentence in train]
    assert 5 < sum(lengths) / len(lengths) < 8 and min(lengths) >= 2 and max(lengths) <= 18
    for korean, english, _ in train:
        assert korean == " ".join(korean.split()) and english == " ".join(english.split())
        assert english[0].isupper() and korean.endswith("?") == english.endswith("?")


def test_the_seed_decides_and_the_process_does_not(train: list[Sentence]) -> None:
    code = "from grammar.sentences import pairs; print(list(pairs('train', 300)))"
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONPATH": str(QUICKSTART), "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == str([s[:2] for s in train[:300]])
    assert list(pairs("train", 300, seed=2)) != [s[:2] for s in train[:300]]


def test_adverbs_of_time_do_not_touch_relative_clauses(train: list[Sentence]) -> None:
    """In "the boy whom I met yesterday" nobody could tell what was yesterday."""
    times = tuple(en for times in forms.TIMES.values() for _, en in times)
    related = [sentence.english for sentence in train if " whom " in sentence.english]
    assert related and not any(text.strip("?").endswith(times) for text in related)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100, 997, 5000])
def test_permutation_is_a_bijection(size: int) -> None:
    order = Permutation(size, Random(size))
    images = [order(number) for number in range(size)]
    assert sorted(images) == list(range(size))
    assert size < 100 or images != sorted(images)


def test_capacity() -> None:
    """Far more than five million: patterns do not overlap, and their numbers are bijections."""
    assert sum(frame.size for frame in grammar.sentences.frames()) > 10**9


def _tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(first: int, second: int) -> Sentence:
        return Sentence(f"{first} {second}", "x", ((str(first), str(second)),))

    tiny = (Frame(1.0, (range(10), range(7)), build), Frame(9.0, (range(20, 25), range(9)), build))
    monkeypatch.setattr(grammar.sentences, "frames", lambda: tiny)


def test_every_sentence_comes_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _tiny(monkeypatch)
    found = [sentence.korean for sentence in grammar.sentences.sentences()]
    assert len(found) == len(set(found)) == 115


def test_too_many_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="train cannot have 10000000000000000 distinct pairs"):
        pairs("train", 10**16)
    with pytest.raises(ValueError, match="cannot have -1"):
        pairs("train", -1)
    _tiny(monkeypatch)
    with pytest.raises(ValueError, match=r"test has \d+ distinct pairs, not 115: lower --pairs"):
        list(pairs("test", 115))


def _run(*args: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs the tool as users do, in any folder and with nothing installed."""
    command = [sys.executable, "-I", "-S", str(QUICKSTART / "grammar"), *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("name", ["more.tsv", "more.tsv.gz"])
def test_the_tool_writes_a_file(tmp_path: Path, name: str) -> None:
    done = _run("--split", "test", "--pairs", "20", "--seed", "2", name, folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    data = (tmp_path / name).read_bytes()
    text = (gzip.decompress(data) if name.endswith(".gz") else data).decode()
    rows = [("ko", "en"), *pairs("test", 20, seed=2)]
    assert text == "".join(f"{ko}\t{en}\n" for ko, en in rows)
    main(["--split", "test", "--pairs", "20", "--seed", "2", str(tmp_path / f"again.{name}")])
    assert (tmp_path / f"again.{name}").read_bytes() == data  # whenever it is written


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "the following arguments are required: FILE"),
        (["there.tsv"], "there.tsv exists already: choose another name"),
        (["new.txt"], "new.txt must end in .tsv or .tsv.gz"),
        (["no/new.tsv"], "[Errno 2] No such file or directory: 'no/new.tsv'"),
        (["--split", "dev", "new.tsv"], "argument --split: invalid choice: 'dev'"),
        (["--pairs", "many", "new.tsv"], "argument --pairs: invalid int value: 'many'"),
        (["--pairs", "9" * 20, "new.tsv"], f"train cannot have {'9' * 20} distinct pairs"),
    ],
)
def test_the_tool_says_what_is_wrong_in_one_line(
    tmp_path: Path, args: list[str], message: str
) -> None:
    (tmp_path / "there.tsv").write_text("mine")
    done = _run(*args, folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"grammar: error: {message}") and done.stderr.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["there.tsv"]
    assert (tmp_path / "there.tsv").read_text() == "mine"


def test_a_file_that_is_not_whole_does_not_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _tiny(monkeypatch)
    with pytest.raises(SystemExit):
        main(["--pairs", "115", str(tmp_path / "new.tsv")])
    assert "distinct pairs, not 115" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_distinct_at_scale() -> None:
    hashes = {hash(korean) for korean, _ in pairs("train", 200_000)}
    assert len(hashes) == 200_000
