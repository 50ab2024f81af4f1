"""Corpora and tokenizer -> token ids in an Arrow file, written once and memory-mapped ever after.

The file holds every pair: a row is the number of a pair in its corpora, one corpus behind the
other. Which rows are trained on is chosen when it is open, so that another `data.max_length` or
share costs nothing. What a batch takes is looked up where it lies in the mapped file, so that the
memory that a run needs hardly grows with its corpus (what is kept of a pair is its number).
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

import numpy as np
import pyarrow as pa

from transformer.data.corpus import Corpus, Pair
from transformer.data.lengths import Ints
from transformer.data.progress import shown
from transformer.data.tokenizer import Tokenizer, is_blank
from transformer.errors import UserError, message
from transformer.writing import whole, write

log = logging.getLogger(__name__)
FORMAT = 2
CHUNK_ROWS = 8192  # pairs that are tokenised at a time, on all threads of the library
AT_WORK = 2  # such chunks at a time

Given = TypeVar("Given")
Found = TypeVar("Found")


class TokenLists:
    """Lists of token ids, in the chunks of an Arrow column, read where they lie in the file."""

    def __init__(self, file: pa.Buffer, chunks: list[pa.ListArray]) -> None:
        self._first_rows = np.cumsum([0, *map(len, chunks)])[:-1]
        self._offsets, self._offset_starts = _view(file, [chunk.offsets for chunk in chunks])
        self._ids, self._id_starts = _view(file, [chunk.values for chunk in chunks])

    def _spans(self, rows: Ints) -> tuple[Ints, Ints]:
        """Where the lists of these rows begin in `_ids`, and their lengths in tokens."""
        chunk = np.searchsorted(self._first_rows, rows, side="right") - 1
        place = self._offset_starts[chunk] + rows - self._first_rows[chunk]
        begin = self._offsets[place]
        return self._id_starts[chunk] + begin, self._offsets[place + 1] - begin

    def lengths(self, rows: Ints) -> Ints:
        """(N,) the lengths of the lists of these rows, in tokens."""
        return self._spans(rows)[1]

    def padded(self, rows: Ints) -> tuple[Ints, Ints]:
        """The lists of these rows side by side, (N, longest) with 0 behind, and their lengths."""
        starts, lengths = self._spans(rows)
        steps = np.arange(lengths.max(initial=1))
        real = steps < lengths[:, None]
        padded = np.zeros(real.shape, np.int64)
        padded[real] = self._ids[(starts[:, None] + steps)[real]]
        return padded, lengths.astype(np.int64)


def _view(file: pa.Buffer, arrays: list[pa.Array]) -> tuple[Ints, Ints]:
    """The whole file as numbers of the type of some arrays in it, and where each array begins."""
    dtype = np.dtype(arrays[0].type.to_pandas_dtype())
    starts = np.array([array.buffers()[1].address - file.address for array in arrays], np.int64)
    assert not (starts % dtype.itemsize).any(), "Arrow aligns buffers to 8 bytes"
    return np.frombuffer(file, dtype, file.size // dtype.itemsize), starts // dtype.itemsize


class TokenTable:
    """Tokenised pairs. Opening reads no ids yet.

    Args:
        source: The file, which is memory-mapped; or its content, for pairs of a stream.
        drawn: (N,) the numbers of these pairs in the stream, ascending.

    Attributes:
        src: Source ids, each list ending with EOS.
        tgt: Target ids, each list ending with EOS.
        bounds: (C + 1,) the first row of each corpus, and the number of all rows.
    """

    def __init__(self, source: Path | pa.Buffer, drawn: Ints | None = None) -> None:
        self.source, self._drawn = source, drawn
        file = pa.memory_map(str(source)).read_buffer() if isinstance(source, Path) else source
        reader = pa.ipc.open_file(file)
        numbers = range(reader.num_record_batches)
        batches, about = zip(*map(reader.get_batch_with_custom_metadata, numbers), strict=True)
        self.src = TokenLists(file, [batch.column("src") for batch in batches])
        self.tgt = TokenLists(file, [batch.column("tgt") for batch in batches])
        self._blank = [batch.column("blank") for batch in batches]
        corpora = [int(each[b"corpus"]) for each in about]
        self.bounds = np.cumsum([0, *np.bincount(corpora, [*map(len, batches)])]).astype(np.int64)

    def __len__(self) -> int:
        return int(self.bounds[-1])

    def numbers(self, rows: Ints) -> Ints:
        """(N,) the numbers of these rows in their corpora."""
        return rows if self._drawn is None else self._drawn[rows]

    def blank(self) -> Ints:
        """(N,) whether a side of each pair has nothing to translate."""
        # Arrow's own `to_numpy` would import pandas, which takes half a second and 36 MiB.
        found = []
        for chunk in self._blank:
            bits = np.frombuffer(chunk.buffers()[1] or b"", np.uint8)
            found.append(np.unpackbits(bits, count=len(chunk), bitorder="little").view(bool))
        return np.concatenate(found)

    def longest(self, rows: Ints) -> Ints:
        """(N,) the length of the longer side of each of these rows, in tokens."""
        return np.maximum(self.src.lengths(rows), self.tgt.lengths(rows))

    def __reduce__(self) -> Any:
        # Another process maps the file again instead of receiving its content.
        return TokenTable, (self.source, self._drawn)


def write_table(corpora: Sequence[Corpus], tokenizer: Tokenizer, path: Path) -> None:
    """Tokenises corpora into an Arrow file; the file appears under its name when it is whole."""
    log.info("Tokenising %s", ", ".join(map(str, corpora)))
    with whole(path) as stream:
        parts = (
            (corpus.tgt, shown(corpus.pairs(), corpus.size(), "tokenising")) for corpus in corpora
        )
        _write(stream, parts, tokenizer)


def table_in_memory(
    pairs: Iterable[Pair], corpus: Corpus, tokenizer: Tokenizer, drawn: Ints | None = None
) -> TokenTable:
    """Tokenises some pairs of a corpus, perhaps none; `drawn` as in `TokenTable`."""
    sink = pa.BufferOutputStream()
    _write(sink, [(corpus.tgt, iter(pairs))], tokenizer)
    return TokenTable(sink.getvalue(), drawn)


def _write(sink: Any, parts: Iterable[tuple[str, Iterator[Pair]]], tokenizer: Tokenizer) -> None:
    largest = max(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)
    ids = pa.list_(pa.uint16() if largest <= 1 << 16 else pa.int32())
    schema = pa.schema({"src": ids, "tgt": ids, "blank": pa.bool_()})

    def encode(tgt: str, some: list[Pair]) -> pa.RecordBatch:
        columns = [
            tokenizer.encode_src([pair.src for pair in some], tgt),
            tokenizer.encode_tgt([pair.tgt for pair in some]),
            [any(map(is_blank, pair)) for pair in some],
        ]
        return pa.record_batch([*map(pa.array, columns, schema.types)], schema=schema)

    with pa.ipc.new_file(sink, schema) as writer, ThreadPoolExecutor(AT_WORK) as threads:
        for number, (tgt, pairs) in enumerate(parts):
            for batch in _in_order(threads, partial(encode, tgt), _chunks(pairs)):
                writer.write_batch(batch, custom_metadata={"corpus": str(number)})


def _chunks(pairs: Iterator[Pair]) -> Iterator[list[Pair]]:
    some = list(islice(pairs, CHUNK_ROWS))
    while True:
        yield some  # also of no pairs: a table has a chunk
        if not (some := list(islice(pairs, CHUNK_ROWS))):
            return


def _in_order(
    threads: Executor, work: Callable[[Given], Found], items: Iterable[Given]
) -> Iterator[Found]:
    """What becomes of each item. While it is waited for, as many are at work and the next is read.

    The library tokenises on all cores, without the lock of Python that the rest needs.
    """
    waiting: deque[Future[Found]] = deque()
    for item in items:
        waiting.append(threads.submit(work, item))
        if len(waiting) > AT_WORK:
            yield waiting.popleft().result()
    yield from (future.result() for future in waiting)


def open_table(cache: Path, corpora: Sequence[Corpus], tokenizer: Tokenizer) -> TokenTable:
    """Opens the tokenised corpora of the cache; makes them unless they are there."""
    about = [FORMAT, [corpus.content() for corpus in corpora], tokenizer.to_text()]
    path = cache / f"tokens-{json_digest(about)}.arrow"
    return cached(path, TokenTable, partial(write_table, corpora, tokenizer))


def json_digest(about: Any) -> str:
    """A short name for JSON content, which changes with it."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]


