"""Files that are damaged, odd or of something else: each is refused in a line, or read rightly.

Never are they a traceback, a hang, a lack of memory, or a model that is silently another.
"""

import datetime
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from transformer.bundle import Bundle, load_bundle
from transformer.commands.fit import prepared
from transformer.data.corpus import open_corpus
from transformer.data.dataset import open_table
from transformer.inference.translator import Translator

from .cases import command, tried
from .hurt import hurt_bundle, hurt_checkpoint
from .odd_recipes import options_of, recipe_text
from .odd_values import damaged, odd_json, placed
from .table import Row

Case = Callable[[], object]
LINES = ["eins zwei", "drei rotes haus", ""]
#: Kinds of cases, how many of them at share 1, and what is compared where a file is read.
COUNTS = {
    "recipes": (600, "each setting with what YAML says"),
    "bundles": (1900, "network, weights and tokenizer with those saved"),
    "checkpoints": (800, "weights with those saved"),
    "caches": (400, "ids with those of the text"),
    "results": (300, "nothing: a page, or one line"),
    "marians": (60, "translations with those of Hugging Face"),
}


def rows(folder: Path, seed: int, share: float) -> Iterator[Row]:
    """Tries all kinds."""
    prepare(folder)
    for kind, (count, compared) in COUNTS.items():
        found = tried("fuzz_files", kind, folder, seed, max(1, round(count * share)))
        words = f"{kind}: {found.refused:,} refused, {found.read:,} read"
        yield Row(words, sum(found), found.lost, compared)


def prepare(folder: Path) -> None:
    """Trains a little model in `folder/run`, and makes a Marian model beside it."""
    words = ["eins", "zwei", "drei", "rotes", "haus", "hund"]
    rng = random.Random(0)
    for split, size in (("train", 40), ("val", 4), ("test", 4)):
        lines = [" ".join(rng.choices(words, k=rng.randint(1, 5))) + "\n" for _ in range(size)]
        (folder / f"{split}.de").write_text("".join(lines))
        (folder / f"{split}.en").write_text("".join(lines).upper())
    (folder / "recipe.yaml").write_text(yaml.safe_dump(settings(folder)))
    command("fit", "--config", folder / "recipe.yaml", "--run_dir", folder / "run")
    _marian(folder)


def settings(folder: Path) -> dict[str, Any]:
    """The recipe that the cases are made of."""
    splits = {split: str(folder / split) for split in ("train", "val", "test")}
    shape = {"d_model": 16, "d_ff": 32, "num_heads": 2, "num_layers": 1, "dropout": 0.1}
    search = {"beam": 2, "max_extra": 5}
    return {
        "seed_everything": 3,
        "logger": "none",
        "model": {"network": shape, "search": search, "learning_rate": 0.01, "warmup_steps": 10},
        "data": {
            **splits, "src": "de", "tgt": "en", "cache": str(folder / "cache"), "max_length": 60,
            "max_tokens": 200, "tokenizer": {"vocab_size": 300},
        },
        "trainer": {"max_epochs": 1, "accelerator": "cpu", "enable_progress_bar": False},
    }  # fmt: skip


def recipes(rng: random.Random, place: Path, shared: Path) -> Case:
    """A recipe, perhaps with options of the command line, up to where training begins."""
    file = place / "recipe.yaml"
    file.write_bytes(recipe_text(rng, settings(shared), place))
    options = options_of(rng) if rng.random() < 0.25 else []

    def case() -> None:
        args = ["--config", str(file), f"--run_dir={place / 'run'}", *options]
        with prepared(args) as run:
            config = run.config
        given = {} if options else dict(_leaves(yaml.safe_load(file.read_text())))
        given.pop("run_dir", None)  # the option wins
        for key, value in given.items():
            assert _same(config[key], value), f"{key} is {config[key]!r}, the recipe has {value!r}"

    return case


