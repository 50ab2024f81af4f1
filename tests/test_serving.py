"""The service: its answers are the translator's, whatever it is sent, until it is told to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from fastapi.testclient import TestClient
from test_translator import ANSWERS, LINES, save
from toys import ROOT

from transformer.inference.translator import Translator
from transformer.serving.app import build
from transformer.serving.options import Options
from transformer.serving.service import load


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned three sentences by heart, in `…/toy/bundle`."""
    folder = tmp_path_factory.mktemp("serving") / "toy" / "bundle"
    save(folder)
    return folder


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[TestClient]:
    with TestClient(build([load(str(bundle), Options([]))], max_body=100_000)) as client:
        yield client


def refusal(response: Any) -> tuple[int, str]:
    """The status and the one line of error."""
    assert list(response.json()) == ["error"]
    assert "\n" not in response.json()["error"]
    return response.status_code, response.json()["error"]


def test_bundles_and_health(client: TestClient) -> None:
    assert client.get("/health").json() == {"status": "ok"}
    assert client.get("/v1/bundles").json() == {"bundles": [{
        "name": "toy", "src": "en", "tgt": "xx", "targets": ["xx"],
        "architecture": "transformer", "max_length": 60,
    }]}  # fmt: skip


@pytest.mark.parametrize("alignments", [False, True])
@pytest.mark.parametrize("given", [{}, {"n_best": 2}, {"beam": 1}, {"n_best": 5}])
def test_translations_are_the_translators(
    client: TestClient, bundle: Path, given: dict[str, Any], alignments: bool
) -> None:
    lines = [LINES[0], "", " <b>a\x00\n</s>", LINES[2]]
    asked = {"text": lines, "alignments": alignments, **given}
    answer = client.post("/v1/translate", json=asked).json()
    search = {"n_best": 1, **({"beam": 5} if given == {"n_best": 5} else {}), **given}
    expected = Translator.load(bundle).n_best(lines, alignments=alignments, **search)
    assert answer["bundle"] == "toy"
    for found, wanted in zip(answer["translations"], expected, strict=True):
        for one, other in zip(found, wanted, strict=True):
            pairs = None if other.alignment is None else [list(pair) for pair in other.alignment]
            assert one == {
                "text": other.text, "flaw": other.verdict.flaw, "alignment": pairs,
                "score": pytest.approx(other.score, abs=1e-4),
                "log_prob": pytest.approx(other.log_prob, abs=1e-4),
            }  # fmt: skip


def test_a_text_is_a_list_of_one(client: TestClient) -> None:
    for text in (LINES[1], [LINES[1]]):
        answer = client.post("/v1/translate", json={"text": text, "bundle": "toy", "to": "xx"})
        assert [[one["text"] for one in line] for line in answer.json()["translations"]] == [
            [ANSWERS[1]]
        ]


@pytest.mark.parametrize(
    ("body", "status", "reason"),
    [
        (b"{", 400, "body: JSON decode error"),
        (b"", 400, "body: Field required"),
        (b"[]", 400, "body: Input should be a valid dictionary"),
        (b"\xff", 400, "There was an error parsing the body"),
        (b'{"text": ' + b"[" * 90_000, 400, "There was an error parsing the body"),
        (b'{"text": 1}', 400, "text: Input should be a valid string, or Input should be a valid l"),
        (b'{"text": ["a", null]}', 400, "text: Input should be a valid string"),
        (b'{"texts": "a"}', 400, "text: Field required"),
        (b'{"text": "a", "bean": 1}', 400, "bean: Extra inputs are not permitted"),
        (b'{"text": "a", "beam": 0}', 400, "beam: Input should be greater than or equal to 1"),
        (b'{"text": "a", "beam": 99}', 400, "beam: Input should be less than or equal to 32"),
        (b'{"text": "a", "beam": NaN}', 400, "beam: Input should be a finite number"),
        (b'{"text": "a", "beam": 2, "n_best": 3}', 400, "n_best is 3 with beam 2"),
        (b'{"text": "a", "to": "de"}', 400, "this model translates into xx alone"),
        (b'{"text": "a", "bundle": "b"}', 400, "bundle 'b' is not here: there is toy"),
        (b'{"text": "\\ud800"}', 400, "source line 1: not UTF-8"),
        (json.dumps({"text": ["a", "a b " * 99]}).encode(), 413, "text 2: 299 tokens, the limit"),
        (b'{"text": "' + b"a" * 10_000_000, 413, "the body is too long, the limit is 100,000 byte"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(
    client: TestClient, body: bytes, status: int, reason: str
) -> None:
    headers = {"content-type": "application/json"}
    code, error = refusal(client.post("/v1/translate", content=body, headers=headers))
    assert (code, error[: len(reason)]) == (status, reason)
    assert client.post("/v1/translate", json={"text": LINES[0]}).status_code == 200


def test_other_addresses_methods_and_forms(client: TestClient) -> None:
    assert refusal(client.get("/v2"))[0] == 404
    assert refusal(client.get("/v1/translate"))[0] == 405
    assert refusal(client.get("/static/../app.py"))[0] == 404
    assert refusal(client.post("/v1/translate", data={"text": "a"}))[0] == 400


# The process


@pytest.fixture
def server(bundle: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that serves the bundle, and its address."""
    command = [sys.executable, "-m", "transformer", "serve", str(bundle), "--port", "0"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True)
    assert process.stderr
    with process:
        yield process, process.stderr.readline().split()[-1]
        process.kill()


def ask(address: str, **asked: Any) -> dict[str, Any]:
    """Translates."""
    headers = {"content-type": "application/json"}
    request = Request(f"{address}v1/translate", json.dumps(asked).encode(), headers)
    with urlopen(request, timeout=60) as response:
        answer: dict[str, Any] = json.load(response)
    return answer


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_the_process_answers_and_ends(
    server: tuple[subprocess.Popen[str], str], signum: signal.Signals
) -> None:
    process, address = server
    assert address.startswith("http://127.0.0.1:")
    assert ask(address, text=LINES[0])["translations"][0][0]["text"] == ANSWERS[0]
    start = time.monotonic()
    process.send_signal(signum)
    assert process.wait(timeout=60) == 0
    assert time.monotonic() - start < 10
    assert process.stderr and process.stderr.read() == ""


def test_a_port_that_is_taken(server: tuple[subprocess.Popen[str], str], refused: Any) -> None:
    port = server[1].rstrip("/").rpartition(":")[2]
    assert f"--port {port} cannot be listened at" in refused("serve", "nothing", "--port", port)
    assert "port must be 0-65535" in refused("serve", "nothing", "--port", 70_000)
