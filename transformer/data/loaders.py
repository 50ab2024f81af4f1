"""Loaders: training batches that can be resumed in the middle of an epoch, and whole sets."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, IterableDataset, get_worker_info

from transformer.data.batching import Batch, Plan, collate, cut
from transformer.data.cache import LengthRule, encode, id_type, nothing_left
from transformer.data.corpus import Corpus
from transformer.data.table import Counts, Ints, MixedTable, TokenTable, flat, table_of
from transformer.data.tokenizer import Tokenizer
from transformer.errors import UserError

log = logging.getLogger(__name__)
POOL = 131_072  # pairs of a cached corpus that are sorted together
STREAM_POOL = 32_768  # lines of a stream that are tokenised and sorted together


class Position(NamedTuple):
    """Where training goes on: the epoch, the pool in it, and the batches taken from that pool."""

    epoch: int = 0
    pool: int = 0
    batch: int = 0


class TrainLoader:
    """Training batches of one process, resumable in the middle of an epoch.

    Each call of `iter` goes on where the last one stopped, with the next epoch after the end of
    one. The position counts batches delivered; what workers have prepared beyond it is made again.

    Args:
        plan: How batches are cut.
        about: How pairs are chosen from the text, for the check on resuming.
        rank: Number of this process; it takes batches rank, rank + world, ...
        num_workers: Worker processes that work ahead.
        ahead: Tells how many delivered batches the caller has set aside and not used yet.
    """

    def __init__(
        self,
        plan: Plan,
        about: dict[str, str],
        rank: int,
        num_workers: int,
        ahead: Callable[[], int],
    ) -> None:
        self.plan, self.rank, self.num_workers = plan, rank, num_workers
        self._about = {**vars(plan), **about}
        self._ahead = ahead
        self._given = deque([Position()], maxlen=8)

    def __iter__(self) -> Iterator[Batch]:
        # Read now, not at the first batch: what was set aside is about to be thrown away.
        self._given = deque([self._used()], maxlen=8)
        return self._deliver()

    def _used(self) -> Position:
        return self._given[max(-len(self._given), -1 - self._ahead())]

    def _deliver(self) -> Iterator[Batch]:
        start = self._given[-1]
        for position, batch in self._batches(start):
            self._given.append(position)
            yield batch
        self._given.append(Position(start.epoch + 1))

    def _batches(self, start: Position) -> Iterator[tuple[Position, Batch]]:
        """The rest of an epoch; with each batch the position after it."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The position after the batches that were used, and the plan that it belongs to."""
        return {**self._used()._asdict(), **self._about}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a saved position.

        Raises:
            ValueError: It is in the middle of an epoch whose batches were cut in another way.
        """
        position = Position(*(state[name] for name in Position._fields))
        # What older checkpoints do not say is taken to be the same.
        changed = [name for name, value in self._about.items() if state.get(name, value) != value]
        before, now = (
            ", ".join(f"{name} {values[name]}" for name in changed)
            for values in (state, self._about)
        )
        if changed and position != Position(position.epoch):
            raise UserError(
                f"data: cannot resume in the middle of an epoch: its batches were cut with "
                f"{before}, now there is {now}; resume with the same text and settings, or begin a "
                "new run from these weights"
            )
        if changed:
            log.info("From epoch %d on there is %s, not %s", position.epoch + 1, now, before)
        self._given = deque([position], maxlen=8)

    def _loader(self, dataset: Dataset[Any], sampler: Any = None) -> DataLoader[Any]:
        # Without a generator of its own a loader draws from that of the process.
        return DataLoader(
            dataset, sampler=sampler, batch_size=None, collate_fn=_same,
            num_workers=self.num_workers, generator=torch.Generator(),
        )  # fmt: skip


class TableLoader(TrainLoader):
    """Batches of rows that are looked up in a table.

    Args:
        table: What is tokenised already.
        pairs: Rows in an epoch.
        plan: How batches are cut.
        size: The pairs in words, for the check on resuming.
        rank: Number of this process.
        num_workers: Worker processes that look up and pad.
        ahead: Tells how many delivered batches the caller has set aside and not used yet.
    """

    def __init__(
        self,
        table: TokenTable | MixedTable,
        pairs: int,
        plan: Plan,
        size: str,
        rank: int,
        num_workers: int,
        ahead: Callable[[], int],
    ) -> None:
        super().__init__(plan, {"corpus": size}, rank, num_workers, ahead)
        self.table = table
        self.pools = -(-pairs // POOL)

    def _rows(self, epoch: int, pool: int) -> Ints:
        """The rows of a pool of an epoch."""
        raise NotImplementedError

    def _batches(self, start: Position) -> Iterator[tuple[Position, Batch]]:
        marks: deque[Position] = deque()
        for batch in self._loader(_Lookup(self.table), self._sampler(start, marks)):
            yield marks.popleft(), batch

    def _sampler(self, start: Position, marks: deque[Position]) -> Iterator[Ints]:
        """The rows of each batch; leaves the position after it in `marks`."""
        order = self.plan.order(start.epoch, self.pools)
        for place in range(start.pool, self.pools):
            pool = int(order[place])
            rows = self._rows(start.epoch, pool)
            batches = self.plan.batches(self.table, rows, (start.epoch, pool))
            mine = batches[self.rank :: self.plan.world]
            for number in range(start.batch if place == start.pool else 0, len(mine)):
                marks.append(Position(start.epoch, place, number + 1))
                yield mine[number]


class CachedLoader(TableLoader):
    """Batches of a token table.

    Pool p of K holds the rows p, p + K, p + 2K, ...: a sample of the whole corpus that needs no
    index in memory. The sizes of the batches of a pool follow from its lengths alone, so that
    every epoch has the same number of them.

    Args:
        table: The tokenised corpus.
        plan: How batches are cut.
        rank: Number of this process.
        num_workers: Worker processes that look up and pad.
        limit: Where an epoch ends: after this many batches, or this share of them
            (`limit_train_batches`).
    """

    def __init__(
        self,
        table: TokenTable,
        plan: Plan,
        rank: int = 0,
        num_workers: int = 0,
        limit: int | float = 1.0,
    ) -> None:
        size = f"of {len(table)} pairs"
        super().__init__(table, len(table), plan, size, rank, num_workers, ahead=lambda: 0)
        self._counts = [
            len(plan.batches(table, self._rows(0, pool), None)) // plan.world
            for pool in range(self.pools)
        ]
        self._last = int(limit * len(self)) if isinstance(limit, float) else min(limit, len(self))

    def __len__(self) -> int:
        return sum(self._counts)

    def _rows(self, epoch: int, pool: int) -> Ints:
        return np.arange(pool, len(self.table), self.pools)

    def _batches(self, start: Position) -> Iterator[tuple[Position, Batch]]:
        order = self.plan.order(start.epoch, self.pools)
        done = sum(self._counts[pool] for pool in order[: start.pool]) + start.batch
        # A trainer that knows the length does not ask for the batch after the last one.
        rest = islice(super()._batches(start), max(0, self._last - done))
        for number, (position, batch) in enumerate(rest, done + 1):
            yield position if number < self._last else Position(start.epoch + 1), batch


class StreamLoader(TrainLoader):
    """Batches of a corpus that is read and tokenised on the fly, in its own order, pool by pool.

    Every process reads and tokenises the whole stream and takes its share of the batches. Worker w
    of n prepares the pools w, w + n, ...; with none, training waits for each pool.

    Args:
        corpus: The text.
        tokenizer: The tokenizer.
        rule: Which pairs are left out.
        plan: How batches are cut.
        limit: Pairs of the corpus to read, None for all.
        rank: Number of this process.
        num_workers: Worker processes that read and tokenise.
        ahead: Tells how many delivered batches the caller has set aside and not used yet.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        rule: LengthRule,
        plan: Plan,
        limit: int | None = None,
        rank: int = 0,
        num_workers: int = 0,
        ahead: Callable[[], int] = lambda: 0,
    ) -> None:
        about = {"stream": f"limit {limit} max_length {rule.max_length}"}
        super().__init__(plan, about, rank, num_workers, ahead)
        self._source = (corpus, tokenizer, rule, limit)
        self._counted: dict[int, Counts] = {}

    @property
    def counts(self) -> Counts:
        """What has been read so far, each pool counted once however many epochs there were."""
        total = Counts()
        for counts in self._counted.values():
            total.add(counts)
        return total

    def _batches(self, start: Position) -> Iterator[tuple[Position, Batch]]:
        loader = self._loader(_Pools(*self._source, start.pool))
        for pool, table in enumerate(loader, start.pool):
            self._counted[pool] = table.counts
            if not len(table):
                continue  # all of it was left out
            batches = self.plan.batches(table, np.arange(len(table)), (start.epoch, pool))
            mine = batches[self.rank :: self.plan.world]
            for number in range(start.batch if pool == start.pool else 0, len(mine)):
                yield Position(start.epoch, pool, number + 1), collate(table, mine[number])
        if not (counts := self.counts).pairs:
            raise nothing_left(self._source[0], counts)


