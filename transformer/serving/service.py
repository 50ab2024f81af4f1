"""A bundle in service: what it is called, what it translates, and the queue in front of it."""

import asyncio
import json
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request

from transformer.bundle import read_config
from transformer.errors import UserError, message
from transformer.inference.batches import Pair
from transformer.inference.forced import KINDS, attention_maps
from transformer.inference.lines import split
from transformer.inference.results import Translation
from transformer.inference.translator import Translator
from transformer.serving.options import Options
from transformer.serving.queue import Full, Queue, TooLarge

MOST_BEAMS = 32
MOST_WEIGHTS = 1_000_000  # of attention in an answer, some 7 bytes each
GONE = 499  # nobody reads it


class Search(NamedTuple):
    """What lines must share to be decoded together."""

    to: str | None
    n_best: int
    beam: int
    alignments: bool


class Service:
    """A bundle in service.

    Args:
        name: by which requests ask for it.
        translator: of the bundle.
        config: the bundle's `config.json`.
        options: what is refused.
    """

    def __init__(
        self, name: str, translator: Translator, config: dict[str, Any], options: Options
    ) -> None:
        self.name, self.translator, self.config = name, translator, config
        self.targets = list(translator.tokenizer.tags) or [config["tgt"]]
        # A model whose source is one of several targets was trained in several directions.
        both = config["src"] in self.targets
        self.sources = self.targets if both else [config["src"]]
        self.queue = Queue(self._compute, options.max_tokens, options.max_waiting)

    def about(self) -> dict[str, Any]:
        """What a client is told of it."""
        return {
            "name": self.name, "src": self.config["src"], "tgt": self.config["tgt"],
            "targets": self.targets, "architecture": self.config["architecture"],
            "max_length": self.translator.max_length,
        }  # fmt: skip

    async def translate(
        self,
        request: Request,
        lines: Sequence[str],
        to: str | None = None,
        n_best: int = 1,
        beam: int | None = None,
        alignments: bool = False,
    ) -> list[list[Translation]]:
        """The `n_best` translations of each line.

        Raises:
            UserError: when the search or `to` is not possible.
            HTTPException: when a line is too long, no room is left, or decoding fails.
        """
        config = self.translator.config
        beam = beam or max(config.beam, n_best)
        replace(config, n_best=n_best, beam=beam)  # refuses what is not possible
        ids = await run_in_threadpool(self._encode, lines, to)
        items = [(line, len(row) * beam) for line, row in zip(lines, ids, strict=True)]
        return await self._results(request, Search(to, n_best, beam, alignments), items)

    async def texts(
        self, request: Request, texts: Sequence[str], to: str, n_best: int
    ) -> list[list[str]]:
        """The `n_best` translations of texts of several lines, each cut where it is too long."""
        parts = await run_in_threadpool(self._parts, texts, to)
        flat = [part for lines in parts for line in lines for part in line]
        found = iter(await self.translate(request, flat, to, n_best))
        hypotheses = [[[next(found) for _ in line] for line in lines] for lines in parts]
        return [[_joined(lines, number) for number in range(n_best)] for lines in hypotheses]

    async def attention(
        self, request: Request, source: str, target: str, to: str | None = None
    ) -> bytes:
        """Attention of a sentence pair, as JSON; raises what `translate` does."""
        pair = await run_in_threadpool(self._encode_pair, source, target, to)
        config, (src, tgt) = self.config["network"], map(len, pair)
        heads = config.get("num_layers", 1) * config.get("num_heads", 1)
        if heads * (src * src + tgt * tgt + src * tgt) > MOST_WEIGHTS:
            raise HTTPException(
                413, f"{src} and {tgt} tokens: beyond the limit of {MOST_WEIGHTS:,} weights"
            )
        [found] = await self._results(request, None, [(pair, src + tgt)])
        return bytes(found)

    def _encode(self, lines: Sequence[str], to: str | None) -> list[list[int]]:
        """The ids of lines that are short enough."""
        ids, limit = self.translator.encode(lines, to), self.translator.max_length
        for number, row in enumerate(ids, 1):
            if len(row) > limit:
                raise HTTPException(413, f"text {number}: {len(row)} tokens, the limit is {limit}")
        return ids

    def _encode_pair(self, source: str, target: str, to: str | None) -> Pair:
        [src] = self._encode([source], to)
        [(_, tgt)] = self.translator.encode_pairs([source], [target], to)
        return src, tgt

    def _parts(self, texts: Sequence[str], to: str) -> list[list[list[str]]]:
        """Each text as lines, each line as parts that are short enough."""

        def fits(part: str) -> bool:
            return len(self.translator.encode([part], to)[0]) <= self.translator.max_length

        return [[split(line, fits) for line in text.split("\n")] for text in texts]

    def _compute(self, how: Search | None, items: list[Any]) -> Sequence[Any]:
        if how is None:
            return [self._attention(pair) for pair in items]
        return self.translator.n_best(items, **how._asdict())

    def _attention(self, pair: Pair) -> bytes:
        pieces = self.translator.tokenizer.pieces
        found = attention_maps(self.translator.model, pair)
        weights = {kind: found[kind].cpu().double().round(decimals=4).tolist() for kind in found}
        answer = {"source": pieces("src", pair[0]), "target": pieces("tgt", pair[1])}
        empty = dict.fromkeys(KINDS)
        return json.dumps({**answer, **empty, **weights}, ensure_ascii=False).encode()

    async def _results(
        self, request: Request, how: Search | None, items: list[tuple[Any, int]]
    ) -> list[Any]:
        try:
            return await results(request, self.queue.put(how, items))
        except TooLarge as error:
            raise HTTPException(413, f"source tokens times beams: {error}: send less") from None
        except Full as error:
            seconds = {"Retry-After": str(error.seconds)}
            raise HTTPException(429, str(error), seconds) from None
        except HTTPException:
            raise
        except Exception as error:
            raise HTTPException(500, f"decoding failed: {message(error)}") from None


