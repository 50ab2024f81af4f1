"""The bundle: a folder that holds a trained model and all that is needed to translate with it.

- config.json: format version, architecture, its shape, languages, search settings
- tokenizer.json, or tokenizer.src.json and tokenizer.tgt.json
- model.safetensors: the weights, the hash of the tokenizer that they belong to, and a checksum of
  them and the network
- README.md: the model card
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple, TypedDict

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import init
from torch.overrides import TorchFunctionMode

from transformer.checksum import checksum
from transformer.data.tokenizer import Tokenizer, read_files
from transformer.errors import UserError
from transformer.hub import local_folder
from transformer.models import ARCHITECTURES, ModelConfig, Seq2Seq, architecture_of
from transformer.models.renamed import with_new_names
from transformer.settings import parsed, settings
from transformer.writing import whole_folder

FORMAT_VERSION = 2
TOLD = {"format", "tokenizer", "checksum"}  # beside the weights; older bundles lack some
READ = (1, FORMAT_VERSION)  # parameters of 1 have other names
FLOATS = {torch.float32, torch.bfloat16, torch.float16, torch.float64}
INITIALISERS = (
    init.normal_, init.uniform_, init.kaiming_uniform_, Tensor.normal_, Tensor.uniform_
)  # fmt: skip
#: What a bundle knows of its training, and `results.json` repeats; `seconds` include validation.
TRAINING = (
    "recipe", "epochs", "steps", "seconds", "src_tokens_per_second", "tgt_tokens_per_second",
    "parent",
)  # fmt: skip


class Evaluation(TypedDict, total=False):
    """How `fit` computed its scores."""

    label_smoothing: float
    score_tokenize: str
    score_lowercase: bool
    score_detokenized: bool


class Config(TypedDict):
    """The keys of `config.json` and their types: all that a bundle of this format may hold."""

    format_version: int
    architecture: str
    network: dict[str, Any]
    src_vocab_size: int
    tgt_vocab_size: int
    src: str
    tgt: str
    search: dict[str, Any]
    max_length: int
    evaluation: Evaluation
    training: dict[str, Any]


class Bundle(NamedTuple):
    """A model, its tokenizer, and `config.json` as a dictionary."""

    model: Seq2Seq
    tokenizer: Tokenizer
    config: dict[str, Any]


def save_bundle(
    folder: str | Path,
    model: Seq2Seq,
    tokenizer: Tokenizer,
    *,
    training: dict[str, Any],
    card: str,
    **about: Any,
) -> None:
    """Write a bundle, whole or not at all.

    Args:
        folder: where to; it must not exist yet.
        model: the trained model.
        tokenizer: the tokenizer it was trained with.
        training: how it was trained, as far as it is known: the keys of `TRAINING`.
        card: the model card, Markdown.
        about: `src` and `tgt`, the languages; `search`, settings to translate with where none are
            given; `max_length`, the longest training sentence in tokens; `evaluation`.

    Raises:
        UserError: when the folder exists already, or a key is unknown or missing.
    """
    with whole_folder(Path(folder)) as growing:
        write_bundle(growing, model, tokenizer, training=training, card=card, **about)


def write_bundle(
    folder: Path,
    model: Seq2Seq,
    tokenizer: Tokenizer,
    *,
    training: dict[str, Any],
    card: str,
    **about: Any,
) -> None:
    """Write the files of a bundle into a folder; as `save_bundle` describes them."""
    config: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "architecture": architecture_of(model.config),
        "network": asdict(model.config),
        "src_vocab_size": tokenizer.src_vocab_size,
        "tgt_vocab_size": tokenizer.tgt_vocab_size,
        **about,
        "training": training,
    }
    settings(Config, config, folder / "config.json")
    text = json.dumps(config, indent=2, ensure_ascii=False) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    (folder / "README.md").write_text(card, encoding="utf-8")
    tokenizer.save(folder)
    weights = {name: tensor.detach() for name, tensor in model.named_parameters()}
    metadata = {"format": "pt", "tokenizer": _fingerprint(tokenizer.to_text())}
    metadata["checksum"] = _checksum(weights, config)
    save_file(weights, str(folder / "model.safetensors"), metadata=metadata)


def load_bundle(folder: str | Path, device: str | torch.device = "cpu") -> Bundle:
    """Read a bundle; the model comes in evaluation mode. Nothing is ever unpickled.

    Args:
        folder: written by `save_bundle`; or `org/name` of the hub, perhaps with `@revision`.
        device: where the weights go.

    Raises:
        UserError: when it is no bundle, or one of a format or an architecture not known here.
    """
    folder = local_folder(folder)
    network, config = read_config(folder)
    weights, metadata = _read_weights(folder / "model.safetensors")
    files = read_files(folder)
    try:
        tokenizer = Tokenizer(files)
        if odd := sorted(metadata.keys() - TOLD):  # a damaged name would switch its check off
            raise UserError(f"model.safetensors tells its {odd[0]!r}, which no bundle does")
        if metadata.get("tokenizer") not in (None, _fingerprint(files)):
            raise UserError("the tokenizer is not the one that model.safetensors was trained with")
        sizes = tokenizer.src_vocab_size, tokenizer.tgt_vocab_size
        if sizes != (config["src_vocab_size"], config["tgt_vocab_size"]):
            raise UserError(f"the tokenizer has {sizes[0]:,} and {sizes[1]:,} entries")
        with torch.device("meta"), _NoRandomNumbers():  # the weights are replaced at once
            model = network.build(*sizes)
        _assign(model, with_new_names(weights), config["network"])
        if metadata.get("checksum") not in (None, _checksum(weights, config)):
            raise UserError("the weights or the network are not those that were saved")
    except (ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"{folder}: its files do not fit config.json ({reason}): take all from one bundle"
        ) from None
    return Bundle(model.to(device, torch.float32).eval(), tokenizer, config)


def _fingerprint(files: dict[str, str]) -> str:
    text = json.dumps(files, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum(weights: dict[str, Tensor], config: dict[str, Any]) -> str:
    network = [config[key] for key in ("architecture", "network")]
    return checksum([json.dumps(network, sort_keys=True), dict(sorted(weights.items()))])


class _NoRandomNumbers(TorchFunctionMode):
    """Skips initial values: on the meta device they would import torch's compiler, in 0.9 s."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in INITIALISERS:
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def _assign(model: Seq2Seq, weights: dict[str, Tensor], network: dict[str, Any]) -> None:
    types = {tensor.dtype for tensor in weights.values()}
    if len(types) > 1 or not types <= FLOATS:
        raise UserError(f"weights are {', '.join(sorted(map(str, types)))}: must be of one float")
    for name, asked in model.state_dict().items():
        found = weights.get(name, asked)
        if found.shape != asked.shape:
            odd = [a for a, b in zip(asked.shape, found.shape, strict=False) if a != b]
            keys = [f"{key} {value}" for key, value in network.items() if value in odd]
            raise UserError(
                f"network: {', '.join(keys) or 'its sizes'}: {name} would be "
                f"{tuple(asked.shape)}, model.safetensors has {tuple(found.shape)}"
            )
    unexpected = model.load_state_dict(weights, strict=False, assign=True).unexpected_keys
    model.tie()
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing or unexpected:
        odd = [*missing, *unexpected]
        raise UserError(f"{len(odd)} weights are missing or too many, such as {odd[0]}")


