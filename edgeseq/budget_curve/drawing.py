"""How the pictures look, and words beside points that do not cover each other.

Owns the style of every picture, its neutral colours, and `place_labels`. Refuses nothing.

Invariant: no global state of matplotlib is used or changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.transforms import Bbox

__all__ = ["FAINT", "INK", "PAPER", "STYLE", "Label", "as_ink", "place_labels"]

INK, FAINT, PAPER = "#1a1a1a", "#666666", "#ffffff"
_NOTE_SIZE = 10
_ROOM = 12  # pixels around a point that words keep off
_WORDS, _OUTSIDE = 1000, 100_000
# Around a point, in typographic points, nearest first.
_PLACES = tuple(
    (dx * reach, dy * reach)
    for reach in (12, 18, 26, 36, 48, 62, 78, 96, 120)
    for dx, dy in (
        *((1.3, 0), (1, 1), (1, -1), (0, 1.2), (0, -1.2), (-1, 1), (-1, -1), (-1.3, 0)),
        *((1.3, 0.5), (1.3, -0.5), (0.5, 1.2), (0.5, -1.2)),
    )
)
_LEADER = {"arrowstyle": "-", "color": FAINT, "linewidth": 0.7, "shrinkA": 2, "shrinkB": 7}
STYLE: dict[Any, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 11,
    "text.color": INK,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "svg.fonttype": "path",
    "svg.hashsalt": "edgeseq",
}


@dataclass(frozen=True)
class Label:
    """Words for a point, (x, y) in the units of the axes."""

    point: tuple[float, float]
    words: str
    colour: str = INK
    weight: Literal["normal", "bold"] = "normal"


def as_ink(tint: str) -> tuple[float, float, float]:
    """A colour dark enough for words on paper, of the same hue.

    Example:
        >>> as_ink("#ff8000")
        (0.65, 0.32..., 0.0)
    """
    red, green, blue = (0.65 * part for part in to_rgb(tint))
    return red, green, blue


def place_labels(ax: Axes, labels: Sequence[Label], *, keep_off: Sequence[tuple[float, float]] = ()) -> None:
    """Write words beside their points, each at the nearest of some places around its point that is still free.

    Words keep off their own points and those in `keep_off`.
    """
    figure = ax.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # settles the layout, so that pixels mean something
    frame, scale = ax.get_window_extent(), figure.dpi / 72
    points = [*(label.point for label in labels), *keep_off]
    spots = [Bbox.from_bounds(x - _ROOM, y - _ROOM, 2 * _ROOM, 2 * _ROOM) for x, y in ax.transData.transform(points)]
    taken: list[Bbox] = []
    # From the right, because words stand to the right of their point wherever they can.
    for label in sorted(labels, key=lambda label: (label.point, label.words), reverse=True):
        x, y = ax.transData.transform(label.point)
        size = _text_size(ax, label)
        place = min(_PLACES, key=lambda at: _crowding(_box(at, (x, y), size, scale), taken, spots, frame))
        taken.append(_box(place, (x, y), size, scale))
        corner = _align(place[0], 1.0, 0.5, 0.0), _align(place[1], 1.0, 0.5, 0.0)
        ax.annotate(
            label.words,
            label.point,
            place,
            textcoords="offset points",
            ha=_align(place[0], "right", "center", "left"),
            va=_align(place[1], "top", "center", "bottom"),
            color=as_ink(label.colour),
            fontsize=_NOTE_SIZE,
            fontweight=label.weight,
            linespacing=1.3,
            arrowprops=_LEADER | {"relpos": corner},
        )


def _text_size(ax: Axes, label: Label) -> tuple[float, float]:
    """Width and height in pixels."""
    note = ax.text(0, 0, label.words, fontsize=_NOTE_SIZE, fontweight=label.weight, linespacing=1.3)
    box = note.get_window_extent()
    note.remove()
    return box.width, box.height


def _box(place: tuple[float, float], spot: tuple[float, float], size: tuple[float, float], scale: float) -> Bbox:
    """Where the words would stand, in pixels, with a little room around them."""
    low = [
        at + offset * scale - _align(offset, extent, extent / 2, 0.0)
        for at, offset, extent in zip(spot, place, size, strict=True)
    ]
    return Bbox.from_bounds(low[0], low[1], size[0], size[1]).padded(3)


def _align(offset: float, below: Any, zero: Any, above: Any) -> Any:
    return above if offset > 0 else below if offset < 0 else zero


def _crowding(box: Bbox, words: Sequence[Bbox], spots: Sequence[Bbox], frame: Bbox) -> int:
    """How much the words would cover: a spot counts once, other words more, and standing outside of the frame most."""
    inside = box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1
    return int(box.count_overlaps(spots) + _WORDS * box.count_overlaps(words) + (0 if inside else _OUTSIDE))
