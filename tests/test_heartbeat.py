"""A process notices that another one, or the store that they share, gives no sign of life."""

import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from threading import Thread

import pytest
import torch.distributed as dist
from lightning.fabric.strategies.launchers.subprocess_script import _ChildProcessObserver
from toys import raising

from transformer.training import heartbeat
from transformer.training.heartbeat import SILENT, Heartbeat, _Fellows


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[_Fellows]]:
    """Two processes of a run, which are in this one."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(store.port))
    monkeypatch.setattr(heartbeat, "EVERY", 0.01)
    yield [_Fellows(rank, 2) for rank in (0, 1)]
    del store


def test_a_process_that_falls_silent_is_named_with_its_machine(two: list[_Fellows]) -> None:
    for _ in range(2 * SILENT):
        for fellows in two:
            fellows.exchange()
        assert two[0].gone() == ""
    found = ""
    for silent in range(SILENT + 1):  # it was heard a last time after one's own last sign
        assert not found, silent
        two[0].exchange()
        found = two[0].gone()
    assert found == f"process 1 of this run, on {socket.gethostname()},"


def test_a_process_that_left_is_not_missed(two: list[_Fellows]) -> None:
    two[1].leave()
    for _ in range(2 * SILENT):
        two[0].exchange()
        assert two[0].gone() == ""


def test_a_store_that_does_not_answer_is_the_end_of_the_first_process(two: list[_Fellows]) -> None:
    two[1].exchange()
    found = [two[1].gone() for _ in range(SILENT + 1)]
    assert found[-2:] == ["", "the first process of this run"]


def test_the_process_ends_with_the_reason_and_how_to_go_on(
    two: list[_Fellows], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    heart = Heartbeat(lambda: "to resume: this command")
    heart._fellows = two[1]
    monkeypatch.setattr(heartbeat.os, "_exit", raising(SystemExit(2)))
    thread = Thread(target=two[1].talk, args=(heart._over,), daemon=True)
    thread.start()
    with pytest.raises(SystemExit):
        heart._watch(heart._over)
    assert capfd.readouterr().err == (
        f"transformer: error: process 0 of this run, on {socket.gethostname()}, is gone, or does "
        "not answer: stopped; to resume: this command\n"
    )
    heart._over.set()
    thread.join(5)


def test_nobody_listens_any_more_after_the_end(
    two: list[_Fellows], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat.os, "_exit", raising(AssertionError("is ended")))
    with Heartbeat(raising(AssertionError("is asked"))) as heart:
        heart._fellows = two[1]
    heart._watch(heart._over)
    two[0].exchange()
    assert two[0]._signs[1] == heartbeat.LEFT


def test_the_first_process_has_time_to_speak_before_lightning_kills_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(heartbeat, "EVERY", 0.1)
    failed, first = subprocess.Popen(["false"]), subprocess.Popen(["sleep", "60"])
    failed.wait()
    with Heartbeat(str):
        before = time.monotonic()
        _ChildProcessObserver(first.pid, [failed])._run()
    assert time.monotonic() - before > 0.1 * SILENT
    assert first.wait(5) == -signal.SIGKILL
