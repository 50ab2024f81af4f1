"""Small corpora and models for the tests of training; as a script, one run of several processes."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from threading import Barrier
from typing import Any, Literal

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader

from transformer.__main__ import main
from transformer.data.batching import Batch
from transformer.data.datamodule import DataModule
from transformer.data.tokenizer import BOS, TokenizerConfig
from transformer.data.tokenizer_training import train_tokenizer
from transformer.errors import UserError
from transformer.inference.search import SearchConfig
from transformer.models import TransformerConfig
from transformer.training.logging import TrainingLog
from transformer.training.module import Seq2SeqModule
from transformer.training.stopping import Interrupted, StopSafely

# Models as small as these are many times slower on more threads, above all where tests run at once.
torch.set_num_threads(1)

ROOT = Path(__file__).resolve().parent.parent
WORDS = {
    "eins": "one", "zwei": "two", "drei": "three", "vier": "four", "haus": "house",
    "hund": "dog", "katze": "cat", "baum": "tree", "rot": "red", "blau": "blue",
}  # fmt: skip
NETWORK = TransformerConfig(d_model=16, d_ff=32, num_heads=2, num_layers=1, dropout=0.0)
VAL = [3, 2, 2]  # sentences of the validation batches: unequally many for two processes
SHAPE = "{d_model: 16, d_ff: 32, num_heads: 2, num_layers: 1, dropout: 0.1}"


def dropouts(model: torch.nn.Module, *inputs: torch.Tensor) -> list[tuple[str, int]]:
    """Name of each `Dropout`, and with how many tensors, as a forward pass calls them."""
    calls: list[tuple[str, int]] = []
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_pre_hook(
                lambda _, given, name=name: calls.append((name, len(given)))
            )
    model(*inputs)
    return calls


def copy_attention(ours: Any, theirs: Any) -> None:
    """Gives torch's multi-head attention the weights of ours."""
    theirs.in_proj_weight = ours.input_projection.weight
    theirs.in_proj_bias = ours.input_projection.bias
    theirs.out_proj = ours.output_projection


def sentences(count: int, seed: int) -> list[tuple[str, str]]:
    """Word-for-word translations of 1 to 7 random words."""
    rng = random.Random(seed)
    lines = [rng.choices(list(WORDS), k=rng.randint(1, 7)) for _ in range(count)]
    return [(" ".join(line), " ".join(WORDS[word] for word in line)) for line in lines]


def write_lines(file: Path, lines: Iterable[str]) -> Path:
    """A file of these lines."""
    file.write_text("".join(f"{line}\n" for line in lines))
    return file


def write_corpus(folder: Path, sizes: dict[str, int]) -> None:
    """Files train.de, train.en, ... in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for seed, (split, size) in enumerate(sizes.items()):
        for side, lines in zip(("de", "en"), zip(*sentences(size, seed), strict=True), strict=True):
            write_lines(folder / f"{split}.{side}", lines)


def recipe(folder: Path, name: str = "toy.yaml", extra: str = "") -> Path:
    """A recipe on a corpus in the same folder, both written here."""
    write_corpus(folder / "corpus", {"train": 120, "val": 12, "test": 10})
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    splits = ", ".join(f"{split}: {folder}/corpus/{split}" for split in ("train", "val", "test"))
    path.write_text(
        f"model: {{network: {SHAPE}, schedule: inverse_sqrt, learning_rate: 0.01, "
        "warmup_steps: 10, search: {beam: 2, max_extra: 5}}\n"
        f"data: {{{splits}, src: de, tgt: en, cache: {folder}/cache, "
        "tokenizer: {vocab_size: 300}, max_length: 60, max_tokens: 200}\n"
        "trainer: {max_epochs: 2, accelerator: cpu, log_every_n_steps: 2}\n" + extra
    )
    return path


def fit(*args: str | Path) -> int:
    """`transformer fit` in this process; its exit code."""
    return main(["fit", *map(str, args)])


def gathers(world: int) -> list[Callable[[Sequence[int]], Any]]:
    """What each of so many threads calls to hear the numbers of all, as processes do."""
    told: list[list[int]] = [[]] * world
    barrier = Barrier(world, timeout=60)

    def gather(rank: int, numbers: Sequence[int]) -> Any:
        told[rank] = list(numbers)
        barrier.wait()
        found = np.array(told)
        barrier.wait()
        return found

    return [partial(gather, rank) for rank in range(world)]


def raising(error: BaseException) -> Callable[..., Any]:
    """A function that raises an error."""

    def fail(*args: Any, **options: Any) -> Any:
        raise error

    return fail


def start(*args: str | Path, **environment: str) -> subprocess.Popen[str]:
    """`transformer fit` in a process of its own."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
    command = [sys.executable, "-m", "transformer", "fit", *map(str, args)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True)


