"""Bundle and translator: what is saved comes back, and every line in is a line out."""

import copy
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from transformer.bundle import save_bundle
from transformer.data.lengths import by_length
from transformer.data.tokenizer import BOS, EOS, UNK, Tokenizer, TokenizerConfig
from transformer.data.tokenizer_training import train_tokenizer
from transformer.inference.batches import pad
from transformer.inference.forced import align, cross_attention
from transformer.inference.lines import LineError, split
from transformer.inference.search import SearchConfig
from transformer.inference.translator import Translator
from transformer.kernels import has_bfloat16
from transformer.kernels.process import in_threads
from transformer.models import Transformer, TransformerConfig

LINES = ["the cat sees a dog .", "a dog sleeps .", "the old man reads the long book in a garden ."]
ANSWERS = [line.upper() for line in LINES]
SHAPE = TransformerConfig(d_model=32, d_ff=64, num_heads=2, num_layers=2, dropout=0.0)
SEARCH = SearchConfig(beam=3)


@cache
def parts(shared: bool = True) -> tuple[Transformer, Tokenizer]:
    """A model that has learned three sentences by heart."""
    config = TokenizerConfig(vocab_size=300, shared=shared)
    tokenizer = train_tokenizer(config, lambda: zip(LINES, ANSWERS, strict=True))
    torch.manual_seed(0)
    shape = SHAPE if shared else replace(SHAPE, tied="two_way")
    model = shape.build(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)
    src, lengths = pad(tokenizer.encode_src(LINES))
    targets = tokenizer.encode_tgt(ANSWERS)
    tgt_in, (tgt_out, _) = pad([[BOS, *row[:-1]] for row in targets])[0], pad(targets)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for _ in range(120):
        logits = model.project(model(src, lengths, tgt_in))
        F.cross_entropy(logits.flatten(0, 1), tgt_out.flatten(), ignore_index=0).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), tokenizer


def translator(max_tokens: int = 2048, max_length: int = 512) -> Translator:
    return Translator(*parts(), SEARCH, max_tokens, max_length)


def broken() -> Translator:
    """With a weight that is not a number."""
    model, tokenizer = copy.deepcopy(parts())
    with torch.no_grad():
        model.decoder[0].feed_forward.inner.weight[0, 0] = float("nan")
    return Translator(model, tokenizer, SEARCH)


def save(folder: Path, shared: bool = True) -> tuple[Transformer, Tokenizer]:
    model, tokenizer = parts(shared)
    card = "# Card\n"
    about: dict[str, Any] = {"src": "en", "tgt": "xx", "search": asdict(SEARCH), "evaluation": {}}
    about["max_length"] = 60
    about["training"] = {"recipe": "toy", "steps": 120}
    save_bundle(folder, model, tokenizer, card=card, **about)
    return model, tokenizer


@pytest.mark.parametrize("device", ["cuda", "nonsense"])
def test_a_device_that_is_not_there(tmp_path: Path, device: str) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(ValueError, match=rf"device {device} cannot be used here .*try cpu"):
        Translator.load(tmp_path, device)


def test_weights_that_are_not_numbers_are_named() -> None:
    with pytest.raises(ValueError, match="the model's output is not a number"):
        broken().translate(LINES)


def test_one_line_out_for_each_line_in() -> None:
    lines = ["", LINES[0], "   ", LINES[2], "", LINES[1]]
    found = translator().translate(lines)
    assert len(found) == len(lines)
    assert [found[index] for index in (0, 2, 4)] == ["", "", ""]
    assert found == ["", ANSWERS[0], "", ANSWERS[2], "", ANSWERS[1]]
    assert translator().translate([]) == []


def test_small_batches_give_the_same_translations() -> None:
    lines = LINES * 4
    assert translator(max_tokens=40).translate(lines) == translator().translate(lines)


def test_batches_side_by_side_give_the_same_translations(monkeypatch: pytest.MonkeyPatch) -> None:
    """The n-best of one thread, in the order of the lines, and the errors of the threads."""
    lines = [*LINES * 30, "", *(f"a dog sees {n} cats ." for n in range(20))]
    expected = translator(max_tokens=300).n_best(lines, n_best=2)
    asked: list[tuple[int, int]] = []

    def watched(function: Any, items: Any, workers: int) -> Any:
        asked.append((len(items), workers))
        return in_threads(function, items, workers)

    monkeypatch.setattr("transformer.inference.batches.in_threads", watched)
    monkeypatch.setattr("transformer.inference.engines.count_workers", lambda device: 2)
    found = translator(max_tokens=300).n_best(lines, n_best=2)
    for line, others in zip(found, expected, strict=True):
        assert [t.text for t in line] == [t.text for t in others]
        scores = [t.score for t in others]
        assert [t.score for t in line] == pytest.approx(scores, abs=1e-5)
    assert asked[0][0] > 3
    assert asked[0][1] == 2
    for sample in (False, True):
        with pytest.raises(ValueError, match="the model's output is not a number"):
            broken().translate(lines, sample=sample)
    translator().translate(lines, sample=True)
    assert asked[-1][1] == 1  # samples depend on the seed alone


