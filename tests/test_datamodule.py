"""The data module: caches, messages, and resuming under a real Trainer."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from texts import StopAt, make, ready, run
from toys import raising

from transformer.data import loaders
from transformer.data.mixture import ExtraCorpus
from transformer.data.tokenizer import TokenizerConfig
from transformer.data.tokenizer_training import train_tokenizer
from transformer.errors import UserError


def test_validation_ids_count_into_the_texts(corpus: Path) -> None:
    lines = (corpus / "val.en").read_text().splitlines()
    (corpus / "val.en").write_text("\n".join(["", "w " * 300, *lines[2:]]) + "\n")
    data = ready(corpus, tokenizer=TokenizerConfig(vocab_size=270))
    src, tgt = data.texts("val")
    assert src == (corpus / "val.en").read_text().split("\n")[:-1]
    assert tgt == (corpus / "val.de").read_text().splitlines()
    seen = []
    for batch in data.val_dataloader():
        for row, number in enumerate(batch.indices.tolist()):
            [ids] = data.tokenizer.encode_src([src[number]])
            assert batch.src[row, : batch.src_lengths[row]].tolist() == ids
            assert data.tokenizer.decode([batch.tgt_out[row].tolist()]) == [tgt[number]]
            seen.append(number)
    assert sorted(seen) == list(range(30)), "nothing is dropped, neither empty nor long"


def test_long_and_empty_training_pairs_are_left_out_and_counted(
    corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    lines = (corpus / "train.de").read_text().splitlines()
    (corpus / "train.de").write_text("\n".join(["w " * 50, "  ", "", "w " * 49, *lines[4:]]) + "\n")
    data = ready(corpus)
    assert (data.counts.pairs, data.counts.too_long, data.counts.empty) == (397, 1, 2)
    assert "left out 1 pairs longer than data.max_length = 50 tokens and 2 with" in caplog.text
    numbers = sorted(i for batch in data.train_dataloader() for i in batch.indices.tolist())
    assert numbers == list(range(3, 400))
    refusing = make(corpus, too_long="refuse")
    with pytest.raises(
        ValueError, match=r"data.train: .*/train, line 1: 51 tokens, more than data"
    ):
        refusing.prepare_data()
    (corpus / "train.de").write_text("\n" * 400)
    with pytest.raises(ValueError, match="data.train: no pair of .* is left: 0 are .* 400 have"):
        make(corpus).prepare_data()


def test_a_user_without_a_home_names_a_cache(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a container with a number for a user."""
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", raising(KeyError()))
    with pytest.raises(UserError, match="data.cache: ~/.cache/transformer: there is no such home"):
        make(corpus, cache="~/.cache/transformer").corpora()
    with pytest.raises(UserError, match="data.train: neither ~/train.en nor"):
        make(corpus, train="~/train").corpora()


def test_limit_takes_the_first_training_pairs(corpus: Path) -> None:
    data = ready(corpus, limit=7)
    assert data.counts.pairs == 7
    assert data.tokenizer.encode_src(["399"]) == data.tokenizer.encode_src(["unseen"])
    assert len(data.texts("val")[0]) == 30


