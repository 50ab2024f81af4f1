"""Batches: what they hold, that nothing is lost or repeated, and that a position is exact."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from toys import gathers

from transformer.data import loaders
from transformer.data.batching import Batch, Plan, collate
from transformer.data.corpus import Corpus, Pair, open_corpus
from transformer.data.dataset import TokenTable, table_in_memory, write_table
from transformer.data.lengths import by_length
from transformer.data.loaders import CachedLoader, StreamLoader, TrainLoader
from transformer.data.mixture import Counts, Mixture, select
from transformer.data.tokenizer import BOS, EOS, Tokenizer, TokenizerConfig
from transformer.data.tokenizer_training import train_tokenizer
from transformer.errors import UserError

BUDGET = 60


def nothing() -> int:
    """No batch is set aside by a trainer."""
    return 0


NOWHERE = Corpus("nowhere", "en", "de", "data.train")


class Spelled:
    """Takes lines of numbers that end with a # for ids."""

    src_vocab_size = tgt_vocab_size = 2000

    def encode_src(self, lines: list[str], to: str | None = None) -> list[list[int]]:
        return [[*map(int, line.split()[:-1]), EOS] for line in lines]

    encode_tgt = encode_src


def make_table(lengths: Iterable[tuple[int, int]]) -> TokenTable:
    """Pair i has the ids 10 + i, so that a mix-up shows."""
    pairs = [Pair(*(f"{10 + i} " * (n - 1) + "#" for n in pair)) for i, pair in enumerate(lengths)]
    return table_in_memory(pairs, NOWHERE, Spelled())  # type: ignore[arg-type]


def random_table(pairs: int = 500, seed: int = 0) -> TokenTable:
    rng = np.random.default_rng(seed)
    return make_table(rng.integers(1, 30, (pairs, 2)).tolist())


def cached(table: TokenTable, plan: Plan, rank: int = 0, limit: int | float = 1.0) -> CachedLoader:
    mixture = Mixture([np.arange(len(table))], [], 1.0)
    return CachedLoader(plan, rank, nothing, table, mixture, limit)


def ids(batches: Iterable[Batch]) -> list[list[int]]:
    return [batch.indices.tolist() for batch in batches]


@pytest.fixture
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "POOL", 120)
    monkeypatch.setattr(loaders, "STREAM_POOL", 120)


@pytest.fixture(scope="module")
def stream_source(tmp_path_factory: pytest.TempPathFactory) -> tuple[Corpus, Tokenizer]:
    folder = tmp_path_factory.mktemp("stream")
    rng = np.random.default_rng(0)
    for side in ("en", "de"):
        lines = (" ".join(["w"] * n + [str(i)]) for i, n in enumerate(rng.integers(1, 20, 500)))
        (folder / f"train.{side}").write_text("\n".join(lines) + "\n")
    corpus = open_corpus(str(folder / "train"), "en", "de")
    config = TokenizerConfig(kind="word", vocab_size=600, min_frequency=1)
    return corpus, train_tokenizer(
        config, lambda: ((pair.src, pair.src) for pair in corpus.pairs())
    )


class Source:
    """Makes loaders of one kind, and knows what they have to hold."""

    def __init__(self, kind: str, stream: tuple[Corpus, Tokenizer]) -> None:
        self.kind, self.stream = kind, stream
        sizes = [500, 90, 40] if kind == "mixture" else [500]
        self.table = random_table(sum(sizes))
        parts = np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])
        self.mixture = Mixture(parts, [None, 0.2][: len(sizes) - 1], 2.0)

    def __call__(
        self, rank: int = 0, plan: Plan = Plan(BUDGET), workers: int = 0  # noqa: B008
    ) -> TrainLoader:  # fmt: skip
        if self.kind == "stream":
            return StreamLoader(plan, rank, nothing, *self.stream, 50, num_workers=workers)
        return CachedLoader(plan, rank, nothing, self.table, self.mixture)

    def rows(self, epoch: int) -> list[int]:
        """The pairs of an epoch, in order."""
        return sorted(self.mixture.rows(epoch, seed=1).tolist())


