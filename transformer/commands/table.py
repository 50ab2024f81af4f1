"""`transformer table`: the results of reproduced recipes as a Markdown table and a plot."""

import json
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
    "recipe", "system", "published", "BLEU, tokens as they come", "BLEU, detokenised, 13a",
    "… tokens, longest third", "perplexity", "parameters", "epochs", "minutes", "tokens/s", "seeds",
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
    keys = [(row["recipe"], *row["changes"]) for row in rows]
    order = sorted(range(len(rows)), key=lambda i: keys.index(keys[i]))
    return [[rows[i] for i in same] for _, same in groupby(order, key=lambda i: keys[i])]


def described(rows: Sequence[Row], published: dict[str, str]) -> str:
    """The table, a note on its columns, and what it was measured with."""
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [line(group, published) for group in groups(rows)]
    signatures = {
        row[key] for row in rows for key in ("signature", "signature_detokenized") if key in row
    }
    machines = {row["machine"] for row in rows}
    versions = {", ".join(f"{k} {v}" for k, v in row["versions"].items()) for row in rows}
    return "\n".join([
        "", *(f"| {' | '.join(cells)} |" for cells in lines), "",
        f"sacreBLEU: {', '.join(f'`{s}`' for s in sorted(signatures))}. "
        f"Machine: {'; '.join(sorted(machines))}. {'; '.join(sorted(versions))}.", "",
    ])  # fmt: skip


def line(group: Sequence[Row], published: dict[str, str]) -> list[str]:
    """One line of the table; with several seeds the mean, and lowest to highest."""
    first = group[0]
    name = f"[{first['recipe']}]({first['recipe']}.yaml)"
    tokens = fmean(r["src_tokens_per_second"] + r["tgt_tokens_per_second"] for r in group)
    by_tokens = ":tok:none" in first["signature"].replace("|", ":")
    detokenized = "bleu_detokenized" if by_tokens else "bleu"
    return [
        " ".join([name, *(f"`{change}`" for change in first["changes"])]),
        f"{first['model']}, {first['src']} → {first['tgt']}; {first['weights']}, "
        f"{first['precision']}",
        published.get(first["recipe"], "–"),
        spread([r["bleu"] for r in group]) if by_tokens else "–",
        spread([r[detokenized] for r in group]),
        spread([r["bleu_longest_third"] for r in group]),
        spread([r["perplexity"] for r in group]),
        f"{first['parameters']:,}",
        str(first["epochs"]),
        f"{fmean(r['seconds'] for r in group) / 60:.1f}",
        f"{tokens:,.0f}",
        ", ".join(str(r["seed"]) for r in group),
    ]


def spread(values: Sequence[float]) -> str:
    """The mean; with several values lowest to highest, too."""
    mean = f"{fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f}–{max(values):.2f})"


def pictures(rows: Sequence[Row], folder: Path, beside: Path) -> list[str]:
    """Draws BLEU by length for each test set of several systems; returns the lines that show it."""
    from transformer.evaluation.plots import bleu_by_length

    shown = []
    by_test: dict[str, list[Row]] = {}
    for row in (group[0] for group in groups(rows)):
        if row.get("bleu_by_length"):
            test = f"{Path(row['test']).name}.{row['src']}-{row['tgt']}"
            by_test.setdefault(test, []).append(row)
    for test, systems in by_test.items():
        if len(systems) < 2:
            continue
        curves = {Path(row["recipe"]).name: row["bleu_by_length"] for row in systems}
        file = folder / "pictures" / f"bleu_by_length-{test}.png"
        file.parent.mkdir(exist_ok=True)
        bleu_by_length(curves, title=f"{test}, seed {systems[0]['seed']}").savefig(file)
        link = file.relative_to(beside).as_posix()
        shown.append(f"![BLEU by source length on {test}]({link})\n")
    return shown
