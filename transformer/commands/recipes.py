"""Recipes: where they lie, and which line of a file sets a key."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from transformer.data.files import recipes_folder
from transformer.errors import UserError, message, nearest

CONFIG_OPTIONS = ("-c", "--config")
DEEPEST, LARGEST = 20, 20_000  # levels and values of a recipe, aliases written out
PLAIN = ("str", "int", "float", "bool", "null", "timestamp", "seq", "map")  # YAML's own tags


def find_recipe(path: str) -> str:
    """Finds a recipe: the file itself or, outside a checkout, the one of that name in the wheel."""
    if Path(path).is_file():
        return path
    folder = recipes_folder()
    name = path.removeprefix("recipes/")
    if (folder / name).is_file():
        return str(folder / name)
    known = [f"recipes/{file.relative_to(folder).as_posix()}" for file in folder.rglob("*.yaml")]
    raise UserError(f"no such file or recipe: {path!r}{nearest(path, known)}")


def read(file: str | Path) -> yaml.MappingNode:
    """Reads a recipe as YAML nodes, which know their lines."""
    try:
        node = yaml.compose(Path(file).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not UTF-8 ({error}): convert it first") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise UserError(f"{file}:{line}: {error.problem}: this is no YAML") from None
    except yaml.YAMLError as error:
        raise UserError(f"{file}: {message(error)}: this is no YAML") from None
    except RecursionError:
        raise UserError(f"{file}: it is nested too deeply") from None
    if not isinstance(node, yaml.MappingNode):
        raise UserError(
            f"{file} is no recipe: it must hold keys and values, such as `data: {{...}}`"
        )
    for number, problem in enumerate(_problems(node)):
        if problem or number == LARGEST:
            raise UserError(f"{file}:{problem or f' it holds more than {LARGEST:,} values'}")
    return node


def _problems(node: yaml.Node, depth: int = 0) -> Iterator[str]:
    """For each value what is wrong with it, or nothing: what would be lost without a word."""
    line = node.start_mark.line + 1
    yield f"{line}: it is nested too deeply" if depth == DEEPEST else ""
    if node.tag.removeprefix("tag:yaml.org,2002:") not in PLAIN:
        yield f"{line}: the tag {node.tag} is not known: a recipe holds plain values"
    elif isinstance(node, yaml.MappingNode):
        seen: set[Any] = set()
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, yaml.ScalarNode) or key.value == "<<":
                yield f"{line}: a key must be a word, and `<<` is not read: write its settings out"
            if key.value in seen:
                yield f"{line}: {key.value} is set a second time: leave one"
            seen.add(key.value)
            yield from _problems(value, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            yield from _problems(value, depth + 1)
    elif "\ufeff" in node.value:
        yield f"{line}: {node.value!r} holds a byte order mark, which is read as nothing: delete it"


def look_up(node: yaml.Node, key: str) -> tuple[int, yaml.Node] | None:
    """Finds a dotted key below a node: its line and its value; None if it is not set."""
    found = None
    for part in key.split("."):
        entries = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((k.start_mark.line + 1, v) for k, v in entries if k.value == part), None)
        if found is None:
            return None
        node = found[1]
    return found


def content(node: yaml.Node) -> Any:
    """Returns what a node holds."""
    try:
        return yaml.SafeLoader("").construct_object(node, deep=True)
    except (ValueError, AttributeError, IndexError):  # 2024-25-12 looks like a date
        return node.value


def place(
    key: str, recipes: Sequence[tuple[str, yaml.MappingNode]], given: str | None = None
) -> str:
    """Returns `file:line: ` for the last recipe that sets `key` (to `given` if any), or nothing.

    A value that is not the file's, as it stands there or as it is read (`no` is False), came from
    the command line.
    """
    for file, root in reversed(recipes):
        found = look_up(root, key)
        if found is None:
            continue
        line, node = found
        is_text = given is not None and isinstance(node, yaml.ScalarNode)
        if not is_text or given in (node.value, str(content(node))):
            return f"{file}:{line}: "
    return ""


def check_groups(file: str, root: yaml.MappingNode, groups: Iterable[str]) -> None:
    """Refuses a recipe that takes in another one, or whose groups of settings are something else.

    Another one could have another architecture, on which the options depend.
    """
    line, node = look_up(root, "config") or (0, None)
    if node and content(node) is not None:
        raise UserError(
            f"{file}:{line}: config is not read in a recipe: give both, the one that it is built "
            f"on first, as in --config <that one> --config {file}"
        )
    for key in groups:
        found = look_up(root, key)
        if found and not isinstance(found[1], yaml.MappingNode):
            raise UserError(
                f"{file}:{found[0]}: {key} is {content(found[1])!r}, not a group of settings: "
                "indent settings below it, or leave it out"
            )
