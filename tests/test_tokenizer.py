"""The tokenizer: lossless where it says so, and text stays text."""

from __future__ import annotations

import json
import pickle
import random
import signal
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import pre_tokenizers

from transformer.data.tokenizer import (
    BOS,
    EOS,
    PAD,
    SPECIALS,
    UNK,
    Tokenizer,
    TokenizerConfig,
)
from transformer.data.tokenizer_training import train_tokenizer
from transformer.data.vocabulary import BYTE_OF
from transformer.errors import UserError

SRC = ["나는 사과를 먹는다 .", "그는 학교에 간다 .", "고양이가 책을 읽는다 ."] * 20
TGT = ["I eat an apple .", "He goes to the school .", "The cat reads a book ."] * 20


def train(kind: str = "bpe", **options: object) -> Tokenizer:
    config = TokenizerConfig(**{"kind": kind, "vocab_size": 350, **options})  # type: ignore[arg-type]
    return train_tokenizer(config, lambda: zip(SRC, TGT, strict=True))


TRAINED = {
    (kind, shared): train(kind, shared=shared)
    for kind in ("bpe", "unigram", "word")
    for shared in (True, False)
}
BYTES = [tokenizer for (kind, _), tokenizer in TRAINED.items() if kind != "word"]
SPELLED = st.sampled_from(
    [*SPECIALS, "</s", "s>", "<", " ", "a", "가", "\u2028", "\x00", "e\u0301", "\u1112\u1161"]
)


def test_a_piece_of_a_space_and_a_part_of_a_character_is_of_the_next_word() -> None:
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=330), lambda: [("나 힣 힣", "각")] * 9)
    text = "나는 힣힣 힡 é간다"
    ids = tokenizer.encode_src([text])[0][:-1]
    library = tokenizer._src.library
    spans = library.encode(text, add_special_tokens=False).offsets
    spaces = [place for place, letter in enumerate(text) if letter == " "]
    # By hand: the word in which the piece's last character lies.
    words = [sum(place < stop - 1 for place in spaces) for _, stop in spans]
    assert tokenizer.words("src", ids) == words


@pytest.mark.parametrize("tokenizer", BYTES)
@settings(max_examples=200, deadline=None)
@given(text=st.text() | st.lists(SPELLED).map("".join))
def test_byte_level_round_trip_is_lossless(tokenizer: Tokenizer, text: str) -> None:
    [ids] = tokenizer.encode_tgt([text])
    assert ids[-1] == EOS
    assert not set(ids[:-1]) & {PAD, BOS, EOS, UNK}
    assert tokenizer.decode([ids]) == [unicodedata.normalize("NFC", text)]


@pytest.mark.parametrize("tokenizer", TRAINED.values())
@settings(max_examples=50, deadline=None)
@given(words=st.lists(st.sampled_from([*SPECIALS, "I", "apple"]), min_size=1))
def test_text_that_spells_special_tokens_is_not_special(
    tokenizer: Tokenizer, words: list[str]
) -> None:
    for encode in (tokenizer.encode_src, tokenizer.encode_tgt):
        [ids] = encode([" ".join(words)])
        assert ids[-1] == EOS
        assert not set(ids[:-1]) & {PAD, BOS, EOS}


@pytest.mark.parametrize("key", TRAINED)
@pytest.mark.parametrize("way", ["text", "folder", "pickle"])
def test_every_copy_encodes_alike(tmp_path: Path, key: tuple[str, bool], way: str) -> None:
    tokenizer = TRAINED[key]
    if way == "text":
        copy = Tokenizer(json.loads(json.dumps(tokenizer.to_text())))
    elif way == "folder":
        tokenizer.save(tmp_path)
        copy = Tokenizer.load(tmp_path)
    else:
        copy = pickle.loads(pickle.dumps(tokenizer))
    lines = ["</s> I eat <pad>", "", *SRC[:3], *TGT[:3]]
    assert copy.encode_src(lines) == tokenizer.encode_src(lines)
    assert copy.encode_tgt(lines) == tokenizer.encode_tgt(lines)
    assert copy.shared == key[1]
    assert copy.to_text() == tokenizer.to_text()