@pytest.fixture(params=["cached", "stream", "mixture"])
def make_loader(
    request: pytest.FixtureRequest, small_pools: None, stream_source: tuple[Corpus, Tokenizer]
) -> Source:
    return Source(request.param, stream_source)


def test_collate_pads_shifts_and_counts() -> None:
    table = make_table([(3, 2), (1, 4)])
    batch = collate(table, np.array([1, 0]))
    assert batch.indices.tolist() == [1, 0]
    assert batch.src.tolist() == [[EOS, 0, 0], [10, 10, EOS]]
    assert batch.src_lengths.tolist() == [1, 3]
    assert batch.tgt_in.tolist() == [[BOS, 11, 11, 11], [BOS, 10, 0, 0]]
    assert batch.tgt_out.tolist() == [[11, 11, 11, EOS], [10, EOS, 0, 0]]
    assert batch.tgt_lengths.tolist() == [4, 2]
    assert all(tensor.dtype == torch.long for tensor in batch)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.integers(1, 40), max_size=80), st.integers(1, 100))
def test_batches_by_length_are_greedy_and_within_the_budget(
    lengths: list[int], budget: int
) -> None:
    batches = [batch.tolist() for batch in by_length(np.array(lengths, np.uint16), budget)]
    order = [i for batch in batches for i in batch]
    assert order == sorted(range(len(lengths)), key=lengths.__getitem__)
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch[-1]] <= budget
    for batch, after in pairwise(batches):  # brute force: not one more fits
        assert (len(batch) + 1) * lengths[after[0]] > budget


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 29), max_size=12), st.integers(1, 8), st.integers(1, 40))
@example([1, 1, 1], 2, 1)
def test_each_process_gets_equally_many_batches(
    lengths: list[int], world: int, budget: int
) -> None:
    table = make_table([(n, n) for n in lengths])
    rows = np.arange(len(lengths))
    batches = Plan(budget, world=world).batches(table, rows, None)
    assert len(batches) % world == 0
    assert all(len(batch) for batch in batches)
    kept = [int(row) for batch in batches for row in batch]
    assert kept == sorted(rows, key=lengths.__getitem__)[: len(kept)]
    lost = len(lengths) - len(kept)
    assert lost <= len(lengths) % world
    assert not lost or len(batches) + world > len(lengths), "no more could be had by halving"


def test_an_epoch_holds_its_pairs_within_the_budget(make_loader: Source) -> None:
    loader = make_loader()
    for epoch in range(2):
        batches = list(loader)
        assert sorted(i for batch in ids(batches) for i in batch) == make_loader.rows(epoch)
        for batch in batches:
            longest = max(batch.src.shape[1], batch.tgt_out.shape[1])
            assert len(batch.indices) * longest <= BUDGET
            assert longest == max(*batch.src_lengths.tolist(), *batch.tgt_lengths.tolist())


def test_epochs_differ_and_depend_on_the_seed_alone(make_loader: Source) -> None:
    loader, again = make_loader(), make_loader()
    first, second = ids(loader), ids(loader)
    assert first != second
    assert {frozenset(b) for b in first} != {frozenset(b) for b in second}, "ties are not mixed"
    torch.manual_seed(7)
    np.random.seed(7)
    assert [ids(again), ids(again)] == [first, second]
    assert ids(make_loader(plan=Plan(BUDGET, seed=2))) != first


@pytest.mark.parametrize("workers", [0, 2])
def test_the_generators_of_the_process_are_left_alone(make_loader: Source, workers: int) -> None:
    before, numpy_before = torch.get_rng_state(), repr(np.random.get_state())
    list(make_loader(workers=workers))
    assert torch.equal(torch.get_rng_state(), before)
    assert repr(np.random.get_state()) == numpy_before


