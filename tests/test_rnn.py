"""The recurrent encoder–decoder against torch's bidirectional RNN and steps written out by hand."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from toys import dropouts

from transformer.inference.search import SearchConfig, search
from transformer.kernels import has_bfloat16
from transformer.models import RNN, RNNConfig
from transformer.models.attention import SCORES
from transformer.models.recording import recorded
from transformer.models.rnn import Bidirectional, context_vector

SMALL = RNNConfig(d_model=8, num_layers=2)
SRC = torch.tensor([[5, 6, 7, 8, 2], [9, 4, 2, 0, 0]])
LENGTHS = torch.tensor([5, 3])
TGT = torch.tensor([[1, 7, 8, 9], [1, 5, 4, 6]])
CELLS = ["gru", "lstm"]
ATTENTIONS = ["none", *SCORES]


def build(**changes: Any) -> RNN:
    torch.manual_seed(1)
    return replace(SMALL, **changes).build(12, 12).double().eval()


@pytest.mark.parametrize("cell", CELLS)
def test_bidirectional_is_torchs_packed(cell: Any) -> None:
    torch.manual_seed(0)
    ours = Bidirectional(replace(SMALL, cell=cell)).double()
    kind = torch.nn.GRU if cell == "gru" else torch.nn.LSTM
    theirs = kind(8, 4, batch_first=True, bidirectional=True).double()
    state = dict(ours.forward_rnn.rnn.named_parameters())
    state |= {f"{name}_reverse": p for name, p in ours.backward_rnn.rnn.named_parameters()}
    theirs.load_state_dict(state)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    packed = pack_padded_sequence(x, LENGTHS, batch_first=True)
    expected, _ = pad_packed_sequence(theirs(packed)[0], batch_first=True)
    found = ours(x, LENGTHS)
    torch.testing.assert_close(found[0], expected[0])
    torch.testing.assert_close(found[1, :3], expected[1, :3])


@pytest.mark.parametrize("layers", [1, 3])
def test_dropout_is_on_embeddings_between_layers_and_on_what_is_projected(layers: int) -> None:
    """Encoder: embedding and between layers; decoder: the same, and the output."""
    model = build(num_layers=layers, dropout=0.5).train()
    assert len(dropouts(model, SRC, LENGTHS, TGT)) == layers + layers + 1
    torch.manual_seed(0)
    hidden = model(SRC, LENGTHS, TGT)
    assert 0.3 < (hidden == 0).double().mean() < 0.7


def test_context_vector_is_where_each_direction_ends() -> None:
    model = build(num_layers=1)
    memory = model.encode(SRC, LENGTHS)
    for row, length in enumerate(LENGTHS.tolist()):
        alone = model.encode(SRC[row : row + 1, :length], LENGTHS[row : row + 1])
        expected = torch.cat([alone.hidden[0, -1, :4], alone.hidden[0, 0, 4:]])
        torch.testing.assert_close(context_vector(memory)[row], expected)


def cell_by_hand(decoder: Any, layer: int, x: Tensor, carried: list[Tensor]) -> list[Tensor]:
    """The equations of torch's documentation; h, and c of an LSTM."""
    w_ih, w_hh, b_ih, b_hh = decoder[layer].rnn.all_weights[0]
    from_input, from_state = w_ih @ x + b_ih, w_hh @ carried[0] + b_hh
    if len(carried) == 1:
        r1, z1, n1 = from_input.chunk(3)
        r2, z2, n2 = from_state.chunk(3)
        reset, update = torch.sigmoid(r1 + r2), torch.sigmoid(z1 + z2)
        return [(1 - update) * torch.tanh(n1 + reset * n2) + update * carried[0]]
    i, f, g, o = (from_input + from_state).chunk(4)
    c = torch.sigmoid(f) * carried[1] + torch.sigmoid(i) * torch.tanh(g)
    return [torch.sigmoid(o) * torch.tanh(c), c]


def weights_by_hand(layer: Any, states: Tensor, s: Tensor) -> Tensor:
    """Over the source tokens of one sentence, one score at a time; states: (S, D); s: (D,)."""
    learned = () if layer.vector is None else (layer.vector,)
    scores = [layer.function(layer.query(s)[None], layer.key(h)[None], *learned) for h in states]
    exps = torch.cat(scores).flatten().exp()
    return exps / exps.sum()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("input_feeding", [False, True])
