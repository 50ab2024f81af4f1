"""Marian's tokenizers in the house's form: the same ids, and text, as `transformers` gives."""

from __future__ import annotations

import gzip
import json
import pickle
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers as hf
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from marian_sides import write_sides
from sentencepiece import sentencepiece_model_pb2
from tokenizers import models
from transformers import (
    AutoTokenizer,
    MarianConfig,
    MarianMTModel,
    MarianTokenizer,
    PreTrainedTokenizerFast,
)

from transformer.bundle import Bundle, save_bundle
from transformer.data.charsmap import CharsMap
from transformer.data.spelling import spellings
from transformer.data.tokenizer import EOS, SPECIALS, UNK, Tokenizer, TokenizerConfig, Words
from transformer.data.tokenizer_training import train_tokenizer
from transformer.errors import UserError
from transformer.inference.translator import Translator
from transformer.interop.marian_side import MarianSide
from transformer.interop.sentencepiece import code_of, tokenizer_of, write_hf_tokenizer
from transformer.models import TransformerConfig
from transformer.training.transfer import transplant

CORPUS = Path(__file__).parent.parent / "recipes" / "quickstart" / "train.tsv.gz"
with gzip.open(CORPUS, "rt", encoding="utf-8") as file:
    PAIRS = [file.readline().rstrip("\n").split("\t") for _ in range(2500)]
TEXTS = [list(side) for side in zip(*PAIRS[:2000], strict=True)]
HURTFUL = [
    "", " ", "\t", "\u200b", "한", "日本語 の 字", "나는 мир 日本 and лис", "x日本y 😀😀 z😀",
    "Ｆｕｌｌ　ｗｉｄｔｈ ﬁre ½ ①",
    "e\u0301 \u1112\u1161\u11ab \uff41\u0301 \u1112 ﾊﾞ", "a\tb  c\u00a0d ",
    "zero\u200bwidth\ufeff and\u00adsoft", "▁", "▁▁a ▁ b▁", " ▁ ", "\x00a\x1fb\x7f", "fi\nne",
    "HTTPS://EXAMPLE.ORG/?q=1&r=2", "1,234.56 €", "그는Did그he",
    "𝔘𝔫𝔦 🏳️‍🌈 \U0001f468\u200d\U0001f469",
]  # fmt: skip


class Sides:
    """A tokenizer of ours beside the one it was made of."""

    def __init__(self, folder: Path, to: str | None = None) -> None:
        self.folder, self.to = folder, to
        self.ours, self.ids = tokenizer_of(folder)
        self.theirs = MarianTokenizer.from_pretrained(folder, split_special_tokens=True)

    def check(self, lines: list[str]) -> None:
        code = f">>{self.to}<< " if self.to else ""
        src = self.theirs([code + line for line in lines]).input_ids
        tgt = self.theirs(text_target=lines).input_ids
        found = self.ours.encode_src(lines, self.to), self.ours.encode_tgt(lines)
        for ours, theirs in zip(found, (src, tgt), strict=True):
            assert [[self.ids[i] for i in line] for line in ours] == theirs
        self.check_text(found[1])

    def check_text(self, ids: list[list[int]]) -> None:
        numbered = [[self.ids[i] for i in line] for line in ids]
        texts = self.theirs.batch_decode(numbered, skip_special_tokens=True)
        assert self.ours.decode([[*line, EOS] for line in ids]) == texts


KINDS: dict[str, tuple[dict[str, Any], str | None]] = {
    "plain": ({}, None),
    "tags": ({"tags": ["fra", "cmn_Hans"], "left_out": 9}, "cmn_Hans"),
    "identity": ({"normalization_rule_name": "identity", "left_out": 5}, None),
    "no spaces": ({"add_dummy_prefix": False, "character_coverage": 0.98}, None),
}


