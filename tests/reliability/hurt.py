"""What may have happened to a bundle or a checkpoint on its way here."""

import json
import pickle
import random
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from .odd_values import damaged, odd_json, placed


def hurt_bundle(rng: random.Random, bundle: Path) -> bool:
    """Does something to a bundle; returns whether what is read must be what was saved."""
    weights = bundle / "model.safetensors"
    name = rng.choice(["config.json", "tokenizer.json", "model.safetensors", "model.safetensors"])
    file, what = bundle / name, rng.randrange(8)
    if what < 3:
        file.write_bytes(damaged(rng, file.read_bytes()))
    elif what == 3:
        return placed(rng, file)
    elif what == 4 and name != "model.safetensors":
        content = odd_json(rng, json.loads(file.read_text()))
        file.write_text(content)
    elif what == 5:
        config = json.loads((bundle / "config.json").read_text())
        config["network"] |= rng.choice([
            {key: rng.choice([10**12, 10**9, 0, -1, 3, 2**63, 2**64])}
            for key in ("d_model", "num_layers", "d_ff", "num_heads", "max_positions", "d_k")
        ])  # fmt: skip
        config |= rng.choice([{}, {"format_version": 3}, {"src_vocab_size": 10**12}])
        (bundle / "config.json").write_text(json.dumps(config))
    else:
        return _hurt_weights(rng, weights)
    return True


def _hurt_weights(rng: random.Random, file: Path) -> bool:
    """Other tensors under the same names, with or without what a bundle tells of them."""
    tensors = load_file(file)
    length = struct.unpack("<Q", file.read_bytes()[:8])[0]
    told = json.loads(file.read_bytes()[8 : 8 + length])["__metadata__"]
    names = list(tensors)
    one = rng.choice(names)
    alike = [n for n in names if n != one and tensors[n].shape == tensors[one].shape]
    what = rng.choice(["swap", "shape", "type", "lost", "more", "nan", "number"])
    keeps = rng.random() < 0.7 or what in ("swap", "number")
    if what == "swap" and alike:
        other = rng.choice(alike)
        tensors[one], tensors[other] = tensors[other], tensors[one]
    elif what == "shape":
        tensors[one] = torch.zeros(rng.choice([(), (0,), (1, 1), (3, 16), (16, 3, 2)]))
    elif what == "type":
        kinds = [torch.float64, torch.float16, torch.bfloat16, torch.int32, torch.uint8, torch.bool]
        some = rng.choice([[one], names])
        kind = rng.choice(kinds)
        tensors |= {n: tensors[n].to(kind) for n in some}
    elif what == "lost":
        del tensors[one]
    elif what == "more":
        tensors[rng.choice(["more", "", "encoder.0", f"{one}.x"])] = torch.zeros(2)
    else:
        value = float("nan") if what == "nan" else rng.uniform(-2, 2)
        tensors[one].view(-1)[rng.randrange(tensors[one].numel())] = value
    save_file(
        {n: t.contiguous() for n, t in tensors.items()}, file, told if keeps else {"format": "pt"}
    )
    return keeps


def hurt_checkpoint(rng: random.Random, good: Path, bad: Path) -> bool:
    """Writes something like a checkpoint; returns whether its weights must be the same."""
    what = rng.randrange(8)
    if what < 3:
        bad.write_bytes(damaged(rng, good.read_bytes()))
    elif what == 3:
        shutil.copy(good, bad)
        return placed(rng, bad)
    elif what == 4:
        _swap_entries(rng, good, bad)
    elif what == 5:
        other: Any = rng.choice([
            {}, [], {"state_dict": {}}, {"model": {"w": torch.zeros(2)}}, torch.zeros(3), 3, "text",
            {"state_dict": {"w": torch.zeros(2)}, "pytorch-lightning_version": "2.0"},
            {"bundle": {}, "state_dict": {}}, {"bundle": None, "state_dict": None},
        ])  # fmt: skip
        protocol = rng.choice(["zip", "old", "pickle"])
        if protocol == "pickle":
            bad.write_bytes(pickle.dumps(str(other)))
        else:
            torch.save(other, bad, _use_new_zipfile_serialization=protocol == "zip")
    else:
        content = torch.load(good, weights_only=True)
        knows = _change(rng, content)
        torch.save(content, bad)
        return knows
    return True


def _swap_entries(rng: random.Random, good: Path, bad: Path) -> None:
    """The contents of two tensors of one size, each under the other's name, checksums and all."""
    with zipfile.ZipFile(good) as source, zipfile.ZipFile(bad, "w") as target:
        entries = [entry for entry in source.infolist() if "/data/" in entry.filename]
        one = rng.choice(entries)
        alike = [e for e in entries if e is not one and e.file_size == one.file_size]
        names = {one.filename: rng.choice(alike).filename} if alike else {}
        names |= {there: here for here, there in names.items()}
        for entry in source.infolist():
            name = names.get(entry.filename, entry.filename)
            target.writestr(entry.filename, source.read(name))


def _change(rng: random.Random, content: dict[str, Any]) -> bool:
    """Another value at some place of a checkpoint; returns whether the weights must be the same."""
    keys: list[Any] = []
    node: Any = content
    while isinstance(node, dict) and node and (not keys or rng.random() < 0.8):
        keys.append(rng.choice([*node]))
        parent, node = node, node[keys[-1]]
    values: list[Any] = [None, 3, -1, 10**12, "x", "", [], {}, float("nan"), [1, 2], {"a": 1}]
    if rng.random() < 0.2:
        del parent[keys[-1]]
    else:
        parent[keys[-1]] = rng.choice([*values, torch.zeros(2), torch.zeros(2, 2).long()])
    return keys[0] == "state_dict"
