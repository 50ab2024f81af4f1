"""Names that parameters had in bundles of format 1 and in the checkpoints of that time."""

import re
from typing import TypeVar

Value = TypeVar("Value")
#: Pattern of an old name -> its part of the new one. Only names changed, not their order.
RENAMED = {
    r"(coder\.\d+)\.attention\.": r"\1.self_attention.",
    r"(coder\.\d+\.\w+_attention)\.in_proj\.": r"\1.input_projection.",
    r"(coder\.\d+\.\w+_attention)\.out_proj\.": r"\1.output_projection.",
    r"(encoder\.\d+)\.ahead\.cells\.": r"\1.forward_rnn.rnn.",
    r"(encoder\.\d+)\.back\.cells\.": r"\1.backward_rnn.rnn.",
    r"(decoder\.\d+)\.cells\.": r"\1.rnn.",
    r"(^|network\.)merge\.": r"\1output_projection.",
}


def with_new_names(weights: dict[str, Value]) -> dict[str, Value]:
    """The same values under the names that parameters have now; new names stay as they are."""
    found = {}
    for name, value in weights.items():
        for old, new in RENAMED.items():
            name = re.sub(old, new, name)
        found[name] = value
    return found