def _read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The weights, and what is told of them, which older bundles lack."""
    try:
        with safe_open(path, "pt") as file:
            # Copies: else whoever writes into the file would change a model that runs, or end it.
            weights = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return weights, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path} cannot be read ({error}): weights must be a safetensors file; "
            "make the bundle again, or copy it again from where it came"
        ) from None


def read_config(folder: str | Path) -> tuple[ModelConfig, dict[str, Any]]:
    """A bundle's network settings, and its `config.json`; `folder` is as for `load_bundle`.

    Raises:
        UserError: when it is no bundle, or one of a format, an architecture or a key not known
            here, or when a key is missing or its value is of another type.
    """
    folder = local_folder(folder)
    path = folder / "config.json"
    if folder.is_file():
        raise UserError(
            f"{folder} is a file, and is not read, since it may be a pickle, which can run code: "
            "give a bundle, a folder; of a checkpoint `transformer average` makes one"
        )
    if not path.is_file():
        found = "no such folder" if not folder.is_dir() else "it has no config.json"
        inner = folder / "bundle"
        fix = f"give {inner}" if inner.is_dir() else "give what `fit`, `average` or `import` wrote"
        raise UserError(f"{folder} is not a bundle ({found}): {fix}")
    config = parsed(path.read_bytes(), path, "copy the bundle again")
    if "format_version" not in config:
        raise UserError(
            f"{path} is not that of a bundle: copy the bundle again; of a Marian model of Hugging "
            "Face `transformer import` makes one, and an export was made of one"
        )
    if config["format_version"] not in READ:
        raise UserError(
            f"{path}: format_version is {config['format_version']}, this version of the package "
            f"reads {' and '.join(map(str, READ))}: install the version that wrote the bundle"
        )
    settings(Config, config, path)
    if config["architecture"] not in ARCHITECTURES:
        raise UserError(
            f"{path}: architecture is {config['architecture']!r}, known are "
            f"{', '.join(ARCHITECTURES)}"
        )
    network = settings(ARCHITECTURES[config["architecture"]], config["network"], path, "network")
    if config["max_length"] < 1:
        raise UserError(f"{path}: max_length is {config['max_length']}: it must be 1 or more")
    return network, config
