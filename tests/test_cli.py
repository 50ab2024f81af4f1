"""The command table, its speed, and errors that are one line and name the nearest valid key."""

import io
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Literal

import pytest
from jsonargparse import set_parsing_settings
from toys import raising

import transformer
from transformer.__main__ import COMMANDS, main, module_of
from transformer.commands.arguments import Parser, Recipe, given
from transformer.commands.keys import parser_of
from transformer.commands.recipes import find_recipe
from transformer.errors import UserError, message
from transformer.models import TransformerConfig

ROOT = Path(__file__).parent.parent
set_parsing_settings(import_path_allowlist=["test_cli"])  # `Tiny` is of this file


def test_help_lists_the_commands_at_once() -> None:
    command, seconds = [sys.executable, "-m", "transformer", "--help"], []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
        seconds.append(time.perf_counter() - start)
    for name, line in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(line)}$", done.stdout, re.MULTILINE)
    assert min(seconds) < 0.3


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("A", "1", "10000"), ("GOMP_SPINCOUNT", "7", "7"), ("OMP_WAIT_POLICY", "active", None)],
)
def test_waiting_threads_sleep_unless_the_user_says_otherwise(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str | None
) -> None:
    for variable in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, value)
    seen: list[str | None] = []
    command = SimpleNamespace(main=lambda _: seen.append(os.environ.get("GOMP_SPINCOUNT")))
    monkeypatch.setattr("transformer.__main__.module_of", lambda _: command)
    main(["score"])
    assert seen == [expected]


def test_without_standard_error_nothing_is_said_on_standard_output(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["no such command"]) == 2
    assert capsys.readouterr().out == ""


def test_a_character_that_the_terminal_lacks_is_spelled(monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="latin-1"))
    command = SimpleNamespace(main=lambda _: print("de → é \udcff"))
    monkeypatch.setattr("transformer.__main__.module_of", lambda _: command)
    assert main(["score"]) == 0
    assert out.getvalue() == b"de \\u2192 \xe9 \\udcff\n"


def test_nothing_heavy_is_imported_before_it_is_used() -> None:
    code = (
        "import sys, transformer; from transformer.__main__ import main; main(['--help']);"
        "print({'torch', 'lightning', 'jsonargparse', 'numpy', 'datasets'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.endswith("set()\n"), done.stdout + done.stderr


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_of_the_table_is_there(command: str) -> None:
    assert callable(module_of(command).main)


@pytest.mark.parametrize("name", transformer.__all__)
def test_public_names_are_there(name: str) -> None:
    assert getattr(transformer, name) is not None
    assert name in dir(transformer)


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Translater'"):
        transformer.Translater  # noqa: B018


def test_version_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    version = capsys.readouterr().out.split()[1]
    assert version == transformer.__version__
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\n## {version}\n" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_mistyped_command_names_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tranlsate", "x"]) == 2
    expected = "transformer: error: no command 'tranlsate', the nearest is 'translate'\n"
    assert capsys.readouterr().err == expected
    assert main(["zzz"]) == 2
    assert "there are fit, test" in capsys.readouterr().err


def test_no_command_prints_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert "commands:" in capsys.readouterr().out


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Callable[[BaseException], None]:
    """Puts a command `score` in place that raises what it is told to."""

    def install(error: BaseException) -> None:
        module = ModuleType("transformer.commands.score")
        module.main = raising(error)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "transformer.commands.score", module)

    monkeypatch.delenv("TRANSFORMER_DEBUG", raising=False)
    return install


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (UserError("d_model 100 is\nnot divisible by 3 heads"), "d_model 100 is not divisible by"),
        (FileNotFoundError(2, "No such file or directory", "x.en"), "x.en: No such file or dir"),
        (UserError("no such recipe"), "no such recipe"),
        (PermissionError(13, "Permission denied", "runs"), "runs: Permission denied"),
    ],
)
def test_an_error_of_the_user_is_one_line(
    command: Callable[[BaseException], None],
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
    line: str,
) -> None:
    command(error)
    assert main(["score"]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"transformer: error: {line}")
    assert printed.count("\n") == 1


