"""Odd requests to the service, whose application runs in this process."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from hypothesis import strategies as st

from .calling import bundle
from .odd_text import numbers, seldom, short_lines, texts


@cache
def client() -> Any:
    from fastapi.testclient import TestClient

    from transformer.serving.app import build
    from transformer.serving.options import Options
    from transformer.serving.service import load

    services = [load(bundle(tags), Options([])) for tags in (False, True)]
    services[1].name = "tags"
    return TestClient(build(services, max_body=50_000), raise_server_exceptions=False)


PATHS = ("/v1/translate", "/v1/translate", "/v1/attention", "/translate", "/translate", "/detect")
KEYS = (
    "text", "bundle", "to", "n_best", "beam", "alignments", "source", "target", "q", "format",
    "alternatives", "\ud800", "é\n",
)  # fmt: skip
anything: Any = (
    short_lines | st.lists(short_lines, max_size=3) | numbers | st.text(max_size=4)
    | st.sampled_from(["tags", "bundle", "en", "de", "auto", "text", 1, 2, 33, 2**70, [], {}, [[]]])
    | st.just(float("nan"))
)  # fmt: skip


def serve(data: Any, folder: Path) -> None:
    """The status says who is at fault, which is never the server; the error is one line."""
    path = data.draw(st.sampled_from(PATHS))
    right: dict[str, Any] = {
        "/v1/translate": {"text": data.draw(st.lists(short_lines, max_size=3) | short_lines)},
        "/v1/attention": {"source": data.draw(short_lines), "target": data.draw(short_lines)},
        "/translate": {"q": data.draw(texts(3) | short_lines), "source": "de", "target": "en"},
    }.get(path, {})
    more = data.draw(st.dictionaries(st.sampled_from(KEYS), anything, max_size=2))
    asked = {**right, **more} if seldom(data.draw, 60) else right
    body = json.dumps(asked).encode()
    how = data.draw(st.sampled_from(["json"] * 7 + ["form", "raw", "deep", "digits", "damaged"]))
    kind = "application/json"
    if how == "form":
        kind = "application/x-www-form-urlencoded"
        body = urlencode(asked, doseq=True, errors="replace").encode()
    elif how in ("raw", "deep", "digits", "damaged"):
        bodies = {"raw": data.draw(st.binary(max_size=30)), "damaged": body[:-3]}
        bodies |= {"deep": b"[" * 40_000, "digits": b'{"text": "a", "beam": ' + b"9" * 5000 + b"}"}
        body = bodies[how]
        kind = data.draw(st.sampled_from([kind, "application/x-www-form-urlencoded", "a", "\xe9"]))
    headers = {"content-type": kind.encode("latin-1")}
    answer = client().post(path, content=body, headers=headers)
    assert answer.status_code in (200, 400, 413, 415, 422, 501), (answer.status_code, answer.text)
    found = answer.json()
    if answer.status_code != 200:
        assert [*found] == ["error"] and len(found["error"].splitlines()) <= 1, found
        assert asked is not right or how != "json" or path == "/detect" or answer.status_code == 413
    elif path == "/v1/translate":
        text = asked["text"]
        assert len(found["translations"]) == (1 if isinstance(text, str) else len(text))
    elif path == "/translate" and how == "json":
        q, answers = asked["q"], found["translatedText"]
        assert isinstance(answers, str) == isinstance(q, str)
        pairs = [(q, answers)] if isinstance(q, str) else zip(q, answers, strict=True)
        assert all(b.count("\n") >= a.count("\n") for a, b in pairs)
