"""The data module: caches, messages, and resuming under a real Trainer."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from toys import raising

from transformer.data import dataset, loaders
from transformer.data.batching import Batch
from transformer.data.datamodule import DataModule
from transformer.data.learning import tokenizer_path
from transformer.data.mixture import ExtraCorpus
from transformer.data.tokenizer import Tokenizer, TokenizerConfig
from transformer.writing import is_part, part


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name, lines in (("train", 400), ("val", 30), ("test", 20)):
        lengths = rng.integers(1, 15, lines)
        for side in ("en", "de"):
            text = "".join(f"{name} {side} " + "w " * n + f"{i}\n" for i, n in enumerate(lengths))
            (tmp_path / f"{name}.{side}").write_text(text)
    return tmp_path


def make(corpus: Path, **options: Any) -> DataModule:
    values: dict[str, Any] = {
        "train": f"{corpus}/train", "val": f"{corpus}/val", "test": f"{corpus}/test",
        "src": "en", "tgt": "de", "cache": f"{corpus}/cache", "max_tokens": 200, "max_length": 50,
        "tokenizer": TokenizerConfig(kind="word", vocab_size=1000, min_frequency=1),
    }  # fmt: skip
    return DataModule(**values | options)


def paths(data: DataModule) -> dict[str, Any]:
    """The files of the cache that are read."""
    return {split: table.source for split, table in data._tables.items()}


def ready(corpus: Path, **options: Any) -> DataModule:
    data = make(corpus, **options)
    data.prepare_data()
    data.setup()
    return data


def test_validation_ids_count_into_the_texts(corpus: Path) -> None:
    lines = (corpus / "val.en").read_text().splitlines()
    (corpus / "val.en").write_text("\n".join(["", "w " * 300, *lines[2:]]) + "\n")
    data = ready(corpus, tokenizer=TokenizerConfig(vocab_size=270))
    src, tgt = data.texts("val")
    assert src == (corpus / "val.en").read_text().split("\n")[:-1]
    assert tgt == (corpus / "val.de").read_text().splitlines()
    seen = []
    for batch in data.val_dataloader():
        for row, number in enumerate(batch.ids.tolist()):
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
    numbers = sorted(i for batch in data.train_dataloader() for i in batch.ids.tolist())
    assert numbers == list(range(3, 400))
    refusing = make(corpus, too_long="refuse")
    with pytest.raises(
        ValueError, match=r"data.train: .*/train, line 1: 51 tokens, more than data"
    ):
        refusing.prepare_data()
    (corpus / "train.de").write_text("\n" * 400)
    with pytest.raises(ValueError, match="data.train: no pair of .* is left: 0 are .* 400 have"):
        make(corpus).prepare_data()


def test_limit_takes_the_first_training_pairs(corpus: Path) -> None:
    data = ready(corpus, limit=7)
    assert data.counts.pairs == 7
    assert data.tokenizer.encode_src(["399"]) == data.tokenizer.encode_src(["unseen"])
    assert len(data.texts("val")[0]) == 30


def test_a_second_run_reads_nothing_again(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ready(corpus)
    monkeypatch.setattr(dataset, "write_table", raising(AssertionError()))
    monkeypatch.setattr(Tokenizer, "train", None)
    start = time.perf_counter()
    second = ready(corpus)
    assert time.perf_counter() - start < 0.5
    assert second.tokenizer.to_text() == first.tokenizer.to_text()
    files = sorted(path.name.split("-")[0] for path in (corpus / "cache").iterdir())
    assert files == ["tokenizer", "tokens", "tokens", "tokens"], "no temporary file is left"


def test_the_same_text_is_read_once_wherever_it_lies(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ready(corpus)
    shutil.copytree(corpus, tmp_path / "other", ignore=shutil.ignore_patterns("cache", "other"))
    monkeypatch.setattr(dataset, "write_table", raising(AssertionError()))
    monkeypatch.setattr(Tokenizer, "train", None)
    assert paths(ready(tmp_path / "other", cache=f"{corpus}/cache")) == paths(first)


@pytest.mark.parametrize("name", ["train.de", "train.de.gz"])
def test_a_file_changed_in_place_with_its_time_kept_is_read_again(corpus: Path, name: str) -> None:
    file, lines = corpus / name, (corpus / "train.de").read_text()
    old = (corpus / "train.de").stat()

    def write(text: str) -> None:
        (corpus / "train.de").unlink(missing_ok=True)
        data = gzip.compress(text.encode(), 0, mtime=0) if file.suffix == ".gz" else text.encode()
        file.write_bytes(data)
        os.utime(file, ns=(old.st_atime_ns, old.st_mtime_ns))

    write(lines)
    before = ready(corpus)
    size = file.stat().st_size
    time.sleep(0.02)
    write(lines.replace("w", "v"))
    assert file.stat().st_size == size
    assert paths(ready(corpus))["train"] != paths(before)["train"]


DAMAGE = {
    "truncated": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
    "zeroed at the end": lambda data: data[:-100] + bytes(100),
    "garbage": lambda data: np.random.default_rng(0).bytes(len(data)),
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("kind", ["tokens", "tokenizer"])
def test_a_damaged_file_of_the_cache_is_made_again(
    corpus: Path, kind: str, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    before = ready(corpus)
    files = list((corpus / "cache").glob("tokens-*.arrow"))
    hurt = files if kind == "tokens" else list((corpus / "cache").glob("tokenizer-*.json"))
    content = {file: file.read_bytes() for file in hurt}
    for file in hurt:
        file.write_bytes(DAMAGE[damage](content[file]))
    caplog.set_level("INFO")
    after = ready(corpus)
    assert {file: file.read_bytes() for file in hurt} == content
    said = [text for text in caplog.messages if "is damaged and made again (" in text]
    assert len(said) == len(hurt)
    assert all(any(text.startswith(str(path)) for text in said) for path in hurt)
    assert not any("\n" in text for text in said)
    assert after.texts("val") == before.texts("val")


def test_old_parts_are_cleared_and_those_of_others_are_not(corpus: Path) -> None:
    cache = corpus / "cache"
    cache.mkdir()
    old, new = part(cache / "old"), part(cache / "new")
    for path in (old, new):
        path.write_text("half")
    os.utime(old, (time.time() - 7200,) * 2)
    ready(corpus)
    assert [path for path in cache.iterdir() if is_part(path)] == [new]


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


@pytest.mark.parametrize(
    "options",
    [
        {"limit": 9},
        {"tokenizer": TokenizerConfig(kind="bpe", vocab_size=300)},
        {"src": "de", "tgt": "en"},
        {"touch": True},
    ],
)
def test_the_cache_is_not_used_for_other_content(corpus: Path, options: dict[str, Any]) -> None:
    before = ready(corpus)
    if options.pop("touch", False):
        (corpus / "train.en").write_text("new\n" * 400)
    after = ready(corpus, **options)
    assert paths(after)["train"] != paths(before)["train"]


def test_another_length_reads_no_text_again(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = ready(corpus)
    monkeypatch.setattr(dataset, "write_table", raising(AssertionError()))
    after = ready(corpus, max_length=12)
    assert paths(after) == paths(before)
    assert after.counts.pairs + after.counts.too_long == before.counts.pairs == 400
    assert max(batch.src.shape[1] for batch in after.train_dataloader()) == 12


def test_an_interrupted_write_leaves_no_cache(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make(corpus)
    (corpus / "val.en").write_bytes(b"\xff\n" * 30)
    with pytest.raises(ValueError, match=r"data.val: .*val.en, line 1: not UTF-8"):
        data.prepare_data()
    names = [path.name.split("-")[0] for path in (corpus / "cache").iterdir()]
    assert sorted(names) == ["tokenizer", "tokens"], "the whole one of train stays, no part of val"


def test_two_runs_may_learn_the_same_vocabulary_at_once(corpus: Path) -> None:
    """Each goes on with its own: learned twice, a unigram vocabulary differs."""
    first, second = (make(corpus, tokenizer=TokenizerConfig("unigram", 290)) for _ in range(2))
    second.cache = corpus / "elsewhere"
    second.prepare_data()
    first.prepare_data()
    shutil.copy(
        tokenizer_path(second.cache, *second._learned_from()),
        tokenizer_path(first.cache, *first._learned_from()),
    )
    first.setup()
    assert first.counts.pairs == 400
    assert len(list((corpus / "cache").glob("tokenizer-*"))) == 1


def test_an_assigned_tokenizer_is_used_and_none_is_trained(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.train(TokenizerConfig(vocab_size=270), lambda: ["ab"], lambda: ["cd"])
    monkeypatch.setattr(Tokenizer, "train", None)
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
        seen += [i for batch in data.train_dataloader() for i in batch.ids.tolist()]
        whole += [i for batch in data.val_dataloader() for i in batch.ids.tolist()]
    assert sorted(seen) == list(range(400))
    assert sorted(whole) == list(range(30))


def test_the_first_process_hands_its_vocabulary_on(corpus: Path) -> None:
    """To nodes with caches of their own: learned twice, a unigram vocabulary differs."""
    sent: list[Any] = []

    def broadcast(text: Any) -> Any:
        sent.append(text)
        return sent[0]

    strategy = SimpleNamespace(broadcast=broadcast, barrier=lambda: None)
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


class Watch(LightningModule):
    """Writes down the ids of what it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[int]]] = []
        self.validations: list[int] = []

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        assert isinstance(batch, Batch)
        self.seen.append((self.current_epoch, batch.ids.tolist()))
        return self.weight * 1.0

    def validation_step(self, batch: Batch, index: int) -> None:
        self.validations.append(self.global_step)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


