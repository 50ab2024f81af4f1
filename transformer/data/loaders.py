"""Training batches whose place in an epoch can be saved, and gone on from."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, compress, count, islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from transformer.data.batching import Batch, Plan, collate
from transformer.data.corpus import Corpus
from transformer.data.dataset import TokenTable, table_in_memory
from transformer.data.lengths import Ints
from transformer.data.mixture import Counts, Mixture, select
from transformer.data.tokenizer import Tokenizer
from transformer.errors import UserError

log = logging.getLogger(__name__)
POOL = 131_072  # pairs of a cached corpus that are sorted together, so that memory stays small
STREAM_POOL = 32_768  # pairs of a stream that each process tokenises and sorts together

#: Pairs that are sorted together: their table, and the rows of each batch of this process.
Pool = tuple[TokenTable, list[Ints]]
#: Numbers of this process -> (world, numbers) those of all, which each of them must ask for.
Gather = Callable[[Sequence[int]], Ints]


class Position(NamedTuple):
    """Where training goes on: the epoch, the pool in it, and the batches taken from that pool."""

    epoch: int = 0
    pool: int = 0
    batch: int = 0


@dataclass(eq=False)
class TrainLoader:
    """Training batches of one process, resumable in the middle of an epoch.

    Each call of `iter` goes on where the last one stopped, with the next epoch after the end of
    one. The position counts batches delivered.

    Args:
        plan: How batches are cut.
        rank: Number of this process.
        ahead: Tells how many delivered batches the caller has set aside and not used yet.
    """

    plan: Plan
    rank: int
    ahead: Callable[[], int]
    _given: deque[Position] = field(default_factory=lambda: deque([Position()], 8), init=False)

    def __iter__(self) -> Iterator[Batch]:
        # Read now, not at the first batch: what was set aside is about to be thrown away.
        start = self._used()
        self._given = deque([start], 8)
        return self._deliver(start)

    def _used(self) -> Position:
        return self._given[max(-len(self._given), -1 - self.ahead())]

    def _deliver(self, start: Position) -> Iterator[Batch]:
        pools = self._pools(start.epoch, start.pool)
        for place, (table, batches) in enumerate(pools, start.pool):
            done = start.batch if place == start.pool else 0
            for number, batch in enumerate(batches[done:], done + 1):
                self._given.append(Position(start.epoch, place, number))
                yield collate(table, batch)
        self._given.append(Position(start.epoch + 1))

    def _pools(self, epoch: int, start: int) -> Iterator[Pool]:
        """The pools of an epoch in their order, from the one in this place on."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The position after the batches that were used, and how they were cut."""
        return {**self._used()._asdict(), **self._cut()}

    def _cut(self) -> dict[str, Any]:
        """What decides about the batches of an epoch."""
        return vars(self.plan)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes to a saved position.

        Raises:
            UserError: It is in the middle of an epoch whose batches were cut in another way.
        """
        position = Position(*(state[name] for name in Position._fields))
        changed = ", ".join(
            f"{'processes' if name == 'world' else name} {state[name]}, now there is {now}"
            for name, now in self._cut().items()
            if state.get(name, now) != now  # older checkpoints do not have all of them
        )
        if changed and position != Position(position.epoch):
            raise UserError(
                f"data: cannot resume in the middle of an epoch: its batches were cut with "
                f"{changed}; resume with the same text, settings and number of processes, or begin "
                "a new run from these weights"
            )
        if changed:
            log.info("Before epoch %d batches were cut with %s", position.epoch + 1, changed)
        self._given = deque([position], 8)


@dataclass(eq=False)
class CachedLoader(TrainLoader):
    """Batches of tokenised corpora.

    Pool p of K holds every K-th row of an epoch from the p-th on: a sample of all of it. Process r
    takes the batches r, r + world, ... of each.

    Args:
        table: The tokenised corpora.
        mixture: Which of their rows are in an epoch.
        limit: Where an epoch of one corpus ends: after this many batches, or this share of them
            (`limit_train_batches`).
    """

    table: TokenTable
    mixture: Mixture
    limit: int | float = 1.0

    @property
    def pools(self) -> int:
        """Pools in each epoch."""
        return -(-sum(self.mixture.counts) // POOL)

    def __post_init__(self) -> None:
        _refuse_too_few(sum(self.mixture.counts) // self.plan.world, self.plan.world)

    @cached_property
    def _counts(self) -> list[int]:
        """Batches in each pool of a single corpus: they follow from its lengths alone."""
        if self.mixture.is_mixed:
            raise TypeError("an epoch has other pairs than the one before, maybe a batch more")
        pools = (self.mixture.corpora[0][pool :: self.pools] for pool in range(self.pools))
        batches = (self.plan.batches(self.table, rows, None) for rows in pools)
        return [len(pool) // self.plan.world for pool in batches]

    def __len__(self) -> int:
        return sum(self._counts)

    def _cut(self) -> dict[str, Any]:
        return {**super()._cut(), "corpus": str(self.mixture)}

    def _pools(self, epoch: int, start: int) -> Iterator[Pool]:
        rows = self.mixture.rows(epoch, self.plan.seed)
        for pool in self.plan.order(epoch, self.pools)[start:].tolist():
            batches = self.plan.batches(self.table, rows[pool :: self.pools], (epoch, pool))
            yield self.table, batches[self.rank :: self.plan.world]

    def _deliver(self, start: Position) -> Iterator[Batch]:
        left = None if self.mixture.is_mixed else self._last - self._done(start)
        return islice(super()._deliver(start), left)

    def _used(self) -> Position:
        position = super()._used()
        if self.mixture.is_mixed or self._done(position) < self._last:
            return position
        return Position(position.epoch + 1)  # a trainer that knows the end asks for no more

    def _done(self, position: Position) -> int:
        """Batches of an epoch before a position in it."""
        pools = self.plan.order(position.epoch, self.pools)[: position.pool]
        return sum(self._counts[pool] for pool in pools) + position.batch

    @cached_property
    def _last(self) -> int:
        """Batches of an epoch, as limited: at least one, for without any nothing is trained."""
        limit = int(self.limit * len(self)) if isinstance(self.limit, float) else self.limit
        return max(1, min(limit, len(self)))


@dataclass(eq=False)
class StreamLoader(TrainLoader):
    """Batches of a corpus that is read and tokenised on the fly, in its own order, pool by pool.

    Every process reads the whole stream, tokenises its own share of each pool and cuts it into as
    many batches as the others do. Worker w of n prepares the pools w, w + n, ...; with none,
    training waits for each pool.

    Args:
        corpus: The text.
        tokenizer: The tokenizer.
        max_length: As in `select`, like `refuse`.
        num_workers: Worker processes that read and tokenise.
        gather: How the processes of a run hear of each other.
    """

    corpus: Corpus
    tokenizer: Tokenizer
    max_length: int
    refuse: bool = False
    num_workers: int = 0
    gather: Gather = lambda numbers: np.array([numbers])
    _counted: dict[int, Counts] = field(default_factory=dict, init=False)

    @property
    def counts(self) -> Counts:
        """What all have read so far, each pool counted once however many epochs there were."""
        return sum(self._counted.values(), Counts())

    def _cut(self) -> dict[str, Any]:
        stream = f"a stream, limit {self.corpus.limit} max_length {self.max_length}"
        shared_out = " shared out by pairs" if self.plan.world > 1 else ""
        return {**super()._cut(), "corpus": stream + shared_out}

    def state_dict(self) -> dict[str, Any]:
        """The position, and what was counted so far, which a resumed run does not read again."""
        counted = {number: [*vars(counts).values()] for number, counts in self._counted.items()}
        return {**super().state_dict(), "counted": counted}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        counted = state.get("counted", {})
        self._counted = {number: Counts(*counts) for number, counts in counted.items()}

    def _pools(self, epoch: int, start: int) -> Iterator[Pool]:
        # Without a generator of its own a loader draws from that of the process.
        tables = DataLoader(
            _Tokenised(self.corpus, self.tokenizer, self.plan, self.rank, start), batch_size=None,
            num_workers=self.num_workers, generator=torch.Generator(),
        )  # fmt: skip
        found = start
        try:
            for number, table in enumerate(tables, start):
                if isinstance(table, UserError):
                    raise table
                batches = self._batches(table, epoch, number)
                found += len(batches)
                yield table, batches
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            key = f"{self.corpus.key}: a process that reads it was killed"
            raise UserError(f"{key}; is there enough memory for data.num_workers?") from error
        self.counts.check(self.corpus)
        _refuse_too_few(found, self.plan.world)

    def _batches(self, table: TokenTable, epoch: int, number: int) -> list[Ints]:
        rows, counts = select(table, self.corpus, self.max_length, self.refuse)

        def agree(batches: int, pairs: int) -> int:
            all_batches, *everyones = self.gather([batches, *vars(counts).values()]).T.tolist()
            self._counted[number] = Counts(*map(sum, everyones))
            # A process with fewer pairs than batches of another cannot follow it: of the end of a
            # stream, fewer pairs than there are processes are left out.
            return min(max(all_batches), min(everyones[0]))

        key = epoch, number * self.plan.world + self.rank
        return self.plan.batches(table, rows, key, agree)


def _refuse_too_few(share: int, world: int) -> None:
    """Raises a UserError where nothing of an epoch is left to a process."""
    if not share:
        raise UserError(
            f"data.train: too few pairs for {world} processes: give more text, or start fewer"
        )


@dataclass
class _Tokenised(IterableDataset[TokenTable | UserError]):
    """The share of a process in a stream from a pool on; a worker takes some of the pools."""

    corpus: Corpus
    tokenizer: Tokenizer
    plan: Plan
    rank: int
    start: int

    def __iter__(self) -> Iterator[TokenTable | UserError]:
        try:
            yield from self._tables()
        except UserError as error:  # torch would put the traceback of a worker into it
            yield error

    def _tables(self) -> Iterator[TokenTable]:
        worker = get_worker_info()
        mine, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        size = STREAM_POOL * self.plan.world
        pairs = self.corpus.pairs(self.start * size)
        for pool in count(self.start):
            if (first := next(pairs, None)) is None:
                return
            share = self._share(pool) if (pool - self.start) % workers == mine else np.zeros(size)
            some = list(compress(islice(chain([first], pairs), size), share.tolist()))
            if share.any():
                drawn = pool * size + np.flatnonzero(share)[: len(some)]
                yield table_in_memory(some, self.corpus, self.tokenizer, drawn)

    def _share(self, pool: int) -> Ints:
        """Whether each pair of a pool is for this process: one of every `world` in a row."""
        rng = np.random.default_rng([self.plan.seed, pool])
        rows = np.tile(np.arange(self.plan.world), (STREAM_POOL, 1))
        return rng.permuted(rows, axis=1).ravel() == self.rank
