"""Loading never executes code: each payload here writes a file if it is executed, and none does."""

import gzip
import json
import os
import pickle
import shutil
import sys
import zipfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from transformer import hub
from transformer.bundle import load_bundle
from transformer.commands.fit import prepared
from transformer.data.corpus import open_corpus
from transformer.errors import UserError
from transformer.training.runs import recipe_name

from .cases import READ, REFUSED, command, outcome
from .fuzz_files import _marian, prepare
from .table import Row

Case = Callable[[], object]
MODULE = "code_of_a_stranger"


class Payload:
    """What writes a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return os.system, (f"touch '{self.canary}'",)


def rows(folder: Path, seed: int, share: float) -> Iterator[Row]:
    """Tries all payloads: they are few, and no chance is in them."""
    prepare(folder)
    for what, cases in (
        ("pickles", pickles), ("recipes", recipes), ("model folders", folders), ("paths", paths)
    ):  # fmt: skip
        tried = [lost(name, case, folder) for name, case in cases(folder)]
        yield Row(f"payloads in {what}", len(tried), sum(tried), "whether they were executed")


def lost(name: str, case: Case, folder: Path) -> bool:
    """Whether a payload was executed, or ended in something else than an error of one line."""
    before = os.getcwd()
    sys.path.insert(0, str(folder))
    os.chdir(folder)
    try:
        found = outcome(case)
    finally:
        os.chdir(before)
        sys.path.remove(str(folder))
        sys.modules.pop(MODULE, None)
    executed = canary(folder).exists()
    canary(folder).unlink(missing_ok=True)
    if executed or found not in (READ, REFUSED):
        print(f"{name}: {'it was executed' if executed else found}", file=sys.stderr)
        return True
    return False


def canary(folder: Path) -> Path:
    """The file that a payload writes."""
    return folder / "executed"


def pickled(folder: Path) -> dict[str, bytes]:
    """Pickles that execute something, in every form that torch reads."""
    bad = Payload(canary(folder))
    place = folder / "pickled"
    found = {f"protocol {n}": pickle.dumps(bad, n) for n in (0, 2, 4)}
    for name, content in {
        "alone": bad,
        "weights": {"state_dict": bad},
        "bundle": {"bundle": {"network": bad}, "state_dict": {}, "recipe": {}},
        "beside weights": {"w": torch.zeros(2), "more": [bad]},
    }.items():
        for is_zip in (True, False):
            torch.save(content, place, _use_new_zipfile_serialization=is_zip)
            found[f"{name}, {'zip' if is_zip else 'legacy'}"] = place.read_bytes()
    with zipfile.ZipFile(place, "w") as archive:
        archive.writestr("inner/data.pkl", found["protocol 2"])
        archive.writestr("inner/version", "3\n")
        archive.writestr("inner/inner.ckpt", found["alone, zip"])
    found["nested"] = place.read_bytes()
    with zipfile.ZipFile(place, "w") as archive:  # as TorchScript has them
        for entry in ("data.pkl", "constants.pkl", "version"):
            archive.writestr(f"script/{entry}", found["protocol 2"])
    found["script"] = place.read_bytes()
    found["gzip"] = gzip.compress(found["protocol 2"])
    place.unlink()
    return found


def pickles(folder: Path) -> Iterator[tuple[str, Case]]:
    """Pickles under every name that something loads."""
    for form, content in pickled(folder).items():
        for place, case in PLACES.items():
            yield f"{form} as {place}", partial(case, folder, content)


def _checkpoint(folder: Path, content: bytes) -> Path:
    run = _empty(folder / "another")
    (run / "checkpoints").mkdir()
    path = run / "checkpoints" / "last.ckpt"
    path.write_bytes(content)
    return path


def _bundle(name: str, folder: Path, content: bytes) -> None:
    bundle = folder / "another"
    shutil.rmtree(bundle, ignore_errors=True)
    shutil.copytree(folder / "run" / "bundle", bundle)
    (bundle / name).write_bytes(content)
    load_bundle(bundle)


def _model(name: str, folder: Path, content: bytes) -> None:
    from transformer.interop.marian_import import find_weights, read_weights

    model = _empty(folder / "opus-mt-de-en")
    (model / name).write_bytes(content)
    (model / "config.json").write_text('{"model_type": "marian"}')
    read_weights(find_weights(str(model)))


PLACES: dict[str, Callable[[Path, bytes], object]] = {
    "average": lambda folder, content: command(
        "average", _checkpoint(folder, content), folder / "averaged"
    ),
    "--ckpt_path": lambda folder, content: _fit(
        folder, "--ckpt_path", str(_checkpoint(folder, content))
    ),
    "a run folder": lambda folder, content: _fit(
        folder, f"--run_dir={_checkpoint(folder, content).parents[1]}", "--existing=refuse"
    ),
    "model.init_from": lambda folder, content: _fit(
        folder, f"--model.init_from={_checkpoint(folder, content)}"
    ),
    "a bundle": lambda folder, content: load_bundle(_checkpoint(folder, content)),
    "its weights": partial(_bundle, "model.safetensors"),
    "its tokenizer": partial(_bundle, "tokenizer.json"),
    "its config.json": partial(_bundle, "config.json"),
    "pytorch_model.bin": partial(_model, "pytorch_model.bin"),
    "model.safetensors": partial(_model, "model.safetensors"),
}


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _fit(folder: Path, *args: str) -> None:
    runs = [] if any("run_dir" in arg for arg in args) else [f"--run_dir={folder / 'new'}"]
    with prepared(["--config", str(folder / "recipe.yaml"), *runs, *args]):
        pass


def recipes(folder: Path) -> Iterator[tuple[str, Case]]:
    """YAML tags, and classes and functions of a stranger, wherever a recipe may name one."""
    (folder / f"{MODULE}.py").write_text(
        f"open({str(canary(folder))!r}, 'w').close()\n"
        "from lightning.pytorch import Callback\nclass Bad(Callback): pass\ndef bad(*_): pass\n"
    )
    touch = f"touch {canary(folder)}"
    tags = [
        f"!!python/object/apply:os.system ['{touch}']",
        f"!!python/object/new:os.system ['{touch}']",
        f"!!python/object/apply:subprocess.run [['touch', '{canary(folder)}']]",
        f"!!python/name:{MODULE}.bad", f"!!python/module:{MODULE}",
        f"!!python/object:{MODULE}.Bad {{}}", f"!!python/object/apply:{MODULE}.bad []",
    ]  # fmt: skip
    lambdas = "lightning.pytorch.callbacks.LambdaCallback"
    names = [
        f"{MODULE}.Bad", f"[{MODULE}.Bad]", f"{{class_path: {MODULE}.Bad}}",
        f"[{{class_path: {MODULE}.Bad, init_args: {{a: 1}}}}]", f"{MODULE}.bad", "os.system",
        f"[{{class_path: {lambdas}, init_args: {{on_fit_start: {MODULE}.bad}}}}]",
        f"[{{class_path: {lambdas}, init_args: {{on_fit_start: os.system}}}}]",
        f"{{class_path: subprocess.Popen, init_args: {{args: ['touch', '{canary(folder)}']}}}}",
        f"[{{class_path: lightning.pytorch.callbacks.{MODULE}.Bad}}]",
        "[{class_path: lightning.pytorch.trainer.trainer.os.system}]",
    ]  # fmt: skip
    keys = [
        "seed_everything", "model.network", "model.init_from", "data.tokenizer",
        "trainer.callbacks", "trainer.logger", "trainer.strategy", "trainer.plugins",
        "trainer.profiler",
    ]  # fmt: skip
    for number, (key, value) in enumerate(product(keys, (*tags, *names))):
        if number % 2:
            yield f"--{key}={value}", partial(_fit, folder, f"--{key}={value}")
        else:
            yield f"{key}: {value}", partial(_fit_second, folder, key, value)


def _fit_second(folder: Path, key: str, value: str) -> None:
    groups = key.split(".")
    text = "".join(f"{'  ' * n}{group}:\n" for n, group in enumerate(groups)).rstrip("\n")
    (folder / "second.yaml").write_text(f"{text} {value}\n")
    _fit(folder, "--config", str(folder / "second.yaml"))


def folders(folder: Path) -> Iterator[tuple[str, Case]]:
    """Model folders and data sets that name code of their own, which lies in them."""
    code = f"open({str(canary(folder))!r}, 'w').close()\nclass Bad: pass\n"
    mapped = {f"Auto{kind}": "bad.Bad" for kind in ("Config", "Model", "ModelForSeq2SeqLM")}
    for own in ({"auto_map": mapped}, {"auto_map": mapped, "model_type": "bad"}):
        for file in ("config.json", "tokenizer_config.json", "generation_config.json"):

            def case(file: str = file, own: dict[str, Any] = own) -> None:
                model = folder / "opus-mt-de-en"
                shutil.rmtree(model, ignore_errors=True)
                shutil.copytree(_marian(folder), model)
                (model / "bad.py").write_text(code)
                content = json.loads((model / file).read_text())
                tokenizer = {"auto_map": {"AutoTokenizer": ["bad.Bad", "bad.Bad"]}}
                more = tokenizer if file.startswith("tokenizer") else own
                more = {**more, "trust_remote_code": True, "custom_generate": "bad"}
                (model / file).write_text(json.dumps(content | more))
                shutil.rmtree(folder / "imported", ignore_errors=True)
                command("import", model, folder / "imported")

            yield f"{file} with {own}", case

    def data_set() -> None:
        corpus = _empty(folder / "corpus")
        for name in ("corpus.py", "dataset.py", "data.py"):
            (corpus / name).write_text(code)
        (corpus / "train.pkl").write_bytes(pickle.dumps(Payload(canary(folder))))
        list(open_corpus(f"hub:{corpus}:train", "de", "en").pairs())

    yield "a data set with code", data_set


def paths(folder: Path) -> Iterator[tuple[str, Case]]:
    """Names that lead out of the folder in which they belong."""
    parts = ["..", "../..", "a/../..", "/etc", "a/b/../../..", "..%2f..", "a/..", "../a", "..\\.."]
    names = [
        *parts, *(f"org/{part}" for part in parts), *(f"org/name@{part}" for part in parts),
        "org/name@main/../../x", "org/a..b", "org/name@a..b",
    ]  # fmt: skip
    touch = lambda *_, **__: canary(folder).touch()  # noqa: E731
    for name in names:

        def downloaded(name: str = name) -> None:
            with patch.object(hub, "_downloaded", touch):
                hub.local_folder(name)

        yield f"hub {name}", downloaded

        def named(name: str = name) -> None:
            stored = {"recipe": {"name": name}}
            runs = (folder / "runs").resolve()
            if not (runs / recipe_name(None, stored)).resolve().is_relative_to(runs):
                canary(folder).touch()

        yield f"recipe {name}", named
    for file in hub.BUNDLE:

        def pushed(file: str = file) -> None:
            bundle = _empty(folder / "another")
            (bundle / file).symlink_to("/etc/hostname")
            with patch.object(hub, "is_there", touch):
                hub.push(bundle, "org/name", False, None, "")
            raise AssertionError("it was pushed")

        yield f"push {file}", pushed
    for part in (
        *parts,
        "../app.py",
        "%2e%2e/app.py",
        "..%2fapp.py",
        "./../app.py",
        "//etc/passwd",
    ):
        yield f"static {part}", partial(_static, part, folder)


def _static(part: str, folder: Path) -> None:
    from transformer.serving.app import STATIC, PageFiles

    found, _ = PageFiles(directory=STATIC).lookup_path(part)
    if found and not Path(found).resolve().is_relative_to(STATIC):
        canary(folder).touch()
    raise UserError("no such file")
