"""What loops, is empty or too long, and what becomes of it; with a model that does all of these."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from transformer.__main__ import main
from transformer.commands import text
from transformer.data.tokenizer import BOS, EOS, UNK, TokenizerConfig
from transformer.data.tokenizer_training import train_tokenizer
from transformer.inference.engines import TorchEngine
from transformer.inference.guard import (
    PERIOD,
    count_repeats,
    find_flaw,
    flaw_rates,
    least_bad,
    stricter,
)
from transformer.inference.search import Hypothesis, SearchConfig
from transformer.inference.translator import Translator
from transformer.models.attention import padding_mask
from transformer.models.seq2seq import Memory, Seq2Seq

WORDS = ["loops", "empties", "wanders", "salad", "fin", "dot.", *(f"w{i}" for i in range(80))]
KIND = TokenizerConfig(kind="word", min_frequency=1)
TOKENIZER = train_tokenizer(KIND, lambda: [(" ".join(WORDS), "")])
LOOPS, EMPTIES, WANDERS, SALAD, FIN = TOKENIZER.encode_src([" ".join(WORDS[:5])])[0][:-1]


class Standing:
    """A state that knows the source alone."""

    def __init__(self, src: Tensor) -> None:
        self.src = src

    def reorder(self, beams: Tensor) -> None:
        pass

    def keep(self, sentences: Tensor) -> None:
        self.src = self.src[sentences]


class Habits(Seq2Seq):
    """Repeats a word, says nothing, never ends, or copies: the first source word tells which."""

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))

    def describe(self) -> str:
        return "A model of bad habits"

    def encode(self, src: Tensor, src_lengths: Tensor) -> Memory:
        return Memory(src, src_lengths, padding_mask(src_lengths, src.size(1)))

    def decode(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def project(self, hidden: Tensor) -> Tensor:
        return hidden

    def start(self, memory: Memory, beams: int = 1) -> Standing:
        return Standing(memory.hidden)

    def step(self, token: Tensor, state: Any) -> Tensor:
        logits = torch.zeros(*token.shape, TOKENIZER.tgt_vocab_size)
        for row, words in enumerate(state.src.tolist()):
            for beam, last in enumerate(token[row].tolist()):
                copied = dict(zip([BOS, *words], words, strict=False)).get(last, EOS)
                habit = {
                    LOOPS: [EOS] if last == FIN else [SALAD, FIN],
                    EMPTIES: [EOS, SALAD],
                    WANDERS: [max(last, UNK) + 1],
                }
                for place, likely in enumerate(habit.get(words[0], [copied])):
                    logits[row, beam, likely] = 30.0 - 10.0 * place
        return logits


def ours(max_length: int = 512, **options: Any) -> Translator:
    search = SearchConfig(**{"beam": 1, "max_extra": 20, **options})
    return Translator(Habits(), TOKENIZER, search, max_length=max_length)


@pytest.mark.parametrize(
    ("ids", "times"),
    [
        ([], 1),
        ([7], 1),
        ([7, 8, 9], 1),
        ([7, 7], 2),
        ([5, 7, 7, 7, 8], 3),
        ([7, 8, 7, 8, 7, 8, 7], 3),
        ([7, 8, 7, 9, 7, 8], 1),  # not in a row
        ([*range(PERIOD)] * 4, 4),
        ([*range(PERIOD + 1)] * 4, 1),
    ],
)
def test_repeats_in_a_row(ids: list[int], times: int) -> None:
    assert count_repeats(ids) == times


@pytest.mark.parametrize(
    ("given", "ids", "flaw"),
    [
        ([8, EOS], [7, 7, 7, 7], "loop"),
        ([8, EOS], [7, 7, 7], None),  # "no, no, no"
        ([8, 9, 10, EOS], [5, 7, 8, 9, 7, 8, 9, 7, 8, 9, 7, 8, 9], "loop"),
        ([8, 8, 8, 8, EOS], [7, 7, 7, 7], None),  # as in the source
        ([8, 8, 8, EOS], [7] * 6, None),  # in smaller pieces
        ([8, 8, 8, EOS], [7] * 7, "loop"),
        ([UNK, UNK, UNK, UNK, EOS], [7] * 4, "loop"),  # different words, all unknown
        ([8, EOS], [], "empty"),
        ([8, EOS], [UNK, UNK], "empty"),  # decoding drops it
        ([8, EOS], [UNK, 7], None),
        ([8, EOS], [*range(10, 26)], None),
        ([8, EOS], [*range(10, 27)], "blow_up"),
        ([8, EOS], [7] * 27, "loop"),  # the worse of two
    ],
)
def test_flaws(given: list[int], ids: list[int], flaw: str | None) -> None:
    assert find_flaw(given, Hypothesis(ids, 0.0, 0.0)) == flaw


def test_what_the_limit_cut_off_has_a_flaw() -> None:
    assert find_flaw([8, EOS], Hypothesis([7], 0.0, 0.0, ended=False)) == "blow_up"
    assert find_flaw([8, EOS], Hypothesis([7], 0.0, 0.0, ended=True)) is None


def test_rates_are_shares_of_all() -> None:
    found = flaw_rates(["loop", None, "loop", "empty"])
    assert found == {"loop_rate": 0.5, "empty_rate": 0.25, "blow_up_rate": 0.0}
    assert set(flaw_rates([]).values()) == {0.0}


def test_the_least_bad_comes_first() -> None:
    empty, loop, long, good, better = (
        Hypothesis(ids, score, 0.0) for ids, score in
        [([], 0.0), ([7] * 9, -1.0), ([*range(10, 60)], -2.0), ([7], -3.0), ([8], -2.5)]
    )  # fmt: skip
    given = [5, EOS]
    assert least_bad(given, [empty, loop]) == loop
    assert least_bad(given, [loop, long]) == long
    assert least_bad(given, [empty, loop, long, good, better]) == good  # in the order of the search
    assert least_bad(given, [loop, Hypothesis([8] * 9, 9.0, 0.0)]) == loop


def test_stricter_keeps_what_is_stricter_already() -> None:
    found = stricter(SearchConfig(beam=5, no_repeat_ngram=2, min_length=4))
    assert (found.n_best, found.no_repeat_ngram, found.min_length) == (5, 2, 4)
    found = stricter(SearchConfig(sample=True))
    assert (found.n_best, found.no_repeat_ngram, found.min_length) == (1, 3, 1)


LINES = ["w1 w2", "loops w1", "", "empties", "w3", "wanders"]


def test_flaws_are_found_and_decoded_again() -> None:
    plain, guarded = ours().checked(LINES), ours().checked(LINES, guard=True)
    assert [line.text for line in plain[:5]] == ["w1 w2", "salad " * 22 + "salad", "", "", "w3"]
    none = (None, None)
    flaws: list[Any] = [none, ("loop", None), none, ("empty", None), none, ("blow_up", None)]
    assert [line.verdict for line in plain] == flaws
    # No trigram twice, and one token at least; what never ends is cut at the limit all the same.
    mended = ["w1 w2", "salad salad salad fin", "", "salad", "w3", plain[5].text]
    assert [line.text for line in guarded] == mended
    after = [none, (None, "loop"), none, (None, "empty"), none, ("blow_up", "blow_up")]
    assert [line.verdict for line in guarded] == after
    assert ours().translate(LINES, guard=True) == [line.text for line in guarded]


def test_only_what_has_a_flaw_is_decoded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def counted(self: TorchEngine, ids: Any, *rest: Any) -> Any:
        sizes.append(len(ids))
        return searched(self, ids, *rest)

    searched = TorchEngine.search
    monkeypatch.setattr(TorchEngine, "search", counted)
    ours().translate(LINES)
    ours().translate(LINES, guard=True)
    assert sizes == [5, 5, 3]


@pytest.mark.parametrize(("again", "kept"), [([[]], SALAD), ([[], [FIN]], FIN)])
def test_the_first_translation_stays_unless_there_is_a_better_one(
    monkeypatch: pytest.MonkeyPatch, again: list[list[int]], kept: int
) -> None:
    results = iter([[[[SALAD] * 9]], [again]])  # of the two searches, for one line
    monkeypatch.setattr(
        TorchEngine,
        "search",
        lambda *args: [[Hypothesis(ids, 0.0, 0.0) for ids in found] for found in next(results)],
    )
    found = ours().n_best(["loops"], guard=True)[0]
    assert len(found) == 1
    assert found[0].text.split()[0] == TOKENIZER.decode([[kept]])[0]


def test_the_worst_part_of_a_split_line_counts() -> None:
    line = "w1 dot. loops dot. empties w2"
    found = ours(max_length=3).checked([line, "w1"], too_long="split", guard=True)
    assert found[0][:2] == ("w1 dot. salad salad salad fin salad", (None, "empty"))
    assert found[1][:2] == ("w1", (None, None))
    assert ours(max_length=3).checked([line], too_long="split")[0].verdict == ("empty", None)


def test_each_of_the_n_best_has_its_verdict() -> None:
    found = ours(beam=2).n_best(["empties"], n_best=2)[0]
    assert [(t.text, t.verdict.flaw) for t in found] == [("", "empty"), ("salad", None)]
    found = ours(beam=2).n_best(["empties"], guard=True)[0]
    assert [(t.text, t.verdict) for t in found] == [("salad", (None, "empty"))]
    with pytest.raises(ValueError, match="guard takes the best alone, n_best is 2"):
        ours(beam=2).n_best(["w1"], n_best=2, guard=True)


def test_a_forced_prefix_may_repeat_itself() -> None:
    prefix = " ".join(["w1"] * 40)
    found = ours().n_best(["w1"], prefix=prefix, guard=True)[0][0]
    assert found.text == prefix
    assert found.verdict == (None, None)
    assert ours().n_best(["loops"], prefix="salad")[0][0].verdict.flaw == "loop"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Runs `translate` with the model of bad habits: code, standard output, standard error."""
    monkeypatch.setattr(Translator, "load", lambda *args, **options: ours(beam=2))

    def translate(*args: str) -> tuple[int, list[str], list[str]]:
        code = main(["translate", "bundle", "--beam", "1", *args])
        printed = capsys.readouterr()
        return code, printed.out.splitlines(), printed.err.splitlines()

    return translate


