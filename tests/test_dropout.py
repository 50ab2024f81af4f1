"""Dropout: the distribution of torch's own, drawn faster on a CPU."""

import math

import pytest
import torch
import torch.nn.functional as F

from transformer.models.dropout import Dropout

SHAPE = (64, 33, 129)  # no multiple of four


def dropped(rate: float, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return Dropout(rate).train()(torch.ones(SHAPE, dtype=dtype))


@pytest.mark.parametrize("rate", [0.1, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_many_are_dropped_as_by_torch(rate: float, dtype: torch.dtype) -> None:
    kept = (dropped(rate, dtype) != 0).double()
    expected = (F.dropout(torch.ones(SHAPE), rate) != 0).double()
    error = math.sqrt(rate * (1 - rate) / kept.numel())
    assert abs(kept.mean() - (1 - rate)) < 4 * error + 2**-17
    assert abs(kept.mean() - expected.mean()) < 6 * error + 2**-17
    # Rows and columns have it alike, and no neighbour knows of the other: in particular not the
    # four values that share one random number.
    for dim in range(3):
        share = kept.mean([d for d in range(3) if d != dim])
        assert (share - (1 - rate)).abs().max() < 6 * error * math.sqrt(kept.size(dim))
    flat = kept.flatten() - kept.mean()
    for distance in (1, 2, 3, 4, 129, 33 * 129):
        correlation = (flat[:-distance] * flat[distance:]).mean() / (rate * (1 - rate))
        assert abs(correlation) < 6 / math.sqrt(kept.numel()), distance


def test_the_expectation_is_kept_and_the_scale_is_torch_s() -> None:
    kept = dropped(0.3)
    assert kept.mean() == pytest.approx(1, abs=5e-3)
    assert kept.max().item() == pytest.approx(1 / 0.7, rel=2**-15)


def test_a_rate_near_one_drops_nearly_all() -> None:
    assert dropped(1 - 1e-7).isfinite().all()


def test_the_gradient_passes_where_the_value_did() -> None:
    x = torch.randn(SHAPE, requires_grad=True)
    y = torch.randn(SHAPE, requires_grad=True)
    torch.manual_seed(3)
    out = Dropout(0.3).train()(y, x)
    outer = torch.randn(SHAPE)
    out.backward(outer)
    mask = dropped(0.3, seed=3)
    torch.testing.assert_close(out, x + y * mask)
    torch.testing.assert_close(x.grad, outer)
    torch.testing.assert_close(y.grad, outer * mask)


def test_a_seed_gives_one_mask_and_another_seed_another() -> None:
    assert torch.equal(dropped(0.3, seed=1), dropped(0.3, seed=1))
    assert not torch.equal(dropped(0.3, seed=1), dropped(0.3, seed=2))


def test_nothing_is_dropped_in_evaluation_or_at_rate_zero() -> None:
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.equal(Dropout(0.3).eval()(y, x), x + y)
    assert Dropout(0.3).eval()(y) is y
    assert Dropout(0.0).train()(y) is y
