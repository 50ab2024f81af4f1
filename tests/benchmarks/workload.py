"""From text to the token ids and batches that every contestant reads."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from transformer.data.batching import Batch
from transformer.data.datamodule import DataModule
from transformer.data.dataset import json_digest
from transformer.data.tokenizer import BOS, EOS, PAD, UNK, TokenizerConfig

SEED, VOCABULARY = 1, 10_000


@dataclass(frozen=True)
class Text:
    """Which text, and how much of it.

    Args:
        corpus: folder with train, val and test_2016_flickr as `.en` and `.de`, or with `.gz` after
            that; None is the quickstart's Korean–English text, which has fewer than 10,000 pieces.
        max_tokens: budget of a batch on each side, padding included.
        limit: training pairs to take, None for all.
    """

    corpus: str | None = None
    max_tokens: int = 4096
    limit: int | None = None

    def data(self, cache: Path) -> DataModule:
        """The package's own data module, ready to be read."""
        names = ("train.tsv.gz", "val.tsv.gz", "test.tsv.gz")
        if self.corpus:
            names = ("train", "val", "test_2016_flickr")
        folder = Path(self.corpus or "recipes/quickstart")
        train, val, test = (str(folder / name) for name in names)
        data = DataModule(
            train, val, test, *(("en", "de") if self.corpus else ("ko", "en")),
            tokenizer=TokenizerConfig(vocab_size=VOCABULARY), max_tokens=self.max_tokens,
            eval_max_tokens=self.max_tokens, limit=self.limit, cache=str(cache), seed=SEED,
        )  # fmt: skip
        data.prepare_data()
        data.setup()
        return data


def make(text: Text, bench: Path) -> Path:
    """The folder of a workload, written unless it is there.

    Args:
        text: what it is made of.
        bench: the folder of everything that the benchmark keeps.

    Returns:
        A folder with `workload.npz`, `tokenizer.json`, and the lines of the test set in `test.src`
        and `test.tgt`.
    """
    data = text.data(bench / "cache")
    about = [asdict(text), data.tokenizer.to_text(), data.counts.pairs, SEED]
    folder = bench / f"workload-{json_digest(about)[:12]}"
    if (folder / "workload.npz").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    data.tokenizer.save(folder)
    for side, lines in zip(("src", "tgt"), data.texts("test"), strict=True):
        (folder / f"test.{side}").write_text("\n".join(lines) + "\n", encoding="utf-8")
    # Written last, so that what is there is whole.
    partial = folder / "partial.npz"
    np.savez(partial, **_arrays(data))
    partial.rename(folder / "workload.npz")
    return folder


def _arrays(data: DataModule) -> dict[str, Any]:
    ids = {"pad": PAD, "bos": BOS, "eos": EOS, "unk": UNK, "vocab": data.tokenizer.src_vocab_size}
    test = _split("test_", list(data.test_dataloader()))
    return {
        **ids,
        **_split("", list(data.train_dataloader())),
        **_split("val_", list(data.val_dataloader())),
        **{name: array for name, array in test.items() if "batch" not in name},
    }


def _split(prefix: str, batches: list[Batch]) -> dict[str, Any]:
    """Pairs in the order of the corpus, and the batches as numbers of pairs."""
    numbers = [batch.indices.numpy() for batch in batches]
    order = np.argsort(np.concatenate(numbers))
    places = np.argsort(order)  # of each pair as the batches have it
    ends = np.cumsum([len(ids) for ids in numbers])
    arrays = {f"{prefix}batch_rows": places, f"{prefix}batch_ends": ends}
    for side in ("src", "tgt"):
        rows = [row for batch in batches for row in _unpadded(batch, side)]
        rows = [rows[i] for i in order]
        arrays[f"{prefix}{side}"] = np.concatenate(rows).astype(np.int32)
        arrays[f"{prefix}{side}_ends"] = np.cumsum([len(row) for row in rows])
    return arrays


def _unpadded(batch: Batch, side: str) -> list[Any]:
    padded, lengths = (
        (batch.src, batch.src_lengths) if side == "src" else (batch.tgt_out, batch.tgt_lengths)
    )
    return [row[:length] for row, length in zip(padded.numpy(), lengths.tolist(), strict=True)]