def test_special_ids_are_the_same_in_every_vocabulary() -> None:
    for tokenizer in TRAINED.values():
        assert tokenizer.pieces("src", [PAD, BOS, EOS, UNK]) == list(SPECIALS)
        assert tokenizer.encode_src([""]) == [[EOS]]


def test_shared_vocabulary_sees_both_sides_and_separate_ones_only_their_own() -> None:
    shared, separate = TRAINED["word", True], TRAINED["word", False]
    assert UNK not in shared.encode_src(["apple 학교에"])[0]
    assert separate.encode_src(["apple 학교에"])[0][0] == UNK
    assert separate.encode_tgt(["apple 학교에"])[0][1] == UNK
    assert separate.src_vocab_size == len({w for line in SRC for w in line.split()}) + 4
    assert separate.tgt_vocab_size == len({w for line in TGT for w in line.split()}) + 4
    assert shared.src_vocab_size == shared.tgt_vocab_size


def test_words_join_with_spaces_and_rare_ones_are_unknown() -> None:
    tokenizer = TRAINED["word", False]
    assert tokenizer.decode(tokenizer.encode_tgt(["The  cat eats a book ."])) == [
        "The cat a book ."
    ]


def test_decode_stops_at_eos_and_drops_specials() -> None:
    tokenizer = TRAINED["bpe", True]
    [ids] = tokenizer.encode_tgt(["I eat"])
    assert tokenizer.decode([[BOS, *ids, *ids, PAD]]) == ["I eat"]


def test_pieces_label_each_id_with_its_text() -> None:
    tokenizer = TRAINED["bpe", True]
    [ids] = tokenizer.encode_src(["I eat 사과"])
    pieces = tokenizer.pieces("src", ids)
    assert len(pieces) == len(ids)
    assert (pieces[0], pieces[-1]) == ("I", "</s>")
    assert " eat" in pieces or " e" in pieces


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_pieces_never_show_half_a_character(kind: str) -> None:
    tokenizer, text = TRAINED[kind, True], "나는 밥을 \U0001f600 먹었어요, déjà vu"
    [ids] = tokenizer.encode_tgt([text])
    pieces = tokenizer.pieces("tgt", ids)
    assert "".join(pieces[:-1]) == text
    assert "" in pieces  # a character was cut, and stands with its last piece


def test_pieces_know_how_the_library_writes_bytes() -> None:
    assert set(BYTE_OF) == set(pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTE_OF.values()) == list(range(256))


def test_lowercase_and_nfc() -> None:
    tokenizer = train(lowercase=True)
    [ids] = tokenizer.encode_tgt(["ÀB Cafe\u0301 İ"])
    assert tokenizer.decode([ids]) == [unicodedata.normalize("NFC", "àb café i̇")]


def test_bpe_training_is_deterministic_across_processes() -> None:
    code = (
        "import hashlib, tests.test_tokenizer as t;"
        "print(hashlib.sha256(str(t.train().to_text()).encode()).hexdigest())"
    )
    runs = {subprocess.check_output([sys.executable, "-c", code]) for _ in range(2)}
    assert len(runs) == 1


