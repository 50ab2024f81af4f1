"""`transformer reproduce`: train a recipe whose results are known, and note what came out."""

import argparse
import json
import shlex
import shutil
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from typing import Any

from lightning.pytorch import Callback, Trainer

from transformer.commands.arguments import Peek
from transformer.commands.fit import prepared
from transformer.commands.recipes import CONFIG_OPTIONS, content, find_recipe, read, recipes_folder
from transformer.data.corpus import Corpus
from transformer.data.files import UNZIP_ERRORS, lines, sha256, unzipped
from transformer.errors import UserError
from transformer.settings import parsed
from transformer.training.logging import TrainingLog, of_training
from transformer.training.train import Run, train

DESCRIPTION = """Train a recipe as `transformer fit` does, after comparing the text with the
checksums beside it; say after each validation whether the run is on the curve of the measured
runs; append a row to a file of results, and put the attention heatmap beside it."""
EPILOG = """All further options are those of `transformer fit`, such as --seed_everything 2
--existing number; those that change the recipe are noted in the row."""
#: Options that leave the recipe what it is: where its text lies, what is written and shown where.
NEUTRAL = (
    "data.train", "data.val", "data.test", "data.cache", "data.num_workers", "run_dir", "existing",
    "logger", "seed_everything", "trainer.enable_progress_bar",
)  # fmt: skip

#: What each row of measured runs must have.
NEEDED = (
    "recipe", "changes", "bleu", "signature", "validation_bleu", "bleu_by_length", "test",
    "machine", "versions",
)  # fmt: skip
CHECKSUMS = "SHA256SUMS"
#: How far from the measured run BLEU still counts as on its curve. The highest BLEU so far of two
#: seeds of recipes/multi30k/transformer_small_de_en.yaml differs by up to 2.6 at the same epoch.
TOLERANCE = 3.0


def main(args: Sequence[str]) -> int:
    """Runs the command; the exit code is that of `fit`."""
    parser = Peek(
        prog="transformer reproduce", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False
    )
    parser.add_argument("recipe", help="such as recipes/multi30k/rnn_dot_de_en.yaml")
    parser.add_argument("--corpus", type=Path, help="folder of the text; the recipe's if left out")
    its = Path("runs", "results.jsonl")
    parser.add_argument("--results", type=Path, default=its, help="file to append to (%(default)s)")
    parser.add_argument("--ckpt_path", help="checkpoint of a stopped run, to resume it")
    given, options = parser.parse_known_args(args)
    if args[0] != given.recipe:  # an option of fit may stand before it, and its value be taken
        raise UserError("the recipe must come first: transformer reproduce <recipe> [options]")
    return reproduce(Path(find_recipe(given.recipe)), given, options)


def reproduce(recipe: Path, given: argparse.Namespace, options: list[str]) -> int:
    """Trains a recipe and appends its results; the exit code is that of training."""
    changed = changes(options)
    args = ["--config", str(recipe), *moved(recipe, given.corpus), *options]
    places = [f"--corpus={given.corpus}"] if given.corpus else []
    again = shlex.join(["reproduce", str(recipe), *places, f"--results={given.results}", *options])
    resume = [f"--ckpt_path={given.ckpt_path}"] if given.ckpt_path else []
    with prepared([*args, *resume], again) as run:
        compared = compare(run, recipe, changed)
        why = no_row(run)
        is_first = run.trainer.is_global_zero
        if is_first:
            print(compared)
            if why:
                print(f"Nothing will be appended to {given.results}: {why}", flush=True)
        before = tested(run)
        code = train(run)
        # A run that was stopped while its bundle was on its way to W&B has its results.
        if is_first and not why and (row := tested(run)) not in (None, before):
            append(run, row, given.results, changed)
    return code