class StopAt(Callback):
    """Ends a run after a number of steps with a checkpoint, as an interrupted one does."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)
            trainer.should_stop = True


def run(data: DataModule, folder: Path, resume: Path | None = None, **options: Any) -> Watch:
    watch = Watch()
    values: dict[str, Any] = {
        "max_epochs": 3, "logger": False, "enable_progress_bar": False, "accelerator": "cpu",
        "enable_model_summary": False, "enable_checkpointing": False, "num_sanity_val_steps": 1,
        "default_root_dir": folder, "use_distributed_sampler": False,
    }  # fmt: skip
    Trainer(**values | options).fit(watch, data, ckpt_path=resume)
    return watch


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
    assert "From epoch" not in caplog.text
    assert resumed(position | {"epoch": 1, "pool": 0, "batch": 0}) == size
    assert "From epoch 2 on there is text " in caplog.text


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
        assert [batch for _, batch in watch.seen] == [next(fresh).ids.tolist() for _ in range(12)]


def test_no_validation_set_is_no_validation(corpus: Path) -> None:
    watch = run(make(corpus, val=None), corpus, max_epochs=1)
    assert watch.seen
    assert not watch.validations


def test_a_stream_leaves_no_copy_and_counts(corpus: Path) -> None:
    data = ready(corpus, streaming=True, max_length=12)
    assert sum(1 for _ in (corpus / "cache").glob("tokens-*")) == 2, "val and test only"
    numbers = [i for batch in data.train_dataloader() for i in batch.ids.tolist()]
    cached = ready(corpus, max_length=12)
    assert (
        (data.counts.pairs, data.counts.too_long)
        == (cached.counts.pairs, cached.counts.too_long)
        == (len(numbers), 400 - len(numbers))
    )
    assert sorted(numbers) == sorted(
        i for batch in cached.train_dataloader() for i in batch.ids.tolist()
    )


MEMORY = """
import sys
from pathlib import Path
from transformer.data.batching import Plan
from transformer.data.corpus import Corpus, Pair
from transformer.data.dataset import TokenTable, select, write_table
from transformer.data.loaders import CachedLoader
from transformer.data.mixture import Mixture

