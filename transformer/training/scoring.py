"""Scores and translations of a validation or test set, gathered batch by batch."""

import random
from dataclasses import replace
from typing import Any

from lightning.pytorch import Trainer

from transformer.data.datamodule import DataModule
from transformer.data.tokenizer import is_blank
from transformer.evaluation.metrics import TranslationScore, moses_detokenizer
from transformer.inference.guard import flaw_rates, probes
from transformer.inference.lines import LineError
from transformer.inference.search import SearchConfig
from transformer.inference.translator import Translator
from transformer.models import Seq2Seq
from transformer.training.logging import of_all_processes, perplexity, sum_over_processes

DRAWN = 200  # characters: a picture can show their pieces


class Scorer:
    """Loss, scores and translations of the last evaluation."""

    def __init__(self, tokenize: str, lowercase: bool, detokenized: bool) -> None:
        self.text = TranslationScore(tokenize, lowercase)
        self.detokenized = TranslationScore(lowercase=lowercase) if detokenized else None
        self.begin([], [], "")

    def begin(self, sources: list[str], references: list[str], tgt: str) -> None:
        """Forget the last evaluation; the texts are the whole corpus, `tgt` is their language."""
        self.sources, self.references, self._tgt = sources, references, tgt
        self.translations: dict[int, str] = {}  # by their index in the corpus
        self.scores: dict[str, float] = {}  # nothing before the end
        self._sums = [0.0, 0.0, 0.0]

    def add(
        self, indices: list[int], hypotheses: list[str], loss: float, nll: float, tokens: int
    ) -> None:
        """Take in a batch: indices in the corpus, translations, sums in nats over target tokens.

        An empty source has the empty translation.
        """
        added = zip(self._sums, (loss, nll, tokens), strict=True)
        self._sums = [total + value for total, value in added]
        for index, hypothesis in zip(indices, hypotheses, strict=True):
            self.translations[index] = "" if is_blank(self.sources[index]) else hypothesis

    def finish(self, trainer: Trainer) -> None:
        """Compute `scores` of the translations of all processes, which each of them then has."""
        parts = of_all_processes(trainer, self.translations)
        self.translations = {index: text for part in parts for index, text in part.items()}
        loss, nll, tokens = sum_over_processes(trainer, self._sums)
        tokens = max(tokens, 1.0)
        _, references, hypotheses = self.texts()
        self.scores = {
            "loss": loss / tokens,
            "nll": nll / tokens,
            "perplexity": perplexity(nll / tokens),
            **self.text(hypotheses, references),  # by themselves; each process has all of them
        }
        if self.detokenized:
            plain = map(moses_detokenizer(self._tgt), (hypotheses, references))
            self.scores["bleu_detokenized"] = self.detokenized(*plain)["bleu"]

    def results(self) -> dict[str, Any]:
        """The scores and their signatures, for `results.json`; null where nothing was scored."""
        found: dict[str, Any] = dict.fromkeys(("bleu", "chrf", "loss", "perplexity"))
        found |= {"signature": self.text.signature, "chrf_signature": self.text.chrf_signature}
        if self.detokenized:
            found["bleu_detokenized"] = None
            found["signature_detokenized"] = self.detokenized.signature
        return found | {key: value for key, value in self.scores.items() if key in found}

    def texts(self) -> tuple[list[str], list[str], list[str]]:
        """Sources, references and translations of all sentences that were translated."""
        known = sorted(self.translations)
        sources, references = ([side[i] for i in known] for side in (self.sources, self.references))
        return sources, references, [self.translations[i] for i in known]

    def samples(self, count: int) -> list[tuple[str, str, str]]:
        """Source, reference and translation of some sentences, the same ones every time."""
        rows = list(zip(*self.texts(), strict=True))
        return random.Random(0).sample(rows, min(count, len(rows)))


def probe(model: Seq2Seq, data: DataModule, config: SearchConfig) -> dict[str, float]:
    """The share of translations of `probes` with each flaw; every process decodes them all."""
    about: dict[str, Any] = {"max_length": data.max_length, "tgt": data.tgt}
    translator = Translator(model, data.tokenizer, replace(config, n_best=1), **about)
    kinds = probes(translator.encode, *data.texts("val"), translator.max_length)
    found = translator.checked([line for lines in kinds.values() for line in lines])
    return flaw_rates([line.verdict.flaw for line in found])


def attention_figure(model: Seq2Seq, data: DataModule, rows: list[tuple[str, str, str]]) -> Any:
    """Cross-attention of the last layer for a translation, as a matplotlib figure.

    It is the first of some `samples` that fits on a page; None where all are longer.
    """
    from transformer.evaluation.plots import attention_heatmap

    short = (row for row in rows if max(len(row[0]), len(row[2])) <= DRAWN)
    if (row := next(short, None)) is None:
        return None
    translator = Translator(model, data.tokenizer, tgt=data.tgt)
    try:
        weights, src_pieces, tgt_pieces = translator.attention(row[0], row[2])
    except LineError:  # stray bytes of a poor model are more pieces when they are read again
        return None
    title = model.describe() + (", last layer" if len(weights) > 1 else "")
    return attention_heatmap(weights[-1].cpu(), src_pieces, tgt_pieces, title)
