"""The vocabulary of a run: learned once from its training text, and kept in the cache."""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from transformer.data.cache import digest
from transformer.data.corpus import Corpus, Pair
from transformer.data.tokenizer import Lines, Tokenizer, TokenizerConfig
from transformer.errors import UserError

log = logging.getLogger(__name__)
#: Corpora and how many of their pairs are read, None for all.
Texts = Sequence[tuple[Corpus, int | None]]


def vocabulary_folder(
    cache: Path, config: TokenizerConfig, texts: Texts, languages: list[str]
) -> Path:
    """Where a vocabulary is kept: the name changes with all that its content does.

    Args:
        cache: Folder of all of them.
        config: How it is learned.
        texts: What it is learned from.
        languages: Those that have a tag.
    """
    about: list[Any] = []
    for corpus, limit in texts:
        about += [type(corpus).__name__, corpus.src, corpus.tgt, corpus.identity(), limit]
    return cache / f"tokenizer-{digest([*about, *languages, vars(config)])}"


def saved(folder: Path) -> Tokenizer | None:
    """The vocabulary of a folder; None where there is none, or (which is said) a damaged one."""
    if not folder.is_dir():
        return None
    try:
        return Tokenizer.load(folder)
    except ValueError as error:
        log.info("%s is damaged and made again (%s)", folder, " ".join(str(error).split()))
        shutil.rmtree(folder)
        return None


def learn(folder: Path, config: TokenizerConfig, texts: Texts, languages: list[str]) -> None:
    """Learns a vocabulary and writes it into a folder, which appears when it is whole.

    Args:
        folder: As `vocabulary_folder` names it.
        config: How it is learned.
        texts: What it is learned from.
        languages: Those that have a tag.
    """
    tokenizer = Tokenizer.train(config, *_lines(texts, config.shared), languages)
    temporary = folder.with_name(f"{uuid.uuid4().hex}.part")
    try:
        tokenizer.save(temporary)
        temporary.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another run was faster
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_tags(tokenizer: Tokenizer, tags: bool, targets: dict[str, str]) -> None:
    """Compares a recipe with a vocabulary that may have come with a model.

    Args:
        tokenizer: The vocabulary.
        tags: Whether the recipe asks for tags.
        targets: Key of the recipe -> the target language that it names.

    Raises:
        ValueError: The vocabulary has no tags, or none of a target language.
    """
    if tags and not tokenizer.tags:
        raise UserError(
            "data.tags: true, but the vocabulary that came with the model has no tags; set it to "
            "false, or train a new model"
        )
    for key, language in targets.items():
        try:
            tokenizer.encode_src([], language)
        except ValueError as error:
            raise UserError(f"{key}: {error}") from None


def _lines(texts: Texts, shared: bool) -> tuple[Lines, Lines]:
    def pairs() -> Iterator[Pair]:
        return chain.from_iterable(corpus.pairs(limit=limit) for corpus, limit in texts)

    if shared:  # which side a line is of does not matter: read once
        return lambda: chain.from_iterable(pairs()), lambda: ()
    return lambda: (pair.src for pair in pairs()), lambda: (pair.tgt for pair in pairs())
