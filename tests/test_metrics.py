"""The scores against sacreBLEU's own, over batches, processes and kinds of text."""

import importlib.util
import json
import pickle
import random
import subprocess
import sys
from pathlib import Path
from unicodedata import normalize

import pytest
import sacrebleu
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from transformer.evaluation.metrics import (
    TranslationScore,
    bleu_by_length,
    bleu_of_longest_third,
    paired_bootstrap,
)

KOREAN = importlib.util.find_spec("mecab_ko") is not None
HYPOTHESES = [
    "The cat sat on the mat.",
    "",
    "A man is riding a bicycle, isn't he?",
    "나는 학생이다.",
    "我喜欢吃苹果。",
    "colourless green ideas sleep furiously tonight",
    "The the the the",
]
REFERENCES = [
    "The cat is sitting on the mat.",
    "Nothing to see here.",
    "A man is riding a bike, isn't he?",
    "나는 선생님이다.",
    "我喜欢吃香蕉。",
    "Colourless green ideas slept furiously tonight",
    "",
]


def expected(tokenize: str = "13a", lowercase: bool = False) -> dict[str, float]:
    bleu = sacrebleu.corpus_bleu(HYPOTHESES, [REFERENCES], tokenize=tokenize, lowercase=lowercase)
    chrf = sacrebleu.metrics.CHRF(lowercase=lowercase).corpus_score(HYPOTHESES, [REFERENCES])
    return {"bleu": bleu.score, "chrf": chrf.score}


@pytest.mark.parametrize("lowercase", [False, True])
@pytest.mark.parametrize("tokenize", ["13a", "none", "zh", "char", "intl", "ko-mecab"])
def test_scores_are_sacrebleus(tokenize: str, lowercase: bool) -> None:
    if tokenize == "ko-mecab" and not KOREAN:
        pytest.skip("sacrebleu[ko] is not installed")
    score = TranslationScore(tokenize, lowercase)
    for start in range(0, len(HYPOTHESES), 3):
        score.update(HYPOTHESES[start : start + 3], REFERENCES[start : start + 3])
    assert score.compute() == expected(tokenize, lowercase)


def test_an_accent_is_the_same_in_one_character_and_in_two() -> None:
    texts = ["Déjà vu, naïve Müllerstraße.", "나는 학생이다.", "Tiếng Việt rất hay."]
    apart = [normalize("NFD", text) for text in texts]
    assert all(one != two for one, two in zip(texts, apart, strict=True))
    for hypotheses, references in ((texts, apart), (apart, texts)):
        score = TranslationScore()
        score.update(hypotheses, references)
        assert score.compute() == pytest.approx({"bleu": 100, "chrf": 100})
        assert score.once(list(zip(hypotheses, references, strict=True))) == pytest.approx(100)
        compared = paired_bootstrap(score, hypotheses, references, references)
        assert (compared.before, compared.after) == pytest.approx((100, 100))


def test_case_and_tokenizer_change_the_score() -> None:
    options = [("13a", False), ("char", False), ("13a", True)]
    assert len({expected(name, lowercase)["bleu"] for name, lowercase in options}) == 3


def test_counts_do_not_overflow_or_round() -> None:
    score = TranslationScore()
    score.update(HYPOTHESES, REFERENCES)
    score.bleu_statistics *= 1_000_000_007
    assert score.bleu_statistics.dtype == torch.long
    assert score.compute()["bleu"] == pytest.approx(expected()["bleu"], rel=1e-12)


def test_empty_text_scores_zero() -> None:
    score = TranslationScore()
    score.update([], [])
    score.update(["", ""], ["a reference", "another"])
    assert score.compute() == {"bleu": 0.0, "chrf": 0.0}


def test_reset_forgets() -> None:
    score = TranslationScore()
    score.update(["completely wrong"], ["no overlap here at all"])
    score.reset()
    score.update(HYPOTHESES, REFERENCES)
    assert score.compute() == expected()


