"""Each room imports only what the house allows it, so that a learner can stop after any of them.

`python -m tests.test_architecture` prints the sizes of the package, and fails on forbidden imports.
"""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "transformer"
TENSORS = {"torch", "numpy"}

# room -> what it may import from inside the house, and from outside beyond the standard library
ROOMS: dict[str, tuple[set[str], set[str]]] = {
    "errors": (set(), set()),
    "kernels": ({"errors"}, {"torch"}),
    "settings": ({"errors"}, set()),
    "checksum": (set(), {"torch"}),
    "writing": ({"errors"}, set()),
    "hub": ({"errors", "data.background"}, {"huggingface_hub"}),
    "models": ({"errors", "kernels"}, {"torch"}),
    "data": ({"errors", "hub", "writing"}, TENSORS | {"tokenizers", "datasets", "pyarrow", "tqdm"}),
    "evaluation": (
        {"errors"}, TENSORS | {"torchmetrics", "sacrebleu", "sacremoses", "matplotlib"}
    ),
    "bundle": (
        {"checksum", "errors", "hub", "models", "data.tokenizer", "settings", "writing"},
        {"torch", "safetensors"},
    ),
    "inference": (
        {"errors", "kernels", "models", "data.lengths", "data.tokenizer", "bundle", "settings"},
        {"torch"},
    ),
    "interop": (
        {"checksum", "errors", "hub", "kernels", "models", "data.corpus", "data.lengths",
         "data.tokenizer", "evaluation", "bundle", "inference", "settings", "writing"},
        TENSORS | {"tokenizers", "safetensors", "transformers"},
    ),
    "training": (
        {"checksum", "errors", "kernels", "models", "data", "evaluation", "bundle", "inference",
         "writing"},
        TENSORS | {"lightning", "wandb"},
    ),
    "serving": (
        {"errors", "kernels", "bundle", "inference"},
        {"fastapi", "pydantic", "starlette", "uvicorn"},
    ),
    "commands": (
        {"errors", "hub", "kernels", "models", "data", "evaluation", "bundle", "inference",
         "interop", "serving", "settings", "training", "writing"},
        TENSORS | {"lightning", "jsonargparse", "docstring_parser", "yaml"},
    ),
    # The lazy public names; the command table reaches the commands by name only.
    "__init__": ({"models", "data.tokenizer", "bundle", "inference"}, set()),
    "__main__": ({"errors"}, set()),
}  # fmt: skip
EXCEPTIONS = {"data/datamodule.py": {"lightning"}}