@pytest.mark.parametrize(
    ("epochs", "taken", "workers"),
    [*((epochs, taken, 0) for epochs in (0, 2) for taken in (0, 1, 30, 61)), (1, 30, 2)],
)
def test_a_saved_position_gives_precisely_the_rest(
    make_loader: Source, epochs: int, taken: int, workers: int
) -> None:
    loader = make_loader(workers=workers)
    for _ in range(epochs):
        list(loader)
    head = ids(islice(iter(loader), taken))
    state = loader.state_dict()
    rest = [ids(loader), ids(loader)]  # iter() goes on
    resumed = make_loader(workers=workers)
    resumed.load_state_dict(state)
    assert [ids(resumed), ids(resumed)] == rest
    assert sorted(i for batch in head + rest[0] for i in batch) == make_loader.rows(epochs)


def test_the_end_of_an_epoch_is_the_start_of_the_next(make_loader: Source) -> None:
    loader, resumed = make_loader(), make_loader()
    batches = len(list(loader))
    resumed.load_state_dict(loader.state_dict())
    second = ids(loader)
    assert ids(resumed) == second
    # A trainer that knows the length does not ask for the batch after the last one.
    if make_loader.kind == "cached":
        knowing = make_loader()
        assert isinstance(knowing, CachedLoader)
        assert len(ids(islice(iter(knowing), batches))) == len(knowing) == batches
        assert ids(knowing) == second


