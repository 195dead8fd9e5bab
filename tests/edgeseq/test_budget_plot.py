"""The picture of a budget: it is written, says what was chosen, and its words do not cover each other."""

from __future__ import annotations

import builtins
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from edgeseq.budget_curve.curve import BudgetCurve, Row, Target
from edgeseq.budget_curve.drawing import STYLE, Label, place_labels
from edgeseq.budget_curve.plot import draw
from edgeseq.errors import ConfigError, MissingDependencyError


def row(name: str, kind: Any, size: tuple[int | None, int | None], accuracy: float, cpu_us: float) -> Row:
    late = 5000 if size[0] is None or size[1] is None else size[0] + size[1] - 1
    delays: dict[str, Any] = {
        "delay_samples": late,
        "mean_delay_samples": late,
        "delay_ms": 20.0 * late,
        "mean_delay_ms": 20.0 * late,
    }
    goodness: dict[str, Any] = {
        "accuracy": accuracy,
        "agreement": accuracy,
        "max_difference": 1 - accuracy,
        "mean_difference": 0.0,
    }
    compute: dict[str, Any] = {"p50_us": cpu_us, "p99_us": cpu_us, "cpu_us": cpu_us, "cpu_s_per_hour": 1.0}
    return Row(name, kind, size[0], size[1], **{**delays, **goodness, **compute})


def curve(**changes: Any) -> BudgetCurve:
    grid = [
        row(f"lookahead {nr}, chunk {nc}", "lookahead", (nr, nc), 0.99 - 0.2 / (1 + nr + nc / 3), (9 + nr) / nc)
        for nc in (1, 8)
        for nr in (0, 1, 2, 4, 8, 16, 32)
    ]
    rows = (
        row("causal tcn", "causal", (0, 1), 0.86, 50.0), *grid, row("offline", "offline", (None, None), 0.99, 1.0)
    )  # fmt: skip
    target = Target("accuracy", 0.95)
    return replace(BudgetCurve("m.onnx", rows, 50.0, 1, 100, 100, 0.4, target, max_delay_samples=20), **changes)


def drawn(budget: BudgetCurve) -> tuple[Any, list[Text]]:
    import matplotlib as mpl

    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(10, 5.6), dpi=100, layout="constrained")
        ax = figure.add_subplot()
        draw(ax, budget)
        figure.draw_without_rendering()
    return ax, list(ax.texts)


def test_everything_has_its_words_and_none_covers_another() -> None:
    ax, notes = drawn(curve())
    words = [note.get_text().split("\n")[0] for note in notes]
    assert sorted(words) == sorted(
        [
            *("asked for:", "the offline model,", "400 ms at most", "causal tcn"),
            *("one by one", "in blocks of 8", f"chosen: {curve().best.name}"),  # type: ignore[union-attr]
        ]
    )
    boxes = [Text.get_window_extent(note) for note in notes]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i]), words[i]
    assert ax.get_xlabel() == "delay of the slowest output"
    assert ax.get_ylabel() == "labels right, %"
    assert [tick.get_text() for tick in ax.get_xticklabels()][:3] == ["0 ms", "20 ms", "40 ms"]


def test_the_area_of_a_point_is_its_compute() -> None:
    ax, _ = drawn(curve(target=None, max_delay_samples=None))
    areas = [float(points.get_sizes()[0]) for points in ax.collections]
    us = sorted(row.p50_us for row in curve().rows if row.kind != "offline")
    assert sorted(areas) == pytest.approx([cpu_us * max(areas) / max(us) for cpu_us in us])


def test_the_chosen_causal_model_has_its_words_once() -> None:
    _, notes = drawn(curve(target=Target("accuracy", 0.85)))
    assert [note.get_text().split("\n")[0] for note in notes if "causal" in note.get_text()] == ["chosen: causal tcn"]


@pytest.mark.parametrize(
    "changes",
    [
        {"target": None, "max_delay_samples": None},
        {"target": Target("accuracy", 1.0)},
        {"target": Target("max_difference", 0.1)},
        {"rate_hz": None, "target": Target("agreement", 0.5), "max_delay_samples": 100},
    ],
)
@pytest.mark.parametrize("kind", ["png", "svg"])
def test_any_curve_is_drawn(changes: dict[str, Any], kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"curve.{kind}"
    curve(**changes).save_plot(path)
    assert path.stat().st_size > 10_000
    first = path.read_bytes()
    curve(**changes).save_plot(path)
    assert path.read_bytes() == first


def test_a_curve_of_one_point_is_drawn(tmp_path: Path) -> None:
    one = replace(curve(), rows=(curve().rows[1], curve().rows[-1]), target=None, max_delay_samples=0)
    one.save_plot(tmp_path / "one.png")
    assert (tmp_path / "one.png").is_file()


def test_other_files_and_a_missing_matplotlib_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"expected a path that ends in \.png or \.svg, got '.*curve\.pdf'"):
        curve().save_plot(tmp_path / "curve.pdf")
    before = builtins.__import__

    def without(name: str, *arguments: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="matplotlib")
        return before(name, *arguments)

    for module in ("plot", "drawing"):
        monkeypatch.delitem(sys.modules, f"edgeseq.budget_curve.{module}")
    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"needs the package 'matplotlib'.*edgeseq\[demos\]"):
        curve().save_plot(tmp_path / "curve.png")


def test_words_keep_off_each_other_and_off_points() -> None:
    figure = Figure(figsize=(10, 5), layout="constrained")
    ax = figure.add_subplot()
    ax.set_xlim(0, 1)
    ax.set_ylim(0, 1)
    labels = [Label((0.5, 0.5 + i / 1000), f"the words of point {i}\nand more") for i in range(4)]
    place_labels(ax, labels, keep_off=[(0.6, 0.5)])
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(note) for note in ax.texts]
    x, y = ax.transData.transform((0.6, 0.5))
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert not box.contains(x, y)