def imports(source: str, package: str) -> Iterator[str]:
    """Yields the full dotted name of everything that is imported, inside functions, too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join(
                (parents if node.level else []) + ([node.module] if node.module else [])
            )
            yield from (f"{base}.{alias.name}" for alias in node.names)


def forbidden(file: str, source: str) -> list[str]:
    """Lists the imports of a file that its room may not have."""
    room = Path(file).parts[0].removesuffix(".py")
    inside, outside = ROOMS[room]
    outside = outside | EXCEPTIONS.get(file, set()) | set(sys.stdlib_module_names)
    package = ".".join(["transformer", *Path(file).parent.parts])
    return [
        name for name in imports(source, package) if not allowed(name, inside | {room}, outside)
    ]


def allowed(name: str, inside: set[str], outside: set[str]) -> bool:
    if name.split(".")[0] != "transformer":
        return name.split(".")[0] in outside
    below = name.removeprefix("transformer.")
    return below == "__version__" or any(f"{below}.".startswith(f"{room}.") for room in inside)


def test_the_page_names_what_each_room_imports() -> None:
    page = (PACKAGE.parent / "docs" / "extending.md").read_text(encoding="utf-8")
    lines = re.findall(r"^\| \[.+\]\(\.\./transformer/(.+)\) \|.*\|(.*)\|$", page, re.MULTILINE)
    named = {room.removesuffix(".py"): {*re.findall(r"[\w.]+", text)} for room, text in lines}
    assert named == {room: inside | outside for room, (inside, outside) in ROOMS.items()}


def longest_function(file: str) -> tuple[int, str]:
    """Returns the lines of the longest function of a file, and where it is."""
    nodes = ast.walk(ast.parse((PACKAGE / file).read_text(encoding="utf-8")))
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    found = [((f.end_lineno or 0) - f.lineno + 1, f"{f.name} in {file}") for f in functions]
    return max(found, default=(0, ""))


def sizes() -> Iterator[tuple[str, int, int]]:
    """Yields each size that is watched: its name, its lines, and the lines that are aimed at."""
    lines = {file: len((PACKAGE / file).read_text(encoding="utf-8").splitlines()) for file in FILES}

    def below(*paths: str) -> int:
        return sum(count for file, count in lines.items() if file.startswith(paths))

    file = max(FILES, key=lines.__getitem__)
    count, function = max(map(longest_function, FILES))
    yield "package", sum(lines.values()), 6500
    yield f"longest file: {file}", lines[file], 300
    yield f"longest function: {function}", count, 50
    paper = ("attention", "positions", "transformer")
    yield f"the paper: {', '.join(paper)}", below(*(f"models/{name}.py" for name in paper)), 420
    yield "data/", below("data/"), 1300
    yield "training/ + commands/", below("training/", "commands/"), 2600
    readme = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
    yield "README", len(readme.splitlines()), 200


FILES = sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


@pytest.mark.parametrize("file", FILES)
def test_room_imports_only_what_it_may(file: str) -> None:
    wrong = forbidden(file, (PACKAGE / file).read_text(encoding="utf-8"))
    assert not wrong, f"transformer/{file} must not import {', '.join(wrong)}"


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("models/attention.py", "from transformer.data.tokenizer import PAD"),
        ("models/attention.py", "from ..data import tokenizer"),
        ("models/attention.py", "import numpy"),
        ("data/batching.py", "import lightning.pytorch as pl"),
        ("inference/search.py", "from transformer.data.corpus import open_corpus"),
        ("inference/search.py", "def f():\n    from lightning.pytorch import Trainer"),
        ("bundle.py", "from transformer.inference import search"),
        ("training/module.py", "from transformer.commands import fit"),
        ("training/module.py", "from transformer import Translator"),
        ("evaluation/plots.py", "import matplotlib.pyplot, wandb"),
        ("__main__.py", "from transformer.commands import fit"),
    ],
)
def test_a_forbidden_import_is_found(file: str, source: str) -> None:
    assert len(forbidden(file, source)) == 1


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("models/attention.py", "from .positions import sinusoids"),
        ("data/datamodule.py", "from lightning.pytorch import LightningDataModule"),
        ("bundle.py", "from transformer.data.tokenizer import Tokenizer"),
        ("training/module.py", "from transformer.data.batching import Batch"),
        ("__main__.py", "from transformer import __version__"),
    ],
)
def test_an_allowed_import_passes(file: str, source: str) -> None:
    assert not forbidden(file, source)


def test_pyplot_is_nowhere() -> None:
    for file in FILES:
        assert "pyplot" not in (PACKAGE / file).read_text(encoding="utf-8").replace("pyplot's", "")


def test_the_sizes_are_of_what_is_there() -> None:
    found = {name.partition(":")[0]: lines for name, lines, _ in sizes()}
    assert 0 < found["longest function"] < found["longest file"] < found["package"]
    assert 0 < found["data/"] + found["training/ + commands/"] < found["package"]


if __name__ == "__main__":
    for name, count, aim in sizes():
        print(f"{count:7,} lines (aim: {aim:5,})  {name}")
    crossed = {
        file: forbidden(file, (PACKAGE / file).read_text(encoding="utf-8")) for file in FILES
    }
    sys.exit("\n".join(f"{file} must not import {x}" for file, x in crossed.items() if x) or None)
