"""`transformer test`: loss, perplexity, BLEU and chrF of a bundle."""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from inspect import signature
from itertools import chain, count
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from transformer.bundle import TRAINING, Bundle, load_bundle
from transformer.commands.arguments import OptionParser
from transformer.data.datamodule import DataModule
from transformer.errors import UserError
from transformer.inference.engines import EngineName, make_engine
from transformer.inference.search import SearchConfig, search_of
from transformer.kernels import Precision, find_device, find_precision
from transformer.training.module import Seq2SeqModule
from transformer.training.results import score_lines, versions, write_results
from transformer.training.runs import set_up_libraries
from transformer.writing import whole_folder, write

DESCRIPTION = """Score a bundle on a test set: loss and perplexity of the references, BLEU and chrF
of the bundle's translations. Writes results.json and hypotheses.txt into a run folder. What is not
given is the bundle's: languages, search, and how its recipe computes scores."""
#: Settings of the data that matter for a test.
OF_DATA = {"test", "src", "tgt", "columns", "eval_max_tokens", "cache"}
#: Settings of how scores are computed.
OF_SCORES = {"score_tokenize", "score_lowercase", "score_detokenized"}
#: Settings of the search that do not: the best translation is scored, and no random one.
NOT_OF_SEARCH = {"n_best", "sample", "temperature", "top_k", "top_p"}


def main(args: Sequence[str]) -> None:
    """Runs the command."""
    parser = OptionParser(prog="transformer test", description=DESCRIPTION)
    parser.add(score_bundle, skip={"data"})
    for kind, group, ours in ((DataModule, "data", OF_DATA), (Seq2SeqModule, None, OF_SCORES)):
        parser.add_class_arguments(kind, group, skip={*signature(kind).parameters} - ours)
    for action in parser._actions:
        if action.dest in OF_SCORES:
            action.default = None  # the bundle's
    parser.add(SearchConfig, skip=NOT_OF_SEARCH)
    # Without defaults, so that those of the bundle apply.
    score_bundle(**{"data": {}, **parser.parse_args(args, defaults=False).as_dict()})


def score_bundle(
    bundle: str,
    data: dict[str, Any],
    run_dir: str | None = None,
    device: str = "auto",
    precision: Precision = "auto",
    engine: EngineName = "torch",
    **given: Any,
) -> None:
    """Scores a bundle.

    Args:
        bundle: Folder that `transformer fit` or `transformer average` wrote; or org/name of the
            hub.
        data: Arguments of DataModule.
        run_dir: Folder to write, which must not exist; `test-<corpus>` beside the bundle if left
            out.
        device: auto, cpu, cuda, cuda:1, mps.
        precision: auto is bfloat16 on a GPU that computes in it, float32 elsewhere; of another
            engine than torch it is that of the translations, and the loss is in auto.
        engine: What searches: torch is this package's own search; ctranslate2 must be installed.
        given: Fields of SearchConfig, and OF_SCORES of Seq2SeqModule.
    """
    set_up_libraries()
    folder = new_folder(bundle, data.get("test"), run_dir)
    read = load_bundle(bundle)
    module, datamodule = load(read, Path(bundle), data, given)
    seconds = run(module, datamodule, read, engine, find_device(device), precision)
    numbers = {
        **module.scorer.results(),
        "test": data["test"],
        "test_seconds": round(seconds, 3),
        "bundle": str(bundle),
        "engine": engine,
        "parameters": module.model.count_parameters(),
        **{key: read.config["training"].get(key) for key in TRAINING},
        "versions": versions(),
    }
    save(folder, module.scorer.translations, numbers)


def save(folder: Path, translations: dict[int, str], numbers: dict[str, Any]) -> None:
    """Writes the run folder, and says what is in it."""
    # Another test may have taken its name meanwhile.
    names = chain([folder], (Path(f"{folder}-{n}") for n in count(2)))
    folder = next(name for name in names if not name.exists())
    lines = (" ".join(translations[index].splitlines()) for index in sorted(translations))
    with whole_folder(folder) as growing:
        write(growing / "hypotheses.txt", "".join(f"{line}\n" for line in lines))
        write_results(growing, numbers)
    print(f"loss {numbers['loss']:.4f}", *score_lines(numbers), sep="\n")
    print(f"Translations and scores: {folder}")


def load(
    bundle: Bundle, folder: Path, data: dict[str, Any], given: dict[str, Any]
) -> tuple[Seq2SeqModule, DataModule]:
    """Makes the module and the data for a bundle; what is not given is as in its recipe."""
    model, tokenizer, config = bundle
    datamodule = DataModule(**{"src": config["src"], "tgt": config["tgt"], **data})
    datamodule.tokenizer = tokenizer
    scores = config["evaluation"] | {key: given.pop(key) for key in OF_SCORES & given.keys()}
    search = replace(search_of(config, folder), **given)
    module = Seq2SeqModule(model.config, search=search, **scores)
    module.network = model
    return module, datamodule


def new_folder(bundle: str, corpus: str | None, run_dir: str | None) -> Path:
    """Makes sure, before the work, which may be long, that its folder can be made after it."""
    if not corpus:
        raise UserError("data.test is missing: name a corpus, such as --data.test corpus/test")
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in corpus).strip("-.")
    here = Path(bundle)
    if not here.name.strip("."):  # "." or ".."
        here = here.resolve()
    beside = here.parent if here.exists() else Path()  # it may be of the hub
    folder = Path(run_dir) if run_dir else beside / f"test-{name}"
    if folder.exists():
        raise UserError(f"{folder} exists already: choose another --run_dir, or move it away")
    folder.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(folder.parent, os.W_OK):
        raise UserError(f"{folder.parent} cannot be written to: choose another --run_dir")
    return folder


def run(
    module: Seq2SeqModule,
    data: DataModule,
    bundle: Bundle,
    engine: EngineName,
    device: str,
    precision: Precision,
) -> float:
    """Runs the test as `fit` does at its end; returns the seconds."""
    if engine != "torch":
        module.engine = make_engine(engine, bundle, device, precision)
        precision = "auto"
    accelerator, _, number = device.partition(":")
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
