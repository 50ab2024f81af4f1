"""`transformer export ctranslate2`: a bundle as a folder that CTranslate2 loads, and its gate."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from transformer.bundle import Bundle, load_bundle
from transformer.data.corpus import Pair, open_corpus
from transformer.data.tokenizer import EOS, Tokenizer
from transformer.errors import UserError, nearest
from transformer.inference.search import SearchConfig, search_of
from transformer.inference.translator import Translator
from transformer.interop import needs
from transformer.interop.ctranslate2 import EXTRA, write_model
from transformer.interop.ctranslate2_engine import CTranslate2Engine
from transformer.interop.gate import BundleSide, Ids, compare, passed
from transformer.interop.probes import probes
from transformer.writing import whole_folder


def export_ctranslate2(
    bundle: str,
    folder: str,
    quantization: str = "float32",
    corpus: str | None = None,
    bleu_loss: float = 1.0,
) -> None:
    """Writes a bundle as a folder that `ctranslate2.Translator` loads, whole or not at all.

    Whatever is written in the end, the model in float32 passes the parity gate. `parity.json` then
    says how many translations a quantised model changes, and by how much its BLEU is lower.

    Args:
        bundle: Folder that `transformer fit` or `transformer average` wrote.
        folder: Folder to write, which must not exist.
        quantization: Type of the weights: float32, float16, bfloat16, int16, int8, or int8 with
            the rest in another type: int8_float32, int8_float16, int8_bfloat16.
        corpus: Test set, named as data.test is, on which a quantised model is compared with the
            bundle; if left out, the probes are translated, without a limit.
        bleu_loss: BLEU by which a quantised model may be below the bundle on the corpus.

    Raises:
        UserError: If CTranslate2 is not installed, or cannot be this model, or the quantization
            is unknown, or the model translates otherwise than the bundle.
    """
    known = needs("ctranslate2.specs.model_spec", EXTRA).ACCEPTED_MODEL_TYPES
    if quantization not in known:
        raise UserError(
            f"--quantization {quantization} is unknown to CTranslate2"
            f"{nearest(quantization, known)}: there are {', '.join(known)}"
        )
    if corpus and quantization == "float32":
        raise UserError(f"--corpus {corpus} is for quantised models: add --quantization int8")
    read = load_bundle(bundle)
    search = search_of(read.config, bundle)
    pairs: Sequence[Pair] = []
    if corpus:  # before the work
        languages = read.config["src"], read.config["tgt"]
        pairs = [*open_corpus(corpus, *languages, key="--corpus").pairs()]
    with whole_folder(Path(folder)) as partial:
        write_model(read, partial)
        read.tokenizer.save(partial)
        report = compare(BundleSide(read), CTranslate2Side(partial, read))
        passed(report, partial)
        if quantization != "float32":
            write_model(read, partial, quantization)
            found = _compare(read, search, partial, pairs)
            if corpus:
                found |= {"corpus": corpus, "bleu_loss": bleu_loss}
                _check_loss(found)
            passed(report, partial, quantized={"quantization": quantization, **found})


def _compare(
    bundle: Bundle, search: SearchConfig, folder: Path, pairs: Sequence[Pair]
) -> dict[str, Any]:
    """What quantization changes in the translations of a corpus, or of the probes."""
    from transformer.evaluation.metrics import TranslationScore

    model, tokenizer, config = bundle
    to, longest = config["tgt"], config["max_length"]
    engine = CTranslate2Engine(folder, bundle)
    lines = [src for src, _ in pairs] or probes(tokenizer, longest, to)
    ours, theirs = (
        Translator(model, tokenizer, search, max_length=longest, tgt=to, engine=one).translate(
            lines, too_long="split"
        )
        for one in (None, engine)
    )
    same = sum(one == other for one, other in zip(ours, theirs, strict=True))
    found = {
        "computed_in": engine.translator.compute_type, "sentences": len(lines), "same": same
    }  # fmt: skip
    if not pairs:
        return found
    how = config["evaluation"]
    score = TranslationScore(how.get("score_tokenize", "13a"), how.get("score_lowercase", False))
    references = [tgt for _, tgt in pairs]
    scores = [score.once(list(zip(texts, references, strict=True))) for texts in (ours, theirs)]
    bleu = dict(zip(("bleu", "bleu_quantized"), scores, strict=True))
    return {**found, **bleu, "signature": score.signature}


def _check_loss(found: dict[str, Any]) -> None:
    """Refuses a quantised model whose BLEU is too low."""
    before, after = found["bleu"], found["bleu_quantized"]
    if before - after > found["bleu_loss"]:
        raise UserError(
            f"BLEU on {found['corpus']} is {after:.2f}, the bundle's {before:.2f}, which is more "
            f"than {found['bleu_loss']} above it, so nothing was kept: choose another "
            "--quantization, or a larger --bleu_loss"
        )


class CTranslate2Side(BundleSide):
    """What the parity gate compares with a bundle: an exported folder, computed in float32.

    CTranslate2 gives an empty translation for a source of the end symbol alone, which is never
    searched for, as empty lines stay empty: there the bundle answers.
    """

    def __init__(self, folder: Path, bundle: Bundle) -> None:
        super().__init__(bundle._replace(tokenizer=Tokenizer.load(folder)), "CTranslate2")
        self.engine = CTranslate2Engine(folder, bundle, compute_type="float32")

    def search(self, src: list[Ids], beam: int, limit: int) -> list[Ids]:
        config = SearchConfig(beam=beam, length_norm="none")
        found = [best[0].ids for best in self.engine.search_batch(src, limit, config)]
        for place, row in enumerate(src):
            if row == [EOS]:
                [found[place]] = super().search([row], beam, limit)
        return found

    def logits(self, src: list[Ids], tgt: list[Ids]) -> Tensor:
        names = self.engine.names
        results = self.engine.translator.translate_batch(
            names.of("src", src), names.of("tgt", tgt), beam_size=1,
            max_input_length=0, min_decoding_length=0, return_logits_vocab=True,
            max_decoding_length=max(map(len, tgt)) + 1,
        )  # fmt: skip
        rows = [
            torch.stack([torch.from_numpy(np.array(step)).flatten() for step in result.logits[0]])
            if row != [EOS]
            else BundleSide.logits(self, [row], [target])[0]
            for row, target, result in zip(src, tgt, results, strict=True)
        ]
        return pad_sequence(rows, batch_first=True)
