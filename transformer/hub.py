"""The Hugging Face hub: models come from there, and bundles go there; no code is ever run.

A model is named ``org/name`` or ``org/name@revision``: a branch, a tag or a commit. A folder of
that name goes before. Only the files that are asked for are downloaded, into the cache of
``huggingface_hub``, from which they come where the hub does not answer.
"""

import re
import ssl
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import TimeoutError as TooLate
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from transformer.data.background import in_background
from transformer.errors import UserError, message

SECONDS = 5  # in which the hub must answer
#: No `..`: names and revisions become paths in the library's cache.
NAME = re.compile(r"(?!.*\.\.)(?P<name>[\w-][\w.-]*/[\w-][\w.-]*)(@(?P<revision>[\w-][\w./-]*))?")
LATER = "check the network, and try again"
#: What a bundle consists of.
BUNDLE = (
    "config.json", "model.safetensors", "README.md",
    "tokenizer.json", "tokenizer.src.json", "tokenizer.tgt.json",
)  # fmt: skip


def local_folder(name: str | Path, files: Sequence[str] = BUNDLE) -> Path:
    """The folder of a model: the one of that name or, for a name of the hub, a downloaded copy.

    Args:
        name: a folder, or `org/name` or `org/name@revision`.
        files: that are downloaded, as far as there are any of these names.

    Raises:
        UserError: it cannot be downloaded, and was not before.
    """
    match = NAME.fullmatch(str(name))
    if match is None or Path(name).exists():
        return Path(name)
    return _downloaded(match["name"], match["revision"], tuple(files))


@cache  # a process has one version of it
def _downloaded(name: str, revision: str | None, files: tuple[str, ...]) -> Path:
    import huggingface_hub as library

    with _in_one_line(name, revision):
        copy = library.snapshot_download(
            name, revision=revision, allow_patterns=[*files], local_files_only=not is_there()
        )
    if not Path(copy).is_dir():  # nothing was there to be downloaded
        raise UserError(f"{name} on the hub has none of {', '.join(files)}: give another name")
    return Path(copy)


def known_commit(data_set: str, revision: str) -> str | None:
    """The commit of a data set's revision, as it was when it was last asked for; None if never."""
    from huggingface_hub import try_to_load_from_cache

    if re.fullmatch("[0-9a-f]{40}", revision):
        return revision
    path = try_to_load_from_cache(data_set, "README.md", revision=revision, repo_type="dataset")
    return Path(path).parent.name if isinstance(path, str) else None


def push(folder: str | Path, name: str, private: bool, revision: str | None, note: str) -> str:
    """Uploads a bundle.

    Args:
        folder: the bundle.
        name: `org/name`; it is made if it is not there.
        private: whether one that is made can be seen by its owners alone.
        revision: the branch, which is made if it is not there; the main one when left out.
        note: of the commit.

    Returns:
        The address at which it can be seen.

    Raises:
        UserError: the name is none, or the hub refuses or does not answer.
    """
    import huggingface_hub as library

    match = NAME.fullmatch(name)
    if match is None or match["revision"]:
        raise UserError(f"{name!r} is no name of the hub: give org/name (and --revision)")
    for file in BUNDLE:
        if Path(folder, file).is_symlink():
            raise UserError(
                f"{folder}/{file} is a link: what it points to would be uploaded, whatever it is: "
                "copy the bundle, with its files"
            )
    if not is_there():
        raise UserError(f"{name} cannot be pushed, {_no_answer()}")
    api = library.HfApi()
    with _in_one_line(name, revision):
        address = api.create_repo(name, private=private, exist_ok=True)
        if revision:
            api.create_branch(name, branch=revision, exist_ok=True)
        api.upload_folder(
            repo_id=name, folder_path=folder, revision=revision, commit_message=note,
            allow_patterns=[*BUNDLE],
        )  # fmt: skip
    return f"{address}/tree/{revision}" if revision else str(address)


@contextmanager
def _in_one_line(name: str, revision: str | None) -> Iterator[None]:
    """Makes one line of each of the library's errors; without a terminal its bars are hidden."""
    from huggingface_hub import errors, utils

    utils.logging.set_verbosity_error()  # each attempt would be a line more
    if not sys.stderr.isatty():
        utils.disable_progress_bars()
    try:
        yield
    except errors.HFValidationError as error:
        raise UserError(f"{name} is no folder here, and no name of the hub ({error})") from None
    except errors.GatedRepoError:
        fix = "ask for it on its page, then log in with `hf auth login`"
        raise UserError(f"{name} on the hub needs the consent of its owner: {fix}") from None
    except errors.RepositoryNotFoundError:
        fix = "correct the name; for a private one log in with `hf auth login`"
        raise UserError(f"{name} is neither a folder here nor a model on the hub: {fix}") from None
    except errors.RevisionNotFoundError:
        raise UserError(f"{name} on the hub has no revision {revision}: give another") from None
    except errors.LocalEntryNotFoundError:
        raise UserError(f"{name} is no folder here, and {_no_answer()}") from None
    except errors.HfHubHTTPError as error:
        code = error.response.status_code
        fix = "log in with `hf auth login`, or set HF_TOKEN" if code in (401, 403) else LATER
        reason = error.server_message or error.response.reason_phrase
        raise UserError(f"{name} on the hub: {code}, {message(Exception(reason))}: {fix}") from None
    except Exception as error:  # of many kinds, also of the library that it asks with
        raise UserError(f"{name} on the hub: {message(error)}: {LATER}") from error


def _no_answer() -> str:
    from huggingface_hub import constants

    why = "is not asked (HF_HUB_OFFLINE)" if constants.HF_HUB_OFFLINE else "does not answer"
    return f"{constants.ENDPOINT} {why}: check the network, or the address in HF_ENDPOINT"


def is_there() -> bool:
    """Whether the hub answers in time; it is asked once in a process.

    Else its library would try again for half a minute before it looks for its own copy.
    """
    from huggingface_hub import constants

    return not constants.HF_HUB_OFFLINE and answers(constants.ENDPOINT)


@cache
def answers(address: str) -> bool:
    """Whether a server answers within `SECONDS`."""

    def ask(_: object) -> bool:
        try:
            urlopen(Request(address, method="HEAD"), timeout=SECONDS).close()
        except URLError as error:  # an answer, of whatever kind, is one
            return isinstance(error, HTTPError) or isinstance(error.reason, ssl.SSLError)
        except OSError:
            return False
        return True

    try:  # a name server that is not there takes its time, too
        return in_background(ask, SECONDS)
    except TooLate:
        return False
