"""A bundle in service: what it is called, what it translates, and the queue in front of it."""

import asyncio
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
from transformer.inference.results import Translation
from transformer.inference.translator import Translator
from transformer.serving.options import Options
from transformer.serving.queue import Full, Queue, TooLarge

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
        ids = await run_in_threadpool(self.translator.encode, lines, to)
        for number, row in enumerate(ids, 1):
            if len(row) > (limit := self.translator.max_length):
                raise HTTPException(413, f"text {number}: {len(row)} tokens, the limit is {limit}")
        items = [(line, len(row) * beam) for line, row in zip(lines, ids, strict=True)]
        return await self._results(request, Search(to, n_best, beam, alignments), items)

    def _compute(self, how: Search, items: list[Any]) -> Sequence[Any]:
        return self.translator.n_best(items, **how._asdict())

    async def _results(
        self, request: Request, how: Search, items: list[tuple[Any, int]]
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
            raise HTTPException(GONE)
        return answers.result()
    finally:
        gone.cancel()
        answers.cancel()


def name_of(folder: str) -> str:
    """A bundle's name: its folder's, or of `run/bundle`, as `fit` writes it, that of the run."""
    path = Path(folder).resolve()
    return path.parent.name if path.name == "bundle" else path.name


def load(folder: str, options: Options) -> Service:
    """Loads a bundle; raises what `Translator.load` does."""
    translator = Translator.load(folder, options.device, max_length=options.max_length)
    return Service(name_of(folder), translator, read_config(Path(folder))[1], options)


def pick(services: Sequence[Service], name: str | None) -> Service:
    """The service of a name; the first one for none."""
    for service in services:
        if name in (None, service.name):
            return service
    raise UserError(f"bundle {name!r} is not here: there is {', '.join(s.name for s in services)}")
