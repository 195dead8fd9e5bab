"""The pictures of the comparison, drawn from ``metrics.json`` alone.

Owns three pictures (felt latency against accuracy, what a person saw, compute), their colours and the way numbers are
written; the fourth, the budget's curve, is drawn by `edgeseq.budget_curve.plot`. `demos.report` puts them on a page.
Colours are those of Okabe and Ito, which people with any colour vision can tell apart; every colour has a word beside
it. Refuses nothing: what is None in the metrics is not drawn.

Invariant: no global state of matplotlib is used or changed, and the same metrics give the same SVG.

Source: Okabe and Ito, "Color universal design", 2008, https://jfly.uni-koeln.de/color/.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from edgeseq.budget_curve import BudgetCurve
from edgeseq.budget_curve.drawing import FAINT, INK, PAPER, STYLE, Label, place_labels
from edgeseq.budget_curve.plot import draw as draw_budget

Metrics = Mapping[str, Any]

_LABEL_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7", "#999999")
_DARK = {"#0072B2", "#009E73", "#D55E00"}
_NOTHING = "#eeeeee"
_CHANNEL_COLOURS = ("#1a1a1a", "#0072B2", "#D55E00")
_FAMILIES = {"stream": "#0072B2", "window": "#56B4E9", "keras": "#999999"}
_OTHER, _AHEAD = "#D55E00", "#E69F00"
_TIMES_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300, 600, 1800, 3600, 10800, 36000)


def number(value: float | None) -> str:
    """Three significant digits, or whole numbers from 100; a dash for None.

    Example:
        >>> number(0.5), number(36.44), number(99.96), number(12345.6), number(0.0), number(None)
        ('0.500', '36.4', '100', '12,346', '0', '–')
    """
    if value is None:
        return "–"
    if value == 0 or abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:#.3g}"


def duration(seconds: float | None) -> str:
    """A time as a person says it.

    Example:
        >>> duration(0.5), duration(125.0), duration(7200.0), duration(None)
        ('0.50 s', '2.1 min', '2.0 h', '–')
    """
    if seconds is None:
        return "–"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def draw_trade_off(ax: Axes, metrics: Metrics) -> None:
    """Felt latency against accuracy, every point with its name and its cost beside it."""
    points = [m for m in metrics["methods"] if m["felt_latency_s"]["median"] is not None]
    if not points:
        ax.text(0.5, 0.5, "no change of label was found by any method", ha="center", transform=ax.transAxes)
        return
    times = [m["felt_latency_s"]["median"] for m in points]
    heights = [100 * m["frame_accuracy"] for m in points]
    ax.set_xscale("log")
    ax.set_xlim(min(times) / 14, max(times) * 8)  # room for words on both sides
    margin = max(1.0, 0.4 * (max(heights) - min(heights)))
    ax.set_ylim(min(heights) - margin, max(heights) + margin)
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(FixedLocator([t for t in _TIMES_S if low <= t <= high]))
    ax.xaxis.set_minor_locator(NullLocator())
    ax.xaxis.set_major_formatter(FuncFormatter(lambda t, _: f"{t:g} s" if t < 60 else duration(t).replace(".0", "")))
    ax.grid(color="#e6e6e6", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.set_title("How late, and how often right", loc="left", fontsize=12.5, fontweight="bold")
    ax.set_xlabel(
        "felt latency: from the start of a new exercise until its label is there and stays (median, log scale)"
    )
    ax.set_ylabel("frames labelled right, %")
    for m, x, y in zip(points, times, heights, strict=True):
        # The window run again gives the stream's labels at nearly the same time: a ring around the stream's point.
        ring = m["key"] == "window"
        ax.scatter(
            [x],
            [y],
            s=260 if ring else 110,
            facecolors="none" if ring else colour(m["key"]),
            edgecolors=colour(m["key"]) if ring else PAPER,
            linewidths=2.5 if ring else 1.0,
            zorder=3,
        )
    place_labels(
        ax,
        [
            Label(at, _point_words(m), colour(m["key"]))
            for m, at in zip(points, zip(times, heights, strict=True), strict=True)
        ],
    )


def _point_words(method: Mapping[str, Any]) -> str:
    cost = f"{number(method['cpu_s_per_hour'])} CPU-s an hour"
    if not method["keeps_up"]:
        cost = f"falls {number(method['falls_behind_s_per_s'])} s behind every second"
    return f"{method['name']}\n{duration(method['felt_latency_s']['median'])}, {cost}"


def colour(key: str) -> str:
    """The colour of a method: blues for the TCN, grey for Keras, vermilion for the BiLSTM, orange for its streams.

    Example:
        >>> colour("stream"), colour("bilstm_5"), colour("ahead_5_1")
        ('#0072B2', '#D55E00', '#E69F00')
    """
    return _AHEAD if key.startswith("ahead") else _FAMILIES.get(key, _OTHER)


def draw_timeline(axes: Sequence[Axes], metrics: Metrics) -> None:
    """The signal, the truth, and what every method had on the screen at each moment; `axes` one above the other."""
    line, names = metrics["timeline"], metrics["data"]["label_names"]
    top, below = axes
    for (name, values), tint in zip(line["channels"].items(), _CHANNEL_COLOURS, strict=False):
        moments = [line["start_s"] + i / metrics["data"]["rate_hz"] for i in range(len(values))]
        top.plot(moments, values, color=tint, linewidth=0.9, label=name)
    top.legend(loc="upper right", ncols=3, frameon=False, fontsize=9.5, borderaxespad=0, bbox_to_anchor=(1, 1.26))
    top.set_title("What a person sees, moment by moment", loc="left", fontsize=12.5, fontweight="bold")
    top.set_ylabel("the sensor", rotation=0, ha="right", va="center")
    top.tick_params(labelbottom=False, bottom=False)
    rows = [("what was done", line["truth"], 1.0)]
    rows += [(_row_name(m), line["shown"][m["key"]], 0.72) for m in metrics["methods"]]
    shortest = 0.045 * (line["end_s"] - line["start_s"])  # a word needs this much room
    for row, (_, bands, height) in enumerate(rows):
        for start, end, label in bands:
            tint = _LABEL_COLOURS[label % len(_LABEL_COLOURS)] if label >= 0 else _NOTHING
            below.barh(row, end - start, left=start, height=height, color=tint, linewidth=0)
            if label < 0 and end - start > 8 * shortest:
                below.text(start + shortest / 3, row, "nothing yet", va="center_baseline", fontsize=9.5, color=FAINT)
            elif label >= 0 and end - start > shortest:
                ink = PAPER if tint in _DARK else INK
                middle = (start + end) / 2
                below.text(middle, row, names[label], ha="center", va="center_baseline", fontsize=9.5, color=ink)
    below.set_ylim(len(rows) - 0.5, -0.6)
    below.set_yticks(range(len(rows)), [name for name, *_ in rows])
    below.tick_params(left=False)
    below.spines["left"].set_visible(False)
    below.set_xlabel(f"seconds since the session began (session {line['session'] + 1}, subject {line['group']})")
    for ax in axes:
        ax.set_xlim(line["start_s"], line["end_s"])
        for change in line["changes_s"]:
            ax.axvline(change, color=INK, linewidth=1.1, linestyle=(0, (4, 3)), zorder=4)


def _row_name(method: Mapping[str, Any]) -> str:
    return str(method["name"]) + ("" if method["keeps_up"] else "\n(falls behind: the past)")


def draw_compute(ax: Axes, metrics: Metrics) -> None:
    """Compute per sample: the median as a point, the middle half as a bar, p1 to p99 as a line; the budget beside."""
    for row, method in enumerate(metrics["methods"]):
        us, tint = method["compute_per_sample_us"], colour(method["key"])
        for low, high, width in (("p1", "p99", 2.0), ("p25", "p75", 8.0)):
            if us[low] is not None and us[high] is not None:
                ax.plot([us[low], us[high]], [row, row], color=tint, linewidth=width, solid_capstyle="butt")
        ax.plot([us["p50"]], [row], "o", markersize=8, color=tint, markeredgecolor=PAPER)
        ax.annotate(
            f"{number(us['p50'])} µs", (us["p50"], row), (0, 9), textcoords="offset points", ha="center", fontsize=9.5
        )
    budget_us = 1e6 / metrics["data"]["rate_hz"]
    ax.axvline(budget_us, color=INK, linewidth=1.1, linestyle=(0, (4, 3)))
    ax.annotate(
        f"the next sample comes: {budget_us / 1000:g} ms",
        (budget_us, -0.75),
        (-6, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        fontsize=9.5,
    )
    ax.set_title("Compute for one sample", loc="left", fontsize=12.5, fontweight="bold")
    ax.set_xscale("log")
    ax.set_ylim(len(metrics["methods"]) - 0.5, -1.0)
    ax.set_yticks(range(len(metrics["methods"])), [m["name"] for m in metrics["methods"]])
    ax.tick_params(axis="y", left=False)
    ax.grid(axis="x", color="#e6e6e6", linewidth=0.8)
    ax.set_axisbelow(True)
    ax.set_xlabel("compute per sample, µs (log scale)")


def svg(metrics: Metrics, which: str) -> str:
    """One picture, "trade_off", "budget", "timeline" or "compute", as an ``<svg>`` element for a page."""
    n_rows = len(metrics["methods"])
    heights = {"trade_off": 5.4, "budget": 5.4, "timeline": 2.6 + 0.5 * n_rows, "compute": 1.2 + 0.5 * n_rows}
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10.6, heights[which]), layout="constrained")
        if which == "timeline":
            draw_timeline(_stacked(figure), metrics)
        elif which == "budget":
            draw_budget(figure.add_subplot(), BudgetCurve.from_dict(metrics["budget"]))
        else:
            {"trade_off": draw_trade_off, "compute": draw_compute}[which](figure.add_subplot(), metrics)
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None, "Type": None, "Format": None})
    text = out.getvalue()
    return text[text.index("<svg") :]


def _stacked(figure: Any) -> Any:
    return figure.subplots(2, 1, gridspec_kw={"height_ratios": [1.0, 3.2], "hspace": 0.04})


def save_overview(metrics: Metrics, path: Path, headline: str) -> None:
    """The one picture for a README, 1200 pixels wide: the headline, what a person saw, and the trade-off."""
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(12, 11.6 if metrics["timeline"] else 6), dpi=100, layout="constrained")
        parts: Any = figure.subfigures(2, 1, height_ratios=[1.05, 1.0]) if metrics["timeline"] else [figure]
        n_lines = math.ceil(len(headline) / 95)
        words = "\n".join(textwrap.wrap(headline, len(headline) // n_lines + 8))  # lines of about equal length
        figure.suptitle(words, x=0.012, ha="left", fontsize=15, fontweight="bold", linespacing=1.35)
        if metrics["timeline"]:
            draw_timeline(_stacked(parts[0]), metrics)
        draw_trade_off(parts[-1].add_subplot(), metrics)
        figure.savefig(path, format="png", metadata={"Software": None})
