"""The LightningDataModule: everything between the recipe's `data:` section and a batch."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from lightning.pytorch import LightningDataModule

from transformer.data.batching import EvalLoader, Plan
from transformer.data.corpus import Corpus, open_corpus
from transformer.data.dataset import TokenTable, json_digest, open_table
from transformer.data.lengths import Ints
from transformer.data.loaders import CachedLoader, StreamLoader, TrainLoader
from transformer.data.mixture import Counts, ExtraCorpus, Mixture, check_corpora, check_tags, choose
from transformer.data.texts import Texts
from transformer.data.tokenizer import Tokenizer, TokenizerConfig
from transformer.data.tokenizer_training import open_tokenizer
from transformer.errors import UserError
from transformer.writing import clear

Split = Literal["train", "val", "test"]
log = logging.getLogger(__name__)
FARTHEST = 8  # times data.max_length: the longest line to validate or test on
ABANDONED = 3600  # seconds: a file that grew for so long by nothing has no writer any more


class DataModule(LightningDataModule):
    """Parallel text as batches of token ids; `tokenizer` is assigned, or there after `setup`.

    A corpus is named by a prefix (`corpus/train` for corpus/train.<src> and corpus/train.<tgt>),
    by a .tsv, .jsonl or .parquet file, or by `hub:<name>[@<revision>][:<config>]:<split>` for the
    Hugging Face hub. Files may be gzipped; those of recipes/ come with the package.

    Args:
        train: Corpus to train on.
        val: Corpus to validate on.
        test: Corpus to test on.
        src: Source language: the file suffix or the name of the column.
        tgt: Target language.
        extra_corpora: Further corpora to train on, of any languages, each with `train`, `src`,
            `tgt` and, if need be, `share` (of the training pairs; by its size when left out) and
            `limit`.
        temperature: Of corpora without a share: n pairs count as n^(1/temperature), 1 as n.
        tags: Put a tag of the target language (`<2en>`) before each source sentence, so that one
            model translates into several.
        columns: Names of the columns of TSV files that have no header.
        tokenizer: How the vocabulary is learned; one that comes with a checkpoint or a model
            takes precedence.
        max_tokens: Budget of a training batch in tokens for each side, padding included.
        eval_max_tokens: Budget of a validation or test batch in tokens that search may have to
            remember: sentences x beam x (longest side + max_extra of the search). For each of
            them the keys and values of the paper's base model take 12 KiB in bfloat16, 24 in
            float32, and room for up to twice as many is kept.
        max_length: Longest side of a training pair in tokens, its end included.
        too_long: Leave longer training pairs out and count them, or stop with an error.
        limit: Take only the first pairs of the training corpus.
        streaming: Read and tokenise the training corpus on the fly, without a copy on disk.
        cache: Folder for tokenised corpora and vocabularies.
        num_workers: Processes that read and tokenise a stream, which wants one; a tokenised corpus
            needs none.
        seed: Key of the order of the batches.
    """

    tokenizer: Tokenizer

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        src: str = "",
        tgt: str = "",
        extra_corpora: list[ExtraCorpus] | None = None,
        temperature: float = 1.0,
        tags: bool = False,
        columns: list[str] | None = None,
        tokenizer: TokenizerConfig = TokenizerConfig(),  # noqa: B008, frozen
        max_tokens: int = 4096,
        eval_max_tokens: int = 32_768,
        max_length: int = 256,
        too_long: Literal["skip", "refuse"] = "skip",
        limit: int | None = None,
        streaming: bool = False,
        cache: str = "~/.cache/transformer",
        num_workers: int = 0,
        seed: int = 1,
    ) -> None:
        super().__init__()
        self.specs: dict[Split, str | None] = {"train": train, "val": val, "test": test}
        self.src, self.tgt, self.columns = src, tgt, columns
        self.extra_corpora, self.temperature, self.tags = extra_corpora or [], temperature, tags
        #: Where a training corpus stands in the recipe -> which it is, the main one first.
        self._named = {"data": ExtraCorpus(train or "", src, tgt, None, limit)} | {
            f"data.extra_corpora[{i}]": corpus for i, corpus in enumerate(self.extra_corpora)
        }
        self.tokenizer_config = tokenizer
        self.max_tokens, self.eval_max_tokens, self.seed = max_tokens, eval_max_tokens, seed
        #: Beams of a sentence, and tokens beyond its length, that evaluation searches among.
        self.beams, self.extra = 1, 0
        self.max_length, self.too_long = max_length, too_long
        self.streaming, self.num_workers = streaming, num_workers
        self.cache = Path(os.path.expanduser(cache))
        self._is_set_up = False
        self._tables: dict[Split, TokenTable] = {}
        self._texts: dict[Split, Texts] = {}
        self._mixture: Mixture
        self._counts = Counts()
        self._loader: TrainLoader | None = None
        self._position: dict[str, Any] = {}

    @property
    def counts(self) -> Counts:
        """Training pairs, and those left out; of a stream, so far."""
        return self._loader.counts if isinstance(self._loader, StreamLoader) else self._counts

    def corpora(self, *splits: Split) -> list[Corpus]:
        """The corpora of these splits, or of all that are named: found, but not read yet."""
        self._check()
        found: list[Corpus] = []
        for split in splits or [split for split, spec in self.specs.items() if spec]:
            if not (spec := self.specs[split]):
                raise UserError(f"data.{split} is missing: name a corpus, such as corpus/{split}")
            training = split == "train"
            named = self._named if training else {"data": ExtraCorpus(spec, self.src, self.tgt)}
            found += [
                open_corpus(
                    corpus.train, corpus.src, corpus.tgt, self.columns, f"{key}.{split}",
                    self.streaming and training, corpus.limit,
                )
                for key, corpus in named.items()
            ]  # fmt: skip
        return found

    def tokenizer_inputs(self) -> tuple[TokenizerConfig, list[Corpus], list[str]]:
        """How a tokenizer is learned, from which text, and the languages that have a tag."""
        tagged = sorted({corpus.tgt for corpus in self._named.values()}) if self.tags else []
        return self.tokenizer_config, self.corpora("train"), tagged

    def shares(self) -> list[tuple[str, str, float]]:
        """Source, target and part of the training pairs of each corpus, once they are open."""
        named = zip(self._named.values(), self._mixture.shares, strict=True)
        return [(corpus.src, corpus.tgt, share) for corpus, share in named]

    def prepare_data(self) -> None:
        """Trains the tokenizer unless there is one, and tokenises each corpus not yet cached.

        Of several nodes the first trains it; the others tokenise in `setup`, when they have it.
        """
        if self._is_set_up:  # a test after the training: its corpora may be gone
            return
        clear(self.cache, ABANDONED)
        if hasattr(self, "tokenizer") or not self._processes()[0]:
            self._open(getattr(self, "tokenizer", None) or self._learned)

    def setup(self, stage: str | None = None) -> None:
        """Opens what `prepare_data` made, with the tokenizer of the first process."""
        if self._is_set_up:
            return
        rank, world = self._processes()
        if not hasattr(self, "tokenizer") and world > 1:  # two nodes may have learned two of them
            trainer: Any = self.trainer
            text = None if rank else self._learned.to_text()
            self.tokenizer = Tokenizer(trainer.strategy.broadcast(text))
            if trainer.local_rank == 0:
                self._open(self.tokenizer)
            trainer.strategy.barrier()
        elif not hasattr(self, "tokenizer"):
            self.tokenizer = self._learned
        self._open(self.tokenizer)
        if world > 1:
            self._refuse_others()
        if stage == "fit":  # each validation would search for hours
            most = FARTHEST * self.max_length
            why = f"at most {most} may be validated on, {FARTHEST} times data.max_length"
            self.check_lengths(most, f"{why}; shorten the line, or raise data.max_length")
        self._is_set_up = True

    def _refuse_others(self) -> None:
        """Stops all processes where one has other text: their batches would not fit together."""
        about = [corpus.digests() or corpus.spec for corpus in self.corpora()]
        every = self._gather([int(json_digest(about)[:15], 16)])[:, 0]
        if others := np.flatnonzero(every != every[0]).tolist():
            raise UserError(
                f"data: process {others[0]} has other corpora than the first one: give each "
                "machine the same"
            )

    def train_dataloader(self) -> TrainLoader:
        """A loader that can be saved and resumed in the middle of an epoch."""
        (rank, world), corpora = self._processes(), self.corpora("train")
        text = json_digest([corpus.identity() for corpus in corpora])[:12]
        ours = Plan(self.max_tokens, self.seed, world, text), rank, self._set_aside
        if self.streaming:
            self._loader = StreamLoader(
                *ours, corpora[0], self.tokenizer, self.max_length, self.too_long == "refuse",
                self.num_workers, self._gather,
            )  # fmt: skip
        else:
            limit = self.trainer.limit_train_batches if self.trainer else 1.0
            self._loader = CachedLoader(*ours, self._tables["train"], self._mixture, limit)
        if self._position:
            self._loader.load_state_dict(self._position)
            self._position = {}
        return self._loader

    def val_dataloader(self, split: Split = "val") -> EvalLoader | list[Any]:
        """The whole validation set; nothing where the recipe names none."""
        if self.specs[split] is None:
            return []
        budget, processes = self.eval_max_tokens, self._processes()
        return EvalLoader(self._tables[split], budget, *processes, self.beams, self.extra)

    def test_dataloader(self) -> EvalLoader | list[Any]:
        """The whole test set."""
        return self.val_dataloader("test")

    def check_lengths(self, longest: int, why: str | None = None) -> None:
        """Refuses lines of validation and test of more tokens, the end included.

        Args:
            longest: How many tokens a line may have.
            why: What the error says about it; that a model has so many positions if None.
        """
        why = why or (
            f"the model has {longest} learned positions; shorten the line, or train with a "
            "larger model.network.max_positions"
        )
        for split, table in self._tables.items():
            sides = {self.src: table.src, self.tgt: table.tgt} if split != "train" else {}
            for language, side in sides.items():
                lengths = side.lengths(np.arange(len(table)))
                if lengths.max() > longest:
                    row = int(np.argmax(lengths > longest))
                    raise UserError(
                        f"data.{split}: {self.corpora(split)[0].where(row)}: {lengths[row]} tokens "
                        f"of {language}, {why}"
                    )

    def texts(self, split: Literal["val", "test"]) -> tuple[list[str], list[str]]:
        """Source and reference lines of a set; `Batch.indices` counts into them."""
        return self._texts[split].sides

    def training_pairs(self, indices: Sequence[int]) -> list[dict[str, str]]:
        """The place and the text of training pairs, whose numbers `Batch.indices` has."""
        return self._texts["train"].pairs(indices)

    def state_dict(self) -> dict[str, Any]:
        """The position in the training data."""
        return {} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps a position for the training loader.

        Lightning hands a loader its own state only in the middle of an epoch.
        """
        self._position = state_dict

    def _check(self) -> None:
        check_corpora(self._named, self.tags)
        if not any(self.specs.values()):
            raise UserError("data.train, data.val and data.test are all missing: name a corpus")
        if str(self.cache).startswith("~"):
            raise UserError(f"data.cache: {self.cache}: there is no such home: name another folder")
        if not self.temperature >= 1:
            raise UserError(f"data.temperature: {self.temperature:g} must be at least 1")
        if self.extra_corpora and self.streaming:
            raise UserError(
                "data.streaming: true does not go with data.extra_corpora, which are read from the "
                "cache; set data.streaming to false, or leave data.extra_corpora out"
            )
        if self.specs["train"] and self.max_length > self.max_tokens:
            raise UserError(
                f"data.max_tokens: {self.max_tokens} is less than data.max_length = "
                f"{self.max_length}; a batch must hold the longest pair"
            )
        least = dict.fromkeys(["max_tokens", "eval_max_tokens", "max_length"], 1)
        for key, value in {**least, "seed": 0, "num_workers": 0}.items():
            if getattr(self, key) < value:
                raise UserError(f"data.{key}: {getattr(self, key)} must be {value} or more")

    @cached_property
    def _learned(self) -> Tokenizer:
        """Kept, since another run may put another one into the cache."""
        return open_tokenizer(self.cache, *self.tokenizer_inputs())

    def _open(self, tokenizer: Tokenizer) -> None:
        """Opens the tokenised corpora; those that the cache does not have are made."""
        self._check()
        check_tags(self._named, self.tags, tokenizer)
        for split, spec in self.specs.items():
            if not spec:
                continue
            corpora, before = self.corpora(split), self._tables.get(split)
            if split == "train" and self.streaming:
                self._texts[split] = Texts(split, corpora, [0])
                continue
            table = self._tables[split] = open_table(self.cache, corpora, tokenizer)
            self._texts[split] = Texts(split, corpora, table.bounds[:-1].tolist())
            if before and before.source == table.source:
                continue
            if split == "train":
                refuse, shares = self.too_long == "refuse", [c.share for c in self.extra_corpora]
                chosen, self._counts = choose(table, corpora, self.max_length, refuse)
                self._mixture = Mixture(chosen, shares, self.temperature)
            elif (empty := np.flatnonzero(table.blank())).size:
                log.info(
                    "data.%s: %d pairs have an empty side, the first is %s; an empty source is "
                    "translated as an empty line",
                    split, len(empty), corpora[0].where(int(empty[0])),
                )  # fmt: skip

    def _processes(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _gather(self, numbers: Sequence[int]) -> Ints:
        if not self.trainer:
            return np.array([numbers])
        strategy = self.trainer.strategy
        ours = torch.tensor(numbers, device=strategy.root_device)
        every: Ints = strategy.all_gather(ours).reshape(-1, len(numbers)).cpu().numpy()
        return every

    def _set_aside(self) -> int:
        # Lightning draws one batch ahead from a loader without a length, to see its end coming.
        fetcher = self.trainer.fit_loop._data_fetcher if self.trainer else None
        return len(getattr(fetcher, "batches", ()))
