"""Settings of the process that only wide models get."""

import os

import pytest

from transformer.allocator import keep_few_kernels

CAPACITY = "ONEDNN_PRIMITIVE_CACHE_CAPACITY"


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
