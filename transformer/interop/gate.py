"""The parity gate: a model that came in or went out must give the same translations.

Both sides get 64 probes (`probes`), and must agree on

1. the ids of every source sentence;
2. the greedy translation of those ids, in ids and in text;
3. the best of beam 4 without length penalty, likewise. A sentence is done with its 4th finished
   hypothesis, or at a number of tokens that both know. Engines differ in what they prefer where
   both happen at once: one that differs and was cut off must be the same with a token less;
4. the logits of given translations in padded batches, where a side has logits: they differ by at
   most 1e-4, and by 1e-4 of their size where that is above 1. `<pad>` and `<s>` do not count, as
   no translation holds them.

Float noise may decide between two continuations that are all but alike. A translation may differ if
our own search finds it, too, in one of 32 tries with noise of at most 1e-5 on each logit, so that
no difference of weights or tokens is needed to explain it. With more than 4 such near-ties in the
report the gate is shut.
"""

import json
import reprlib
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, Protocol

import torch
from torch import Tensor

from transformer.bundle import Bundle
from transformer.data.tokenizer import BOS, EOS
from transformer.data.tokenizer import Side as TextSide
from transformer.errors import UserError
from transformer.inference.batches import pad
from transformer.inference.search import SearchConfig, search
from transformer.interop.probes import COUNT, probes
from transformer.writing import write

BEAM = 4
BATCH = 16  # sentences of like length that are searched together
PADDED = 8  # sentences of any length whose logits are computed together
LOGITS = 64  # steps of a translation whose logits are computed
EXTRA = 20  # target tokens beyond those of the longest source in a batch
TOLERANCE = 1e-4  # of logits, absolute, and relative where they are above 1
NOISE, TRIES, TIES = 1e-5, 32, 4
REPORT = "parity.json"

Ids = list[int]


class Side(Protocol):
    """One of the two that are compared. All ids are the bundle's, whatever the other's are."""

    name: str  # for messages, such as "Hugging Face"

    def encode(self, lines: list[str]) -> list[Ids]:
        """Source ids of each line, EOS last."""

    def search(self, src: list[Ids], beam: int, limit: int) -> list[Ids]:
        """The best translation of each source without EOS, with no length penalty.

        Args:
            src: a batch of sources, EOS last.
            beam: 1 is greedy.
            limit: tokens with EOS, at which a translation without it counts as it is.
        """

    def logits(self, src: list[Ids], tgt: list[Ids]) -> Tensor | None:
        """Logits (B, T, V) of a padded batch, teacher-forced; None where a side has none.

        Args:
            src: sources, EOS last.
            tgt: targets without BOS and EOS; T is one more than the longest of them, for EOS.
        """

    def decode(self, ids: list[Ids]) -> list[str]:
        """The text of each translation."""


class BundleSide(Side):
    """A bundle's own side, computed in float32 on the CPU; `name` is for messages."""

    def __init__(self, bundle: Bundle, name: str = "the bundle") -> None:
        self.name = name
        self.model, self.tokenizer = bundle.model.float().cpu().eval(), bundle.tokenizer
        longest = bundle.config["max_length"]
        self.max_length = min(longest, self.model.max_length or longest)
        self.to = bundle.config["tgt"]

    def encode(self, lines: list[str]) -> list[Ids]:
        return self.tokenizer.encode_src(lines, self.to)

    def search(self, src: list[Ids], beam: int, limit: int) -> list[Ids]:
        config = SearchConfig(beam=beam, length_norm="none")
        found = search(self.model, *pad(src), config, limit=limit)
        return [hypotheses[0].ids for hypotheses in found]

    @torch.inference_mode()
    def logits(self, src: list[Ids], tgt: list[Ids]) -> Tensor:
        tgt_in, _ = pad([[BOS, *row] for row in tgt])
        return self.model.project(self.model(*pad(src), tgt_in))

    def decode(self, ids: list[Ids]) -> list[str]:
        return self.tokenizer.decode(ids)

    def search_again(self, src: Ids, beam: int, limit: int) -> list[Ids]:
        """What a search finds with noise on the logits, for each of the tries."""
        generator = torch.Generator().manual_seed(0)

        def disturb(_module: Any, _inputs: Any, logits: Tensor) -> Tensor:
            return logits + NOISE * (2 * torch.rand(logits.shape, generator=generator) - 1)

        handle = self.model.output.register_forward_hook(disturb)
        try:
            return self.search([src] * TRIES, beam, limit)
        finally:
            handle.remove()


class Report(NamedTuple):
    """What a gate found.

    Args:
        sides: their names.
        probes: sentences compared; the longest source has `longest` tokens.
        translations: how many were compared; `ties` of them differ by a near-tie.
        logits: how many numbers were compared.
        largest_difference: of two logits, relative where they are above 1; None without logits.
        failure: the first thing that differs, in words.
    """

    sides: list[str]
    probes: int
    longest: int
    translations: int = 0
    ties: int = 0
    logits: int = 0
    largest_difference: float | None = None
    failure: str | None = None


def compare(ours: BundleSide, theirs: Side) -> Report:
    """Sends the probes through both sides, up to the first of the rules that is broken."""
    both = _Comparison(ours, theirs)
    try:
        both.sources()
        greedy = both.translations(1)
        both.translations(BEAM)
        both.logits(greedy)
    except _Differs as failure:
        return both.found._replace(failure=str(failure))
    return both.found


