"""Which tokens may come next: samples follow the probabilities, the best are the best of all."""

import pytest
import torch
from test_search import BOS, EOS, VOCAB, build

from transformer.inference.batches import pad
from transformer.inference.continuations import banned_tokens, best_continuations
from transformer.inference.search import SearchConfig, search


@torch.no_grad()
def test_samples_follow_the_models_distribution() -> None:
    """First tokens of 4,000 samples against the probabilities, within five standard errors."""
    model, count = build(), 4000
    config = SearchConfig(sample=True, n_best=count, max_extra=0, temperature=1.5)
    generator = torch.Generator().manual_seed(1)
    found = search(model, *pad([[4, EOS]]), config, generator=generator)[0]
    assert len(found) == count
    logits = model.project(model(*pad([[4, EOS]]), torch.tensor([[BOS]])))[0, 0]
    expected = (logits / 1.5).softmax(-1)
    first = torch.tensor([(h.ids or [EOS])[0] for h in found]).bincount(minlength=VOCAB) / count
    error = (expected * (1 - expected) / count).sqrt()
    assert ((first - expected).abs() < 5 * error + 1e-9).all()


@pytest.mark.parametrize("options", [{"top_k": 2}, {"top_p": 0.6}])
@torch.no_grad()
def test_truncated_sampling(options: dict[str, float]) -> None:
    model = build()
    config = SearchConfig(sample=True, n_best=500, max_extra=0, **options)  # type: ignore[arg-type]
    found = search(model, *pad([[4, EOS]]), config)[0]
    probabilities = model.project(model(*pad([[4, EOS]]), torch.tensor([[BOS]])))[0, 0].softmax(-1)
    ordered, tokens = probabilities.sort(descending=True)
    allowed = 2 if "top_k" in options else int((ordered.cumsum(0) < 0.6).sum()) + 1
    assert {(h.ids or [EOS])[0] for h in found} == set(tokens[:allowed].tolist())


@pytest.mark.parametrize("vocabulary", [9, 99, 100, 250, 1000, 10_000])
@pytest.mark.parametrize("forced", [False, True])
def test_best_continuations_are_the_best_of_all(vocabulary: int, forced: bool) -> None:
    """Against topk over every continuation of every beam; groups of tokens change nothing."""
    torch.manual_seed(vocabulary)
    logits = torch.randn(6, 4, vocabulary, dtype=torch.float64)
    scores = -torch.rand(6, 4, dtype=torch.float64).cumsum(1)
    scores[0, 1:] = float("-inf")  # as in the first step
    prefix = torch.tensor([3, -1, 5, -1, -1, 0]) if forced else None
    log_probs = logits.log_softmax(-1)
    if prefix is not None:
        for row in (0, 2, 5):
            other = torch.arange(vocabulary) != prefix[row]
            log_probs[row, :, other] = float("-inf")
    expected, places = (scores[:, :, None] + log_probs).flatten(1).topk(8, -1)

    banned = banned_tokens(torch.ones(6, 4, 1), vocabulary, prefix, 0, 0)
    found = best_continuations(scores, logits.clone(), banned)
    torch.testing.assert_close(found.scores[:, :8], expected)
    real = expected > float("-inf")
    chosen = found.parents * vocabulary + found.tokens
    assert torch.equal(chosen[:, :8][real], places[real])
