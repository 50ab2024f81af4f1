"""`transformer table`: the results of reproduced recipes as a Markdown table and a plot."""

import json
import os
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from statistics import fmean
from typing import Any

from transformer.commands.arguments import Parser
from transformer.training.reproduction import read_rows

DESCRIPTION = """Writes what `transformer reproduce` has appended to a file of results into a
Markdown file, between two lines that hold the comments <!-- results --> and <!-- /results -->, and
draws BLEU by length into pictures/ beside the results. Published numbers come from published.json
beside the results."""
BEGIN, END = "<!-- results -->", "<!-- /results -->"
COLUMNS = (
    "recipe", "system", "published", "BLEU of tokens", "BLEU, 13a", "longest third", "perplexity",
    "parameters", "epochs", "minutes", "tokens/s", "machine", "seeds",
)  # fmt: skip
Row = dict[str, Any]


def main(args: Sequence[str]) -> int:
    """Runs the command."""
    parser = Parser(prog="transformer table", description=DESCRIPTION)
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
        raise ValueError(f"{source} has no results: run `transformer reproduce` first")
    text = target.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{target} must have the lines {BEGIN} and {END}, between which to write")
    file = source.with_name("published.json")
    published = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    parts = [described(rows, published), *pictures(rows, source.parent, target.parent)]
    target.write_text("\n".join([f"{before}{begin}", *parts, f"{end}{after}"]), encoding="utf-8")
    print(f"{len(rows)} runs -> {target}")


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Runs that differ in their seed alone, in the order in which their recipes came first."""
    keys = [(row["recipe"], *row["changes"], row["machine"]) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: keys.index(keys[i]))
    return [[rows[i] for i in same] for _, same in groupby(order, key=lambda i: keys[i])]


def described(rows: Sequence[Row], published: dict[str, str]) -> str:
    """The table, and below it what its scores and machines are."""
    machines = list(dict.fromkeys(row["machine"] for row in rows))
    letters = {machine: chr(ord("A") + number) for number, machine in enumerate(machines)}
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [line(group, published, letters) for group in groups(rows)]
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


def line(group: Sequence[Row], published: dict[str, str], machines: dict[str, str]) -> list[str]:
    """One line of the table; with several seeds the mean, and lowest to highest."""
    first = group[0]
    return [
        name(first),
        f"{first['model']}, {first['src']} → {first['tgt']}; {first['weights']}, "
        f"{first['precision']}",
        published.get(first["recipe"], "–"),
        spread(group, "bleu" if of_tokens(first) else None),
        spread(group, "bleu_detokenized" if of_tokens(first) else "bleu"),
        spread(group, "bleu_longest_third"),
        spread(group, "perplexity"),
        f"{first['parameters']:,}",
        str(first["epochs"]),
        f"{fmean(row['seconds'] for row in group) / 60:.1f}",
        f"{fmean(r['src_tokens_per_second'] + r['tgt_tokens_per_second'] for r in group):,.0f}",
        machines[first["machine"]],
        ", ".join(str(row["seed"]) for row in group),
    ]


def name(row: Row) -> str:
    """The recipe as a link, and what was changed in it."""
    return " ".join(
        [f"[{row['recipe']}]({row['recipe']}.yaml)", *(f"`{c}`" for c in row["changes"])]
    )


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


def pictures(rows: Sequence[Row], folder: Path, beside: Path) -> list[str]:
    """Draws BLEU by length for each test set of several systems; returns the lines that show it."""
    from transformer.evaluation.plots import bleu_by_length

    by_test: dict[str, list[Row]] = {}
    for row in (group[0] for group in groups(rows)):
        if row.get("bleu_by_length") and not row["changes"]:
            test = f"{Path(row['test']).name}.{row['src']}-{row['tgt']}"
            by_test.setdefault(test, []).append(row)
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
    return shown
