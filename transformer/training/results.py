"""The final weights of a run, their scores, and the rows of measured runs.

`results.json` of a run and `changes`, the options in which it differed from its recipe, are a row
of a file such as `recipes/results.jsonl`.
"""

import json
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer

from transformer import __version__
from transformer.data.files import lines
from transformer.errors import UserError
from transformer.evaluation.metrics import bleu_by_length, bleu_of_longest_third
from transformer.training.checkpoints import average_checkpoints, load_network, read_checkpoint
from transformer.training.logging import TrainingLog
from transformer.training.module import Seq2SeqModule
from transformer.training.saving import Checkpoints
from transformer.training.scoring import Scorer
from transformer.training.transfer import merge
from transformer.writing import write

Split = Literal["test", "val"]
NEEDED = (
    "recipe", "changes", "bleu", "signature", "validation_bleu", "bleu_by_length", "test",
    "machine", "versions",
)  # fmt: skip


def load_final_weights(trainer: Trainer, module: Seq2SeqModule) -> str:
    """Give the module the weights that the run ends with; returns their name.

    They are the mean of checkpoints where the recipe asks for it, else the checkpoint with the
    highest BLEU, else the last weights.
    """
    merge(module.model)
    saved = next((c for c in trainer.checkpoint_callbacks if isinstance(c, Checkpoints)), None)
    if saved and saved.to_average:
        paths = [saved.folder / name for name in saved.to_average]
        load_network(module.model, average_checkpoints(paths))
        return f"mean of the last {len(paths)} checkpoints"
    if saved and saved.best:
        load_network(module.model, read_checkpoint(saved.folder / saved.best))
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
    totals, data = log.totals, module.data
    seconds = max(totals["training_seconds"], 1e-9)
    if not split:
        module.scorer.begin([], [], "")
    return {
        **module.scorer.results(),
        **(_by_length(module.scorer) if split else {}),
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


def write_results(folder: Path, numbers: dict[str, Any]) -> None:
    """Write `results.json`."""
    text = json.dumps(numbers, indent=2, ensure_ascii=False)
    write(folder / "results.json", text + "\n")


def _by_length(scorer: Scorer) -> dict[str, Any]:
    """BLEU by the words of the source, of the sentences that were translated."""
    sources, references, translations = scorer.texts()
    texts = scorer.text, sources, translations, references
    return {
        "bleu_by_length": [list(b) for b in bleu_by_length(*texts)],
        "bleu_longest_third": bleu_of_longest_third(*texts),
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


def score_lines(numbers: dict[str, Any]) -> list[str]:
    """Scores for people: each BLEU with its signature, of the detokenised text last, and the rest.

    Args:
        numbers: the content of a `results.json`.
    """
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


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The measured runs in a file; none where there is no file.

    Raises:
        UserError: which line is not one.
    """
    rows = []
    for number, line in enumerate(lines(file, "results") if file.exists() else (), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file}, line {number}: not JSON ({error})") from None
        rows.append(_checked(row, f"{file}, line {number}"))
    return rows


def _checked(row: Any, where: str) -> dict[str, Any]:
    if isinstance(row, dict) and "old_pair" in row:  # its name before
        row["parent"] = row.pop("old_pair")
    for key in NEEDED:
        if not isinstance(row, dict) or row.get(key) is None:
            raise UserError(
                f"{where}: no {key!r}: it must be a row that `transformer reproduce` wrote, of a "
                "recipe with a test set"
            )
    return dict(row)


def add_row(file: Path, row: dict[str, Any]) -> None:
    """Append a run to a file, which is made if need be.

    Raises:
        UserError: when `read_rows` would refuse it.
    """
    _checked(row, f"{file}, a new line")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")
