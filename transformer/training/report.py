"""The end of a run: its final weights, their scores, results.json, the model card, the summary."""

import json
import platform
import re
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer

from transformer import __version__
from transformer.bundle import TRAINING, save_bundle
from transformer.evaluation.metrics import bleu_by_length, bleu_of_longest_third
from transformer.training.adapters import merge
from transformer.training.averaging import average_checkpoints, load_network, read_checkpoint
from transformer.training.callbacks import TrainingLog
from transformer.training.checkpoints import Checkpoints
from transformer.training.forgetting import in_words
from transformer.training.module import Seq2SeqModule
from transformer.training.runs import program
from transformer.training.tracking import attention_figure, samples
from transformer.writing import whole, write

Split = Literal["test", "val"]
SHOWN = 5  # translations in the summary; the picture is of one of them


def load_final_weights(trainer: Trainer, module: Seq2SeqModule) -> str:
    """Give the module the weights that the run ends with.

    Returns:
        What they are: the mean of checkpoints where the recipe asks for it, else the checkpoint
        with the highest BLEU, else the last weights.
    """
    merge(module.model)
    saved = next((c for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoints)), None)
    if saved and saved.weights:
        paths = [saved.folder / name for name in saved.weights]
        load_network(module.model, average_checkpoints(paths))
        return f"mean of the last {len(paths)} checkpoints"
    if saved and saved.best:
        load_network(module.model, read_checkpoint(saved.folder / saved.best))
        return "checkpoint with the highest validation BLEU"
    return "last weights"


def evaluate(trainer: Trainer, module: Seq2SeqModule, split: Split) -> dict[str, float]:
    """Loss, perplexity, BLEU and chrF of the module on one split; nothing if it has no batches."""
    module.scorer.forget()
    run = trainer.test if split == "test" else trainer.validate
    run(module, datamodule=module.data, verbose=False)
    return module.scorer.scores


def results(
    trainer: Trainer,
    module: Seq2SeqModule,
    log: TrainingLog,
    scores: dict[str, float],
    split: Split | None,
    weights: str,
) -> dict[str, Any]:
    """What `results.json` holds; scores are null where there was nothing to test on.

    Args:
        trainer: after training.
        module: with the final weights.
        log: the totals of the run.
        scores: of the final weights.
        split: what they were scored on.
        weights: which weights they are, in words.
    """
    totals = log.totals
    seconds = max(totals["training_seconds"], 1e-9)
    return {
        "bleu": scores.get("bleu"),
        "chrf": scores.get("chrf"),
        "signature": module.scorer.text.signature,
        "chrf_signature": module.scorer.text.chrf_signature,
        **detokenized(module, scores),
        "loss": scores.get("loss"),
        "perplexity": scores.get("perplexity"),
        **_by_length(module, split),
        "split": split,
        "test": module.data.specs[split] if split else None,
        "src": module.data.src,
        "tgt": module.data.tgt,
        "pairs": module.data.counts.pairs,
        "validation_bleu": log.curve,
        "model": module.model.describe(),
        "weights": weights,
        "parameters": module.model.count_parameters(),
        "learned_parameters": module.learned_parameters,
        "origin": module.origin,
        "old_pair": None,
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "seconds": round(totals["seconds"], 3),
        "src_tokens_per_second": round(totals["src_tokens"] / seconds, 1),
        "tgt_tokens_per_second": round(totals["tgt_tokens"] / seconds, 1),
        "recipe": module.recipe.get("name"),
        "seed": module.seed,
        "precision": str(trainer.precision),
        "machine": machine(trainer.strategy.root_device),  # the module was moved away already
        "versions": versions(),
    }


def _by_length(module: Seq2SeqModule, split: Split | None) -> dict[str, Any]:
    """BLEU by the words of the source, of the sentences that were translated."""
    if not split:
        return {}
    sources, references = module.data.texts(split)
    found = sorted(module.scorer.translations.items())
    texts = [sources[i] for i, _ in found], [text for _, text in found]
    args = module.scorer.text, *texts, [references[i] for i, _ in found]
    return {
        "bleu_by_length": [list(b) for b in bleu_by_length(*args)],
        "bleu_longest_third": bleu_of_longest_third(*args),
    }


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


def detokenized(module: Seq2SeqModule, scores: dict[str, float]) -> dict[str, Any]:
    """BLEU of the detokenised text, and its signature, where the recipe asks for them."""
    if module.scorer.detokenized is None:
        return {}
    return {
        "bleu_detokenized": scores.get("bleu_detokenized"),
        "signature_detokenized": module.scorer.detokenized.signature,
    }


