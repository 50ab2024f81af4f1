"""LibreTranslate's interface, so that its clients work: /translate, /languages, /detect."""

import json
from collections.abc import Sequence
from typing import Annotated, Literal
from urllib.parse import parse_qs

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException

from transformer.serving.service import MOST_BEAMS, Service

JSON, FORM = TYPES = ("application/json", "application/x-www-form-urlencoded")
NAMES = {
    "ar": "Arabic", "bg": "Bulgarian", "bn": "Bengali", "ca": "Catalan", "cs": "Czech",
    "da": "Danish", "de": "German", "el": "Greek", "en": "English", "eo": "Esperanto",
    "es": "Spanish", "et": "Estonian", "fa": "Persian", "fi": "Finnish", "fr": "French",
    "he": "Hebrew", "hi": "Hindi", "hr": "Croatian", "hu": "Hungarian", "id": "Indonesian",
    "it": "Italian", "ja": "Japanese", "ko": "Korean", "lt": "Lithuanian", "lv": "Latvian",
    "nb": "Norwegian", "nl": "Dutch", "pl": "Polish", "pt": "Portuguese", "ro": "Romanian",
    "ru": "Russian", "sk": "Slovak", "sl": "Slovenian", "sq": "Albanian", "sr": "Serbian",
    "sv": "Swedish", "th": "Thai", "tl": "Tagalog", "tr": "Turkish", "uk": "Ukrainian",
    "ur": "Urdu", "vi": "Vietnamese", "zh": "Chinese",
}  # fmt: skip


class LibreRequest(BaseModel):
    """A text, or several; line breaks stay, and long lines are cut at the ends of sentences."""

    q: str | list[str]
    source: str
    target: str
    format: Literal["text"] = "text"
    alternatives: Annotated[int, Field(ge=0, lt=MOST_BEAMS)] = 0


class LibreAnswer(BaseModel):
    """The translation of each text, and other ones where they were asked for."""

    translatedText: str | list[str]
    alternatives: list[str] | list[list[str]] | None = None


class Language(BaseModel):
    """A source language, and what it is translated into."""

    code: str
    name: str
    targets: list[str]


def add_libretranslate(app: FastAPI, services: Sequence[Service]) -> None:
    """Adds the interface to an application."""
    content = {kind: {"schema": {"$ref": "#/components/schemas/LibreRequest"}} for kind in TYPES}
    body = {"requestBody": {"required": True, "content": content}}

    @app.post("/translate", openapi_extra=body, response_model_exclude_none=True)
    async def translate(request: Request) -> LibreAnswer:
        """Translates texts, as LibreTranslate does."""
        asked = await read(request)
        service = choose(services, asked.source, asked.target)
        texts = [asked.q] if isinstance(asked.q, str) else asked.q
        found = await service.texts(request, texts, asked.target, asked.alternatives + 1)
        best, others = [text[0] for text in found], [text[1:] for text in found]
        if isinstance(asked.q, str):
            return LibreAnswer(
                translatedText=best[0], alternatives=others[0] if asked.alternatives else None
            )
        return LibreAnswer(translatedText=best, alternatives=others if asked.alternatives else None)

    @app.get("/languages")
    async def languages() -> list[Language]:
        """The source languages, and what each is translated into."""
        targets: dict[str, list[str]] = {}
        for source, target in pairs(services):
            targets.setdefault(source, []).append(target)
        return [
            Language(code=code, name=NAMES.get(code, code), targets=list(dict.fromkeys(found)))
            for code, found in targets.items()
        ]

    @app.post("/detect")
    async def detect() -> None:
        """Is refused: no language is detected here."""
        raise HTTPException(501, "languages are not detected here: say the source language")


async def read(request: Request) -> LibreRequest:
    """Reads a form or JSON.

    Raises:
        HTTPException: when it is neither.
        RequestValidationError: when a key is missing or wrong.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await request.body()
    try:
        if kind == JSON:
            asked = json.loads(body)
        elif kind == FORM:
            form = parse_qs(body.decode(), keep_blank_values=True, errors="strict")
            asked = {key: values if values[1:] else values[0] for key, values in form.items()}
        else:
            raise HTTPException(415, f"the content type is {kind!r}: send {JSON} or {FORM}")
    except (ValueError, RecursionError):
        raise HTTPException(400, f"the body is not {kind}") from None
    try:
        return LibreRequest.model_validate(asked)
    except ValidationError as error:
        raise RequestValidationError(error.errors()) from None


def pairs(services: Sequence[Service]) -> list[tuple[str, str]]:
    """Source and target languages that go together."""
    return [
        (source, target)
        for service in services
        for source in service.sources
        for target in service.targets
        if source != target
    ]


def choose(services: Sequence[Service], source: str, target: str) -> Service:
    """The first service that translates between two languages.

    Raises:
        HTTPException: when none does.
    """
    for service in services:
        if (source, target) in pairs([service]):
            return service
    known = ", ".join(f"{a} to {b}" for a, b in dict.fromkeys(pairs(services)))
    detected = "; languages are not detected here" if source == "auto" else ""
    raise HTTPException(400, f"{source} to {target} is not translated here, but {known}{detected}")