def passed(report: Report, folder: Path, **more: Any) -> None:
    """Writes `parity.json`, with what else is to be told, into the folder of an export or import.

    Raises:
        UserError: something differs: which sentence, and its first token that does.
    """
    text = json.dumps({**report._asdict(), **more}, indent=2, ensure_ascii=False)
    write(folder / REPORT, text + "\n")
    if report.failure:
        raise UserError(
            f"{' and '.join(report.sides)} do not translate alike, so nothing was kept: "
            f"{report.failure}"
        )


class _Differs(Exception):
    """Says what differs first."""


class _Comparison:
    def __init__(self, ours: BundleSide, theirs: Side) -> None:
        self.ours, self.theirs = self.both = ours, theirs
        self.lines = probes(ours.tokenizer, ours.max_length, ours.to)
        self.src = ours.encode(self.lines)
        self.found = Report([ours.name, theirs.name], len(self.src), max(map(len, self.src)))

    def sources(self) -> None:
        """Rule 1."""
        for place, other in enumerate(self.theirs.encode(self.lines)):
            if self.src[place] != other:
                self.differ(place, "src", "source", self.src[place], other)

    def translations(self, beam: int) -> list[Ids]:
        """Rules 2 and 3; returns our side's."""
        ordered = sorted(range(len(self.src)), key=lambda place: len(self.src[place]))
        all_found = [Ids()] * len(ordered)
        for start in range(0, len(ordered), BATCH):
            places = ordered[start : start + BATCH]
            batch = [self.src[place] for place in places]
            limit = min(max(map(len, batch)) + EXTRA, self.ours.max_length)
            rows, others = (side.search(batch, beam, limit) for side in self.both)
            texts = [side.decode(rows) for side in self.both]
            for place, row, other, *read in zip(places, rows, others, *texts, strict=True):
                all_found[place] = row
                self.translation(place, beam, limit, row, other)
                if read[0] != read[1]:
                    self.differ(place, "tgt", "text of the same ids", *map(reprlib.repr, read))
        return all_found

    def translation(self, place: int, beam: int, limit: int, row: Ids, other: Ids) -> None:
        """Two translations are the same, or one of a few near-ties."""
        self.found = self.found._replace(translations=self.found.translations + 1)
        if row != other and limit in (len(row), len(other)):
            limit -= 1
            row, other = (side.search([self.src[place]], beam, limit)[0] for side in self.both)
        if row == other:
            return
        tie = other in self.ours.search_again(self.src[place], beam, limit)
        if not tie or self.found.ties == TIES:
            what = f"beam {beam}" if beam > 1 else "greedy"
            what += f" (a near-tie, after {TIES} others)" if tie else ""
            self.differ(place, "tgt", what, row, other)
        self.found = self.found._replace(ties=self.found.ties + 1)

    def logits(self, tgt: list[Ids]) -> None:
        """Rule 4, of the greedy translations."""
        steps = min(LOGITS, self.ours.max_length)
        for start in range(COUNT // PADDED):
            places = range(start, COUNT, COUNT // PADDED)
            src, cut = [self.src[i] for i in places], [tgt[i][: steps - 1] for i in places]
            other = self.theirs.logits(src, cut)
            if other is None:
                return
            pairs = zip(self.ours.logits(src, cut), other, strict=True)
            for place, row, pair in zip(places, cut, pairs, strict=True):
                self.row_of_logits(place, *(side[: len(row) + 1, EOS:] for side in pair))

    def row_of_logits(self, place: int, ours: Tensor, theirs: Tensor) -> None:
        """Logits (T, V) of one sentence are the same within the tolerance."""
        size = torch.maximum(ours.abs(), theirs.abs()).clamp(min=1)
        difference = torch.where(ours == theirs, 0.0, (ours - theirs).abs() / size)
        largest = difference.max().item()
        before = self.found.largest_difference or 0.0
        self.found = self.found._replace(
            logits=self.found.logits + ours.numel(), largest_difference=max(before, largest)
        )
        if not largest <= TOLERANCE:  # or it is not a number
            step, token = divmod(int(difference.argmax()), ours.size(1))
            values = ours[step, token].item(), theirs[step, token].item()
            self.differ(place, "tgt", f"logits of step {step + 1}, id {token + EOS}", *values)

    def differ(self, place: int, side: TextSide, what: str, ours: Any, theirs: Any) -> NoReturn:
        """Ends the comparison: names the sentence and, of lists, the first token that differs."""
        where = f"probe {place + 1} ({reprlib.repr(self.lines[place])}), {what}"
        if isinstance(ours, list):
            pairs = enumerate(zip_longest(ours, theirs))
            step = next(step for step, (one, other) in pairs if one != other)
            where += f", token {step + 1}"
            ours, theirs = (self.named(side, ids[step : step + 1]) for ids in (ours, theirs))
        raise _Differs(f"{where}: {ours} in {self.ours.name}, {theirs} in {self.theirs.name}")

    def named(self, side: TextSide, ids: Ids) -> str:
        """A token as one reads it."""
        return f"{ids[0]} {self.ours.tokenizer.pieces(side, ids)[0]!r}" if ids else "the end"
