"""`transformer translate`: text in, translations out."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from functools import partial
from typing import Any, Literal

import torch

from transformer.commands.arguments import OptionParser
from transformer.commands.text import (
    BREAKS,
    Input,
    Line,
    Row,
    Source,
    check_language,
    placed,
    say,
    writing,
)
from transformer.errors import UserError
from transformer.inference.engines import EngineName
from transformer.inference.guard import Flaw, Verdict
from transformer.inference.results import Translation
from transformer.inference.search import SearchConfig
from transformer.inference.translator import Translator
from transformer.kernels import Precision
from transformer.kernels.process import keep_freed_memory

DESCRIPTION = """Translate texts, files or standard input. One line comes out for each line that
goes in; an empty one stays empty. Files are read through first, so that a line at fault is named
at once; what comes from a pipe or a terminal is translated as it arrives. With --n_best above 1,
--scores or --alignments the output is columns, separated by tabs: with --n_best the number of the
input line; with --scores the score (length-normalised) and the log-probability in nats; the
translation; with --alignments pairs of `source-target`, numbers of words from 0. Lines whose
translation repeats itself, is empty or far too long are named on standard error. Search options
that are not given are the bundle's."""
SHOWN = 10  # lines that are named on standard error, of all those with a flaw
FLAWED: dict[Flaw, str] = {
    "loop": "repeats itself",
    "empty": "is empty",
    "blow_up": "is far too long or has no end",
}


@dataclass(frozen=True)
class Options:
    """What is translated, how, and what is printed of it.

    Args:
        bundle: Folder that `transformer fit` or `transformer average` wrote,
            or org/name of the hub.
        texts: Texts to translate; standard input if there are neither texts nor files.
        input: Files to translate, UTF-8, one text a line, plain or .gz; - is standard input.
        output: File to write to, which must not exist, gzipped if it ends in .gz; standard output
            if left out or -.
        skip: Lines at the beginning of the input that are done already.
        to: Language to translate into, of a model with tags; the bundle's if left out.
        scores: Print scores, too.
        alignments: Print which source word each target word looked at most.
        prefix: Text with which every translation must begin.
        too_long: Refuse a line above --max_length, or split it at sentence ends.
        guard: Decode again what repeats itself, is empty or far too long; take the less bad one.
        seed: Of --sample; another result each time if left out.
        max_tokens: Source tokens in a batch, with padding.
        max_length: Longest line, in tokens; the longest of the training if left out, beyond which
            a model loses text.
        device: auto, cpu, cuda, cuda:1, mps.
        precision: auto is bfloat16 on a GPU that computes in it, float32 elsewhere; int8 and its
            like are those of --engine ctranslate2.
        engine: What searches: torch is this package's own search; ctranslate2 must be installed.
    """

    bundle: str
    texts: Sequence[str] = ()
    _: KW_ONLY
    input: Sequence[str] = ()
    output: str | None = None
    skip: int = 0
    to: str | None = None
    scores: bool = False
    alignments: bool = False
    prefix: str = ""
    too_long: Literal["refuse", "split"] = "refuse"
    guard: bool = False
    seed: int | None = None
    max_tokens: int = 4096
    max_length: int | None = None
    device: str = "auto"
    precision: Precision = "auto"
    engine: EngineName = "torch"


def main(args: Sequence[str]) -> None:
    """Runs the command."""
    parser = OptionParser(prog="transformer translate", description=DESCRIPTION)
    parser.add(Options)
    parser.add(SearchConfig)
    # Without defaults, so that those of the bundle apply.
    given = vars(parser.parse_args(args, defaults=False))
    own = {field.name: given.pop(field.name) for field in fields(Options) if field.name in given}
    translate(Options(**own), {"n_best": 1, **given})


