"""Whole runs on the device that there is: `make gpu` measures with them what a GPU does.

On a machine without one they run on its CPU; what says nothing there is skipped.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from bad_batches import KINDS, Break, Kind
from benchmarks.papers import BIG, TINY
from lightning.pytorch import Callback, Trainer
from toys import FixedData, fit, module, recipe, trainer

from transformer.bundle import load_bundle
from transformer.data.batching import Batch
from transformer.data.datamodule import DataModule
from transformer.data.tokenizer import TokenizerConfig
from transformer.data.tokenizer_training import train_tokenizer
from transformer.inference.search import SearchConfig
from transformer.inference.translator import Translator
from transformer.models import TransformerConfig
from transformer.training import bad_steps
from transformer.training.module import Seq2SeqModule
from transformer.training.objective import prepare

pytestmark = pytest.mark.gpu
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

VOCABULARY, LENGTH = 37_000, 30  # as WMT14 en-de has them, about
GIB = 2**30


@pytest.fixture
def on(device: str) -> dict[str, Any]:
    """Lightning's words for the device."""
    return {"accelerator": "gpu" if device == "cuda" else "cpu", "devices": 1}


def run(config: Path, out: Path, device: str, *args: str) -> Path:
    """`transformer fit` on the device, repeatably; the run folder."""
    accelerator = "gpu" if device == "cuda" else "cpu"
    options = [f"--trainer.accelerator={accelerator}", "--trainer.devices=1", "--logger=none"]
    options += ["--trainer.deterministic=warn", "--trainer.enable_progress_bar=false"]
    if not any(arg.startswith("--ckpt_path") for arg in args):
        options.append(f"--run_dir={out}")
    assert fit("--config", config, *options, *args) == 0
    return out


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_bundle(folder / "bundle").model.named_parameters())


@pytest.mark.slow
def test_a_run_and_those_that_go_on_from_it(tmp_path: Path, device: str) -> None:
    """Fit; resumed exactly; begun from old weights with new words, with adapters and without."""
    config = recipe(tmp_path)
    few = ("--trainer.precision=32-true", "--save_every=4")
    whole = run(config, tmp_path / "whole", device, *few, "--trainer.max_steps=8")
    half = run(config, tmp_path / "half", device, *few, "--trainer.max_steps=4")
    last = half / "checkpoints/last.ckpt"
    run(config, half, device, *few, "--trainer.max_steps=8", f"--ckpt_path={last}")
    resumed = weights(half)
    for name, parameter in weights(whole).items():
        assert torch.equal(parameter, resumed[name]), name
    words = ("--data.tokenizer.vocab_size=290", "--trainer.max_steps=2")
    begin = (f"--model.init_from={whole}/bundle", *words)
    begun = run(config, tmp_path / "new", device, *begin)
    adapted = run(config, tmp_path / "lora", device, *begin, "--model.lora.rank=2")
    assert weights(begun).keys() == weights(adapted).keys() == resumed.keys()


@needs_gpu
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_training_in_bfloat16(tmp_path: Path, device: str, precision: str) -> None:
    """On CPUs test_training.py has it."""
    options = (f"--trainer.precision={precision}", "--trainer.max_steps=20")
    found = weights(run(recipe(tmp_path), tmp_path / "run", device, *options))
    assert all(parameter.isfinite().all() for parameter in found.values())


@needs_gpu
@pytest.mark.parametrize("beam", [1, 4])
def test_search_finds_what_it_finds_on_a_cpu(tmp_path: Path, device: str, beam: int) -> None:
    folder = run(recipe(tmp_path), tmp_path / "run", device, "--trainer.precision=32-true")
    torch.set_float32_matmul_precision("highest")
    lines = (tmp_path / "corpus/test.de").read_text().splitlines()
    here, there = (
        Translator.load(folder / "bundle", name, "float32").n_best(
            lines, beam=beam, n_best=beam, alignments=True
        )
        for name in ("cpu", device)
    )
    for one, other in zip(here, there, strict=True):
        assert [t.text for t in one] == [t.text for t in other]
        assert [t.alignment for t in one] == [t.alignment for t in other]
        assert [t.log_prob for t in one] == pytest.approx([t.log_prob for t in other], abs=1e-3)


