"""The HTTP interface: this project's own, LibreTranslate's, the page, and errors as JSON."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from transformer import __version__
from transformer.errors import UserError, message
from transformer.serving import docs
from transformer.serving.libretranslate import LibreRequest, add_libretranslate
from transformer.serving.service import MOST_BEAMS, Service, pick

STATIC = Path(__file__).parent / "static"
DRAINED = 256  # times the limit is read of a body that is too long, so that its sender listens

Beams = Annotated[int, Field(ge=1, le=MOST_BEAMS)]


class Strict(BaseModel):
    """A request, whose keys are all known."""

    model_config = ConfigDict(extra="forbid")


class TranslateRequest(Strict):
    """Texts to translate, a line each, and how; what is left out is the bundle's."""

    text: str | list[str]
    bundle: str | None = None
    to: str | None = None
    n_best: Beams = 1
    beam: Beams | None = None
    alignments: bool = False


class TranslationAnswer(BaseModel):
    """A translation: its score is its log-probability (nats), divided by a length penalty."""

    text: str
    score: float
    log_prob: float
    flaw: Literal["loop", "empty", "blow_up"] | None
    alignment: list[tuple[int, int]] | None


class TranslateAnswer(BaseModel):
    """For each text its translations, best first."""

    bundle: str
    translations: list[list[TranslationAnswer]]


class AttentionRequest(Strict):
    """A source and its translation, a line each."""

    source: str
    target: str
    bundle: str | None = None
    to: str | None = None


class AttentionAnswer(BaseModel):
    """Pieces of both sides, and by layer and head how much each piece looked at each other one.

    `encoder` and `decoder`, self-attention, are null where the model has none.
    """

    source: list[str]
    target: list[str]
    encoder: list[list[list[list[float]]]] | None
    decoder: list[list[list[list[float]]]] | None
    cross: list[list[list[list[float]]]] | None


class Error(BaseModel):
    """What went wrong, in one line."""

    error: str


ERRORS: dict[int | str, dict[str, Any]] = {"4XX": {"model": Error}, "5XX": {"model": Error}}


def build(services: Sequence[Service], max_body: int) -> FastAPI:
    """The application.

    Args:
        services: the bundles, the first of which is asked where a request names none.
        max_body: bytes of the longest request.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        for service in services:
            service.queue.close()

    app = FastAPI(
        title="transformer", version=__version__, docs_url=None, redoc_url=None,
        lifespan=lifespan, responses=ERRORS,
    )  # fmt: skip
    app.add_middleware(BodyLimit, most=max_body)
    add_errors(app)
    add_v1(app, services)
    add_libretranslate(app, services)
    app.mount("/static", static := PageFiles(directory=STATIC, check_dir=False))

    @app.get("/docs", include_in_schema=False)
    async def described() -> HTMLResponse:
        return HTMLResponse(docs.page(app.openapi()))

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return await static.get_response("index.html", request.scope)

    # FastAPI describes only the requests that it reads itself.
    app.openapi()["components"]["schemas"]["LibreRequest"] = LibreRequest.model_json_schema()

    return app


def add_v1(app: FastAPI, services: Sequence[Service]) -> None:
    """The project's own interface, and /health."""

    @app.get("/health")
    async def health() -> JSONResponse:
        """Whether all bundles can be asked."""
        well = all(service.queue.thread.is_alive() for service in services)
        return JSONResponse({"status": "ok" if well else "failed"}, 200 if well else 503)

    @app.get("/v1/bundles")
    async def bundles() -> dict[str, list[dict[str, Any]]]:
        """The bundles that are served, and what they translate."""
        return {"bundles": [service.about() for service in services]}

    @app.post("/v1/translate", response_model=TranslateAnswer)
    async def translate(asked: TranslateRequest, request: Request) -> dict[str, Any]:
        """Translates texts."""
        service = pick(services, asked.bundle)
        lines = [asked.text] if isinstance(asked.text, str) else asked.text
        found = await service.translate(
            request, lines, asked.to, asked.n_best, asked.beam, asked.alignments
        )
        translations = [
            [{**one._asdict(), "flaw": one.verdict.flaw} for one in line] for line in found
        ]
        return {"bundle": service.name, "translations": translations}

    @app.post("/v1/attention", responses={200: {"model": AttentionAnswer}})
    async def attention(asked: AttentionRequest, request: Request) -> Response:
        """Shows what a model looks at while it writes a translation."""
        service = pick(services, asked.bundle)
        found = await service.attention(request, asked.source, asked.target, asked.to)
        return Response(found, media_type="application/json")


def add_errors(app: FastAPI) -> None:
    """Lets every error be JSON of one line."""

    @app.exception_handler(HTTPException)
    async def refused(_: Request, error: HTTPException) -> JSONResponse:
        text = error.detail.encode("utf-8", "backslashreplace").decode()  # it may quote half a pair
        return JSONResponse({"error": text}, error.status_code, error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        return JSONResponse({"error": explain(error.errors())}, 400)

    @app.exception_handler(UserError)
    async def at_fault(_: Request, error: UserError) -> JSONResponse:
        return JSONResponse({"error": message(error)}, 400)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse({"error": f"the server failed: {type(error).__name__}"}, 500)


def explain(errors: Sequence[Any]) -> str:
    """The first key that is wrong, and all that is wrong with it, in one line."""
    places = [[str(part) for part in error["loc"] if part != "body"] for error in errors]
    key = next((part for part in places[0] if not part.isdigit()), "body")
    reasons = [e["msg"] for e, place in zip(errors, places, strict=True) if place[:1] == [key]]
    text = f"{key}: {', or '.join(dict.fromkeys(reasons or [errors[0]['msg']]))}"
    return " ".join(text.split())  # a key may hold anything


class PageFiles(StaticFiles):
    """The page's files, of which a browser asks each time whether they are still the same.

    Else it may keep some of an older version for hours, and run them with the newer ones.
    """

    def file_response(self, *args: Any, **options: Any) -> Response:
        response = super().file_response(*args, **options)
        response.headers["Cache-Control"] = "no-cache"
        return response


class BodyLimit:
    """Refuses requests whose body is too long, however it is sent.

    Args:
        app: what answers the others.
        most: bytes.
    """

    def __init__(self, app: ASGIApp, most: int) -> None:
        self.app, self.most = app, most

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        read = 0

        async def limited() -> Message:
            nonlocal read
            received = await receive()
            read += len(received.get("body", b""))
            if read <= self.most:
                return received
            while received.get("more_body") and read <= self.most * DRAINED:
                received = await receive()
                read += len(received.get("body", b""))
            raise HTTPException(413, f"the body is too long, the limit is {self.most:,} bytes")

        await self.app(scope, limited, send)
