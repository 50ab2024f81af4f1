"""The texts at the end of a run: the bundle with its model card, results.json, the summary."""

import shlex
import sys
from pathlib import Path
from typing import Any

from transformer.bundle import TRAINING, save_bundle
from transformer.training.checkpoints import about
from transformer.training.forgetting import in_words
from transformer.training.module import Seq2SeqModule
from transformer.training.results import bleus, write_results
from transformer.training.runs import program
from transformer.training.scoring import attention_figure
from transformer.writing import whole

SHOWN = 5  # translations in the summary; the picture is of one of them


def save_final(folder: Path, module: Seq2SeqModule, numbers: dict[str, Any]) -> Path | None:
    """Write `bundle/`, `results.json` and `attention.png` into the run folder.

    Returns:
        The path of the picture, if there was a sentence to draw.
    """
    bundle = folder / "bundle"
    if bundle.exists():  # this run ended here before, and was resumed
        _put_aside(bundle)
    training = {key: numbers[key] for key in TRAINING}
    card = model_card(module, numbers)
    save_bundle(
        bundle, module.model, module.tokenizer, card=card, training=training, **about(module)
    )
    write_results(folder, numbers)
    shown = module.scorer.samples(SHOWN)
    if (figure := attention_figure(module.model, module.data, shown)) is None:
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


def model_card(module: Seq2SeqModule, numbers: dict[str, Any]) -> str:
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
        f"- weights: {numbers['weights']}; {numbers['epochs']} epochs, {numbers['steps']:,} steps, "
        f"{numbers['seconds']:,.0f} seconds",
        f"- shape: {numbers['parameters']:,} parameters, {numbers['learned_parameters']:,} of them "
        f"learned in this run; {shape}",
        *(f"- {line}" for line in numbers["origin"]),
        *([f"- {in_words(numbers['parent'])}"] if numbers["parent"] else []),
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
    folder: Path, module: Seq2SeqModule, numbers: dict[str, Any], picture: Path | None
) -> str:
    """The last words of `fit`."""
    lines = [
        "",
        f"Trained for {numbers['steps']:,} steps in {numbers['seconds']:,.0f} s "
        f"({numbers['weights']}).",
    ]
    split = numbers["split"]
    if split:
        lines += [
            *(f"{split} BLEU {bleu:.2f}   {signature}" for bleu, signature in bleus(numbers)),
            f"{split} chrF {numbers['chrf']:.2f}   perplexity {numbers['perplexity']:.3f}",
            *([in_words(numbers["parent"])] if numbers["parent"] else []),
            "",
        ]
        for source, reference, translation in module.scorer.samples(SHOWN):
            lines += [
                f"  {source}",
                f"    reference   {reference}",
                f"    translation {translation}",
            ]
    if picture:
        lines += ["", f"Where the model looked: {picture}"]
    return "\n".join([*lines, "", "Try next:", *next_commands(folder, module)])


def next_commands(folder: Path, module: Seq2SeqModule) -> list[str]:
    """Commands that go on from here."""
    shown = module.scorer.samples(SHOWN)
    sentence = shlex.quote(shown[0][0]) if shown else "..."
    bundle = shlex.quote(str(folder / "bundle"))
    lines = [f"  {program()} translate {bundle} {sentence}"]
    corpus = shlex.quote(module.data.specs["test"] or module.data.specs["val"] or "<corpus>")
    lines += [f"  {program()} test {bundle} --data.test {corpus} --beam 1"]
    offline = sorted(folder.glob("wandb/offline-run-*"))
    return lines + [f"  {program('wandb')} sync {shlex.quote(str(path))}" for path in offline]
