"""Pictures of attention and of BLEU by length, without pyplot's global state, in any script."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.util import find_spec
from itertools import cycle
from math import ceil, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike
from torch import Tensor

from transformer.errors import UserError

LATIN = "DejaVu Sans"  # comes with matplotlib
CELL = 0.34  # inches, for labels of 10 points
CELL_OF_LONG = 0.2  # beyond LONG pieces, with labels of 7 points
LONG = 40
LARGEST = 40.0  # inches, of a panel
FEW = 10  # sentences


def attention_heatmap(
    weights: ArrayLike | Tensor,
    src_pieces: Sequence[str],
    tgt_pieces: Sequence[str],
    title: str = "",
) -> Figure:
    """Draws the attention weights of a sentence pair (as in Bahdanau et al. 2015, figure 3).

    Several heads are drawn as their mean, with a small panel for each head beside it.

    Args:
        weights: Attention probabilities of one layer, (T, S), or of its heads, (H, T, S).
        src_pieces: The S labels of the columns, as text.
        tgt_pieces: The T labels of the rows, as text.
        title: Printed above.

    Returns:
        A figure that grows with the sentences; `savefig` writes it.

    Raises:
        UserError: If the weights are not of that shape.
    """
    heads = np.array(torch.as_tensor(weights).detach().cpu().double().numpy(), ndmin=3)
    if heads.ndim != 3 or heads.shape[1:] != (len(tgt_pieces), len(src_pieces)):
        raise UserError(
            f"weights of shape {tuple(heads.shape)} do not fit "
            f"{len(tgt_pieces)} target and {len(src_pieces)} source pieces"
        )
    figure, main, small = _panels(*heads.shape)
    if small:
        main.set_title(f"mean of {len(heads)} heads", fontsize=9)
    _label(main, src_pieces, tgt_pieces)
    for number, axes in enumerate(small, 1):
        axes.set_title(f"head {number}", fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
    for axes, matrix in zip([main, *small], [heads.mean(0), *heads], strict=False):
        mesh = axes.pcolormesh(
            matrix, cmap="Blues", vmin=0.0, vmax=1.0, edgecolors="#dddddd", linewidth=0.4
        )
        axes.invert_yaxis()  # the first target piece stands on top
    figure.colorbar(mesh, ax=[main, *small], label="attention weight", shrink=0.8, aspect=30)
    figure.suptitle(title, fontfamily=_families(frozenset(title)), fontsize=12, parse_math=False)
    return figure


def draw_bleu_by_length(curves: Mapping[str, Sequence[Sequence[float]]], title: str = "") -> Figure:
    """Draws BLEU against the length of the source, one line for each system.

    Args:
        curves: For each system its bins: shortest and longest source in words, sentences, BLEU.
        title: Printed above.

    Returns:
        A figure; below each bin stands how many sentences it has. Bins of fewer than 10 are left
        out, since BLEU of so few says nothing.
    """
    curves = {name: [b for b in bins if b[2] >= FEW] for name, bins in curves.items()}
    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for (name, bins), marker in zip(curves.items(), cycle("osD^vPX*"), strict=False):
        middles = [(shortest + longest) / 2 for shortest, longest, *_ in bins]
        axes.plot(middles, [bleu for *_, bleu in bins], marker=marker, label=name)
    bins = max(curves.values(), key=len)
    labels = [f"{shortest}–{longest}\n{count:,}" for shortest, longest, count, _ in bins]
    axes.set_xticks([(shortest + longest) / 2 for shortest, longest, *_ in bins], labels)
    axes.set(xlabel="words of the source; below them the number of sentences", ylabel="BLEU")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    axes.set_title(title, parse_math=False)
    return figure


def _panels(heads: int, rows: int, columns: int) -> tuple[Figure, Axes, list[Axes]]:
    """Lays out the large panel and, beside it in a square of the same size, one for each head."""
    longest = max(rows, columns)
    cell = min(CELL if longest <= LONG else CELL_OF_LONG, LARGEST / longest)
    width, height = max(2.0, columns * cell), max(2.0, rows * cell)
    side = ceil(sqrt(heads)) if heads > 1 else 0
    size = (width * (2 if side else 1) + 2.5, height + 1.8)
    figure = Figure(figsize=size, dpi=110, layout="constrained")
    grid = figure.add_gridspec(max(1, side), 1 + side, width_ratios=[max(1, side)] + [1] * side)
    main = figure.add_subplot(grid[:, 0])
    places = [grid[number // side, 1 + number % side] for number in range(heads if side else 0)]
    return figure, main, [figure.add_subplot(place) for place in places]


def _label(axes: Axes, src_pieces: Sequence[str], tgt_pieces: Sequence[str]) -> None:
    """Writes the source on top, slanted, and the target at the left."""
    src, tgt = [_readable(p) for p in src_pieces], [_readable(p) for p in tgt_pieces]
    style: dict[str, Any] = {
        "fontfamily": _families(frozenset("".join(src + tgt))),
        "fontsize": 10 if max(len(src), len(tgt)) <= LONG else 7,
        "parse_math": False,
    }
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.set_xticks(
        np.arange(len(src)) + 0.5, src, rotation=55, ha="left", rotation_mode="anchor", **style
    )
    axes.set_yticks(np.arange(len(tgt)) + 0.5, tgt, **style)
    axes.set_xlabel("source")
    axes.xaxis.set_label_position("bottom")
    axes.set_ylabel("target")


def _readable(piece: str) -> str:
    """Drops the blanks around a piece; what cannot be seen gets a sign."""
    if not piece:
        return "·"  # bytes of a character that a later piece completes
    return "".join(c if c.isprintable() else "␣" for c in piece.strip()) or "␣"


@lru_cache(maxsize=64)
def _families(characters: frozenset[str]) -> tuple[str, ...]:
    """Names font families that, one after the other, have a glyph for each character.

    The font that comes as a dependency (Latin and Korean) is looked at before those installed.
    """
    found, left = [LATIN], {character for character in characters if not character.isspace()}
    left -= _characters(font_manager.findfont(LATIN))
    # Last Resort comes with matplotlib, and claims every character to draw a box for it.
    installed = [f for f in font_manager.fontManager.ttflist if "Last Resort" not in f.name]
    for family, path in [*_packaged(), *((font.name, font.fname) for font in installed)]:
        if not left:
            break
        if has := left & _characters(path):
            found.append(family)
            left -= has
    return tuple(found)


def _packaged() -> list[tuple[str, str]]:
    """Registers NanumGothic from its package, which on import would restyle every figure."""
    spec = find_spec("koreanize_matplotlib")
    if spec is None or spec.origin is None:
        return []
    path = str(Path(spec.origin).parent / "fonts" / "NanumGothic.ttf")
    if all(font.fname != path for font in font_manager.fontManager.ttflist):
        font_manager.fontManager.addfont(path)
    return [("NanumGothic", path)]


def _characters(path: str) -> frozenset[str]:
    return frozenset(map(chr, font_manager.get_font(path).get_charmap()))
