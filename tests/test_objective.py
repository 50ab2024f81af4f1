"""The loss against torch's own cross-entropy; the schedules against sums done by hand."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from transformer.kernels import tensors
from transformer.training import objective
from transformer.training.objective import Schedule, label_smoothed_loss, learning_rate, target_rows


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(3, 5, 8, generator=generator, dtype=dtype)
    weight = torch.randn(17, 8, generator=generator, dtype=dtype)
    targets = torch.randint(0, 17, (3, 5), generator=generator)
    lengths = torch.tensor([5, 1, 3])
    return hidden.requires_grad_(), weight.requires_grad_(), targets, lengths


def reference(
    hidden: Tensor, weight: Tensor, targets: Tensor, lengths: Tensor, smoothing: float
) -> tuple[Tensor, Tensor]:
    """All positions projected, padding ignored by torch."""
    masked = targets.clone()
    masked[torch.arange(5) >= lengths[:, None]] = -100
    logits = (hidden @ weight.T).flatten(0, 1)
    smooth = F.cross_entropy(logits, masked.flatten(), label_smoothing=smoothing, reduction="sum")
    return smooth, F.cross_entropy(logits, masked.flatten(), reduction="sum")


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
@pytest.mark.parametrize("chunk", [17, 40, 2**19])
def test_loss_and_gradients_equal_torch(
    monkeypatch: pytest.MonkeyPatch, smoothing: float, chunk: int
) -> None:
    monkeypatch.setattr(tensors, "_CPU_CHUNK", chunk)  # 1 row, 2 rows, everything at once
    hidden, weight, targets, lengths = batch()
    expected, expected_nll = reference(hidden, weight, targets, lengths, smoothing)
    expected_gradients = torch.autograd.grad(expected / 4, (hidden, weight))

    rows = target_rows(lengths, 5)
    loss, nll = label_smoothed_loss(lambda h: h @ weight.T, hidden, targets, rows, smoothing)
    gradients = torch.autograd.grad(loss / 4, (hidden, weight))

    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(nll, expected_nll)
    torch.testing.assert_close(gradients, expected_gradients)


def test_nll_has_no_gradient_and_none_is_made_without_need() -> None:
    hidden, weight, targets, lengths = batch()
    rows = target_rows(lengths, 5)
    _, nll = label_smoothed_loss(lambda h: h @ weight.T, hidden, targets, rows, 0.1)
    assert not nll.requires_grad
    with torch.no_grad():
        loss, _ = label_smoothed_loss(lambda h: h @ weight.T, hidden, targets, rows, 0.1)
    expected, _ = reference(hidden, weight, targets, lengths, 0.1)
    torch.testing.assert_close(loss, expected.detach())


def test_half_precision_logits_are_summed_in_float32() -> None:
    hidden, weight, targets, lengths = batch(torch.bfloat16)
    rows = target_rows(lengths, 5)
    loss, nll = label_smoothed_loss(lambda h: h @ weight.T, hidden, targets, rows, 0.1)
    assert loss.dtype == nll.dtype == torch.float32
    (gradient,) = torch.autograd.grad(loss, hidden)
    assert gradient.dtype == torch.bfloat16 and gradient.isfinite().all()


def test_padding_is_left_out_and_few_numbers_of_rows_are_projected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hidden, weight, targets, lengths = batch()
    seen: list[tuple[int, ...]] = []

    def project(rows: Tensor) -> Tensor:
        seen.append(tuple(rows.shape))
        return rows @ weight.T

    losses: list[Tensor] = []
    for multiple in (1, 3, 4, 128):  # of 9 real tokens among 15
        monkeypatch.setattr(objective, "LOGIT_ROWS", multiple)
        losses += label_smoothed_loss(project, hidden, targets, target_rows(lengths, 5), 0.1)
    assert seen == [(9, 8), (9, 8), (12, 8), (128, 8)]
    torch.testing.assert_close(losses, losses[:2] * 4)
    assert target_rows(lengths, 5).tolist() == [0, 1, 2, 3, 4, 5, 10, 11, 12]


def test_noam_is_equation_3() -> None:
    def lr(step: int, peak: float = 1.0) -> float:
        return learning_rate("noam", step, factor=peak, warmup_steps=4000, d_model=512)

    assert lr(1) == pytest.approx(512**-0.5 * 1 * 4000**-1.5)
    assert lr(4000) == pytest.approx(512**-0.5 * 4000**-0.5) == pytest.approx(6.98771e-4)
    assert lr(100_000) == pytest.approx(512**-0.5 * 100_000**-0.5)
    assert lr(4000, peak=2.0) == pytest.approx(2 * lr(4000))


def test_inverse_sqrt_and_constant() -> None:
    def lr(schedule: Schedule, step: int, warmup: int = 2000) -> float:
        return learning_rate(schedule, step, factor=0.005, warmup_steps=warmup, d_model=128)

    assert lr("inverse_sqrt", 1) == pytest.approx(0.0000025)
    assert lr("inverse_sqrt", 1000) == pytest.approx(0.0025)
    assert lr("inverse_sqrt", 2000) == pytest.approx(0.005)
    assert lr("inverse_sqrt", 8000) == pytest.approx(0.0025)
    assert lr("constant", 500) == pytest.approx(0.00125)
    assert lr("constant", 9000) == pytest.approx(0.005)
    assert lr("constant", 1, warmup=0) == pytest.approx(0.005)
    assert lr("inverse_sqrt", 4, warmup=0) == pytest.approx(0.0025)


def test_bfloat16_logits_lose_no_more_than_their_own_rounding() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(4, 50, 64), torch.randn(1000, 64) / 8
    targets = torch.randint(0, 1000, (4, 50))
    rows = target_rows(torch.tensor([50, 40, 30, 1]), 50)

    def both(dtype: torch.dtype) -> tuple[Tensor, ...]:
        h, w = (t.to(dtype).requires_grad_() for t in (hidden, weight))
        loss, _ = label_smoothed_loss(lambda x: x @ w.T, h, targets, rows, 0.1)
        return loss, *(g.float() for g in torch.autograd.grad(loss, (h, w)))

    for found, expected in zip(both(torch.bfloat16), both(torch.float32), strict=True):
        assert found.dtype == torch.float32
        assert (found - expected).norm() < 2**-7 * expected.norm()


def test_an_operation_that_needs_its_result_again_is_refused() -> None:
    """The gradient is written over the logits: a projection that ends in tanh would be wrong."""
    hidden, weight, targets, lengths = batch()
    rows = target_rows(lengths, 5)
    loss, _ = label_smoothed_loss(lambda h: (h @ weight.T).tanh(), hidden, targets, rows, 0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()