def feed(monkeypatch: pytest.MonkeyPatch, data: bytes) -> None:
    """Lets standard input be a pipe that holds some bytes."""
    end, start = os.pipe()
    with os.fdopen(start, "wb") as stream:
        stream.write(data)
    monkeypatch.setattr(sys, "stdin", os.fdopen(end))


def table(path: str | Path) -> list[dict[str, str]]:
    """The rows of a CSV file."""
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def datamodule(folder: Path, **options: Any) -> DataModule:
    """The data of `recipe`."""
    if not (folder / "corpus").exists():
        write_corpus(folder / "corpus", {"train": 120, "val": 12, "test": 10})
    corpora = {split: f"{folder}/corpus/{split}" for split in ("train", "val", "test")}
    given = {"max_tokens": 200, "max_length": 60, **corpora, **options}
    config = TokenizerConfig(vocab_size=300)
    return DataModule(src="de", tgt="en", cache=f"{folder}/cache", tokenizer=config, **given)


def module(**options: Any) -> Seq2SeqModule:
    """A model of a few thousand parameters."""
    given: dict[str, Any] = {
        "network": NETWORK,
        "schedule": "constant",
        "learning_rate": 1e-3,
        "warmup_steps": 0,
        "search": SearchConfig(beam=2, max_extra=3),
        **options,
    }
    return Seq2SeqModule(**given)


def trainer(folder: Path, *callbacks: Callback, **options: Any) -> Trainer:
    """A silent trainer on the CPU."""
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    quiet |= {"accelerator": "cpu", "logger": False, "use_distributed_sampler": False}
    quiet |= {"num_sanity_val_steps": 0, "log_every_n_steps": 2}
    quiet["enable_checkpointing"] = any(isinstance(c, Checkpoint) for c in callbacks)
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **{**quiet, **options})


class FixedData(LightningDataModule):
    """Given batches, in their order; process r of W takes r, r + W, ...

    Args:
        groups: sentences of each training batch.
        val: sentences of each validation batch.
    """

    allow_zero_length_dataloader_with_multiple_devices = True
    src, tgt = "de", "en"
    max_length = 60

    def __init__(self, groups: list[int], val: list[int]) -> None:
        super().__init__()
        self.groups, self.val = groups, val
        self.lines = sentences(sum(groups) + sum(val), seed=5)
        self.tokenizer = train_tokenizer(TokenizerConfig(vocab_size=270), lambda: self.lines)

    def check_lengths(self, longest: int) -> None:
        """They are all short."""

    def batches(self, first: int, groups: list[int]) -> list[Batch]:
        """Batches of so many sentences each, from sentence `first` on."""
        found = []
        for size in groups:
            pairs = self.lines[first : first + size]
            src = [torch.tensor(ids) for ids in self.tokenizer.encode_src([p[0] for p in pairs])]
            tgt = [torch.tensor(ids) for ids in self.tokenizer.encode_tgt([p[1] for p in pairs])]
            tgt_in = [torch.cat([torch.tensor([BOS]), ids[:-1]]) for ids in tgt]
            lengths = [torch.tensor([len(ids) for ids in side]) for side in (src, tgt)]
            padded = [pad_sequence(side, batch_first=True) for side in (src, tgt_in, tgt)]
            ids = torch.arange(first, first + size)
            found.append(Batch(ids, padded[0], lengths[0], padded[1], padded[2], lengths[1]))
            first += size
        return found

    def _share(self, batches: list[Batch]) -> DataLoader[Batch]:
        assert self.trainer
        share: Any = batches[self.trainer.global_rank :: self.trainer.world_size]
        return DataLoader(share, batch_size=None)

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._share(self.batches(0, self.groups))

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._share(self.batches(sum(self.groups), self.val))

    def training_pairs(self, indices: list[int]) -> list[dict[str, str]]:
        lines = [(index, *self.lines[index]) for index in indices]
        return [{"where": f"line {i + 1}", "src": src, "tgt": tgt} for i, src, tgt in lines]

    def texts(self, split: Literal["val", "test"]) -> tuple[list[str], list[str]]:
        src, tgt = zip(*self.lines, strict=True)
        return list(src), list(tgt)