def test_n_best_and_alignments() -> None:
    found = translator().n_best(LINES[:1], n_best=3, alignments=True)[0]
    assert len(found) == 3
    assert sorted((t.score for t in found), reverse=True) == [t.score for t in found]
    for translation in found:
        assert translation.alignment is not None
        assert [t for _, t in translation.alignment] == list(range(len(translation.text.split())))
    assert translator().n_best([""], alignments=True) == [[("", (None, None), 0.0, 0.0, [])]]


def test_alignment_is_the_most_attended_source_word() -> None:
    """Of lines of different lengths, in one batch; each by a calculation of its own."""

    def word_of(text: str, pieces: list[str], index: int) -> int:
        """By counting the spaces before the last character of a piece."""
        end = len("".join(pieces[: index + 1]).rstrip())
        return text[:end].count(" ")

    ours = translator()
    for line, (found, *_) in zip(LINES, ours.n_best(LINES, alignments=True), strict=True):
        weights, src_pieces, tgt_pieces = ours.attention(line, found.text)
        assert weights.shape == (2, 2, len(tgt_pieces), len(src_pieces))
        assert "".join(tgt_pieces[:-1]) == found.text
        assert src_pieces[-1] == tgt_pieces[-1] == "</s>"
        mean = weights.mean((0, 1))
        sums = torch.zeros(len(found.text.split()), len(line.split()))
        for t in range(len(tgt_pieces) - 1):
            for s in range(len(src_pieces) - 1):
                row, column = word_of(found.text, tgt_pieces, t), word_of(line, src_pieces, s)
                sums[row, column] += mean[t, s]
        assert found.alignment == [(s, t) for t, s in enumerate(sums.argmax(-1).tolist())]


def test_an_unknown_word_is_not_in_the_text_and_not_aligned() -> None:
    config = TokenizerConfig(kind="word", shared=False)
    tokenizer = train_tokenizer(config, lambda: [*zip(LINES, ANSWERS, strict=True)] * 2)
    shape = replace(SHAPE, tied="none")
    model = shape.build(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size).eval()
    (src,) = tokenizer.encode_src(["a zebra sleeps"])
    (dog, *_), (cat, *_) = tokenizer.encode_tgt(["DOG", "CAT"])
    targets = [[UNK, dog, UNK, cat], [dog], [UNK], []]
    assert tokenizer.decode(targets) == ["DOG CAT", "DOG", "", ""]
    found = align(model, tokenizer, [(src, tgt) for tgt in targets])
    assert [[t for _, t in pairs] for pairs in found] == [[0, 1], [0], [], []]
    weights = cross_attention(model, [(src, [*targets[0], EOS])])[0].mean((0, 1))
    assert [s for s, _ in found[0]] == weights[[1, 3], :3].argmax(-1).tolist()


def test_a_text_in_place_of_a_list_is_refused() -> None:
    ours = translator()
    for call in (ours.translate, ours.n_best, lambda text: ours.score([text], text)):
        with pytest.raises(TypeError, match=r"give a list of lines, such as \['a dog'\]"):
            call("a dog")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (None, "line 2: None is no text: give a str, '' for an empty line"),
        (3.5, "line 2: 3.5 is no text"),
        (b"a dog", "line 2: b'a dog' is no text"),
        ("katze\ud83d", r"line 2: not UTF-8 \('.ud83d', surrogates not allowed\): convert it"),
    ],
)
def test_what_is_no_line_of_text_is_named(line: Any, message: str) -> None:
    ours, lines = translator(), ["a dog", line]
    for call in (ours.translate, ours.n_best, ours.encode, lambda x: ours.score(x, ["", ""])):
        with pytest.raises(LineError, match=f"source {message}"):
            call(lines)
    with pytest.raises(LineError, match=f"target {message}"):
        ours.score(["", ""], lines)
    with pytest.raises(LineError, match="prefix line 1: "):
        ours.n_best(["a dog"], prefix=line)
    with pytest.raises(TypeError, match="give a list of lines, such as"):
        ours.translate(None)  # type: ignore[arg-type]


def test_lines_may_come_from_an_iterator() -> None:
    ours = translator()
    assert ours.n_best(iter(LINES)) == ours.n_best(LINES)  # type: ignore[arg-type]


@pytest.mark.parametrize("limits", [{"max_tokens": 0}, {"max_length": -1}])
def test_limits_that_make_no_sense(limits: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"is (0|-1): it must be 1 or more"):
        translator(**limits)


def test_prefix() -> None:
    for found in translator().n_best(LINES, prefix="THE OLD MAN"):
        assert found[0].text.startswith("THE OLD MAN")


