"""Text in, text out: a bundle as a translator."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from transformer.bundle import load_bundle
from transformer.data.tokenizer import Tokenizer, is_blank
from transformer.errors import UserError
from transformer.inference.batches import Pair, of_pairs
from transformer.inference.engines import MAX_TOKENS, Engine, EngineName, TorchEngine, make_engine
from transformer.inference.forced import align, cross_attention, log_probs
from transformer.inference.guard import Verdict, find_flaw, least_bad, stricter
from transformer.inference.lines import LineError, listed, refuse_long, split
from transformer.inference.results import Alignment, Scored, Translation, joined
from transformer.inference.search import Hypothesis, SearchConfig, search_of
from transformer.kernels import Precision, find_device
from transformer.models import Seq2Seq


class Translator:
    """Translates lines with a model.

    An engine searches; alignments, attention and scores of given translations are the model's.

    Args:
        model: any trained model; it is put into evaluation mode.
        tokenizer: the one it was trained with.
        config: search settings used where a call gives none.
        max_tokens: padded source tokens in a batch; CPU cores work on a batch each.
        max_length: longest source line, in tokens; beyond that of its training a model loses text.
        tgt: language that it translates into where a call gives none; a bundle knows it.
        engine: what searches; the model itself when left out.

    Raises:
        UserError: when max_tokens or max_length is below 1.
    """

    def __init__(
        self,
        model: Seq2Seq,
        tokenizer: Tokenizer,
        config: SearchConfig | None = None,
        max_tokens: int = MAX_TOKENS,
        max_length: int = 512,
        tgt: str | None = None,
        engine: Engine | None = None,
    ) -> None:
        for name, value in (("max_tokens", max_tokens), ("max_length", max_length)):
            if value < 1:
                raise UserError(f"{name} is {value}: it must be 1 or more")
        self.model, self.tokenizer = model.eval(), tokenizer
        self.config = config or SearchConfig()
        self.engine = engine or TorchEngine(model, max_tokens)
        self.max_length = min(max_length, self.engine.max_length or max_length)
        self.max_tokens, self.tgt = max_tokens, tgt
        self.device = self.engine.device

    @classmethod
    def load(
        cls,
        folder: str | Path,
        device: str = "auto",
        precision: Precision = "auto",
        max_tokens: int = MAX_TOKENS,
        max_length: int | None = None,
        engine: EngineName = "torch",
    ) -> "Translator":
        """Read a bundle.

        Args:
            folder: written by `transformer fit` or `transformer average`; or `org/name` of the
                hub, perhaps with `@revision`.
            device: `auto` takes a CUDA GPU where there is one; or `cpu`, `cuda`, `cuda:1`, `mps`.
            precision: `auto` is bfloat16 on a GPU that computes in it, else float32; `int8` and its
                like are of the engine ctranslate2.
            max_tokens: as in the constructor.
            max_length: as in the constructor; that of the bundle's training when left out.
            engine: `torch`, this package's own search, or `ctranslate2`, which must be installed;
                the bundle is converted for it on the way.

        Raises:
            UserError: when the folder is no bundle, or the device, the precision or the engine is
                not there, or is none for this model.
        """
        device = find_device(device)
        bundle = load_bundle(folder, device if engine == "torch" else "cpu")
        searching = make_engine(engine, bundle, device, precision, max_tokens)
        if max_length is None:
            max_length = bundle.config["max_length"]
        model, tokenizer, config = bundle
        its = search_of(config, folder)
        return cls(model, tokenizer, its, max_tokens, max_length, config["tgt"], searching)

    def encode(
        self, lines: Iterable[str], to: str | None = None, limit: int | None = None
    ) -> list[list[int]]:
        """The ids of source lines that are to be translated into the language `to`.

        Args:
            lines: source sentences, untokenised.
            to: of a model with tags; the bundle's when left out.
            limit: tokens of the longest line, such as `max_length`; none when left out.

        Raises:
            LineError: when a line is no text, or too long.
            UserError: when the model does not translate into the language.
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

    def translate(self, lines: Sequence[str], **options: Any) -> list[str]:
        """The best translation of each line; an empty line stays empty.

        Args:
            lines: source sentences, untokenised.
            options: of `checked`: `to`, `too_long`, `guard`, fields of `SearchConfig`.

        Raises:
            TypeError: for a text in place of a list.
            LineError: when a line is no text, or too long and not to be split.
            UserError: when `to` is unknown.
        """
        return [line.text for line in self.checked(lines, **options)]

    def checked(
        self,
        lines: Sequence[str],
        *,
        to: str | None = None,
        too_long: Literal["refuse", "split"] = "refuse",
        guard: bool = False,
        **overrides: Any,
    ) -> list[Translation]:
        """As `translate`, with what is wrong; in a split line the worst of its parts.

        Args:
            lines: source sentences, untokenised.
            to: language to translate into, of a model with tags; the bundle's when left out.
            too_long: what becomes of a line above `max_length`: refused with its number, or split
                at sentence ends (else at spaces) into parts that are translated one by one.
            guard: decode again, with `stricter` settings, what loops, is empty or blows up; the
                least bad translation is taken.
            overrides: fields of `SearchConfig`; `prefix` (not with split lines) and `generator`.
        """

        def fits(part: str) -> bool:
            return len(self.encode([part], to)[0]) <= self.max_length

        lines = listed(lines)
        if too_long not in ("refuse", "split"):
            raise UserError(f"too_long is {too_long!r}: it must be 'refuse' or 'split'")
        if too_long == "split" and overrides.get("prefix"):
            raise UserError("a prefix goes with whole lines: leave it out, or too_long='split'")
        parts = [split(line, fits) if too_long == "split" else [line] for line in lines]
        flat = [part for line in parts for part in line]
        try:
            found = iter(self.n_best(flat, to=to, guard=guard, **{"n_best": 1, **overrides}))
        except LineError as error:
            if too_long != "split":
                raise
            lines_of_parts = [number for number, line in enumerate(parts) for _ in line]
            reason = f"one character has more tokens than {self.max_length}: raise max_length"
            raise LineError(lines_of_parts[error.index], reason, error.side) from None
        return [joined([next(found)[0] for _ in line]) for line in parts]

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
            LineError: when a line is no text, or too long.
            UserError: when `to` is unknown, or `guard` goes with several translations.
        """
        config = replace(self.config, **overrides)
        if guard and config.n_best > 1:
            raise UserError(f"guard takes the best alone, n_best is {config.n_best}: leave one out")
        lines = listed(lines)
        ids = self.encode(lines, to, self.max_length)
        forced = self.tokenizer.encode_tgt(listed([prefix], "prefix"))
        refuse_long(forced, self.engine.max_length, side="prefix")
        # A line may also hold nothing but characters that the tokenizer leaves out.
        least = 1 + bool(self.tokenizer.tags)
        rows = enumerate(zip(lines, ids, strict=True))
        places = [place for place, (line, row) in rows if not is_blank(line) and len(row) > least]
        found = self._search(ids, places, forced[0][:-1], config, guard, generator)
        pairs = [(src, one.ids) for src, line in zip(ids, found, strict=True) for one, _ in line]
        texts = iter(self.tokenizer.decode([tgt for _, tgt in pairs]))
        aligned: Iterator[Alignment | None] = repeat(None)
        if alignments:
            compute = partial(align, self.model, self.tokenizer)
            aligned = iter([*of_pairs(compute, pairs, self.max_tokens)])
        return [
            [
                Translation(next(texts), verdict, one.score, one.log_prob, next(aligned))
                for one, verdict in line
            ]
            for line in found
        ]

    def _search(
        self,
        ids: list[list[int]],
        places: list[int],
        forced: list[int],
        config: SearchConfig,
        guard: bool,
        generator: torch.Generator | None,
    ) -> list[list[tuple[Hypothesis, Verdict]]]:
        """What is found for each source, best first; only those at `places` are searched for."""
        found = [[(Hypothesis([], 0.0, 0.0), Verdict())] for _ in ids]
        for attempt in (config, stricter(config)) if guard else (config,):
            rows = [ids[place] for place in places]
            results = self.engine.search(rows, attempt, forced, generator)
            for place, hypotheses in zip(places, results, strict=True):
                given, (first, verdict) = [*forced, *ids[place]], found[place][0]
                if verdict.flaw:
                    hypotheses = [least_bad(given, [first, *hypotheses])]
                found[place] = [
                    (one, Verdict(find_flaw(given, one), verdict.flaw)) for one in hypotheses
                ]
            places = [place for place in places if found[place][0][1].flaw]
        return found

    def score(
        self, src_lines: Sequence[str], tgt_lines: Sequence[str], to: str | None = None
    ) -> list[Scored]:
        """Forced decoding: how probable each given translation is, its end symbol included.

        The probability is of the pieces that the tokenizer cuts the target into. A search may
        spell the same text with other pieces: then its `log_prob` is another one.

        Raises:
            TypeError: for a text in place of a list.
            LineError: when a line is no text, or has more tokens than the model has positions.
            UserError: when there are not as many targets as sources, or `to` is unknown.
        """
        pairs = self.encode_pairs(src_lines, tgt_lines, to)
        found = of_pairs(partial(log_probs, self.model), pairs, self.max_tokens)
        return [Scored(log_prob, len(tgt)) for log_prob, (_, tgt) in zip(found, pairs, strict=True)]

    def encode_pairs(
        self, src_lines: Iterable[str], tgt_lines: Iterable[str], to: str | None = None
    ) -> list[Pair]:
        """Source and target ids of given translations; raises what `score` does."""
        limit = self.model.max_length
        src, targets = self.encode(src_lines, to, limit), listed(tgt_lines, side="target")
        if len(src) != len(targets):
            counts = f"{len(src)} source lines and {len(targets)} target lines"
            raise UserError(f"{counts}: give one target for each source")
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
        [(src, tgt)] = pairs = self.encode_pairs([src_line], [tgt_line], to)
        [weights] = cross_attention(self.model, pairs)
        return weights, self.tokenizer.pieces("src", src), self.tokenizer.pieces("tgt", tgt)
