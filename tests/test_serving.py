"""The service: its answers are the translator's, whatever it is sent, until it is told to end."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import pytest
import torch
from benchmarks.serving import load, serving, soak
from fastapi.testclient import TestClient
from libretranslatepy import LibreTranslateAPI  # type: ignore[import-untyped]
from test_translator import ANSWERS, LINES, SEARCH, SHAPE, parts, save
from toys import ROOT

from transformer.bundle import read_config
from transformer.data.tokenizer import TokenizerConfig
from transformer.data.tokenizer_training import train_tokenizer
from transformer.inference.forced import attention_maps
from transformer.inference.translator import Translator
from transformer.serving.app import build
from transformer.serving.libretranslate import FORM, JSON
from transformer.serving.options import Options
from transformer.serving.server import GRACE
from transformer.serving.service import Service
from transformer.serving.service import load as load_service


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learned three sentences by heart, in `…/toy/bundle`."""
    folder = tmp_path_factory.mktemp("serving") / "toy" / "bundle"
    save(folder)
    return folder


@pytest.fixture(scope="module")
def client(bundle: Path) -> Iterator[TestClient]:
    with TestClient(build([load_service(str(bundle), Options([]))], max_body=100_000)) as client:
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


def test_another_engine_gives_the_same(client: TestClient, bundle: Path) -> None:
    asked = {"text": LINES, "alignments": True}
    expected = client.post("/v1/translate", json=asked).json()["translations"]
    service = load_service(str(bundle), Options([], engine="ctranslate2", precision="float32"))
    with TestClient(build([service], max_body=100_000)) as other:
        found = other.post("/v1/translate", json=asked).json()["translations"]
    for [one], [wanted] in zip(found, expected, strict=True):
        assert one["text"] == wanted["text"] and one["alignment"] == wanted["alignment"]
        assert one["log_prob"] == pytest.approx(wanted["log_prob"], abs=1e-3)


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
        (b'{"text": "a", "a\\nb": 1}', 400, "a b: Extra inputs are not permitted"),
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


@pytest.mark.parametrize("name", ["max_tokens", "max_waiting", "max_body"])
def test_limits_of_nothing_are_refused(name: str) -> None:
    none: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=f"--{name} is 0: it must be 1 or more"):
        Options([], **none)


def test_other_addresses_methods_and_forms(client: TestClient) -> None:
    assert refusal(client.get("/v2"))[0] == 404
    assert refusal(client.get("/v1/translate"))[0] == 405
    assert refusal(client.get("/static/../app.py"))[0] == 404
    assert refusal(client.post("/v1/translate", data={"text": "a"}))[0] == 400


# LibreTranslate's


@pytest.fixture(scope="module")
def several(bundle: Path) -> Iterator[TestClient]:
    """Beside the bundle a model with tags, from English and German into the other one."""
    toy = load_service(str(bundle), Options([]))
    tokenizer = train_tokenizer(
        TokenizerConfig(vocab_size=300), lambda: zip(LINES, LINES, strict=True), ["de", "en"]
    )
    model = SHAPE.build(tokenizer.src_vocab_size, tokenizer.tgt_vocab_size)
    config = {**toy.config, "src": "de", "tgt": "en"}
    tagged = Service("tagged", Translator(model, tokenizer, SEARCH, tgt="en"), config, Options([]))
    with TestClient(build([toy, tagged], max_body=100_000)) as client:
        yield client


@pytest.mark.parametrize("how", ["json", "data"])
def test_texts_as_libretranslate(client: TestClient, how: str) -> None:
    pair = {"source": "en", "target": "xx", "format": "text", "api_key": ""}

    def answer(q: Any, **more: int) -> Any:
        given: dict[str, Any] = {how: {"q": q, **pair, **more}}
        return client.post("/translate", **given).json()

    assert answer(LINES[0]) == {"translatedText": ANSWERS[0]}
    assert answer([LINES[0], LINES[1]]) == {"translatedText": [ANSWERS[0], ANSWERS[1]]}
    text = f"{LINES[0]}\r\n\n{LINES[1]}"
    assert answer(text) == {"translatedText": f"{ANSWERS[0]}\n\n{ANSWERS[1]}"}
    long = " ".join([LINES[2]] * 9)  # 60 tokens are the limit
    assert answer(long) == {"translatedText": " ".join([ANSWERS[2]] * 9)}
    found = answer([LINES[0], ""], alternatives=2)
    assert found["translatedText"] == [ANSWERS[0], ""]
    assert [len(others) for others in found["alternatives"]] == [2, 2]
    assert ANSWERS[0] not in found["alternatives"][0]