def test_forced_decoding_agrees_with_the_search() -> None:
    """The search's own log-probability of a finished hypothesis is that of forced decoding."""
    ours = translator()
    found = [best[0] for best in ours.n_best(LINES)]
    for scored, best in zip(ours.score(LINES, [t.text for t in found]), found, strict=True):
        assert scored.tokens == len(ours.tokenizer.encode_tgt([best.text])[0])
        assert scored.log_prob == pytest.approx(best.log_prob, abs=1e-3)
    with pytest.raises(ValueError, match="3 source lines and 1 target lines"):
        ours.score(LINES, ["x"])


def test_a_prefix_beyond_the_positions_of_a_model() -> None:
    _, tokenizer = parts()
    shape = replace(SHAPE, positions="learned", max_positions=20)
    model = shape.build(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)
    with pytest.raises(LineError, match=r"prefix line 1: \d+ tokens, the limit is 20"):
        Translator(model, tokenizer).checked(LINES[:1], prefix="X" * 40)


def test_a_line_that_is_too_long() -> None:
    ours = translator(max_length=30)
    long = "The cat sleeps. " * 3 + "x" * 60
    with pytest.raises(LineError, match=r"line 2: \d+ tokens, the limit is 30") as error:
        ours.translate([LINES[1], long])
    assert error.value.index == 1
    with pytest.raises(ValueError, match="a prefix goes with whole lines"):
        ours.translate([long], too_long="split", prefix="A")
    with pytest.raises(ValueError, match="too_long is 'splt': it must be 'refuse' or 'split'"):
        ours.translate([long], too_long="splt")
    found = ours.translate([LINES[1], long], too_long="split")
    assert len(found) == 2
    assert found[0] == ours.translate(LINES[1:2])[0]
    with pytest.raises(LineError, match="line 2: one character has more tokens than 3") as error:
        translator(max_length=3).translate(["", "the 日本 cat", "日"], too_long="split")
    assert error.value.index == 1

    def fits(line: str) -> bool:
        return len(ours.tokenizer.encode_src([line])[0]) <= 30

    pieces = split(long, fits)
    assert "".join(pieces).replace(" ", "") == long.replace(" ", "")
    assert all(map(fits, pieces))
    assert pieces[0].endswith(".")
    assert split("A b. C d! " * 9, fits) == ["A b.", "C d!"] * 9
    assert all(piece.endswith("。") for piece in split("가나다라。마바사아。자차。", fits))


def test_loaded_weights_lie_as_products_read_them(tmp_path: Path) -> None:
    """Transposed in memory, equal in value; the embeddings' rows stay whole."""
    model, _ = save(tmp_path / "bundle")
    loaded = Translator.load(tmp_path / "bundle", "cpu").model
    assert isinstance(loaded, Transformer)
    assert loaded.output.weight.stride(0) == 1
    assert loaded.tgt_embedding.tokens.weight.stride(1) == 1
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, loaded.state_dict()[name]), name


@pytest.mark.parametrize("precision", ["auto", "bfloat16"])
def test_precision(tmp_path: Path, precision: str) -> None:
    if precision == "bfloat16" and not has_bfloat16("cpu"):
        pytest.skip("this CPU only emulates bfloat16")
    save(tmp_path / "bundle")
    loaded = Translator.load(tmp_path / "bundle", "cpu", precision)  # type: ignore[arg-type]
    expected = torch.float32 if precision == "auto" else torch.bfloat16
    assert next(loaded.model.parameters()).dtype == expected
    assert len(loaded.translate(LINES)) == 3


def test_samples_repeat_by_seed() -> None:
    ours = translator()
    generators = [torch.Generator().manual_seed(7) for _ in range(2)]
    first, second = (ours.n_best(LINES, generator=g, sample=True, n_best=4) for g in generators)
    assert first == second


def test_batches_are_sorted_and_stay_in_budget() -> None:
    sizes = [5, 30, 4, 4, 90, 6, 30, 7]
    batches = by_length(sizes, 60)
    assert sorted(index for batch in batches for index in batch) == list(range(8))
    lengths = [[sizes[index] for index in batch] for batch in batches]
    assert [length for batch in lengths for length in batch] == [4, 4, 5, 6, 7, 30, 30, 90]
    for batch in lengths:
        assert len(batch) * max(batch) <= 60 or len(batch) == 1


def test_a_translation_that_takes_the_last_position_is_aligned() -> None:
    tokenizer = parts()[1]
    shape = replace(SHAPE, positions="learned", max_positions=12)
    model = shape.build(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)
    [[found]] = Translator(model, tokenizer).n_best(["a"], alignments=True, min_length=13)
    assert isinstance(found.alignment, list)


def test_the_guard_takes_the_best_where_a_bundle_asks_for_several() -> None:
    model, tokenizer = parts()
    several = Translator(model, tokenizer, replace(SEARCH, n_best=3))
    assert several.translate(LINES, guard=True) == ANSWERS
