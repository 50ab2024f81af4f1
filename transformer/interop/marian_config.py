"""The settings of Marian's models as Hugging Face writes them, against the house's."""

from pathlib import Path
from typing import Any

from transformer.data.tokenizer import BOS, EOS, PAD
from transformer.errors import UserError
from transformer.models import TransformerConfig

ACTIVATIONS = {"relu": "relu", "gelu": "gelu", "swish": "swish", "silu": "swish"}
#: Settings of related models that Marian's do not have, and the value at which they do nothing.
ALIKE = {
    "normalize_before": (False, "it normalises before each sub-layer"),
    "add_final_layer_norm": (False, "it has a normalisation after each stack"),
    "normalize_embedding": (False, "it normalises the embeddings"),
    "scale_embedding": (True, "its embeddings are not multiplied by sqrt(d_model)"),
    "static_position_embeddings": (True, "its positions are learned"),
}
DROPOUTS = ("dropout", "attention_dropout", "activation_dropout")
STACKS = ("encoder", "decoder")
PAIRS = {"layers": "num_layers", "attention_heads": "num_heads", "ffn_dim": "d_ff"}


def network_of(config: dict[str, Any], path: Path) -> TransformerConfig:
    """The network that a `config.json` of Marian describes.

    Args:
        config: its content.
        path: the file.

    Raises:
        UserError: it is of another architecture, or has what this one has not.
    """
    if config.get("model_type") != "marian":
        raise UserError(
            f"{path}: model_type is {config.get('model_type')!r}: only Marian's models (OPUS-MT) "
            "can be imported"
        )
    for key, (same, otherwise) in ALIKE.items():
        # scale_embedding is false where it is left out
        if config.get(key, key != "scale_embedding" and same) is not same:
            raise UserError(
                f"{path}: {key} is {str(not same).lower()}: {otherwise}, which this "
                "Transformer cannot"
            )
    activation = config.get("activation_function", "gelu")
    if activation not in ACTIVATIONS:
        raise UserError(
            f"{path}: activation_function is {activation!r}, known are {', '.join(ACTIVATIONS)}"
        )
    shape = {ours: _of_both_stacks(config, key, path) for key, ours in PAIRS.items()}
    shape |= {name: config.get(name, 0.0) for name in DROPOUTS}
    try:
        return TransformerConfig(
            d_model=config["d_model"],
            activation=ACTIVATIONS[activation],  # type: ignore[arg-type]
            tied=_tied(config, path),
            output_bias=True,
            **shape,
        )
    except KeyError as error:
        raise UserError(f"{path}: {error.args[0]} is missing: copy the file again") from None
    except (TypeError, ValueError) as error:
        raise UserError(f"{path}: {error}: copy the file again") from None


def _of_both_stacks(config: dict[str, Any], key: str, path: Path) -> Any:
    values = [config.get(f"{stack}_{key}") for stack in STACKS]
    if values[0] is None or values[0] != values[1]:
        raise UserError(
            f"{path}: encoder_{key} is {values[0]} and decoder_{key} {values[1]}: this Transformer "
            "has two stacks of the same shape"
        )
    return values[0]


def _tied(config: dict[str, Any], path: Path) -> Any:
    shared = config.get("share_encoder_decoder_embeddings", True)
    if config.get("tie_word_embeddings", True):
        return "three_way" if shared else "two_way"
    if shared:
        raise UserError(
            f"{path}: share_encoder_decoder_embeddings is true, tie_word_embeddings false: this "
            "Transformer shares all three matrices, the target's two, or none"
        )
    return "none"


def check_ids(config: dict[str, Any], ids: list[int], sizes: tuple[int, int], path: Path) -> None:
    """Refuses a `config.json` that does not fit the vocabulary.

    Args:
        config: its content.
        ids: of Marian, for each of ours.
        sizes: how many of them the source and the target have.
        path: the file.
    """
    keys = {"pad_token_id": PAD, "decoder_start_token_id": BOS, "eos_token_id": EOS}
    wanted = {key: ids[ours] for key, ours in keys.items()}
    wanted["vocab_size"], wanted["decoder_vocab_size"] = (len({*ids[:size]}) for size in sizes)
    found = {"decoder_vocab_size": config.get("vocab_size"), **config}
    for key, value in wanted.items():
        if found.get(key) != value:
            raise UserError(
                f"{path}: {key} is {found.get(key)}, but by the vocabulary it is {value}: take "
                "both files from one model"
            )


def config_of(network: TransformerConfig, vocabularies: tuple[int, int]) -> dict[str, Any]:
    """The settings of Marian that describe a network of the house.

    Args:
        network: whose shape it is.
        vocabularies: entries of the source's and of the target's.

    Raises:
        UserError: Marian has no such network.
    """
    unlike = {
        "norm": (network.norm == "post", "Marian's models are post-norm"),
        "positions": (network.positions == "sinusoidal", "Marian's positions are sinusoidal"),
        "d_k": (
            network.d_k in (None, network.d_model // network.num_heads),
            "the heads of Marian's models have d_model / num_heads",
        ),
    }
    for key, (same, why) in unlike.items():
        if not same:
            raise UserError(
                f"model.network.{key} is {getattr(network, key)!r}: such a model cannot be "
                f"exported to Hugging Face, as {why}"
            )
    stacks = {
        f"{stack}_{key}": getattr(network, ours) for stack in STACKS for key, ours in PAIRS.items()
    }
    return stacks | {
        "d_model": network.d_model,
        "activation_function": network.activation,
        "scale_embedding": True,
        "share_encoder_decoder_embeddings": network.tied == "three_way",
        "tie_word_embeddings": network.tied != "none",
        "vocab_size": vocabularies[0],
        "decoder_vocab_size": vocabularies[1],
        **{name: getattr(network, name) for name in DROPOUTS},
    }
