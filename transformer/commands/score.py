"""`transformer score`: how probable given translations are."""

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from transformer.commands.arguments import Parser
from transformer.commands.text import check_language, writing
from transformer.data.files import lines
from transformer.inference.device import Precision
from transformer.inference.long_lines import TooLongError
from transformer.inference.translator import Translator

DESCRIPTION = """Forced decoding. For each pair of lines two columns, separated by a tab: the
log-probability of the target line in nats, its end symbol included, and its number of tokens."""
CHUNK = 2000  # lines that are sorted by length together


def main(args: Sequence[str]) -> int:
    """Runs the command."""
    parser = Parser(prog="transformer score", description=DESCRIPTION)
    parser.add(score, {"bundle": None})
    score(**vars(parser.parse_args(args)))
    return 0


def score(
    bundle: str,
    src: str,
    tgt: str,
    output: str | None = None,
    to: str | None = None,
    max_tokens: int = 2048,
    device: str = "auto",
    precision: Precision = "float32",
) -> None:
    """Scores given translations.

    Args:
        bundle: Folder that `transformer fit` or `transformer average` wrote.
        src: File of source lines, UTF-8, plain or .gz.
        tgt: File with a target line for each of them.
        output: File to write to, which must not exist; standard output if left out.
        to: Language of the targets, of a model with tags; the bundle's if left out.
        max_tokens: Tokens in a batch, with padding.
        device: auto, cpu, cuda, cuda:1, mps.
        precision: auto is bfloat16 on a GPU that computes in it, float32 elsewhere.

    Raises:
        ValueError: If the files are of different length, or the bundle is at fault.
    """
    pairs = aligned(src, tgt)
    translator = Translator.load(bundle, device, precision, max_tokens=max_tokens)
    check_language(translator, to)
    with writing(output) as stream:
        for start in range(0, len(pairs), CHUNK):
            sources, targets = zip(*pairs[start : start + CHUNK], strict=True)
            try:
                found = translator.score(sources, targets, to)
            except TooLongError as error:
                limit = translator.model.max_length
                raise ValueError(
                    f"line {start + error.index + 1} of {src} and {tgt}: {error.tokens} tokens, "
                    f"the model has {limit} learned positions: shorten it"
                ) from None
            for scored in found:
                print(f"{scored.log_prob:.4f}\t{scored.tokens}", file=stream)


def aligned(src: str, tgt: str) -> list[tuple[str, str]]:
    """Reads two files line by line.

    Raises:
        ValueError: If one is longer; it has both counts.
    """
    pairs = list(zip_longest(lines(Path(src), "--src"), lines(Path(tgt), "--tgt")))
    counts = [sum(line is not None for line in side) for side in zip(*pairs, strict=True)]
    if len(set(counts)) > 1:
        raise ValueError(f"{src} has {counts[0]} lines, but {tgt} has {counts[1]}")
    return pairs
