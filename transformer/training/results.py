"""What a run ends with: its final weights, their scores, the bundle with its card, the summary."""

import json
import platform
import re
import shlex
from dataclasses import asdict
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer

from transformer import __version__
from transformer.bundle import TRAINING, save_bundle
from transformer.data.tokenizer import Tokenizer
from transformer.evaluation.metrics import bleu_by_length, bleu_of_longest_third
from transformer.models import ARCHITECTURES, Seq2Seq
from transformer.training.checkpoint_files import average_checkpoints, load_network, read_checkpoint
from transformer.training.checkpoints import Checkpoints
from transformer.training.forgetting import in_words
from transformer.training.logging import TrainingLog
from transformer.training.module import Seq2SeqModule
from transformer.training.runs import program
from transformer.training.scoring import attention_figure
from transformer.training.transfer import merge
from transformer.writing import clear, part, whole, write

Split = Literal["test", "val"]
SHOWN = 5  # translations in the summary; the picture is of one of them
CARD = """# {src} → {tgt}

{model} that translates {src} into {tgt}, trained with the recipe `{recipe}`.

{facts}

```python
from transformer import Translator

{calls}
```
"""


def load_final_weights(trainer: Trainer, module: Seq2SeqModule) -> str:
    """Give the module the weights that the run ends with; returns their name.

    The first process reads them: on other machines the run folder may be another.
    """
    merge(module.model)
    name = _read_final_weights(trainer, module) if trainer.is_global_zero else ""
    weights, name = trainer.strategy.broadcast((module.model.state_dict(), name))
    module.model.load_state_dict(weights)
    return name


def _read_final_weights(trainer: Trainer, module: Seq2SeqModule) -> str:
    saved = next((c for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoints)), None)
    if saved and saved.to_average:
        paths = [saved.folder / name for name in saved.to_average]
        load_network(module.model, average_checkpoints(paths))
        return f"mean of the last {len(paths)} checkpoints" if paths[1:] else "last checkpoint"
    if saved and (best := saved.best_names()):
        load_network(module.model, read_checkpoint(saved.folder / best[0]))
        return "checkpoint with the highest validation BLEU"
    return "last weights"


def evaluate(trainer: Trainer, module: Seq2SeqModule, split: Split) -> dict[str, float]:
    """Loss, perplexity, BLEU and chrF of the module on one split; nothing if it has no batches."""
    module.scorer.begin([], [], "")
    run = trainer.test if split == "test" else trainer.validate
    run(module, datamodule=module.data, verbose=False)
    return module.scorer.scores


def results(
    trainer: Trainer, module: Seq2SeqModule, log: TrainingLog, split: Split | None, weights: str
) -> dict[str, Any]:
    """The content of `results.json`, once the final weights were scored on a split, if on any."""
    totals, data, scorer = log.totals, module.data, module.scorer
    seconds = max(totals["training_seconds"], 1e-9)
    by_length: dict[str, Any] = {}
    if split:
        rows = [(src, found, tgt) for src, tgt, found in zip(*scorer.texts(), strict=True)]
        by_length["bleu_by_length"] = bleu_by_length(scorer.text, rows)
        by_length["bleu_longest_third"] = bleu_of_longest_third(scorer.text, rows)
    else:
        scorer.begin([], [], "")
    return {
        **scorer.results(),
        **by_length,
        "split": split,
        "test": data.specs[split] if split else None,
        "src": data.src,
        "tgt": data.tgt,
        "pairs": data.counts.pairs,
        "validation_bleu": log.curve,
        "model": module.model.describe(),
        "weights": weights,
        "parameters": module.model.count_parameters(),
        "learned_parameters": module.learned_parameters,
        "origin": module.origin,
        "parent": None,
        # Those that began: of a run whose test alone was left Lightning ends none.
        "epochs": trainer.fit_loop.epoch_progress.current.ready,
        "steps": trainer.global_step,
        "seconds": round(totals["seconds"], 3),
        "src_tokens_per_second": round(totals["src_tokens"] / seconds, 1),
        "tgt_tokens_per_second": round(totals["tgt_tokens"] / seconds, 1),
        "recipe": module.recipe.get("name"),
        "seed": module.seed,
        "precision": str(trainer.precision),
        "machine": machine(trainer.strategy.root_device),  # the module was moved away already
        "versions": versions(),
        "limits": None,  # of a run that came to its end: what made it end
    }


def write_results(folder: Path, numbers: dict[str, Any]) -> None:
    """Write `results.json`."""
    text = json.dumps(numbers, indent=2, ensure_ascii=False)
    write(folder / "results.json", text + "\n")


def machine(device: torch.device) -> str:
    """The GPU, or the processor and how many threads it computes with."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    file = Path("/proc/cpuinfo")
    info = file.read_text() if file.exists() else ""
    found = re.search(r"model name\s*: (.*)", info)
    name = found[1] if found else platform.processor() or platform.machine()
    amx = ", AMX" if "amx_bf16" in info else ""
    return f"{' '.join(name.split())}{amx}, {torch.get_num_threads()} threads"


def score_lines(numbers: dict[str, Any]) -> list[str]:
    """Scores of a `results.json` for people: each BLEU with its signature, and the rest."""
    kinds = ("bleu", "signature"), ("bleu_detokenized", "signature_detokenized")
    found = [(numbers[score], numbers[name]) for score, name in kinds if score in numbers]
    return [
        *(f"BLEU {bleu:.2f}   {signature}" for bleu, signature in found),
        f"chrF {numbers['chrf']:.2f}   perplexity {numbers['perplexity']:.3f}",
    ]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide about numbers."""
    own = {"python": platform.python_version(), "transformer": __version__}
    return own | {name: version(name) for name in ("torch", "lightning", "tokenizers", "sacrebleu")}