@needs_gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_step_is_found_while_the_next_is_computed(
    tmp_path: Path, on: dict[str, Any], kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CPUs test_bad_steps.py has it, where it is found at once."""
    monkeypatch.setattr(bad_steps, "WINDOW", 4)
    data, options = FixedData([4] * 12, []), {"spike_sigmas": 200.0}
    skipping = module(on_bad_step="skip", **options)
    trainer(tmp_path, Break(kind, 8), max_epochs=1, **on).fit(skipping, datamodule=data)
    assert skipping.guard.skipped == 1
    assert all(parameter.isfinite().all() for parameter in skipping.parameters())
    stopping = trainer(tmp_path, Break(kind, 8), max_epochs=1, **on)
    with pytest.raises(bad_steps.BadStep, match="at step 9 "):
        stopping.fit(module(**options), datamodule=data)
    assert stopping.global_step == 9


class Strict(Callback):
    """Makes it an error that a step waits for the GPU, once everything is warm."""

    seen = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        if trainer.global_step >= 2:
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *args: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")
        self.seen += trainer.global_step > 2


@needs_gpu
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_no_step_waits_for_the_gpu(tmp_path: Path, on: dict[str, Any], precision: Any) -> None:
    """test_gpu.py has the same without a GPU, on the meta device."""
    strict = Strict()
    options: dict[str, Any] = {"gradient_clip_val": 1.0, "accumulate_grad_batches": 2, **on}
    limits = {"max_epochs": 1, "limit_val_batches": 0, "log_every_n_steps": 1000}
    once = trainer(tmp_path, strict, precision=precision, **options, **limits)
    try:
        once.fit(module(), datamodule=FixedData([4] * 12, []))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert strict.seen >= 4


def large_batch(rows: int) -> Batch:
    """Sentences of `LENGTH` tokens."""
    ids = torch.randint(4, VOCABULARY, (rows, LENGTH))
    lengths = torch.full((rows,), LENGTH)
    return Batch(torch.arange(rows), ids, lengths, ids, ids, lengths)


@needs_gpu
def test_batches_travel_from_pinned_memory(device: str) -> None:
    found = Seq2SeqModule(TINY).to(device)
    prepared = found.on_before_batch_transfer(large_batch(4), 0)
    assert all(tensor.is_pinned() for tensor in (*prepared.batch, prepared.rows))


@needs_gpu
@pytest.mark.parametrize("shape", [TransformerConfig(), BIG], ids=["base", "big"])
def test_a_validation_takes_less_memory_than_a_step(
    shape: TransformerConfig, device: str, record_property: Any
) -> None:
    """The step with 25,000 tokens a side, the validation with its own budget and four beams."""
    budget = DataModule(src="de", tgt="en").eval_max_tokens
    how = SearchConfig(beam=4, min_length=LENGTH + 49)  # as long as a hypothesis can be
    found = Seq2SeqModule(shape, search=how)
    tokenizer = train_tokenizer(TokenizerConfig(vocab_size=270), lambda: [("ab", "cd")])
    found.network = found.config.build(VOCABULARY, VOCABULARY).to(device)

    def peak(work: Any) -> float:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        with torch.autocast("cuda", torch.bfloat16):
            work()
        found.zero_grad()
        return torch.cuda.max_memory_allocated() / GIB

    def moved(rows: int) -> Any:
        prepared = prepare(large_batch(rows))
        batch = Batch(*(tensor.to(device) for tensor in prepared.batch))
        return prepared._replace(batch=batch, rows=prepared.rows.to(device))

    step = peak(lambda: found.train().loss(moved(25_000 // LENGTH))[0].backward())
    rows = budget // (how.width * (LENGTH + how.max_extra))
    found.eval()
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(Seq2SeqModule, "tokenizer", tokenizer)
        patch.setattr(found.scorer, "add", lambda *args: None)
        validation = peak(lambda: found.validation_step(moved(rows), 0))
    record_property("step_gib", round(step, 2))
    record_property("validation_gib", round(validation, 2))
    assert validation < step
