"""Figures of the experiments."""

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from experiments.runs import Outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def new(height: float = 4) -> "Figure":
    """An empty figure on a white background, 9 inches wide and `height` inches high."""
    from matplotlib.figure import Figure

    return Figure(figsize=(9, height), dpi=120, facecolor="white", layout="constrained")


def png(figure: "Figure") -> bytes:
    """The figure as a PNG file; equal figures give equal bytes."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120, metadata={"Software": None})
    return content.getvalue()


def colors(count: int) -> list[tuple[float, ...]]:
    """Colors from light to dark, for rising depths or epochs."""
    from matplotlib import colormaps

    return [tuple(map(float, color)) for color in colormaps["viridis_r"](np.linspace(0.15, 1, count))]


def band(
    axes: "Axes", x: Sequence[float], series: Sequence[Any], style: str, color: Any, label: str | None
) -> None:
    """Draws the mean of several series, with a band of one standard deviation if there are two or more.

    There is one series per seed, none longer than `x`; each mean is over those that reach that far. NaN
    leaves a gap.
    """
    if not series:
        return
    values = np.ma.masked_all((len(series), len(x)))
    for row, one in zip(values, series, strict=True):
        row[: len(one)] = np.ma.masked_invalid(one)
    mean = values.mean(0)
    axes.plot(x, mean, style, color=color, label=label)
    if len(series) > 1:
        spread = values.std(0, ddof=1)
        axes.fill_between(x, mean - spread, mean + spread, color=color, alpha=0.2, linewidth=0)


def error_curves(
    axes: "Axes", runs: Sequence[Outcome], split: str, style: str, color: Any, label: str | None
) -> None:
    """Draws the error of several seeds over the epochs, as `band` does."""
    epochs = max(([row["epoch"] for row in run.history] for run in runs), key=len, default=[])
    band(axes, epochs, [run.errors(split) for run in runs if run.history], style, color, label)
