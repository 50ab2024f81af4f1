"""Models of the hub: a local stand-in is asked, by processes of their own."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from stand_in import Hub, run, sha, stand_in
from test_translator import LINES, save
from toys import SHAPE, recipe

from transformer import hub as under_test
from transformer.errors import UserError
from transformer.hub import BUNDLE, local_folder
from transformer.inference.translator import Translator

#: Says where each model lies, or what is wrong; there is a limit to the seconds for all of them.
LOOK = """
import faulthandler, sys
import huggingface_hub
faulthandler.dump_traceback_later(int(sys.argv.pop(1)), exit=True)
from transformer.errors import UserError
from transformer.hub import local_folder
for name in sys.argv[1:]:
    try:
        print(local_folder(name))
    except UserError as error:
        print(error)
"""


#: Prints the first pair of each data set, or what is wrong.
READ = """
import sys
from transformer.data.corpus import open_corpus
for spec in sys.argv[1:]:
    try:
        print(next(open_corpus(spec, "de", "en").pairs()).src)
    except ValueError as error:
        print(error)
"""


def look(folder: Path, address: str, *names: str, limit: int = 100, **more: str) -> list[str]:
    """What a process finds, in a line for each name, and nothing else."""
    found = run(folder, address, "-c", LOOK, str(limit), *names, **more)
    assert found.stderr == ""
    assert len(found.stdout.splitlines()) == len(names)
    return found.stdout.splitlines()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    """A hub with the model `org/model`, which also has files that no bundle has."""
    save(tmp_path / "bundle")
    files = {file.name: file.read_bytes() for file in (tmp_path / "bundle").iterdir()}
    others = dict.fromkeys(["model.py", "pytorch_model.bin", "../../up.txt", "/tmp/root.txt"], b"x")
    others |= {"../config.json": b"{", "sub/config.json": b"{", "modeling/../config.json": b"{"}
    with stand_in() as server:
        server.repositories["org/model"] = {"main": files | others}
        yield server


def test_a_folder_goes_before_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(under_test, "_downloaded", lambda *asked: asked)
    (tmp_path / "org/here").mkdir(parents=True)
    for name in ("org/here", "name", "a/b/c", "/org/name", "./name", "../name", "~/name", "org/"):
        assert local_folder(name) == Path(name)
    assert local_folder("org/na.me") == ("org/na.me", None, BUNDLE)
    assert local_folder("org/name@refs/pr/1", ["x"]) == ("org/name", "refs/pr/1", ("x",))


def test_only_a_bundle_s_files_come_and_they_stay(hub: Hub, tmp_path: Path) -> None:
    hub.repositories["org/model"]["v1.0"] = {"config.json": b"{}"}
    [one, other] = look(tmp_path, hub.address, "org/model", "org/model@v1.0")
    cache = tmp_path / "home/hub/models--org--model/snapshots"
    assert (one, other) == (str(cache / sha("main")), str(cache / sha("v1.0")))
    names = {file.name for file in (tmp_path / "bundle").iterdir()}
    assert {file.name for file in Path(one).iterdir()} == names
    assert [file.name for file in Path(other).iterdir()] == ["config.json"]
    served = {asked.rpartition("/resolve/")[2] for asked in hub.asked if "/resolve/" in asked}
    assert served == {f"{sha('main')}/{n}" for n in names} | {f"{sha('v1.0')}/config.json"}
    hub.shutdown()
    hub.server_close()
    assert look(tmp_path, hub.address, "org/model@v1.0") == [other]
    assert look(tmp_path, hub.address, "org/model", HF_HUB_OFFLINE="1") == [one]


def test_what_is_wrong_is_one_line(hub: Hub, tmp_path: Path) -> None:
    hub.repositories |= {
        "org/gated": {"main": {}}, "org/empty": {"main": {}}, "org/other": {"main": {"a.bin": b""}},
        "org/cut": {"main": {"config.json": b"{}" * 5000}},
    }  # fmt: skip
    hub.private.add("org/gated")
    hub.truncated.add("config.json")
    names = ["org/model@v9", "org/gated", "org/empty", "org/other", "org/no", "org/a--b", "org/cut"]
    lines = look(tmp_path, hub.address, *names)
    for line, expected in zip(lines, (
        "org/model on the hub has no revision v9: give another",
        "org/gated on the hub needs the consent of its owner: ask for it on its page, then log in",
        "org/empty on the hub has none of config.json, model.safetensors, ",
        "org/other on the hub has none of config.json, model.safetensors, ",
        "org/no is neither a folder here nor a model on the hub: correct the name; for a private",
        "org/a--b is no folder here, and no name of the hub (Cannot have -- or ",
        "org/cut on the hub: peer closed connection without sending complete message body",
    ), strict=True):  # fmt: skip
        assert line.startswith(expected)


def test_without_a_network_a_line_comes_soon(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes connections, never answers
        for more in ({}, {"HF_HUB_OFFLINE": "1"}):
            address = f"http://127.0.0.1:{silent.getsockname()[1]}"
            [line] = look(tmp_path, address, "org/model", limit=10, **more)
            why = "is not asked (HF_HUB_OFFLINE)" if more else "does not answer"
            assert line.startswith(f"org/model is no folder here, and {address} {why}: check the n")


def test_a_revision_of_a_data_set_is_never_another_one(tmp_path: Path) -> None:
    names = [f"hub:org/set{revision}:train" for revision in ("@old", "", "@none")]

    def read(*names: str, **more: str) -> list[str]:
        return run(tmp_path, server.address, "-c", READ, *names, **more).stdout.splitlines()

    with stand_in() as server:
        server.repositories["datasets/org/set"] = {
            branch: {"README.md": b"# Set", "train.jsonl": json.dumps(row).encode()}
            for branch, row in (
                ("main", {"de": "neu", "en": "new"}), ("old", {"de": "alt", "en": "old"})
            )
        }  # fmt: skip
        assert read(*names[:2]) == ["alt", "neu"]
    wrong = "data.train: {} cannot be loaded (the hub does not answer, and the copy here is not of"
    for more in ({}, {"HF_HUB_OFFLINE": "1"}):
        found = read(*names, **more)
        assert found[1] == "neu"  # the latest copy
        assert found[0].startswith(wrong.format(names[0]))
        assert found[2].startswith(wrong.format(names[2]))


@pytest.mark.slow
def test_every_command_takes_a_model_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    def transformer(*args: str) -> str:
        done = run(tmp_path, hub.address, "-m", "transformer", *args)
        assert done.returncode == 0, done.stderr
        return done.stdout

    (tmp_path / "src").write_text("".join(f"{line}\n" for line in LINES))
    expected = Translator.load(tmp_path / "bundle").translate(LINES)
    assert transformer("translate", "org/model@main", *LINES).splitlines() == expected
    assert len(transformer("score", "org/model", "--src", "src", "--tgt", "src").splitlines()) == 3
    (tmp_path / "t.en").write_text("a dog\n")
    (tmp_path / "t.xx").write_text("A DOG\n")
    transformer("test", "org/model", "--data.test", "t")
    assert json.loads((tmp_path / "test-t/results.json").read_text())["bundle"] == "org/model"
    path = recipe(tmp_path)
    path.write_text(path.read_text().replace(f"network: {SHAPE}, ", "init_from: org/model, "))
    options = ["--run_dir", "run", "--logger", "none", "--trainer.max_steps", "1"]
    transformer("fit", "--config", str(path), *options)
    assert json.loads((tmp_path / "run/results.json").read_text())["steps"] == 1


def test_a_bundle_is_pushed(hub: Hub, tmp_path: Path) -> None:
    def push(*args: str, **more: str) -> str:
        done = run(tmp_path, hub.address, "-m", "transformer", "push", "bundle", *args, **more)
        return done.stdout + done.stderr

    assert push("org/mine").startswith(
        "transformer: error: org/mine on the hub: 401, Invalid username or password.: log in with"
    )
    bundle = {file.name: file.read_bytes() for file in (tmp_path / "bundle").iterdir()}
    (tmp_path / "bundle/notes.txt").write_text("mine alone")
    assert push("org/mine", "--private", HF_TOKEN="hf_x") == f"{hub.address}/org/mine\n"
    assert hub.repositories["org/mine"] == {"main": bundle}
    assert hub.private == {"org/mine"}
    address = f"{hub.address}/org/mine/tree/v2\n"
    assert push("org/mine", "--revision", "v2", HF_TOKEN="hf_x") == address
    assert hub.repositories["org/mine"] == {"main": bundle, "v2": bundle}


def test_what_is_on_the_hub_alone_is_not_pushed(refused: Callable[..., str]) -> None:
    assert "org/mine is no folder: a bundle is pushed from here" in refused(
        "push", "org/mine", "org/other"
    )


@pytest.mark.parametrize("name", ["mine", "org/mine@v2", "a/b/c", "./mine"])
def test_a_name_that_is_none_is_not_pushed_to(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"is no name of the hub: give org/name \(and --revision\)"):
        under_test.push(tmp_path, name, private=False, revision=None, note="")
