"""Data sets of the Hugging Face hub, or of a local folder that `datasets` understands."""

from functools import cache
from pathlib import Path
from typing import Any

from transformer.hub import answers


@cache  # the hub is asked each time
def load(
    name: str, config: str | None, split: str, streaming: bool, revision: str | None = None
) -> Any:
    """Loads a data set, without the network where the hub does not answer."""
    import datasets

    if not Path(name).is_dir() and not answers(datasets.config.HF_ENDPOINT):
        # Else the library tries again for half a minute before it looks for its own copy.
        datasets.config.HF_HUB_OFFLINE = True
    return datasets.load_dataset(name, config, split=split, streaming=streaming, revision=revision)
