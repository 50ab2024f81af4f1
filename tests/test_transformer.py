"""The Transformer against torch's own layers and the parameter counts of the paper's Table 3."""

from dataclasses import replace
from threading import Thread
from typing import Any

import pytest
import torch
from benchmarks.papers import BIG
from toys import copy_attention, dropouts

from transformer.models import Transformer, TransformerConfig
from transformer.models.attention import padding_mask
from transformer.models.recording import Kind, recorded

SMALL = TransformerConfig(d_model=16, d_ff=32, num_heads=4, num_layers=2)
SRC = torch.tensor([[5, 6, 7, 8, 2], [9, 4, 2, 0, 0]])
LENGTHS = torch.tensor([5, 3])
TGT = torch.tensor([[1, 7, 8, 9], [1, 5, 0, 0]])


def build(config: TransformerConfig = SMALL, vocab: int = 12) -> Transformer:
    torch.manual_seed(1)
    return config.build(vocab, vocab).double().eval()


def millions(config: TransformerConfig) -> float:
    """Parameters with the paper's shared vocabulary of about 37,000 tokens."""
    with torch.device("meta"):
        return config.build(37_000, 37_000).count_parameters() / 1e6


def test_parameter_counts_of_base_and_big() -> None:
    assert millions(TransformerConfig()) == pytest.approx(65, rel=0.07)
    assert millions(BIG) == pytest.approx(213, rel=0.07)


@pytest.mark.parametrize(
    ("row", "changes", "parameters"),
    [
        ("A", {"num_heads": 1}, 65),
        ("A", {"num_heads": 16}, 65),
        ("A", {"num_heads": 32}, 65),
        ("B", {"d_k": 16}, 58),
        ("B", {"d_k": 32}, 60),
        ("C", {"num_layers": 2}, 36),
        ("C", {"num_layers": 4}, 50),
        ("C", {"num_layers": 8}, 80),
        ("C", {"d_model": 256}, 28),
        ("C", {"d_model": 1024}, 168),
        ("C", {"d_ff": 1024}, 53),
        ("C", {"d_ff": 4096}, 90),
    ],
)
def test_rows_of_table_3_differ_from_base_as_published(
    row: str, changes: dict[str, Any], parameters: int
) -> None:
    difference = millions(replace(TransformerConfig(), **changes)) - millions(TransformerConfig())
    # Published counts are rounded to a million; one million each, and 5 % of the difference.
    assert difference == pytest.approx(parameters - 65, rel=0.05, abs=2), row


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_stacks_are_torchs(norm: Any, activation: Any) -> None:
    """All weights copied into torch.nn's encoder and decoder layers: the same hidden states."""
    model: Any = build(replace(SMALL, norm=norm, activation=activation))
    options = {"dim_feedforward": 32, "batch_first": True, "norm_first": norm == "pre"}
    options |= {"activation": activation, "dropout": 0.0, "dtype": torch.float64}
    padding = torch.arange(5) >= LENGTHS[:, None]
    causal = torch.ones(4, 4, dtype=torch.bool).triu(1)
    memory = model.src_embedding(SRC)
    for layer in model.encoder:
        theirs: Any = torch.nn.TransformerEncoderLayer(16, 4, **options)
        copy_layer(layer, theirs, ["norm1", "norm2"])
        memory = theirs(memory, src_key_padding_mask=padding)
    memory = model.encoder_norm(memory)
    x = model.tgt_embedding(TGT)
    for layer in model.decoder:
        theirs = torch.nn.TransformerDecoderLayer(16, 4, **options)
        copy_layer(layer, theirs, ["norm1", "norm2", "norm3"])
        copy_attention(layer.cross_attention, theirs.multihead_attn)
        x = theirs(x, memory, tgt_mask=causal, memory_key_padding_mask=padding)
    x = model.decoder_norm(x)
    torch.testing.assert_close(model.encode(SRC, LENGTHS).hidden[1, :3], memory[1, :3])
    torch.testing.assert_close(model(SRC, LENGTHS, TGT), x)


def copy_layer(ours: Any, theirs: Any, norms: list[str]) -> None:
    copy_attention(ours.self_attention, theirs.self_attn)
    theirs.linear1, theirs.linear2 = ours.feed_forward.inner, ours.feed_forward.outer
    for name, residual in zip(norms, ours.residuals, strict=True):
        setattr(theirs, name, residual.norm)


def test_embedding_is_scaled_and_positioned() -> None:
    model = build()
    tokens, positions = model.src_embedding.tokens.weight, model.src_embedding.positions(0, 5)
    expected = tokens[SRC] * 16**0.5 + positions
    torch.testing.assert_close(model.src_embedding(SRC), expected)


@pytest.mark.parametrize(("tied", "matrices"), [("three_way", 1), ("two_way", 2), ("none", 3)])
def test_tied_embeddings(tied: Any, matrices: int) -> None:
    model = build(replace(SMALL, tied=tied))
    shared = {
        model.src_embedding.tokens.weight.data_ptr(),
        model.tgt_embedding.tokens.weight.data_ptr(),
        model.output.weight.data_ptr(),
    }
    assert len(shared) == matrices


