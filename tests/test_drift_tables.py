"""The tables of the commands that measure drift, from numbers whose answer is known."""

from typing import Any

import pytest
from reliability import precision, soak


def samples(**slopes: float) -> list[dict[str, float]]:
    """A sample a minute for an hour, of 100 each and so much more with every minute."""
    return [
        {"minute": float(m), **{name: 100 + slopes.get(name, 0.0) * m for name in soak.COLUMNS}}
        for m in range(61)
    ]


def test_what_grows_is_named() -> None:
    text, grown = soak.table(samples(memory=0.2, handles=0.01, cpu=-1.0, wall=5.0))
    assert grown == ["anonymous memory", "file handles"]
    assert "| anonymous memory, MiB | 100.8 | 102.8 | 105.8 | 108.8 | 111.8 | +12.00 (" in text
    assert soak.table(samples()) == (soak.table(samples())[0], [])


@pytest.mark.parametrize(("half", "within"), [([1.1, 1.3], True), ([1.5, 1.7], False)])
def test_bfloat16_is_compared_with_the_spread(half: list[float], within: bool) -> None:
    def run(kind: str, number: float) -> dict[str, Any]:
        return {"precision": kind, **{column: number for column, _ in precision.NUMBERS.values()}}

    runs = [*(run("32-true", n) for n in (1.0, 1.2, 1.4)), *(run("bf16-mixed", n) for n in half)]
    assert precision.table(runs)[1] is within
    assert "| validation BLEU | 1.00, 1.20, 1.40 |" in precision.table(runs)[0]