def test_languages_and_the_bundle_that_knows_them(several: TestClient) -> None:
    assert several.get("/languages").json() == [
        {"code": "en", "name": "English", "targets": ["xx", "de"]},
        {"code": "de", "name": "German", "targets": ["en"]},
    ]
    for source, target in (("de", "en"), ("en", "de")):
        asked = {"q": "a dog", "source": source, "target": target}
        found = several.post("/translate", json=asked).json()["translatedText"]
        other = {"text": "a dog", "bundle": "tagged", "to": target}
        answer = several.post("/v1/translate", json=other).json()
        assert (answer["bundle"], answer["translations"][0][0]["text"]) == ("tagged", found)
    found = several.post("/translate", data={"q": LINES[0], "source": "en", "target": "xx"}).json()
    assert found == {"translatedText": ANSWERS[0]}


@pytest.mark.parametrize(
    ("given", "status", "reason"),
    [
        ({"json": {"q": "a"}}, 400, "source: Field required"),
        ({"data": {"q": "a", "source": "en"}}, 400, "target: Field required"),
        ({"json": {"q": "a", "source": "auto", "target": "xx"}}, 400, "auto to xx is not transl"),
        ({"json": {"q": 1, "source": "en", "target": "xx"}}, 400, "q: Input should be a valid str"),
        ({"json": {"q": "a", "source": "en", "target": "xx", "format": "html"}}, 400, "format: In"),
        ({"content": b"{", "headers": {"content-type": JSON}}, 400, f"the body is not {JSON}"),
        ({"content": b"q=%ff", "headers": {"content-type": FORM}}, 400, "the body is not applica"),
        ({"content": b"\xff", "headers": {"content-type": FORM}}, 400, "the body is not applica"),
        ({"content": b"[" * 90_000, "headers": {"content-type": JSON}}, 400, "the body is not"),
        (
            {
                "content": b'{"q": "a", "source": "\\ud800", "target": "xx"}',
                "headers": {"content-type": JSON},
            },
            400,
            "\\ud800 to xx is not translated here",
        ),
        ({"files": {"q": b"a"}}, 415, "the content type is 'multipart/form-data': send"),
        ({"data": {"q": "a" * 200_000}}, 413, "the body is too long, the limit is 100,000 bytes"),
    ],
)
def test_what_libretranslate_would_refuse(
    client: TestClient, given: dict[str, Any], status: int, reason: str
) -> None:
    code, error = refusal(client.post("/translate", **given))
    assert (code, error[: len(reason)]) == (status, reason)


def test_detection_is_refused(client: TestClient) -> None:
    assert refusal(client.post("/detect", data={"q": "a"}))[0] == 501


# Attention


def test_attention_is_the_models(client: TestClient, bundle: Path) -> None:
    asked = {"source": LINES[0], "target": ANSWERS[0]}
    found = client.post("/v1/attention", json=asked).json()
    translator = Translator.load(bundle)
    weights, source, target = translator.attention(*asked.values())
    assert (found["source"], found["target"]) == (source, target)
    torch.testing.assert_close(torch.tensor(found["cross"]), weights, atol=1e-4, rtol=0)
    [pair] = translator.encode_pairs([LINES[0]], [ANSWERS[0]])
    for kind, expected in attention_maps(translator.model, pair).items():
        torch.testing.assert_close(torch.tensor(found[kind]), expected, atol=1e-4, rtol=0)
    assert max(len(str(weight)) for weight in found["cross"][0][0][0]) <= 6


def test_attention_that_is_refused(client: TestClient) -> None:
    long = {"source": LINES[0], "target": "a b " * 500}
    assert refusal(client.post("/v1/attention", json=long))[0] == 413
    assert refusal(client.post("/v1/attention", json={**long, "source": long["target"]}))[0] == 413
    assert refusal(client.post("/v1/attention", json={"source": "a"}))[0] == 400


# The description


