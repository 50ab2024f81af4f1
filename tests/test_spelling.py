"""Pieces of a new vocabulary in terms of an old one."""

from itertools import product

import pytest

from transformer.data.spelling import spellings
from transformer.data.tokenizer import SPECIALS, Tokenizer, TokenizerConfig
from transformer.data.tokenizer_training import train_tokenizer

OLD = ["the cat sees the dog", "a house, a tree; the dog's House", "Übung macht Räder"] * 4
NEW = ["le chat voit the dog", "une maison, cathouse; thecat", "Räder und Übung naïve"] * 4
KINDS = ["bpe", "unigram", "word"]


def learn(lines: list[str], kind: str, **options: object) -> Tokenizer:
    config = TokenizerConfig(kind=kind, vocab_size=310, min_frequency=2, **options)  # type: ignore[arg-type]
    return train_tokenizer(config, lambda: zip(lines, lines, strict=True))


def text(tokenizer: Tokenizer, ids: list[int]) -> str:
    return "".join(tokenizer.pieces("src", ids))


@pytest.mark.parametrize("kinds", list(product(KINDS, KINDS)))
def test_every_piece_is_spelled_by_the_same_text(kinds: tuple[str, str]) -> None:
    old, new = learn(OLD, kinds[0]), learn(NEW, kinds[1])
    found = spellings(new, old, "src")
    assert len(found) == new.src_vocab_size
    assert found[: len(SPECIALS)] == [[i] for i in range(len(SPECIALS))]
    several = 0
    for i, ids in enumerate(found[len(SPECIALS) :], len(SPECIALS)):
        piece = new.side("src").library.id_to_token(i) or ""
        if kinds[0] == kinds[1] and old.side("src").library.token_to_id(piece) is not None:
            assert ids == [
                old.side("src").library.token_to_id(piece)
            ]  # not several that also spell it
        if ids and "�" not in text(new, [i]):
            assert text(old, ids).removeprefix(" ") == text(new, [i]).removeprefix(" ")
        several += len(ids) > 1
    assert kinds[0] == "word" or all(found)  # all bytes are pieces of their own
    assert bool(several) == (kinds[0] != "word")


def test_words_of_which_the_old_vocabulary_knows_some() -> None:
    old, new = learn(OLD, "word"), learn(NEW, "word")
    found = dict(zip(map(new.side("src").entry, range(99)), spellings(new, old, "src")))  # noqa: B905
    assert text(old, found["dog"]) == "dog"
    assert found["chat"] == []


def test_a_word_begins_after_a_space() -> None:
    old, new = learn(OLD, "bpe"), learn(NEW, "word")
    dog = spellings(new, old, "src")[new.side("src").library.token_to_id("dog") or 0]
    assert dog == [old.side("src").library.token_to_id("Ġdog")]


def test_a_lowercased_vocabulary_spells_capitals_in_small_letters() -> None:
    old, new = learn(OLD, "bpe", lowercase=True), learn(OLD, "bpe")
    found = dict(enumerate(spellings(new, old, "src")))
    words = {i: piece for i in found if len(piece := new.pieces("src", [i])[0].strip()) > 1}
    capitals = {i: word for i, word in words.items() if i >= len(SPECIALS) and word != word.lower()}
    assert "Übung" in capitals.values()
    for i, word in capitals.items():
        assert text(old, found[i]).strip() == word.lower()


def test_each_side_is_spelled_by_its_own() -> None:
    def separate(src: list[str], tgt: list[str]) -> Tokenizer:
        config = TokenizerConfig(vocab_size=300, shared=False)
        return train_tokenizer(config, lambda: zip(src, tgt, strict=True))

    old, new = separate(OLD, NEW), separate(NEW, OLD)
    found = {side: spellings(new, old, side) for side in ("src", "tgt")}
    assert found["src"] == spellings(separate(NEW, NEW), separate(OLD, OLD), "src")
    assert found["tgt"] == spellings(separate(OLD, OLD), separate(NEW, NEW), "tgt")
