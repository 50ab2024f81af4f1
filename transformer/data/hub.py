"""Data sets of the Hugging Face hub, or of a local folder that `datasets` understands."""

import ssl
from concurrent.futures import TimeoutError as TooLate
from functools import cache
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from transformer.data.background import in_background

HUB_SECONDS = 5  # in which the hub must answer


@cache  # the hub is asked each time
def load(name: str, config: str | None, split: str, streaming: bool) -> Any:
    """Loads a data set, without the network where the hub does not answer."""
    import datasets

    if not Path(name).is_dir() and not _hub_answers(datasets.config.HF_ENDPOINT):
        # Else the library tries again for half a minute before it looks for its own copy.
        datasets.config.HF_HUB_OFFLINE = True
    return datasets.load_dataset(name, config, split=split, streaming=streaming)


@cache
def _hub_answers(address: str) -> bool:
    def ask(_: object) -> bool:
        try:
            urlopen(Request(address, method="HEAD"), timeout=HUB_SECONDS).close()
        except URLError as error:  # an answer, of whatever kind, is one
            return isinstance(error, HTTPError) or isinstance(error.reason, ssl.SSLError)
        except OSError:
            return False
        return True

    try:  # a name server that is not there takes its time, too
        return in_background(ask, HUB_SECONDS)
    except TooLate:
        return False
