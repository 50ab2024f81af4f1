"""The parity gate passes what is the same, and names what is not."""

from __future__ import annotations

import json
from collections import Counter
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from toys import sentences

from transformer.bundle import Bundle
from transformer.data.tokenizer import BOS, PAD, Tokenizer, TokenizerConfig
from transformer.data.tokenizer_training import train_tokenizer
from transformer.errors import UserError
from transformer.inference.batches import pad
from transformer.interop.gate import BundleSide, Report, compare, passed
from transformer.interop.probes import COUNT, probes
from transformer.models import ModelConfig, Seq2Seq, TransformerConfig

CONFIG = TransformerConfig(d_model=32, d_ff=64, num_heads=2, num_layers=1, dropout=0.0)
PAIRS = sentences(100, seed=1)


@cache
@torch.enable_grad()  # whoever asks first
def taught(
    config: ModelConfig = CONFIG, steps: int = 60, tags: tuple[str, ...] = (), **options: Any
) -> tuple[Seq2Seq, Tokenizer]:
    """A model that has learned so much that its translations end and depend on the source.

    Args:
        config: its shape.
        steps: of training.
        tags: languages, the first of which it learns.
        options: of its tokenizer.
    """
    torch.manual_seed(0)
    vocabulary = TokenizerConfig(**{"vocab_size": 300, **options})
    text = train_tokenizer(vocabulary, lambda: PAIRS, tags)
    model = config.build(text.src_vocab_size, text.tgt_vocab_size)
    src = pad(text.encode_src([pair[0] for pair in PAIRS], tags[0] if tags else None))
    ids = text.encode_tgt([pair[1] for pair in PAIRS])
    tgt_in, tgt = pad([[BOS, *row[:-1]] for row in ids])[0], pad(ids)[0]
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        logits = model.project(model(*src, tgt_in))
        loss = cross_entropy(logits.flatten(0, 1), tgt.flatten(), ignore_index=PAD)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), text


def side(name: str = "the bundle", max_length: int = 40) -> BundleSide:
    model, text = deepcopy(taught())
    return BundleSide(Bundle(model, text, {"max_length": max_length, "tgt": "en"}), name)


def failure(theirs: BundleSide) -> str:
    found = compare(side(), theirs).failure
    assert found is not None
    return found


def test_a_copy_passes(tmp_path: Path) -> None:
    report = compare(side(), side("the copy"))
    assert report.failure is None
    assert report[:6] == (["the bundle", "the copy"], 64, 40, 128, 0, report.logits)
    assert report.logits > 64 * 297
    assert report.largest_difference == 0
    passed(report, tmp_path)
    assert json.loads((tmp_path / "parity.json").read_text()) == report._asdict()


def test_the_translations_are_not_all_alike() -> None:
    ours = side()
    src = ours.encode(probes(ours.tokenizer, 40))
    found = [ours.search([row], 4, 60)[0] for row in src]
    assert len({tuple(row) for row in found}) > 20


@pytest.mark.parametrize("max_length", [1, 5, 40, 300])
def test_probes_fit_and_three_fill_the_room(max_length: int) -> None:
    text = taught()[1]
    lengths = [len(row) for row in text.encode_src(probes(text, max_length))]
    assert len(lengths) == COUNT
    assert max(lengths) == max_length
    assert max_length > 200 or min(lengths[-3:]) > max_length - 3


@torch.no_grad()
def test_one_weight_is_noticed() -> None:
    theirs = side()
    theirs.model.get_parameter("encoder.0.feed_forward.inner.weight")[3, 4] += 0.05
    assert "probe " in failure(theirs)


def test_one_position_is_noticed() -> None:
    theirs = side()
    positions: Any = theirs.model.get_submodule("src_embedding.positions")
    positions(0, 64)
    positions.table = positions.table.clone()
    positions.table[39, 0] += 0.5  # only the longest sources come here
    assert "logits of step" in failure(theirs) or "token" in failure(theirs)


