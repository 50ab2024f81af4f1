"""Loading never executes code: the payloads of `make reliability`, few of those for recipes."""

import pickle
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import pytest
import yaml
from reliability import fuzz_files, loading
from test_translator import save

pytestmark = pytest.mark.usefixtures("own_log")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe and a bundle, which payloads are put into."""
    folder = tmp_path_factory.mktemp("shared")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(fuzz_files.settings(folder)))
    save(folder / "run" / "bundle")
    return folder


def test_a_payload_that_is_executed_is_seen(folder: Path) -> None:
    bad = pickle.dumps(loading.Payload(loading.canary(folder)))
    assert loading.lost("a pickle", lambda: pickle.loads(bad), folder)


@pytest.mark.parametrize(
    ("cases", "every"), [(loading.pickles, 3), (loading.recipes, 11), (loading.paths, 1)]
)
def test_no_payload_is_executed(
    folder: Path,
    cases: Callable[[Path], Iterator[tuple[str, loading.Case]]],
    every: int,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not sum(loading.lost(*case, folder) for case in islice(cases(folder), 0, None, every))
