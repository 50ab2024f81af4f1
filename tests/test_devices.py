"""Tensors are made on the device of what they meet, on machines without a second device, too.

Fake tensors have shapes and devices but no values, and can be copied from one device to another.
The other device is `meta` here: without a driver, torch can neither cut a slice of a fake tensor on
`cuda` nor compute a gradient of it. What asks for values runs on the CPU, while `meta` is the
device of everything that is made without saying where.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_gpu import batch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from toys import WORDS, FixedData, trainer
from toys import module as toy

from transformer.bundle import Bundle, save_bundle
from transformer.data.batching import Batch
from transformer.data.tokenizer import Tokenizer, TokenizerConfig
from transformer.data.tokenizer_training import train_tokenizer
from transformer.inference.continuations import (
    banned_tokens,
    best_continuations,
)
from transformer.inference.translator import Translator
from transformer.models import ModelConfig, RNNConfig, TransformerConfig
from transformer.training import module as training
from transformer.training.checkpoint_files import average_checkpoints
from transformer.training.logging import TrainingLog
from transformer.training.module import Seq2SeqModule
from transformer.training.objective import Prepared, prepare
from transformer.training.scoring import Scorer
from transformer.training.transfer import LoRAConfig, merge

SHAPES: list[ModelConfig] = [
    TransformerConfig(d_model=16, d_ff=32, num_heads=2, num_layers=1),
    TransformerConfig(d_model=16, d_ff=32, num_heads=2, num_layers=1, positions="learned"),
    RNNConfig(d_model=16),
    RNNConfig(d_model=16, cell="lstm", attention="none", input_feeding=True),
]
ON_HOST = prepare(batch(3, 4, 5))
each_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: type(shape).__name__)


META = torch.device("meta")


class OneDevice(TorchDispatchMode):
    """Refuses to mix devices, which indices may do: those of a GPU would have to wait for it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.dim()]
        if len({x.device for x in given}) > 1 and "copy" not in func.name():
            raise RuntimeError(f"{func.name()} mixes {[str(x.device) for x in given]}")
        return func(*args, **(kwargs or {}))


