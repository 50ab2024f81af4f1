"""Attention and positions against torch's own modules and calculations by hand."""

import math
import os
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from toys import ROOT, copy_attention

from transformer.models import TransformerConfig
from transformer.models.attention import (
    LEARNED,
    SCORES,
    MultiHeadAttention,
    attention,
    causal_mask,
    padding_mask,
)
from transformer.models.positions import LearnedPositions, SinusoidalPositions


def heads(*sizes: int) -> torch.Tensor:
    return torch.randn(*sizes, dtype=torch.float64)


def multi_head(**options: Any) -> MultiHeadAttention:
    return MultiHeadAttention(TransformerConfig(d_model=16, num_heads=4, **options))


def test_attention_by_hand() -> None:
    query = torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]])
    key = torch.tensor([[[[2.0, 0, 0, 0], [0.0, 1, 0, 0]]]])
    value = torch.tensor([[[[1.0], [5.0]]]])
    # scores: 2 / sqrt(4) = 1 and 0; softmax: e / (e + 1) and 1 / (e + 1)
    first = math.e / (math.e + 1)
    result = attention(query, key, value, need_weights=True)
    assert result.weights is not None
    torch.testing.assert_close(result.weights.flatten(), torch.tensor([first, 1 - first]))
    assert result.values.item() == pytest.approx(first * 1 + (1 - first) * 5)


# Of one query q, one key k and, where it is learned, v: lists of numbers.
BY_HAND: dict[str, Callable[..., float]] = {
    "dot": lambda q, k: sum(a * b for a, b in zip(q, k, strict=True)),
    "scaled_dot": lambda q, k: sum(a * b for a, b in zip(q, k, strict=True)) / len(q) ** 0.5,
    "additive": lambda q, k, v: sum(c * math.tanh(a + b) for a, b, c in zip(q, k, v, strict=True)),
}


@pytest.mark.parametrize("name", SCORES)
def test_a_score_by_hand(name: str) -> None:
    torch.manual_seed(0)
    query, key, v = heads(2, 3, 4, 5), heads(2, 3, 6, 5), heads(5)
    learned = (v,) if name in LEARNED else ()
    found = SCORES[name](query, key, *learned)
    assert found.shape == (2, 3, 4, 6)
    for b, h, t, s in product(range(2), range(3), range(4), range(6)):
        expected = BY_HAND[name](*(x.tolist() for x in (query[b, h, t], key[b, h, s], *learned)))
        assert found[b, h, t, s].item() == pytest.approx(expected)


def test_the_score_that_the_docs_add() -> None:
    """Its function, executed, beside its line for this test."""
    text = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
    function = text[text.index("def negative_distance") : text.index("\n\n\nSCORES = {")]
    found: dict[str, Any] = {"Tensor": torch.Tensor}
    exec(function, found)
    (line,) = [line for line in text.splitlines() if line.startswith('"negative_distance":')]
    by_hand = eval("{" + line + "}")["negative_distance"]
    query, key = heads(3, 4), heads(5, 4)
    scores = found["negative_distance"](query, key)
    for t, s in product(range(3), range(5)):
        assert scores[t, s].item() == pytest.approx(by_hand(query[t].tolist(), key[s].tolist()))


