"""Text in, text out: a bundle as a translator."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from transformer.bundle import load_bundle
from transformer.data.tokenizer import BOS, Tokenizer
from transformer.inference.search import Hypothesis, SearchConfig, pad, search
from transformer.models import Seq2Seq

Precision = Literal["auto", "float32", "bfloat16"]


class Translation(NamedTuple):
    """One translation of a line.

    text: detokenised. score: length-normalised log-probability. log_prob: in nats. pieces: the
    target tokens. alignment: pairs (source word, target word), where asked for; words are what
    spaces separate, counted from 0.
    """

    text: str
    score: float
    log_prob: float
    pieces: list[str]
    alignment: list[tuple[int, int]] | None = None


class Scored(NamedTuple):
    """A given translation under the model: log-probability in nats, and its number of tokens."""

    log_prob: float
    tokens: int


def find_device(name: str) -> str:
    """The device of a name; `auto` is a CUDA GPU where there is one, else the CPU.

    Raises:
        ValueError: when there is no such device here.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here ({reason}): try cpu") from None
    return name


class Translator:
    """Translates lines with a model.

    Args:
        model: any trained model; it is put into evaluation mode.
        tokenizer: the one it was trained with.
        config: search settings used where a call gives none.
        max_tokens: padded source tokens in a batch.
        max_length: longest source line, in tokens. Beyond the lengths that it was trained with
            a model loses text; a bundle knows that length.
    """

    def __init__(
        self,
        model: Seq2Seq,
        tokenizer: Tokenizer,
        config: SearchConfig | None = None,
        max_tokens: int = 2048,
        max_length: int = 512,
    ) -> None:
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.config = config or SearchConfig()
        self.max_tokens = max_tokens
        self.max_length = min(max_length, model.max_length or max_length)
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
            ValueError: when the folder is no bundle, or the device is not there.
        """
        device = find_device(device)
        if precision == "auto":
            # Cards that only emulate bfloat16 are slower with it.
            fast = device.startswith("cuda") and torch.cuda.is_bf16_supported(False)
            precision = "bfloat16" if fast else "float32"
        bundle = load_bundle(folder, device)
        model = bundle.model.to(getattr(torch, precision))
        options.setdefault("max_length", bundle.config["max_length"])
        return cls(model, bundle.tokenizer, SearchConfig(**bundle.config["search"]), **options)

    def translate(
        self,
        lines: Sequence[str],
        *,
        too_long: Literal["refuse", "split"] = "refuse",
        **overrides: Any,
    ) -> list[str]:
        """The best translation of each line; an empty line stays empty.

        Args:
            lines: source sentences, untokenised.
            too_long: what becomes of a line above `max_length`: refused with its number, or split
                at sentence ends (else at spaces) into parts that are translated one by one.
            overrides: fields of `SearchConfig`, such as beam=1.

        Raises:
            ValueError: when a line is too long and is not to be split.
        """
        if isinstance(lines, str):
            raise TypeError(f"give a list of lines, such as [{lines!r}]")
        parts = [self._split(line) if too_long == "split" else [line] for line in lines]
        flat = [part for line in parts for part in line]
        best = iter([found[0].text for found in self.n_best(flat, **overrides)])
        return [" ".join(next(best) for _ in line) for line in parts]

    def n_best(
        self,
        lines: Sequence[str],
        *,
        prefix: str = "",
        alignments: bool = False,
        generator: torch.Generator | None = None,
        **overrides: Any,
    ) -> list[list[Translation]]:
        """The `n_best` translations of each line, best first.

        Args:
            lines: source sentences, untokenised.
            prefix: text with which every translation must begin.
            alignments: also say which source word each target word looked at most.
            generator: source of randomness when sampling.
            overrides: fields of `SearchConfig`, such as beam=5, n_best=5.

        Raises:
            ValueError: when a line is too long.
        """
        config = replace(self.config, **overrides)
        ids = self.tokenizer.encode_src(list(lines))
        for number, row in enumerate(ids, 1):
            self._check_length(row, number)
        forced = self.tokenizer.encode_tgt([prefix])[0][:-1]
        results = [[Translation("", 0.0, 0.0, [], [] if alignments else None)] for _ in lines]
        filled = [index for index, line in enumerate(lines) if line.strip()]
        for batch in self._batches([(index, len(ids[index])) for index in filled]):
            src, lengths = pad([ids[index] for index in batch], self.device)
            found = search(self.model, src, lengths, config, [forced] * len(batch), generator)
            for index, hypotheses in zip(batch, found, strict=True):
                results[index] = self._translations(ids[index], hypotheses, alignments)
        return results

    def score(self, src_lines: Sequence[str], tgt_lines: Sequence[str]) -> list[Scored]:
        """Forced decoding: how probable each given translation is, its end symbol included.

        Raises:
            ValueError: when there are not as many targets as sources.
        """
        if len(src_lines) != len(tgt_lines):
            raise ValueError(
                f"{len(src_lines)} source lines and {len(tgt_lines)} target lines: give one "
                "target for each source"
            )
        src_ids = self.tokenizer.encode_src(list(src_lines))
        tgt_ids = self.tokenizer.encode_tgt(list(tgt_lines))
        sizes = [max(len(s), len(t)) for s, t in zip(src_ids, tgt_ids, strict=True)]
        results = [Scored(0.0, 0)] * len(sizes)
        for batch in self._batches(list(enumerate(sizes))):
            log_probs = self._log_probs([src_ids[i] for i in batch], [tgt_ids[i] for i in batch])
            for index, log_prob in zip(batch, log_probs.tolist(), strict=True):
                results[index] = Scored(log_prob, len(tgt_ids[index]))
        return results

    def attention(self, src_line: str, tgt_line: str) -> tuple[Tensor, list[str], list[str]]:
        """Cross-attention of a sentence pair, to be looked at.

        Returns:
            Weights (L, H, T, S), the S source pieces and the T target pieces.
        """
        src = self.tokenizer.encode_src([src_line])[0]
        tgt = self.tokenizer.encode_tgt([tgt_line])[0]
        weights = self._cross_attention(src, tgt)
        return weights, self.tokenizer.src_pieces(src), self.tokenizer.tgt_pieces(tgt)

    @torch.inference_mode()
    def _log_probs(self, src_ids: list[list[int]], tgt_ids: list[list[int]]) -> Tensor:
        src, src_lengths = pad(src_ids, self.device)
        tgt_in, _ = pad([[BOS, *row[:-1]] for row in tgt_ids], self.device)
        tgt_out, tgt_lengths = pad(tgt_ids, self.device)
        logits = self.model.project(self.model(src, src_lengths, tgt_in)).float()
        chosen = logits.gather(-1, tgt_out[:, :, None]).squeeze(-1) - logits.logsumexp(-1)
        real = torch.arange(tgt_in.size(1), device=self.device) < tgt_lengths[:, None]
        return (chosen * real).sum(1)

    @torch.inference_mode()
    def _cross_attention(self, src: list[int], tgt: list[int]) -> Tensor:
        ids, lengths = pad([src], self.device)
        tgt_in, _ = pad([[BOS, *tgt[:-1]]], self.device)
        return self.model.cross_attention(ids, lengths, tgt_in)[0].float()

    def _translations(
        self, src: list[int], hypotheses: list[Hypothesis], alignments: bool
    ) -> list[Translation]:
        texts = self.tokenizer.decode([hypothesis.ids for hypothesis in hypotheses])
        return [
            Translation(
                text,
                hypothesis.score,
                hypothesis.log_prob,
                self.tokenizer.tgt_pieces(hypothesis.ids),
                self._alignment(src, hypothesis.ids) if alignments else None,
            )
            for text, hypothesis in zip(texts, hypotheses, strict=True)
        ]

    def _alignment(self, src: list[int], tgt: list[int]) -> list[tuple[int, int]]:
        """For each target word the source word with the most attention, over layers and heads."""
        if not tgt:
            return []
        weights = self._cross_attention(src, [*tgt, BOS])  # the last id only closes the row
        weights = weights.mean((0, 1))[:-1, :-1]  # the end symbols are no words
        src_words, tgt_words = self.tokenizer.src_words(src[:-1]), self.tokenizer.tgt_words(tgt)
        words = weights.new_zeros(tgt_words[-1] + 1, src_words[-1] + 1)
        rows, columns = torch.tensor(tgt_words)[:, None], torch.tensor(src_words)
        words.index_put_((rows, columns), weights, accumulate=True)
        return [(s, t) for t, s in enumerate(words.argmax(-1).tolist())]

    def _batches(self, sizes: list[tuple[int, int]]) -> Iterator[list[int]]:
        """Indices of (index, length) in batches of like length whose padding stays in budget."""
        batch: list[int] = []
        for index, length in sorted(sizes, key=lambda pair: pair[1]):
            if batch and (len(batch) + 1) * length > self.max_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _check_length(self, ids: list[int], number: int) -> None:
        if len(ids) > self.max_length:
            raise ValueError(
                f"line {number} has {len(ids)} tokens, the limit is {self.max_length}: shorten it, "
                "have it split (too_long: split), or raise max_length"
            )

    def _split(self, line: str) -> list[str]:
        """A line beyond the limit as its sentences; one that still is, in halves at a space."""
        line = line.strip()
        if len(line) < 2 or len(self.tokenizer.encode_src([line])[0]) <= self.max_length:
            return [line]
        parts = [part for part in re.split(r"(?<=[.!?…])\s+|(?<=[。！？])", line) if part]
        if len(parts) == 1:
            spaces = [match.start() for match in re.finditer(r"\s+", line)] or [len(line) // 2]
            middle = min(spaces, key=lambda place: abs(place - len(line) // 2))
            parts = [line[:middle], line[middle:]]
        return [short for part in parts for short in self._split(part)]
