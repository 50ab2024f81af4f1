"""Reproducing a recipe: the text and the curve of the measured runs, and their rows."""

import json
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning.pytorch import Callback, Trainer

from transformer.data.corpus import Corpus, Table, TwoFiles
from transformer.data.files import UNZIP_ERRORS, lines, sha256, unzipped
from transformer.errors import UserError
from transformer.training.logging import TrainingLog, of_training

#: What each row of measured runs must have.
NEEDED = (
    "recipe", "changes", "bleu", "signature", "validation_bleu", "bleu_by_length", "test",
    "machine", "versions",
)  # fmt: skip
CHECKSUMS = "SHA256SUMS"
#: How far from the measured run BLEU still counts as on its curve. The highest BLEU so far of two
#: seeds of recipes/multi30k/transformer_small_de_en.yaml differs by up to 2.6 at the same epoch.
TOLERANCE = 3.0


def check_data(corpora: Sequence[Corpus], folder: Path) -> int:
    """Compare text with the checksums beside the recipes of its corpus; returns how many files.

    The sums are of the plain text, as `sha256sum` prints them, whether a file is gzipped or not.
    Data sets of the hub have none; without SHA256SUMS there is nothing to compare with.
    """
    sums = folder / CHECKSUMS
    if not sums.exists():
        return 0
    expected = {line.split()[1]: line.split()[0] for line in lines(sums, CHECKSUMS)}
    tables = [corpus.file for corpus in corpora if isinstance(corpus, Table)]
    pairs = [file for corpus in corpora if isinstance(corpus, TwoFiles) for file in corpus.files]
    for file in (*tables, *pairs):
        try:
            with unzipped(file) as stream:
                found = sha256(stream)
        except UNZIP_ERRORS as error:
            raise UserError(f"{file} is not a whole gzip file ({error})") from None
        name = file.name.removesuffix(".gz")
        if name not in expected:
            raise UserError(
                f"{file}: {sums} has no {name}, but {', '.join(sorted(expected))}: "
                "give the files of the recipe, or train on others with `transformer fit`"
            )
        if found != expected[name]:
            raise UserError(
                f"{file}: its text has the SHA-256 {found}, the recipe was measured on "
                f"{expected[name]}: download it again, or use `transformer fit`"
            )
    return len(tables) + len(pairs)


class Curve(Callback):
    """Says after each validation whether the run goes as the mean of the measured ones."""

    def __init__(self, log: TrainingLog, reference: list[float]) -> None:
        self.own, self.reference = log, reference

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        done = len(self.own.curve)
        if not of_training(trainer) or not trainer.is_global_zero or done > len(self.reference):
            return
        found, expected = max(self.own.curve), self.reference[done - 1]
        bar = trainer.progress_bar_callback
        say = bar.print if bar else print
        say(f"  {where(found, expected)}: BLEU up to {found:.2f}, the measured run {expected:.2f}")


def where(found: float, expected: float) -> str:
    """Says whether BLEU is on the curve, above it, or below."""
    if abs(found - expected) <= TOLERANCE:
        return "on the curve"
    return "above the curve" if found > expected else "OFF the curve"


def mean_curve(rows: list[dict[str, Any]]) -> list[float]:
    """The highest BLEU up to each validation, the mean of some runs as far as all of them went.

    The highest, for single validations of the measured runs fall by up to 3.4 BLEU below it.
    """
    curves = [accumulate(row["validation_bleu"], max) for row in rows]
    return [fmean(values) for values in zip(*curves, strict=False)]


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The measured runs in a file, if it exists: `results.json`, and `changes` of the recipe."""
    rows = []
    for number, line in enumerate(lines(file, "results") if file.exists() else (), 1):
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{file}, line {number}: not JSON ({error})") from None
        rows.append(_checked(row, f"{file}, line {number}"))
    return rows


def add_row(file: Path, row: dict[str, Any]) -> None:
    """Append a run to a file, which is made if need be; refuse what `read_rows` would refuse."""
    _checked(row, f"{file}, a new line")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")


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
