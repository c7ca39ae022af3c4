"""What the experiments' pictures have in common."""

import io
from collections.abc import Sequence

import numpy as np


def new(height: float = 4):
    """An empty figure, 9 inches wide, with a white ground and letters that can be read.

    Args:
        height: inches.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(9, height), dpi=120, facecolor="white", layout="constrained")


def png(figure) -> bytes:
    """The figure as a PNG file; equal figures give equal bytes."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, metadata={"Software": None})
    return content.getvalue()


def colours(count: int) -> list:
    """Colours from light to dark, for a row of rising depths or moments."""
    from matplotlib import colormaps

    return [tuple(map(float, colour)) for colour in colormaps["viridis_r"](np.linspace(0.15, 1, count))]


def band(axes, x: Sequence[float], series: Sequence[Sequence[float]], style: str, colour, label: str | None):
    """Draws the mean of several series, and one sample deviation around it where there are two or more.

    Args:
        axes: to draw on.
        x: of the longest series; the mean at each place is over the series that come so far.
        series: one a seed, none longer than `x`; none at all draws nothing, and NaN leaves a gap.
        style: of the line, as matplotlib spells it.
        colour: of the line.
        label: in the legend, or None.
    """
    if not series:
        return
    values = np.ma.masked_all((len(series), len(x)))
    for row, one in zip(values, series, strict=True):
        row[: len(one)] = np.ma.masked_invalid(one)
    mean = values.mean(0)
    axes.plot(x, mean, style, color=colour, label=label)
    if len(series) > 1:
        spread = values.std(0, ddof=1)
        axes.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.2, linewidth=0)