def save_final(folder: Path, module: Seq2SeqModule, numbers: dict[str, Any]) -> Path | None:
    """Write `bundle/`, `results.json` and `attention.png`; returns the path of the picture, if any.

    A bundle that is there, of a run that ended and was resumed, is put aside. `results.json` comes
    last: a run that is killed before it is there has not ended.
    """
    bundle = folder / "bundle"
    if bundle.exists() and (folder / "results.json").exists():
        aside = next(p for n in count(1) if not (p := folder / f"bundle-before-{n}").exists())
        bundle.rename(aside)
        print(f"\nThe bundle that was in {bundle} is now {aside}", flush=True)
    elif bundle.exists():  # this run was killed here before
        bundle.rename(part(bundle))
        clear(folder)
    training = {key: numbers[key] for key in TRAINING}
    facts = _facts(module, numbers)
    save_with_card(bundle, module.model, module.tokenizer, module.about(), training, facts)
    try:
        return _draw(folder / "attention.png", module)
    finally:
        write_results(folder, numbers)


def _draw(picture: Path, module: Seq2SeqModule) -> Path | None:
    """Draw where the model looked in one of the sentences that the summary shows."""
    shown = module.scorer.samples(SHOWN)
    if (figure := attention_figure(module.model, module.data, shown)) is None:
        return None
    with whole(picture) as stream:
        figure.savefig(stream, format="png", dpi=150)
    return picture


def checkpoint_to_bundle(checkpoint: dict[str, Any], folder: str | Path, weights: str) -> None:
    """Make a bundle of a checkpoint in a new folder; its card says where the weights came from."""
    trained = checkpoint["bundle"]
    tokenizer = Tokenizer(trained["tokenizer"])
    config = ARCHITECTURES[trained["architecture"]](**trained["network"])
    network = config.build(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)
    load_network(network, checkpoint)
    training = {
        "recipe": checkpoint["recipe"].get("name"),
        "epochs": checkpoint["epoch"] + 1,  # Lightning counts from 0
        "steps": checkpoint["global_step"],
    }
    facts = [
        "It was not tested; `transformer test` does that.",
        "",
        f"- weights: {weights}; the last of them at step {training['steps']:,}",
    ]
    save_with_card(folder, network, tokenizer, trained["about"], training, facts)


def save_with_card(
    folder: str | Path,
    model: Seq2Seq,
    tokenizer: Tokenizer,
    about: dict[str, Any],
    training: dict[str, Any],
    facts: list[str],
) -> None:
    """Save a bundle; its card has the facts, lines of Markdown about scores and training."""
    load = 'Translator.load("bundle").translate(["..."]'
    calls = [f"{load})", *(f'{load}, to="{to}")' for to in tokenizer.tags)]
    values = {**about, "model": model.describe(), "recipe": training["recipe"]}
    card = CARD.format(facts="\n".join(facts), calls="\n".join(calls), **values)
    save_bundle(folder, model, tokenizer, card=card, training=training, **about)


def _facts(module: Seq2SeqModule, numbers: dict[str, Any]) -> list[str]:
    shape = ", ".join(f"{key} {value}" for key, value in asdict(module.config).items())  # type: ignore[call-overload]
    scores = ["It was not tested."]
    if numbers["split"]:  # as text: in a table the | of a signature would begin a cell
        scores = [f"Scores on {numbers['split']}:", "", "```text", *score_lines(numbers), "```"]
    mixed = module.data.shares() if module.data.extra_corpora else []  # a stream has no shares
    shares = [f"{src} → {tgt} {100 * share:.1f} %" for src, tgt, share in mixed]
    return [
        *scores,
        "",
        f"- weights: {numbers['weights']}; {numbers['epochs']} epochs, {numbers['steps']:,} steps, "
        f"{numbers['seconds']:,.0f} s",
        f"- size: {numbers['parameters']:,} parameters, {numbers['learned_parameters']:,} of them "
        "learned in this run",
        f"- shape: {shape}",
        *(f"- {line}" for line in numbers["origin"]),
        *([f"- {in_words(numbers['parent'])}"] if numbers["parent"] else []),
        *([f"- training pairs: {', '.join(shares)}"] if shares else []),
    ]


def summary(
    folder: Path, module: Seq2SeqModule, numbers: dict[str, Any], picture: Path | None
) -> str:
    """The last words of `fit`."""
    lines = [
        "",
        f"Trained for {numbers['steps']:,} steps in {numbers['seconds']:,.0f} s "
        f"({numbers['weights']}).",
    ]
    samples = module.scorer.samples(SHOWN)
    if split := numbers["split"]:
        lines += [
            *(f"{split} {line}" for line in score_lines(numbers)),
            *([in_words(numbers["parent"])] if numbers["parent"] else []),
            "",
        ]
        for source, reference, translation in samples:
            lines += [f"  {source}", f"    reference   {reference}"]
            lines.append(f"    translation {translation}")
    if picture:
        lines += ["", f"Where the model looked: {picture}"]
    sentence = shlex.quote(samples[0][0]) if samples else "..."
    bundle = shlex.quote(str(folder / "bundle"))
    corpus = shlex.quote(module.data.specs["test"] or module.data.specs["val"] or "<corpus>")
    offline = sorted(folder.glob("wandb/offline-run-*"))
    lines += [
        "",
        "Try next:",
        f"  {program()} translate {bundle} {sentence}",
        f"  {program()} test {bundle} --data.test {corpus} --beam 1",
        *(f"  {program('wandb')} sync {shlex.quote(str(path))}" for path in offline),
    ]
    return "\n".join(lines)