@pytest.mark.parametrize("name", SCORES)
def test_attention_with_any_score(name: str) -> None:
    """Softmax of the scores of the real keys, and the sum of the values weighted by it."""
    torch.manual_seed(0)
    query, key, value, v = heads(2, 1, 3, 4), heads(2, 1, 5, 4), heads(2, 1, 5, 4), heads(4)
    learned = (v,) if name in LEARNED else ()

    def score(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        return SCORES[name](query, key, *learned)

    lengths = torch.tensor([5, 2])
    found = attention(
        query, key, value, score=score, mask=padding_mask(lengths, 5), need_weights=True
    )
    for row, length in enumerate(lengths.tolist()):
        weights = score(query[row], key[row, :, :length]).softmax(-1)
        torch.testing.assert_close(found.values[row], weights @ value[row, :, :length])
        assert found.weights is not None
        torch.testing.assert_close(found.weights[row, :, :, :length], weights)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_fused_and_weight_returning_paths_agree(causal: bool, padded: bool, masked: bool) -> None:
    torch.manual_seed(0)
    query, key, value = heads(3, 2, 6, 4), heads(3, 2, 6, 4), heads(3, 2, 6, 4)
    mask = torch.ones(3, 1, 6, 6, dtype=torch.bool)
    if masked:
        mask = (torch.rand(3, 1, 6, 6) < 0.5) | torch.eye(6, dtype=torch.bool)
        mask[..., 0] = True  # every query keeps a key to look at
    if padded:
        mask = mask & padding_mask(torch.tensor([6, 4, 1]), 6)
    if causal:
        mask = mask & causal_mask(6, mask.device)
    fused = attention(query, key, value, mask=mask)
    written = attention(query, key, value, mask=mask, need_weights=True)
    assert fused.weights is None
    assert written.weights is not None
    torch.testing.assert_close(fused.values, written.values)
    torch.testing.assert_close(written.weights.sum(-1), torch.ones(3, 2, 6, dtype=torch.float64))
    if causal:
        assert written.weights.triu(1).abs().max() == 0
    if padded:
        assert written.weights[1, :, :, 4:].abs().max() == 0
        assert written.weights[2, :, :, 1:].abs().max() == 0


@pytest.mark.parametrize("causal", [False, True])
def test_bfloat16_in_training_agrees_with_float32(causal: bool) -> None:
    """On a CPU this is another kernel; bfloat16 has 8 bits, so errors are some 2^-8."""
    torch.manual_seed(0)
    inputs = [torch.randn(3, 2, 6, 8).bfloat16().requires_grad_() for _ in range(3)]
    outer = torch.randn(3, 2, 6, 8)
    mask = None if causal else padding_mask(torch.tensor([6, 4, 1]), 6)
    values = attention(inputs[0], inputs[1], inputs[2], causal=causal, mask=mask).values
    assert values.dtype == torch.bfloat16
    gradients = torch.autograd.grad(values, inputs, outer.bfloat16())

    exact = [x.detach().float().requires_grad_() for x in inputs]
    expected = attention(exact[0], exact[1], exact[2], causal=causal, mask=mask).values
    torch.testing.assert_close(values.float(), expected, atol=2e-2, rtol=2e-2)
    for found, wanted in zip(gradients, torch.autograd.grad(expected, exact, outer), strict=True):
        torch.testing.assert_close(found.float(), wanted, atol=5e-2, rtol=5e-2)


@pytest.mark.parametrize("need_weights", [False, True])
def test_the_causal_mask_need_not_be_written(need_weights: bool) -> None:
    torch.manual_seed(0)
    inputs = heads(3, 2, 6, 4), heads(3, 2, 6, 4), heads(3, 2, 6, 4)
    mask = causal_mask(6, torch.device("cpu"))
    expected = attention(*inputs, mask=mask, need_weights=True).values
    found = attention(*inputs, causal=True, need_weights=need_weights)
    torch.testing.assert_close(found.values, expected)


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    query, key, value = heads(1, 2, 3, 4), heads(1, 2, 5, 4), heads(1, 2, 5, 4)
    full = attention(query, key, value, mask=padding_mask(torch.tensor([3]), 5)).values
    cut = attention(query, key[:, :, :3], value[:, :, :3]).values
    torch.testing.assert_close(full, cut)


@pytest.mark.parametrize("causal", [False, True])
def test_multi_head_attention_is_torchs(causal: bool) -> None:
    torch.manual_seed(0)
    ours = multi_head().double()
    torch.nn.init.normal_(ours.input_projection.bias)
    theirs = torch.nn.MultiheadAttention(16, 4, batch_first=True, dtype=torch.float64)
    copy_attention(ours, theirs)
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    forbidden = torch.ones(5, 5, dtype=torch.bool).triu(1) if causal else None
    expected, expected_weights = theirs(
        x, x, x, attn_mask=forbidden, average_attn_weights=False, need_weights=True
    )
    result = ours(x, causal=causal, need_weights=True)
    torch.testing.assert_close(result.values, expected)
    torch.testing.assert_close(result.weights, expected_weights)
    torch.testing.assert_close(ours(x, causal=causal).values, expected)


def test_cross_attention_is_torchs() -> None:
    torch.manual_seed(0)
    ours = multi_head()
    theirs: Any = torch.nn.MultiheadAttention(16, 4, batch_first=True)
    copy_attention(ours, theirs)
    x, memory, lengths = torch.randn(2, 3, 16), torch.randn(2, 5, 16), torch.tensor([5, 2])
    padding = torch.arange(5) >= lengths[:, None]
    expected, _ = theirs(x, memory, memory, key_padding_mask=padding)
    mask = padding_mask(lengths, 5)
    torch.testing.assert_close(ours(x, memory, mask=mask).values, expected)
    projected = ours.project_memory(memory)
    torch.testing.assert_close(ours(x, projected, mask=mask).values, expected)


def test_attention_dropout_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's own random numbers in the place of ours: the same weights are dropped."""
    monkeypatch.setattr("transformer.kernels.tensors.dropout", F.dropout)
    ours = multi_head(attention_dropout=0.4)
    theirs: Any = torch.nn.MultiheadAttention(16, 4, batch_first=True, dropout=0.4)
    copy_attention(ours, theirs)
    x = torch.randn(2, 5, 16)
    torch.manual_seed(1)
    expected, weights = theirs(x, x, x, average_attn_weights=False)
    torch.manual_seed(1)
    found = ours(x, need_weights=True)
    assert 0.2 < (weights == 0).double().mean() < 0.6
    torch.testing.assert_close(found.weights, weights)
    torch.testing.assert_close(found.values, expected)
    torch.manual_seed(1)
    torch.testing.assert_close(ours(x).values, expected)  # as in training, without the weights
    expected, _ = theirs.eval()(x, x, x)
    torch.testing.assert_close(ours.eval()(x).values, expected)


def test_key_size_of_its_own() -> None:
    layer = multi_head(d_k=2)
    x = torch.randn(1, 3, 16)
    query, key, value = layer.input_projection(x).split([8, 8, 16], -1)
    outputs = [
        F.softmax(q @ k.mT / math.sqrt(2), -1) @ v
        for q, k, v in zip(query.split(2, -1), key.split(2, -1), value.split(4, -1), strict=True)
    ]
    torch.testing.assert_close(layer(x).values, layer.output_projection(torch.cat(outputs, -1)))


def is_intel() -> bool:
    cpu = Path("/proc/cpuinfo")
    return cpu.exists() and "GenuineIntel" in cpu.read_text()


@pytest.mark.slow
@pytest.mark.skipif(
    not is_intel(), reason="MKL does so on Intel's CPUs: on AMD's 0 of 24 processes"
)
def test_the_first_sines_of_a_process_are_as_good_as_later_ones() -> None:
    """Without a call on one thread before, those of one process in eight are off by 7e-9."""
    code = (
        "import math, torch, transformer.models\n"
        "x = torch.linspace(0, 20, 2**14, dtype=torch.float64)\n"
        "expected = torch.tensor([math.sin(v) for v in x.tolist()], dtype=torch.float64)\n"
        "assert (x.sin() - expected).abs().max() < 1e-12"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "2"}
    for _ in range(12):
        subprocess.run([sys.executable, "-c", code], check=True, env=environment)


def test_sinusoids_by_hand() -> None:
    table = SinusoidalPositions(6)(3, 300)
    assert table.shape == (300, 6)
    for row, position in ((0, 3), (297, 300), (299, 302)):
        for i in range(3):
            angle = position / 10000 ** (2 * i / 6)
            assert table[row, 2 * i].item() == pytest.approx(math.sin(angle), abs=1e-6)
            assert table[row, 2 * i + 1].item() == pytest.approx(math.cos(angle), abs=1e-6)


def test_learned_positions_have_an_end() -> None:
    positions = LearnedPositions(4, 8)
    assert positions(1, 3).shape == (3, 8)
    with pytest.raises(ValueError, match=r"5 tokens .* 4 learned .*max_positions"):
        positions(4, 1)