def test_debug_shows_where_an_error_was_raised(
    command: Callable[[BaseException], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    command(UserError("x"))
    monkeypatch.setenv("TRANSFORMER_DEBUG", "1")
    with pytest.raises(ValueError, match="x"):
        main(["score"])


@pytest.mark.parametrize("error", [ZeroDivisionError("a bug"), ValueError("Expecting property")])
def test_an_error_of_the_program_is_not_hidden(
    command: Callable[[BaseException], None], error: Exception
) -> None:
    """Nor one of a library, though it is a ValueError, as those of the package are."""
    command(error)
    with pytest.raises(type(error), match=str(error)):
        main(["score"])


def test_every_error_of_the_package_is_for_the_user() -> None:
    """One class says so: a plain ValueError would show a traceback for a misspelt key."""
    plain = re.compile(r"raise (ValueError|FileNotFoundError)\(|raise OSError\(\s*['\"f)]")
    for file in (ROOT / "transformer").rglob("*.py"):
        assert not plain.search(file.read_text(encoding="utf-8")), file


def test_interrupt_has_its_exit_code(command: Callable[[BaseException], None]) -> None:
    command(KeyboardInterrupt())
    assert main(["score"]) == 130


def test_an_output_that_takes_no_more() -> None:
    """A closed pipe is quiet, a full disk is one line."""
    code = (
        "import sys, types; from transformer.__main__ import main\n"
        "module = types.ModuleType('x'); module.main = lambda args: print('line\\n' * 100_000)\n"
        "sys.modules['transformer.commands.score'] = module; sys.exit(main(['score']))"
    )
    environment = {**os.environ, "CODE": code}
    found = {}
    for where in ("| head -n 1", "> /dev/full; echo $?"):
        done = subprocess.run(
            f'"{sys.executable}" -c "$CODE" {where}', shell=True, capture_output=True, text=True,
            cwd=ROOT, env=environment,
        )  # fmt: skip
        found[where[0]] = done.stdout, done.stderr
    closed = "import sys; from transformer.__main__ import main; sys.exit(main(['translate', 'x']))"
    done = subprocess.run(
        f'"{sys.executable}" -c "$CODE" <&- >&-', shell=True, capture_output=True, text=True,
        cwd=ROOT, env={**os.environ, "CODE": closed},
    )  # fmt: skip
    assert done.stderr.startswith("transformer: error: ") and done.stderr.count("\n") == 1
    full = "transformer: error: No space left on device\n"
    assert found == {"|": ("line\n", ""), ">": ("2\n", full)}


def test_the_help_of_fit_is_about_its_own_keys_first(capsys: pytest.CaptureFixture[str]) -> None:
    """Of Lightning's the ones that are in use, and where the others are explained."""
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    text = capsys.readouterr().out
    lines = text.splitlines()
    assert len(lines) <= 160
    groups = [line.split(":")[0] for line in lines if re.match(r"[a-z_.]+: ", line)]
    assert groups[0] == "usage" and groups[1] == "model" and groups[-1] == "trainer"
    keys = re.findall(r"^  (\w+) ", text, re.MULTILINE)
    assert {"average", "label_smoothing", "d_model", "beam", "vocab_size", "max_epochs"} <= {*keys}
    assert not {"profiler", "detect_anomaly", "limit_predict_batches"} & {*keys}
    assert "https://lightning.ai/docs/pytorch/stable/common/trainer.html" in lines[-1]
    assert "activation           of the feed-forward layers. [relu | gelu | swish]" in text
    assert "`setup`" not in text and "Customize every aspect" not in text  # words for programmers


@pytest.mark.parametrize("key", ["average", "weight_decay", "activation_dropout", "rank", "top_k"])
def test_a_default_of_0_is_shown(key: str) -> None:
    text = parser_of(TransformerConfig()).format_help()
    (text,) = re.findall(rf"^  {key} (.*(?:\n {{23}}.*)*)", text, re.MULTILINE)
    assert re.search(r"\[0(\.0)?\]$", text)


@pytest.mark.parametrize(
    ("command", "arguments", "option"),
    [
        ("translate", "<bundle> [<texts>]", "--max_tokens         Source tokens in a batch"),
        (
            "score",
            "<bundle> --src <src> --tgt <tgt>",
            "--skip               Pairs at the beginning",
        ),
        ("test", "<bundle>", "--data.test          Corpus to test on."),
        ("average", "<checkpoints> <bundle>", "<bundle>             Folder to write"),
        ("table", "<results> <markdown>", "<markdown>           File with the two comments."),
    ],
)
def test_the_help_of_a_command_is_a_list_of_its_options(
    command: str, arguments: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([command, "--help"])
    text = capsys.readouterr().out
    assert text.startswith(f"usage: transformer {command} {arguments} [--<option> <value> ...]\n\n")
    assert f"\n  {option}" in text
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.splitlines()) <= 70


@pytest.mark.parametrize(("given", "read"), [("1", int), ("1.0", float), ("0.5", float)])
def test_a_whole_number_of_batches_is_no_share(given: str, read: type, tmp_path: Path) -> None:
    """Lightning would take 1 for 1.0, all of them."""
    parser = parser_of(TransformerConfig())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(f"trainer: {{limit_test_batches: {given}}}")
    for args in (["--trainer.limit_test_batches", given], ["--config", str(recipe)]):
        found = parser.parse_args(args).trainer.limit_test_batches
        assert (found, type(found)) == (read(float(given)), read)


def test_an_option_wins_over_a_recipe_wherever_it_stands(tmp_path: Path) -> None:
    recipe, later = tmp_path / "recipe.yaml", tmp_path / "later.yaml"
    recipe.write_text("average: 3\nmodel: {init_from: parent}")
    later.write_text("model: {init_from: null}")
    parser, option = parser_of(TransformerConfig()), ["--average", "5"]
    for args in ([*option, "--config", str(recipe)], ["-c", str(recipe), *option]):
        assert parser.parse_args(args).average == 5
    both = ["--config", str(recipe), "--config", str(later)]
    assert parser.parse_args(both).model.init_from is given(both, "model.init_from")[0] is None
    assert given([*both, "--model.init_from", "other"], "model.init_from") == ("other", "--")
    assert given(["--config", str(recipe)], "model.init_from") == ("parent", f"{recipe}: ")


@dataclass(frozen=True)
class Network:
    d_model: int = 512
    norm: Literal["post", "pre"] = "post"


class Model:
    def __init__(self, network: Network | None = None, dropout: float = 0.1) -> None: ...


class Tiny(Model):
    def __init__(self, learning_rate: float = 0.1) -> None: ...


def parse(*args: str) -> None:
    parser = Parser()
    parser.add_argument("-c", "--config", action=Recipe)
    parser.add_argument("--seed", type=int | None, default=1)
    parser.add_class_arguments(Network, "network")
    parser.add_subclass_arguments(Model, "model", required=False)
    parser.parse_args(list(args))


def error_of(*args: str) -> str:
    with pytest.raises(UserError) as error:
        parse(*args)
    return message(error.value)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--network.d_modl=3"],
            "option '--network.d_modl' does not exist, the nearest is '--network.d_model'",
        ),
        (
            ["--d_model", "3"],
            "option '--d_model' does not exist, the nearest is '--network.d_model'",
        ),
        (["--see", "3"], "option '--see' does not exist, the nearest is '--seed'"),
        (["--xyz", "3"], "option '--xyz' does not exist"),
        (["stray"], "unexpected argument 'stray'"),
        ([""], "unexpected argument ''"),
        (["--network.norm=pree"], "network.norm: expected one of 'post', 'pre', got 'pree'"),
        (["--seed=often"], "seed: expected int or null, got 'often'"),
    ],
)
def test_errors_on_the_command_line(args: list[str], message: str) -> None:
    assert error_of(*args) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "seed: 1\nnetwork:\n  d_modl: 3\n",
            "recipe.yaml:3: key 'network.d_modl' does not exist, the nearest is 'network.d_model'",
        ),
        ("netwrk: {norm: pre}", "recipe.yaml:1: key 'netwrk.norm' does not exist, the nearest is "),
        ("\nseed: many", "recipe.yaml:2: seed: expected int or null, got 'many'"),
        (
            "model:\n  class_path: test_cli.Tiny\n  init_args: {learning_rat: 1}",
            "recipe.yaml:1: model: 'test_cli.Tiny': key 'learning_rat' does not exist, "
            "the nearest is 'learning_rate'",
        ),
        ("model: {class_path: test_cli.Tinny}", "has no attribute 'Tinny'"),
        (
            "network: {d_model: null}",
            "recipe.yaml:1: network.d_model is null: give a value, such as its default 512",
        ),
        ("network: 3", "recipe.yaml:1: network is 3, not a group of settings: indent settings"),
        (
            "config: {a: 1}",
            "recipe.yaml:1: config is not read in a recipe: give both, the one",
        ),
        ("config: base.yaml", "recipe.yaml:1: config is not read in a recipe: give both, the one"),
        ("seed: 2024-25-12", "recipe.yaml:1: seed: expected int or null, got '2024-25-12'"),
        ("network: 2024-25-12", "recipe.yaml:1: network is '2024-25-12', not a group of settings"),
        (
            'seed: "\\ufeff"',
            "recipe.yaml:1: '\\ufeff' holds a byte order mark, which is read as nothing",
        ),
        ("seed: [", "recipe.yaml:1: expected the node content, but found"),
        ("a: b: c", "recipe.yaml:1: mapping values are not allowed here: this is no YAML"),
        ("", "recipe.yaml is no recipe: it must hold keys and values"),
        ("seed: \xe9", "recipe.yaml is not UTF-8"),
        ("- seed", "recipe.yaml is no recipe: it must hold keys and values"),
    ],
)
def test_errors_in_a_recipe_name_file_and_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    recipe = tmp_path / "recipes/recipe.yaml"
    recipe.parent.mkdir()
    recipe.write_bytes(text.encode("latin-1"))
    assert message in error_of("--config", str(recipe))
    monkeypatch.chdir(tmp_path)
    assert message in error_of("--config", "recipes/recipe.yaml")


