"""Reproducing a recipe: is the text that of the measured runs, and is the run on their curve?"""

from collections.abc import Iterable
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning.pytorch import Callback, Trainer

from transformer.data.corpus import Corpus, Table, TwoFiles
from transformer.data.files import UNZIP_ERRORS, lines, sha256, unzipped
from transformer.errors import UserError
from transformer.training.logging import TrainingLog, of_training

CHECKSUMS = "SHA256SUMS"
#: How far from the measured run BLEU still counts as on its curve. The highest BLEU so far of two
#: seeds of recipes/multi30k/transformer_small_de_en.yaml differs by up to 2.6 at the same epoch.
TOLERANCE = 3.0


def check_data(corpora: Iterable[Corpus], folder: Path) -> int:
    """Compare text with the checksums beside the recipes of its corpus.

    The sums are of the plain text, as `sha256sum` prints them, whether a file is gzipped or not.

    Args:
        corpora: what the recipe trains and tests on.
        folder: of the recipe; without SHA256SUMS in it, or for a data set of the hub, there is
            nothing to compare with.

    Returns:
        How many files were compared.

    Raises:
        UserError: which file is not the one that the recipe was measured on.
    """
    if not (folder / CHECKSUMS).exists():
        return 0
    sums = (line.split() for line in lines(folder / CHECKSUMS, CHECKSUMS))
    expected = {name: digest for digest, name in sums}
    files = [file for corpus in corpora for file in _files(corpus)]
    for file in files:
        name = file.name.removesuffix(".gz")
        found = _digest(file)
        if name not in expected:
            raise UserError(
                f"{file}: {folder / CHECKSUMS} has no {name}, but {', '.join(sorted(expected))}: "
                "give the files of the recipe, or train on others with `transformer fit`"
            )
        if found != expected[name]:
            raise UserError(
                f"{file}: its text has the SHA-256 {found}, the recipe was measured on "
                f"{expected[name]}: download it again, or use `transformer fit`"
            )
    return len(files)


def _files(corpus: Corpus) -> tuple[Path, ...]:
    if isinstance(corpus, TwoFiles):
        return corpus.files
    return (corpus.file,) if isinstance(corpus, Table) else ()


def _digest(file: Path) -> str:
    try:
        with unzipped(file) as stream:
            return sha256(stream)
    except UNZIP_ERRORS as error:
        raise UserError(f"{file} is not a whole gzip file ({error})") from None


class Curve(Callback):
    """Says after each validation whether the run goes as the measured ones went.

    Args:
        log: where the run's own BLEU is.
        reference: the highest BLEU up to each validation, the mean of the measured runs.
    """

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