def test_an_output_bias_is_added_to_the_logits() -> None:
    plain, model = build(), build(replace(SMALL, output_bias=True))
    assert model.output.bias.abs().max() == 0
    torch.nn.init.normal_(model.output.bias)
    hidden = model(SRC, LENGTHS, TGT)
    wanted = plain.project(plain(SRC, LENGTHS, TGT)) + model.output.bias
    torch.testing.assert_close(model.project(hidden), wanted)


def test_three_way_needs_one_vocabulary() -> None:
    with pytest.raises(ValueError, match="source has 10 tokens and the target 12: set data"):
        SMALL.build(10, 12)
    assert replace(SMALL, tied="two_way").build(10, 12).project(torch.zeros(3, 16)).shape == (3, 12)


def test_heads_must_divide() -> None:
    with pytest.raises(ValueError, match=r"d_model 100 is not .*num_heads 8: .* 104"):
        TransformerConfig(d_model=100)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"d_model": -8}, "d_model is -8"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"dropout": 1.5}, "dropout is 1.5"),
        ({"attention_dropout": -0.1}, "attention_dropout is -0.1"),
        ({"d_k": 0}, "d_k is 0"),
        ({"max_positions": 0}, "max_positions is 0"),
        ({"norm": "pr"}, "norm is 'pr'"),
        ({"activation": "rely"}, "activation is 'rely'"),
    ],
)
def test_sizes_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"model.network.{message}: it must be"):
        TransformerConfig(**values)


@pytest.mark.parametrize("activation", ["relu", "gelu", "swish"])
def test_activation(activation: Any) -> None:
    model = build(replace(SMALL, activation=activation))
    x = torch.randn(3, 16, dtype=torch.float64)
    inner = model.encoder[0].feed_forward.inner(x)
    by_hand = {
        "relu": inner.clamp(min=0),
        "gelu": inner * 0.5 * (1 + torch.erf(inner / 2**0.5)),
        "swish": inner / (1 + torch.exp(-inner)),
    }[activation]
    expected = model.encoder[0].feed_forward.outer(by_hand)
    torch.testing.assert_close(model.encoder[0].feed_forward(x), expected)


def test_the_future_and_the_padding_are_not_seen() -> None:
    model = build()
    before = model(SRC, LENGTHS, TGT)
    later, padded = TGT.clone(), SRC.clone()
    later[:, 2:] = 11
    padded[1, 3:] = 10
    torch.testing.assert_close(model(SRC, LENGTHS, later)[:, :2], before[:, :2])
    torch.testing.assert_close(model(padded, LENGTHS, TGT), before)


def test_cross_attention_is_a_distribution_over_the_source() -> None:
    weights = build().cross_attention(SRC, LENGTHS, TGT)
    assert weights.shape == (2, 2, 4, 4, 5)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 2, 4, 4, dtype=torch.float64))
    assert weights[1, ..., 3:].abs().max() == 0


def test_recorded_weights_are_those_that_the_layers_give() -> None:
    model = build()
    expected: dict[Kind, torch.Tensor] = {
        "encoder": model.encoder[0].self_attention(
            model.src_embedding(SRC), mask=padding_mask(LENGTHS, 5), need_weights=True
        ).weights,
        "decoder": model.decoder[0].self_attention(
            model.tgt_embedding(TGT), causal=True, need_weights=True
        ).weights,
    }  # fmt: skip
    with recorded(model, "encoder", "decoder", "cross") as weights:
        hidden = model(SRC, LENGTHS, TGT)
    for kind, layer in expected.items():
        assert weights[kind].shape == (2, 2, 4, *layer.shape[-2:])
        torch.testing.assert_close(weights[kind][:, 0], layer)
    torch.testing.assert_close(weights["cross"], model.cross_attention(SRC, LENGTHS, TGT))
    torch.testing.assert_close(hidden, model(SRC, LENGTHS, TGT))


def test_another_thread_may_run_the_model_meanwhile() -> None:
    model = SMALL.build(12, 12).eval()
    batch = torch.tensor([[5, 6, 2]]), torch.tensor([3]), torch.tensor([[1, 7, 8]])
    alone = model.cross_attention(*batch)
    with recorded(model, "cross") as weights:
        model(*batch)
        other = Thread(target=model, args=batch)
        other.start()
        other.join()
    assert torch.equal(weights["cross"], alone)


def test_nothing_is_recorded_afterwards() -> None:
    model = build()
    with pytest.raises(ValueError, match="^an error$"), recorded(model, "cross"):
        raise ValueError("an error")
    hooks = [module for module in model.modules() if module._forward_hooks]
    assert not hooks and not any(module._forward_pre_hooks for module in model.modules())


