"""The texts at the end of a run: the bundle with its model card, results.json, the summary."""

import shlex
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformer.bundle import TRAINING, save_bundle
from transformer.data.tokenizer import Tokenizer
from transformer.models import ARCHITECTURES, Seq2Seq
from transformer.training.checkpoints import about, load_network
from transformer.training.forgetting import in_words
from transformer.training.module import Seq2SeqModule
from transformer.training.results import score_lines, write_results
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
    model, tokenizer, data = module.model, module.tokenizer, module.data
    facts = _facts(module, numbers)
    card = model_card(model, tokenizer, data.src, data.tgt, numbers["recipe"], facts)
    save_bundle(bundle, model, tokenizer, card=card, training=training, **about(module))
    write_results(folder, numbers)
    shown = module.scorer.samples(SHOWN)
    if (figure := attention_figure(model, data, shown)) is None:
        return None
    picture = folder / "attention.png"
    with whole(picture) as stream:
        figure.savefig(stream, format="png", dpi=150)
    return picture


def _put_aside(bundle: Path) -> None:
    """Keeps a bundle: somebody may need it, or the new one may not get written."""
    names = (bundle.with_name(f"bundle-before-{n}") for n in range(1, sys.maxsize))
    aside = next(path for path in names if not path.exists())
    bundle.rename(aside)
    print(f"\nThe bundle that was in {bundle} is now {aside}", flush=True)


def checkpoint_to_bundle(checkpoint: dict[str, Any], folder: str | Path, weights: str) -> None:
    """Make a bundle of a checkpoint in a new folder; its card says where the weights came from."""
    trained = checkpoint["bundle"]
    about = trained["about"]
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
    languages = about["src"], about["tgt"]
    card = model_card(network, tokenizer, *languages, training["recipe"], facts)
    save_bundle(folder, network, tokenizer, card=card, training=training, **about)


def model_card(
    model: Seq2Seq, tokenizer: Tokenizer, src: str, tgt: str, recipe: str | None, facts: list[str]
) -> str:
    """The bundle's README.md; the facts are lines of Markdown about scores and training."""
    load = 'Translator.load("bundle").translate(["..."]'
    lines = [
        f"# {src} → {tgt}",
        "",
        f"{model.describe()} that translates {src} into {tgt}, trained with the recipe `{recipe}`.",
        "",
        *facts,
        "",
        "```python",
        "from transformer import Translator",
        "",
        f"{load})",
        *(f'{load}, to="{to}")' for to in tokenizer.tags),
        "```",
        "",
    ]
    return "\n".join(lines)


def _facts(module: Seq2SeqModule, numbers: dict[str, Any]) -> list[str]:
    shape = ", ".join(f"{key} {value}" for key, value in asdict(module.config).items())  # type: ignore[call-overload]
    scores = ["It was not tested."]
    if numbers["split"]:  # as text: in a table the | of a signature would begin a cell
        scores = [f"Scores on {numbers['split']}:", "", "```text", *score_lines(numbers), "```"]
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
        *(_mixture_lines(module.data.shares()) if module.data.extra_corpora else []),
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
    samples = module.scorer.samples(SHOWN)
    if split := numbers["split"]:
        lines += [
            *(f"{split} {line}" for line in score_lines(numbers)),
            *([in_words(numbers["parent"])] if numbers["parent"] else []),
            "",
        ]
        for source, reference, translation in samples:
            lines += [
                f"  {source}",
                f"    reference   {reference}",
                f"    translation {translation}",
            ]
    if picture:
        lines += ["", f"Where the model looked: {picture}"]
    return "\n".join([*lines, "", "Try next:", *next_commands(folder, module, samples)])


def next_commands(
    folder: Path, module: Seq2SeqModule, samples: list[tuple[str, str, str]]
) -> list[str]:
    """Commands that go on from here."""
    sentence = shlex.quote(samples[0][0]) if samples else "..."
    bundle = shlex.quote(str(folder / "bundle"))
    lines = [f"  {program()} translate {bundle} {sentence}"]
    corpus = shlex.quote(module.data.specs["test"] or module.data.specs["val"] or "<corpus>")
    lines += [f"  {program()} test {bundle} --data.test {corpus} --beam 1"]
    offline = sorted(folder.glob("wandb/offline-run-*"))
    return lines + [f"  {program('wandb')} sync {shlex.quote(str(path))}" for path in offline]
