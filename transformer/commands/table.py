"""`transformer table`: the results of reproduced recipes as a Markdown table and a plot."""

import json
import os
import shlex
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from transformer.commands.arguments import OptionParser
from transformer.errors import UserError
from transformer.training.reproduction import read_rows
from transformer.writing import write

DESCRIPTION = """Writes what `transformer reproduce` has appended to a file of results into a
Markdown file, between two lines that hold the comments <!-- results --> and <!-- /results --> (for
results.jsonl; of another file its name), and draws BLEU by length into pictures/ beside the
results. Published numbers come from published.json beside the results. Runs that began from a
bundle, and those to compare them with, have a table of their own kind."""
Row = dict[str, Any]


def main(args: Sequence[str]) -> int:
    """Runs the command."""
    parser = OptionParser(prog="transformer table", description=DESCRIPTION)
    parser.add(table, {"results": None, "markdown": None})
    table(**vars(parser.parse_args(args)))
    return 0


def table(results: str, markdown: str) -> None:
    """Replaces the table in a Markdown file.

    Args:
        results: File of rows that `transformer reproduce` wrote.
        markdown: File with the two comments.

    Raises:
        ValueError: If there are no rows, or the comments are missing.
    """
    source, target = Path(results), Path(markdown)
    rows = read_rows(source)
    if not rows:
        raise UserError(f"{source} has no results: run `transformer reproduce` first")
    text = target.read_text(encoding="utf-8")
    comments = f"<!-- {source.stem} -->", f"<!-- /{source.stem} -->"
    before, begin, rest = text.partition(comments[0])
    _, end, after = rest.partition(comments[1])
    if not (begin and end):
        raise UserError(
            f"{target} must have the lines {' and '.join(comments)}, between which to write"
        )
    file = source.with_name("published.json")
    try:
        published = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error})") from None
    parts = [described(rows, published), *pictures(rows, source.parent, target.parent)]
    write(target, "\n".join([f"{before}{begin}", *parts, f"{end}{after}"]))
    print(f"{len(rows)} runs -> {target}")


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Runs that differ in their seed alone, in the order in which their recipes came first."""
    keys = [
        (row["recipe"], Path(row["test"]).name, *row["changes"], row["machine"]) for row in rows
    ]
    order = sorted(range(len(rows)), key=lambda i: keys.index(keys[i]))
    return [[rows[i] for i in same] for _, same in groupby(order, key=lambda i: keys[i])]


def described(rows: Sequence[Row], published: dict[str, str]) -> str:
    """The table, and below it what its scores and machines are."""
    machines = list(dict.fromkeys(row["machine"] for row in rows))
    letters = {machine: chr(ord("A") + number) for number, machine in enumerate(machines)}
    columns = TRANSFER if any(row.get("origin") for row in rows) else SYSTEMS
    lines = [list(columns), ["---"] * len(columns)]
    for group in groups(rows):
        known = Known(published.get(group[0]["recipe"], "–"), letters[group[0]["machine"]])
        lines.append([cell(group, known) for cell in columns.values()])
    signatures = dict.fromkeys(
        row[key] for row in rows for key in ("signature", "signature_detokenized") if key in row
    )
    versions = dict.fromkeys(
        ", ".join(f"{name} {number}" for name, number in row["versions"].items()) for row in rows
    )
    return "\n".join([
        "", *(f"| {' | '.join(cells)} |" for cells in lines), "",
        f"sacreBLEU: {', '.join(f'`{signature}`' for signature in signatures)}. Machines: "
        f"{'; '.join(f'{letter}: {machine}' for machine, letter in letters.items())}. Versions: "
        f"{'; '.join(versions)}.", "",
    ])  # fmt: skip


class Known(NamedTuple):
    """What a line of the table says of a group beside what its rows say."""

    published: str
    machine: str


def name(row: Row) -> str:
    """The recipe as a link, and what was changed in it, as options to be typed."""
    options = (f"`{shlex.quote(f'--{change}')}`" for change in row["changes"])
    return " ".join([f"[{row['recipe']}]({row['recipe']}.yaml)", *options])


def of_tokens(row: Row) -> bool:
    """Whether BLEU counts the tokens as they come, of text that is tokenised already."""
    return "|tok:none|" in row["signature"]


def spread(group: Sequence[Row], key: str | None) -> str:
    """The mean; with several values lowest to highest, too."""
    values = [row[key] for row in group if key in row] if key else []
    if not values:
        return "–"
    mean = f"{fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f}–{max(values):.2f})"


def system(row: Row) -> str:
    """The model, its languages, and which of its weights were tested."""
    return f"{row['model']}, {row['src']} → {row['tgt']}; {row['weights']}, {row['precision']}"


def beginning(row: Row) -> str:
    """Where the weights came from, and how its rows did."""
    return "; ".join(row["origin"]) or "scratch"


def learned(row: Row) -> str:
    """How much of the model learned."""
    share = row["learned_parameters"] / row["parameters"]
    return "all" if share == 1 else f"{row['learned_parameters']:,} ({share:.1%})"


def old_pair(group: Sequence[Row]) -> str:
    """BLEU of the pair that the bundle knew, before and after."""
    old = group[0]["old_pair"]
    if not old:
        return "–"
    return f"{old['pair']} {old['before']:.2f} → {old['after']:.2f} (p = {old['p_value']:.3f})"


def minutes(group: Sequence[Row]) -> str:
    """Of training, with validation."""
    return f"{fmean(row['seconds'] for row in group) / 60:.1f}"


def rate(group: Sequence[Row]) -> str:
    """Source and target tokens a second, without padding."""
    return f"{fmean(r['src_tokens_per_second'] + r['tgt_tokens_per_second'] for r in group):,.0f}"


def seeds(group: Sequence[Row]) -> str:
    """All of them."""
    return ", ".join(str(row["seed"]) for row in group)


#: Columns: their heads, and what they say of runs that differ in their seed alone.
SYSTEMS: dict[str, Callable[[list[Row], Known], str]] = {
    "recipe": lambda group, _: name(group[0]),
    "system": lambda group, _: system(group[0]),
    "published": lambda _, known: known.published,
    "BLEU of tokens": lambda group, _: spread(group, "bleu" if of_tokens(group[0]) else None),
    "BLEU, 13a": lambda group, _: spread(
        group, "bleu_detokenized" if of_tokens(group[0]) else "bleu"
    ),
    "longest third": lambda group, _: spread(group, "bleu_longest_third"),
    "perplexity": lambda group, _: spread(group, "perplexity"),
    "parameters": lambda group, _: f"{group[0]['parameters']:,}",
    "epochs": lambda group, _: str(group[0]["epochs"]),
    "minutes": lambda group, _: minutes(group),
    "tokens/s": lambda group, _: rate(group),
    "machine": lambda _, known: known.machine,
    "seeds": lambda group, _: seeds(group),
}
TRANSFER: dict[str, Callable[[list[Row], Known], str]] = {
    "recipe": lambda group, _: name(group[0]),
    "begun from": lambda group, _: beginning(group[0]),
    "pairs": lambda group, _: f"{group[0]['pairs']:,}",
    "learned": lambda group, _: learned(group[0]),
    "steps": lambda group, _: f"{group[0]['steps']:,}",
    "BLEU": lambda group, _: spread(group, "bleu"),
    "perplexity": lambda group, _: spread(group, "perplexity"),
    "old pair": lambda group, _: old_pair(group),
    "minutes": lambda group, _: minutes(group),
    "machine": lambda _, known: known.machine,
    "seeds": lambda group, _: seeds(group),
}


def by_length(group: Sequence[Row]) -> list[list[float]]:
    """BLEU by length, the mean of each bin."""
    return [
        [*bins[0][:3], fmean(bleu for *_, bleu in bins)]
        for bins in zip(*(row["bleu_by_length"] for row in group), strict=True)
    ]


def pictures(rows: Sequence[Row], folder: Path, beside: Path) -> list[str]:
    """Draws BLEU by length for each test set of several systems; returns the lines that show it."""
    from transformer.evaluation.plots import FEW, bleu_by_length

    by_test: dict[str, list[Row]] = {}
    for group in groups(rows):
        row = group[0]
        if not row["changes"]:
            test = f"{Path(row['test']).name}.{row['src']}-{row['tgt']}"
            by_test.setdefault(test, []).append({**row, "bleu_by_length": by_length(group)})
    shown = []
    for test, systems in by_test.items():
        curves = {Path(row["recipe"]).name: row["bleu_by_length"] for row in systems}
        if len(curves) < 2:
            continue
        file = folder / "pictures" / f"bleu_by_length-{test}.png"
        file.parent.mkdir(exist_ok=True)
        title = f"{test}, {'BLEU of tokens' if of_tokens(systems[0]) else 'BLEU, 13a'}"
        bleu_by_length(curves, title=title).savefig(file)
        link = Path(os.path.relpath(file, beside)).as_posix()
        shown.append(f"![BLEU by source length on {test}]({link})\n")
    if shown:
        shown.append(f"Bins of fewer than {FEW} sentences and rows with options are not drawn.\n")
    return shown
