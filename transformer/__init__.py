"""Attention Is All You Need (Vaswani et al. 2017): train it from recipes, translate with it.

The public names are imported when they are first used, so that nothing heavy loads before.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformer.bundle import load_bundle, save_bundle
    from transformer.data.tokenizer import Tokenizer, TokenizerConfig
    from transformer.inference.search import SearchConfig
    from transformer.inference.translator import Translator
    from transformer.models import Transformer, TransformerConfig

__version__ = "0.1.0"

__all__ = [
    "SearchConfig",
    "Tokenizer",
    "TokenizerConfig",
    "Transformer",
    "TransformerConfig",
    "Translator",
    "load_bundle",
    "save_bundle",
]

_HOMES = {
    "transformer.bundle": ("load_bundle", "save_bundle"),
    "transformer.data.tokenizer": ("Tokenizer", "TokenizerConfig"),
    "transformer.inference.search": ("SearchConfig",),
    "transformer.inference.translator": ("Translator",),
    "transformer.models": ("Transformer", "TransformerConfig"),
}


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(home), name)
    raise AttributeError(f"module 'transformer' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
