"""A corpus of counted words, and what is trained on of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from transformer.data.batching import Batch
from transformer.data.datamodule import DataModule
from transformer.data.tokenizer import TokenizerConfig


def write_texts(folder: Path) -> Path:
    """Writes train, val and test in English and German."""
    rng = np.random.default_rng(0)
    for name, lines in (("train", 400), ("val", 30), ("test", 20)):
        lengths = rng.integers(1, 15, lines)
        for side in ("en", "de"):
            text = "".join(f"{name} {side} " + "w " * n + f"{i}\n" for i, n in enumerate(lengths))
            (folder / f"{name}.{side}").write_text(text)
    return folder


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


class Watch(LightningModule):
    """Writes down the ids of what it is trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, list[int]]] = []
        self.validations: list[int] = []

    def training_step(self, batch: Batch, index: int) -> torch.Tensor:
        assert isinstance(batch, Batch)
        self.seen.append((self.current_epoch, batch.indices.tolist()))
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
