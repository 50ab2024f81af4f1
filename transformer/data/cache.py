"""Corpus and tokenizer -> ids in an Arrow file, written once and memory-mapped ever after."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pyarrow as pa

from transformer.data.corpus import Corpus, Pair
from transformer.data.table import CHUNK_ROWS, Counts, flat, open_table
from transformer.data.tokenizer import Tokenizer, is_blank
from transformer.errors import UserError

log = logging.getLogger(__name__)
FORMAT = 1
ABANDONED = 3600  # seconds after which nobody writes on: a writer adds to its file all the time
LINES = 2048  # pairs that are tokenised at a time, on all threads of the library


@dataclass(frozen=True)
class LengthRule:
    """What becomes of training pairs that a model should not see.

    Args:
        max_length: Longest side in tokens, EOS included.
        too_long: Leave longer pairs out and count them, or stop with an error.
    """

    max_length: int
    too_long: Literal["skip", "refuse"] = "skip"


class Row(NamedTuple):
    """A tokenised pair, its number in the corpus, and its text."""

    number: int
    src: list[int]
    tgt: list[int]
    text: Pair


def encode(
    pairs: Iterable[Pair], first: int, corpus: Corpus, tokenizer: Tokenizer,
    rule: LengthRule | None, counts: Counts,
) -> Iterator[Row]:  # fmt: skip
    """Tokenises pairs and applies the length rule.

    Args:
        pairs: The pairs.
        first: The number of the first of them in the corpus.
        corpus: Where they come from, for messages.
        tokenizer: The tokenizer.
        rule: None keeps every pair, the empty ones too (validation and test).
        counts: What is kept and what is left out is added to it.

    Raises:
        ValueError: A pair is too long and the rule says to refuse it.
    """
    iterator = iter(pairs)
    while some := list(islice(iterator, LINES)):
        src = tokenizer.encode_src([pair.src for pair in some], corpus.tgt)
        tgt = tokenizer.encode_tgt([pair.tgt for pair in some])
        for row in map(Row, count(first), src, tgt, some):
            if rule is None or _keeps(rule, row, corpus, counts):
                counts.pairs += 1
                yield row
        first += len(some)


def _keeps(rule: LengthRule, row: Row, corpus: Corpus, counts: Counts) -> bool:
    length = max(len(row.src), len(row.tgt))
    if length > rule.max_length and rule.too_long == "refuse":
        raise UserError(
            f"{corpus.key}: {corpus.where(row.number)}: {length} tokens, more than "
            f"data.max_length = {rule.max_length}; shorten the pair, raise data.max_length, "
            "or set data.too_long to skip"
        )
    if any(map(is_blank, row.text)):
        counts.empty += 1
    elif length > rule.max_length:
        counts.too_long += 1
    else:
        return True
    return False


def id_type(tokenizer: Tokenizer) -> type:
    """The smallest type that holds every id."""
    largest = max(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)
    return np.uint16 if largest <= 1 << 16 else np.int32


def table_path(
    folder: Path, corpus: Corpus, tokenizer: Tokenizer, rule: LengthRule | None, limit: int | None
) -> Path:
    """Where the table of this corpus is kept: the name changes with all that its content does."""
    about = [
        FORMAT, type(corpus).__name__, corpus.src, corpus.tgt, corpus.identity(),
        tokenizer.to_text(), rule and [rule.max_length, rule.too_long], limit,
    ]  # fmt: skip
    return folder / f"tokens-{digest(about)}.arrow"


def is_whole(path: Path) -> bool:
    """Whether a table is there and can be opened; says so where it is there and cannot."""
    try:
        open_table(path)
    except FileNotFoundError:
        return False
    except PermissionError:
        raise
    except Exception as error:  # Arrow has many for what is not its own, and so has what we read
        log.info("%s is damaged and made again (%s)", path, " ".join(str(error).split()))
        return False
    return True


def clear_parts(folder: Path) -> None:
    """Removes what runs that were killed have left half written."""
    for part in folder.glob("*.part"):
        with suppress(OSError):  # another run clears up, too
            if time.time() - part.stat().st_mtime > ABANDONED:
                shutil.rmtree(part) if part.is_dir() else part.unlink()


def digest(about: Any) -> str:
    """A short name for JSON content."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]


def write_table(
    path: Path, corpus: Corpus, tokenizer: Tokenizer, rule: LengthRule | None, limit: int | None
) -> None:
    """Tokenises a corpus into an Arrow file; the file appears under its name when it is whole.

    Args:
        path: The file.
        corpus: The text.
        tokenizer: The tokenizer.
        rule: None keeps every pair and the text beside the ids (validation and test).
        limit: Pairs of the corpus to read, None for all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{uuid.uuid4().hex}.part")
    try:
        ids = pa.list_(pa.from_numpy_dtype(id_type(tokenizer)))
        columns = {"number": pa.int64(), "src": ids, "tgt": ids}
        if rule is None:
            columns |= {"src_text": pa.string(), "tgt_text": pa.string()}
        schema = pa.schema(columns)
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
            counts = Counts()
            rows = encode(corpus.pairs(limit=limit), 0, corpus, tokenizer, rule, counts)
            while chunk := list(islice(rows, CHUNK_ROWS)):
                writer.write_batch(_record_batch(chunk, schema))
            if not counts.pairs:
                raise nothing_left(corpus, counts)
            # The counts are known now; an empty batch carries them.
            metadata = {name: str(value) for name, value in vars(counts).items()}
            writer.write_batch(_record_batch([], schema), custom_metadata=metadata)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def nothing_left(corpus: Corpus, counts: Counts) -> UserError:
    """What to say about a corpus of which the length rule keeps nothing."""
    return UserError(
        f"{corpus.key}: no pair of {corpus.spec} is left: {counts.too_long} are longer than "
        f"data.max_length, {counts.empty} have an empty side"
    )


def _record_batch(rows: list[Row], schema: pa.Schema) -> pa.RecordBatch:
    dtype = schema.field("src").type.value_type.to_pandas_dtype()
    arrays = [pa.array([row.number for row in rows], pa.int64())]
    for ids in ([row.src for row in rows], [row.tgt for row in rows]):
        values, offsets = flat(ids, dtype)
        arrays.append(pa.ListArray.from_arrays(pa.array(offsets), pa.array(values)))
    if "src_text" in schema.names:
        arrays += [pa.array([row.text[side] for row in rows], pa.string()) for side in (0, 1)]
    return pa.record_batch(arrays, schema=schema)
