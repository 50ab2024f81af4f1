"""`transformer table`: the results of reproduced recipes as a Markdown table and a plot."""

import os
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from transformer.commands.arguments import run_function
from transformer.commands.reproduce import read_rows
from transformer.errors import UserError, message
from transformer.settings import parsed
from transformer.writing import write

Row = dict[str, Any]
Cell = Callable[[list[Row]], str]


def main(args: Sequence[str]) -> None:
    """Runs the command."""
    run_function(table, args)


def table(results: str, markdown: str) -> None:
    """Writes what `transformer reproduce` has appended to a file of results into a Markdown file.

    It comes between two lines that hold the comments <!-- results --> and <!-- /results --> (for
    results.jsonl; of another file its name); BLEU by length is drawn into pictures/ beside the
    results. Published numbers come from published.json beside the results. Runs that began from a
    bundle, and those to compare them with, have a table of their own kind.

    Args:
        results: File of rows that `transformer reproduce` wrote.
        markdown: File with the two comments.
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
    published = source.with_name("published.json")
    known = parsed(published.read_bytes(), published) if published.exists() else {}
    try:
        parts = [*described(rows, known), *pictures(rows, source.parent, target.parent)]
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise UserError(
            f"{source}: a row is not as `transformer reproduce` wrote it ({message(error)}): "
            "take it out"
        ) from error
    write(target, "\n".join([f"{before}{begin}", *parts, f"{end}{after}"]))
    print(f"{len(rows)} runs -> {target}")


def groups(rows: Sequence[Row]) -> list[list[Row]]:
    """Puts runs together that differ in their seed alone, in the order of their recipes."""
    same: dict[tuple[str, ...], list[Row]] = {}
    for row in rows:
        key = (row["recipe"], Path(row["test"]).name, *row["changes"], row["machine"])
        same.setdefault(key, []).append(row)
    return list(same.values())


def described(rows: Sequence[Row], published: dict[str, str]) -> list[str]:
    """Writes the table, and below it what its scores and machines are."""
    machines = list(dict.fromkeys(row["machine"] for row in rows))
    letters = {machine: chr(ord("A") + number) for number, machine in enumerate(machines)}
    for row in rows:
        row |= {"letter": letters[row["machine"]], "published": published.get(row["recipe"], "–")}
    columns = TRANSFER if any(row.get("origin") for row in rows) else SYSTEMS
    lines = [list(columns), ["---"] * len(columns)]
    lines += [[cell(same) for cell in columns.values()] for same in groups(rows)]
    names = ("signature", "signature_detokenized")
    signatures = dict.fromkeys(f"`{row[name]}`" for row in rows for name in names if name in row)
    versions = dict.fromkeys(
        ", ".join(f"{name} {number}" for name, number in row["versions"].items()) for row in rows
    )
    return [
        "", *(f"| {' | '.join(cells)} |" for cells in lines), "",
        f"sacreBLEU: {', '.join(signatures)}. Machines: "
        f"{'; '.join(f'{letter}: {machine}' for machine, letter in letters.items())}. Versions: "
        f"{'; '.join(versions)}.", "",
    ]  # fmt: skip


def spread(rows: Sequence[Row], key: str) -> str:
    """Writes the mean; with several values lowest to highest, too."""
    values = [row[key] for row in rows if key in row]
    if not values:
        return "–"
    mean = f"{fmean(values):.2f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.2f}–{max(values):.2f})"


def recipe(rows: Sequence[Row]) -> str:
    """Writes the recipe as a link, and what was changed in it, as options to be typed."""
    name = rows[0]["recipe"]
    options = (f"`{shlex.quote(f'--{change}')}`" for change in rows[0]["changes"])
    return " ".join([f"[{name}]({name}.yaml)", *options])


def learned(rows: Sequence[Row]) -> str:
    """Writes how much of the model learned."""
    learned, all_ = rows[0]["learned_parameters"], rows[0]["parameters"]
    return "all" if learned == all_ else f"{learned:,} ({learned / all_:.1%})"


def parent(rows: Sequence[Row]) -> str:
    """Writes BLEU on the parent's pair, before and after."""
    its = [row["parent"] for row in rows if row["parent"]]
    if not its:
        return "–"
    p_value, sign = max(one["p_value"] for one in its), "≤" if its[1:] else "="
    scores = f"{spread(its, 'before')} → {spread(its, 'after')}"
    return f"{its[0]['pair']} {scores} (p {sign} {p_value:.3f})"


