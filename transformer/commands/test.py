"""`transformer test`: loss, perplexity, BLEU and chrF of a bundle."""

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from transformer.bundle import TRAINING, load_bundle
from transformer.commands.arguments import OptionParser
from transformer.data.datamodule import DataModule
from transformer.errors import UserError
from transformer.inference.device import Precision, find_device, find_precision
from transformer.inference.search import SearchConfig
from transformer.settings import settings
from transformer.training.module import Seq2SeqModule
from transformer.training.report import bleus, detokenized, versions
from transformer.training.runs import be_quiet
from transformer.writing import write as write_whole

DESCRIPTION = """Score a bundle on a test set: loss and perplexity of the references, BLEU and chrF
of the bundle's translations. Writes results.json and hypotheses.txt into a run folder. What is not
given is the bundle's: languages, search, and how its recipe computes scores."""
# What only training asks for.
ONLY_TRAINING = {
    "train", "val", "extra_corpora", "temperature", "tags", "tokenizer", "max_tokens", "max_length",
    "too_long", "limit", "streaming",
}  # fmt: skip


def main(args: Sequence[str]) -> int:
    """Runs the command."""
    parser = OptionParser(prog="transformer test", description=DESCRIPTION)
    parser.add(score_bundle, {"bundle": None}, skip={"data"})
    parser.add_class_arguments(DataModule, "data", skip={*ONLY_TRAINING, "num_workers", "seed"})
    parser.add(SearchConfig, {})
    # Without defaults, so that those of the bundle apply.
    score_bundle(**{"data": {}, **parser.parse_args(args, defaults=False).as_dict()})
    return 0


def score_bundle(
    bundle: str,
    data: dict[str, Any],
    run_dir: str | None = None,
    label_smoothing: float | None = None,
    score_tokenize: str | None = None,
    score_lowercase: bool | None = None,
    score_detokenized: bool | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    **search: Any,
) -> dict[str, Any]:
    """Scores a bundle.

    Args:
        bundle: Folder that `transformer fit` or `transformer average` wrote.
        data: Arguments of DataModule.
        run_dir: Folder to write, which must not exist; `test-<corpus>` beside the bundle if left
            out.
        label_smoothing: Of the loss, as in training; perplexity knows none.
        score_tokenize: sacreBLEU's tokenizer: 13a for most languages, zh, ja-mecab, ko-mecab, char.
        score_lowercase: Ignore case in BLEU and chrF.
        score_detokenized: Also give BLEU of the text without the tokenisation of Moses.
        device: auto, cpu, cuda, cuda:1, mps.
        precision: auto is bfloat16 on a GPU that computes in it, float32 elsewhere.
        search: Fields of SearchConfig.

    Returns:
        What results.json holds.

    Raises:
        ValueError: If the test set or the bundle is at fault, or the run folder exists.
    """
    be_quiet()
    if not data.get("test"):
        raise UserError("data.test is missing: name a corpus, such as --data.test corpus/test")
    folder = Path(run_dir) if run_dir else beside(bundle, data["test"])
    if folder.exists():
        raise UserError(f"{folder} exists already: choose another --run_dir, or move it away")
    folder.parent.mkdir(parents=True, exist_ok=True)  # before the work, which may be long
    if not os.access(folder.parent, os.W_OK):
        raise UserError(f"{folder.parent} cannot be written to: choose another --run_dir")
    model, tokenizer, config = load_bundle(bundle)
    datamodule = DataModule(**{"src": config["src"], "tgt": config["tgt"], **data})
    datamodule.tokenizer = tokenizer
    given = {
        "label_smoothing": label_smoothing,
        "score_tokenize": score_tokenize,
        "score_lowercase": score_lowercase,
        "score_detokenized": score_detokenized,
    }
    evaluation = config["evaluation"] | {k: v for k, v in given.items() if v is not None}
    if not 0 <= evaluation.get("label_smoothing", 0) < 1:
        raise UserError(f"label_smoothing is {label_smoothing}: it must be 0 or more, and below 1")
    path = Path(bundle) / "config.json"
    how = replace(settings(SearchConfig, config["search"], path, "search"), **search)
    module = Seq2SeqModule(model.config, search=how, **evaluation)
    module.network = model
    seconds = run(module, datamodule, device, precision)
    scorer = module.scorer
    numbers = {
        "bleu": scorer.scores["bleu"],
        "chrf": scorer.scores["chrf"],
        "signature": scorer.text.signature,
        "chrf_signature": scorer.text.chrf_signature,
        **detokenized(module, scorer.scores),
        "loss": scorer.scores["loss"],
        "perplexity": scorer.scores["perplexity"],
        "test": data["test"],
        "test_seconds": round(seconds, 3),
        "bundle": str(bundle),
        "parameters": model.count_parameters(),
        **{key: config["training"].get(key) for key in TRAINING},
        "versions": versions(),
    }
    write(folder, numbers, module)
    print(summary(folder, numbers))
    return numbers


def beside(bundle: str, corpus: str) -> Path:
    """Names the run folder after the corpus: `corpus/test` becomes `test-corpus-test`."""
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in corpus).strip("-.")
    return Path(bundle).parent / f"test-{name}"


def run(module: Seq2SeqModule, data: DataModule, device: str, precision: Precision) -> float:
    """Runs the test as `fit` does at its end; returns the seconds."""
    accelerator, _, number = (device := find_device(device)).partition(":")
    # As at the end of `fit`; where it is asked for with rounded weights, as `translate` has them.
    bfloat16: Any = "bf16-mixed" if precision == "auto" else "bf16-true"
    trainer = Trainer(
        accelerator=accelerator,
        devices=[int(number)] if number else 1,
        precision=bfloat16 if find_precision(device, precision) == "bfloat16" else "32-true",
        logger=False,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=sys.stdout.isatty(),
        use_distributed_sampler=False,
    )
    start = time.monotonic()
    trainer.test(module, datamodule=data, verbose=False)
    return time.monotonic() - start


def write(folder: Path, numbers: dict[str, Any], module: Seq2SeqModule) -> None:
    """Writes results.json, and the translations in the order of the corpus."""
    folder.mkdir()
    found = module.scorer.translations
    lines = [" ".join(found[index].splitlines()) for index in sorted(found)]
    text = "".join(f"{line}\n" for line in lines)
    write_whole(folder / "hypotheses.txt", text)
    text = json.dumps(numbers, indent=2, ensure_ascii=False)
    write_whole(folder / "results.json", text + "\n")


def summary(folder: Path, numbers: dict[str, Any]) -> str:
    """Says what came out."""
    return (
        "".join(f"BLEU {bleu:.2f}   {signature}\n" for bleu, signature in bleus(numbers))
        + f"chrF {numbers['chrf']:.2f}   loss {numbers['loss']:.4f}   "
        f"perplexity {numbers['perplexity']:.3f}\n"
        f"Translations and scores: {folder}"
    )
