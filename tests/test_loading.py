"""Loading never executes code: the payloads of `make reliability`, few of those for recipes."""

import pickle
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
from reliability import loading

pytestmark = pytest.mark.usefixtures("own_log")


def test_a_payload_that_is_executed_is_seen(shared: Path) -> None:
    bad = pickle.dumps(loading.Payload(loading.canary(shared)))
    assert loading.lost("a pickle", lambda: pickle.loads(bad), shared)


@pytest.mark.parametrize(
    ("cases", "every"), [(loading.pickles, 3), (loading.recipes, 11), (loading.paths, 1)]
)
def test_no_payload_is_executed(
    shared: Path,
    cases: Callable[[Path], Iterator[tuple[str, loading.Case]]],
    every: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not sum(loading.lost(*case, shared) for case in islice(cases(shared), 0, None, every))
