"""The process: batches side by side on a CPU, and settings that only wide models get."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, current_thread

import pytest
import torch

from transformer.kernels.process import MOST, count_workers, in_threads, keep_few_kernels

CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


@pytest.fixture(autouse=True)
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_results_come_in_the_order_of_the_items() -> None:
    """The first item takes longest; each worker computes with its share of torch's threads."""

    def work(item: int, _: Event) -> tuple[int, str, int]:
        time.sleep(0.2 if item == 0 else 0.02)
        return item, current_thread().name, torch.get_num_threads()

    found = in_threads(work, range(6), 2)
    assert [item for item, _, _ in found] == list(range(6))
    assert len({name for _, name, _ in found}) == 2
    assert {threads for _, _, threads in found} == {1}
    with ThreadPoolExecutor(1) as later:
        assert later.submit(torch.get_num_threads).result() == torch.get_num_threads() == 2


@pytest.mark.parametrize("items", [[], [7]])
def test_a_single_item_has_all_threads(items: list[int]) -> None:
    caller = current_thread()
    found = in_threads(lambda item, _: (item, torch.get_num_threads(), current_thread()), items, 2)
    assert found == [(item, 2, caller) for item in items]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_stops_the_others(error: type[BaseException]) -> None:
    begun: list[int] = []

    def work(item: int, stop: Event) -> bool:
        begun.append(item)
        if item == 0:
            raise error("item 0")
        return stop.wait(20)

    start = time.monotonic()
    with pytest.raises(error, match="item 0"):
        in_threads(work, range(50), 2)
    assert time.monotonic() - start < 10
    assert len(begun) < 50
    assert torch.get_num_threads() == 2


def test_a_gpu_has_one_worker_and_a_cpu_no_more_than_threads() -> None:
    assert count_workers(torch.device("cuda")) == 1
    assert count_workers(torch.device("cpu")) == 2
    torch.set_num_threads(MOST + 3)
    assert count_workers(torch.device("cpu")) == MOST


def test_only_wide_models_keep_few_kernels_and_the_user_has_the_last_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(CAPACITY, "7")
    keep_few_kernels(512)
    assert os.environ[CAPACITY] == "7"
    monkeypatch.delenv(CAPACITY)
    keep_few_kernels(256)
    assert CAPACITY not in os.environ
    keep_few_kernels(512)
    assert os.environ[CAPACITY] == "16"
    monkeypatch.delenv(CAPACITY)