class KeepGradients(Callback):
    """The weights before the first optimizer step and the gradients of the last one."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.weights = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step:
            parameters = pl_module.named_parameters()
            self.gradients = {name: p.grad.clone() for name, p in parameters}


def one_step(
    folder: Path, groups: list[int], accumulate: int, processes: int = 1, clip: float | None = None
) -> dict[str, Any]:
    """Gradients, scores and meter of one optimizer step over all the groups, in float64."""
    data, model = FixedData(groups, VAL), module(probes=True)
    log, keep = TrainingLog(), KeepGradients()
    run = trainer(
        folder, log, keep, devices=processes, strategy="ddp" if processes > 1 else "auto",
        precision="64-true", accumulate_grad_batches=accumulate, max_epochs=1,
        gradient_clip_val=clip,
    )  # fmt: skip
    run.fit(model, datamodule=data)
    assert run.global_step == 1
    return {
        "weights": keep.weights,
        "gradients": keep.gradients,
        "scores": model.scorer.scores,
        "latest": log.latest,
        "translations": model.scorer.translations,
    }


class KillAt(Callback):
    """Sends a signal to this process in the middle of an optimizer step.

    Args:
        signum: the signal.
        micro_batch: after how many micro-batches.
    """

    def __init__(self, signum: int, micro_batch: int) -> None:
        self.signum, self.micro_batch = signum, micro_batch

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if pl_module.micro_batches == self.micro_batch and trainer.is_global_zero:
            signal.raise_signal(self.signum)


def stopped_together(folder: Path) -> int:
    """Two processes, of which the first gets SIGTERM; the step at which this one stopped."""
    killer, stop = KillAt(signal.SIGTERM, 5), StopSafely(folder)
    run = trainer(
        folder, TrainingLog(), killer, stop, devices=2, strategy="ddp",
        accumulate_grad_batches=2, max_epochs=3,
    )  # fmt: skip
    try:
        with stop:
            run.fit(module(), datamodule=FixedData([2] * 20, val=[]))
    except Interrupted as stopped:
        return stopped.step
    raise AssertionError("was not stopped")


def vocabulary(folder: Path) -> dict[str, str]:
    """The vocabulary with which this node trains, whose cache has nothing of the others."""
    data = datamodule(folder / os.environ["NODE_RANK"])
    run = trainer(folder, devices=1, num_nodes=2, strategy="ddp", max_steps=1)
    run.fit(module(), datamodule=data)
    return data.tokenizer.to_text()


def other_text(folder: Path) -> str:
    """What is said where the second node has one line more."""
    data = datamodule(folder / os.environ["NODE_RANK"])
    if os.environ["NODE_RANK"] == "1":
        for file in Path(f"{data.specs['train']}").parent.glob("train.*"):
            write_lines(file, [*file.read_text().splitlines(), "eins"])
    run = trainer(folder, devices=1, num_nodes=2, strategy="ddp", max_steps=1)
    try:
        run.fit(module(), datamodule=data)
    except UserError as error:
        return str(error)
    raise AssertionError("was not refused")


if __name__ == "__main__":
    what, where = sys.argv[1], Path(sys.argv[2])
    result: Any = one_step(where, [1, 6, 2, 3], 2, processes=2) if what == "step" else None
    if what == "stop":
        result = stopped_together(where)
    if what == "vocabulary":
        result = vocabulary(where)
    if what == "other_text":
        result = other_text(where)
    rank = max(os.environ.get(key, "0") for key in ("NODE_RANK", "LOCAL_RANK"))
    torch.save(result, where / f"{what}-{rank}.pt")
