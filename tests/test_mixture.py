"""Several corpora in one run: their shares, their order, and tags from the recipe to `--to`."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_batching import BUDGET, Spelled, cached, ids, random_table
from texts import StopAt, make, ready, run

from transformer.data import loaders
from transformer.data.batching import Plan, collate
from transformer.data.corpus import Corpus, Pair
from transformer.data.datamodule import DataModule
from transformer.data.dataset import TokenTable, json_digest, write_table
from transformer.data.loaders import CachedLoader
from transformer.data.mixture import Counts, ExtraCorpus, Mixture, proportions, select, walk
from transformer.data.tokenizer import EOS, UNK, Tokenizer, TokenizerConfig
from transformer.data.tokenizer_training import tokenizer_path, train_tokenizer

SIZES = (500, 90, 40)


pytestmark = pytest.mark.usefixtures("own_log")


@pytest.fixture(autouse=True)
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "POOL", 120)


def parts(*sizes: int) -> list[Any]:
    """The rows of corpora of these sizes, one behind the other."""
    return np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])


def mixture(shares: tuple[float | None, ...] = (None, 0.2), temperature: float = 2.0) -> Mixture:
    return Mixture(parts(*SIZES), shares, temperature)


def make_loader(
    rank: int = 0, plan: Plan = Plan(BUDGET), **options: Any  # noqa: B008
) -> CachedLoader:  # fmt: skip
    return CachedLoader(plan, rank, lambda: 0, random_table(sum(SIZES)), mixture(**options))


def flat(batches: list[list[int]]) -> list[int]:
    return sorted(row for batch in batches for row in batch)


# Shares


def test_proportions_by_hand() -> None:
    assert proportions([900, 100], [None, None], 1) == pytest.approx([0.9, 0.1])
    # Square roots are 30 and 10; a share is taken off first, and its corpus' size does not matter.
    assert proportions([900, 100], [None, None], 2) == pytest.approx([0.75, 0.25])
    assert proportions([900, 7, 100], [None, 0.2, None], 2) == pytest.approx([0.6, 0.2, 0.2])
    assert proportions([10**9, 1], [None, None], 0.01) == pytest.approx([1, 0])


def test_an_epoch_holds_the_main_corpus_once_and_the_others_by_their_shares() -> None:
    some = Mixture(parts(900, 7, 100), (0.2, None), 2)
    assert some.counts == [900, 300, 300]  # 0.6, 0.2, 0.2 of 1500
    assert some.shares == [0.6, 0.2, 0.2]
    rows = some.rows(epoch=3, seed=1)
    assert rows[:900].tolist() == list(range(900))
    assert {*rows[900:1200].tolist()} == {*range(900, 907)}
    assert len({*rows[1200:].tolist()}) == 100 and len(rows) == 1500
    assert Mixture(parts(10, 9), (0.001,), 1).counts == [10, 1]


@pytest.mark.parametrize(("size", "count"), [(7, 3), (7, 7), (3, 7), (5, 1), (1, 4)])
def test_every_row_is_seen_equally_often(size: int, count: int) -> None:
    walked = np.concatenate([walk(size, count, epoch, (1, 0)) for epoch in range(2 * size)])
    assert np.bincount(walked).tolist() == [2 * count] * size
    for start in range(0, len(walked), size):
        assert sorted(walked[start : start + size].tolist()) == list(range(size))


def test_walks_depend_on_seed_corpus_and_epoch() -> None:
    keys = [(0, (1, 0)), (0, (1, 1)), (0, (2, 0)), (1, (1, 0))]
    walks = [walk(50, 50, epoch, key).tolist() for epoch, key in keys]
    assert len({*map(tuple, walks)}) == 4
    assert walk(50, 50, 0, (1, 0)).tolist() == walks[0]


# Batches


class Words(Corpus):
    """Lines that name their corpus and their number."""

    def pairs(self, start: int = 0) -> Iterator[Pair]:
        sizes = range(start, 3 + int(self.spec) % 5)
        return iter([Pair(f"{self.spec} {i} #", f"{i} " * i + "#") for i in sizes])


def test_corpora_lie_behind_one_another_in_one_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("transformer.data.dataset.CHUNK_ROWS", 4)
    monkeypatch.setattr("transformer.data.mixture.CHUNK_ROWS", 4)
    corpora = [Words(str(1000 + i), "a", "b", "k") for i in (1, 0, 4)]
    write_table(corpora, Spelled(), tmp_path / "x.arrow")  # type: ignore[arg-type]
    table = pickle.loads(pickle.dumps(TokenTable(tmp_path / "x.arrow")))
    assert table.bounds.tolist() == [0, 4, 7, 14]
    batch = collate(table, np.array([13, 0, 6, 4, 3]))
    assert batch.indices.tolist() == [13, 0, 6, 4, 3]
    for row, (corpus, number) in enumerate([(1004, 6), (1001, 0), (1000, 2), (1000, 0), (1001, 3)]):
        assert batch.src[row].tolist() == [corpus, number, EOS]
        assert batch.tgt_out[row].tolist() == [number] * number + [EOS] + [0] * (6 - number)
        assert batch.tgt_lengths[row] == number + 1
    assert collate(table, np.arange(0)).src.shape == (0, 1)
    rows, counts = select(table, corpora[2], 5, False, 2)
    assert (rows.tolist(), counts) == ([7, 8, 9, 10, 11], Counts(5, too_long=2))
    with pytest.raises(ValueError, match=r"^k: 1004, line 6: 6 tokens, more than data.max_length"):
        select(table, corpora[2], 5, True, 2)


def test_epochs_are_mixed() -> None:
    loader = make_loader()
    first, second = ids(loader), ids(loader)
    for rows in map(flat, (first, second)):
        assert np.histogram(rows, [0, 500, 590, 630])[0].tolist() == mixture().counts
        assert rows[:500] == list(range(500))
    assert any(min(batch) < 500 <= max(batch) for batch in first), "batches hold one corpus"
    assert flat(first) != flat(second)


@pytest.mark.parametrize("other", [{"temperature": 1.0}, {"shares": (None, 0.3)}])
def test_another_mixture_is_refused_in_the_middle_of_an_epoch(other: dict[str, Any]) -> None:
    loader, changed = make_loader(), make_loader(**other)
    next(iter(loader))
    with pytest.raises(ValueError, match=r"cut with corpus of pairs 500 of 500 \+ .*, now there"):
        changed.load_state_dict(loader.state_dict())
    list(loader)
    changed.load_state_dict(loader.state_dict())
    assert changed.state_dict()["epoch"] == 1


def test_without_further_corpora_batches_are_those_of_the_plan() -> None:
    table, plan = random_table(), Plan(BUDGET)
    for epoch, batches in enumerate(map(ids, [loader := cached(table, plan), loader])):
        expected = [
            rows.tolist()
            for pool in plan.order(epoch, 5)
            for rows in plan.batches(table, np.arange(pool, 500, 5), (epoch, int(pool)))
        ]
        assert batches == expected


# The data module


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, lines in (("train", 400), ("more", 90), ("val", 30), ("test", 20)):
        lengths = rng.integers(1, 15, lines)
        for side in ("en", "de", "fr"):
            text = "".join(f"{name} {side} " + "w " * n + f"{i}\n" for i, n in enumerate(lengths))
            (tmp_path / f"{name}.{side}").write_text(text)
    return tmp_path


def further(corpus: Path, **options: Any) -> ExtraCorpus:
    values: dict[str, Any] = {"train": f"{corpus}/more", "src": "en", "tgt": "fr", **options}
    return ExtraCorpus(**values)


def test_each_source_carries_the_tag_of_its_target(corpus: Path) -> None:
    data = ready(
        corpus, tags=True, extra_corpora=[further(corpus), further(corpus, src="fr", tgt="en")]
    )
    tags = data.tokenizer.tags
    assert tags == {"de": 4, "en": 5, "fr": 6}
    assert (data.counts.pairs, len(data.corpora())) == (580, 5)
    bounds = {4: (0, 400), 5: (490, 580), 6: (400, 490)}
    for batch in data.train_dataloader():
        assert batch.src_lengths.max() <= 50
        for row, tag in zip(batch.indices.tolist(), batch.src[:, 0].tolist(), strict=True):
            assert bounds[tag][0] <= row < bounds[tag][1]
    for batch in data.val_dataloader():
        assert (batch.src[:, 0] == tags["de"]).all()
    stream = ready(corpus, tags=True, streaming=True)
    assert all(
        (b.src[:, 0] == stream.tokenizer.tags["de"]).all() for b in stream.train_dataloader()
    )
    shares = [(src, tgt, round(share, 3)) for src, tgt, share in data.shares()]
    assert shares == [("en", "de", 0.69), ("en", "fr", 0.155), ("fr", "en", 0.155)]


def _words(corpus: Path, name: str, count: int) -> set[str]:
    sides = ("en", "de" if name == "train" else "fr")
    texts = [(corpus / f"{name}.{side}").read_text().splitlines()[:count] for side in sides]
    return {word for lines in texts for line in lines for word in line.split()}


@pytest.mark.parametrize("shared", [True, False])
def test_the_vocabulary_is_learned_from_all_corpora(corpus: Path, shared: bool) -> None:
    config = TokenizerConfig("word", 1000, shared, min_frequency=1)
    limited = further(corpus, limit=5)
    tokenizer = ready(corpus, tags=True, extra_corpora=[limited], tokenizer=config).tokenizer
    assert UNK not in tokenizer.encode_tgt(["more fr w 4"])[0]
    assert (UNK in tokenizer.encode_src(["fr"], "de")[0]) == (not shared)
    specials = {"<pad>", "<s>", "</s>", "<unk>", "<2de>", "<2fr>"}
    words = {
        w for name, count in (("train", 400), ("more", 5)) for w in _words(corpus, name, count)
    }
    assert not shared or tokenizer.src_vocab_size == len(specials | words)


def test_caches_depend_on_the_mixture_and_those_without_one_stay(corpus: Path) -> None:
    plain = make(corpus)
    [text] = plain.corpora("train")
    about = ["TwoFiles", "en", "de", text.identity(), None, vars(plain.tokenizer_config)]
    assert (
        tokenizer_path(plain.cache, *plain.tokenizer_inputs()).name
        == f"tokenizer-{json_digest(about)}.json"
    )
    options: list[dict[str, Any]] = [
        {}, {"tags": True}, {"extra_corpora": [further(corpus, tgt="de", src="fr")]},
        {"extra_corpora": [further(corpus, tgt="de", src="fr", limit=9)]},
        {"extra_corpora": [further(corpus, tgt="de", src="fr")], "tags": True},
        {"extra_corpora": [further(corpus)], "tags": True},
    ]  # fmt: skip
    made = [make(corpus, **given) for given in options]
    paths = {tokenizer_path(data.cache, *data.tokenizer_inputs()) for data in made}
    assert len(paths) == len(options)


def test_a_resumed_fit_sees_what_an_uninterrupted_one_sees(corpus: Path) -> None:
    options: dict[str, Any] = {"tags": True, "extra_corpora": [further(corpus, share=0.3)]}
    whole = run(make(corpus, **options), corpus)
    size = sum(epoch == 0 for epoch, _ in whole.seen)
    assert [sum(len(b) for e, b in whole.seen if e == epoch) for epoch in range(3)] == [571] * 3
    assert whole.validations, "an epoch's end was not seen"
    for step in (size - 3, size, size + 7):
        checkpoint = corpus / f"{step}.ckpt"
        head = run(make(corpus, **options), corpus, callbacks=[StopAt(step, checkpoint)])
        rest = run(make(corpus, **options), corpus, resume=checkpoint)
        assert head.seen + rest.seen == whole.seen
    changed = make(corpus, tags=True, extra_corpora=[further(corpus, share=0.2)])
    with pytest.raises(ValueError, match="cannot resume in the middle of an epoch"):
        run(changed, corpus, resume=checkpoint)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"extra_corpora": [{"train": ""}]},
            r"data.extra_corpora\[0\].train is missing: name a corpus",
        ),
        (
            {"extra_corpora": [{"src": ""}]},
            r"data.extra_corpora\[0\].src is missing: name the language",
        ),
        (
            {"extra_corpora": [{}, {"tgt": "en"}]},
            r"data.extra_corpora\[1\].tgt: 'en' is data.extra_corpora\[1\].src too",
        ),
        (
            {"extra_corpora": [{"train": "no/x"}]},
            r"data.extra_corpora\[0\].train: neither no/x.en nor x.en.gz",
        ),
        (
            {"extra_corpora": [{"share": 1.0}]},
            r"data.extra_corpora\[0\].share: 1 must lie between 0 and 1",
        ),
        ({"extra_corpora": [{"limit": 0}]}, r"data.extra_corpora\[0\].limit: 0 must be 1 or more"),
        (
            {"extra_corpora": [{"share": 0.5}] * 2},
            "data.extra_corpora: the shares add up to 1 and leave nothing",
        ),
        (
            {"extra_corpora": [{}], "tags": False},
            r"data.extra_corpora\[0\].tgt: 'fr' is not data.tgt = 'de'.*tags",
        ),
        (
            {"extra_corpora": [{}], "streaming": True},
            "data.streaming: true does not go with data.extra_corpora",
        ),
        ({"temperature": 0.9}, "data.temperature: 0.9 must be at least 1"),
        ({"tokenizer": TokenizerConfig(vocab_size=260)}, "data.tokenizer.vocab_size: 260 is too"),
    ],
)
def test_errors_name_the_recipe_key(corpus: Path, options: dict[str, Any], message: str) -> None:
    also = [further(corpus, **entry) for entry in options.pop("extra_corpora", [])]
    with pytest.raises(ValueError, match=f"^{message}"):
        make(corpus, **{"tags": True, "extra_corpora": also, **options}).prepare_data()


def test_a_vocabulary_that_came_with_a_model_must_know_the_tags(corpus: Path) -> None:
    def prepared(tokenizer: Tokenizer, **options: Any) -> DataModule:
        data = make(corpus, **options)
        data.tokenizer = tokenizer
        data.prepare_data()
        return data

    pairs = lambda: [("w train more", "")]  # noqa: E731
    config = TokenizerConfig("word", 20, min_frequency=1)
    plain, tagged = (train_tokenizer(config, pairs, tags) for tags in ([], ["de", "en"]))
    prepared(plain)
    prepared(tagged, tags=True)
    with pytest.raises(ValueError, match="^data.tags: true, but the vocabulary that came with"):
        prepared(plain, tags=True)
    with pytest.raises(ValueError, match="^data.tgt: language 'fr' is unknown to this model: it "):
        prepared(tagged, tgt="fr")
    with pytest.raises(
        ValueError, match=r"^data.extra_corpora\[0\].tgt: language 'fr' is unknown to this"
    ):
        prepared(tagged, tags=True, extra_corpora=[further(corpus)])