def bleus(numbers: dict[str, Any]) -> list[tuple[float, str]]:
    """Each BLEU among some results with its signature, of the detokenised text last."""
    kinds = ("bleu", "signature"), ("bleu_detokenized", "signature_detokenized")
    return [(numbers[score], numbers[name]) for score, name in kinds if score in numbers]


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide about numbers."""
    own = {"python": platform.python_version(), "transformer": __version__}
    return own | {name: version(name) for name in ("torch", "lightning", "tokenizers", "sacrebleu")}


def save_final(
    folder: Path, module: Seq2SeqModule, numbers: dict[str, Any], weights: str
) -> Path | None:
    """Write `bundle/`, `results.json` and `attention.png` into the run folder.

    Returns:
        The path of the picture, if there was a sentence to draw.
    """
    bundle = folder / "bundle"
    card = model_card(module, numbers, weights)
    if bundle.exists():  # this run ended here before, and was resumed
        _put_aside(bundle)
    training = {key: numbers[key] for key in TRAINING}
    save_bundle(
        bundle, module.model, module.tokenizer, card=card, training=training, **module.about
    )
    text = json.dumps(numbers, indent=2, ensure_ascii=False)
    write(folder / "results.json", text + "\n")
    shown = samples(module, numbers["split"], SHOWN) if numbers["split"] else []
    if (figure := attention_figure(module, shown)) is None:
        return None
    picture = folder / "attention.png"
    with whole(picture) as stream:
        figure.savefig(stream, format="png", dpi=150)
    return picture


def _put_aside(bundle: Path) -> None:
    """Somebody may need the bundle of before, or the new one may not get written."""
    names = (bundle.with_name(f"bundle-before-{n}") for n in range(1, sys.maxsize))
    aside = next(path for path in names if not path.exists())
    bundle.rename(aside)
    print(f"\nThe bundle that was in {bundle} is now {aside}", flush=True)


def model_card(module: Seq2SeqModule, numbers: dict[str, Any], weights: str) -> str:
    """The bundle's README.md."""
    data = module.data
    shape = module.config
    tags = module.tokenizer.tags
    lines = [
        f"# {data.src} → {data.tgt}",
        "",
        f"{module.model.describe()} that translates {data.src} into {data.tgt}, trained "
        f"with the recipe `{numbers['recipe']}`.",
        "",
        *(_score_lines(numbers) if numbers["split"] else ["It was not tested.", ""]),
        f"- weights: {weights}; {numbers['epochs']} epochs, {numbers['steps']:,} steps, "
        f"{numbers['seconds']:,.0f} seconds",
        f"- shape: {numbers['parameters']:,} parameters, {numbers['learned_parameters']:,} of them "
        f"learned in this run; {shape}",
        *(f"- {line}" for line in numbers["origin"]),
        *([f"- {in_words(numbers['old_pair'])}"] if numbers["old_pair"] else []),
        *(_mixture_lines(data.shares()) if data.extra_corpora else []),
        "",
        "```python",
        "from transformer import Translator",
        "",
        'Translator.load("bundle").translate(["..."])',
        *([f'Translator.load("bundle").translate(["..."], to="{to}")' for to in tags]),
        "```",
        "",
    ]
    return "\n".join(lines)


def _score_lines(numbers: dict[str, Any]) -> list[str]:
    return [
        f"| {numbers['split']} | |",
        "|---|---|",
        *(f"| BLEU | {bleu:.2f} `{signature}` |" for bleu, signature in bleus(numbers)),
        f"| chrF | {numbers['chrf']:.2f} |",
        f"| perplexity | {numbers['perplexity']:.3f} |",
        "",
    ]


def _mixture_lines(shares: list[tuple[str, str, float]]) -> list[str]:
    pairs = (f"{src} → {tgt} {100 * share:.1f} %" for src, tgt, share in shares)
    return [f"- training pairs: {', '.join(pairs)}"]


def summary(
    folder: Path, module: Seq2SeqModule, numbers: dict[str, Any], weights: str, picture: Path | None
) -> str:
    """What `fit` prints at its end."""
    lines = [
        "",
        f"Trained for {numbers['steps']:,} steps in {numbers['seconds']:,.0f} s ({weights}).",
    ]
    split = numbers["split"]
    if split:
        lines += [
            *(f"{split} BLEU {bleu:.2f}   {signature}" for bleu, signature in bleus(numbers)),
            f"{split} chrF {numbers['chrf']:.2f}   perplexity {numbers['perplexity']:.3f}",
            *([in_words(numbers["old_pair"])] if numbers["old_pair"] else []),
            "",
        ]
        for source, reference, translation in samples(module, split, SHOWN):
            lines += [
                f"  {source}",
                f"    reference   {reference}",
                f"    translation {translation}",
            ]
    if picture:
        lines += ["", f"Where the model looked: {picture}"]
    return "\n".join([*lines, "", "Try next:", *next_commands(folder, module, split)])


def next_commands(folder: Path, module: Seq2SeqModule, split: Split | None) -> list[str]:
    """Commands that go on from here."""
    shown = samples(module, split, SHOWN) if split else []
    sentence = shlex.quote(shown[0][0]) if shown else "..."
    bundle = shlex.quote(str(folder / "bundle"))
    lines = [f"  {program()} translate {bundle} {sentence}"]
    corpus = shlex.quote(module.data.specs["test"] or module.data.specs["val"] or "<corpus>")
    lines += [f"  {program()} test {bundle} --data.test {corpus} --beam 1"]
    offline = sorted(folder.glob("wandb/offline-run-*"))
    return lines + [f"  {program('wandb')} sync {shlex.quote(str(path))}" for path in offline]
