"""Arguments of the commands: parsers whose errors are one line and name the nearest valid key."""

from __future__ import annotations

import argparse
import re
import textwrap
from collections.abc import Callable, Sequence, Set
from inspect import Parameter, isclass, signature
from itertools import takewhile
from typing import Any, NoReturn, get_args

from docstring_parser import parse as docstring
from jsonargparse import ActionConfigFile, ArgumentParser, set_parsing_settings
from yaml import MappingNode

from transformer.commands.recipes import (
    CONFIG_OPTIONS,
    check_groups,
    content,
    find_recipe,
    look_up,
    place,
    read,
)
from transformer.errors import UserError, nearest

# The words of jsonargparse: the key that a message is about, what was expected of its value, the
# value itself, and what is wrong with a class that was named.
KEY = re.compile(r'Parser key "([^"]+)":?')
EXPECTED = re.compile(
    r"Expected an? (?!path but)(?:<class ')?(?:typing\.)?(.+?)(?:'>)?(?:[:.] |\n|$)"
)
WORDS = {"NoneType": "null", "dot import path string": "group of settings"}
VALUE = re.compile(r"(?:Got|Given) value: (.*)")
CLASS = re.compile(r"Problem with given class_path ('[^']+':)\s*(.*)")
DENIED = re.compile(r"Importing ('[^']+') is not allowed")

#: All that a recipe may name by a path of Python: to import anything is to run it, and a callback
#: of Lightning runs any function that it is given. The entries of data.extra_corpora are taken for
#: classes that are named, too.
CLASSES = [f"lightning.pytorch.{kind}" for kind in (
    "accelerators", "callbacks", "loggers", "plugins", "profilers", "strategies",
)]  # fmt: skip
set_parsing_settings(
    import_path_denylist=["*"],
    import_path_allowlist=[*CLASSES, "lightning.fabric.plugins", "transformer.data.mixture"],
    instantiate_subclass_spec_in_any=False,
)

WIDTH = 100  # of the help
LONGEST = 400  # characters of a value, or of a message, in an error


class Recipe(ActionConfigFile):
    """The option for recipes: finds also the ones that came in the wheel, and looks into them."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: Any = None) -> None:
        file = find_recipe(values)
        root = read(file)
        check_groups(file, root, parser.groups)
        parser.recipes.append((file, root))
        super().__call__(parser, cfg, file, option_string)


class Parser(ArgumentParser):
    """A parser of jsonargparse whose errors are one line that names the nearest valid key.

    The parsers of nested classes are of the same class, because jsonargparse makes them so.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        # Abbreviations would let `--trainer.max_epoch` pass, which in a recipe is an error.
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        #: Their names and nodes: jsonargparse is in the folder of each while it parses it.
        self.recipes: list[tuple[str, MappingNode]] = []

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Refuses null, and integers that are no floats, which jsonargparse overlooks."""
        try:
            found = super().parse_args(*args, **kwargs)
        except OverflowError as error:
            raise UserError(f"a number has too many digits ({error})") from None
        for action in self._actions:
            hint, is_null = getattr(action, "_typehint", None), found.get(action.dest, 0) is None
            if is_null and action.default is not None and type(None) not in get_args(hint):
                where = place(action.dest, self.recipes, str(None))
                raise UserError(
                    f"{where}{action.dest} is null: give a value, such as its default "
                    f"{action.default}, or leave it out"
                )
        return found

    def validate(self, *args: Any, **kwargs: Any) -> None:
        """Adds the nearest valid key to the error about a key that does not exist."""
        try:
            super().validate(*args, **kwargs)
        except KeyError as error:
            # Group 'data' does not accept option 'tran'
            key = ".".join(str(error).split("'")[1::2])
            where = place(key, self.recipes)
            raise type(error)(where + unknown(f"key {key!r}", key, self)) from None

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises an error of one line: file and line, key, what is valid, the value."""
        if not self.exit_on_error:  # the parser of a nested class
            super().error(message, ex)
        _, is_unknown, arguments = message.partition("unrecognized arguments: ")
        _, *parts = KEY.split(message)
        if is_unknown:
            message = self.explain_argument(next(iter(arguments.removeprefix("-- ").split()), ""))
        elif parts:
            keys, text = parts[::2], parts[-1]
            value = VALUE.search(text)
            where = place(keys[0], self.recipes, value and value[1])
            message = where + ": ".join([*keys, explain_value(text)])
        raise UserError(message)

    def explain_argument(self, argument: str) -> str:
        """Says that an argument does not exist, and which option is nearest."""
        option = argument.split("=")[0]
        if argument.startswith("-"):
            return unknown(f"option {option!r}", option.lstrip("-"), self, "--")
        recipe = argument.endswith((".yaml", ".yml")) and "--config" in self._option_string_actions
        hint = f": a recipe is given as --config {argument}" if recipe else ""
        return f"unexpected argument {argument!r}{hint}"


