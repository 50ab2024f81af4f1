"""Text in, text out: a bundle as a translator."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from threading import Event
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from transformer.bundle import load_bundle
from transformer.data.tokenizer import Tokenizer, is_blank
from transformer.errors import UserError
from transformer.inference.batches import like_length, of_pairs
from transformer.inference.forced import align, cross_attention, log_probs
from transformer.inference.guard import Flaw, Verdict, badness, find_flaw, least_bad, stricter
from transformer.inference.lines import listed, refuse_long, split
from transformer.inference.search import Hypothesis, SearchConfig, pad, search
from transformer.kernels import Precision, find_device, find_precision
from transformer.kernels.process import SMALLEST_BATCH, count_workers, in_threads
from transformer.kernels.tensors import transpose_weights
from transformer.models import Seq2Seq
from transformer.settings import settings

Alignment = list[tuple[int, int]]


class Translation(NamedTuple):
    """One translation of a line.

    text: detokenised. score: length-normalised log-probability. log_prob: in nats. pieces: the
    target tokens. alignment: pairs (source word, target word), where asked for; words are what
    spaces separate, counted from 0. verdict: what is wrong with it.
    """

    text: str
    score: float
    log_prob: float
    pieces: list[str]
    alignment: Alignment | None = None
    verdict: Verdict = Verdict()


class Checked(NamedTuple):
    """The best translation of a line, detokenised, and what is wrong with it."""

    text: str
    verdict: Verdict


class Scored(NamedTuple):
    """A given translation under the model: log-probability in nats, and its number of tokens."""

    log_prob: float
    tokens: int


class Translator:
    """Translates lines with a model.

    Args:
        model: any trained model; it is put into evaluation mode.
        tokenizer: the one it was trained with.
        config: search settings used where a call gives none.
        max_tokens: padded source tokens in a batch; CPU cores work on a batch each.
        max_length: longest source line, in tokens. Beyond the lengths that it was trained with
            a model loses text; a bundle knows that length.
        tgt: language that it translates into where a call gives none; a bundle knows it.

    Raises:
        ValueError: when max_tokens or max_length is below 1.
    """

    def __init__(
        self,
        model: Seq2Seq,
        tokenizer: Tokenizer,
        config: SearchConfig | None = None,
        max_tokens: int = 4096,
        max_length: int = 512,
        tgt: str | None = None,
    ) -> None:
        for name, value in (("max_tokens", max_tokens), ("max_length", max_length)):
            if value < 1:
                raise UserError(f"{name} is {value}: it must be 1 or more")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.config = config or SearchConfig()
        self.max_tokens = max_tokens
        self.max_length = min(max_length, model.max_length or max_length)
        self.tgt = tgt
        self.device = next(model.parameters()).device

    @classmethod
    def load(
        cls, folder: str | Path, device: str = "auto", precision: Precision = "auto", **options: int
    ) -> "Translator":
        """Read a bundle.

        Args:
            folder: written by `transformer fit` or `transformer average`.
            device: `auto` takes a CUDA GPU where there is one; or `cpu`, `cuda`, `cuda:1`, `mps`.
            precision: of the weights; `auto` is bfloat16 on a GPU that computes in it, else
                float32.
            options: `max_tokens` and `max_length`, as in the constructor; `max_length` is the
                longest that the bundle was trained with when left out.

        Raises:
            ValueError: when the folder is no bundle, the device is not there, or it is a CPU that
                only emulates the bfloat16 that is asked for.
        """
        device = find_device(device)
        bundle = load_bundle(folder, device)
        model = bundle.model.to(getattr(torch, find_precision(device, precision)))
        transpose_weights(model)
        options.setdefault("max_length", bundle.config["max_length"])
        path, tgt = Path(folder) / "config.json", bundle.config["tgt"]
        config = settings(SearchConfig, bundle.config["search"], path, "search")
        return cls(model, bundle.tokenizer, config, **options, tgt=tgt)

    def encode(
        self, lines: Iterable[str], to: str | None = None, limit: int | None = None
    ) -> list[list[int]]:
        """The ids of source lines that are to be translated into the language `to`.

        Args:
            lines: source sentences, untokenised.
            to: of a model with tags; the bundle's when left out.
            limit: tokens of the longest line, such as `max_length`; none when left out.

        Raises:
            LineError: when a line is no text, or too long; a ValueError.
            ValueError: when the model does not translate into the language.
        """
        lines, to = listed(lines), to or self.tgt
        if to != self.tgt and not self.tokenizer.tags:
            raise UserError(
                f"this model translates into {self.tgt or 'one language'} alone: "
                "it was trained without data.tags"
            )
        ids = self.tokenizer.encode_src(lines, to)
        refuse_long(ids, limit)
        return ids

    def translate(
        self,
        lines: Sequence[str],
        *,
        to: str | None = None,
        too_long: Literal["refuse", "split"] = "refuse",
        guard: bool = False,
        **overrides: Any,
    ) -> list[str]:
        """The best translation of each line; an empty line stays empty.

        Args:
            lines: source sentences, untokenised.
            to: language to translate into, of a model with tags; the bundle's when left out.
            too_long: what becomes of a line above `max_length`: refused with its number, or split
                at sentence ends (else at spaces) into parts that are translated one by one.
            guard: decode again, with `stricter` settings, what loops, is empty or blows up; the
                least bad translation is taken.
            overrides: fields of `SearchConfig`, such as beam=1; `prefix` and `generator` as in
                `n_best`, but no prefix with split lines.

        Raises:
            TypeError: for a text in place of a list.
            LineError: when a line is no text, or too long and not to be split; a ValueError.
            ValueError: when `to` is unknown.
        """
        found = self.checked(lines, to=to, too_long=too_long, guard=guard, **overrides)
        return [line.text for line in found]

    def checked(
        self,
        lines: Sequence[str],
        *,
        to: str | None = None,
        too_long: Literal["refuse", "split"] = "refuse",
        guard: bool = False,
        **overrides: Any,
    ) -> list[Checked]:
        """The same as `translate`, with what is wrong: in a split line the worst of its parts."""
        lines = listed(lines)
        if too_long == "split" and overrides.get("prefix"):
            raise UserError("a prefix goes with whole lines: leave it out, or too_long='split'")
        parts = [[line] for line in lines]
        if too_long == "split":
            parts = [split(line, lambda part: self._fits(part, to)) for line in lines]
        flat = [part for line in parts for part in line]
        _, found, verdicts = self._search(flat, to=to, guard=guard, **overrides)
        texts = self.tokenizer.decode([hypotheses[0].ids for hypotheses in found])
        best = zip(texts, (verdict for verdict, *_ in verdicts), strict=True)
        return [_joined([next(best) for _ in line]) for line in parts]

    def n_best(
        self,
        lines: Sequence[str],
        *,
        to: str | None = None,
        prefix: str = "",
        alignments: bool = False,
        generator: torch.Generator | None = None,
        guard: bool = False,
        **overrides: Any,
    ) -> list[list[Translation]]:
        """The `n_best` translations of each line, best first.

        Args:
            lines: source sentences, untokenised.
            to: language to translate into, of a model with tags; the bundle's when left out.
            prefix: text with which every translation must begin.
            alignments: also say which source word each target word looked at most.
            generator: source of randomness when sampling.
            guard: as in `translate`; it takes one translation, so `n_best` must be 1.
            overrides: fields of `SearchConfig`, such as beam=5, n_best=5.

        Raises:
            TypeError: for a text in place of a list.
            LineError: when a line is no text, or too long; a ValueError.
            ValueError: when `to` is unknown, or `guard` goes with several translations.
        """
        ids, found, verdicts = self._search(
            lines, to=to, prefix=prefix, generator=generator, guard=guard, **overrides
        )
        aligned = self._alignments(ids, found) if alignments else repeat(None)
        return [self._translations(*line, aligned) for line in zip(found, verdicts, strict=True)]

    def _search(
        self,
        lines: Sequence[str],
        *,
        to: str | None = None,
        prefix: str = "",
        generator: torch.Generator | None = None,
        guard: bool = False,
        **overrides: Any,
    ) -> tuple[list[list[int]], list[list[Hypothesis]], list[list[Verdict]]]:
        """The source ids, hypotheses and verdicts of each line, as `n_best` describes them."""
        config = replace(self.config, **overrides)
        if guard and config.n_best > 1:
            raise UserError(f"guard takes the best alone, n_best is {config.n_best}: leave one out")
        lines = listed(lines)
        ids = self.encode(lines, to, self.max_length)
        forced = self.tokenizer.encode_tgt(listed([prefix], "prefix"))[0][:-1]
        filled = [index for index, line in enumerate(lines) if not is_blank(line)]
        found = [[Hypothesis([], 0.0, 0.0)] for _ in lines]
        verdicts = [[Verdict()] for _ in lines]
        rows = [ids[index] for index in filled]
        results = self.search(rows, config, forced, generator)
        before = self._decode_again(rows, results, config, forced, generator) if guard else {}
        for place, (index, hypotheses) in enumerate(zip(filled, results, strict=True)):
            flaws = [find_flaw([*forced, *ids[index]], hypothesis) for hypothesis in hypotheses]
            found[index] = hypotheses
            verdicts[index] = [Verdict(flaw, before.get(place)) for flaw in flaws]
        return ids, found, verdicts

    def _decode_again(
        self,
        rows: list[list[int]],
        found: list[list[Hypothesis]],
        config: SearchConfig,
        forced: list[int],
        generator: torch.Generator | None,
    ) -> dict[int, Flaw]:
        """Replace each best hypothesis that has a flaw; which flaws the rows had before."""
        given = [[*forced, *row] for row in rows]
        flaws = [find_flaw(ids, best) for ids, (best, *_) in zip(given, found, strict=True)]
        before = {index: flaw for index, flaw in enumerate(flaws) if flaw}
        results = self.search(
            [rows[index] for index in before], stricter(config), forced, generator
        )
        for index, others in zip(before, results, strict=True):
            found[index] = [least_bad(given[index], [found[index][0], *others])]
        return before

    def search(
        self,
        ids: Sequence[list[int]],
        config: SearchConfig,
        prefix: Sequence[int] = (),
        generator: torch.Generator | None = None,
    ) -> list[list[Hypothesis]]:
        """The hypotheses of sentences that are token ids already, best first.

        Args:
            ids: of each source sentence, EOS last.
            config: search settings.
            prefix: target ids with which every hypothesis begins.
            generator: source of randomness when sampling.
        """

        def search_batch(batch: list[int], stop: Event) -> list[list[Hypothesis]]:
            src, lengths = pad([ids[index] for index in batch], self.device)
            prefixes = [list(prefix)] * len(batch)
            return search(self.model, src, lengths, config, prefixes, generator, stop)

        # Samples are drawn in a fixed order, so that they depend on the seed alone.
        workers = 1 if config.sample else count_workers(self.device)
        lengths = [len(row) for row in ids]
        budget = min(self.max_tokens, max(sum(lengths) // workers, SMALLEST_BATCH))
        batches = list(like_length(lengths, budget))[::-1]  # the longest first
        found: list[list[Hypothesis]] = [[] for _ in ids]
        for batch, results in zip(batches, in_threads(search_batch, batches, workers), strict=True):
            for index, hypotheses in zip(batch, results, strict=True):
                found[index] = hypotheses
        return found

    def score(
        self, src_lines: Sequence[str], tgt_lines: Sequence[str], to: str | None = None
    ) -> list[Scored]:
        """Forced decoding: how probable each given translation is, its end symbol included.

        The probability is of the pieces that the tokenizer cuts the target into. A search may
        spell the same text with other pieces: then its `log_prob` is another one.

        Raises:
            TypeError: for a text in place of a list.
            LineError: when a line is no text, or has more tokens than there are positions; a
                ValueError.
            ValueError: when there are not as many targets as sources, or `to` is unknown.
        """
        pairs = self.encode_pairs(src_lines, tgt_lines, to)
        found = of_pairs(partial(log_probs, self.model), pairs, self.max_tokens)
        return [Scored(log_prob, len(tgt)) for log_prob, (_, tgt) in zip(found, pairs, strict=True)]

    def encode_pairs(
        self, src_lines: Iterable[str], tgt_lines: Iterable[str], to: str | None = None
    ) -> list[tuple[list[int], list[int]]]:
        """Source and target ids of given translations; raises what `score` does."""
        limit = self.model.max_length
        src, targets = self.encode(src_lines, to, limit), listed(tgt_lines, side="target")
        if len(src) != len(targets):
            raise UserError(
                f"{len(src)} source lines and {len(targets)} target lines: give one "
                "target for each source"
            )
        tgt = self.tokenizer.encode_tgt(targets)
        refuse_long(tgt, limit, side="target")
        return list(zip(src, tgt, strict=True))

    def attention(
        self, src_line: str, tgt_line: str, to: str | None = None
    ) -> tuple[Tensor, list[str], list[str]]:
        """Cross-attention of a sentence pair, to be looked at.

        Returns:
            Weights (L, H, T, S), the S source pieces and the T target pieces.
        """
        src = self.encode([src_line], to)[0]
        tgt = self.tokenizer.encode_tgt([tgt_line])[0]
        (weights,) = cross_attention(self.model, [src], [tgt])
        return weights, self.tokenizer.src_pieces(src), self.tokenizer.tgt_pieces(tgt)

    def _translations(
        self,
        hypotheses: list[Hypothesis],
        verdicts: list[Verdict],
        aligned: Iterator[Alignment | None],
    ) -> list[Translation]:
        texts = self.tokenizer.decode([hypothesis.ids for hypothesis in hypotheses])
        return [
            Translation(
                text,
                hypothesis.score,
                hypothesis.log_prob,
                self.tokenizer.tgt_pieces(hypothesis.ids),
                next(aligned),
                verdict,
            )
            for text, hypothesis, verdict in zip(texts, hypotheses, verdicts, strict=True)
        ]

    def _alignments(
        self, ids: list[list[int]], found: list[list[Hypothesis]]
    ) -> Iterator[Alignment]:
        """That of each hypothesis of each line, in their order."""
        lines = zip(ids, found, strict=True)
        pairs = [(src, hypothesis.ids) for src, line in lines for hypothesis in line]
        return iter(of_pairs(partial(align, self.model, self.tokenizer), pairs, self.max_tokens))

    def _fits(self, line: str, to: str | None) -> bool:
        return len(self.encode([line], to)[0]) <= self.max_length


def _joined(parts: Sequence[tuple[str, Verdict]]) -> Checked:
    """The parts of a line as one; of each kind of flaw the worst."""
    texts, verdicts = zip(*parts, strict=True)
    flaws = zip(*verdicts, strict=True)
    return Checked(" ".join(texts), Verdict(*(max(kind, key=badness) for kind in flaws)))
