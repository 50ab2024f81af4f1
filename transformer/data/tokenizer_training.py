"""Trains a tokenizer on the text of a run, once: from then on it is read from the cache."""

import json
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import Any

import tokenizers as hf
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from transformer.data.background import Fail, in_background
from transformer.data.corpus import Corpus, Pair
from transformer.data.dataset import cached, json_digest
from transformer.data.progress import shown
from transformer.data.tokenizer import (
    EOS,
    SHARED_FILE,
    SPECIALS,
    SRC_FILE,
    TGT_FILE,
    UNK,
    Tokenizer,
    TokenizerConfig,
    is_blank,
)
from transformer.errors import UserError
from transformer.writing import write

# Learning BPE takes time that grows with the square of what no space divides: from words of 2,000
# letters it is 2.5 times as long as from the same text in words of 500, of 10,000 letters 9 times.
# Spaces in a row are such a word, too.
LONGEST_WORD = 2000  # characters
# More pairs add memory and time, for the words that are new in them, and hardly a piece.
LEARNED_FROM = 500_000  # pairs
log = logging.getLogger(__name__)


def open_tokenizer(
    cache: Path, config: TokenizerConfig, corpora: Sequence[Corpus], languages: Sequence[str]
) -> Tokenizer:
    """Reads the tokenizer of a training text from the cache; learns it unless it is there."""

    def read(path: Path) -> Tokenizer:
        return Tokenizer(json.loads(path.read_text(encoding="utf-8")))

    def learn(path: Path) -> None:
        log.info("Training a tokenizer on %s", ", ".join(map(str, corpora)))
        tokenizer = train_tokenizer(config, partial(_sample, corpora), languages)
        write(path, json.dumps(tokenizer.to_text()))

    return cached(tokenizer_path(cache, config, corpora, languages), read, learn)


def _sample(corpora: Sequence[Corpus]) -> Iterator[Pair]:
    """At most `LEARNED_FROM` pairs: every n-th, or the first of a stream without a size."""
    pairs = chain.from_iterable(corpus.pairs() for corpus in corpora)
    known = [size for corpus in corpora if (size := corpus.size()) is not None]
    if len(known) < len(corpora):
        return islice(shown(pairs, None, "learning the vocabulary"), LEARNED_FROM)
    total = sum(known)
    step = max(1, -(-total // LEARNED_FROM))
    if step > 1:
        log.info("Of %d pairs the vocabulary is learned from one in %d", total, step)
    return islice(shown(pairs, total, "learning the vocabulary"), 0, None, step)


def tokenizer_path(
    cache: Path, config: TokenizerConfig, corpora: Sequence[Corpus], languages: Sequence[str]
) -> Path:
    """Names the file of a tokenizer: the name changes with all that its content does."""
    about = [*chain.from_iterable(corpus.content() for corpus in corpora), *languages]
    return cache / f"tokenizer-{json_digest([*about, vars(config)])}.json"


def train_tokenizer(
    config: TokenizerConfig,
    pairs: Callable[[], Iterable[tuple[str, str]]],
    languages: Sequence[str] = (),
) -> Tokenizer:
    """Learns the vocabulary or vocabularies.

    BPE and words give the same vocabulary every time. Unigram training in the library is not
    deterministic: the order and the scores of its pieces vary a little from run to run.

    Args:
        config: What to train.
        pairs: Gives a fresh iterator over source and target lines each time it is called.
        languages: Target languages that a tag tells apart.

    Raises:
        UserError: The configuration cannot be trained.
    """
    config.check(len(languages))
    tags = [f"<2{language}>" for language in sorted(languages)]
    if config.shared:  # which side a line is of does not matter: read once
        shared = _train(config, chain.from_iterable(pairs()), "shared", tags)
        return Tokenizer({SHARED_FILE: shared})
    src = _train(config, (src for src, _ in pairs()), "source", tags)
    tgt = _train(config, (tgt for _, tgt in pairs()), "target", [])
    return Tokenizer({SRC_FILE: src, TGT_FILE: tgt})


def _train(config: TokenizerConfig, lines: Iterable[str], side: str, tags: list[str]) -> str:
    """Learns one vocabulary, called `side` in messages, and returns it as JSON text."""
    specials = [*SPECIALS, *tags]
    tokenizer, trainer = _untrained(config, specials)
    lower = [normalizers.Lowercase()] if config.lowercase else []
    tokenizer.normalizer = normalizers.Sequence([*lower, normalizers.NFC()])
    splitter = tokenizer.pre_tokenizer
    if config.kind == "word":  # one that spells a special token would take its place
        spelled = hf.Regex(f"^(?:{'|'.join(map(re.escape, specials))})$")
        dropped = pre_tokenizers.Split(spelled, "removed")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([splitter, dropped])
    _feed(tokenizer, trainer, _without_long_words(lines, side))
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {SPECIALS[EOS]}", special_tokens=[(SPECIALS[EOS], EOS)]
    )
    size, least = tokenizer.get_vocab_size(), config.min_frequency
    if size == len(specials):
        raise UserError(
            f"data.tokenizer.min_frequency: no word of the {side} text occurs {least} times: lower "
            "it"
        )
    if size < config.vocab_size:
        log.info(
            "The %s vocabulary has %d entries, fewer than data.tokenizer.vocab_size = %d: "
            "the text has no more that occur %d times.", side, size, config.vocab_size, least,
        )  # fmt: skip
    return str(tokenizer.to_str(pretty=True))


def _untrained(config: TokenizerConfig, specials: list[str]) -> tuple[hf.Tokenizer, Any]:
    options: dict[str, Any] = {
        "vocab_size": config.vocab_size, "special_tokens": specials, "show_progress": False
    }  # fmt: skip
    if config.kind == "word":
        tokenizer = hf.Tokenizer(models.WordLevel(unk_token=SPECIALS[UNK]))
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return tokenizer, trainers.WordLevelTrainer(min_frequency=config.min_frequency, **options)
    tokenizer = hf.Tokenizer(models.BPE() if config.kind == "bpe" else models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    options["initial_alphabet"] = sorted(pre_tokenizers.ByteLevel.alphabet())
    if config.kind == "bpe":
        return tokenizer, trainers.BpeTrainer(min_frequency=config.min_frequency, **options)
    return tokenizer, trainers.UnigramTrainer(unk_token=SPECIALS[UNK], **options)


def _without_long_words(lines: Iterable[str], side: str) -> Iterator[str]:
    left_out, has_words = 0, False
    for line in lines:
        if len(line) > LONGEST_WORD:
            words = line.split()
            short = [word for word in words if len(word) <= LONGEST_WORD]
            left_out += len(words) - len(short)
            line = " ".join(short)
        has_words = has_words or not is_blank(line)
        yield line
    if left_out:
        log.info(
            "The %s vocabulary was learned without %d words of more than %d characters",
            side, left_out, LONGEST_WORD,
        )  # fmt: skip
    if not has_words:
        raise UserError(
            f"data.tokenizer: the {side} text has no word of up to {LONGEST_WORD} characters to "
            "learn from; look into data.train"
        )


def _feed(tokenizer: hf.Tokenizer, trainer: Any, lines: Iterator[str]) -> None:
    def lists(fail: Fail) -> Iterator[list[str]]:
        try:
            # A list of lines crosses into the library faster than the same lines one by one.
            while some := list(islice(lines, 1000)):
                yield some
        except BaseException as error:
            fail(error)  # the library would learn from what it has before it says so
            raise

    in_background(lambda fail: tokenizer.train_from_iterator(lists(fail), trainer))
