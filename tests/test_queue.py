"""The queue in front of a model: one batch of what arrives together, and nothing for nobody."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from fastapi.testclient import TestClient
from test_serving import bundle as bundle  # a fixture
from test_translator import ANSWERS, LINES, broken

from transformer.serving import queue
from transformer.serving.app import build
from transformer.serving.options import Options
from transformer.serving.queue import Full, Queue, TooLarge
from transformer.serving.service import Service, load


class Work:
    """Computes capitals; keeps the batches, and waits with each until it may go on."""

    def __init__(self) -> None:
        self.batches: list[tuple[Any, list[str]]] = []
        self.begun, self.go_on = Event(), Event()

    def __call__(self, how: Any, items: list[str]) -> Sequence[str]:
        self.batches.append((how, items))
        self.begun.set()
        assert self.go_on.wait(60)
        if how == "fail":
            raise RuntimeError("out of order")
        return [item.upper() for item in items]


@pytest.fixture
def work() -> Iterator[Work]:
    work = Work()
    yield work
    work.go_on.set()


@pytest.fixture
def busy(work: Work) -> Iterator[Queue]:
    """A queue that computes an item already, with room for 10 more, 4 in a batch."""
    queue = Queue(work, batch=4, most=10)
    queue.put("first", [("first", 1)])
    assert work.begun.wait(60)
    yield queue
    work.go_on.set()
    queue.close()


def test_what_arrives_together_is_one_batch(work: Work, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "TOGETHER", 60.0)
    work.go_on.set()
    together = Queue(work, batch=3, most=10)
    futures = together.put(None, [("a", 1)])
    time.sleep(0.05)
    futures += [future for text in "bc" for future in together.put(None, [(text, 1)])]
    assert [future.result(60) for future in futures] == ["A", "B", "C"]
    assert work.batches == [(None, ["a", "b", "c"])]
    together.close()


def test_batches_share_their_settings_and_have_a_limit(busy: Queue, work: Work) -> None:
    given = [
        ("x", "a", 2),
        ("y", "b", 1),
        ("x", "c", 1),
        ("x", "d", 2),
        ("x", "e", 1),
        ("y", "f", 3),
    ]
    futures = [busy.put(how, [(item, weight)])[0] for how, item, weight in given]
    work.go_on.set()
    assert [future.result(60) for future in futures] == list("ABCDEF")
    assert work.batches[1:] == [("x", ["a", "c", "e"]), ("y", ["b", "f"]), ("x", ["d"])]


def test_one_item_above_the_limit_is_a_batch(busy: Queue, work: Work) -> None:
    futures = [*busy.put("x", [("a", 9)]), *busy.put("x", [("b", 1)])]
    work.go_on.set()
    assert [future.result(60) for future in futures] == ["A", "B"]
    assert work.batches[1:] == [("x", ["a"]), ("x", ["b"])]


def test_what_is_given_up_is_not_computed(busy: Queue, work: Work) -> None:
    given_up, wanted = busy.put("x", [("a", 1), ("b", 1)])
    given_up.cancel()
    work.go_on.set()
    assert wanted.result(60) == "B"
    assert work.batches[1:] == [("x", ["b"])]


def test_a_full_queue_says_so(busy: Queue, work: Work) -> None:
    futures = busy.put("x", [("a", 6), ("b", 4)])
    with pytest.raises(Full, match="come again in 1 s$") as caught:
        busy.put("x", [("c", 1)])
    assert caught.value.seconds == 1
    with pytest.raises(TooLarge, match="^11, the limit is 10$"):
        busy.put("x", [("c", 11)])
    busy.rate = 2
    with pytest.raises(Full, match="come again in 5 s$"):
        busy.put("x", [("c", 1)])
    futures[0].cancel()
    last = busy.put("x", [("c", 1)])[0]
    work.go_on.set()
    assert last.result(60) == "C"


def test_an_error_is_that_of_its_batch(
    busy: Queue, work: Work, caplog: pytest.LogCaptureFixture
) -> None:
    (wrong,), (right,) = busy.put("fail", [("a", 1)]), busy.put("x", [("b", 1)])
    work.go_on.set()
    with pytest.raises(RuntimeError, match="^out of order$"):
        wrong.result(60)
    assert right.result(60) == "B"
    assert "Traceback" in caplog.text  # for who looks after the server


def test_a_closed_queue_ends_its_thread(busy: Queue, work: Work) -> None:
    [waiting] = busy.put("x", [("a", 1)])
    work.go_on.set()
    busy.close()
    assert not busy.thread.is_alive()
    with pytest.raises(CancelledError):
        waiting.result(60)


# In the service


def service(bundle: Path, **options: Any) -> tuple[Service, Work]:
    """A service that computes nothing before it may go on, and begins with an item."""
    found, work = load(str(bundle), Options([], **options)), Work()
    compute = found.queue.compute

    def late(how: Any, items: list[Any]) -> Sequence[Any]:
        work(how, ["" for _ in items])
        return compute(how, items)

    found.queue.compute = late
    found.queue.put(("xx", 1, 1, False), [("", 1)])
    assert work.begun.wait(60)
    return found, work


def test_too_many_are_told_to_come_again(bundle: Path) -> None:
    full, work = service(bundle, max_waiting=10)
    with TestClient(build([full], 100_000)) as client:
        answer = client.post("/v1/translate", json={"text": LINES[1]})
        assert (answer.status_code, "limit is 10: send less" in answer.text) == (413, True)
        full.queue.most, full.queue.rate = 100, 20.0
        room = full.queue.put("x", [("", 90)])
        answer = client.post("/v1/translate", json={"text": LINES[1]})
        assert (answer.status_code, answer.headers["Retry-After"]) == (429, "5")
        room[0].cancel()
        work.go_on.set()
        assert client.post("/v1/translate", json={"text": LINES[1]}).status_code == 200


def test_a_request_that_is_given_up_is_not_computed(bundle: Path) -> None:
    idle, work = service(bundle)
    app = build([idle], 100_000)
    body = json.dumps({"text": [LINES[0], LINES[1]]}).encode()
    scope = {
        "type": "http", "method": "POST", "path": "/v1/translate", "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip

    async def give_up() -> list[int]:
        received = iter([{"type": "http.request", "body": body}])
        sent: list[int] = []

        async def receive() -> Any:
            if found := next(received, None):
                return found
            while not idle.queue.jobs:
                await asyncio.sleep(0.001)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message.get("status"))

        await app(scope, receive, send)
        return sent

    assert asyncio.run(give_up())[0] == 499
    assert idle.queue.waiting() == 0
    work.go_on.set()
    idle.queue.close()
    assert len(work.batches) == 1


def test_an_error_in_decoding_is_a_line_and_the_next_is_answered(
    bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good = load(str(bundle), Options([]))
    bad = Service("bad", broken(), good.config, Options([]))
    with TestClient(build([good, bad], 100_000)) as client:
        for _ in range(2):
            answer = client.post("/v1/translate", json={"text": LINES[0], "bundle": "bad"})
            assert answer.status_code == 500
            assert answer.json()["error"].startswith("decoding failed: the model's output is not")
        assert client.get("/health").status_code == 200
        answer = client.post("/v1/translate", json={"text": LINES[0]})
        assert answer.json()["translations"][0][0]["text"] == ANSWERS[0]
    assert "a batch of 1 failed: the model's output is not a number" in caplog.text
    assert "Traceback" not in caplog.text
