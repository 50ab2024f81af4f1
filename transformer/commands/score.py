"""`transformer score`: how probable given translations are."""

from collections.abc import Sequence

from transformer.commands.arguments import run_function
from transformer.commands.text import Input, Row, Source, check_language, placed, writing
from transformer.inference.translator import Translator
from transformer.kernels import Precision


def main(args: Sequence[str]) -> None:
    """Runs the command."""
    run_function(score, args)


def score(
    bundle: str,
    *,
    src: str,
    tgt: str,
    output: str | None = None,
    skip: int = 0,
    to: str | None = None,
    max_tokens: int = 2048,
    device: str = "auto",
    precision: Precision = "float32",
) -> None:
    """Forced decoding.

    For each pair of lines two columns, separated by a tab: the log-probability of the target line
    in nats, its end symbol included, and its number of tokens. It is that of the pieces that the
    tokenizer cuts the line into: a search may spell the same text with other pieces, so the
    log-probability of `translate --scores` can be another one.

    Args:
        bundle: Folder that `transformer fit` or `transformer average` wrote,
            or org/name of the hub.
        src: File of source lines, UTF-8, plain or .gz; - is standard input.
        tgt: File with a target line for each of them.
        output: File to write to, which must not exist, gzipped if it ends in .gz; standard output
            if left out or -.
        skip: Pairs at the beginning of the files that are done already.
        to: Language of the targets, of a model with tags; the bundle's if left out.
        max_tokens: Tokens in a batch, with padding.
        device: auto, cpu, cuda, cuda:1, mps.
        precision: auto is bfloat16 on a GPU that computes in it, float32 elsewhere.
    """
    pairs = Input([Source(src)], [Source(tgt)], skip=skip)
    with writing(output, skip) as out:
        translator = Translator.load(bundle, device, precision, max_tokens=max_tokens)
        check_language(translator, to)
        bounded = bool(translator.model.max_length)  # else any line can be scored
        pairs.check(lambda rows: bounded and translator.encode_pairs(*texts(rows), to))
        for rows in pairs.chunks():
            with placed(rows):
                scored = translator.score(*texts(rows), to)
            out.write([f"{s.log_prob:.4f}\t{s.tokens}" for s in scored], len(rows))


def texts(rows: list[Row]) -> tuple[list[str], list[str]]:
    """Returns the sources and the targets."""
    return [src.text for src, _ in rows], [tgt.text for _, tgt in rows]