def in_meta(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, called while `meta` is the default device."""

    @wraps(function)
    def called(*args: Any, **options: Any) -> Any:
        with META:
            return function(*args, **options)

    return called


@pytest.fixture
def fake() -> Iterator[None]:
    """Tensors without values."""
    with FakeTensorMode(), OneDevice():
        yield


def tokenizer(size: int) -> Tokenizer:
    return train_tokenizer(TokenizerConfig(vocab_size=size), WORDS.items)


OLD, NEW = tokenizer(270), tokenizer(280)
ABOUT: dict[str, Any] = {
    "src": "de", "tgt": "en", "search": {}, "max_length": 60, "evaluation": {}, "training": {},
    "card": "",
}  # fmt: skip


def bundle(folder: Path, shape: ModelConfig) -> Path:
    model = shape.build(OLD.src_vocab_size, OLD.tgt_vocab_size)
    save_bundle(folder / "bundle", model, OLD, **ABOUT)
    return folder / "bundle"


def module(shape: ModelConfig, **options: Any) -> Seq2SeqModule:
    found = Seq2SeqModule(shape, **options)
    found._trainer = SimpleNamespace(  # type: ignore[assignment]
        datamodule=SimpleNamespace(tokenizer=NEW), global_step=0, global_rank=0, world_size=1,
        accumulate_grad_batches=1, strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )  # fmt: skip
    return found


def test_what_is_mixed_is_seen(fake: None) -> None:
    here, there = torch.arange(2), torch.arange(2, device=META)
    for mix in (lambda: here * there, lambda: here[there], lambda: there[here]):
        with pytest.raises(RuntimeError, match="mixes"):
            mix()


def on_device() -> Prepared:
    """What `prepare` has made of a batch, as it comes to the device."""
    sizes = [x.shape for x in (*ON_HOST.batch, ON_HOST.rows)]
    *sent, rows = [torch.empty(size, dtype=torch.long, device=META) for size in sizes]
    return ON_HOST._replace(batch=Batch(*sent), rows=rows)


def configured(found: Seq2SeqModule) -> Seq2SeqModule:
    """Builds the network as Lightning has it built, and moves there what is not there yet."""
    with META:
        found.configure_model()
    for part in found.model.modules():
        part._buffers.update({k: b.to(META) for k, b in part._buffers.items() if b is not None})
    assert {p.device for p in found.parameters()} == {META}
    return found


@each_shape
def test_a_training_step(shape: ModelConfig, fake: None, monkeypatch: pytest.MonkeyPatch) -> None:
    # The verdict on the step travels to the host behind an event, which the device lacks here.
    monkeypatch.setattr("transformer.training.bad_steps._sent", lambda numbers: (numbers, None))
    found = configured(module(shape, lora=LoRAConfig(rank=2)))
    found.training_step(on_device(), 0).backward()
    learning = [p for p in found.parameters() if p.requires_grad]
    optimizer: Any = torch.optim.AdamW(learning)
    found.configure_gradient_clipping(optimizer, 1.0)
    assert optimizer.found_inf.device == META
    optimizer.found_inf = None  # only fused kernels know it, of which the device has none
    optimizer.step()
    merge(found.model)


@each_shape
def test_old_weights_come_from_the_cpu(
    shape: ModelConfig, fake: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = shape.build(OLD.src_vocab_size, OLD.tgt_vocab_size)
    config = {"src": "de", "tgt": "en"}
    monkeypatch.setattr(
        "transformer.training.transfer.load_bundle", lambda folder: Bundle(old, OLD, config)
    )
    configured(module(shape, init_from="bundle"))


@each_shape
def test_a_step_of_search(shape: ModelConfig, fake: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of it asks for values."""
    # Whether any source is padded is one of them.
    monkeypatch.setattr("transformer.models.cache._unless_all_true", lambda mask: mask)
    model = configured(module(shape)).model.eval()
    given, beams = on_device().batch, 2
    state = model.start(model.encode(given.src, given.src_lengths), beams)
    tokens = torch.zeros(3, beams, 20, dtype=torch.long, device=META)
    scores = torch.zeros(3, beams, device=META)
    for _ in range(20):  # the cache has to grow
        hidden = model.step(tokens[:, :, 0], state)
    logits = model.project(hidden).detach()
    banned = banned_tokens(tokens, logits.size(-1), given.src_lengths, 0, 30)
    found = best_continuations(scores, logits, banned)
    state.reorder(found.parents[:, :beams])
    weights = model.cross_attention(given.src, given.src_lengths, given.tgt_in)
    assert {hidden.device, found.tokens.device, weights.device} == {META}


@each_shape
def test_a_translator_leaves_the_default_device_alone(shape: ModelConfig, tmp_path: Path) -> None:
    folder = bundle(tmp_path, shape)
    lines = ["eins zwei", "drei"]
    options: dict[str, Any] = {"beam": 2, "max_extra": 3}

    def results() -> list[Any]:
        translator = Translator.load(folder, device="cpu")
        found = translator.n_best(lines, prefix="one", no_repeat_ngram=2, n_best=2, **options)
        aligned = translator.n_best(lines, alignments=True, **options)
        drawn = translator.translate(lines, sample=True, generator=torch.Generator().manual_seed(1))
        scored = translator.score(lines, ["one two", "three"])
        weights = translator.attention("eins", "one")[0].tolist()
        return [found, aligned, drawn, scored, weights]

    expected = results()
    with META:
        assert results() == expected


@each_shape
def test_training_leaves_the_default_device_alone(
    shape: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that is ours of a step, a validation and a save; torch's own loader would not."""
    ours = {
        Seq2SeqModule: "on_before_batch_transfer training_step configure_gradient_clipping "
        "configure_optimizers validation_step on_save_checkpoint",
        Scorer: "begin finish",
        TrainingLog: "on_train_batch_end on_validation_end on_save_checkpoint",
        training: "probe",
    }
    for home, names in ours.items():
        for name in names.split():
            monkeypatch.setattr(home, name, in_meta(getattr(home, name)))
    log = TrainingLog()
    run = trainer(tmp_path, log, max_epochs=1, log_every_n_steps=1)
    run.fit(toy(network=shape, probes=True), datamodule=FixedData([2], [2]))
    run.save_checkpoint(tmp_path / "last.ckpt")
    with META:
        average_checkpoints([tmp_path / "last.ckpt"] * 2)
