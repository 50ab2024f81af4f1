"""Search against brute force and against a plain search that caches nothing."""

import itertools
from dataclasses import replace
from threading import Event

import pytest
import torch

from transformer.inference.batches import pad
from transformer.inference.search import SearchConfig, length_penalty, search
from transformer.kernels import tensors
from transformer.models import Transformer, TransformerConfig

BOS, EOS = 1, 2
VOCAB = 9
SOURCES = [[5, 6, 2], [4, 2], [8, 7, 6, 5, 4, 2], [3, 2], [7, 7, 7, 2]]


def build(vocab: int = VOCAB, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    model = TransformerConfig(d_model=16, d_ff=32, num_heads=2, num_layers=2).build(vocab, vocab)
    # Sharper than a fresh model, so that hypotheses differ and some end early.
    for parameter in model.parameters():
        parameter.data.mul_(1.6)
    return model.double().eval()


def step_log_probs(model: Transformer, source: list[int], target: list[int]) -> torch.Tensor:
    """Log-probabilities (T + 1, V) after each prefix of the target, from the whole model."""
    src, lengths = pad([source])
    hidden = model(src, lengths, torch.tensor([[BOS, *target]]))
    return model.project(hidden)[0].log_softmax(-1)


def may_follow(ids: list[int], token: int, config: SearchConfig) -> bool:
    """Whether the token breaks neither rule; the end may come early where nothing else can."""
    if token == EOS:
        others = (other for other in range(VOCAB) if other != EOS)
        return len(ids) >= config.min_length or not any(may_follow(ids, o, config) for o in others)
    size, longer = config.no_repeat_ngram, [BOS, *ids, token]
    ngrams = [tuple(longer[start : start + size]) for start in range(len(longer) - size + 1)]
    return not (size and ngrams) or ngrams[-1] not in ngrams[:-1]


def plain_search(
    model: Transformer, source: list[int], config: SearchConfig
) -> list[tuple[list[int], float]]:
    """Beam search over lists, one sentence at a time, everything computed anew."""
    open_beams: list[tuple[list[int], float]] = [([], 0.0)]
    finished: list[tuple[list[int], float]] = []
    for length in range(1, len(source) + config.max_extra + 1):
        candidates = [
            (ids, token, total + log_prob)
            for ids, total in open_beams
            for token, log_prob in enumerate(step_log_probs(model, source, ids)[-1].tolist())
            if may_follow(ids, token, config)
        ]
        candidates.sort(key=lambda candidate: -candidate[2])
        for ids, token, total in candidates[: config.beam]:
            if token == EOS and len(finished) < config.beam:
                finished.append((ids, total / length_penalty(length, config)))
        live = [candidate for candidate in candidates if candidate[1] != EOS]
        open_beams = [([*ids, token], total) for ids, token, total in live[: config.beam]]
        if len(finished) == config.beam or not open_beams:
            break
    else:
        for ids, total in open_beams[: config.beam - len(finished)]:
            finished.append((ids, total / length_penalty(length, config)))
    return sorted(finished, key=lambda found: -found[1])[: config.n_best]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(
    "config",
    [
        SearchConfig(beam=1, max_extra=5),
        SearchConfig(beam=3, n_best=3, max_extra=5),
        SearchConfig(beam=4, n_best=2, max_extra=5, length_norm="power", alpha=1.0),
        SearchConfig(beam=5, n_best=5, max_extra=20, length_norm="none"),
        SearchConfig(beam=3, n_best=3, max_extra=9, no_repeat_ngram=2),
        SearchConfig(beam=2, n_best=2, max_extra=9, no_repeat_ngram=3, min_length=6),
        # Of nine tokens none may come twice: the end comes before it is allowed, or never.
        SearchConfig(beam=3, n_best=3, max_extra=19, no_repeat_ngram=1, min_length=20),
    ],
    ids=lambda config: f"beam{config.beam}-{config.length_norm}-{config.no_repeat_ngram}",
)
@torch.no_grad()
def test_cached_batched_search_equals_a_plain_one(config: SearchConfig, seed: int) -> None:
    model = build(seed=seed)
    found = search(model, *pad(SOURCES), config)
    for source, hypotheses in zip(SOURCES, found, strict=True):
        expected = plain_search(model, source, config)
        assert [hypothesis.ids for hypothesis in hypotheses] == [ids for ids, _ in expected]
        for hypothesis, (_, score) in zip(hypotheses, expected, strict=True):
            assert hypothesis.score == pytest.approx(score, abs=1e-5)


@torch.no_grad()
def test_beam_one_is_greedy() -> None:
    model = build()
    for source in SOURCES:
        ids: list[int] = []
        while len(ids) < len(source) + 6:
            token = int(step_log_probs(model, source, ids)[-1].argmax())
            if token == EOS:
                break
            ids.append(token)
        assert search(model, *pad([source]), SearchConfig(beam=1, max_extra=6))[0][0].ids == ids


@pytest.mark.parametrize("norm", ["gnmt", "power", "none"])
@torch.no_grad()
def test_a_wide_beam_is_brute_force(norm: str) -> None:
    """All sequences of a vocabulary of six within four tokens, scored one by one."""
    model, source, limit = build(vocab=6, seed=5), [4, EOS], 4
    config = SearchConfig(beam=700, n_best=30, length_norm=norm, alpha=0.8, max_extra=2)  # type: ignore[arg-type]
    everything = []
    others = [token for token in range(6) if token != EOS]
    for length in range(1, limit + 1):
        last = [EOS] if length < limit else [EOS, *others]
        for body in itertools.product(others, repeat=length - 1):
            log_probs = step_log_probs(model, source, list(body))
            before = sum(log_probs[t, token].item() for t, token in enumerate(body))
            for token in last:
                ids = [*body] if token == EOS else [*body, token]
                total = before + log_probs[length - 1, token].item()
                everything.append((total / length_penalty(length, config), ids))
    everything.sort(key=lambda pair: -pair[0])
    found = search(model, *pad([source]), config)[0]
    assert len(everything) == 781
    assert [h.ids for h in found] == [ids for _, ids in everything[:30]]
    for hypothesis, (score, _) in zip(found, everything, strict=False):
        assert hypothesis.score == pytest.approx(score, abs=1e-5)


def test_the_order_of_the_input_does_not_change_the_output() -> None:
    model, config = build(), SearchConfig(beam=3, n_best=2, max_extra=4)
    straight = search(model, *pad(SOURCES), config)
    order = [3, 0, 4, 2, 1]
    shuffled = search(model, *pad([SOURCES[index] for index in order]), config)
    for place, index in enumerate(order):
        assert [h.ids for h in shuffled[place]] == [h.ids for h in straight[index]]


def test_length_penalties_by_hand() -> None:
    gnmt = SearchConfig(length_norm="gnmt", alpha=0.6)
    assert length_penalty(7, gnmt) == pytest.approx(2**0.6)
    assert length_penalty(9, replace(gnmt, length_norm="power", alpha=0.5)) == pytest.approx(3)
    assert length_penalty(9, replace(gnmt, length_norm="none")) == 1


@torch.no_grad()
def test_forced_prefix() -> None:
    model, config = build(), SearchConfig(beam=3, n_best=3, max_extra=4)
    prefixes: list[list[int]] = [[8, 3], [], [5], [4, 4, 4], []]
    free = search(model, *pad(SOURCES), config)
    forced = search(model, *pad(SOURCES), config, prefixes)
    for source, prefix, without, found in zip(SOURCES, prefixes, free, forced, strict=True):
        if not prefix:
            assert [h.ids for h in found] == [h.ids for h in without]
        for hypothesis in found:
            assert hypothesis.ids[: len(prefix)] == prefix
            log_probs = step_log_probs(model, source, hypothesis.ids)
            ended = [*hypothesis.ids, EOS][: len(source) + config.max_extra]
            total = sum(log_probs[t, token].item() for t, token in enumerate(ended))
            assert hypothesis.log_prob == pytest.approx(total, abs=1e-5)


def test_a_long_prefix_is_not_cut() -> None:
    prefix = [5, 6, 7] * 10
    found = search(build(), *pad([[4, EOS]]), SearchConfig(beam=2, max_extra=3), [prefix])
    assert found[0][0].ids[:30] == prefix
    assert len(found[0][0].ids) <= 33


@pytest.mark.parametrize("options", [{"beam": 3, "n_best": 3}, {"sample": True, "n_best": 50}])
@pytest.mark.parametrize("ngram", [1, 2, 3])
def test_rules_hold_in_every_hypothesis(options: dict[str, int], ngram: int) -> None:
    """After a prefix that breaks them: it goes before."""
    config = SearchConfig(max_extra=9, no_repeat_ngram=ngram, min_length=6, **options)  # type: ignore[arg-type]
    prefixes: list[list[int]] = [[5, 5, 5, 5, 5], [], [4, 3], [], [6]]
    generator = torch.Generator().manual_seed(3)
    found = search(build(), *pad(SOURCES), config, prefixes, generator)
    for prefix, hypotheses in zip(prefixes, found, strict=True):
        for ids, *_, ended in hypotheses:
            assert ids[: len(prefix)] == prefix
            for place in range(len(prefix), len(ids)):
                assert may_follow(ids[:place], ids[place], config)
            assert not ended or may_follow(ids, EOS, config)
        assert len(hypotheses) == config.n_best


def test_what_has_not_ended_is_known() -> None:
    found = search(build(), *pad(SOURCES), SearchConfig(beam=3, n_best=3, max_extra=2))
    pairs = [(h, len(ids) + 2) for ids, hs in zip(SOURCES, found, strict=True) for h in hs]
    assert {hypothesis.ended for hypothesis, _ in pairs} == {True, False}
    assert all(hypothesis.ended == (len(hypothesis.ids) < limit) for hypothesis, limit in pairs)


def test_learned_positions_bound_the_output() -> None:
    torch.manual_seed(0)
    config = TransformerConfig(
        d_model=16, d_ff=16, num_heads=2, num_layers=1, positions="learned", max_positions=8
    )
    model = config.build(VOCAB, VOCAB).eval()
    found = search(model, *pad([[5, 4, 2]]), SearchConfig(beam=2, max_extra=50))
    assert len(found[0][0].ids) <= 8


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam": 0}, "beam is 0"),
        ({"beam": 2, "n_best": 3}, "n_best is 3 with beam 2"),
        ({"length_norm": "GNMT"}, "length_norm is 'GNMT': use gnmt, power, none"),
        ({"temperature": 0.0}, "temperature is 0.0: it must be 1e-06 or more"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf: it must be 1e\\+06 or less"),
        ({"top_p": 1.5}, "top_p is 1.5: it must be 1 or less"),
        ({"top_k": -1}, "top_k is -1: it must be 0 or more"),
        ({"top_p": 1e-320}, "top_p is 1e-320: it must be 1e-06 or more"),
        ({"alpha": float("nan")}, "alpha is nan"),
        ({"alpha": 1e308}, "alpha is 1e.308: it must be 10 or less"),
        ({"beam": 10**400}, "beam is 10+: it must be 10000 or less"),
        ({"max_extra": 10**20}, "max_extra is 10+: it must be 100000 or less"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram is -1: it must be 0 or more"),
        ({"min_length": -2}, "min_length is -2"),
        ({"max_extra": -3}, "max_extra is -3: it must be 0 or more"),
        ({"min_length": 52}, "min_length is 52 with max_extra 50.*raise max_extra to 51"),
    ],
)
def test_settings_that_make_no_sense(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SearchConfig(**options)  # type: ignore[arg-type]


def test_the_longest_min_length_has_room_for_its_end() -> None:
    """Also of the shortest source, a token and its end; one token more would be cut off."""
    config = SearchConfig(beam=40, n_best=40, max_extra=3, min_length=4)
    (found,) = search(build(), *pad([[4, EOS]]), config)
    assert {len(hypothesis.ids) for hypothesis in found if hypothesis.ended} == {4}
    with pytest.raises(ValueError, match="min_length is 5"):
        replace(config, min_length=5)


def test_blocks_of_sentences_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(2)
    model = TransformerConfig(d_model=16, d_ff=32, num_heads=2, num_layers=2).build(300, 300).eval()
    src = torch.randint(4, 300, (7, 6))
    lengths = torch.tensor([6, 5, 4, 3, 6, 2, 1])
    config = SearchConfig(beam=3, max_extra=4)
    whole = search(model, src, lengths, config)
    monkeypatch.setattr(tensors, "_BLOCK", 6)  # two sentences
    parts = search(model, src, lengths, config)
    assert [[h.ids for h in found] for found in whole] == [[h.ids for h in f] for f in parts]


@pytest.mark.parametrize("kept", [[0, 4, 2, 3], [4, 3, 0], [1], [2, 1, 0, 4, 3]])
@torch.no_grad()
def test_sentences_that_stay_go_on_wherever_they_are_put(kept: list[int]) -> None:
    """Beyond the first room of the cache, against a state that had them in that order at once."""
    model = build()
    src, lengths = pad(SOURCES)
    order = torch.tensor(kept)
    state = model.start(model.encode(src, lengths), 3)
    expected = model.start(model.encode(src[order], lengths[order]), 3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(14):
        token = torch.randint(3, VOCAB, (5, 3), generator=generator)
        beams = torch.randint(0, 3, (5, 3), generator=generator)
        model.step(token, state)
        model.step(token[order], expected)
        state.reorder(beams)
        expected.reorder(beams[order])
    state.keep(order)
    for _ in range(5):
        token = torch.randint(3, VOCAB, (len(kept), 3), generator=generator)
        torch.testing.assert_close(model.step(token, state), model.step(token, expected))


def test_a_search_stops_when_nobody_waits() -> None:
    stop = Event()
    stop.set()
    assert search(build(), *pad(SOURCES), SearchConfig(), stop=stop) == [[]] * len(SOURCES)
