"""The LightningDataModule: everything between the recipe's `data:` section and a batch."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from lightning.pytorch import LightningDataModule

from transformer.data.batching import Plan
from transformer.data.cache import (
    LengthRule,
    clear_parts,
    digest,
    is_whole,
    table_path,
    write_table,
)
from transformer.data.corpus import Corpus, open_corpus
from transformer.data.loaders import CachedLoader, EvalLoader, StreamLoader, TrainLoader
from transformer.data.mixture import ExtraCorpus, Mixture, MixtureLoader, check_mixture
from transformer.data.table import Counts, TokenTable, open_table, read_texts
from transformer.data.tokenizer import Tokenizer, TokenizerConfig, is_blank
from transformer.data.vocabulary import check_tags, learn, saved, vocabulary_folder
from transformer.errors import UserError

Split = Literal["train", "val", "test"]
log = logging.getLogger(__name__)


class Part(NamedTuple):
    """A corpus to tokenise; name: its key below `data.`; rule and limit: which pairs are kept."""

    name: str
    corpus: Corpus
    rule: LengthRule | None = None
    limit: int | None = None


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
        self.rule = LengthRule(max_length, too_long)
        self.limit, self.streaming, self.num_workers = limit, streaming, num_workers
        self.cache = Path(cache).expanduser()
        self._tokenizer: Tokenizer | None = None
        self._paths: dict[str, Path] = {}
        self._tables: dict[str, TokenTable] = {}
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
        named = [self._corpus(split) for split, spec in self.specs.items() if spec is not None]
        return named + [part.corpus for part in self._further()]

    def shares(self) -> list[tuple[str, str, float]]:
        """Source, target and part of the training pairs of each corpus, once they are open."""
        if not self.extra_corpora:
            return [(self.src, self.tgt, 1.0)]
        pairs = [(self.src, self.tgt), *((corpus.src, corpus.tgt) for corpus in self.extra_corpora)]
        return [(*pair, share) for pair, share in zip(pairs, self._mixture().shares, strict=True)]

    def prepare_data(self) -> None:
        """Trains the tokenizer unless there is one, and tokenises each corpus not yet cached.

        Of several nodes the first trains it; the others tokenise in `setup`, when they have it.
        """
        self._check()
        clear_parts(self.cache)
        if self._tokenizer is None and self._processes()[0]:
            return
        self._tokenise(
            self._tokenizer or saved(self._tokenizer_folder()) or self._train_tokenizer()
        )

    def _tokenise(self, tokenizer: Tokenizer) -> None:
        targets = {"data.tgt": self.tgt}
        targets |= {
            f"data.extra_corpora[{i}].tgt": corpus.tgt
            for i, corpus in enumerate(self.extra_corpora)
        }
        check_tags(tokenizer, self.tags, targets)
        for name, corpus, rule, limit in self._cached():
            path = table_path(self.cache, corpus, tokenizer, rule, limit)
            if not is_whole(path):
                log.info("Tokenising data.%s: %s", name, corpus.spec)
                write_table(path, corpus, tokenizer, rule, limit)

    def setup(self, stage: str | None = None) -> None:
        """Opens what `prepare_data` made."""
        self._check()
        if self._tokenizer is None:
            self._tokenizer = self._first_tokenizer()
        for part in self._cached():
            name, corpus, rule, limit = part
            path = table_path(self.cache, corpus, self._tokenizer, rule, limit)
            if self._paths.get(name) != path:
                self._paths[name], self._tables[name] = path, open_table(path)
                self._tell(part)

    def train_dataloader(self) -> TrainLoader:
        """A loader that can be saved and resumed in the middle of an epoch."""
        rank, world = self._processes()
        text = [corpus.identity() for corpus, _ in self._learned_from()]
        plan = Plan(self.max_tokens, self.seed, world, digest(text)[:12])
        if self.streaming:
            self._loader = StreamLoader(
                self._corpus("train"), self.tokenizer, self.rule, plan, self.limit,
                rank, self.num_workers, self._set_aside,
            )  # fmt: skip
        elif self.extra_corpora:
            for src, tgt, share in self.shares():
                log.info("%.1f %% of the training pairs: %s -> %s", 100 * share, src, tgt)
            self._loader = MixtureLoader(
                self._mixture(), plan, rank, self.num_workers, self._set_aside
            )
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

    def check_lengths(self, longest: int) -> None:
        """Refuses lines of the validation and the test set that a model cannot read or write.

        Args:
            longest: Tokens of a side that it can, the end included.

        Raises:
            ValueError: The first line that has more.
        """
        for part in self._cached():
            table = self._tables[part.name]
            for side in (table.src, table.tgt) if part.rule is None else ():
                lengths = side.lengths(np.arange(len(table)))
                if lengths.max() > longest:
                    row = int(np.argmax(lengths > longest))
                    language = self.src if side is table.src else self.tgt
                    raise UserError(
                        f"data.{part.name}: {part.corpus.where(row)}: {lengths[row]} tokens of "
                        f"{language}, the model has {longest} learned positions; shorten the line, "
                        "or train with a larger model.network.max_positions"
                    )

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
                raise UserError(f"data.{key} is missing: name the language, like en")
        if self.src == self.tgt:
            raise UserError(f"data.tgt: {self.tgt!r} is data.src too; they must differ")
        if not any(self.specs.values()):
            raise UserError("data.train, data.val and data.test are all missing: name a corpus")
        if self.specs["train"] and self.rule.max_length > self.max_tokens:
            raise UserError(
                f"data.max_tokens: {self.max_tokens} is less than data.max_length = "
                f"{self.rule.max_length}; a batch must hold the longest pair"
            )
        least_values = {"seed": (self.seed, 0), "limit": (self.limit, 1)}
        least_values |= {"max_tokens": (self.max_tokens, 1), "num_workers": (self.num_workers, 0)}
        least_values["max_length"] = (self.rule.max_length, 1)
        least_values["eval_max_tokens"] = (self.eval_max_tokens, 1)
        for key, (value, least) in least_values.items():
            if value is not None and value < least:
                raise UserError(f"data.{key}: {value} must be {least} or more")
        check_mixture(self.extra_corpora, self.tgt, self.tags, self.temperature, self.streaming)

    def _corpus(self, split: Split) -> Corpus:
        spec = self.specs[split]
        if spec is None:
            raise UserError(
                f"data.{split} is missing: name a corpus, such as the prefix of two files"
            )
        streaming = self.streaming and split == "train"
        return open_corpus(spec, self.src, self.tgt, self.columns, f"data.{split}", streaming)

    def _main(self) -> Part:
        return Part("train", self._corpus("train"), self.rule, self.limit)

    def _further(self) -> list[Part]:
        return [
            Part(name, open_corpus(c.train, c.src, c.tgt, self.columns, f"data.{name}.train"),
                 self.rule, c.limit)
            for name, c in ((f"extra_corpora[{i}]", c) for i, c in enumerate(self.extra_corpora))
        ]  # fmt: skip

    def _cached(self) -> list[Part]:
        main = [self._main()] if self.specs["train"] is not None and not self.streaming else []
        sets: list[Split] = ["val", "test"]
        named = [
            Part(split, self._corpus(split)) for split in sets if self.specs[split] is not None
        ]
        return main + named + self._further()

    def _tell(self, part: Part) -> None:
        """Says which pairs of a table are left out or, in whole sets, have an empty side."""
        counts = self._tables[part.name].counts
        if counts.too_long or counts.empty:
            log.info(
                "data.%s: left out %d pairs longer than data.max_length = %d tokens and %d "
                "with an empty side; %d remain",
                part.name, counts.too_long, self.rule.max_length, counts.empty, counts.pairs,
            )  # fmt: skip
        sides = read_texts(self._paths[part.name]) if part.rule is None else ()
        empty = {i for side in sides for i, line in enumerate(side) if is_blank(line)}
        if empty:
            log.info(
                "data.%s: %d pairs have an empty side, the first is %s; an empty source is "
                "translated as an empty line", part.name, len(empty), part.corpus.where(min(empty)),
            )  # fmt: skip

    def _tokenizer_folder(self) -> Path:
        return vocabulary_folder(
            self.cache, self.tokenizer_config, self._learned_from(), self._tagged()
        )

    def _first_tokenizer(self) -> Tokenizer:
        """The tokenizer of the first process: two nodes may have learned two of them."""
        rank, world = self._processes()
        found = None if rank else Tokenizer.load(self._tokenizer_folder())
        if world > 1:
            trainer: Any = self.trainer
            found = Tokenizer.from_text(trainer.strategy.broadcast(found and found.to_text()))
            if trainer.local_rank == 0:
                self._tokenise(found)
            trainer.strategy.barrier()
        assert found
        return found

    def _train_tokenizer(self) -> Tokenizer:
        texts, folder = self._learned_from(), self._tokenizer_folder()
        named = ", ".join(f"{corpus.key}: {corpus.spec}" for corpus, _ in texts)
        log.info("Training a tokenizer on %s", named)
        learn(folder, self.tokenizer_config, texts, self._tagged())
        return Tokenizer.load(folder)

    def _learned_from(self) -> list[tuple[Corpus, int | None]]:
        """What the vocabulary is learned from: corpora and how many of their pairs."""
        return [(part.corpus, part.limit) for part in (self._main(), *self._further())]

    def _tagged(self) -> list[str]:
        """The languages that have a tag."""
        return (
            sorted({self.tgt, *(corpus.tgt for corpus in self.extra_corpora)}) if self.tags else []
        )

    def _mixture(self) -> Mixture:
        names = [f"extra_corpora[{i}]" for i in range(len(self.extra_corpora))]
        tables = [self._table("train"), *(self._tables[name] for name in names)]
        return Mixture(tables, [corpus.share for corpus in self.extra_corpora], self.temperature)

    def _table(self, split: Split) -> TokenTable:
        if split not in self._tables:
            self._corpus(split)  # explains a missing key
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
        counts = Counts()
        for name in {*self._tables} - {"val", "test"}:
            counts.add(self._tables[name].counts)
        return counts

    def _processes(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)

    def _set_aside(self) -> int:
        # Lightning draws one batch ahead from a loader without a length, to see its end coming.
        fetcher = self.trainer.fit_loop._data_fetcher if self.trainer else None
        return len(getattr(fetcher, "batches", ()))