class EvalLoader:
    """The batches of a whole validation or test set, longest first.

    They are composed alike for any number of processes; process r takes r, r + world, ... and,
    where there are fewer batches than processes, an empty one.

    Args:
        table: The tokenised set.
        max_tokens: Budget of a batch, for rows x beams x (longest side + extra), which is what
            search may have to remember; a pair beyond it is a batch of its own.
        rank: Number of this process.
        world: Number of processes.
        beams: Hypotheses of a sentence that are searched side by side.
        extra: Tokens by which a hypothesis may be longer than its source.
    """

    def __init__(
        self,
        table: TokenTable,
        max_tokens: int,
        rank: int = 0,
        world: int = 1,
        beams: int = 1,
        extra: int = 0,
    ) -> None:
        self.table = table
        rows = np.arange(len(table))
        longest = np.maximum(table.src.lengths(rows), table.tgt.lengths(rows)).astype(np.int64)
        order = np.argsort(longest, kind="stable")
        ends = cut(beams * (longest[order] + extra), max_tokens)
        batches = np.split(order, ends[:-1])
        # Lightning leaves a process without any batch out, and the others would wait for it.
        self._batches = batches[::-1][rank::world] or [np.arange(0)]

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        return (collate(self.table, rows) for rows in self._batches)


class _Lookup(Dataset[Batch]):
    def __init__(self, table: TokenTable | MixedTable) -> None:
        self.table = table

    def __getitem__(self, rows: Any) -> Batch:
        return collate(self.table, rows)


class _Pools(IterableDataset[TokenTable]):
    def __init__(
        self, corpus: Corpus, tokenizer: Tokenizer, rule: LengthRule, limit: int | None, start: int
    ) -> None:
        self.corpus, self.tokenizer, self.rule = corpus, tokenizer, rule
        self.limit, self.start = limit, start

    def __iter__(self) -> Iterator[TokenTable]:
        worker = get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        pairs = self.corpus.pairs(self.start * STREAM_POOL, self.limit)
        for pool in count(self.start):
            if not (some := list(islice(pairs, STREAM_POOL))):
                return
            if (pool - self.start) % workers == mine:
                counts, first = Counts(), pool * STREAM_POOL
                rows = list(encode(some, first, self.corpus, self.tokenizer, self.rule, counts))
                dtype = id_type(self.tokenizer)
                src, tgt = flat([row.src for row in rows], dtype), [row.tgt for row in rows]
                yield table_of([row.number for row in rows], src, flat(tgt, dtype), counts)


def _same(item: Any) -> Any:
    return item