def test_pairs_with_an_empty_side_are_named_once(
    corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, line in (("val.en", 3), ("val.de", 3), ("val.de", 9), ("train.de", 5)):
        lines = (corpus / name).read_text().splitlines()
        lines[line - 1] = " "
        (corpus / name).write_text("\n".join(lines) + "\n")
    caplog.set_level("INFO")
    data = ready(corpus)
    data.setup("test")  # Lightning does so for each of fit and test
    empty = f"data.val: 2 pairs have an empty side, the first is {corpus}/val, line 3; an empty "
    assert caplog.text.count(empty) == caplog.text.count("have an empty side") == 1
    assert caplog.text.count("data.train: left out 0 pairs longer") == 1


def test_an_assigned_tokenizer_is_used_and_none_is_trained(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=270), lambda: [("ab", "cd")])
    monkeypatch.setattr("transformer.data.tokenizer_training.train_tokenizer", None)
    data = make(corpus, train=None)
    data.tokenizer = tokenizer
    data.prepare_data()
    data.setup("test")
    assert data.tokenizer is tokenizer
    assert len(data.test_dataloader()) > 0
    with pytest.raises(ValueError, match="data.train is missing"):
        data.train_dataloader()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"src": ""}, "data.src is missing"),
        ({"tgt": ""}, "data.tgt is missing"),
        ({"tgt": "en"}, "data.tgt: 'en' is data.src too"),
        ({"train": None, "val": None, "test": None}, "data.train, data.val and data.test are all"),
        ({"train": None}, "data.train is missing"),
        ({"test": "nowhere/x"}, "data.test: neither nowhere/x.en nor x.en.gz exists"),
        ({"max_length": 201}, "data.max_tokens: 200 is less than data.max_length = 201"),
        ({"limit": 0}, "data.limit: 0 must be 1 or more"),
        ({"seed": -1}, "data.seed: -1 must be 0 or more"),
        ({"train": None, "max_tokens": -5}, "data.max_tokens: -5 must be 1 or more"),
        ({"num_workers": -1}, "data.num_workers: -1 must be 0 or more"),
        ({"tokenizer": TokenizerConfig(vocab_size=9)}, "data.tokenizer.vocab_size: 9 is too small"),
    ],
)
def test_errors_name_the_recipe_key(corpus: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        make(corpus, **options).prepare_data()


def test_rank_and_world_come_from_the_trainer(corpus: Path) -> None:
    whole, seen = [], []
    for rank in range(2):
        data = ready(corpus)
        trainer = SimpleNamespace(
            global_rank=rank, world_size=2, limit_train_batches=1.0,
            fit_loop=SimpleNamespace(_data_fetcher=None),
        )  # fmt: skip
        data.trainer = trainer  # type: ignore[assignment]
        seen += [i for batch in data.train_dataloader() for i in batch.indices.tolist()]
        whole += [i for batch in data.val_dataloader() for i in batch.indices.tolist()]
    assert sorted(seen) == list(range(400))
    assert sorted(whole) == list(range(30))


def test_the_first_process_hands_its_vocabulary_on(corpus: Path) -> None:
    """To nodes with caches of their own: learned twice, a unigram vocabulary differs."""
    sent: list[Any] = []

    def broadcast(text: Any) -> Any:
        sent.append(text)
        return sent[0]

    strategy = SimpleNamespace(
        broadcast=broadcast, barrier=lambda: None, all_gather=lambda ours: ours, root_device="cpu"
    )
    nodes = []
    for rank in range(2):
        config = TokenizerConfig("unigram", 290)
        data = make(corpus, tokenizer=config, cache=f"{corpus}/node{rank}")
        data.trainer = SimpleNamespace(  # type: ignore[assignment]
            global_rank=rank, world_size=2, local_rank=0, strategy=strategy,
        )  # fmt: skip
        data.prepare_data()
        data.setup()
        nodes.append(data)
    assert sent[1] is None
    assert nodes[0].tokenizer.to_text() == nodes[1].tokenizer.to_text() == sent[0]
    assert not list((corpus / "node1").glob("tokenizer-*"))
    assert nodes[0].counts.pairs == nodes[1].counts.pairs > 0


@pytest.fixture
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "POOL", 150)
    monkeypatch.setattr(loaders, "STREAM_POOL", 150)


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("epochs", "more"), [(0, 1), (1, -1), (1, 0), (1, 12), (2, 0)])
def test_a_resumed_fit_sees_what_an_uninterrupted_one_sees(
    corpus: Path, small_pools: None, streaming: bool, epochs: int, more: int
) -> None:
    options = {"streaming": streaming, "limit": 390}
    whole = run(make(corpus, **options), corpus)
    size = len(whole.seen) // 3
    step = epochs * size + more
    for epoch in range(3):
        ids = sorted(i for e, batch in whole.seen if e == epoch for i in batch)
        assert ids == list(range(390))
    assert sorted({*whole.validations}) == [0, size, 2 * size, 3 * size]

    checkpoint = corpus / "stopped.ckpt"
    head = run(make(corpus, **options), corpus, callbacks=[StopAt(step, checkpoint)])
    assert head.seen == whole.seen[:step]
    rest = run(make(corpus, **options), corpus, resume=checkpoint)
    assert head.seen + rest.seen == whole.seen
    torch.load(checkpoint, weights_only=True)