def test_decoder_by_hand(cell: Any, attention: str, input_feeding: bool) -> None:
    """One sentence, one step, one layer after the other."""
    model = build(cell=cell, attention=attention, input_feeding=input_feeding)
    memory = model.encode(SRC, LENGTHS)
    found = model(SRC, LENGTHS, TGT)
    weights = model.cross_attention(SRC, LENGTHS, TGT)
    for row, length in enumerate(LENGTHS.tolist()):
        states = memory.hidden[row, :length]
        fixed = torch.cat([states[-1, :4], states[0, 4:]])
        first = torch.tanh(model.bridge.weight @ fixed + model.bridge.bias)
        layers = list(first.view(model.parts, 2, 8).transpose(0, 1))
        fed = torch.zeros(8, dtype=torch.float64)
        for step, token in enumerate(TGT[row]):
            x = model.tgt_embedding.weight[token]
            x = torch.cat([x, fed]) if input_feeding else x
            for number in range(2):
                after = cell_by_hand(model.decoder, number, x, list(layers[number]))
                layers[number] = torch.stack(after)
                x = after[0]
            context = fixed
            if attention != "none":
                expected = weights_by_hand(model.attention, states, x)
                torch.testing.assert_close(weights[row, 0, 0, step, :length], expected)
                context = expected @ states
            fed = torch.tanh(model.output_projection.weight @ torch.cat([context, x]))
            torch.testing.assert_close(found[row, step], fed)


def test_a_recurrent_model_has_cross_attention_alone() -> None:
    model = build(input_feeding=True)
    with recorded(model, "encoder", "decoder", "cross") as weights:
        model(SRC, LENGTHS, TGT)
    assert [*weights] == ["cross"] and weights["cross"].shape == (2, 1, 1, 4, 5)


def test_without_attention_the_weights_never_move() -> None:
    weights = build(attention="none").cross_attention(SRC, LENGTHS, TGT)
    assert weights.shape == (2, 1, 2, 4, 5)
    for row, length in enumerate(LENGTHS.tolist()):
        ahead = torch.nn.functional.one_hot(torch.tensor(length - 1), 5).double()
        torch.testing.assert_close(weights[row, 0, 0], ahead.expand(4, 5))
        assert (weights[row, 0, 1, :, 0] == 1).all()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("input_feeding", [False, True])
def test_reordered_beams_and_kept_sentences_equal_the_whole(
    cell: Any, attention: str, input_feeding: bool
) -> None:
    model = build(cell=cell, attention=attention, input_feeding=input_feeding)
    state = model.start(model.encode(SRC, LENGTHS), beams=2)
    first = torch.tensor([[1, 1], [1, 1]])
    model.step(first, state)
    model.step(torch.tensor([[4, 5], [6, 7]]), state)
    state.reorder(torch.tensor([[1, 1], [1, 0]]))
    hidden = model.step(torch.tensor([[8, 9], [10, 11]]), state)
    for beam, ids in enumerate([[1, 5, 8], [1, 5, 9]]):
        whole = model(SRC[:1], LENGTHS[:1], torch.tensor([ids]))
        torch.testing.assert_close(hidden[0, beam], whole[0, -1])
    state.keep(torch.tensor([1]))
    hidden = model.step(torch.tensor([[3, 4]]), state)
    for beam, ids in enumerate([[1, 7, 10, 3], [1, 6, 11, 4]]):
        whole = model(SRC[1:], LENGTHS[1:], torch.tensor([ids]))
        torch.testing.assert_close(hidden[0, beam], whole[0, -1])


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_padding_changes_nothing(attention: str) -> None:
    model = build(attention=attention)
    together = model(SRC, LENGTHS, TGT)
    alone = model(SRC[1:, :3], LENGTHS[1:], TGT[1:])
    torch.testing.assert_close(together[1:], alone)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("attention", ATTENTIONS)
def test_everything_learns_in_bfloat16(attention: str, cell: Any) -> None:
    """Each parameter has a gradient under autocast; all together are near those of float32."""
    if cell == "lstm" and not has_bfloat16("cpu"):
        pytest.skip("this CPU only emulates bfloat16, and has no LSTM in it")
    model = build(attention=attention, cell=cell, dropout=0.0).float().train()
    gradients = []
    for reduced in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            logits = model.project(model(SRC, LENGTHS, TGT))
        logits.float().log_softmax(-1)[..., 3].sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in model.parameters())
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))  # type: ignore[union-attr]
    exact, rounded = gradients
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_the_same_search_serves_it() -> None:
    """Greedy search is the argmax of the whole model, applied again and again."""
    model = build(attention="dot", cell="lstm")
    found = search(model, SRC, LENGTHS, SearchConfig(beam=1, max_extra=3))
    for row, (best,) in enumerate(found):
        ids = [1]
        while len(ids) <= len(best.ids):
            src, lengths = SRC[row : row + 1, : LENGTHS[row]], LENGTHS[row : row + 1]
            logits = model.project(model(src, lengths, torch.tensor([ids])))
            ids.append(int(logits[0, -1].argmax()))
        assert ids[1:] == best.ids


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"d_model": 7}, "d_model is 7: it must be even"),
        ({"num_layers": 0}, "num_layers is 0"),
        ({"dropout": 1.0}, r"dropout is 1.0"),
        ({"attention": "addditive"}, "'addditive'.*none, dot, .*the nearest is 'additive'"),
    ],
)
def test_settings_that_make_no_sense(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"model.network.*{message}"):
        RNNConfig(**values)


def test_it_says_what_it_is() -> None:
    assert build().describe() == "A recurrent encoder–decoder (GRU) with additive attention"
    assert build(attention="none", cell="lstm").describe().endswith("(LSTM) without attention")
