"""Arguments of the commands: parsers whose errors are one line and name the nearest valid key."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from inspect import Parameter, isclass, signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from docstring_parser import parse as docstring
from jsonargparse import ArgumentParser

from transformer.data.corpus import recipes_folder
from transformer.errors import UserError

if TYPE_CHECKING:
    Base = ArgumentParser
else:  # no base, so that the mixin can stand before Lightning's parser, too
    Base = object

UNRECOGNIZED = "unrecognized arguments: "
UNKNOWN_KEY = re.compile(r"(?:option|Option) '([^']+)'")
KNOWN_KEY = re.compile(r'Parser key "([^"]+)":?')
GIVEN_VALUE = re.compile(r"(?:Got value|Given value): (.*)")
NESTED_PROBLEM = re.compile(
    r"key '[^']+' does not exist.*|(?<=Problem with given class_path )'.*\n.*"
)
#: Of a value inside of a list's entry: its key, and a message of its own.
ENTRY = re.compile(r'Parser key "([^"]+)":\s*\n(.*?Given value: [^\n]*)', re.DOTALL)
CONFIG_OPTIONS = ("-c", "--config")
#: Keys of recipes that had another name before.
RENAMED = {"data.also": "data.extra_corpora"}


class OneLineErrors(Base):
    """Mixin for any jsonargparse parser: an error is one line that names the nearest valid key.

    Stands before the parser class, as in `class Parser(OneLineErrors, ArgumentParser)`;
    LightningCLI takes such a class as its `parser_class`. Subcommands and the parsers of nested
    classes inherit it, because jsonargparse makes them of the same class. `--config` also finds
    the recipes that came in the wheel.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Abbreviations would let `--trainer.max_epoch` pass, which in a recipe is an error.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        self.files: list[str] = []

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str], *rest: Any, **kwargs: Any
    ) -> Any:
        """Parses the arguments; looks for the files of `--config` among the recipes, too."""
        return super().parse_args(with_recipes_found(args or []), *rest, **kwargs)

    def parse_path(self, cfg_path: Any, *rest: Any, **kwargs: Any) -> Any:
        """Remembers which files were read, so that an error can name the file and the line."""
        self.files.append(str(cfg_path))
        return super().parse_path(cfg_path, *rest, **kwargs)

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """Adds the nearest valid key to the error about a key that does not exist."""
        try:
            super().validate(*args, **kwargs)
        except KeyError as error:
            parser = getattr(error, "subcommand_parser", self)
            key = UNKNOWN_KEY.search(str(error))
            if key is None:
                raise
            # The group that the message names is the first part of the key.
            group = re.match(r"Group '([^']+)'", str(error))
            name = f"{group[1]}.{key[1]}" if group else key[1]
            where = place(name, parser.files)
            raise type(error)(where + unknown(name, valid_keys(parser))) from error

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Prints one line and exits with code 2, in place of jsonargparse's usage and long text."""
        if not self.exit_on_error:
            super().error(message, ex)
        self.exit(2, f"transformer: error: {self.explain(message)}\n")

    def explain(self, message: str) -> str:
        """Turns jsonargparse's message into one line: file and line, key, what is valid, value."""
        if message.startswith(UNRECOGNIZED):
            return unknown_argument(message.removeprefix(UNRECOGNIZED).removeprefix("-- "), self)
        key = KNOWN_KEY.search(message)
        if key is None:
            # Something with a file, whose name was lost on the way.
            file = self.files[-1] if self.files else "the configuration"
            if message.startswith("Unexpected config"):
                return f"{file} is no recipe: it must hold keys and values, such as `data: {{...}}`"
            if "codec can't decode" in message:
                return f"{file} is not UTF-8 ({message}): convert it first"
            return " ".join(message.replace('"<unicode string>"', file).split())
        value = GIVEN_VALUE.search(message)
        where = place(key[1], self.files, value and value[1])
        return where + f"{key[1]}: " + one_line(KNOWN_KEY.sub("", message, count=1))


