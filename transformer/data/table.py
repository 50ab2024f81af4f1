"""A table of ids that lies in a memory-mapped Arrow file (or, a piece of a stream, in memory).

A table is read without copying: what a batch takes is looked up by position in the mapped file, so
the memory that a run needs does not grow with its corpus.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

CHUNK_ROWS = 8192  # pairs in each record batch of a file, the last one excepted

Ints = NDArray[Any]


@dataclass
class Counts:
    """Pairs kept, and pairs left out because a side was too long or empty."""

    pairs: int = 0
    too_long: int = 0
    empty: int = 0

    def add(self, other: Counts) -> None:
        """Adds the counts of another part of the same corpus."""
        self.pairs += other.pairs
        self.too_long += other.too_long
        self.empty += other.empty


class Ragged(NamedTuple):
    """Lists of ids, in chunks of equally many lists that lie anywhere in flat arrays.

    Args:
        values: Flat array that holds the ids.
        value_starts: Position of each chunk's first id in `values`.
        offsets: Flat array that holds where each list begins within its chunk, and the end.
        offset_starts: Position of each chunk's first offset in `offsets`.
        chunk_rows: Lists in each chunk.
    """

    values: Ints
    value_starts: Ints
    offsets: Ints
    offset_starts: Ints
    chunk_rows: int

    def spans(self, rows: Ints) -> tuple[Ints, Ints]:
        """Where the lists of these rows begin in `values`, and their lengths in tokens."""
        chunk, row = np.divmod(rows, self.chunk_rows)
        place = self.offset_starts[chunk] + row
        begin = self.offsets[place]
        return self.value_starts[chunk] + begin, self.offsets[place + 1] - begin

    def lengths(self, rows: Ints) -> Ints:
        """(N,) the lengths of the lists of these rows, in tokens."""
        return self.spans(rows)[1]

    def padded(self, rows: Ints) -> tuple[Ints, Ints]:
        """The lists of these rows side by side, (N, longest) with 0 behind, and their lengths."""
        starts, lengths = self.spans(rows)
        steps = np.arange(lengths.max(initial=1))
        real = steps < lengths[:, None]
        padded = np.zeros(real.shape, np.int64)
        padded[real] = self.values[(starts[:, None] + steps)[real]]
        return padded, lengths.astype(np.int64)


class Stacked(NamedTuple):
    """Lists of ids that lie in several places; row numbers go on from each to the next.

    Args:
        parts: Where they lie.
        starts: (P,) the number of the first row of each part.
    """

    parts: list[Ragged]
    starts: Ints

    def lengths(self, rows: Ints) -> Ints:
        """(N,) the lengths of the lists of these rows, in tokens."""
        lengths = np.zeros(len(rows), np.int64)
        for part, places, own_rows in self._by_part(rows):
            lengths[places] = part.lengths(own_rows)
        return lengths

    def padded(self, rows: Ints) -> tuple[Ints, Ints]:
        """The lists of these rows side by side, (N, longest) with 0 behind, and their lengths."""
        lengths = self.lengths(rows)
        padded = np.zeros((len(rows), lengths.max(initial=1)), np.int64)
        for part, places, own_rows in self._by_part(rows):
            ids, _ = part.padded(own_rows)
            padded[places, : ids.shape[1]] = ids
        return padded, lengths

    def _by_part(self, rows: Ints) -> Iterator[tuple[Ragged, Ints, Ints]]:
        """Each part with the places in `rows` that are its own, and its own numbers of them."""
        owner = np.searchsorted(self.starts, rows, side="right") - 1
        for number in np.unique(owner):
            places = np.flatnonzero(owner == number)
            yield self.parts[number], places, rows[places] - self.starts[number]


@dataclass(frozen=True)
class TokenTable:
    """Tokenised pairs: in a memory-mapped file, or in memory for a piece of a stream.

    Args:
        src: Source ids, each list ending with EOS.
        tgt: Target ids, each list ending with EOS.
        numbers: Flat array that holds each pair's number in its corpus.
        number_starts: Position of each chunk's first number in `numbers`.
        counts: What was kept and what was left out.
        path: The file, where there is one.
    """

    src: Ragged
    tgt: Ragged
    numbers: Ints
    number_starts: Ints
    counts: Counts
    path: Path | None = None

    def __len__(self) -> int:
        return self.counts.pairs

    def ids(self, rows: Ints) -> Ints:
        """The numbers that these rows have in the corpus, counted from 0."""
        chunk, row = np.divmod(rows, self.src.chunk_rows)
        numbers: Ints = self.numbers[self.number_starts[chunk] + row]
        return numbers

    def __reduce__(self) -> Any:
        # A worker process maps the file again instead of receiving its content.
        if self.path is not None:
            return open_table, (self.path,)
        values = (self.src, self.tgt, self.numbers, self.number_starts, self.counts)
        return TokenTable, values


class MixedTable:
    """Several tables behind one another: row numbers go on from each to the next.

    Each stays where it is, memory-mapped: nothing is copied.

    Args:
        tables: The tables.
    """

    def __init__(self, tables: Sequence[TokenTable]) -> None:
        self.tables = tables
        self.starts = np.cumsum([0, *map(len, tables)])[:-1]
        self.src = Stacked([table.src for table in tables], self.starts)
        self.tgt = Stacked([table.tgt for table in tables], self.starts)

    def __len__(self) -> int:
        return sum(map(len, self.tables))

    def ids(self, rows: Ints) -> Ints:
        """The rows themselves: a number in a corpus would not say which corpus."""
        return rows

    def __reduce__(self) -> Any:
        return MixedTable, (self.tables,)


def flat(ids: list[list[int]], dtype: type) -> tuple[Ints, Ints]:
    """Lists laid end to end, and where each begins (the end of the last one follows)."""
    offsets = np.zeros(len(ids) + 1, np.int32)
    np.cumsum([len(line) for line in ids], out=offsets[1:])
    return np.fromiter(chain.from_iterable(ids), dtype, count=int(offsets[-1])), offsets


def table_of(
    numbers: list[int], src: tuple[Ints, Ints], tgt: tuple[Ints, Ints], counts: Counts
) -> TokenTable:
    """A table in memory of the numbers and the flat ids and offsets of its pairs."""
    zero, rows = np.zeros(1, np.int64), max(1, len(numbers))
    sides = [Ragged(values, zero, offsets, zero, rows) for values, offsets in (src, tgt)]
    return TokenTable(sides[0], sides[1], np.array(numbers, np.int64), zero, counts)


def open_table(path: Path) -> TokenTable:
    """Maps a table that `write_table` wrote. Reads no ids yet."""
    buffer = pa.memory_map(str(path)).read_buffer()
    reader = pa.ipc.open_file(pa.BufferReader(buffer))
    *batches, last = (
        reader.get_batch_with_custom_metadata(i) for i in range(reader.num_record_batches)
    )
    counts = Counts(**{name.decode(): int(value) for name, value in last[1].items()})
    columns = {
        name: [batch.column(name) for batch, _ in batches] for name in ("number", "src", "tgt")
    }
    numbers, number_starts = _view(
        buffer, [column.buffers()[1] for column in columns["number"]], np.int64
    )
    src, tgt = (_ragged(buffer, columns[name]) for name in ("src", "tgt"))
    return TokenTable(src, tgt, numbers, number_starts, counts, path)


def _ragged(buffer: pa.Buffer, chunks: list[pa.ListArray]) -> Ragged:
    dtype = chunks[0].type.value_type.to_pandas_dtype()
    parts = [chunk.buffers() for chunk in chunks]  # validity, offsets, validity of values, values
    return Ragged(
        *_view(buffer, [part[3] for part in parts], dtype),
        *_view(buffer, [part[1] for part in parts], np.int32),
        CHUNK_ROWS,
    )


def _view(buffer: pa.Buffer, parts: list[pa.Buffer], dtype: type) -> tuple[Ints, Ints]:
    """The whole file as numbers of one type, and where each part of it begins."""
    size = np.dtype(dtype).itemsize
    whole: Ints = np.frombuffer(buffer, dtype, count=buffer.size // size)
    starts = np.array([part.address - buffer.address for part in parts], np.int64)
    assert not (starts % size).any(), "Arrow aligns buffers to 8 bytes"
    return whole, starts // size


def read_texts(path: Path) -> tuple[list[str], list[str]]:
    """Source and target lines of a table that keeps its text."""
    with pa.memory_map(str(path)) as source:
        table = pa.ipc.open_file(source).read_all()
        return table["src_text"].to_pylist(), table["tgt_text"].to_pylist()
