"""The trade-off as a picture: how good outputs are against how late they come; the area of a point is its compute.

Owns the drawing alone. Colours are those of Okabe and Ito, and every line and point has its words beside it. Refuses
other files than ``.png`` and ``.svg``.

Invariant: no global state of matplotlib is used or changed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from edgeseq.budget_curve.curve import BudgetCurve, Row
from edgeseq.budget_curve.drawing import FAINT, INK, PAPER, STYLE, Label, as_ink, place_labels
from edgeseq.errors import ConfigError

__all__ = ["draw", "save"]

_LINES = ("#D55E00", "#E69F00", "#CC79A7", "#56B4E9")
_CAUSAL, _GOAL = "#0072B2", "#009E73"
_TICKS = (0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_MOST_TICKS = 7
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
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 5.6), dpi=100, layout="constrained")
        draw(figure.add_subplot(), curve)
        metadata = {"Software": None} if kind == ".png" else {"Date": None, "Creator": None}
        figure.savefig(path, format=kind[1:], metadata=metadata)


def draw(ax: Axes, curve: BudgetCurve) -> None:
    """Draw the curve on axes: a line for each chunk, the causal and the offline model, what was asked for."""
    rows = [row for row in curve.rows if row.kind != "offline"]
    chosen = curve.best or curve.nearest
    _scales(ax, curve, rows)
    _levels(ax, curve)
    size = _LARGEST_POINT / max(row.p50_us for row in rows)
    ahead = [row for row in rows if row.kind == "lookahead"]
    lines = [[row for row in ahead if row.chunk == chunk] for chunk in sorted({row.chunk or 0 for row in ahead})]
    labels, covered = [], []
    for line, tint in zip(lines, cycle(_LINES), strict=False):
        points = [_point(curve, row) for row in line]
        ax.plot(*zip(*points, strict=True), color=tint, linewidth=1.6, zorder=3)
        for row in line:
            _dot(ax, curve, row, tint, size)
        covered += _along(points)
        labels.append(Label(points[-1], _line_words(line), tint))
    for row in rows:
        if row.kind == "causal":
            _dot(ax, curve, row, _CAUSAL, size)
            labels += [] if row == chosen else [Label(_point(curve, row), _point_words(curve, row), _CAUSAL)]
    if chosen is not None:
        ring = 2.0 * size * chosen.p50_us + 120
        ax.scatter(*_point(curve, chosen), s=ring, facecolors="none", edgecolors=INK, linewidths=1.8, zorder=5)
        what = "chosen" if curve.best is not None else "the nearest"
        labels.append(Label(_point(curve, chosen), f"{what}: {_point_words(curve, chosen)}", INK, "bold"))
    place_labels(ax, labels, keep_off=[*covered, *_on_levels(ax, curve)])


def _scales(ax: Axes, curve: BudgetCurve, rows: Sequence[Row]) -> None:
    most = max(*(row.delay_samples for row in rows), curve.max_delay_samples or 0, 1)
    heights = [_height(curve, row) for row in curve.rows]
    heights += [] if curve.target is None else [_scaled(curve, curve.target.value)]
    margin = max(0.2 * (max(heights) - min(heights)), 1e-6)
    ax.set_xscale("function", functions=(_spread, _gathered))
    ax.set_xlim(-0.35, _gathered(_spread(float(most)) * 1.3 + 0.25))
    ax.set_ylim(min(heights) - margin, max(heights) + margin)
    ticks = [n for n in _TICKS if n <= most]
    if len(ticks) > _MOST_TICKS:  # every second doubling, and 0
        ticks = [0, *ticks[:0:-2][::-1]]
    ax.set_xticks(ticks, [_tick(curve, n) for n in ticks])
    ax.minorticks_off()
    ax.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.set_title("What waiting buys", loc="left", fontsize=12.5, fontweight="bold")
    ax.set_title("area of a point: compute of a sample", loc="right", fontsize=9.5, color=FAINT)
    ax.set_xlabel("delay of the slowest output" + ("" if curve.rate_hz else ", samples"))
    ax.set_ylabel(_HEADINGS[curve.metric])


def _spread(delay: Any) -> Any:
    """Delays on a scale where each doubling is a step, and 0 has a place."""
    return np.sign(delay) * np.log2(1 + np.abs(delay))


def _gathered(place: Any) -> Any:
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


def _dot(ax: Axes, curve: BudgetCurve, row: Row, tint: str, size: float) -> None:
    ax.scatter(*_point(curve, row), s=size * row.p50_us, color=tint, edgecolors=PAPER, linewidths=1, zorder=4)


def _point(curve: BudgetCurve, row: Row) -> tuple[float, float]:
    return row.delay_samples, _height(curve, row)


def _along(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points along a line, near enough to each other that no words fit between them."""
    places = np.linspace(0, len(points) - 1, 12 * (len(points) - 1) + 1)
    xs, ys = ([point[i] for point in points] for i in (0, 1))
    along = _gathered(np.interp(places, range(len(points)), _spread(np.array(xs, float))))
    return list(zip(along.tolist(), np.interp(places, range(len(points)), ys).tolist(), strict=True))


