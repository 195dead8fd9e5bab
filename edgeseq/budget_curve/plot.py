"""The trade-off as a picture: how good outputs are against how late they come; the area of a point is its compute.

Owns the drawing alone. Colours are those of Okabe and Ito, and every line and point has its words beside it. Refuses
other files than ``.png`` and ``.svg``.

Invariant: no global state of matplotlib is used or changed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeseq.budget_curve.curve import BudgetCurve, Row
from edgeseq.errors import ConfigError, MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["draw", "save"]

_INK, _FAINT, _PAPER = "#1a1a1a", "#666666", "#ffffff"
_LINES = ("#D55E00", "#E69F00", "#CC79A7", "#56B4E9")
_CAUSAL, _OFFLINE, _GOAL = "#0072B2", "#1a1a1a", "#009E73"
_STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "text.color": _INK,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "svg.fonttype": "path",
    "svg.hashsalt": "edgeseq",
}
_TICKS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_LARGEST_POINT = 420.0  # square points of area, of the row with the most compute
_HEADINGS = {
    "accuracy": "labels right, %",
    "agreement": "labels as the offline model's, %",
    "max_difference": "largest difference from the offline model",
    "mean_difference": "mean difference from the offline model",
}


def save(curve: BudgetCurve, path: str | os.PathLike[str]) -> None:
    """Write the picture, 1000 pixels wide; see `BudgetCurve.save_plot`."""
    kind = Path(path).suffix
    if kind not in {".png", ".svg"}:
        raise ConfigError(f"plot: expected a path that ends in .png or .svg, got {os.fspath(path)!r}")
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f'a plot needs the package {error.name!r}; install it with pip install "edgeseq[demos]"'
        ) from error
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(10, 5.6), dpi=100, layout="constrained")
        draw(figure.add_subplot(), curve)
        metadata = {"Software": None} if kind == ".png" else {"Date": None, "Creator": None}
        figure.savefig(path, format=kind[1:], metadata=metadata)


def draw(ax: Axes, curve: BudgetCurve) -> None:
    """Draw the curve on axes: a line for each chunk, the causal and the offline model, what was asked for."""
    rows = [row for row in curve.rows if row.kind != "offline"]
    most = max(*(row.delay_samples for row in rows), curve.max_delay_samples or 0, 1)
    heights = [_height(curve, row) for row in curve.rows]
    goal = [] if curve.target is None else [_scaled(curve, curve.target.value)]
    low, high = min(heights + goal), max(heights + goal)
    margin = max(0.12 * (high - low), 1e-6)
    ax.set_xscale("function", functions=(_spread, _gathered))
    ax.set_xlim(-0.35, _gathered(_spread(float(most)) * 1.22 + 0.25))
    ax.set_ylim(low - 1.6 * margin, high + 1.6 * margin)
    ticks = [n for n in _TICKS if n <= most]
    ax.set_xticks(ticks, [_tick(curve, n) for n in ticks])
    ax.minorticks_off()
    ax.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    ax.set_axisbelow(True)
    _goals(ax, curve)
    _offline(ax, curve)
    size = _LARGEST_POINT / max(row.cpu_us for row in rows)
    chunks = sorted({row.chunk for row in rows if row.kind == "lookahead" and row.chunk is not None})
    for number, chunk in enumerate(chunks):
        line = [row for row in rows if row.kind == "lookahead" and row.chunk == chunk]
        _line(ax, curve, line, _LINES[number % len(_LINES)], size)
    for row in rows:
        if row.kind == "causal":
            _causal(ax, curve, row, size)
    _chosen(ax, curve, size)
    ax.set_title(_title(curve), loc="left", fontsize=13, fontweight="bold")
    ax.set_xlabel("delay of the slowest output" + ("" if curve.rate_hz else ", samples"))
    ax.set_ylabel(_HEADINGS[curve.metric])


def _spread(delay: Any) -> Any:
    """Delays on a scale where each doubling is a step, and 0 has a place."""
    import numpy as np

    return np.sign(delay) * np.log2(1 + np.abs(delay))


def _gathered(place: Any) -> Any:
    import numpy as np

    return np.sign(place) * (2 ** np.abs(place) - 1)


def _scaled(curve: BudgetCurve, value: float) -> float:
    return 100 * value if curve.metric in {"accuracy", "agreement"} else value


def _height(curve: BudgetCurve, row: Row) -> float:
    return _scaled(curve, getattr(row, curve.metric))


def _tick(curve: BudgetCurve, samples: int) -> str:
    return str(samples) if curve.rate_hz is None else curve.delay_words(samples)


def _value(curve: BudgetCurve, row: Row) -> str:
    height = _height(curve, row)
    return f"{height:.1f} %" if curve.metric in {"accuracy", "agreement"} else f"{height:.2g}"


def _title(curve: BudgetCurve) -> str:
    return {"accuracy": "What waiting buys", "agreement": "What waiting buys"}.get(
        curve.metric, "What waiting takes away from the error"
    )


def _line(ax: Axes, curve: BudgetCurve, line: Sequence[Row], colour: str, size: float) -> None:
    """The rows of one chunk, their compute at both ends, and what they are at the last."""
    xs, ys = [row.delay_samples for row in line], [_height(curve, row) for row in line]
    ax.plot(xs, ys, color=colour, linewidth=1.6, zorder=3)
    ax.scatter(xs, ys, s=[size * row.cpu_us for row in line], color=colour, edgecolors=_PAPER, linewidths=1, zorder=4)
    chunk = line[0].chunk
    words = "one by one" if chunk == 1 else f"in blocks of {chunk}"
    ax.annotate(
        f"{words}\n{line[-1].cpu_us:.3g} µs",
        (xs[-1], ys[-1]),
        (14, 0),
        textcoords="offset points",
        va="center",
        color=colour,
        fontsize=10,
    )


def _causal(ax: Axes, curve: BudgetCurve, row: Row, size: float) -> None:
    at = (row.delay_samples, _height(curve, row))
    ax.scatter(*at, s=size * row.cpu_us, color=_CAUSAL, edgecolors=_PAPER, linewidths=1, zorder=4)
    ax.annotate(
        f"{row.name}\n{_value(curve, row)}, {row.cpu_us:.3g} µs",
        at,
        (14, 0),
        textcoords="offset points",
        va="center",
        color=_CAUSAL,
        fontsize=10,
    )


def _offline(ax: Axes, curve: BudgetCurve) -> None:
    row = next(row for row in curve.rows if row.kind == "offline")
    ax.axhline(_height(curve, row), color=_OFFLINE, linewidth=1.1)
    ax.annotate(
        f"the offline model, at the end of the sequence: {_value(curve, row)}",
        (0.005, _height(curve, row)),
        (0, 4),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="bottom",
        fontsize=10,
    )


def _goals(ax: Axes, curve: BudgetCurve) -> None:
    """Dashed lines at the target and at the longest delay."""
    dashes = {"color": _GOAL, "linewidth": 1.1, "linestyle": (0, (4, 3))}
    if curve.target is not None:
        ax.axhline(_scaled(curve, curve.target.value), **dashes)
        ax.annotate(
            f"asked for: {curve.target}",
            (0.995, _scaled(curve, curve.target.value)),
            (0, -4),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            ha="right",
            va="top",
            color=_GOAL,
            fontsize=10,
        )
    if curve.max_delay_samples is not None:
        ax.axvline(curve.max_delay_samples, **dashes)
        ax.annotate(
            f"{curve.delay_words(curve.max_delay_samples)} at most",
            (curve.max_delay_samples, 0.02),
            (-5, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right",
            color=_GOAL,
            fontsize=10,
        )


def _chosen(ax: Axes, curve: BudgetCurve, size: float) -> None:
    """A ring around the best row, or the nearest, and what it is."""
    row = curve.best or curve.nearest
    if row is None:
        return
    at = (row.delay_samples, _height(curve, row))
    ax.scatter(*at, s=2.2 * size * row.cpu_us + 120, facecolors="none", edgecolors=_INK, linewidths=1.8, zorder=5)
    chosen = "chosen" if curve.best is not None else "the nearest"
    ax.annotate(
        f"{chosen}: {row.name}\n{_value(curve, row)}, {curve.delay_words(row.delay_samples)}, {row.cpu_us:.3g} µs",
        at,
        (0, -34),
        textcoords="offset points",
        ha="center" if row.delay_samples else "left",
        va="top",
        fontsize=10,
        fontweight="bold",
        arrowprops={"arrowstyle": "-", "color": _FAINT, "linewidth": 0.7},
    )
