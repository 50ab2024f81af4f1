"""CTranslate2 behind a `Translator`: its search, which is C++, in the place of the house's own.

Both searches end a sentence with its N-th finished hypothesis, and normalise lengths after that: so
they find the same, with any length normalisation. `min_length` and `no_repeat_ngram` are
other rules there: what is forbidden leaves its probability to the rest, so that other hypotheses
may be found; their log-probabilities are the model's all the same.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Event

import torch

from transformer.bundle import Bundle
from transformer.data.tokenizer import EOS
from transformer.errors import UserError
from transformer.inference.batches import of_sources
from transformer.inference.continuations import NOT_A_NUMBER
from transformer.inference.engines import MAX_TOKENS, Engine
from transformer.inference.search import Hypothesis, SearchConfig, length_penalty
from transformer.interop import needs
from transformer.interop.ctranslate2 import EXTRA, Names, count_positions, write_model
from transformer.kernels import Precision, find_precision
from transformer.kernels.process import count_workers

#: Exponent of CTranslate2's length normalisation, undone at once. Where more than N hypotheses have
#: finished when a search ends it keeps the N best: by this, those that finished first, as our own
#: search does. With 0 it would have another rule for the end.
FIRST = -8


def make(bundle: Bundle, device: str, precision: Precision, max_tokens: int) -> Engine:
    """The engine for a bundle, which is written for CTranslate2 into a folder that then goes.

    Args:
        bundle: on the CPU.
        device: `cpu`, `cuda`, `cuda:1`.
        precision: that CTranslate2 shall compute in; `auto` as for torch.
        max_tokens: padded source tokens in a batch.

    Raises:
        UserError: If CTranslate2 is not installed, or cannot be this model, or has no such device
            or precision.
    """
    compute_type = _compute_type(device, precision)
    with TemporaryDirectory(prefix="ctranslate2-") as folder:
        write_model(bundle, Path(folder))
        return CTranslate2Engine(folder, bundle, device, compute_type, max_tokens)


def _compute_type(device: str, precision: Precision) -> str:
    kind = device.partition(":")[0]
    if kind not in ("cpu", "cuda"):
        raise UserError(f"device {device}: CTranslate2 computes on cpu and cuda: take one of them")
    try:
        known = needs("ctranslate2", EXTRA).get_supported_compute_types(kind)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"device {device}: CTranslate2 cannot use it here ({error})") from None
    wanted = find_precision(device, "auto") if precision == "auto" else precision
    if wanted not in known:
        raise UserError(
            f"precision {wanted}: CTranslate2 does not compute in it on this {kind}: there are "
            f"{', '.join(sorted(known))}"
        )
    return wanted


class CTranslate2Engine(Engine):
    """Searches with CTranslate2.

    Args:
        folder: that `write_model` wrote; it is read into memory.
        bundle: what was written there.
        device: `cpu`, `cuda`, `cuda:1`.
        compute_type: CTranslate2's word for precision; `default` is that of the folder's weights,
            or what is nearest to it on the device.
        max_tokens: padded source tokens in a batch.
    """

    def __init__(
        self,
        folder: str | Path,
        bundle: Bundle,
        device: str = "cpu",
        compute_type: str = "default",
        max_tokens: int = MAX_TOKENS,
    ) -> None:
        kind, _, number = device.partition(":")
        self.device, self.max_tokens = torch.device(device), max_tokens
        self.names, self.max_length = Names(bundle.tokenizer), count_positions(bundle)
        # As our own search, batches side by side, each on its share of the cores.
        self.workers = count_workers(self.device)
        self.translator = needs("ctranslate2", EXTRA).Translator(
            str(folder), kind, device_index=int(number or 0), compute_type=compute_type,
            inter_threads=self.workers,
            intra_threads=max(1, torch.get_num_threads() // self.workers),
        )  # fmt: skip

    def search(
        self,
        ids: Sequence[list[int]],
        config: SearchConfig,
        prefix: Sequence[int] = (),
        generator: torch.Generator | None = None,
    ) -> list[list[Hypothesis]]:
        if config.sample:
            raise UserError(
                "sample: with CTranslate2 a seed does not fix what is drawn: take engine torch"
            )

        def search_batch(rows: list[list[int]], stop: Event) -> list[list[Hypothesis]]:
            return [] if stop.is_set() else self._within_limits(rows, config, prefix)

        return of_sources(search_batch, ids, self.max_tokens, self.workers)

    def _within_limits(
        self, rows: list[list[int]], config: SearchConfig, prefix: Sequence[int]
    ) -> list[list[Hypothesis]]:
        """Searches with a limit for each sentence, though CTranslate2 has one for a batch.

        A sentence whose hypotheses are all within its own limit was finished there. Others, which
        are few, are searched once more, with those of the same limit.
        """
        limits = [max(len(row), len(prefix)) + config.max_extra for row in rows]
        limits = [min(limit, self.max_length) for limit in limits]
        found = self.search_batch(rows, max(limits), config, prefix)
        beyond: dict[int, list[int]] = {}
        for place, limit in enumerate(limits):
            if any(len(one.ids) + one.ended > limit for one in found[place]):
                beyond.setdefault(limit, []).append(place)
        for limit, places in beyond.items():
            again = self.search_batch([rows[p] for p in places], limit, config, prefix)
            for place, hypotheses in zip(places, again, strict=True):
                found[place] = hypotheses
        return [hypotheses[: config.n_best] for hypotheses in found]

    def search_batch(
        self, rows: list[list[int]], limit: int, config: SearchConfig, prefix: Sequence[int] = ()
    ) -> list[list[Hypothesis]]:
        """All finished hypotheses of each source, best first.

        Args:
            rows: source ids, EOS last.
            limit: tokens of a hypothesis, EOS included.
            config: as for `search`, except for `n_best` and `max_extra`.
            prefix: target ids with which every hypothesis begins.
        """
        sources = self.names.of("src", rows)
        results = self.translator.translate_batch(
            sources, self.names.of("tgt", [prefix] * len(rows)) if prefix else None,
            beam_size=config.beam, num_hypotheses=config.beam, length_penalty=FIRST,
            no_repeat_ngram_size=config.no_repeat_ngram, min_decoding_length=config.min_length,
            max_decoding_length=limit, max_input_length=0, return_scores=True,
            return_end_token=True,
        )  # fmt: skip
        flat = [
            (place, self.names.ids(tokens), score)
            for place, result in enumerate(results)
            for tokens, score in zip(result.hypotheses, result.scores, strict=True)
        ]
        log_probs = [score * max(len(tokens), 1) ** FIRST for _, tokens, score in flat]
        if prefix or config.min_length or config.no_repeat_ngram:
            log_probs = self._log_probs([(sources[place], tokens) for place, tokens, _ in flat])
        found: list[list[Hypothesis]] = [[] for _ in rows]
        for (place, tokens, _), log_prob in zip(flat, log_probs, strict=True):
            found[place].append(_hypothesis(tokens, log_prob, config))
        return [sorted(hypotheses, key=lambda one: -one.score) for hypotheses in found]

    def _log_probs(self, pairs: list[tuple[list[str], list[int]]]) -> list[float]:
        """The model's own log-probabilities of hypotheses, forced tokens and all."""
        texts = self.names.of("tgt", [_without_end(tokens) for _, tokens in pairs])
        results = self.translator.score_batch([src for src, _ in pairs], texts, max_input_length=0)
        return [
            sum(result.log_probs[: len(tokens)])
            for result, (_, tokens) in zip(results, pairs, strict=True)
        ]


def _hypothesis(tokens: list[int], log_prob: float, config: SearchConfig) -> Hypothesis:
    if log_prob != log_prob:
        raise UserError(NOT_A_NUMBER)
    ids = _without_end(tokens)
    score = log_prob / length_penalty(max(len(tokens), 1), config)
    return Hypothesis(ids, score, log_prob, ended=len(ids) < len(tokens) or not tokens)


def _without_end(tokens: list[int]) -> list[int]:
    return tokens[:-1] if tokens[-1:] == [EOS] else tokens
