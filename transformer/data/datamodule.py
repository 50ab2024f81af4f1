"""The LightningDataModule: everything between the recipe's `data:` section and a batch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch import LightningDataModule

from transformer.data.batching import EvalLoader, Plan
from transformer.data.corpus import Corpus, open_corpus
from transformer.data.dataset import (
    Counts,
    Ints,
    TokenTable,
    cached,
    digest,
    learn_tokenizer,
    nothing_left,
    read_tokenizer,
    select,
    table_path,
    tokenizer_path,
    write_table,
    write_tokenizer,
)
from transformer.data.loaders import CachedLoader, StreamLoader, TrainLoader
from transformer.data.mixture import ExtraCorpus, Mixture, check_mixture
from transformer.data.tokenizer import Tokenizer, TokenizerConfig
from transformer.errors import UserError
from transformer.writing import clear

Split = Literal["train", "val", "test"]
log = logging.getLogger(__name__)
ABANDONED = 3600  # seconds after which nobody writes on: a writer adds to its file all the time


class DataModule(LightningDataModule):
    """Parallel text as batches of token ids.

    A corpus is named by a prefix (`corpus/train` for corpus/train.<src> and corpus/train.<tgt>),
    by a .tsv, .jsonl or .parquet file, or by `hub:<name>[:<config>]:<split>` for the Hugging Face
    hub. Files may be gzipped; those of recipes/ come with the package.

    Args:
        train: Corpus to train on.
        val: Corpus to validate on.
        test: Corpus to test on.
        src: Source language: the file suffix or the name of the column.
        tgt: Target language.
        extra_corpora: Further corpora to train on, of any languages, each with `train`, `src`,
            `tgt` and, if need be, `share` (of the training pairs; by its size when left out) and
            `limit`.
        temperature: Of corpora without a share: n pairs count as n^(1/temperature).
        tags: Put a tag of the target language (`<2en>`) before each source sentence, so that one
            model translates into several.
        columns: Names of the columns of TSV files that have no header.
        tokenizer: How the vocabulary is learned; one that comes with a checkpoint or a model goes
            before.
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
        self.tokenizer_config = tokenizer
        self.max_tokens, self.eval_max_tokens, self.seed = max_tokens, eval_max_tokens, seed
        #: Beams of a sentence, and tokens beyond its length, that evaluation searches among.
        self.beams, self.extra = 1, 0
        self.max_length, self.too_long, self.limit = max_length, too_long, limit
        self.streaming, self.num_workers = streaming, num_workers
        self.cache = Path(cache).expanduser()
        self._tokenizer: Tokenizer | None = None
        self._vocabulary: Tokenizer | None = None  # learned here; other processes may get another
        self._tables: dict[Split, TokenTable] = {}
        self._chosen: list[tuple[Ints, Counts]] = []
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
        return [
            corpus for split, spec in self.specs.items() if spec for corpus in self._text(split)
        ]

    def shares(self) -> list[tuple[str, str, float]]:
        """Source, target and part of the training pairs of each corpus, once they are open."""
        pairs = [(self.src, self.tgt), *((extra.src, extra.tgt) for extra in self.extra_corpora)]
        shares = self._mixture().shares if self.extra_corpora else [1.0]
        return [(*pair, share) for pair, share in zip(pairs, shares, strict=True)]

    def prepare_data(self) -> None:
        """Trains the tokenizer unless there is one, and tokenises each corpus not yet cached.

        Of several nodes the first trains it; the others tokenise in `setup`, when they have it.
        """
        self._check()
        clear(self.cache, ABANDONED)
        if self._tokenizer or not self._processes()[0]:
            self._tokenise(self._tokenizer or self._learned())

    def setup(self, stage: str | None = None) -> None:
        """Opens what `prepare_data` made."""
        self._check()
        if self._tokenizer is None:
            self._tokenizer = self._first_tokenizer()
        for split in self._cached():
            path = table_path(self.cache, self._text(split), self._tokenizer)
            if split not in self._tables or self._tables[split].source != path:
                self._open(split, path)

    def train_dataloader(self) -> TrainLoader:
        """A loader that can be saved and resumed in the middle of an epoch."""
        rank, world = self._processes()
        corpora = self._text("train")
        text = digest([corpus.identity() for corpus in corpora])[:12]
        plan = Plan(self.max_tokens, self.seed, world, text)
        if self.streaming:
            self._loader = StreamLoader(
                corpora[0], self.tokenizer, self.max_length, self.too_long == "refuse", plan,
                rank, self.num_workers, self._set_aside,
            )  # fmt: skip
        else:
            for src, tgt, share in self.shares() if self.extra_corpora else []:
                log.info("%.1f %% of the training pairs: %s -> %s", 100 * share, src, tgt)
            limit = self.trainer.limit_train_batches if self.trainer else 1.0
            table = self._table("train")
            self._loader = CachedLoader(table, self._mixture(), plan, rank, limit, self._set_aside)
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

    def check_lengths(self, longest: int) -> None:
        """Refuses lines of the validation and the test set that a model cannot read or write.

        Args:
            longest: Tokens of a side that it can, the end included.

        Raises:
            ValueError: The first line that has more.
        """
        for split in self._cached():
            table, corpus = self._tables[split], self._text(split)[0]
            sides = {self.src: table.src, self.tgt: table.tgt} if split != "train" else {}
            for language, side in sides.items():
                lengths = side.lengths(np.arange(len(table)))
                if lengths.max() > longest:
                    row = int(np.argmax(lengths > longest))
                    raise UserError(
                        f"data.{split}: {corpus.where(row)}: {lengths[row]} tokens of "
                        f"{language}, the model has {longest} learned positions; shorten the line, "
                        "or train with a larger model.network.max_positions"
                    )

    def texts(self, split: Literal["val", "test"]) -> tuple[list[str], list[str]]:
        """Source and reference lines of a set; `Batch.ids` counts into them."""
        pairs = list(self._text(split)[0].pairs())
        return [pair.src for pair in pairs], [pair.tgt for pair in pairs]

    def state_dict(self) -> dict[str, Any]:
        """The position in the training data."""
        return {} if self._loader is None else self._loader.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps a position for the training loader.

        Lightning hands a loader its own state only in the middle of an epoch.
        """
        self._position = state_dict

    def _check(self) -> None:
        for key in ("src", "tgt"):
            if not getattr(self, key):
                raise UserError(f"data.{key} is missing: name the language, like en")
        if self.src == self.tgt:
            raise UserError(f"data.tgt: {self.tgt!r} is data.src too; they must differ")
        if not any(self.specs.values()):
            raise UserError("data.train, data.val and data.test are all missing: name a corpus")
        if self.specs["train"] and self.max_length > self.max_tokens:
            raise UserError(
                f"data.max_tokens: {self.max_tokens} is less than data.max_length = "
                f"{self.max_length}; a batch must hold the longest pair"
            )
        least_values = {"seed": (self.seed, 0), "limit": (self.limit, 1)}
        least_values |= {"max_tokens": (self.max_tokens, 1), "num_workers": (self.num_workers, 0)}
        least_values["max_length"] = (self.max_length, 1)
        least_values["eval_max_tokens"] = (self.eval_max_tokens, 1)
        for key, (value, least) in least_values.items():
            if value is not None and value < least:
                raise UserError(f"data.{key}: {value} must be {least} or more")
        check_mixture(self.extra_corpora, self.tgt, self.tags, self.temperature, self.streaming)

    def _text(self, split: Split) -> list[Corpus]:
        """The corpora of a split: those of training are the main one and the further ones."""
        spec = self.specs[split]
        if spec is None:
            raise UserError(
                f"data.{split} is missing: name a corpus, such as the prefix of two files"
            )
        key, extra = f"data.{split}", self.extra_corpora
        if split != "train":
            return [open_corpus(spec, self.src, self.tgt, self.columns, key)]
        main = open_corpus(spec, self.src, self.tgt, self.columns, key, self.streaming, self.limit)
        return [main] + [
            open_corpus(corpus.train, corpus.src, corpus.tgt, self.columns,
                        f"data.extra_corpora[{i}].train", limit=corpus.limit)
            for i, corpus in enumerate(extra)
        ]  # fmt: skip

    def _cached(self) -> list[Split]:
        """The splits that are tokenised before they are read."""
        return [
            split for split, spec in self.specs.items()
            if spec is not None and not (split == "train" and self.streaming)
        ]  # fmt: skip

    def _tokenise(self, tokenizer: Tokenizer) -> None:
        self._check_tags(tokenizer)
        for split in self._cached():
            corpora = self._text(split)
            path = table_path(self.cache, corpora, tokenizer)
            if cached(path, TokenTable) is None:
                named = ", ".join(f"{corpus.key}: {corpus.spec}" for corpus in corpora)
                log.info("Tokenising %s", named)
                write_table(path, corpora, tokenizer)
            self._open(split, path)

    def _open(self, split: Split, path: Path) -> None:
        """Opens a table, and says which pairs are left out or, in whole sets, have no text."""
        table = self._tables[split] = TokenTable(path)
        if split == "train":
            self._chosen = [
                self._choose(table, number, corpus)
                for number, corpus in enumerate(self._text(split))
            ]
        elif len(empty := np.flatnonzero(table.blank())):
            where = self._text(split)[0].where(int(empty[0]))
            log.info(
                "data.%s: %d pairs have an empty side, the first is %s; an empty source is "
                "translated as an empty line", split, len(empty), where,
            )  # fmt: skip

    def _choose(self, table: TokenTable, number: int, corpus: Corpus) -> tuple[Ints, Counts]:
        refuse = self.too_long == "refuse"
        rows, counts = select(table, corpus, self.max_length, refuse, number)
        if not counts.pairs:
            raise nothing_left(corpus, counts)
        if counts.too_long or counts.empty:
            log.info(
                "%s: left out %d pairs longer than data.max_length = %d tokens and %d with an "
                "empty side; %d remain",
                corpus.key, counts.too_long, self.max_length, counts.empty, counts.pairs,
            )  # fmt: skip
        return rows, counts

    def _check_tags(self, tokenizer: Tokenizer) -> None:
        """Compares the recipe with a vocabulary that may have come with a model."""
        if self.tags and not tokenizer.tags:
            raise UserError(
                "data.tags: true, but the vocabulary that came with the model has no tags; set it "
                "to false, or train a new model"
            )
        targets = {"data": self.tgt}
        targets |= {f"data.extra_corpora[{i}]": c.tgt for i, c in enumerate(self.extra_corpora)}
        for key, language in targets.items():
            try:
                tokenizer.encode_src([], language)
            except UserError as error:
                raise UserError(f"{key}.tgt: {error}") from None

    def _tokenizer_path(self) -> Path:
        return tokenizer_path(
            self.cache, self.tokenizer_config, self._text("train"), self._tagged()
        )

    def _tagged(self) -> list[str]:
        """The languages that have a tag."""
        targets = {self.tgt, *(corpus.tgt for corpus in self.extra_corpora)}
        return sorted(targets) if self.tags else []

    def _learned(self) -> Tokenizer:
        """The tokenizer of the cache, learned unless it is there."""
        if self._vocabulary is None:
            path, corpora = self._tokenizer_path(), self._text("train")
            self._vocabulary = cached(path, read_tokenizer)
        if self._vocabulary is None:
            named = ", ".join(f"{corpus.key}: {corpus.spec}" for corpus in corpora)
            log.info("Training a tokenizer on %s", named)
            self._vocabulary = learn_tokenizer(self.tokenizer_config, corpora, self._tagged())
            write_tokenizer(path, self._vocabulary)
        return self._vocabulary

    def _first_tokenizer(self) -> Tokenizer:
        """The tokenizer of the first process: two nodes may have learned two of them."""
        rank, world = self._processes()
        found = None if rank else self._learned()
        if world > 1:
            trainer: Any = self.trainer
            found = Tokenizer.from_text(trainer.strategy.broadcast(found and found.to_text()))
            if trainer.local_rank == 0:
                self._tokenise(found)
            trainer.strategy.barrier()
        assert found
        return found

    def _mixture(self) -> Mixture:
        self._table("train")
        shares = [corpus.share for corpus in self.extra_corpora]
        return Mixture([rows for rows, _ in self._chosen], shares, self.temperature)

    def _table(self, split: Split) -> TokenTable:
        if split not in self._tables:
            self._text(split)  # explains a missing key
            raise RuntimeError(f"data.{split} is not open: call prepare_data() and setup()")
        return self._tables[split]

    def _eval_loader(self, split: Split) -> EvalLoader | list[Any]:
        if self.specs[split] is None:
            return []
        table, processes = self._table(split), self._processes()
        return EvalLoader(table, self.eval_max_tokens, *processes, self.beams, self.extra)

    def _counts(self) -> Counts:
        if isinstance(self._loader, StreamLoader):
            return self._loader.counts
        return sum((counts for _, counts in self._chosen), Counts())

    def _processes(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _set_aside(self) -> int:
        # Lightning draws one batch ahead from a loader without a length, to see its end coming.
        fetcher = self.trainer.fit_loop._data_fetcher if self.trainer else None
        return len(getattr(fetcher, "batches", ()))
