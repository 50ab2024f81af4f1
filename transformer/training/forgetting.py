"""Measures catastrophic forgetting: BLEU on the parent's pair before and after."""

from dataclasses import asdict, dataclass
from typing import Any

from transformer.bundle import read_config
from transformer.data.corpus import open_corpus
from transformer.evaluation.metrics import SAMPLES, TranslationScore, paired_bootstrap
from transformer.inference.search import SearchConfig
from transformer.inference.translator import Translator
from transformer.training.module import Seq2SeqModule


@dataclass(frozen=True)
class ParentPair:
    """The pair that the parent, the bundle of model.init_from, knows: scored before and after.

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
    """Translates the parent's pair with the parent, a bundle, and with the model begun from it."""

    def __init__(self, config: ParentPair, folder: str, search: SearchConfig) -> None:
        assert config.test
        self.config = config
        _, parent = read_config(folder)
        languages = config.src or parent["src"], config.tgt or parent["tgt"]
        self.corpus = open_corpus(config.test, *languages, config.columns, key="parent.test")
        pairs = list(self.corpus.pairs())
        self.sources, self.references = [p.src for p in pairs], [p.tgt for p in pairs]
        how = parent["evaluation"]
        self.score = TranslationScore(how["score_tokenize"], how["score_lowercase"])
        self.named = {"pair": f"{self.corpus.src}-{self.corpus.tgt}", "test": config.test}
        translator = Translator.load(folder, precision="float32")  # as that of after
        translator.encode([], self.corpus.tgt)  # says so if it knows no such language
        translator.tgt = self.corpus.tgt
        self.device = translator.device
        self.before = self._translate(translator, search)

    def __str__(self) -> str:
        bleu = self.score.once(list(zip(self.before, self.references, strict=True)))
        return f"parent's pair {self.named['pair']} ({self.config.test}): BLEU {bleu:.2f} before"

    def score_after(self, module: Seq2SeqModule) -> dict[str, Any]:
        """Compares the model of the run with its parent: `parent` of `results.json`."""
        # A model that cannot be asked for the parent's target language writes its own.
        known = self.corpus.tgt in module.tokenizer.tags
        translator = Translator(
            module.model.to(self.device),  # training has left it on the CPU
            module.tokenizer,
            max_length=module.data.max_length,
            tgt=self.corpus.tgt if known else module.data.tgt,
        )
        after = self._translate(translator, module.search_config)
        compared = paired_bootstrap(self.score, self.before, after, self.references)
        limit = self.config.max_drop
        forgotten = limit is not None and compared.before - compared.after > limit
        return {**self.named, **compared._asdict(), "max_drop": limit, "forgotten": forgotten}

    def _translate(self, translator: Translator, search: SearchConfig) -> list[str]:
        return translator.translate(self.sources, too_long="split", **asdict(search))


def in_words(result: dict[str, Any]) -> str:
    """BLEU before and after in one line."""
    text = (
        f"parent's pair {result['pair']} ({result['test']}): BLEU "
        f"{result['before']:.2f} ± {result['before_interval']:.2f} before, "
        f"{result['after']:.2f} ± {result['after_interval']:.2f} after "
        f"(p = {result['p_value']:.3f}, paired bootstrap with {SAMPLES:,} samples)"
    )
    if result["forgotten"]:
        text += f"; FORGOTTEN: it lost more than parent.max_drop = {result['max_drop']}"
    return text