class Other(BundleSide):
    """A side that does one thing wrong."""

    wrong = ""

    def encode(self, lines: list[str]) -> list[list[int]]:
        ids = super().encode(lines)
        if self.wrong == "id":
            ids[20][2] += 1
        return ids

    def search(self, src: list[list[int]], beam: int, limit: int) -> list[list[int]]:
        found = super().search(src, beam, limit)
        if (self.wrong, beam) in (("greedy", 1), ("beam", 4)):
            found[-1] = found[-1][:-1]
        return found

    def logits(self, src: list[list[int]], tgt: list[list[int]]) -> Tensor:
        logits = super().logits(src, tgt).clone()
        if self.wrong == "logits":
            logits[2, 0, 17] += 2e-4 * max(1.0, float(logits[2, 0, 17].abs()))
        logits[:, :, BOS] = -1e9  # never written
        return logits

    def decode(self, ids: list[list[int]]) -> list[str]:
        return [text + "!" * (self.wrong == "text") for text in super().decode(ids)]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("id", "probe 21 ('42')"),
        ("id", "source, token 3: "),
        ("greedy", "greedy, token "),
        ("greedy", "the end in the other"),
        ("beam", "beam 4, token "),
        ("logits", "logits of step 1, id 17: "),
        ("text", "text of the same ids: "),
    ],
)
def test_what_differs_is_named(wrong: str, said: str, tmp_path: Path) -> None:
    theirs = side()
    theirs.__class__, theirs.name = Other, "the other"
    theirs.wrong = ""  # type: ignore[attr-defined]
    assert compare(side(), theirs).failure is None
    theirs.wrong = wrong  # type: ignore[attr-defined]
    report = compare(side(), theirs)
    with pytest.raises(UserError, match="the bundle and the other do not translate alike") as error:
        passed(report, tmp_path)
    assert said in str(error.value)
    assert json.loads((tmp_path / "parity.json").read_text())["failure"] == report.failure


def test_a_side_without_logits_passes() -> None:
    theirs = side()
    theirs.logits = lambda src, tgt: None  # type: ignore[method-assign, assignment, return-value]
    report = compare(side(), theirs)
    assert (report.failure, report.logits, report.largest_difference) == (None, 0, None)
    assert isinstance(report, Report)


@torch.no_grad()
def tie(often: bool) -> tuple[BundleSide, BundleSide]:
    """Two sides for which a token and one that none writes are alike but for float noise."""
    sides = side(), side("the other")
    src = sides[0].encode(probes(sides[0].tokenizer, 40))
    found = Counter(token for row in sides[0].search(src, 1, 40) for token in {*row})
    (token, _), unused = found.most_common()[0 if often else -1], min({*range(4, 300)} - {*found})
    for one, larger in zip(sides, (token, unused), strict=True):
        rows = one.model.get_parameter("src_embedding.tokens.weight")
        rows[unused] = rows[token]
        rows[larger] *= 1 + 1e-6
    return sides


def test_near_ties_are_counted() -> None:
    report = compare(*tie(often=False))
    assert report.failure is None
    assert 1 <= report.ties <= 4


def test_many_near_ties_are_too_many() -> None:
    assert "greedy (a near-tie, after 4 others), token " in str(compare(*tie(often=True)).failure)


def test_a_difference_that_noise_does_not_explain_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformer.interop.gate.NOISE", 0.0)
    assert compare(*tie(often=False)).failure is not None


class Cuts(Other):
    """A side that gives another translation where it has to cut it off."""

    always = False

    def search(self, src: list[list[int]], beam: int, limit: int) -> list[list[int]]:
        found = super().search(src, beam, limit)
        if len(src) > 1 or self.always:
            return [[*row[:-1], 9] if len(row) == limit else row for row in found]
        return found


@pytest.mark.parametrize("always", [False, True])
def test_what_is_cut_off_is_compared_with_a_token_less(always: bool) -> None:
    theirs = side()
    theirs.__class__ = Cuts
    theirs.always = always  # type: ignore[attr-defined]
    assert (compare(side(), theirs).failure is not None) == always