@pytest.fixture(scope="module", params=KINDS)
def sides(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Sides:
    options, to = KINDS[request.param]
    return Sides(write_sides(tmp_path_factory.mktemp("marian"), TEXTS, **options), to)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder whose pieces hold every character of the texts."""
    return write_sides(tmp_path_factory.mktemp("plain"), TEXTS, character_coverage=1.0)


def test_real_text_gives_the_ids_of_marian(sides: Sides) -> None:
    lines = [line for pair in PAIRS[1800:] for line in (*pair, " ".join(pair))]
    sides.check(HURTFUL + lines)


PARTS = ["빨간", "자전거를", "He", "red", "bicycle", "ing", "er", "s", *" .,▁\u3000"]
WORDS = st.sampled_from([*PARTS, *HURTFUL, *"".join(HURTFUL)])


def test_any_text_gives_the_ids_of_marian(sides: Sides) -> None:
    # Marian takes what stands between `>>` and `<<` for a language, tags or not; and a special
    # token that is spelled in characters unknown to it for that token.
    @settings(max_examples=200, deadline=None)
    @given(st.text() | st.lists(WORDS).map("".join))
    def check(text: str) -> None:
        assume(not any(special in text for special in SPECIALS))
        sides.check([text if sides.to else text.replace(">>", ">")])

    check()


def test_any_ids_give_the_text_of_marian(sides: Sides) -> None:
    rng = random.Random(0)
    ids = range(len(SPECIALS) + len(sides.ours.tags), sides.ours.tgt_vocab_size)
    sides.check_text([[UNK, *rng.choices(ids, k=rng.randrange(9))] for _ in range(500)])


def test_a_piece_of_the_other_side_is_had_only_as_a_whole_unknown_run(tmp_path: Path) -> None:
    texts = [["ab ab cd"] * 20, ["語日本 学日本 文日本 国日本 字日本"] * 20]
    sides = Sides(write_sides(tmp_path, texts, size=14))
    [whole, longer] = sides.ours.encode_src(["ab 日本", "ab 日本日本"])
    assert sides.ours.pieces("src", whole)[-2] == "日本"
    assert longer[-2] == UNK
    sides.check(["ab 日本", "ab 日本日本", "日本", "日本語 cd", "a日本b"])


def test_text_that_spells_special_tokens_or_languages_is_text(sides: Sides) -> None:
    lines = ["</s>", "a </s> <pad>", "<unk><s>", ">>fra<< He", "<2fra> <2cmn_Hans>"]
    tags = set(sides.ours.tags.values())
    for ids in (sides.ours.encode_src(lines, sides.to), sides.ours.encode_tgt(lines)):
        for line in ids:
            body = line[line[0] in tags : -1]
            assert body
            assert not {*body} & {0, 1, 2, *tags}


def test_the_gate_takes_unknown_characters_for_text(plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "marian"))
    ours, ids = tokenizer_of(folder)
    shape = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    model: Any = MarianMTModel(MarianConfig(vocab_size=len({*ids}), pad_token_id=ids[0], **shape))
    model.save_pretrained(folder)
    lines = ["</s>", "한 </s> <pad>", *HURTFUL]
    assert ids[EOS] in MarianTokenizer.from_pretrained(folder)("</s>").input_ids[:-1]
    assert MarianSide(folder, ids).encode(lines) == ours.encode_src(lines)


def test_languages_of_the_vocabulary_are_tags(tmp_path: Path) -> None:
    ours = tokenizer_of(write_sides(tmp_path, TEXTS, tags=["fra", "cmn_Hans"]))[0]
    assert ours.tags == {"fra": 4, "cmn_Hans": 5}
    [ids] = ours.encode_src(["He did"], "fra")
    assert ours.pieces("src", ids)[0] == "<2fra>"
    assert ours.words("src", ids[:-1])[0] == 0
    with pytest.raises(UserError, match="it translates into fra, cmn_Hans$"):
        ours.encode_src(["He did"])


def test_decoding_may_start_with_another_entry(plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "marian"))
    ids = json.loads((folder / "vocab.json").read_text())
    ids["<s>"] = len(ids)
    (folder / "vocab.json").write_text(json.dumps(ids))
    usual, numbers = tokenizer_of(folder)
    assert (numbers[1], numbers[-1]) == (ids["<pad>"], ids["<s>"])
    assert usual.tgt_vocab_size == len(ids) + 1
    change_json(folder / "config.json", decoder_start_token_id=ids["<s>"])
    started, numbers = tokenizer_of(folder)
    assert numbers[1] == ids["<s>"]
    assert started.tgt_vocab_size == len(ids)
    assert started.encode_tgt(TEXTS[1][:50]) == usual.encode_tgt(TEXTS[1][:50])


def test_spaces_before_punctuation_are_left_out_where_the_folder_says_so(tmp_path: Path) -> None:
    line = "it is n't a dog , is it ? I 'm ' here ' s . . ! We 've they 're x ' y 's ' re"
    folder = write_sides(tmp_path / "in", [[line], [line]], size=90, character_coverage=1.0)
    change_json(folder / "tokenizer_config.json", clean_up_tokenization_spaces=True)
    sides = Sides(folder)
    sides.check([line, line[1:], "a . b"])
    assert sides.ours.decode(sides.ours.encode_tgt([line]))[0].startswith("it isn't a dog, is it?")
    (tmp_path / "out").mkdir()
    check_export(sides.ours, None, [line], tmp_path / "out")


def test_a_bundle_needs_no_sentencepiece(sides: Sides, tmp_path: Path) -> None:
    sides.ours.save(tmp_path)
    lines = HURTFUL + TEXTS[0][:20]
    copies = [Tokenizer.load(tmp_path), pickle.loads(pickle.dumps(sides.ours))]
    for copy in copies:
        assert copy.encode_src(lines, sides.to) == sides.ours.encode_src(lines, sides.to)
        assert copy.encode_tgt(lines) == sides.ours.encode_tgt(lines)
        assert copy.tgt_vocab_size == sides.ours.src_vocab_size == len(sides.ids)
    code = (
        "import sys;"
        "sys.modules.update(dict.fromkeys(('sentencepiece', 'google', 'transformers')));"
        "from transformer.data.tokenizer import Tokenizer;"
        f"print(Tokenizer.load({str(tmp_path)!r}).encode_tgt(['He did']))"
    )
    printed = subprocess.check_output([sys.executable, "-c", code], text=True)
    assert json.loads(printed) == sides.ours.encode_tgt(["He did"])


def test_pieces_and_words_are_those_of_the_text(plain: Path) -> None:
    ours = tokenizer_of(plain)[0]
    for line in TEXTS[1][:50]:
        [ids] = ours.encode_tgt([line])
        pieces, words = ours.pieces("tgt", ids), ours.words("tgt", ids[:-1])
        assert "".join(pieces) == f" {line}</s>"
        assert (words[0], words[-1]) == (0, len(line.split()) - 1)
        for number, word in enumerate(line.split()):
            own = "".join(p for p, n in zip(pieces, words, strict=False) if n == number)
            assert own.strip() == word
        assert ours.tgt_shown([1, *ids]) == list(range(1, len(ids)))


def test_rows_are_found_by_their_spelling(tmp_path: Path) -> None:
    marian = tokenizer_of(write_sides(tmp_path, TEXTS, left_out=9))[0]
    for side in ("src", "tgt"):
        assert spellings(marian, marian, side) == [[i] for i in range(marian.src_vocab_size)]
    config = TokenizerConfig(vocab_size=600)
    house = train_tokenizer(config, lambda: zip(*TEXTS, strict=True))
    for new, old in ((house, marian), (marian, house)):
        found = spellings(new, old, "tgt")
        for i, ids in enumerate(found[len(SPECIALS) :], len(SPECIALS)):
            piece, parts = new.pieces("tgt", [i])[0], "".join(old.pieces("tgt", ids))
            assert not ids or parts in (piece, "\u0020") or "�" in piece
        assert sum(map(bool, found)) > len(found) / 3


def test_a_new_vocabulary_of_both_languages_is_spelled_by_both_sides(plain: Path) -> None:
    marian = tokenizer_of(plain)[0]
    config = TokenizerConfig(vocab_size=600)
    house = train_tokenizer(config, lambda: zip(*TEXTS, strict=True))
    shape = TransformerConfig(d_model=8, d_ff=8, num_heads=1, num_layers=1)
    old = Bundle(shape.build(*[marian.src_vocab_size] * 2), marian, {})
    model = shape.build(*[house.src_vocab_size] * 2)
    [rows] = transplant(model, house, old, "mean").values()
    by_sides = zip(*(spellings(house, marian, side) for side in ("src", "tgt")), strict=True)
    trained = old.model.get_parameter("output.weight")
    better = 0
    for i, (src, tgt) in enumerate(by_sides):
        best = tgt if tgt and (not src or len(tgt) < len(src)) else src
        better += best != src
        if best:
            row = model.get_parameter("output.weight")[i]
            torch.testing.assert_close(row, trained[best].mean(0))
    assert better > 20
    assert sum(rows) == house.src_vocab_size


def test_a_bundle_translates_and_aligns(tmp_path: Path) -> None:
    ours = tokenizer_of(write_sides(tmp_path / "marian", TEXTS, tags=["eng"]))[0]
    torch.manual_seed(0)
    shape = TransformerConfig(d_model=8, d_ff=8, num_heads=1, num_layers=1)
    save_bundle(
        tmp_path / "bundle", shape.build(*[ours.src_vocab_size] * 2), ours, src="ko", tgt="eng",
        search={"beam": 2}, max_length=50, evaluation={}, training={"recipe": ""}, card="",
    )  # fmt: skip
    translator = Translator.load(tmp_path / "bundle")
    lines = [*TEXTS[0][:5], "", "日本 </s> \uff41"]
    for line, best in zip(lines, translator.n_best(lines, n_best=1, alignments=True), strict=True):
        words = len(best[0].text.split())
        assert {t for _, t in best[0].alignment or []} <= set(range(max(words, 1)))
        assert {s for s, _ in best[0].alignment or []} <= set(range(max(len(line.split()), 1)))
    source, target = translator.attention(TEXTS[0][0], TEXTS[1][0])[1:]
    assert "".join(source) == f"<2eng> {TEXTS[0][0]}</s>"
    assert TEXTS[1][0] in "".join(target)
    assert translator.score(lines[:2], TEXTS[1][:2])


def test_characters_are_replaced_as_sentencepiece_does(plain: Path) -> None:
    bare = message(plain / "source.spm")  # by the usual table, nmt_nfkc; and nothing else is done
    bare.normalizer_spec.add_dummy_prefix = bare.normalizer_spec.remove_extra_whitespaces = False
    reference = sentencepiece.SentencePieceProcessor(model_proto=bare.SerializeToString())
    replaced = CharsMap(bare.normalizer_spec.precompiled_charsmap)
    entries = [char for node in replaced._nodes for char in node]

    @settings(max_examples=500, deadline=None)
    @given(st.lists(st.sampled_from(entries) | st.characters(codec="utf-8"), max_size=9))
    def check(characters: list[str]) -> None:
        text = "".join(characters)
        assert replaced(text).replace(" ", "▁") == reference.normalize(text)

    check()


def message(spm: Path) -> Any:
    messages: Any = sentencepiece_model_pb2
    found = messages.ModelProto()
    found.ParseFromString(spm.read_bytes())
    return found


def edit(spm: Path, change: Callable[[Any], object]) -> None:
    found = message(spm)
    change(found)
    spm.write_bytes(found.SerializeToString())


HOUSE = [(kind, shared, tags) for kind in ("bpe", "unigram", "word") for shared in (True, False)
         for tags in ((), ("de", "en"))]  # fmt: skip


@pytest.mark.parametrize(("kind", "shared", "tags"), HOUSE)
def test_exported_vocabularies_give_the_same_to_transformers(
    kind: Any, shared: bool, tags: tuple[str, ...], tmp_path: Path
) -> None:
    config = TokenizerConfig(kind, 900, shared, lowercase=shared)
    ours = train_tokenizer(config, lambda: zip(*TEXTS, strict=True), tags)
    spelled = ["</s>", "a </s> <pad>", "<unk><s> <s>\u3000x"]
    check_export(ours, "de" if tags else None, spelled, tmp_path)


def test_exported_marian_gives_the_same_to_transformers(sides: Sides, tmp_path: Path) -> None:
    check_export(sides.ours, sides.to, [], tmp_path)
    assert message(tmp_path / "source.spm").normalizer_spec.precompiled_charsmap == (
        message(sides.folder / "source.spm").normalizer_spec.precompiled_charsmap
    )


def check_export(ours: Tokenizer, to: str | None, spelled: list[str], folder: Path) -> None:
    write_hf_tokenizer(ours, folder, max_length=99)
    (folder / "config.json").write_text('{"model_type": "marian", "decoder_start_token_id": 1}')
    src = tgt = AutoTokenizer.from_pretrained(folder)
    if (folder / "target").exists():
        tgt = AutoTokenizer.from_pretrained(folder, subfolder="target")
    lines = [*HURTFUL, *spelled, *TEXTS[0][:200], *TEXTS[1][:200]]
    codes = [code_of(ours, to) + line for line in lines]
    assert src(codes).input_ids == ours.encode_src(lines, to)
    assert tgt(text_target=lines).input_ids == ours.encode_tgt(lines)
    rng = random.Random(0)
    shown = ours.tags.values() if isinstance(ours.side("tgt"), Words) else ()
    ids = [i for i in range(ours.tgt_vocab_size) if i != EOS and i not in shown]
    some = [rng.choices(ids, k=rng.randrange(9)) for _ in range(200)] + [[i] for i in ids[:9]]
    assert tgt.batch_decode(some, skip_special_tokens=True) == ours.decode(some)
    special = tgt.pad_token_id, tgt.bos_token_id, tgt.eos_token_id, tgt.unk_token_id
    assert (*special, src.model_max_length) == (0, 1, 2, 3, 99)

    back, numbers = tokenizer_of(folder)
    assert numbers == list(range(max(ours.src_vocab_size, ours.tgt_vocab_size)))
    assert (back.tags, back.shared) == (ours.tags, ours.shared)
    assert back.encode_src(lines, to) == ours.encode_src(lines, to)
    assert back.encode_tgt(lines) == ours.encode_tgt(lines)
    assert back.decode(some) == ours.decode(some)


def user_defined(model: Any) -> None:
    model.pieces[9].type = model.pieces[9].USER_DEFINED


def cut(path: Path, size: int) -> None:
    path.write_bytes(path.read_bytes()[:size])


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def foreign(folder: Path) -> None:
    (folder / "vocab.json").unlink()
    PreTrainedTokenizerFast(tokenizer_object=hf.Tokenizer(models.BPE())).save_pretrained(folder)


BROKEN: dict[str, Callable[[Path], object]] = {
    "source.spm is missing: copy it": lambda f: (f / "source.spm").unlink(),
    "vocab.json is missing": lambda f: (f / "vocab.json").unlink(),
    "target.spm is no SentencePiece model": lambda f: (f / "target.spm").write_text("<html>"),
    "source.spm is no SentencePiece model .*: copy": lambda f: cut(f / "source.spm", 5000),
    "source.spm is no whole SentencePiece model": lambda f: cut(f / "source.spm", 0),
    "source.spm: the table of characters .* is damaged": lambda f: edit(
        f / "source.spm", lambda m: setattr(m.normalizer_spec, "precompiled_charsmap", b"abcdefgh")
    ),
    "trained with a model_type other than unigram": lambda f: edit(
        f / "source.spm", lambda m: setattr(m.trainer_spec, "model_type", 2)
    ),
    "trained with remove_extra_whitespaces off": lambda f: edit(
        f / "source.spm", lambda m: setattr(m.normalizer_spec, "remove_extra_whitespaces", False)
    ),
    "trained with user_defined_symbols: such": lambda f: edit(f / "target.spm", user_defined),
    "trained with byte_fallback": lambda f: edit(
        f / "source.spm", lambda m: setattr(m.trainer_spec, "byte_fallback", True)
    ),
    "vocab.json is not JSON": lambda f: cut(f / "vocab.json", 100),
    "vocab.json: its ids are not 0 to": lambda f: change_json(f / "vocab.json", more=9999),
    "vocab.json: its ids are not 0 .*: copy": lambda f: change_json(f / "vocab.json", more="1"),
    "vocab.json: <unk> is missing": lambda f: (f / "vocab.json").write_text('{"</s>": 0}'),
    "tokenizer.json, must be 0; .*: it must hold source.spm, target.spm and vocab": foreign,
    "separate_vocabs is true": lambda f: change_json(
        f / "tokenizer_config.json", separate_vocabs=True
    ),
}


@pytest.mark.parametrize("message", BROKEN)
def test_what_cannot_be_read_is_refused_in_one_line(
    message: str, plain: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "marian"))
    BROKEN[message](folder)
    with pytest.raises(UserError, match=message) as error:
        tokenizer_of(folder)
    assert "\n" not in str(error.value)
    assert str(folder) in str(error.value)