def explain_value(message: str) -> str:
    """Shortens a message about a value; any other is returned as it is."""
    if denied := DENIED.search(message):
        return f"{denied[1]} is not imported: use classes of {', '.join(CLASSES)}"
    if problem := CLASS.search(message):
        return f"{problem[1]} {problem[2]}"
    value = VALUE.search(message)
    kinds = EXPECTED.findall(message[: value.end()] if value else "")
    if not kinds or value is None:
        return shorten(message)
    kinds = [re.sub(r"Literal\[(.*)\]", r"one of \1", WORDS.get(kind, kind)) for kind in kinds]
    # Text is never a wrong value for text: without quotes YAML has read it as something else.
    quotes = '; quote it, as in "no", which YAML reads as false' if "str" in kinds else ""
    return f"expected {' or '.join(kinds)}, got {shorten(value[1])!r}{quotes}"


def shorten(text: str) -> str:
    """A text whose middle is left out if it is long."""
    return text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"


def unknown(what: str, key: str, parser: ArgumentParser, dashes: str = "") -> str:
    """Says that a key does not exist, and which one is nearest."""
    own = {"help", "print_config", *(parser.groups or ())}
    keys = [f"{dashes}{action.dest}" for action in parser._actions if action.dest not in own]
    return f"{what} does not exist{nearest(f'{dashes}{key}', keys)}"


def explained(name: str, about: str, action: argparse.Action) -> str:
    """Puts an option, what it is for, its default and its choices into columns."""
    has_default = action.default is not False and action.default not in (None, "", ())
    choices = [action.default] if has_default else []
    metavar = str(action.metavar)
    if metavar.startswith("{") and not metavar.startswith("{true"):
        others = metavar.strip("{}").split(",")
        choices += [c for c in others if c != action.default and f"`{c}`" not in about]
    hint = " | ".join(str([*c] if isinstance(c, tuple) else c) for c in choices)
    text = " ".join(f"{about} [{hint}]".split()).removesuffix(" []")
    return textwrap.fill(text, WIDTH, initial_indent=f"  {name:<20} ", subsequent_indent=" " * 23)


