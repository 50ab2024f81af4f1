"""Data sets of the Hugging Face hub, or of a local folder that `datasets` understands."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from transformer.errors import UserError
from transformer.hub import answers, known_commit


@cache  # the hub is asked each time
def load(
    name: str, config: str | None, split: str, streaming: bool, revision: str | None,
    digests: tuple[str, ...],
) -> Any:  # fmt: skip
    """Loads a data set, without the network where the hub does not answer.

    The library knows the files of a folder by their times, and would give the text of before: so
    it has a cache for each content, of which `digests` are those of a folder's files.

    Raises:
        UserError: it does not, and there is no copy of the revision: the library would take that
            of another one.
    """
    import datasets

    its = datasets.config
    if not Path(name).is_dir() and (its.HF_HUB_OFFLINE or not answers(its.HF_ENDPOINT)):
        # Else the library tries again for half a minute before it looks for its own copy.
        its.HF_HUB_OFFLINE = True
        if revision:
            copy = datasets.load_dataset_builder(name, config).hash
            if copy != known_commit(name, revision):
                raise UserError(f"the hub does not answer, and the copy here is not of {revision}")
    content = hashlib.sha256("".join(digests).encode()).hexdigest()
    return datasets.load_dataset(
        name, config, split=split, streaming=streaming, revision=revision,
        cache_dir=f"{its.HF_DATASETS_CACHE}/{content}" if digests else None,
    )  # fmt: skip
