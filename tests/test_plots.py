"""The heatmap shows the weights that it was given, with labels that a reader can read."""

import io
import warnings

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib import font_manager
from matplotlib.figure import Figure

from transformer.evaluation.plots import attention_heatmap

SRC = ["나는", "학생", "이다", ".", "</s>"]
TGT = ["I", "am", "a $tudent$", "</s>"]


def weights(*shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.rand(*shape, generator=generator).softmax(-1)


def draw(figure: Figure) -> bytes:
    """Returns the PNG; a glyph that no font has is a warning, and with it an error."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = io.BytesIO()
        figure.savefig(file)
    return file.getvalue()


def test_one_matrix_is_one_panel_with_its_weights_and_labels() -> None:
    matrix = weights(4, 5)
    figure = attention_heatmap(matrix, SRC, TGT, title="한국어 → English")
    main, colour_bar = figure.axes
    shown = main.collections[0].get_array()
    assert shown is not None
    np.testing.assert_allclose(np.asarray(shown).reshape(4, 5), matrix)
    assert [label.get_text() for label in main.get_xticklabels()] == SRC
    assert [label.get_text() for label in main.get_yticklabels()] == TGT
    assert not any(label.get_parse_math() for label in main.get_yticklabels())  # $ is text
    assert main.yaxis_inverted()
    assert colour_bar.get_ylabel() == "attention weight"
    assert draw(figure).startswith(b"\x89PNG")


def test_heads_are_their_mean_and_a_panel_each() -> None:
    heads = weights(3, 4, 5)
    main, *small, _ = attention_heatmap(heads, SRC, TGT).axes
    assert [axes.get_title() for axes in small] == ["head 1", "head 2", "head 3"]
    for axes, expected in zip([main, *small], [heads.mean(0), *heads], strict=True):
        shown = np.asarray(axes.collections[0].get_array()).reshape(4, 5)
        np.testing.assert_allclose(shown, expected, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_any_tensor_or_array_is_taken(dtype: torch.dtype) -> None:
    tensor = weights(4, 5).to(dtype).requires_grad_()
    array = tensor.detach().float().numpy()
    assert draw(attention_heatmap(tensor, SRC, TGT)) == draw(attention_heatmap(array, SRC, TGT))


def test_korean_labels_are_written_with_glyphs() -> None:
    figure = attention_heatmap(weights(1, 2), ["한", "글"], ["x"])
    (label, _) = figure.axes[0].get_xticklabels()
    fonts = [font_manager.findfont(family) for family in label.get_fontfamily()]
    assert any(ord("한") in font_manager.get_font(font).get_charmap() for font in fonts)
    assert draw(figure) != draw(attention_heatmap(weights(1, 2), ["국", "어"], ["x"]))


def test_boxes_of_the_font_of_last_resort_are_not_taken_for_glyphs() -> None:
    figure = attention_heatmap(weights(1, 2), ["한", "欢"], ["x"])
    families = figure.axes[0].get_xticklabels()[0].get_fontfamily()
    assert not any("Last Resort" in family for family in families)


def test_blank_and_control_pieces_stay_visible() -> None:
    figure = attention_heatmap(weights(2, 2), [" the", " "], ["\x00", "�"])
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["the", "␣"]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == ["␣", "�"]
    draw(figure)


def test_the_figure_grows_with_the_sentences() -> None:
    sizes = [
        attention_heatmap(weights(n, n), ["a"] * n, ["b"] * n).get_size_inches()
        for n in (10, 30, 80)
    ]
    assert (np.diff(sizes, axis=0) > 1).all()


def test_global_state_is_left_alone() -> None:
    settings = dict(matplotlib.rcParams)
    draw(attention_heatmap(weights(4, 5), SRC, TGT))
    assert dict(matplotlib.rcParams) == settings


@pytest.mark.parametrize("shape", [(5, 4), (2, 5, 4), (1, 1, 4, 5), (5,)])
def test_weights_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="do not fit 4 target and 5 source pieces"):
        attention_heatmap(weights(*shape), SRC, TGT)