@pytest.mark.parametrize("kind", ["table", "stream", "mixture"])
def test_other_text_is_refused_in_the_middle_of_an_epoch_only(
    corpus: Path, tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As many lines, other words; the same words elsewhere are the same text."""
    caplog.set_level("INFO")
    options: dict[str, Any] = {"streaming": kind == "stream", "train": f"{corpus}/train"}
    if kind == "mixture":
        further = ExtraCorpus(f"{corpus}/more", "en", "de")
        options |= {"train": f"{corpus}/val", "extra_corpora": [further]}
        for side in ("en", "de"):
            shutil.copy(corpus / f"train.{side}", corpus / f"more.{side}")
    changed = corpus / ("more.de" if kind == "mixture" else "train.de")
    data = ready(corpus, **options)
    batches = iter(data.train_dataloader())
    next(batches)
    position = data.state_dict()
    older = {key: value for key, value in position.items() if key != "text"}
    size = 1 + sum(1 for _ in batches)

    def resumed(state: dict[str, Any], **more: Any) -> int:
        data = make(corpus, **options | more)
        data.tokenizer = tokenizer  # the checkpoint's
        data.prepare_data()
        data.setup()
        data.load_state_dict(state)
        return sum(1 for _ in data.train_dataloader())

    tokenizer = data.tokenizer
    assert resumed(position) == size - 1
    for side in ("en", "de"):
        shutil.copy(corpus / f"train.{side}", corpus / f"copy.{side}")
    if kind != "mixture":
        assert resumed(position, train=f"{corpus}/copy") == size - 1
    time.sleep(0.02)
    changed.write_text(changed.read_text().replace("w", "v"))
    with pytest.raises(
        ValueError, match=r"in the middle of an epoch: .* text \w+, now .* \w+; res"
    ):
        resumed(position)
    assert resumed(older) == size - 1  # what an older checkpoint does not know, nobody can compare
    assert "Before epoch" not in caplog.text
    assert resumed(position | {"epoch": 1, "pool": 0, "batch": 0}) == size
    assert "Before epoch 2 batches were cut with text " in caplog.text


@pytest.mark.parametrize("streaming", [False, True])
def test_a_checkpoint_of_the_end_of_an_epoch_resumes_with_the_next(
    corpus: Path, small_pools: None, streaming: bool
) -> None:
    options = {"streaming": streaming, "limit": 390}
    saver = ModelCheckpoint(corpus / "saved", filename="{epoch}", save_top_k=-1)
    whole = run(make(corpus, **options), corpus, callbacks=[saver], enable_checkpointing=True)
    for epoch in (0, 1):
        rest = run(make(corpus, **options), corpus, corpus / f"saved/epoch={epoch}.ckpt")
        assert rest.seen == [(e, ids) for e, ids in whole.seen if e > epoch]


@pytest.mark.parametrize("streaming", [False, True])
def test_epochs_cut_short_and_training_by_steps(
    corpus: Path, small_pools: None, streaming: bool
) -> None:
    data = make(corpus, streaming=streaming, num_workers=1 if streaming else 0)
    watch = run(data, corpus, limit_train_batches=5, max_epochs=-1, max_steps=12)
    assert [epoch for epoch, _ in watch.seen] == [0] * 5 + [1] * 5 + [2] * 2
    assert len({i for _, batch in watch.seen for i in batch}) > 100
    if streaming:  # goes on in the stream, loses nothing
        fresh = iter(ready(corpus, streaming=True).train_dataloader())
        expected = [next(fresh).indices.tolist() for _ in range(12)]
        assert [batch for _, batch in watch.seen] == expected


def test_no_validation_set_is_no_validation(corpus: Path) -> None:
    watch = run(make(corpus, val=None), corpus, max_epochs=1)
    assert watch.seen
    assert not watch.validations


def test_text_that_is_changed_during_a_run_is_found_out(corpus: Path) -> None:
    data, late = ready(corpus), ready(corpus)
    before = data.texts("val")
    for name in ("val.de", "train.de"):
        lines = (corpus / name).read_text().splitlines()
        (corpus / name).write_text("\n".join(reversed(lines)) + "\n")
    assert data.texts("val") == before, "read once"
    with pytest.raises(UserError, match=r"data.val: .*/val was changed or removed while the run"):
        late.texts("val")
    (corpus / "train.de").unlink()
    with pytest.raises(UserError, match=r"data.train: .*/train was changed or removed while"):
        late.training_pairs([3])


def test_the_test_after_training_needs_no_training_text(corpus: Path) -> None:
    data = ready(corpus)
    for path in corpus.glob("train.*"):
        path.unlink()
    data.prepare_data()
    data.setup("test")
    assert len(data.test_dataloader()) > 0


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_line_of_a_stream_is_one_line(corpus: Path, workers: int) -> None:
    lines = (corpus / "train.de").read_bytes().splitlines()
    tokenizer = ready(corpus).tokenizer
    (corpus / "train.de").write_bytes(b"\n".join([*lines[:-1], b"\xff"]) + b"\n")
    data = make(corpus, streaming=True, num_workers=workers)
    data.tokenizer = tokenizer
    data.prepare_data()
    data.setup()
    line = r"^data.train: .*/train.de, line 400: not UTF-8 [^\n]*; convert it to UTF-8$"
    with pytest.raises(UserError, match=line):
        list(data.train_dataloader())


def test_a_worker_that_is_killed_is_one_line(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    data = ready(corpus, streaming=True, num_workers=1)
    monkeypatch.setattr(loaders, "table_in_memory", die)
    with pytest.raises(UserError, match=r"data.train: a process that reads it was killed; .*mem"):
        list(data.train_dataloader())


def test_lines_that_each_validation_would_search_for_hours(corpus: Path) -> None:
    with (corpus / "val.en").open("a") as en, (corpus / "val.de").open("a") as de:
        en.write("1 " * 500 + "\n")
        de.write("1\n")
    for length, stage in ((50, "test"), (63, "fit")):
        data = make(corpus, max_length=length)
        data.prepare_data()
        data.setup(stage)
    data = make(corpus, max_length=62)
    data.prepare_data()
    said = r"data.val: .*/val, line 31: 501 tokens of en, at most 496 may be .* 8 times data.max_l"
    with pytest.raises(UserError, match=said):
        data.setup("fit")


def test_a_stream_leaves_no_copy_and_counts(corpus: Path) -> None:
    data = ready(corpus, streaming=True, max_length=12)
    assert sum(1 for _ in (corpus / "cache").glob("tokens-*")) == 2, "val and test only"
    numbers = [i for batch in data.train_dataloader() for i in batch.indices.tolist()]
    cached = ready(corpus, max_length=12)
    assert (
        (data.counts.pairs, data.counts.too_long)
        == (cached.counts.pairs, cached.counts.too_long)
        == (len(numbers), 400 - len(numbers))
    )
    assert sorted(numbers) == sorted(
        i for batch in cached.train_dataloader() for i in batch.indices.tolist()
    )
