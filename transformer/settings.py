"""Settings that a file holds, checked against the dataclass or the dictionary that they become."""

import json
import reprlib
from pathlib import Path
from types import UnionType
from typing import Any, Literal, TypeVar, get_args, get_origin, get_type_hints, is_typeddict

from transformer.errors import UserError, nearest

Settings = TypeVar("Settings")


def parsed(text: bytes | str, name: object, fix: str = "copy the file again") -> dict[str, Any]:
    """The object that a JSON text holds.

    Args:
        text: UTF-8, perhaps with the byte order mark that an editor may add.
        name: what it is called in an error: its file, perhaps its line.
        fix: the end of the error.

    Raises:
        UserError: it is no UTF-8, no JSON, nested too deeply, or no object.
    """
    try:
        found: Any = json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{name} is not JSON ({error}): {fix}") from None
    if not isinstance(found, dict):
        raise UserError(f"{name} holds no JSON object: {fix}")
    return found


def settings(kind: type[Settings], values: dict[str, Any], path: Path, group: str = "") -> Settings:
    """Makes a dataclass or a typed dictionary of what a group of keys of a file holds.

    Raises:
        UserError: for the first key that is unknown, is missing, or has a value of another type.
    """
    hints, above = get_type_hints(kind), f"{group}." if group else ""
    for key, value in values.items():
        name = f"{path}: {above}{key}"
        if key not in hints:
            raise UserError(
                f"{name} is unknown{nearest(key, hints)}: take it out, or install the version that "
                "wrote the bundle"
            )
        hint = hints[key]
        if not _fits(value, hint):
            kinds = get_args(hint) if get_origin(hint) in (Literal, UnionType) else (hint,)
            named = " or ".join(getattr(kind, "__name__", repr(kind)) for kind in kinds)
            raise UserError(
                f"{name} is {reprlib.repr(value)}, but must be {named}: correct it, or copy the "
                "bundle again"
            )
        if is_typeddict(hint):
            settings(hint, value, path, f"{above}{key}")
    for key in sorted(getattr(kind, "__required_keys__", set()) - values.keys()):
        raise UserError(f"{path}: {above}{key} is missing: copy the bundle again")
    try:
        return kind(**values)
    except ValueError as error:
        raise UserError(f"{path}: {error}") from None


def _fits(value: Any, hint: Any) -> bool:
    """Says whether what JSON gave is of a type; a bool is no number."""
    origin, choices = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in choices
    if origin is UnionType:
        return any(_fits(value, choice) for choice in choices)
    if hint is float:
        return type(value) in (int, float)
    return type(value) is (dict if is_typeddict(hint) else origin or hint)