def translate(options: Options, search: dict[str, Any]) -> None:
    """Translates texts, files or standard input; `search` has fields of SearchConfig."""
    to, too_long = options.to, options.too_long
    numbered = search["n_best"] > 1
    in_columns = options.scores or options.alignments or numbered
    if too_long == "split" and (options.prefix or in_columns):
        raise UserError(
            "--too_long split goes with none of --prefix, --n_best, --scores and --alignments"
        )
    if options.seed is not None and not 0 <= options.seed < 2**64:
        raise UserError(f"--seed is {options.seed}: it must be in [0, 2^64)")
    source = source_of(options)
    warnings = Warnings(options.guard)
    keep_freed_memory()
    with writing(options.output, options.skip) as out:
        its = options.bundle, options.device, options.precision, options.max_tokens
        translator = Translator.load(*its, options.max_length, options.engine)
        check_language(translator, to)
        limit = None if too_long == "split" else translator.max_length
        source.check(partial(check, translator, to, limit))
        how = {**search, "to": to, "prefix": options.prefix, "guard": options.guard}
        if options.seed is not None:
            how["generator"] = torch.Generator(translator.device).manual_seed(options.seed)
        for rows in source.chunks():
            lines = [line.text for (line,) in rows]
            with placed(rows):
                if in_columns:
                    found = translator.n_best(lines, alignments=options.alignments, **how)
                else:
                    best = translator.checked(lines, too_long=too_long, **how)
                    found = [[checked] for checked in best]
            out.write(printed(found, out.done, options.scores, numbered), len(rows))
            warnings.add(rows, [translations[0].verdict for translations in found])
    warnings.close()


def source_of(options: Options) -> Input:
    """Opens what is translated: the texts, or else the files, or else standard input."""
    if options.texts and options.input:
        raise UserError("there are texts and --input files: give the one or the other")
    if options.texts and options.texts != ["-"]:
        texts = [Line(f"text {n}", text) for n, text in enumerate(options.texts, 1)]
        return Input([texts], skip=options.skip)
    return Input([Source(file) for file in options.input or ["-"]], skip=options.skip)


def check(translator: Translator, to: str | None, limit: int | None, rows: list[Row]) -> None:
    """Refuses lines above a limit; only those are cut into tokens that can be."""
    # A token is a byte at least; the end and a tag come with every line.
    size = sys.maxsize if limit is None else limit - 2
    long = [row for row in rows if _most_bytes(row[0].text) > size]
    with placed(long):
        translator.encode([line.text for (line,) in long], to, limit)


def _most_bytes(text: str) -> int:
    """Bytes of a line, once a vocabulary has normalised it: NFKC makes 33 of the 3 of U+FDFA."""
    return len(text) if text.isascii() else 11 * len(text.encode(errors="replace"))


def printed(
    found: Sequence[Sequence[Translation]], done: int, scores: bool, numbered: bool
) -> Iterator[str]:
    """Yields a line for each translation: its columns, separated by tabs."""
    for number, translations in enumerate(found, done + 1):
        for translation in translations:
            row = [str(number)] if numbered else []
            if scores:
                row += [f"{translation.score:.4f}", f"{translation.log_prob:.4f}"]
            row.append(translation.text.translate(BREAKS))
            if translation.alignment is not None:
                row.append(" ".join(f"{src}-{tgt}" for src, tgt in translation.alignment))
            yield "\t".join(row)


class Warnings:
    """Names the first lines whose translation has a flaw, decoded again or not; counts the rest."""

    def __init__(self, guard: bool) -> None:
        self.guard = guard
        self.count: Counter[Flaw] = Counter()

    def add(self, rows: list[Row], verdicts: list[Verdict]) -> None:
        """Counts, and names, those of some lines."""
        for (line,), (flaw, before) in zip(rows, verdicts, strict=True):
            first = before or flaw
            if first is None:
                continue
            self.count[first] += 1
            if self.count.total() > SHOWN:
                continue
            remedy = "; --guard decodes such lines again"
            if self.guard:
                result = f"it still {FLAWED[flaw]}" if flaw else "that is mended"
                remedy = f"; decoded again, {result}"
            say(f"warning: {line.place}: the translation {FLAWED[first]}{remedy}")

    def close(self) -> None:
        """Says how many there were, if they were not all named."""
        if self.count.total() > SHOWN:
            kinds = ", ".join(f"{number:,} {flaw}" for flaw, number in self.count.most_common())
            say(f"warning: {self.count.total():,} translations have a flaw ({kinds})")