peak = 0

def measure():
    global peak
    [line] = [line for line in open("/proc/self/status") if line.startswith("RssAnon")]
    peak = max(peak, int(line.split()[1]))

class Lines(Corpus):
    def pairs(self, start=0):
        return (Pair("w " * (i % 23), "w") for i in range(int(sys.argv[1])))

class Quick:  # the library is not what is measured, and it takes its time
    src_vocab_size = tgt_vocab_size = 9
    def encode_src(self, lines, to=None):
        measure()
        return [[7] * (len(line) // 2) + [2] for line in lines]
    encode_tgt = encode_src

path = Path(sys.argv[2])
lines = Lines("lines", "en", "de", "data.train")
write_table([lines], Quick(), path)
rows, counts = select(table := TokenTable(path), lines, 256)
measure()
for number, batch in enumerate(CachedLoader(table, Mixture([rows]), Plan(4096))):
    if number % 100 == 0:
        measure()
print(counts.pairs, peak)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_does_not_grow_with_the_corpus(tmp_path: Path) -> None:
    peaks, sizes = [], []
    for pairs in (100_000, 1_000_000):
        path = tmp_path / str(pairs)
        command = [sys.executable, "-c", MEMORY, str(pairs), str(path)]
        found, peak = map(int, subprocess.check_output(command, text=True).split())
        assert found == pairs - -(-pairs // 23), "an empty side is left out"
        peaks.append(peak * 1024)
        sizes.append(path.stat().st_size)
    assert sizes[1] - sizes[0] > 30e6
    assert peaks[1] - peaks[0] < 8e6, peaks