def _joined(lines: Sequence[Sequence[Sequence[Translation]]], number: int) -> str:
    """A text made of the hypotheses of one rank, of the last where there are fewer."""
    return "\n".join(
        " ".join(found[min(number, len(found) - 1)].text for found in line) for line in lines
    )


async def results(request: Request, futures: Sequence[Future[Any]]) -> list[Any]:
    """Waits for results; when the client goes, they are cancelled.

    Args:
        request: whose body has been read.
        futures: of the results.
    """
    answers = asyncio.gather(*map(asyncio.wrap_future, futures))
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait((answers, gone), return_when=asyncio.FIRST_COMPLETED)
        if not answers.done():
            raise HTTPException(GONE, "the client has gone")
        return answers.result()
    finally:
        gone.cancel()
        if answers.cancel():  # else asyncio would say that nobody asked what came of them
            answers.add_done_callback(lambda cancelled: cancelled.exception())


def name_of(folder: str) -> str:
    """A bundle's name: its folder's, or of `run/bundle`, as `fit` writes it, that of the run."""
    path = Path(folder).resolve()
    return path.parent.name if path.name == "bundle" else path.name


def load(folder: str, options: Options) -> Service:
    """Loads a bundle, and translates a word, which the first request need not wait for.

    Raises:
        UserError: when `Translator.load` does, or the model's output is not a number.
    """
    translator = Translator.load(
        folder, options.device, options.precision,
        max_length=options.max_length, engine=options.engine,
    )  # fmt: skip
    service = Service(name_of(folder), translator, read_config(folder)[1], options)
    service.queue.put(Search(None, 1, translator.config.beam, False), [("a", 1)])[0].result()
    return service


def pick(services: Sequence[Service], name: str | None) -> Service:
    """The service of a name; the first one for none."""
    for service in services:
        if name in (None, service.name):
            return service
    raise UserError(f"bundle {name!r} is not here: there is {', '.join(s.name for s in services)}")
