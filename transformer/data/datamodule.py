"""The LightningDataModule: everything between the recipe's `data:` section and a batch."""

from __future__ import annotations

import logging
import shutil
import uuid
from itertools import chain
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import LightningDataModule

from transformer.data.batching import Plan
from transformer.data.cache import LengthRule, digest, table_path, write_table
from transformer.data.corpus import Corpus, open_corpus
from transformer.data.loaders import CachedLoader, EvalLoader, StreamLoader, TrainLoader
from transformer.data.table import Counts, TokenTable, open_table, read_texts
from transformer.data.tokenizer import Lines, Tokenizer, TokenizerConfig

Split = Literal["train", "val", "test"]
log = logging.getLogger(__name__)


class DataModule(LightningDataModule):
    """Parallel text as batches of token ids.

    A corpus is named by a prefix (`corpus/train` for corpus/train.<src> and corpus/train.<tgt>),
    by a .tsv, .jsonl or .parquet file, by `hub:<name>[:<config>]:<split>` for the Hugging Face hub,
    or by `grammar:train`, `grammar:val` or `grammar:test`. Files may be gzipped.

    Args:
        train: Corpus to train on.
        val: Corpus to validate on.
        test: Corpus to test on.
        src: Source language: the file suffix or the name of the column.
        tgt: Target language.
        columns: Names of the columns of TSV files that have no header.
        tokenizer: How the vocabulary is learned; one that comes with a checkpoint or a model goes
            before.
        max_tokens: Budget of a batch in tokens for each side, padding included.
        max_length: Longest side of a training pair in tokens, its end included.
        too_long: Leave longer training pairs out and count them, or stop with an error.
        limit: Take only the first pairs of the training corpus.
        streaming: Read and tokenise the training corpus on the fly, without a copy on disk.
        cache: Folder for tokenised corpora and vocabularies.
        num_workers: Processes that prepare training batches. A tokenised corpus needs none, a
            stream wants one.
        seed: Key of the order of the batches.
    """

    def __init__(
        self,
        train: str | None = None,
        val: str | None = None,
        test: str | None = None,
        src: str = "",
        tgt: str = "",
        columns: list[str] | None = None,
        tokenizer: TokenizerConfig = TokenizerConfig(),  # noqa: B008, frozen
        max_tokens: int = 4096,
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
        self.tokenizer_config = tokenizer
        self.max_tokens, self.seed = max_tokens, seed
        self.rule = LengthRule(max_length, too_long)
        self.limit, self.streaming, self.num_workers = limit, streaming, num_workers
        self.cache = Path(cache).expanduser()
        self._tokenizer: Tokenizer | None = None
        self._paths: dict[Split, Path] = {}
        self._tables: dict[Split, TokenTable] = {}
        self._loader: TrainLoader | None = None
        self._position: dict[str, Any] = {}

    @property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer in use; there is one after `setup`, or when one was assigned before."""
        if self._tokenizer is None:
            raise RuntimeError("There is no tokenizer before setup(), unless one is assigned")
        return self._tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @property
    def pairs(self) -> int:
        """Training pairs; in a stream those seen so far, in this process."""
        return self._counts().pairs

    @property
    def skipped(self) -> int:
        """Training pairs left out because they are too long; in a stream, so far."""
        return self._counts().too_long

    @property
    def empty(self) -> int:
        """Training pairs left out because one side is empty; in a stream, so far."""
        return self._counts().empty

    def corpora(self) -> list[Corpus]:
        """The corpora that are named, found but not read yet."""
        self._check()
        return [self._corpus(split) for split, spec in self.specs.items() if spec is not None]

    def prepare_data(self) -> None:
        """Trains the tokenizer unless there is one, and tokenises each corpus not yet cached."""
        self._check()
        if self._tokenizer is None and not self._tokenizer_folder().is_dir():
            self._train_tokenizer()
        tokenizer = self._tokenizer or Tokenizer.load(self._tokenizer_folder())
        for split in self._cached():
            corpus, rule, limit = self._corpus(split), self._rule(split), self._limit(split)
            path = table_path(self.cache, corpus, tokenizer, rule, limit)
            if not path.exists():
                log.info("Tokenising data.%s: %s", split, corpus.spec)
                write_table(path, corpus, tokenizer, rule, limit)

    def setup(self, stage: str | None = None) -> None:
        """Opens what `prepare_data` made."""
        self._check()
        if self._tokenizer is None:
            self._tokenizer = Tokenizer.load(self._tokenizer_folder())
        for split in self._cached():
            rule, limit = self._rule(split), self._limit(split)
            path = table_path(self.cache, self._corpus(split), self._tokenizer, rule, limit)
            if self._paths.get(split) != path:
                self._paths[split], self._tables[split] = path, open_table(path)
        counts = self._counts()
        if counts.too_long or counts.empty:
            log.info(
                "data.train: left out %d pairs longer than data.max_length = %d tokens and %d with "
                "an empty side; %d remain",
                counts.too_long, self.rule.max_length, counts.empty, counts.pairs,
            )  # fmt: skip

    def train_dataloader(self) -> TrainLoader:
        """A loader that can be saved and resumed in the middle of an epoch."""
        rank, world = self._processes()
        plan = Plan(self.max_tokens, self.seed, world)
        if self.streaming:
            self._loader = StreamLoader(
                self._corpus("train"), self.tokenizer, self.rule, plan, self.limit,
                rank, self.num_workers, self._set_aside,
            )  # fmt: skip
        else:
            batches = self.trainer.limit_train_batches if self.trainer else 1.0
            table = self._table("train")
            self._loader = CachedLoader(table, plan, rank, self.num_workers, batches)
        if self._position:
            self._loader.load_state_dict(self._position)
            self._position = {}
        return self._loader

    def val_dataloader(self) -> EvalLoader | list[Any]:
        """The whole validation set; nothing where the recipe names none."""
        return self._eval_loader("val")

    def test_dataloader(self) -> EvalLoader | list[Any]:
        """The whole test set."""
        return self._eval_loader("test")

    def texts(self, split: Literal["val", "test"]) -> tuple[list[str], list[str]]:
        """Source and reference lines of a set; `Batch.ids` counts into them."""
        self._table(split)
        return read_texts(self._paths[split])

    def state_dict(self) -> dict[str, Any]:
        """The position in the training data."""
        return self._loader.state_dict() if self._loader else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps a position for the training loader.

        Lightning hands a loader its own state only in the middle of an epoch.
        """
        self._position = state_dict

    def _check(self) -> None:
        for key in ("src", "tgt"):
            if not getattr(self, key):
                raise ValueError(f"data.{key} is missing: name the language, like en")
        if self.src == self.tgt:
            raise ValueError(f"data.tgt: {self.tgt!r} is data.src too; they must differ")
        if not any(self.specs.values()):
            raise ValueError("data.train, data.val and data.test are all missing: name a corpus")
        if self.specs["train"] and self.rule.max_length > self.max_tokens:
            raise ValueError(
                f"data.max_tokens: {self.max_tokens} is less than data.max_length = "
                f"{self.rule.max_length}; a batch must hold the longest pair"
            )
        least_values = {"seed": (self.seed, 0), "limit": (self.limit, 1)}
        least_values["max_length"] = (self.rule.max_length, 1)
        for key, (value, least) in least_values.items():
            if value is not None and value < least:
                raise ValueError(f"data.{key}: {value} must be {least} or more")

    def _corpus(self, split: Split) -> Corpus:
        spec = self.specs[split]
        if spec is None:
            raise ValueError(
                f"data.{split} is missing: name a corpus, such as the prefix of two files"
            )
        streaming = self.streaming and split == "train"
        return open_corpus(spec, self.src, self.tgt, self.columns, f"data.{split}", streaming)

    def _cached(self) -> list[Split]:
        skip = "train" if self.streaming else None
        return [split for split, spec in self.specs.items() if spec is not None and split != skip]

    def _rule(self, split: Split) -> LengthRule | None:
        return self.rule if split == "train" else None

    def _limit(self, split: Split) -> int | None:
        return self.limit if split == "train" else None

    def _tokenizer_folder(self) -> Path:
        corpus = self._corpus("train")
        about = [type(corpus).__name__, self.src, self.tgt, corpus.identity(), self.limit]
        return self.cache / f"tokenizer-{digest([*about, vars(self.tokenizer_config)])}"

    def _train_tokenizer(self) -> None:
        corpus = self._corpus("train")
        log.info("Training a tokenizer on data.train: %s", corpus.spec)
        tokenizer = Tokenizer.train(self.tokenizer_config, *self._training_lines(corpus))
        temporary, folder = self.cache / f"{uuid.uuid4().hex}.part", self._tokenizer_folder()
        tokenizer.save(temporary)
        try:
            temporary.rename(folder)  # appears when it is whole
        except OSError:  # another run was faster
            shutil.rmtree(temporary)
            if not folder.is_dir():
                raise

    def _training_lines(self, corpus: Corpus) -> tuple[Lines, Lines]:
        if self.tokenizer_config.shared:  # which side a line is of does not matter: read once
            return lambda: chain.from_iterable(corpus.pairs(limit=self.limit)), lambda: ()
        return (
            lambda: (pair.src for pair in corpus.pairs(limit=self.limit)),
            lambda: (pair.tgt for pair in corpus.pairs(limit=self.limit)),
        )

    def _table(self, split: Split) -> TokenTable:
        if split not in self._tables:
            self._corpus(split)  # explains a missing key
            raise RuntimeError(f"data.{split} is not open: call prepare_data() and setup()")
        return self._tables[split]

    def _eval_loader(self, split: Split) -> EvalLoader | list[Any]:
        if self.specs[split] is None:
            return []
        return EvalLoader(self._table(split), self.max_tokens, *self._processes())

    def _counts(self) -> Counts:
        if isinstance(self._loader, StreamLoader):
            return self._loader.counts
        return self._tables["train"].counts if "train" in self._tables else Counts()

    def _processes(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _set_aside(self) -> int:
        # Lightning draws one batch ahead from a loader without a length, to see its end coming.
        fetcher = self.trainer.fit_loop._data_fetcher if self.trainer else None
        return len(getattr(fetcher, "batches", ()))