def speed(rows: Sequence[Row]) -> str:
    """Writes the mean of tokens a second, both sides together."""
    both = (row["src_tokens_per_second"] + row["tgt_tokens_per_second"] for row in rows)
    return f"{fmean(both):,.0f}"


def of_tokens(rows: Sequence[Row]) -> bool:
    """Says whether BLEU counts the tokens as they come, of text that is tokenised already."""
    return "|tok:none|" in rows[0]["signature"]


def first(template: str) -> Cell:
    """Makes a column of the first of the runs: what they differ in, their seed, is not in it."""
    return lambda rows: template.format_map(rows[0])


def between(key: str) -> Cell:
    """Makes a column of a whole number, the lowest to the highest where the runs differ."""

    def cell(rows: list[Row]) -> str:
        values = [row[key] for row in rows]
        return "–".join(f"{value:,}" for value in dict.fromkeys([min(values), max(values)]))

    return cell


#: Columns: their heads, and what they say of runs that differ in their seed alone.
SYSTEMS: dict[str, Cell] = {
    "recipe": recipe,
    "system": first("{model}, {src} → {tgt}; {weights}, {precision}"),
    "published": first("{published}"),
    "BLEU of tokens": lambda rows: spread(rows, "bleu") if of_tokens(rows) else "–",
    "BLEU, 13a": lambda rows: spread(rows, "bleu_detokenized" if of_tokens(rows) else "bleu"),
    "longest third": lambda rows: spread(rows, "bleu_longest_third"),
    "perplexity": lambda rows: spread(rows, "perplexity"),
    "parameters": first("{parameters:,}"),
    "epochs": between("epochs"),
    "minutes": lambda rows: f"{fmean(row['seconds'] for row in rows) / 60:.1f}",
    "tokens/s": speed,
    "machine": first("{letter}"),
    "seeds": lambda rows: ", ".join(str(row["seed"]) for row in rows),
}
TRANSFER: dict[str, Cell] = {
    "recipe": recipe,
    "begun from": lambda rows: "; ".join(rows[0]["origin"]) or "scratch",
    "pairs": first("{pairs:,}"),
    "learned": learned,
    "steps": between("steps"),
    "BLEU": lambda rows: spread(rows, "bleu"),
    "perplexity": SYSTEMS["perplexity"],
    "parent's pair": parent,
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


def names(systems: Sequence[list[Row]]) -> list[str]:
    """Returns what tells systems apart: the recipe, with its folder and machine if need be."""
    recipes = [Path(group[0]["recipe"]) for group in systems]
    files = [recipe.name for recipe in {*recipes}]
    short = [recipe.name if files.count(recipe.name) == 1 else str(recipe) for recipe in recipes]
    return [
        name if short.count(name) == 1 else f"{name} ({group[0]['letter']})"
        for name, group in zip(short, systems, strict=True)
    ]


def pictures(rows: Sequence[Row], folder: Path, beside: Path) -> list[str]:
    """Draws BLEU by length for each test set of several systems; returns the lines that show it."""
    from transformer.evaluation.plots import FEW, draw_bleu_by_length

    by_test: dict[str, list[list[Row]]] = {}
    for group in groups([row for row in rows if not row["changes"]]):
        test = f"{Path(group[0]['test']).name}.{group[0]['src']}-{group[0]['tgt']}"
        by_test.setdefault(test, []).append(group)
    shown = []
    for test, systems in by_test.items():
        curves: dict[str, Any] = dict(zip(names(systems), map(by_length, systems), strict=True))
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