def tested(run: Run) -> Any:
    """What is in the results of a run, if they are whole and of its test."""
    try:
        row = json.loads((run.folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return row if isinstance(row, dict) and row.get("bleu") is not None else None


def compare(run: Run, recipe: Path, changed: list[str]) -> str:
    """Compares text with checksums, and lets the run be compared; says with what."""
    files = check_data(run.data.corpora(), recipe.parent)
    rows = [row for file in sorted(recipes_folder().glob("*.jsonl")) for row in read_rows(file)]
    measured = [
        row for row in rows if row["recipe"] == run.name and set(row["changes"]) == set(changed)
    ]
    if measured:
        run.trainer.callbacks.append(Curve(run.log, mean_curve(measured)))  # type: ignore[attr-defined]
    text = (
        f"{files} files of text are those of the recipe" if files else "the text has no checksums"
    )
    return f"{text}; measured runs: {len(measured)}"


def no_row(run: Run) -> str | None:
    """Says why what comes out cannot be compared with other runs; None if it can."""
    if not run.config.data.test:
        return "data.test is null"
    limit = run.trainer.limit_test_batches
    if isinstance(limit, int) or limit < 1.0:  # 1 is a batch, 1.0 is all of them
        return "a part of the test set is left out (trainer.limit_test_batches, fast_dev_run)"
    return None


def append(run: Run, row: dict[str, Any], results: Path, changed: list[str]) -> None:
    """Appends the row of a run, and keeps its heatmap, unless there is that of another seed."""
    add_row(results, {**row, "changes": changed})
    print(f"\nAppended to {results}")
    drawn = run.folder / "attention.png"
    kept = results.parent / "pictures" / f"{run.name.replace('/', '-')}.png"
    if drawn.exists() and not kept.exists() and not changed:
        kept.parent.mkdir(exist_ok=True)
        shutil.copyfile(drawn, kept)
        print(f"Where the model looked: {kept}")


def moved(recipe: Path, corpus: Path | None) -> list[str]:
    """Returns options that take the files of a recipe from another folder."""
    data = content(read(recipe)).get("data")
    if corpus is None or not isinstance(data, dict):  # fit says what is wrong with it
        return []
    options = []
    for split in ("train", "val", "test"):
        name = str(data.get(split) or "")
        if ":" in name:
            raise UserError(
                f"--corpus {corpus}: {recipe} takes data.{split} from {name}, not from a file: "
                "name yours with --data.train, --data.val and --data.test"
            )
        options += [f"--data.{split}={corpus / Path(name).name}"] if name else []
    if isinstance(extra := data.get("extra_corpora"), list):
        for entry in extra:
            if isinstance(entry, dict) and ":" not in str(entry.get("train", ":")):
                entry["train"] = str(corpus / Path(str(entry["train"])).name)
        options.append(f"--data.extra_corpora={json.dumps(extra)}")
    return options


def changes(options: list[str]) -> list[str]:
    """Returns the options, each `key=value`, that make another run of it than the recipe."""
    joined: list[str] = []
    for option in options:
        if option.partition("=")[0] in CONFIG_OPTIONS:
            raise UserError(f"{option}: reproduce takes one recipe; name what differs as options")
        if option.startswith("--"):
            joined.append(option.removeprefix("--"))
        elif joined:
            joined[-1] += f"={option}"
    # Without a validation set another checkpoint is the final one.
    return [o for o in joined if o.partition("=")[0] not in NEUTRAL or o == "data.val=null"]


def check_data(corpora: Sequence[Corpus], folder: Path) -> int:
    """Compare text with the checksums beside the recipes of its corpus; returns how many files.

    The sums are of the plain text, as `sha256sum` prints them, whether a file is gzipped or not.
    Data sets of the hub have none; without SHA256SUMS there is nothing to compare with.
    """
    sums = folder / CHECKSUMS
    if not sums.exists():
        return 0
    expected = {line.split()[1]: line.split()[0] for line in lines(sums, CHECKSUMS)}
    files = [file for corpus in corpora for file in corpus.files]
    for file in files:
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
    return len(files)


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
    found = enumerate(lines(file, "results") if file.exists() else (), 1)
    placed = ((f"{file}, line {number}", line) for number, line in found)
    return [_checked(parsed(line, place), place) for place, line in placed]


def add_row(file: Path, row: dict[str, Any]) -> None:
    """Append a run to a file, which is made if need be; refuse what `read_rows` would refuse."""
    _checked(row, f"{file}, a new line")
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as stream:
        stream.write(json.dumps(row, ensure_ascii=False) + "\n")


def _checked(row: dict[str, Any], where: str) -> dict[str, Any]:
    for key in NEEDED:
        if row.get(key) is None:
            raise UserError(
                f"{where}: no {key!r}: it must be a row that `transformer reproduce` wrote, of a "
                "recipe with a test set"
            )
    return row