def cached(path: Path, read: Callable[[Path], Found], make: Callable[[Path], None]) -> Found:
    """Reads a file of the cache; makes it where there is none, or (and says so) a damaged one."""
    try:
        _check_sum(path)
        return read(path)
    except FileNotFoundError:
        pass
    except (NotADirectoryError, PermissionError):
        raise
    except Exception as error:  # Arrow has many for what is not its own, and so has what we read
        log.info("%s is damaged and made again (%s)", path, message(error))
    make(path)
    _check_sum(path, is_new=True)
    return read(path)


def _check_sum(path: Path, is_new: bool = False) -> None:
    """Compares a file with the checksum beside it, or writes that: ids have none of their own."""
    beside, about = path.with_name(f".{path.name}.crc32"), path.stat()
    found = f"{_sum(path, about.st_size, about.st_mtime_ns):08x}\n"
    if is_new or not beside.exists():
        with suppress(OSError):  # others may have filled the cache, and let it be read alone
            write(beside, found)
    elif beside.read_text() != found:
        raise UserError("its checksum is another")


@lru_cache
def _sum(path: Path, size: int, changed: int) -> int:
    """The CRC-32 of a file, which a process opens more than once and reads through once."""
    found = 0
    with path.open("rb") as stream:
        while part := stream.read(1 << 20):
            found = crc32(part, found)
    return found
