"""Recipes that few would write, and options of the command line beside them."""

import json
import random
from pathlib import Path
from typing import Any

SCALARS = [
    "yes", "no", "on", "~", "null", "", "1e3", "1.0e+3", ".nan", "-.inf", ".inf", "0o7", "0x1F",
    "017", "0b1", "1_000", "12:30:45", "2001-01-01", "2001-12-14t21:59:43.10-05:00", "!!str 3",
    "!!int '3'",
    "!!float 3", "!!binary aGk=", "!!null ''", "!!bool yes", "!!set {a}", "!!omap [a: 1]", "!x 1",
    "!!python/none", "!!python/tuple [1, 2]", "!!python/name:os.system",
    "!!python/object/apply:os.system [echo]", "!!timestamp 2001-01-01", "'3'", '"\\0"', '"\\ud800"',
    "=", "<<", "*a", "&a 3", "&a [*a]", "- 1", "? a", "[", "{", "}", "'", "|", ">", "%", "@", "`",
    "1e400", "-1", "0", "99999999999999999999999999", "0.1", "1.5", "true", "[]", "{}", "[1, 2]",
    "{a: 1}", "[[[[]]]]", "[null]", "{class_path: x}", "{class_path: os.system}",
    "{class_path: 3, init_args: []}", "${a}", "$schema", "auto", "recipe.yaml", "..", "/",
    "/dev/zero",
    "a: b: c", "\t", "\x01", "\ufeff", "é", "“3”",
]  # fmt: skip
KEYS = [
    "more", "model", "data", "trainer", "config", "init_args", "class_path", "seed_everything",
    "network", "__path__", "1", "", "no", "ckpt_path", "run_dir", "d_model", "Model", "help",
    "print_config", "trainer.max_epochs",
]  # fmt: skip


class Raw(str):
    """Text that stands in the recipe as it is."""


def flow(value: Any) -> str:
    """A value in YAML's flow style."""
    if isinstance(value, Raw):
        return value
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(v)}" for key, v in value.items()) + "}"
    return json.dumps(value)


def block(settings: dict[str, Any]) -> str:
    """A recipe: a line for each group."""
    return "".join(f"{key}: {flow(value)}\n" for key, value in settings.items())


def recipe_text(rng: random.Random, settings: dict[str, Any], place: Path) -> bytes:
    """A recipe in which one to three things are odd."""
    text = ""
    for _ in range(rng.choice([1, 1, 1, 2, 3])):
        what = rng.random()
        if what < 0.6:
            _put(rng, settings, Raw(rng.choice(SCALARS)))
        elif what < 0.7:
            _put(rng, settings, _nested(rng))
        else:
            text = rng.choice([_twice, _bomb, _merged, _included, _documents])(rng, place)
    whole = (block(settings) + text).encode(errors="surrogatepass")
    return _mangled(rng, whole) if rng.random() < 0.15 else whole


def _put(rng: random.Random, settings: dict[str, Any], value: Any) -> None:
    """Puts a value in the place of another one, or under a new key."""
    node: Any = settings
    while True:
        key = rng.choice([*node])
        if not isinstance(node[key], dict) or not node[key] or rng.random() < 0.15:
            break
        node = node[key]
    node[rng.choice(KEYS) if rng.random() < 0.15 else key] = value


def _nested(rng: random.Random) -> Raw:
    depth = rng.choice([5, 30, 500, 5000])
    return Raw(rng.choice(["[" * depth + "]" * depth, "{a: " * depth + "1" + "}" * depth]))


def _twice(rng: random.Random, _: Path) -> str:
    key = rng.choice(["model", "data", "trainer", "seed_everything", "logger"])
    return f"{key}: {rng.choice(['{}', '1', 'none', '{max_epochs: 3}'])}\n"


def _bomb(rng: random.Random, _: Path) -> str:
    levels = rng.choice([3, 9, 30])
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, levels)]
    key = rng.choice(["average", "more", "patience"])
    return "\n".join([*lines, f"{key}: *a{levels - 1}", ""])


def _merged(rng: random.Random, _: Path) -> str:
    return rng.choice([
        "<<: {seed_everything: 5}\n", "parent: {<<: {limit: 3}}\n", "<<: [1]\n", "<<: *nowhere\n",
        "average: &n 2\nkeep_best: *n\n", "? [a, b]\n: 1\n", "? {a: 1}\n: 1\n", "&k average: 2\n",
    ])  # fmt: skip


def _included(rng: random.Random, place: Path) -> str:
    (place / "other.yaml").write_text(rng.choice(["beam: 3\n", "a: 1\n", "[", "!!python/none\n"]))
    key = rng.choice(["parent", "config", "average", "patience", "run_dir"])
    return f"{key}: {place / rng.choice(['other.yaml', 'recipe.yaml', 'none.yaml', ''])}\n"


def _documents(rng: random.Random, _: Path) -> str:
    return rng.choice(["---\naverage: 2\n", "...\n", "--- []\n", "...\naverage: 2\n", "- 1\n"])


def _mangled(rng: random.Random, text: bytes) -> bytes:
    what, at = rng.randrange(8), rng.randrange(len(text))
    return [
        text[:at],
        text[:at] + bytes([rng.randrange(256)]) + text[at:],
        text[:at] + b"\t" + text[at:],
        text.replace(b"\n", b"\r\n"),
        text.decode(errors="replace").encode("utf-16"),
        b"\xef\xbb\xbf" + text,
        rng.choice([b"", b"\n", b"- 1\n", b"3\n", b"text", b"null", b"\x00", b"%YAML 9.9\n---\n"]),
        rng.randbytes(40),
    ][what]  # fmt: skip


def options_of(rng: random.Random) -> list[str]:
    """Options behind the recipe."""
    key = rng.choice([
        "model.network.d_model", "model.learning_rate", "data.max_tokens", "trainer.max_epochs",
        "seed_everything", "average", "model.search", "trainer", "model.network", "data.tokenizer",
        "more", "trainer.callbacks", "trainer.logger", "trainer.strategy", "trainer.devices",
        "model.init_from", "architecture", "patience", "logger", "config",
    ])  # fmt: skip
    return [f"--{key}={rng.choice(SCALARS)}".replace("\0", "")]