def test_the_examples_of_the_guide_work(bundle: Path) -> None:
    toy = Translator(*parts(), SEARCH, tgt="en")
    config = {**read_config(bundle)[1], "src": "ko", "tgt": "en"}
    lines = (ROOT / "docs/serving.md").read_text(encoding="utf-8").splitlines()
    examples = [shlex.split(line)[2:] for line in lines if line.startswith("$ curl ")]
    assert len(examples) == 7
    with TestClient(build([Service("ko_en", toy, config, Options([]))], 100_000)) as client:
        for address, *options in examples:
            data = "&".join(options[1::2])
            kind = JSON if "--json" in options else FORM
            path, method = address.removeprefix("localhost:8000"), "POST" if data else "GET"
            headers = {"content-type": kind}
            answer = client.request(method, path, content=data.encode(), headers=headers)
            assert answer.status_code == 200, (address, answer.text)


def test_the_description_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/docs").text
    assert "http" not in page and "<script" not in page
    for path in ("/v1/translate", "/v1/attention", "/translate", "/languages", "/health"):
        assert path in page
    for name in re.findall('href="#(.+?)"', page):
        assert f'id="{name}"' in page
    assert "q: string | [string, …]" in page


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
    foreign = LibreTranslateAPI(address)
    assert foreign.translate(LINES[1], "en", "xx") == ANSWERS[1]
    assert foreign.languages() == [{"code": "en", "name": "English", "targets": ["xx"]}]
    with pytest.raises(HTTPError, match="501"):
        foreign.detect(LINES[1])
    start = time.monotonic()
    process.send_signal(signum)
    assert process.wait(timeout=60) == 0
    assert time.monotonic() - start < GRACE - 5  # it waited for nothing
    assert process.stderr and process.stderr.read() == ""


def test_what_was_begun_is_answered(server: tuple[subprocess.Popen[str], str]) -> None:
    process, address = server
    place = (urlsplit(address).hostname, urlsplit(address).port)
    body = json.dumps({"text": LINES}).encode()
    with socket.create_connection(place) as connection:
        head = f"content-type: {JSON}\r\ncontent-length: {len(body)}\r\nexpect: 100-continue"
        connection.sendall(f"POST /v1/translate HTTP/1.1\r\nhost: a\r\n{head}\r\n\r\n".encode())
        assert connection.recv(999).startswith(b"HTTP/1.1 100")  # the server waits for the body
        process.send_signal(signal.SIGTERM)
        with suppress(ConnectionRefusedError):
            while True:
                socket.create_connection(place).close()
        connection.sendall(body)
        response = HTTPResponse(connection)
        response.begin()
        found = json.load(response)["translations"]
    assert [line[0]["text"] for line in found] == ANSWERS
    assert process.wait(timeout=60) == 0


def test_nothing_is_said_of_clients_that_go(
    server: tuple[subprocess.Popen[str], str],
) -> None:
    process, address = server
    body = json.dumps({"text": LINES * 100, "beam": 8}).encode()
    head = f"host: a\r\ncontent-type: {JSON}\r\ncontent-length: {len(body)}\r\n\r\n"
    for _ in range(3):
        with socket.create_connection((urlsplit(address).hostname, urlsplit(address).port)) as one:
            one.sendall(f"POST /v1/translate HTTP/1.1\r\n{head}".encode() + body)
            time.sleep(0.1)
    assert ask(address, text=LINES[0])["translations"][0][0]["text"] == ANSWERS[0]
    process.terminate()
    assert process.wait(timeout=60) == 0
    assert process.stderr and process.stderr.read() == ""


@pytest.mark.slow
def test_memory_does_not_grow_under_load(bundle: Path) -> None:
    with serving(bundle, 1) as (pid, host):
        memory = soak(host, pid, LINES, seconds=8)
        assert len(load(host, LINES, clients=2, seconds=1).seconds) > 2
    assert memory[-1] - memory[len(memory) // 2] < 16 * 1024, memory


def test_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, refused: Any) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert "pip install 'transformer-recipes[serve]'" in refused("serve", "nothing")


def test_a_port_that_is_taken(refused: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"--port {port} cannot be listened at" in refused("serve", "nothing", "--port", port)
    assert "two bundles are named b: rename" in refused("serve", "a/b", "c/b/bundle")
    assert "port must be 0-65535" in refused("serve", "nothing", "--port", 70_000)
