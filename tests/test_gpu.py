"""What training on a GPU rests on, as far as it can be seen without one."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch._dynamo
from benchmarks.papers import TINY
from torch import Tensor

from transformer.data.batching import Batch
from transformer.kernels import has_bfloat16
from transformer.models import ModelConfig, RNNConfig, TransformerConfig
from transformer.models.attention import SCORES
from transformer.models.positions import SinusoidalPositions
from transformer.training import bad_steps
from transformer.training.module import Seq2SeqModule
from transformer.training.objective import Prepared, label_smoothed_loss, prepare, target_rows

SIZE = 50  # of the vocabulary


def batch(rows: int, src: int, tgt: int) -> Batch:
    def ids(length: int) -> Tensor:
        return torch.randint(4, SIZE, (rows, length))

    def lengths(longest: int) -> Tensor:
        found = torch.randint(1, longest + 1, (rows,))
        found[0] = longest
        return found

    length = lengths(tgt)
    return Batch(torch.arange(rows), ids(src), lengths(src), ids(tgt), ids(tgt), length)


def moved(prepared: Prepared, device: str) -> Prepared:
    on_device = Batch(*(tensor.to(device) for tensor in prepared.batch))
    return prepared._replace(batch=on_device, rows=prepared.rows.to(device))


@pytest.mark.parametrize(("clip", "processes"), [(None, 1), (1.0, 1), (1.0, 2)])
@pytest.mark.parametrize(
    "shape", [TINY, *(RNNConfig(attention=name) for name in ("none", *SCORES))]
)
def test_a_training_step_never_waits_for_the_device(
    monkeypatch: pytest.MonkeyPatch, clip: float | None, processes: int, shape: ModelConfig
) -> None:
    """On the meta device tensors have no values: to ask for one is an error.

    Of several processes each adds its tokens to those of the others on the device, and there is no
    strategy that would wait for them.
    """
    counts: list[Tensor] = []
    monkeypatch.setattr(torch.distributed, "all_reduce", counts.append)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    # What a host reads while the device is at work on the next step has nothing to read there.
    monkeypatch.setattr(bad_steps, "_sent", lambda numbers: (torch.zeros(3), None))
    module = Seq2SeqModule(shape, spike_sigmas=6.0)
    network = shape.build(SIZE, SIZE)
    for part in network.modules():
        if isinstance(part, SinusoidalPositions):
            part(0, 1)  # what is filled in the first step alone
    module.network = network.to("meta").train()
    module._trainer = SimpleNamespace(  # type: ignore[assignment]
        global_step=0, global_rank=0, world_size=processes, accumulate_grad_batches=2
    )
    with pytest.raises(RuntimeError, match="meta"):
        torch.ones((), device="meta").item()
    for sizes in ((3, 4, 5), (2, 9, 6)):
        prepared = moved(prepare(batch(*sizes)), "meta")
        module.training_step(prepared, 0).backward()
    optimizer = torch.optim.AdamW(module.parameters())
    module.configure_gradient_clipping(optimizer, clip)
    assert vars(optimizer).pop("found_inf").is_meta  # for kernels that the meta device lacks
    optimizer.step()
    assert [(count.dtype, count.device.type) for count in counts] == (
        [(torch.float32, "meta")] if processes > 1 else []
    )


def test_batches_are_pinned_for_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor)
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    module = Seq2SeqModule(TINY)
    given = batch(2, 3, 4)
    module.on_before_batch_transfer(given, 0)
    assert not pinned
    monkeypatch.setattr(Seq2SeqModule, "device", torch.device("cuda"))
    prepared = module.on_before_batch_transfer(given, 0)
    assert [tensor is other for tensor, other in zip(pinned, given, strict=False)] == [True] * 6
    assert pinned[-1] is prepared.rows


@pytest.mark.parametrize("training", [False, True])
def test_one_graph_serves_all_shapes(training: bool) -> None:
    """Whole, without a break; another one when the tables of positions had to grow."""
    torch._dynamo.reset()
    network = TINY.build(SIZE, SIZE).train(training)
    shapes = [(3, 4, 5), (2, 9, 6), (7, 16, 3), (5, 300, 8), (4, 12, 270), (16, 8, 8), (9, 64, 64)]
    batches = [batch(*shape) for shape in shapes]
    expected = [network(b.src, b.src_lengths, b.tgt_in) for b in batches]
    network.compile(dynamic=True, fullgraph=True, backend="eager")
    torch._dynamo.utils.counters.clear()
    with torch.autocast("cpu", torch.bfloat16, enabled=training and has_bfloat16("cpu")):
        for given, hidden in zip(batches, expected, strict=True):
            found = network(given.src, given.src_lengths, given.tgt_in)
            if training:
                found.sum().backward()
            else:
                torch.testing.assert_close(found, hidden)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 3


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("cell", ["gru", "lstm"])
def test_recurrences_are_not_computed_in_float16(cell: Any) -> None:
    """Under bfloat16 autocast they are those of float32, up to the rounding of the rest."""
    torch.manual_seed(0)
    network = RNNConfig(d_model=64, num_layers=2, dropout=0.0, cell=cell).build(SIZE, SIZE).cuda()
    given = batch(4, 9, 7)
    src, lengths, tgt_in = (x.cuda() for x in (given.src, given.src_lengths, given.tgt_in))
    expected = network(src, lengths, tgt_in)
    with torch.autocast("cuda", torch.bfloat16):
        states, _ = network.decoder[0](network.tgt_embedding(tgt_in))
        found = network(src, lengths, tgt_in)
    assert states.dtype == torch.float32
    torch.testing.assert_close(found.float(), expected, atol=0.02, rtol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_loss_is_the_same(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = (torch.randn(300, 16) / 4).to(dtype).requires_grad_()

    def results(hidden: Tensor, targets: Tensor, rows: Tensor, compiled: bool) -> Any:
        loss, nll = label_smoothed_loss(
            lambda h: h @ weight.T, hidden, targets, rows, 0.1, compiled
        )
        return loss, nll, *torch.autograd.grad(loss / 3, (hidden, weight))

    for rows, length in ((3, 5), (7, 4), (20, 31)):
        hidden = torch.randn(rows, length, 16, dtype=dtype, requires_grad=True)
        targets = torch.randint(0, 300, (rows, length))
        real = target_rows(torch.randint(1, length + 1, (rows,)), length)
        plain, fused = (results(hidden, targets, real, compiled) for compiled in (False, True))
        rtol, atol = (2e-2, 2e-3) if dtype == torch.bfloat16 else (1e-5, 1e-6)
        torch.testing.assert_close(fused, plain, rtol=rtol, atol=atol)


@pytest.mark.slow
def test_training_compiled_takes_the_same_steps() -> None:
    """Loss and gradients of the module's own compiled step, over batches of different shapes."""
    shape = TransformerConfig(d_model=16, d_ff=32, num_heads=2, num_layers=1, dropout=0.0)
    modules = [Seq2SeqModule(shape, compile=compiled) for compiled in (False, True)]
    tokenizer = SimpleNamespace(src_vocab_size=SIZE, tgt_vocab_size=SIZE)
    for module in modules:
        module._trainer = SimpleNamespace(  # type: ignore[assignment]
            datamodule=SimpleNamespace(tokenizer=tokenizer), global_step=0, global_rank=0,
            world_size=1, accumulate_grad_batches=1,
        )  # fmt: skip
        module.configure_model()
    for given in (batch(3, 4, 5), batch(6, 9, 7), batch(4, 20, 12)):
        losses = []
        for module in modules:
            loss, _ = module.loss(prepare(given))
            module.zero_grad()
            loss.backward()
            losses.append(loss)
        torch.testing.assert_close(losses[1], losses[0])
        plain, compiled = (
            {name: weight.grad for name, weight in module.named_parameters()} for module in modules
        )
        torch.testing.assert_close(compiled, plain)