def _line_words(line: Sequence[Row]) -> str:
    chunk, us = line[0].chunk, [row.p50_us for row in line]
    released = "one by one" if chunk == 1 else f"in blocks of {chunk}"
    return f"{released}\n{min(us):.3g} to {max(us):.3g} µs a sample"


def _point_words(curve: BudgetCurve, row: Row) -> str:
    late = curve.delay_words(row.delay_samples)
    return f"{row.name}\n{_value(curve, row)}, {late} late, {row.p50_us:.3g} µs a sample"


def _levels(ax: Axes, curve: BudgetCurve) -> None:
    """Lines at what the offline model reaches and at what was asked for, with their words at the right, outside."""
    dashes: dict[str, Any] = {"color": _GOAL, "linewidth": 1.1, "linestyle": (0, (4, 3))}
    offline = next(row for row in curve.rows if row.kind == "offline")
    level = _height(curve, offline)
    ax.axhline(level, color=INK, linewidth=1.1)
    above = True
    if curve.target is not None:
        goal = _scaled(curve, curve.target.value)
        above = level >= goal
        ax.axhline(goal, **dashes)
        _beside(ax, goal, f"asked for:\n{curve.target}", _GOAL, above=not above)
    _beside(ax, level, f"the offline model,\nat the end: {_value(curve, offline)}", INK, above=above)
    if curve.max_delay_samples is not None:
        ax.axvline(curve.max_delay_samples, **dashes)
        ax.annotate(
            f"{curve.delay_words(curve.max_delay_samples)} at most",
            (curve.max_delay_samples, 0.02),
            (-5, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="right",
            color=as_ink(_GOAL),
            fontsize=10,
        )


def _on_levels(ax: Axes, curve: BudgetCurve) -> list[tuple[float, float]]:
    """Points along the lines of `_levels`, which words keep off."""
    low, high = ax.get_xlim()
    delays = _gathered(np.linspace(_spread(max(low, 0.0)), _spread(high), 60)).tolist()
    levels = [_height(curve, row) for row in curve.rows if row.kind == "offline"]
    levels += [] if curve.target is None else [_scaled(curve, curve.target.value)]
    along = [(delay, level) for level in levels for delay in delays]
    if curve.max_delay_samples is not None:
        along += [(curve.max_delay_samples, height) for height in np.linspace(*ax.get_ylim(), 40).tolist()]
    return along


def _beside(ax: Axes, height: float, words: str, tint: str, *, above: bool) -> None:
    ax.annotate(
        words,
        (1.005, height),
        (0, 2 if above else -2),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        va="bottom" if above else "top",
        color=as_ink(tint),
        fontsize=10,
    )
