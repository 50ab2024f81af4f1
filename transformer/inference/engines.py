"""Engines: what looks for translations. torch, with the house's own search, is the default."""

from collections.abc import Sequence
from importlib import import_module
from threading import Event
from typing import Literal, Protocol, get_args

import torch

from transformer.bundle import Bundle
from transformer.errors import UserError, nearest
from transformer.inference.batches import of_sources, pad
from transformer.inference.search import Hypothesis, SearchConfig, search
from transformer.kernels import Precision, find_precision
from transformer.kernels.process import count_workers
from transformer.kernels.tensors import transpose_weights
from transformer.models import Seq2Seq

MAX_TOKENS = 4096  # padded source tokens in a batch, where nothing else is said
EngineName = Literal["torch", "ctranslate2"]
#: Where the others are made, of a bundle: by functions of optional rooms, which are found by name.
HOMES = {"ctranslate2": "transformer.interop.ctranslate2_engine"}


class Engine(Protocol):
    """What a `Translator` searches with.

    device: where a generator for sampling must be. max_length: longest sequence that it can read
    or write, in tokens; None for any length.
    """

    device: torch.device
    max_length: int | None

    def search(
        self,
        ids: Sequence[list[int]],
        config: SearchConfig,
        prefix: Sequence[int] = (),
        generator: torch.Generator | None = None,
    ) -> list[list[Hypothesis]]:
        """The `n_best` hypotheses of each source, best first.

        Args:
            ids: of each source, EOS last.
            config: beam, length normalisation, sampling.
            prefix: target ids with which every hypothesis begins.
            generator: source of randomness of the sampling.

        Raises:
            UserError: for a setting that the engine does not have.
        """


class TorchEngine(Engine):
    """The house's own search, in batches; CPU cores work on a batch each.

    Args:
        model: in evaluation mode.
        max_tokens: padded source tokens in a batch.
    """

    def __init__(self, model: Seq2Seq, max_tokens: int) -> None:
        self.model, self.max_tokens = model, max_tokens
        self.max_length = model.max_length
        self.device = model.device

    def search(
        self,
        ids: Sequence[list[int]],
        config: SearchConfig,
        prefix: Sequence[int] = (),
        generator: torch.Generator | None = None,
    ) -> list[list[Hypothesis]]:
        def search_batch(rows: list[list[int]], stop: Event) -> list[list[Hypothesis]]:
            src, lengths = pad(rows, self.model.device)
            forced = [prefix] * len(rows)
            return search(self.model, src, lengths, config, forced, generator, stop)

        # Samples are drawn in a fixed order, so that they depend on the seed alone.
        workers = 1 if config.sample else count_workers(self.model.device)
        return of_sources(search_batch, ids, self.max_tokens, workers)


def make_engine(
    name: str, bundle: Bundle, device: str, precision: Precision, max_tokens: int = MAX_TOKENS
) -> Engine:
    """The engine of a name, for a bundle.

    Args:
        name: `torch`, or one of `HOMES`.
        bundle: what it translates with; torch takes its model over.
        device: as `find_device` gives it.
        precision: as for `Translator.load`.
        max_tokens: padded source tokens in a batch.

    Raises:
        UserError: when there is no such engine, its package is not installed, it cannot be this
            model, or it has no such device or precision.
    """
    if name not in get_args(EngineName):
        raise UserError(
            f"engine {name!r} is unknown{nearest(name, get_args(EngineName))}: there are "
            f"{', '.join(get_args(EngineName))}"
        )
    if name in HOMES:
        engine: Engine = import_module(HOMES[name]).make(bundle, device, precision, max_tokens)
        return engine
    model = bundle.model.to(device, getattr(torch, find_precision(device, precision)))
    transpose_weights(model)
    return TorchEngine(model, max_tokens)