def test_translate_names_flaws_on_standard_error(run: Any, tmp_path: Path) -> None:
    code, out, err = run(*LINES)
    assert (code, out) == (0, ours().translate(LINES))
    hint = "--guard decodes such lines again"
    assert err == [
        f"transformer: warning: text 2: the translation repeats itself; {hint}",
        f"transformer: warning: text 4: the translation is empty; {hint}",
        f"transformer: warning: text 6: the translation is far too long or has no end; {hint}",
    ]
    assert run("w1 w2", "") == (0, ["w1 w2", ""], [])
    file = tmp_path / "text"
    file.write_text("w1\nloops\n")
    _, out, err = run("--input", str(file), "--scores")
    assert [row.count("\t") for row in out] == [2, 2]
    assert err == [f"transformer: warning: {file}, line 2: the translation repeats itself; {hint}"]


def test_guard_says_what_it_did(run: Any) -> None:
    code, out, err = run("--guard", *LINES)
    assert (code, out) == (0, ours().translate(LINES, guard=True))
    start, long = "transformer: warning: text", "is far too long or has no end"
    assert err == [
        f"{start} 2: the translation repeats itself; decoded again, that is mended",
        f"{start} 4: the translation is empty; decoded again, that is mended",
        f"{start} 6: the translation {long}; decoded again, it still {long}",
    ]
    assert run("--guard", "--scores", "loops")[1][0].endswith("\tsalad salad salad fin")
    code, out, err = run("--guard", "--beam", "2", "--n_best", "2", "w1")
    assert (code, out) == (2, [])
    assert err == ["transformer: error: guard takes the best alone, n_best is 2: leave one out"]


def test_many_flaws_are_counted(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "CHUNK", 4)
    _, out, err = run(*["loops"] * 9, "empties", "w1", "empties", "loops")
    assert len(out) == 13
    assert [line.split()[3] for line in err[:-1]] == [f"{n}:" for n in range(1, 11)]
    assert err[-1] == "transformer: warning: 12 translations have a flaw (10 loop, 2 empty)"