def test_signatures_are_sacrebleus_before_and_after_an_update() -> None:
    bleu = sacrebleu.metrics.BLEU(tokenize="zh", lowercase=True)
    bleu.corpus_score(HYPOTHESES, [REFERENCES])
    chrf = sacrebleu.metrics.CHRF(lowercase=True)
    chrf.corpus_score(HYPOTHESES, [REFERENCES])
    score = TranslationScore("zh", lowercase=True)
    for _ in range(2):
        assert score.signature == bleu.get_signature().format()
        assert score.chrf_signature == chrf.get_signature().format()
        score.update(HYPOTHESES, REFERENCES)


def test_different_counts_are_refused() -> None:
    with pytest.raises(ValueError, match="2 hypotheses, but 1 references"):
        TranslationScore().update(["a", "b"], ["a"])


def test_unknown_tokenizer_names_the_nearest() -> None:
    with pytest.raises(ValueError, match="no tokenizer 'ko_mecab', the nearest is 'ko-mecab'"):
        TranslationScore("ko_mecab")


@pytest.mark.skipif(KOREAN, reason="sacrebleu[ko] is installed")
def test_missing_package_is_named() -> None:
    with pytest.raises(ValueError, match=r"'ko-mecab': .*pip install sacrebleu\[ko\]"):
        TranslationScore("ko-mecab")


def test_pickles_with_its_state() -> None:
    score = TranslationScore()
    score.update(HYPOTHESES, REFERENCES)
    assert pickle.loads(pickle.dumps(score)).compute() == expected()


def score_a_share(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    score = TranslationScore()
    # Unequal shares: one process has no line of the last batch.
    for start in ([0, 4], [2])[rank]:
        score.update(HYPOTHESES[start : start + 2], REFERENCES[start : start + 2])
    if rank == 0:
        score.update(HYPOTHESES[6:], REFERENCES[6:])
    torch.save(score.compute(), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_score_as_one(tmp_path: Path) -> None:
    mp.spawn(score_a_share, (str(tmp_path),), nprocs=2)
    for rank in range(2):
        assert torch.load(tmp_path / f"{rank}.pt") == expected()


def test_paired_bootstrap_is_sacrebleus_command(tmp_path: Path) -> None:
    """The command `sacrebleu --paired-bs` says the same."""
    names = ("before", "after", "refs")
    rng = random.Random(0)
    references = [" ".join(rng.choices("abcdefgh", k=12)) for _ in range(60)]
    before = [line.replace("a", "b") for line in references]
    after = [line.replace("a", "b").replace("c d", "d c") for line in references]
    for name, lines in zip(names, (before, after, references), strict=True):
        (tmp_path / name).write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-m", "sacrebleu", "refs", "-i", "before", "after", "--paired-bs"]
    done = subprocess.run([*command, "-f", "json"], cwd=tmp_path, capture_output=True, check=True)
    theirs = [row["BLEU"] for row in json.loads(done.stdout)]
    found = paired_bootstrap(TranslationScore(), before, after, references)
    for mine, row in zip(((found[0], found[1]), (found[2], found[3])), theirs, strict=True):
        assert mine == pytest.approx((row["score"], row["ci"]))
    assert found.p_value == pytest.approx(theirs[1]["p_value"], abs=1e-4)
    assert paired_bootstrap(TranslationScore(), before, before, references).p_value == 1.0


def test_bleu_by_length_is_sacrebleus_of_each_bin() -> None:
    sources = ["a", "a b c d e", "a b c d e f", " ".join("abcdefghijkl")]
    references = ["one two three four five", "the cat sat on the mat", "x y z w v", "p q r s t u"]
    hypotheses = ["one two three four six", "the cat sat on a mat", "x y z w v", "p q r u t s"]
    score = TranslationScore(tokenize="none")
    rows = list(zip(sources, hypotheses, references, strict=True))
    bins = bleu_by_length(score, rows)
    assert [b[:3] for b in bins] == [[1, 5, 2], [6, 10, 1], [11, 15, 1]]
    for bin_, rows_ in zip(bins, ([0, 1], [2], [3]), strict=True):
        expected = sacrebleu.corpus_bleu(
            [hypotheses[i] for i in rows_], [[references[i] for i in rows_]], tokenize="none"
        )
        assert bin_[3] == pytest.approx(expected.score)
    longest = sacrebleu.corpus_bleu(hypotheses[2:], [references[2:]], tokenize="none").score
    assert bleu_of_longest_third(score, rows) == pytest.approx(longest)