class OptionParser(Parser):
    """Options for the parameters of a function: the parser of commands that take no recipe."""

    needed: Sequence[argparse.Action] = ()  # jsonargparse hides it while it parses

    def format_help(self, *_: Any) -> str:
        """Lists the arguments and the options, each with its default and its choices."""
        shown = [action for action in self._actions if action.default != argparse.SUPPRESS]
        usage = [f"usage: {self.prog}"]
        rows = []
        for action in shown:
            value = f"<{action.dest}>" if action in self.needed else f"[<{action.dest}>]"
            option = action.option_strings[0] if action.option_strings else ""
            rows.append(explained(option or value, str(action.help), action))
            if action in self.needed or not option:
                usage.append(f"{option} {value}".strip())
        about = textwrap.fill(" ".join(str(self.description).split()), WIDTH)
        usage.append("[--<option> <value> ...]")
        return "\n".join([" ".join(usage), "", about, "", *rows, ""])

    def parse_args(self, args: Sequence[str], *rest: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        """Parses the arguments; texts and files may stand between and after options."""
        self.needed = [action for action in self._actions if action.required]
        return super().parse_args(self.options_first(args), *rest, **kwargs)

    def options_first(self, args: Sequence[str]) -> list[str]:
        """Sorts arguments: argparse takes a list of texts only where they stand together.

        If there is no positional argument, the last value of an option that takes several is one:
        the bundle in `--input a.txt b.txt bundle`.
        """
        nargs = {option: a.nargs for a in self._actions for option in a.option_strings}
        options: list[str] = []
        others: list[str] = []
        last = 0
        left = list(args)
        while left:
            arg = left.pop(0)
            if arg == "--":
                others += left
                break
            if not arg.startswith("-") or arg == "-" or (" " in arg and arg[:2] != "--"):
                others.append(arg)  # also "- hello": a line of a dialogue
                continue
            options.append(arg)
            most = {0: 0, "+": len(left)}.get(nargs.get(arg, 0), 1)
            values = list(takewhile(lambda value: not value.startswith("--"), left[:most]))
            options += values
            del left[: len(values)]
            last = len(options) - 1 if len(values) > 1 else last
        if last and not others:
            others.append(options.pop(last))
        return [*options, "--", *others] if others else options

    def add(self, function: Callable[..., Any], skip: Set[str] = frozenset()) -> None:
        """Adds an option for each parameter of a function or a class, described by its docstring.

        Parameters that must be given, or are texts, are positional, unless they stand behind a `*`.

        Args:
            function: Its type hints say what is valid, its docstring what it is for.
            skip: Parameters that get no option.
        """
        documented = {p.arg_name: p.description for p in docstring(function.__doc__ or "").params}
        ours: set[str | int] = {*skip}
        for name, parameter in signature(function).parameters.items():
            settings = _own_settings(parameter)
            if name in skip or settings is None:
                continue
            ours.add(name)
            is_option = parameter.kind == Parameter.KEYWORD_ONLY or parameter.annotation is bool
            flag = f"--{name}" if is_option else name
            action = self.add_argument(flag, help=documented[name], **settings)
            if settings.get("nargs") == "*":  # none is enough, which jsonargparse overlooks
                action.required = False
        add = self.add_class_arguments if isclass(function) else self.add_function_arguments
        add(function, skip=ours)


def _own_settings(parameter: Parameter) -> dict[str, Any] | None:
    """Says how argparse reads switches, texts and positional arguments; the rest is None."""
    if parameter.annotation is bool:
        return {"action": "store_true"}
    is_option = parameter.kind != Parameter.POSITIONAL_OR_KEYWORD
    is_needed = parameter.default is Parameter.empty
    if parameter.annotation == Sequence[str]:
        return {"type": str, "nargs": "+" if is_option or is_needed else "*"}
    return {"type": str} if is_needed and not is_option else None


def run_function(function: Callable[..., Any], args: Sequence[str]) -> None:
    """Runs a command: a function whose parameters are its options, and its docstring their help."""
    about = docstring(function.__doc__ or "")
    parser = OptionParser(
        prog=f"transformer {function.__name__}",
        description=f"{about.short_description} {about.long_description or ''}",
    )
    parser.add(function)
    function(**vars(parser.parse_args(args)))


class Peek(argparse.ArgumentParser):
    """A parser that leaves what it does not know to another one; jsonargparse cannot do that."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def given(args: Sequence[str], key: str) -> tuple[str | None, str]:
    """Looks up the value of one key before everything is parsed.

    Returns:
        The value on the command line, or else in the last of its recipes, None if there is none;
        and the beginning of a message about it.
    """
    recipes, others = apart(args)
    parser = Peek(prog="transformer fit", add_help=False, allow_abbrev=False)
    parser.add_argument(f"--{key}", dest="value")
    option, _ = parser.parse_known_args(others)
    if option.value is not None:  # null takes back what a recipe sets
        return None if option.value == "null" else option.value, "--"
    for file in map(find_recipe, reversed(recipes)):
        if found := look_up(read(file), key):
            value = content(found[1])
            return (None, "") if value is None else (str(value), f"{file}: ")
    return None, ""


def apart(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """The recipes among the arguments of `fit`, and all other arguments."""
    parser = Peek(prog="transformer fit", add_help=False, allow_abbrev=False)
    parser.add_argument(*CONFIG_OPTIONS, dest="recipes", action="append", default=[])
    found, others = parser.parse_known_args(args)
    return found.recipes, others
