"""Marian models of Hugging Face, such as those of OPUS-MT, become bundles."""

import re
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from transformer.bundle import load_bundle, write_bundle
from transformer.checksum import unpickled
from transformer.data.tokenizer import BOS, EOS, PAD, Tokenizer
from transformer.errors import UserError
from transformer.hub import local_folder
from transformer.inference.search import SearchConfig
from transformer.interop.gate import BundleSide, Ids, compare, passed
from transformer.interop.marian_config import check_ids, network_of
from transformer.interop.marian_side import MarianSide
from transformer.interop.marian_weights import fill
from transformer.interop.sentencepiece import code_of, tokenizer_of
from transformer.models import Seq2Seq, Transformer
from transformer.settings import parsed, settings
from transformer.writing import whole_folder

#: How OPUS-MT names its models: opus-mt-de-en, opus-mt-tc-big-en-ko.
LANGUAGES = re.compile(r"opus-mt-(?:tc-\w+-)?(\w+)-(\w+)", re.ASCII)
CONFIG, GENERATION = "config.json", "generation_config.json"
FILES = (
    CONFIG, GENERATION, "source.spm", "target.spm", "vocab.json",
    *(f"{place}tokenizer{rest}.json" for place in ("", "target/") for rest in ("", "_config")),
)  # fmt: skip
WEIGHTS = ("model.safetensors", "pytorch_model.bin")


def import_marian(source: str, bundle: str, src: str | None = None, tgt: str | None = None) -> None:
    """Makes a bundle of a Marian model, held to translate as Hugging Face does.

    Args:
        source: Folder of the model, or org/name of the hub, perhaps with @revision.
        bundle: Folder to write, which must not exist.
        src: Source language; read in the model's name if left out.
        tgt: Target language, as src; of a model with language codes one of them.

    Raises:
        UserError: It is not a model that can be imported, or the two do not translate alike.
    """
    target = Path(bundle)
    if target.exists():
        raise UserError(f"{target} exists already: choose another folder, or move it away")
    weights = find_weights(source)
    folder = weights.parent
    config = read_json(folder / CONFIG)
    model, tokenizer, ids = read_model(weights, config)
    languages = find_languages(source, tokenizer, src, tgt)
    with whole_folder(target) as growing:
        write_bundle(
            growing,
            model,
            tokenizer,
            src=languages[0],
            tgt=languages[1],
            search=search_of(folder, config),
            max_length=config.get("max_position_embeddings", 512),
            evaluation={},
            training={"recipe": f"imported from {source}"},
            card=card(source, model, languages),
        )
        never = {ids[PAD], ids[BOS]} - {ids[EOS]}
        theirs = MarianSide(folder, ids, code_of(tokenizer, languages[1]), [*never])
        passed(compare(BundleSide(load_bundle(growing)), theirs), growing)


def find_weights(source: str) -> Path:
    """The file of the weights, beside which the other files lie.

    Raises:
        UserError: there is none, or the hub has no such model.
    """
    for name in WEIGHTS:  # of two files of the hub one is enough
        folder = local_folder(source, (*FILES, name))
        if (folder / name).is_file():
            return folder / name
    read_json(folder / CONFIG)
    raise UserError(f"{folder} has neither {' nor '.join(WEIGHTS)}: copy one of them there")


def read_model(weights: Path, config: dict[str, Any]) -> tuple[Transformer, Tokenizer, Ids]:
    """The model, its tokenizer, and the id there for each id here.

    Args:
        weights: file of the weights.
        config: content of the `config.json` beside it.
    """
    path = weights.with_name(CONFIG)
    network = network_of(config, path)
    tokenizer, ids = tokenizer_of(path.parent)
    sizes = tokenizer.src_vocab_size, tokenizer.tgt_vocab_size
    check_ids(config, ids, sizes, path)
    model = network.build(*sizes)
    fill(model, read_weights(weights), ids, weights)
    return model, tokenizer, ids


def read_json(path: Path) -> dict[str, Any]:
    """A file's object.

    Raises:
        UserError: there is no such file, or no object in it.
    """
    try:
        return parsed(path.read_bytes(), path)
    except FileNotFoundError:
        raise UserError(
            f"{path} is missing: give the folder of a Marian model of Hugging Face, with its "
            "config.json, weights and tokenizer"
        ) from None


def read_weights(path: Path) -> dict[str, Tensor]:
    """The weights in a file; nothing but tensors is ever unpickled.

    Raises:
        UserError: the file is damaged, or holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found = unpickled(path)
    except Exception as error:  # torch raises many kinds
        reason = str(error).split("\n")[0]
        raise UserError(f"{path} cannot be read ({reason}): copy the file again") from None
    if not isinstance(found, dict) or not all(isinstance(t, Tensor) for t in found.values()):
        raise UserError(f"{path} does not hold the weights of a model: copy the file again")
    return found


def find_languages(
    source: str, tokenizer: Tokenizer, src: str | None, tgt: str | None
) -> tuple[str, str]:
    """Source and target language: those that are given, else those in the model's name.

    Raises:
        UserError: they are not there, or the model does not translate into the target.
    """
    name = Path(source if Path(source).exists() else source.partition("@")[0]).name
    match = LANGUAGES.fullmatch(name)
    src, tgt = (given or (match[group] if match else None) for group, given in ((1, src), (2, tgt)))
    if not src or not tgt:
        missing = " and ".join(f"--{key}" for key, has in (("src", src), ("tgt", tgt)) if not has)
        raise UserError(
            f"the name {name!r} does not say the languages, as opus-mt-de-en does: give {missing}"
        )
    if tokenizer.tags and tgt not in tokenizer.tags:
        raise UserError(
            f"--tgt: {tgt!r} is none of the languages that the model translates into: "
            f"{', '.join(tokenizer.tags)}: give the one that is meant where none is asked for"
        )
    return src, tgt


def search_of(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    """The search settings of a bundle; older models have them in `config.json`."""
    path = folder / (GENERATION if (folder / GENERATION).is_file() else CONFIG)
    given = read_json(path) if path.name == GENERATION else config
    names = {
        "num_beams": "beam",
        "length_penalty": "alpha",
        "no_repeat_ngram_size": "no_repeat_ngram",
    }
    found = {ours: given[theirs] for theirs, ours in names.items() if given.get(theirs) is not None}
    found = {"beam": 1, "alpha": 1.0, "length_norm": "power", **found}
    settings(SearchConfig, found, path)
    return found


def card(source: str, model: Seq2Seq, languages: tuple[str, str]) -> str:
    """The bundle's README.md."""
    src, tgt = languages
    return f"""# {src} → {tgt}

{model.describe()} that translates {src} into {tgt}, imported from the Marian model `{source}`,
whose licence and authors are its own. `parity.json` says how its translations were compared with
those of Hugging Face.

```python
from transformer import Translator

Translator.load("bundle").translate(["..."])
```
"""
