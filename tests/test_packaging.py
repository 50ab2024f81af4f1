"""What a user installs: the wheel with its recipes, and the set-up that `make` does once."""

import os
import shutil
import subprocess
import sys
import zipfile
from email import message_from_bytes
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from test_architecture import imports

ROOT = Path(__file__).parent.parent
# Stands for Python in the Makefile: notes what it is asked, and fails where told to.
PYTHON = """#!/bin/sh
echo "$@" >> log
case "$*" in *"${FAIL:-nothing}"*) exit 1 ;; esac
case "$*" in *"-m venv"*) mkdir -p .venv/bin; cp "$0" .venv/bin/python ;; esac
"""


def test_wheel_has_the_command_and_the_recipes(tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    wheel = zipfile.ZipFile(next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path))))
    names = wheel.namelist()
    recipes = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("recipes/**/*.yaml")]
    assert recipes
    assert {f"transformer/{recipe}" for recipe in recipes} <= set(names)
    quickstart = {name for name in names if name.startswith("transformer/recipes/quickstart/")}
    assert {Path(name).name for name in quickstart} == {
        "ko_en.yaml", "train.tsv.gz", "val.tsv.gz", "test.tsv.gz", "SHA256SUMS",
    }  # fmt: skip
    assert {"transformer/__main__.py", "transformer/py.typed"} <= set(names)
    page = [path.relative_to(ROOT).as_posix() for path in ROOT.glob("transformer/serving/static/*")]
    assert "transformer/serving/static/index.html" in page
    assert set(page) <= set(names)
    assert {name.split("/")[0] for name in names if "dist-info" not in name} == {"transformer"}
    (scripts,) = (name for name in names if name.endswith("entry_points.txt"))
    assert b"transformer = transformer.__main__:main" in wheel.read(scripts)
    (metadata,) = (name for name in names if name.endswith("/METADATA"))
    about = message_from_bytes(wheel.read(metadata))
    assert about["Requires-Python"] == "<3.14,>=3.10"
    assert any(name.endswith("licenses/LICENSE") for name in names)


def project() -> Any:
    """Reads pyproject.toml."""
    from hatchling.metadata.core import ProjectMetadata
    from hatchling.plugin.manager import PluginManager

    return ProjectMetadata(str(ROOT), PluginManager()).core


def test_every_dependency_is_pinned_for_every_python() -> None:
    wanted = [*project().dependencies, *project().optional_dependencies["dev"]]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    for requirement in map(Requirement, wanted):
        for minor in (10, 11, 12, 13):
            python: Any = {"python_version": f"3.{minor}", "extra": ""}
            if requirement.marker and not requirement.marker.evaluate(python):
                continue
            (pin,) = (
                p
                for p in pins
                if canonicalize_name(p.name) == canonicalize_name(requirement.name)
                and (p.marker is None or p.marker.evaluate(python))
            )
            (version,) = pin.specifier
            assert version.operator == "=="
            assert requirement.specifier.contains(version.version)


def test_the_tests_have_what_is_optional() -> None:
    extras = {
        name: {Requirement(text).name for text in texts}
        for name, texts in project().optional_dependencies.items()
    }
    needed = extras.pop("dev")
    assert len(extras) >= 4
    assert all(names <= needed for names in extras.values())


@pytest.mark.parametrize(
    ("room", "extras"),
    [("", []), ("interop", ["hf", "ctranslate2", "onnx"]), ("serving", ["serve"])],
)
def test_every_package_that_is_imported_is_declared(room: str, extras: list[str]) -> None:
    """Not only as a dependency of a dependency, which may do without it one day."""
    packages, optional = packages_distributions(), project().optional_dependencies
    files = [
        file
        for file in (ROOT / "transformer").rglob("*.py")
        if (file.parent.name if file.parent.name in ("interop", "serving") else "") == room
    ]
    outside = {
        name.split(".")[0]
        for file in files
        for name in imports(file.read_text(encoding="utf-8"), "transformer")
    } - {*sys.stdlib_module_names, "transformer"}
    assert outside
    texts = [*project().dependencies, *(text for extra in extras for text in optional[extra])]
    declared = {canonicalize_name(Requirement(text).name) for text in texts}
    assert {canonicalize_name(packages[name][0]) for name in outside} <= declared


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout with spaces in its path, in which nothing is installed."""
    folder = tmp_path / "a checkout"
    folder.mkdir()
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, folder)
    (folder / "python").write_text(PYTHON)
    (folder / "python").chmod(0o755)
    return folder


def make(checkout: Path, *args: str, **environment: str) -> tuple[int, list[str]]:
    """Runs make; returns its exit code and what Python was asked for."""
    (checkout / "log").unlink(missing_ok=True)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(
        ["make", "PYTHON=./python", *args],
        cwd=checkout,
        env={**clean, **environment},
        capture_output=True,
        text=True,
    )
    log = checkout / "log"
    return done.returncode, log.read_text().splitlines() if log.exists() else []


def test_set_up_is_done_once_and_again_when_its_files_change(checkout: Path) -> None:
    code, asked = make(checkout, "setup")
    assert code == 0
    assert any("-c constraints.txt -e .[dev]" in line for line in asked)
    assert make(checkout, "setup") == (0, [])
    stamp = (checkout / ".venv" / ".stamp").stat().st_mtime
    os.utime(checkout / "constraints.txt", (stamp + 5, stamp + 5))
    assert len(make(checkout, "setup")[1]) == len(asked)


def test_set_up_that_failed_is_begun_again(checkout: Path) -> None:
    code, _ = make(checkout, "setup", FAIL="-e .[dev]")
    assert code != 0
    assert not (checkout / ".venv" / ".stamp").exists()
    code, asked = make(checkout, "setup")
    assert code == 0
    assert asked


def test_set_up_refuses_another_python(checkout: Path) -> None:
    code, asked = make(checkout, "setup", FAIL="sys.version_info")
    assert code != 0
    assert not any("venv" in line for line in asked)


def test_train_passes_recipe_and_arguments_on(checkout: Path) -> None:
    done = subprocess.run(
        ["make", "-n", "train", "RECIPE=recipes/x.yaml", "ARGS=--trainer.max_epochs 1"],
        cwd=checkout,
        capture_output=True,
        text=True,
    )
    expected = "fit --config recipes/x.yaml --existing number --trainer.max_epochs 1"
    assert expected in done.stdout
