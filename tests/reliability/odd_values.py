"""Odd values, and damage to files, of which the fuzz of files makes its cases."""

import json
import random
from pathlib import Path
from typing import Any

NUMBERS = [
    0, -1, 1, 3, 7, 10**9, 10**12, 2**31, 2**63, 2**64, -(10**30), 0.5, 1e308, -0.0, 1e-320,
    float("nan"), float("inf"), float("-inf"),
]  # fmt: skip
TEXTS = [
    "",
    "x",
    "..",
    "/",
    "null",
    "1",
    "\0",
    "é" * 300,
    "a\nb",
    "\u202e",
    "%s {0} {x}",
    "/dev/null",
]
OTHERS: list[Any] = [None, True, False, [], {}, [[]], [1, "a"], {"a": {"b": 1}}, {"": 1}]


def odd_value(rng: random.Random) -> Any:
    """A value of JSON that few expect."""
    kinds: list[list[Any]] = [NUMBERS, TEXTS, OTHERS]
    return rng.choice(rng.choice(kinds))


def odd_json(rng: random.Random, content: Any) -> str:
    """The JSON text of some content in which one value, or key, is odd."""
    if rng.random() < 0.1:
        depth = rng.choice([10, 1000, 100_000])
        return rng.choice(["[" * depth, "[" * depth + "]" * depth, '{"a":' * depth])
    if rng.random() < 0.1:
        return json.dumps(odd_value(rng))
    node, parent, key = content, None, None  # type: Any, Any, Any
    while isinstance(node, (dict, list)) and node and (parent is None or rng.random() < 0.7):
        parent = node
        key = rng.choice(list(node)) if isinstance(node, dict) else rng.randrange(len(node))
        node = node[key]
    what = rng.random()
    if what < 0.2:
        del parent[key]
    elif what < 0.3 and isinstance(parent, dict):
        parent[rng.choice(["more", "", "__class__", "Format"])] = odd_value(rng)
    else:
        parent[key] = odd_value(rng)
    return json.dumps(content, ensure_ascii=rng.random() < 0.5)


def damaged(rng: random.Random, content: bytes) -> bytes:
    """Content that was cut, of which some bits or bytes are others, or a part is twice there."""
    if not content:
        return bytes([rng.randrange(256)])
    what = rng.randrange(6)
    at, other = sorted((rng.randrange(len(content)), rng.randrange(len(content))))
    if what == 0:
        return content[:at]
    found = bytearray(content)
    if what == 1:
        return bytes(found[:at] + found[other:])
    if what == 2:
        found[at:other] = rng.randbytes(min(other - at, 64))
        return bytes(found)
    if what == 3:  # near the beginning, where formats keep their numbers
        at = rng.randrange(min(len(found), 256))
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        found[at] ^= 1 << rng.randrange(8)
        at = rng.randrange(len(found))
    return bytes(found) + (content if what == 5 and rng.random() < 0.2 else b"")


def placed(rng: random.Random, file: Path) -> bool:
    """Puts something else in the place of a file; returns whether it still is what it was."""
    content = file.read_bytes()
    file.unlink()
    what = rng.choice(["nothing", "folder", "loop", "link", "broken", "empty", "hidden"])
    if what == "folder":
        file.mkdir()
    elif what == "loop":
        file.symlink_to(file.name)
    elif what == "broken":
        file.symlink_to("nowhere")
    elif what == "link":
        file.with_name("elsewhere").write_bytes(content)
        file.symlink_to("elsewhere")
    elif what == "empty":
        file.write_bytes(b"")
    elif what == "hidden":
        file.write_bytes(content)
        file.chmod(0)
    return True
