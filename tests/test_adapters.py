"""Which weights learn: all but the frozen ones, or low-rank adapters beside them."""

from typing import Any

import pytest
import torch
from parents import SHAPES
from torch import Tensor

from transformer.models import Seq2Seq
from transformer.training.transfer import LoRAConfig, choose_what_learns, merge, merged


def learning(model: Seq2Seq) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def one_step(model: Seq2Seq) -> None:
    """An optimizer step on whatever learns, with a loss that says nothing."""
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.5)
    src, lengths, tgt = torch.tensor([[5, 6, 7, 2]]), torch.tensor([4]), torch.tensor([[1, 8, 9]])
    for _ in range(2):  # of the two matrices of an adapter the first learns from the second step on
        optimizer.zero_grad()
        model.project(model(src, lengths, tgt)).square().mean().backward()
        optimizer.step()


@pytest.mark.parametrize("kind", SHAPES)
def test_frozen_parameters_do_not_move(kind: str) -> None:
    model = SHAPES[kind].build(30, 30)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    learned = choose_what_learns(model, ["encoder.*", "src_embedding*"], LoRAConfig())
    one_step(model)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == learning(model)
    assert not any(name.startswith(("encoder.", "src_embedding")) for name in moved)
    assert learned == sum(before[name].numel() for name in moved)
    assert "decoder.0." in " ".join(moved)


def test_a_tied_matrix_is_frozen_by_any_of_its_names() -> None:
    model = SHAPES["three_way"].build(30, 30)
    choose_what_learns(model, ["output.weight"], LoRAConfig())
    assert "src_embedding.tokens.weight" not in learning(model)


@pytest.mark.parametrize("kind", SHAPES)
def test_adapters_begin_as_nothing_and_merge_into_the_same_model(kind: str) -> None:
    torch.manual_seed(0)
    model = SHAPES[kind].build(30, 30).eval()
    src, lengths, tgt = torch.tensor([[5, 6, 7, 2]]), torch.tensor([4]), torch.tensor([[1, 8, 9]])

    def logits() -> Tensor:
        return model.project(model(src, lengths, tgt)).detach()

    plain, names = logits(), set(model.state_dict())
    learned = choose_what_learns(model, ["*"], LoRAConfig(rank=2, alpha=8))
    assert torch.equal(logits(), plain)
    assert all(".parametrizations.weight.0." in name for name in learning(model))
    assert learned == sum(p.numel() for p in model.parameters() if p.requires_grad)
    one_step(model)
    adapted, weights = logits(), merged(model.state_dict())
    assert (adapted - plain).abs().max() > 1e-4
    merge(model)
    torch.testing.assert_close(logits(), adapted)
    assert set(model.state_dict()) == set(weights) == names
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, weights[name])


def test_an_adapter_is_what_the_paper_says() -> None:
    model = SHAPES["three_way"].build(30, 30)
    choose_what_learns(model, [], LoRAConfig(rank=3, alpha=6, targets=("decoder.0.*inner*",)))
    layer: Any = model.get_submodule("decoder.0.feed_forward.inner")
    original, low = layer.parametrizations.weight.original, layer.parametrizations.weight[0]
    with torch.no_grad():
        low.b.normal_()
    assert (low.a.shape, low.b.shape) == ((3, 16), (32, 3))
    wanted = original + torch.einsum("or,ri->oi", low.b, low.a) * 6 / 3
    torch.testing.assert_close(layer.weight, wanted)
    adapters = {name for name in learning(model) if ".parametrizations." in name}
    assert len(adapters) == 2
    assert "decoder.0.feed_forward.inner.bias" in learning(model)


@pytest.mark.parametrize(
    ("freeze", "lora", "message"),
    [
        (
            ["encodr.*"],
            LoRAConfig(),
            r"model\.freeze: 'encodr\.\*' matches none .* nearest is 'enc",
        ),
        ([], LoRAConfig(rank=2, targets=("*decoder*", "x")), r"model\.lora\.targets: 'x' matches"),
        (["*"], LoRAConfig(), r"model\.freeze: every parameter is frozen"),
    ],
)
def test_what_cannot_be_frozen_or_adapted(
    freeze: list[str], lora: LoRAConfig, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        choose_what_learns(SHAPES["three_way"].build(30, 30), freeze, lora)


def test_a_rank_below_zero() -> None:
    with pytest.raises(ValueError, match=r"model\.lora\.rank is -1"):
        LoRAConfig(rank=-1)