class Parser(OneLineErrors, ArgumentParser):
    """The parser of every command but `fit`, which adds the same mixin to Lightning's."""

    def parse_args(self, args: Sequence[str], *rest: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Parses the arguments; texts and files may stand between and after options."""
        return super().parse_args(self.options_first(args), *rest, **kwargs)

    def options_first(self, args: Sequence[str]) -> list[str]:
        """Sorts arguments: argparse takes a list of texts only where they stand together.

        If there is no positional argument, the last value of an option that takes several is one:
        the bundle in `--input a.txt b.txt bundle`.
        """
        actions = {option: a for a in self._actions for option in a.option_strings}
        options: list[str] = []
        others: list[str] = []
        last = 0
        left = list(args)
        while left:
            arg = left.pop(0)
            if arg == "--":
                others += left
                break
            text = " " in arg and not arg.startswith("--")  # "- hello": a line of a dialogue
            if not arg.startswith("-") or arg == "-" or text:
                others.append(arg)
                continue
            options.append(arg)
            nargs = getattr(actions.get(arg), "nargs", 0)
            taken = 0
            while left and nargs != 0 and not left[0].startswith("--"):
                options.append(left.pop(0))
                nargs = nargs if nargs == "+" else 0
                taken += 1
            last = len(options) - 1 if taken > 1 else last
        if last and not others:
            others.append(options.pop(last))
        return [*options, "--", *others] if others else options

    def add(
        self,
        function: Callable[..., Any],
        arguments: Mapping[str, str | None],
        skip: Iterable[str] = (),
    ) -> None:
        """Adds an option for each parameter of a function or a class, described by its docstring.

        Args:
            function: Its type hints say what is valid, its docstring what it is for.
            arguments: Those that take several values, with argparse's `nargs`, or that are
                positional (no dashes in front). Switches are known by their type, bool.
            skip: Parameters that get no option.
        """
        documented = {p.arg_name: p.description for p in docstring(function.__doc__ or "").params}
        switches = [p.name for p in signature(function).parameters.values() if is_switch(p)]
        names = [name.lstrip("-") for name in arguments]
        add = self.add_class_arguments if isclass(function) else self.add_function_arguments
        for name, nargs in arguments.items():
            about = documented[name.lstrip("-")]
            action = self.add_argument(name, nargs=nargs, type=str, help=about)
            if nargs == "*":  # none is enough, which jsonargparse overlooks
                action.required = False
        add(function, skip={*names, *switches, *skip})
        for name in switches:
            self.add_argument(f"--{name}", action="store_true", help=documented[name])


class Peek(argparse.ArgumentParser):
    """A parser that leaves what it does not know to another one; jsonargparse cannot do that."""

    def error(self, message: str) -> NoReturn:
        """Puts what is wrong on one line."""
        raise UserError(f"{message}; see {self.prog} --help")


def is_switch(parameter: Parameter) -> bool:
    """Says whether a parameter is a switch: its option takes no value."""
    return parameter.annotation in (bool, "bool")


def valid_keys(parser: Any) -> list[str]:
    """Lists the dotted keys that a parser knows, without its groups and its own options."""
    keys = [
        action.dest for action in parser._actions if action.dest not in ("help", "print_config")
    ]
    groups = {key.rpartition(".")[0] for key in keys}
    return [key for key in keys if key not in groups]


def unknown(key: str, keys: Iterable[str]) -> str:
    """Says that a key does not exist, and its new name or which one is nearest."""
    if key in RENAMED:
        return f"key {key!r} is {RENAMED[key]!r} now"
    near = nearest(key, keys)
    return f"key {key!r} does not exist" + (f", the nearest is {near!r}" if near else "")


def unknown_argument(arguments: str, parser: Any) -> str:
    """Says that the first of some arguments does not exist, and which option is nearest."""
    argument = arguments.split()[0]
    if not argument.startswith("-"):
        recipe = (
            argument.endswith((".yaml", ".yml")) and "--config" in parser._option_string_actions
        )
        hint = f": a recipe is given as --config {argument}" if recipe else ""
        return f"unexpected argument {argument!r}{hint}"
    option = argument.split("=")[0]
    if option.lstrip("-") in RENAMED:
        return f"option {option!r} is '--{RENAMED[option.lstrip('-')]}' now"
    near = nearest(option.lstrip("-"), valid_keys(parser))
    return f"option {option!r} does not exist" + (f", the nearest is '--{near}'" if near else "")


def nearest(key: str, keys: Iterable[str]) -> str | None:
    """Finds the key most like `key`; the last part counts twice, as groups are long and common."""

    def likeness(other: str) -> float:
        leaf = SequenceMatcher(None, key.rpartition(".")[2], other.rpartition(".")[2]).ratio()
        return leaf + SequenceMatcher(None, key, other).ratio()

    best = max(keys, key=likeness, default=None)
    return best if best is not None and likeness(best) > 1.0 else None


def place(key: str, files: Iterable[str], value: str | None = None) -> str:
    """Returns `file:line: ` for the last file that sets `key` (to `value` if given), or nothing."""
    import yaml

    for file in reversed(list(files)):
        node = yaml.compose(Path(file).read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
        line = None
        for part in key.split("."):
            entries = node.value if isinstance(node, yaml.MappingNode) else []
            line, node = next(
                ((k.start_mark.line + 1, v) for k, v in entries if k.value == part), (None, None)
            )
        # A value that is not the file's, as it stands there or as it is read (`no` is False), came
        # from the command line.
        scalar = isinstance(node, yaml.ScalarNode)
        read = {node.value, str(yaml.SafeLoader("").construct_object(node))} if scalar else {value}
        if line and value in {None, *read}:
            return f"{file}:{line}: "
    return ""


def one_line(message: str) -> str:
    """Shortens a message of jsonargparse about a value; any other is only put on one line."""
    if entry := ENTRY.search(message):
        return f"{entry[1]}: {one_line(entry[2])}"
    problem = NESTED_PROBLEM.search(message)
    if problem:
        return " ".join(problem[0].split())
    expected = re.findall(r"Expected an? (.+?)(?:\. Got value|\n|$)", message)
    value = GIVEN_VALUE.search(message)
    if not expected or value is None:
        return " ".join(message.split())
    kinds = [re.sub(r"<class '(\w+)'>|typing\.", r"\1", kind) for kind in expected]
    kinds = [re.sub(r"^dot import path string.*", "group of settings", kind) for kind in kinds]
    kinds = [kind for kind in kinds if not kind.startswith("path but ")]
    kinds = [re.sub(r"^Literal\[(.*)\]$", r"one of \1", kind) for kind in kinds]
    # Text is never a wrong value for text: without quotes YAML has read it as something else.
    quotes = '; quote it, as in "no", which YAML reads as false' if "str" in kinds else ""
    return f"expected {' or '.join(kinds).replace('NoneType', 'null')}, got {value[1]!r}{quotes}"


def with_recipes_found(args: Sequence[str]) -> list[str]:
    """Replaces each `--config` file that is not there by the recipe of that name in the wheel."""
    found = list(args)
    for i, arg in enumerate(found):
        option, equals, value = arg.partition("=")
        if option in CONFIG_OPTIONS and equals:
            found[i] = f"{option}={find_recipe(value)}"
        elif option in CONFIG_OPTIONS and i + 1 < len(found):
            found[i + 1] = find_recipe(found[i + 1])
    return found


def find_recipe(path: str) -> str:
    """Finds a recipe: the file itself or, outside a checkout, the one of that name in the wheel.

    Args:
        path: A file, or a recipe's path such as `recipes/multi30k/tiny_en_de.yaml`.

    Returns:
        The path of a file that exists.

    Raises:
        ValueError: If there is neither; it names the nearest recipe.
    """
    if Path(path).is_file():
        return path
    folder = recipes_folder()
    name = path.removeprefix("recipes/")
    if (folder / name).is_file():
        return str(folder / name)
    known = [f"recipes/{file.relative_to(folder).as_posix()}" for file in folder.rglob("*.yaml")]
    near = get_close_matches(path, known, n=1)
    raise UserError(
        f"no such file or recipe: {path!r}" + (f", the nearest is {near[0]!r}" if near else "")
    )


def check_groups(files: Iterable[str]) -> None:
    """Refuse recipes in which `model` or another group is not a group of settings.

    Raises:
        ValueError: which file and key; Lightning would train with defaults, or break.
    """
    import yaml

    for file in files:
        groups = yaml.safe_load(Path(file).read_text(encoding="utf-8")) or {}
        for key in ("model", "data", "trainer", "old_pair"):
            if not isinstance(groups.get(key, {}), dict):
                raise UserError(
                    f"{file}: {key} is {groups[key]!r}, not a group of settings: indent settings "
                    "below it, or leave it out"
                )
