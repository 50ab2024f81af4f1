"""What a run that begins from a bundle does to the pair that the bundle knew."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer

from transformer.bundle import read_config
from transformer.data.corpus import Corpus, open_corpus
from transformer.evaluation.metrics import SAMPLES, Comparison, TranslationScore, paired_bootstrap
from transformer.inference.search import SearchConfig
from transformer.inference.translator import Translator
from transformer.training.module import Seq2SeqModule


@dataclass(frozen=True)
class OldPair:
    """The pair that the bundle of model.init_from knows, which is scored before and after.

    Args:
        test: held-out corpus of the pair; nothing is scored when left out.
        src: its source language; the bundle's when left out.
        tgt: its target language; the bundle's when left out.
        columns: names of the columns of a TSV file that has no header.
        max_drop: BLEU that the pair may lose. When it loses more the bundle is kept and marked,
            and the exit code is 3. Any loss is only reported when left out.
    """

    test: str | None = None
    src: str | None = None
    tgt: str | None = None
    columns: list[str] | None = None
    max_drop: float | None = None


class ForgettingGate:
    """Translates the old pair with the bundle of before, and with the model of after.

    Args:
        config: the pair, with a test set.
        folder: the bundle.

    Raises:
        ValueError: when the corpus or the bundle is not there.
    """

    def __init__(self, config: OldPair, folder: str) -> None:
        assert config.test
        self.config = config
        old = read_config(Path(folder))
        languages = config.src or old["src"], config.tgt or old["tgt"]
        self.corpus: Corpus = open_corpus(
            config.test, *languages, config.columns, key="old_pair.test"
        )
        pairs = list(self.corpus.pairs())
        self.sources = [pair.src for pair in pairs]
        self.references = [pair.tgt for pair in pairs]
        evaluation = old["evaluation"]
        self.score = TranslationScore(evaluation["score_tokenize"], evaluation["score_lowercase"])
        self.folder = folder
        self.before: list[str] = []
        self.device = torch.device("cpu")

    def score_before(self, search: SearchConfig) -> str:
        """Translates with the bundle, and with the search of the run; BLEU in words."""
        translator = Translator.load(self.folder, precision="float32")  # as that of after
        self.device = translator.device
        translator.encode([], self.corpus.tgt)  # says so if it knows no such language
        translator.tgt = self.corpus.tgt
        self.before = self._translate(translator, search)
        bleu = self.score.once(list(zip(self.before, self.references, strict=True)))
        pair = f"{self.corpus.src}-{self.corpus.tgt}"
        return f"old pair {pair} ({self.config.test}): BLEU {bleu:.2f} before"

    def score_after(self, module: Seq2SeqModule) -> dict[str, Any]:
        """Compares the model of the run with the bundle: what `results.json` holds of it."""
        longest = module.data.max_length
        # A model that cannot be asked for the old target language writes its own.
        known = self.corpus.tgt in module.tokenizer.tags
        tgt = self.corpus.tgt if known else module.data.tgt
        model = module.model.to(self.device)  # training has left it on the CPU
        translator = Translator(model, module.tokenizer, max_length=longest, tgt=tgt)
        after = self._translate(translator, module.search_config)
        compared = paired_bootstrap(self.score, self.before, after, self.references)
        return {
            "pair": f"{self.corpus.src}-{self.corpus.tgt}",
            "test": self.config.test,
            **compared._asdict(),
            "max_drop": self.config.max_drop,
            "forgotten": self._is_forgotten(compared),
        }

    @staticmethod
    def log(trainer: Trainer, result: dict[str, Any]) -> None:
        """Tells the loggers."""
        numbers = {f"old_pair/{key}": result[key] for key in ("before", "after", "p_value")}
        for logger in trainer.loggers:
            logger.log_metrics(numbers, step=trainer.global_step)

    def _is_forgotten(self, compared: Comparison) -> bool:
        limit = self.config.max_drop
        return limit is not None and compared.before - compared.after > limit

    def _translate(self, translator: Translator, search: SearchConfig) -> list[str]:
        return translator.translate(self.sources, too_long="split", **asdict(search))


def in_words(result: dict[str, Any]) -> str:
    """What became of the old pair, in one line."""
    text = (
        f"old pair {result['pair']} ({result['test']}): BLEU "
        f"{result['before']:.2f} ± {result['before_interval']:.2f} before, "
        f"{result['after']:.2f} ± {result['after_interval']:.2f} after "
        f"(p = {result['p_value']:.3f}, paired bootstrap with {SAMPLES:,} samples)"
    )
    if result["forgotten"]:
        text += f"; FORGOTTEN: it lost more than old_pair.max_drop = {result['max_drop']}"
    return text