def _leaves(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(node, dict) and not key.startswith("trainer."):
        for name, value in node.items():
            yield from _leaves(value, f"{key}.{name}" if key else name)
    elif key and not isinstance(node, (dict, list)):
        yield key, node


def _same(found: Any, given: Any) -> bool:
    if isinstance(given, str) and isinstance(found, (int, float)):  # 1e3 is text in YAML 1.1
        return float(given.replace("_", "")) == found
    if isinstance(given, datetime.date):  # which YAML reads in any text that looks like one
        return isinstance(found, str)
    return bool(found == given) or str(found) == str(given)


def bundles(rng: random.Random, place: Path, shared: Path) -> Case:
    """A bundle of which a file was damaged, exchanged, or lost."""
    bundle = place / "bundle"
    shutil.copytree(shared / "run" / "bundle", bundle)
    knows = hurt_bundle(rng, bundle)

    def case() -> None:
        found, right = load_bundle(bundle), load_bundle(shared / "run" / "bundle")
        if knows:
            _compare(found, right)
        if found.config["search"] == right.config["search"]:
            Translator.load(bundle, "cpu").translate(LINES)

    return case


def _compare(found: Bundle, right: Bundle) -> None:
    assert found.config["network"] == right.config["network"]
    assert found.tokenizer.to_text() == right.tokenizer.to_text()
    weights = found.model.state_dict()
    for name, tensor in right.model.state_dict().items():
        assert torch.equal(weights[name], tensor), name


def checkpoints(rng: random.Random, place: Path, shared: Path) -> Case:
    """A damaged checkpoint is made a bundle of, or resumed, or averaged with a good one."""
    good = shared / "run" / "checkpoints" / "last.ckpt"
    bad = place / "bad.ckpt"
    knows = hurt_checkpoint(rng, good, bad)
    what = rng.choice(["one", "one", "two", "resume"])

    def case() -> None:
        if what == "resume":
            args = ["--config", str(shared / "recipe.yaml"), "--ckpt_path", str(bad)]
            more = ["--trainer.max_epochs=2", f"--run_dir={place / 'run'}"]
            with prepared([*args, *more]):
                return
        files = [bad, good] if what == "two" else [bad]
        command("average", *files, place / "bundle")
        if knows:
            command("average", good, place / "right")
            _compare(load_bundle(place / "bundle"), load_bundle(place / "right"))

    return case


def caches(rng: random.Random, place: Path, shared: Path) -> Case:
    """The ids of a corpus in a damaged file of the cache."""
    tokenizer = load_bundle(shared / "run" / "bundle").tokenizer
    corpora = [open_corpus(str(shared / "train"), "de", "en")]
    right = open_table(shared / "cache", corpora, tokenizer)
    name = "tokens-*.arrow"
    cache = place / "cache"
    shutil.copytree(shared / "cache", cache)
    for file in cache.glob(name):
        others = [o for o in (shared / "cache").glob(name) if o.name != file.name]
        if rng.random() < 0.2 and others:
            shutil.copy(rng.choice(others), file)
        elif rng.random() < 0.2:
            placed(rng, file)
        else:
            file.write_bytes(damaged(rng, file.read_bytes()))

    def case() -> None:
        import numpy as np

        found = open_table(cache, corpora, tokenizer)
        assert len(found) == len(right)
        numbers = np.arange(len(right))
        for side in ("src", "tgt"):
            pairs = (getattr(table, side).padded(numbers) for table in (found, right))
            for one, other in zip(*pairs, strict=True):
                assert (one == other).all()

    return case


def results(rng: random.Random, place: Path, shared: Path) -> Case:
    """A file of results that is made a table of."""
    source = Path(__file__).parents[2] / "recipes" / rng.choice(["results.jsonl", "transfer.jsonl"])
    kept = source.read_text().splitlines()[:2]
    number, what = rng.randrange(len(kept)), rng.randrange(3)
    if what:
        kept[number] = odd_json(rng, json.loads(kept[number])).replace("\n", " ")
    text = "".join(f"{line}\n" for line in kept).encode()
    (place / "results.jsonl").write_bytes(text if what else damaged(rng, text))
    page = place / "page.md"
    page.write_text("<!-- results -->\n<!-- /results -->\n")
    return lambda: command("table", place / "results.jsonl", page)


def marians(rng: random.Random, place: Path, shared: Path) -> Case:
    """A folder of Hugging Face that is imported."""
    folder = place / "opus-mt-de-en"
    shutil.copytree(_marian(shared), folder)
    files = sorted(path for path in folder.iterdir() if path.name != "tokenizer_config.json")
    file = rng.choice(files)
    if rng.random() < 0.2:
        placed(rng, file)
    elif file.suffix == ".json" and rng.random() < 0.7:
        file.write_text(odd_json(rng, json.loads(file.read_text())))
    else:
        file.write_bytes(damaged(rng, file.read_bytes()))
    return lambda: command("import", folder, place / "bundle")


def _marian(shared: Path) -> Path:
    folder = shared / "marian" / "opus-mt-de-en"
    if not folder.exists():
        from marians import marian  # type: ignore[import-not-found,unused-ignore]

        marian(shared / "marian")
    return folder


KINDS: dict[str, Callable[[random.Random, Path, Path], Case]] = {
    "recipes": recipes,
    "bundles": bundles,
    "checkpoints": checkpoints,
    "caches": caches,
    "results": results,
    "marians": marians,
}