def test_importing_the_tokenizer_is_light() -> None:
    code = (
        "import sys, transformer.data.tokenizer;"
        "heavy = ('torch', 'datasets', 'pyarrow', 'lightning', 'numpy');"
        "print([name for name in heavy if name in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_small_text_gives_a_small_vocabulary(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    assert train("word", vocab_size=1000).src_vocab_size < 1000
    assert "fewer than data.tokenizer.vocab_size = 1000" in caplog.text


def learn(lines: Callable[[], Iterable[str]], kind: str = "bpe") -> Tokenizer:
    config = TokenizerConfig(kind=kind, vocab_size=8000)  # type: ignore[arg-type]
    return train_tokenizer(config, lambda: ((line, "") for line in lines()))


def letters(count: int) -> str:
    """One word that takes the longer the longer it is, with the square."""
    return "".join(random.Random(1).choices("ACGT", k=count))


@pytest.mark.parametrize("kind", ["bpe", "unigram", "word"])
def test_words_without_end_are_left_out_of_learning(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    long, short = letters(400_000), [*SRC, letters(2000)]
    start = time.perf_counter()
    tokenizer = learn(lambda: [f"{long} 나는 {long}", *short, f"{long}x"], kind)
    assert time.perf_counter() - start < 5, "400,000 letters took more than a minute"
    assert "was learned without 3 words of more than 2000 characters" in caplog.text
    if kind != "unigram":  # whose library is not deterministic
        assert tokenizer.to_text() == learn(lambda: ["나는", *short], kind).to_text()


def test_many_spaces_are_learned_from_at_once() -> None:
    start = time.perf_counter()
    learn(lambda: [" " * 100_000, "\t\u3000" * 50_000, *SRC])
    assert time.perf_counter() - start < 5, "100,000 spaces took minutes"


@pytest.mark.parametrize("kind", ["bpe", "unigram", "word"])
@pytest.mark.parametrize("text", ["", " \u2028", letters(3000)])
def test_text_without_words_teaches_nothing(kind: str, text: str) -> None:
    message = "data.tokenizer: the shared text has no word of up to 2000 characters to learn from"
    with pytest.raises(UserError, match=message):
        learn(lambda: [text, ""], kind)


def slow_lines(count: int) -> list[str]:
    """Words from 3,000 letters, which take the library seconds to learn from."""
    alphabet, rng = [chr(0x4E00 + i) for i in range(3000)], random.Random(1)
    return ["".join(rng.choices(alphabet, k=1900)) for _ in range(count)]


def test_an_error_in_the_text_ends_learning_at_once() -> None:
    raised = 0.0

    def lines() -> Iterator[str]:
        nonlocal raised
        yield from slow_lines(40)
        yield from map(str, range(3000))
        raised = time.perf_counter()
        raise ValueError("train.de, line 3041: not UTF-8")

    with pytest.raises(ValueError, match=r"^train.de, line 3041: not UTF-8$"):
        learn(lines)
    assert time.perf_counter() - raised < 0.5, "not after all that came before is learned"


def test_ctrl_c_is_heard_while_learning() -> None:
    code = (
        "import signal, tests.test_tokenizer as t\n"
        # A shell has its background processes ignore it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def read():\n"
        "    yield from t.slow_lines(1000)\n"
        "    print('read', flush=True)\n"
        "t.learn(read)\n"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe) as process:
        assert process.stdout
        assert process.stdout.readline() == b"read\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        process.wait(timeout=15)  # learning takes longer on any machine
        assert process.stderr
        assert process.stderr.read().rstrip().endswith(b"KeyboardInterrupt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vocab_size": 100}, "vocab_size: 100 is too small; bpe needs at least 260"),
        ({"vocab_size": 10**20}, "vocab_size: 10+ must lie between 0 and 2.31"),
        ({"min_frequency": -1}, "min_frequency: -1 must lie between 0 and 2.31"),
        ({"kind": "word", "min_frequency": 999}, "no word of the .* text occurs 999 times: lower"),
        ({"kind": "char"}, "data.tokenizer.kind: 'char' is unknown"),
    ],
)
def test_impossible_configurations(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(**options)  # type: ignore[arg-type]


def test_files_that_hold_no_tokenizer_of_this_project(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer.src.json is missing"):
        Tokenizer.load(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ValueError, match=r"tokenizer.json cannot be read"):
        Tokenizer.load(tmp_path)
    foreign = TRAINED["bpe", True].to_text()["tokenizer.json"].replace("<pad>", "[PAD]")
    with pytest.raises(ValueError, match=r"<pad> has id None in tokenizer.json, must be 0"):
        Tokenizer({"tokenizer.json": foreign})