def test_value_of_the_command_line_is_not_blamed_on_the_recipe(tmp_path: Path) -> None:
    file = tmp_path / "null.yaml"
    file.write_text("network: {d_model: 3}")
    said = error_of("--config", str(file), "--network.d_model=null")
    assert said == "network.d_model: expected int, got 'None'"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("network: {norm: pre}")
    message = error_of("--config", str(recipe), "--network.norm=poost")
    assert message == "network.norm: expected one of 'post', 'pre', got 'poost'"


def test_recipes_of_the_package_are_found_from_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformer.commands.recipes.recipes_folder", lambda: tmp_path / "wheel")
    recipe = tmp_path / "wheel" / "pair" / "tiny.yaml"
    recipe.parent.mkdir(parents=True)
    recipe.write_text("seed: 3")
    assert find_recipe("recipes/pair/tiny.yaml") == str(recipe)
    assert find_recipe("pair/tiny.yaml") == str(recipe)
    for args in (["--config=recipes/pair/tiny.yaml"], ["-c", "pair/tiny.yaml"]):
        parse(*args)
    with pytest.raises(UserError, match="'recipes/pair/tini.yaml', the nearest is 'recipes/p"):
        parse("--config", "recipes/pair/tini.yaml")


def test_a_file_of_the_user_comes_before_a_recipe_of_the_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("seed: 3")
    assert find_recipe("mine.yaml") == "mine.yaml"
