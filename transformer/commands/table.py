"""`transformer table`: the results of reproduced recipes as a Markdown table and a plot."""

import json
import os
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from transformer.commands.arguments import OptionParser
from transformer.errors import UserError
from transformer.training.results import read_rows
from transformer.writing import write

DESCRIPTION = """Writes what `transformer reproduce` has appended to a file of results into a
Markdown file, between two lines that hold the comments <!-- results --> and <!-- /results --> (for
results.jsonl; of another file its name), and draws BLEU by length into pictures/ beside the
results. Published numbers come from published.json beside the results. Runs that began from a
bundle, and those to compare them with, have a table of their own kind."""
Row = dict[str, Any]


def main(args: Sequence[str]) -> None:
    """Runs the command."""
    parser = OptionParser(prog="transformer table", description=DESCRIPTION)
    parser.add(table, {"results": None, "markdown": None})
    table(**vars(parser.parse_args(args)))


def table(results: str, markdown: str) -> None:
    """Replaces the table in a Markdown file.

    Args:
        results: File of rows that `transformer reproduce` wrote.
        markdown: File with the two comments.

    Raises:
        UserError: If there are no rows, or the comments are missing.
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
    parts = [
        described(rows, read_published(source.with_name("published.json"))),
        *pictures(rows, source.parent, target.parent),
    ]
    write(target, "\n".join([f"{before}{begin}", *parts, f"{end}{after}"]))
    print(f"{len(rows)} runs -> {target}")


def read_published(file: Path) -> dict[str, str]:
    """Reads the numbers that were published for recipes; none where there is no file."""
    try:
        return dict(json.loads(file.read_text(encoding="utf-8"))) if file.exists() else {}
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error})") from None


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Puts runs together that differ in their seed alone, in the order of their recipes."""
    same: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = (row["recipe"], Path(row["test"]).name, *row["changes"], row["machine"])
        same.setdefault(key, []).append(row)
    return list(same.values())


def described(rows: Sequence[Row], published: dict[str, str]) -> str:
    """Writes the table, and below it what its scores and machines are."""
    machines = list(dict.fromkeys(row["machine"] for row in rows))
    letters = {machine: chr(ord("A") + number) for number, machine in enumerate(machines)}
    columns = TRANSFER if any(row.get("origin") for row in rows) else SYSTEMS
    lines = [list(columns), ["---"] * len(columns)]
    for same in groups(rows):
        group = Group(same, published.get(same[0]["recipe"], "–"), letters[same[0]["machine"]])
        lines.append([cell(group) for cell in columns.values()])
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


@dataclass(frozen=True)
class Group:
    """A line of the table: runs that differ in their seed alone.

    Args:
        rows: Of the runs.
        published: What others have reached.
        machine: The letter of the machine.
    """

    rows: list[Row]
    published: str
    machine: str

    def __getitem__(self, key: str) -> Any:
        """Returns what the first run says, and the others, too."""
        return self.rows[0][key]

    def mean(self, *keys: str) -> float:
        """Returns the mean of the sum of some numbers."""
        return fmean(sum(row[key] for key in keys) for row in self.rows)

    def spread(self, key: str) -> str:
        """Writes the mean; with several values lowest to highest, too."""
        values = [row[key] for row in self.rows if key in row]
        if not values:
            return "–"
        mean = f"{fmean(values):.2f}"
        return mean if len(values) == 1 else f"{mean} ({min(values):.2f}–{max(values):.2f})"

    def recipe(self) -> str:
        """Writes the recipe as a link, and what was changed in it, as options to be typed."""
        options = (f"`{shlex.quote(f'--{change}')}`" for change in self["changes"])
        return " ".join([f"[{self['recipe']}]({self['recipe']}.yaml)", *options])

    def learned(self) -> str:
        """Writes how much of the model learned."""
        learned, all_ = self["learned_parameters"], self["parameters"]
        return "all" if learned == all_ else f"{learned:,} ({learned / all_:.1%})"

    def parent(self) -> str:
        """Writes BLEU on the parent's pair, before and after."""
        if not (pair := self["parent"]):
            return "–"
        change = f"{pair['before']:.2f} → {pair['after']:.2f}"
        return f"{pair['pair']} {change} (p = {pair['p_value']:.3f})"


def of_tokens(row: Row | Group) -> bool:
    """Says whether BLEU counts the tokens as they come, of text that is tokenised already."""
    return "|tok:none|" in row["signature"]


#: Columns: their heads, and what they say of a group.
SYSTEMS: dict[str, Callable[[Group], str]] = {
    "recipe": Group.recipe,
    "system": lambda g: f"{g['model']}, {g['src']} → {g['tgt']}; {g['weights']}, {g['precision']}",
    "published": lambda g: g.published,
    "BLEU of tokens": lambda g: g.spread("bleu") if of_tokens(g) else "–",
    "BLEU, 13a": lambda g: g.spread("bleu_detokenized" if of_tokens(g) else "bleu"),
    "longest third": lambda g: g.spread("bleu_longest_third"),
    "perplexity": lambda g: g.spread("perplexity"),
    "parameters": lambda g: f"{g['parameters']:,}",
    "epochs": lambda g: str(g["epochs"]),
    "minutes": lambda g: f"{g.mean('seconds') / 60:.1f}",
    "tokens/s": lambda g: f"{g.mean('src_tokens_per_second', 'tgt_tokens_per_second'):,.0f}",
    "machine": lambda g: g.machine,
    "seeds": lambda g: ", ".join(str(row["seed"]) for row in g.rows),
}
TRANSFER: dict[str, Callable[[Group], str]] = {
    "recipe": Group.recipe,
    "begun from": lambda g: "; ".join(g["origin"]) or "scratch",
    "pairs": lambda g: f"{g['pairs']:,}",
    "learned": Group.learned,
    "steps": lambda g: f"{g['steps']:,}",
    "BLEU": lambda g: g.spread("bleu"),
    "perplexity": SYSTEMS["perplexity"],
    "parent's pair": Group.parent,
    "minutes": SYSTEMS["minutes"],
    "machine": SYSTEMS["machine"],
    "seeds": SYSTEMS["seeds"],
}


def by_length(group: Sequence[Row]) -> list[list[float]]:
    """Returns BLEU by length, the mean of each bin."""
    return [
        [*bins[0][:3], fmean(bleu for *_, bleu in bins)]
        for bins in zip(*(row["bleu_by_length"] for row in group), strict=True)
    ]


def pictures(rows: Sequence[Row], folder: Path, beside: Path) -> list[str]:
    """Draws BLEU by length for each test set of several systems; returns the lines that show it."""
    from transformer.evaluation.plots import FEW, draw_bleu_by_length

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
        draw_bleu_by_length(curves, title=title).savefig(file)
        link = Path(os.path.relpath(file, beside)).as_posix()
        shown.append(f"![BLEU by source length on {test}]({link})\n")
    if shown:
        shown.append(f"Bins of fewer than {FEW} sentences and rows with options are not drawn.\n")
    return shown