class Noting:
    """The tokenizer of a process, which notes the lines that it is given."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer, self.lines = tokenizer, list[str]()
        self.src_vocab_size, self.tgt_vocab_size = (tokenizer.src_vocab_size,) * 2
        self.encode_tgt = tokenizer.encode_tgt

    def encode_src(self, lines: list[str], to: str) -> list[list[int]]:
        self.lines += lines
        return self.tokenizer.encode_src(lines, to)


def streams(
    world: int, source: tuple[Corpus, Any], use: Callable[[StreamLoader], Any]
) -> list[Any]:
    """What becomes of the loaders of processes, each in a thread of its own."""
    plan = Plan(BUDGET, world=world)
    loaders = [
        StreamLoader(plan, rank, nothing, *source, 15, gather=gather)
        for rank, gather in enumerate(gathers(world))
    ]
    with ThreadPoolExecutor(world) as threads:
        return list(threads.map(use, loaders))


@pytest.mark.parametrize(("world", "size"), [(1, 500), (2, 500), (3, 361), (3, 359)])
def test_each_process_tokenises_its_own_share_of_a_stream(
    small_pools: None, stream_source: tuple[Corpus, Tokenizer], world: int, size: int
) -> None:
    corpus, tokenizer = replace(stream_source[0], limit=size), stream_source[1]
    pairs = list(corpus.pairs())
    fitting = [i for i, pair in enumerate(pairs) if max(len(x.split()) for x in pair) < 15]

    def use(loader: StreamLoader) -> tuple[list[str], list[list[int]], list[list[int]], Counts]:
        noting: Any = Noting(tokenizer)
        loader.tokenizer = noting
        first = ids(loader)
        return noting.lines.copy(), first, ids(loader), loader.counts

    found = streams(world, (corpus, tokenizer), use)
    lines = [line for heard, *_ in found for line in heard]
    assert sorted(lines) == sorted(pair.src for pair in pairs)
    assert max(len(heard) for heard, *_ in found) <= -(-size // world) + 1
    for epoch in (1, 2):
        assert len({len(each[epoch]) for each in found}) == 1
        seen = sorted(i for each in found for batch in each[epoch] for i in batch)
        assert set(seen) <= {*fitting} and len({*seen}) == len(seen) > len(fitting) - world
    assert all(each[3] == Counts(len(fitting), size - len(fitting)) for each in found)


def test_fewer_pairs_than_processes_are_refused(stream_source: tuple[Corpus, Tokenizer]) -> None:
    with pytest.raises(UserError, match="too few pairs for 4 processes"):
        streams(4, (replace(stream_source[0], limit=2), stream_source[1]), ids)
    with pytest.raises(UserError, match="too few pairs for 4 processes"):
        cached(random_table(3), Plan(BUDGET, world=4))


def test_processes_resume_a_stream_together(
    small_pools: None, stream_source: tuple[Corpus, Tokenizer]
) -> None:
    whole = streams(3, stream_source, ids)
    for done in (0, 1, 7, len(whole[0]) - 1):

        def stopped(loader: StreamLoader, done: int = done) -> dict[str, Any]:
            list(islice(iter(loader), done))
            return loader.state_dict()

        states = streams(3, stream_source, stopped)

        def resumed(loader: StreamLoader, states: list[Any] = states) -> list[list[int]]:
            loader.load_state_dict(states[0])  # that of the first process is saved
            return ids(loader)

        rest = streams(3, stream_source, resumed)
        assert rest == [batches[done:] for batches in whole]


@pytest.mark.parametrize("make_loader", ["cached", "mixture"], indirect=True)  # a stream: above
def test_processes_share_an_epoch_equally(make_loader: Source) -> None:
    plan = Plan(BUDGET, world=3)
    shares = [ids(make_loader(rank, plan)) for rank in range(3)]
    assert len({len(share) for share in shares}) == 1
    assert sorted(i for share in shares for b in share for i in b) == make_loader.rows(0)
    half = make_loader(1, plan)
    list(islice(iter(half), 5))
    resumed = make_loader(1, plan)
    resumed.load_state_dict(half.state_dict())
    assert ids(resumed) == shares[1][5:]


def test_every_epoch_has_the_same_number_of_batches(small_pools: None) -> None:
    loader = cached(random_table(1000, seed=3), Plan(BUDGET, world=4), rank=2)
    assert {len(list(loader)) for _ in range(5)} == {len(loader)}


def test_an_epoch_may_end_early(small_pools: None) -> None:
    table = random_table()
    whole = ids(cached(table, Plan(BUDGET)))
    by_count = cached(table, Plan(BUDGET), limit=10)
    assert ids(by_count) == whole[:10]
    assert ids(by_count) != whole[10:20], "the next epoch has its own order"
    assert ids(cached(table, Plan(BUDGET), limit=0.5)) == whole[: len(whole) // 2]
    ids(by_count)
    assert by_count.state_dict()["epoch"] == 3
    longer = cached(table, Plan(BUDGET))
    list(islice(iter(longer), 12))
    by_count.load_state_dict(longer.state_dict())
    ids(longer)
    assert ids(by_count) == ids(longer)[:10], "an epoch that is over by now is left"


def test_a_position_in_a_stream_is_none_in_a_cached_corpus(
    small_pools: None, stream_source: tuple[Corpus, Tokenizer]
) -> None:
    loaders = [
        cached(random_table(), Plan(BUDGET)),
        StreamLoader(Plan(BUDGET), 0, nothing, *stream_source, 50),
    ]
    for one, other in (loaders, loaders[::-1]):
        list(islice(iter(one), 3))
        with pytest.raises(UserError, match="batches were cut with corpus"):
            other.load_state_dict(one.state_dict())


def test_batches_set_aside_do_not_count(
    small_pools: None, stream_source: tuple[Corpus, Tokenizer]
) -> None:
    aside: list[Batch] = []
    make = lambda: StreamLoader(  # noqa: E731
        Plan(BUDGET), 0, lambda: len(aside), *stream_source, 50
    )
    whole, loader = ids(make()), make()
    batches = iter(loader)
    aside += list(islice(batches, 4))[2:]
    resumed = make()
    resumed.load_state_dict(loader.state_dict())
    assert ids(resumed) == whole[2:]
    assert ids(loader) == whole[2:]


def test_a_position_is_refused_where_it_means_nothing() -> None:
    table = random_table()
    loader = cached(table, Plan(BUDGET))
    next(iter(loader))
    for other in (cached(table, Plan(BUDGET, world=2)), cached(table, Plan(99))):
        with pytest.raises(ValueError, match="cannot resume in the middle of an epoch"):
            other.load_state_dict(loader.state_dict())
    list(loader)
    other.load_state_dict(loader.state_dict())  # between epochs it does not matter
    assert other.state_dict()["epoch"] == 1


def test_a_stream_with_other_settings_is_another_one(
    stream_source: tuple[Corpus, Tokenizer],
) -> None:
    """Its batches depend on which pairs are left out."""
    loader = StreamLoader(Plan(BUDGET), 0, nothing, *stream_source, 50)
    next(iter(loader))
    other = StreamLoader(Plan(BUDGET), 0, nothing, *stream_source, 6)
    with pytest.raises(ValueError, match="cannot resume in the middle of an epoch"):
        other.load_state_dict(loader.state_dict())


def test_a_stream_counts_its_pairs_once(stream_source: tuple[Corpus, Tokenizer]) -> None:
    loader = StreamLoader(Plan(BUDGET), 0, nothing, *stream_source, 50)
    counts = [(len(list(loader)), loader.counts.pairs)[1] for _ in range(3)]
    assert counts[0] > 0 and counts == counts[:1] * 3


def test_a_table_reads_the_same_from_memory_and_from_its_file(
    tmp_path: Path, stream_source: tuple[Corpus, Tokenizer], monkeypatch: pytest.MonkeyPatch
) -> None:
    corpus, tokenizer = stream_source
    monkeypatch.setattr("transformer.data.dataset.CHUNK_ROWS", 64)
    monkeypatch.setattr("transformer.data.mixture.CHUNK_ROWS", 64)
    write_table([corpus], tokenizer, tmp_path / "x.arrow")
    pairs = list(corpus.pairs())
    table, memory = (
        TokenTable(tmp_path / "x.arrow"), table_in_memory(pairs, corpus, tokenizer)
    )  # fmt: skip
    chosen, counts = select(table, corpus, 15, False, 0)
    rows = np.random.default_rng(0).permutation(chosen)
    batch = collate(table, rows)
    for ours, theirs in zip(batch, collate(memory, rows), strict=True):
        assert torch.equal(ours, theirs)
    for row, number in enumerate(batch.indices.tolist()):
        [src], [tgt] = (f([side]) for f, side in zip(
            (tokenizer.encode_src, tokenizer.encode_tgt), pairs[number], strict=True
        ))  # fmt: skip
        assert batch.src[row, : batch.src_lengths[row]].tolist() == src
        assert batch.tgt_out[row, : batch.tgt_lengths[row]].tolist() == tgt
    short = [i for i, pair in enumerate(pairs) if max(len(s.split()) for s in pair) + 1 <= 15]
    assert sorted(batch.indices.tolist()) == short
    assert counts == Counts(len(short), too_long=500 - len(short))


class Lines(Corpus):
    """A corpus that counts how often it is read from which line on."""

    starts: ClassVar[list[int]] = []

    def pairs(self, start: int = 0) -> Iterator[Pair]:
        self.starts.append(start)
        return iter([Pair("w 1", "w 2")] * (300 - start))


def test_a_stream_is_resumed_at_its_pool(
    small_pools: None, stream_source: tuple[Corpus, Tokenizer]
) -> None:
    make = lambda: StreamLoader(  # noqa: E731
        Plan(BUDGET), 0, nothing, Lines("lines", "a", "b", "k"), stream_source[1], 50
    )
    loader = make()
    whole = ids(loader)
    half = make()
    head = ids(islice(iter(half), 8))
    resumed = make()
    resumed.load_state_dict(half.state_dict())
    assert head + ids(resumed) == whole
    assert Lines.starts == [0, 0, 120]


def test_a_stream_of_which_nothing_is_left_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaders, "STREAM_POOL", 2)
    for side in ("de", "en"):
        (tmp_path / f"train.{side}").write_text("a b c d e f g h\n" * 2 + "a\n" * 2)
    corpus = open_corpus(str(tmp_path / "train"), "de", "en")
    tokenizer = train_tokenizer(TokenizerConfig("word", 20), lambda: [("a b", "a b")])
    some = StreamLoader(Plan(10), 0, nothing, corpus, tokenizer, 3)
    assert ids(some) == [[2, 3]]  # the first pool is left out whole
    none = StreamLoader(Plan(10), 0, nothing, corpus, tokenizer, 1)
    with pytest.raises(ValueError, match=r"no pair of .*train is left: 4 are longer"):
        list(none)