def test_dropout_stands_where_the_paper_has_it() -> None:
    """On both embeddings and on every sub-layer's output: 2 + 2 layers * (2 + 3) places."""
    model = build(replace(SMALL, dropout=0.25)).train()
    calls = [call for call in dropouts(model, SRC, LENGTHS, TGT) if "feed_forward" not in call[0]]
    assert len(set(calls)) == len(calls) == 2 + 2 * (2 + 3)  # a module for each place
    assert [inputs for _, inputs in calls].count(2) == 2 * (2 + 3)  # with the sum
    scaled = model.src_embedding(SRC) / build().src_embedding(SRC)
    assert set(scaled.round(decimals=6).unique().tolist()) == {0.0, round(1 / 0.75, 6)}


def test_activation_dropout_is_torchs(monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's own random numbers in the place of ours: its layer, other dropouts left out."""

    def drop(y: torch.Tensor, rate: float, x: torch.Tensor | None = None) -> torch.Tensor:
        dropped = torch.nn.functional.dropout(y, rate)
        return dropped if x is None else x + dropped

    monkeypatch.setattr("transformer.kernels.tensors.dropout", drop)
    model: Any = build(replace(SMALL, dropout=0.0, activation_dropout=0.5)).train()
    theirs: Any = torch.nn.TransformerEncoderLayer(
        16, 4, dim_feedforward=32, dropout=0.0, batch_first=True, dtype=torch.float64
    )
    copy_layer(model.encoder[0], theirs, ["norm1", "norm2"])
    theirs.dropout.p = 0.5  # the one between the two linear layers
    x = torch.randn(2, 5, 16, dtype=torch.float64)
    padding = torch.arange(5) >= LENGTHS[:, None]
    torch.manual_seed(1)
    expected = theirs(x, src_key_padding_mask=padding)
    torch.manual_seed(1)
    torch.testing.assert_close(model.encoder[0](x, padding_mask(LENGTHS, 5)), expected)
    assert not torch.equal(expected, theirs.eval()(x, src_key_padding_mask=padding))


@pytest.mark.parametrize("norm", ["post", "pre"])
@pytest.mark.parametrize("positions", ["sinusoidal", "learned"])
def test_cached_steps_equal_the_whole(norm: Any, positions: Any) -> None:
    model = build(replace(SMALL, norm=norm, positions=positions))
    tgt = torch.randint(3, 12, (2, 40))  # longer than the cache's first buffer
    whole = model(SRC, LENGTHS, tgt)
    state = model.start(model.encode(SRC, LENGTHS), beams=1)
    for t in range(40):
        hidden = model.step(tgt[:, t : t + 1], state)
        torch.testing.assert_close(hidden[:, 0], whole[:, t])


def test_reordered_beams_and_kept_sentences_equal_the_whole() -> None:
    """Random moves of three beams, one sentence dropped half-way: each beam sees its own past."""
    model = build()
    generator = torch.Generator().manual_seed(3)
    state = model.start(model.encode(SRC, LENGTHS), beams=3)
    src, lengths = SRC, LENGTHS
    past = torch.empty(2, 3, 0, dtype=torch.long)
    for t in range(25):
        token = torch.randint(3, 12, (len(src), 3), generator=generator)
        past = torch.cat([past, token[:, :, None]], 2)
        hidden = model.step(token, state)
        for beam in range(3):
            whole = model(src, lengths, past[:, beam])
            torch.testing.assert_close(hidden[:, beam], whole[:, -1])
        beams = torch.randint(0, 3, (len(src), 3), generator=generator)
        state.reorder(beams)
        past = past.gather(1, beams[:, :, None].expand_as(past))
        if t == 12:
            kept = torch.tensor([1])
            state.keep(kept)
            src, lengths, past = src[kept], lengths[kept], past[kept]


def test_initial_weights_are_xaviers() -> None:
    """Uniform within sqrt(6 / (fan in + fan out)); biases zero; embeddings of variance 1 / D."""
    torch.manual_seed(0)
    model = TransformerConfig(d_model=64, d_ff=256, num_heads=4, num_layers=2).build(500, 500)
    linears = [
        m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not model.output
    ]
    assert len(linears) == 2 * (2 + 2) + 2 * (4 + 2)
    for linear in linears:
        bound = (6 / (linear.in_features + linear.out_features)) ** 0.5
        assert 0.98 * bound < linear.weight.abs().max() <= bound
        assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert linear.bias.abs().max() == 0
    assert model.src_embedding.tokens.weight.std().item() == pytest.approx(64**-0.5, rel=0.05)
    untied = TransformerConfig(d_model=64, num_heads=4, num_layers=1, tied="none").build(500, 400)
    for size, embedding in {500: untied.src_embedding, 400: untied.tgt_embedding}.items():
        expected = (2 / (size + 64)) ** 0.5
        assert embedding.tokens.weight.std().item() == pytest.approx(expected, rel=0.05)
