"""A Marian model comes in, learns more here, and goes out again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from marians import marian
from parents import run as fit
from toys import recipe

from transformer.bundle import load_bundle

NETWORK = {
    "d_model": 32, "d_ff": 48, "num_heads": 4, "num_layers": 2, "activation": "swish",
    "output_bias": "true",
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("steps", "options"),
    [(3, {}), (200, {}), (40, {"data.tags": "true"}), (40, {"model.lora.rank": "4"})],
)
def test_an_import_is_fine_tuned_and_exported(
    steps: int, options: dict[str, str], run: Any, own_folder: None, tmp_path: Path
) -> None:
    source = marian(tmp_path, activation_function="swish")
    run("import", source, tmp_path / "parent")
    settings = {f"model.network.{key}": value for key, value in NETWORK.items()} | options
    settings |= {
        "model.init_from": tmp_path / "parent",
        "run_dir": tmp_path / "run",
        "logger": "none",
        "trainer.max_steps": steps,
        "trainer.max_epochs": -1,
    }
    code = fit(recipe(tmp_path), *(f"--{key}={value}" for key, value in settings.items()))
    assert code == 0
    tuned = load_bundle(tmp_path / "run" / "bundle")
    assert tuned.config["training"]["steps"] == steps
    assert (tuned.model.output.bias[:2] < -50).all()
    run("export", "hf", tmp_path / "run" / "bundle", tmp_path / "hf")
    report = json.loads((tmp_path / "hf" / "parity.json").read_text())
    assert (report["failure"], report["translations"]) == (None, 128)
