"""What a validation or test gathers, batch by batch, and what comes out of it."""

import math
from dataclasses import replace

import torch.distributed as dist
from lightning.pytorch import Trainer
from torch import nn

from transformer.data.datamodule import DataModule
from transformer.data.tokenizer import is_blank
from transformer.evaluation.metrics import TranslationScore, moses_detokenizer
from transformer.inference.guard import flaw_rates, probes
from transformer.inference.search import SearchConfig
from transformer.inference.translator import Translator
from transformer.models import Seq2Seq
from transformer.training.meter import sum_over_processes


class Scorer(nn.Module):
    """Loss, scores and translations of a validation or test set.

    Args:
        tokenize: sacreBLEU's tokenizer.
        lowercase: ignore case in BLEU.
        detokenized: also score the text after undoing Moses' tokenisation.
    """

    def __init__(self, tokenize: str, lowercase: bool, detokenized: bool) -> None:
        super().__init__()
        self.text = TranslationScore(tokenize=tokenize, lowercase=lowercase)
        self.detokenized = TranslationScore(lowercase=lowercase) if detokenized else None
        #: Of the last evaluation, by their index in the corpus.
        self.translations: dict[int, str] = {}
        #: Of the last evaluation, in full precision.
        self.scores: dict[str, float] = {}
        self._sources: list[str] = []
        self._references: list[str] = []
        self._tgt = ""
        self._sums = [0.0, 0.0, 0.0]

    def begin(self, sources: list[str], references: list[str], tgt: str) -> None:
        """Forget the last evaluation.

        Args:
            sources: of the whole corpus.
            references: of the whole corpus.
            tgt: their language.
        """
        self.forget()
        self._sources, self._references, self._tgt = sources, references, tgt
        self._sums = [0.0, 0.0, 0.0]

    def forget(self) -> None:
        """There are no scores and no translations."""
        self.scores, self.translations = {}, {}

    def add(
        self, ids: list[int], hypotheses: list[str], loss: float, nll: float, tokens: int
    ) -> None:
        """Take in a batch.

        Args:
            ids: indices of its sentences in the corpus.
            hypotheses: what the search found; an empty source has the empty translation instead.
            loss: smoothed, in nats, summed over its target tokens.
            nll: negative log-likelihood, in nats, summed over its target tokens.
            tokens: how many these are.
        """
        for index, value in enumerate((loss, nll, tokens)):
            self._sums[index] += value
        hypotheses = [
            "" if is_blank(self._sources[index]) else hypothesis
            for index, hypothesis in zip(ids, hypotheses, strict=True)
        ]
        references = [self._references[index] for index in ids]
        self.text.update(hypotheses, references)
        if self.detokenized:
            detokenize = moses_detokenizer(self._tgt)
            self.detokenized.update(detokenize(hypotheses), detokenize(references))
        self.translations.update(zip(ids, hypotheses, strict=True))

    def finish(self, trainer: Trainer) -> None:
        """Compute `scores`, and gather `translations`, of the batches of all processes."""
        if trainer.world_size > 1:
            parts: list[dict[int, str]] = [{}] * trainer.world_size
            dist.all_gather_object(parts, self.translations)
            self.translations = {index: text for part in parts for index, text in part.items()}
        loss, nll, tokens = sum_over_processes(trainer, self._sums)
        tokens = max(tokens, 1.0)
        self.scores = {
            "loss": loss / tokens,
            "nll": nll / tokens,
            "perplexity": perplexity(nll / tokens),
            **self.text.compute(),
        }
        self.text.reset()
        if self.detokenized:
            self.scores["bleu_detokenized"] = self.detokenized.compute()["bleu"]
            self.detokenized.reset()


def perplexity(nll: float) -> float:
    """exp of a negative log-likelihood in nats per token, as far as there are numbers for it."""
    return math.exp(min(nll, 700.0))


def probe(model: Seq2Seq, data: DataModule, config: SearchConfig) -> dict[str, float]:
    """The share of translations of `probes` with each flaw.

    Every process decodes them all: they are few, and nothing has to be gathered.
    """
    translator = Translator(
        model,
        data.tokenizer,
        replace(config, n_best=1),
        max_length=data.max_length,
        tgt=data.tgt,
    )
    kinds = probes(translator.encode, *data.texts("val"), translator.max_length)
    found = translator.checked([line for lines in kinds.values() for line in lines])
    return flaw_rates([line.verdict.flaw for line in found])
