from __future__ import annotations

import copy
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from demos import figures, report
from edgeseq.budget_curve import BudgetCurve, Row

VOID = {"meta", "br"}


def method(key: str, name: str, **changes: Any) -> dict[str, Any]:
    rng = np.random.default_rng(len(name))
    us = {
        q: float(v)
        for q, v in zip(("p1", "p25", "p50", "p75", "p99", "p99_9"), np.sort(rng.lognormal(5, 1, 6)), strict=True)
    }
    return {
        "key": key,
        "name": name,
        "how": f"how {name} works",
        "calls_measured": 123,
        "calls_in_replay": 456,
        "samples_per_call": 1.0,
        "compute_per_call_us": us,
        "compute_per_sample_us": us,
        "future_samples": {"median": 0.0, "max": 0},
        "felt_latency_s": {"median": float(rng.uniform(0.3, 3)), "p90": 3.21},
        "changes": 10,
        "changes_missed": 1,
        "changes_missed_share": 0.1,
        "flips_per_hour": 777.0,
        "frame_accuracy": float(rng.uniform(0.6, 0.9)),
        "cpu_s_per_hour": 12.3,
        "utilisation": 0.01,
        "keeps_up": True,
        "falls_behind_s_per_s": 0.0,
    } | changes


def budget() -> dict[str, Any]:
    """What `edgeseq.budget` tells of a causal model, two lookaheads and an offline model."""
    sizes: list[tuple[str, Any, int | None, float]] = [
        ("causal <tcn>", "causal", 0, 0.8), ("lookahead 0, chunk 1", "lookahead", 0, 0.7),
        ("lookahead 9, chunk 1", "lookahead", 9, 0.85), ("offline, at the end", "offline", None, 0.9),
    ]  # fmt: skip
    rows = [
        Row(name, kind, ahead, None if ahead is None else 1, ahead or 99, 1.0, 20.0, 20.0, right, right, 0.1, 0.01,
            p50_us=30.0, p99_us=None, cpu_us=31.0, cpu_s_per_hour=5.5)
        for name, kind, ahead, right in sizes
    ]  # fmt: skip
    asked: dict[str, Any] = {"target": None, "max_delay_samples": 10}
    return BudgetCurve("bilstm.onnx", tuple(rows), 50.0, 6, 100, 100, 0.4, **asked).to_dict()


@pytest.fixture
def metrics() -> dict[str, Any]:
    stream = method("stream", "Streaming <TCN>", felt_latency_s={"median": 0.5, "p90": 2.0})
    again = copy.deepcopy(stream) | {"key": "window", "name": "TCN window & more"}
    keras = method("keras", "Keras predict", keeps_up=False, falls_behind_s_per_s=4.23, utilisation=5.23)
    bilstm = method("bilstm_5", "BiLSTM window", frame_accuracy=0.95)
    nothing = dict.fromkeys(("p1", "p25", "p75", "p99", "p99_9")) | {"p50": 2.0}
    offline = method(
        "bilstm_offline", "BiLSTM, whole session", compute_per_sample_us=nothing, compute_per_call_us=nothing
    )
    found_none = method("bilstm_9", "BiLSTM that found none", felt_latency_s={"median": None, "p90": None})
    methods = [stream, again, keras, bilstm, offline, found_none]
    bands = [[10.0, 12.0, 0], [12.0, 12.1, 1], [12.1, 14.0, 0]]
    model = {"parameters": 35207, "seed": 0, "epochs_run": 6, "train_s": 75.0, "file_bytes": {"tcn.onnx": 158000}}
    return {
        "machine": {"cpu": "A <CPU>", "cores": 2, "system": "Linux x86_64"},
        "versions": {"python": "3.11.7", "numpy": "2.4.6"},
        "seeds": {"splice": 0},
        "models": {"tcn": model},
        "data": {
            "sessions": 6, "groups": [8, 9], "hours": 0.43, "rate_hz": 50.0, "feature_names": ["ax"],
            "label_names": ["PEN", "R<W"], "majority_rate": 0.173, "changes": 10, "changes_per_hour": 345.0,
        },
        "settings": {"hold_s": 0.5, "window_s": 10.0, "hops": [5]},
        "receptive_field": [252, 0],
        "exactness": {
            "tolerance": 1e-5, "samples": 77198, "max_difference_step": 8.3e-7, "max_difference_chunks": 0.0
        },
        "interleaved": {
            "calls": {"step": 600, "window": 600, "keras": 120},
            "median_us": {"step": 40.4, "window": 193.8, "keras": 86811.9},
            "times_the_step": {"window": 4.797, "keras": 2148.8},
            "max_difference_from_stream": {"window": 3e-7, "keras": 3e-7},
        },
        "at_real_pace": {
            "calls": {"step": 250, "window": 250}, "median_us": {"step": 120.0, "window": 400.0},
            "times_the_step": {"window": 3.33}, "idle_s": 0.01,
        },
        "methods": methods,
        "timeline": {
            "session": 1, "group": 8, "session_s": 250.0, "start_s": 10.0, "end_s": 14.0, "changes_s": [12.0, 12.1],
            "channels": {"ax": np.sin(np.arange(200) / 9).tolist()},
            "truth": bands,
            "shown": {m["key"]: bands for m in methods} | {"bilstm_offline": [[10.0, 14.0, -1]]},
        },
        "budget": budget(),
    }  # fmt: skip


class Page(HTMLParser):
    """Checks that elements nest; keeps the texts, the links and the cells of the tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.words = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in {"src", "href", "xlink:href", "action", "data"}]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in {"td", "th"}:
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data
        if {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


def test_the_page_is_well_formed_and_asks_no_server(metrics: dict[str, Any]) -> None:
    text = report.render(metrics)
    page = Page(text)
    assert all(link.startswith("#") for link in page.links)
    assert not re.search(r"url\((?!#)|@import|<script|<link", text)
    assert text.count("<svg") == 4


def test_every_method_has_its_figures_in_both_tables(metrics: dict[str, Any]) -> None:
    rows = [row for row in Page(report.render(metrics)).rows if row[0] != "method"]
    for i, m in enumerate(metrics["methods"]):
        felt, cost = rows[i], rows[len(metrics["methods"]) + i]
        assert felt[0] == cost[0] == m["name"]
        assert felt[1:4] == [
            figures.number(100 * m["frame_accuracy"]),
            figures.number(m["felt_latency_s"]["median"]),
            figures.number(m["felt_latency_s"]["p90"]),
        ]
        assert cost[1:4] == [figures.number(m["compute_per_call_us"][q]) for q in ("p50", "p99", "p99_9")]
        assert cost[6] == figures.number(m["cpu_s_per_hour"])


def test_the_curve_has_its_table_and_its_verdict(metrics: dict[str, Any]) -> None:
    page = Page(report.render(metrics))
    rows = {row[0]: row[1:] for row in page.rows}
    assert rows["lookahead 9, chunk 1"] == ["20", "20", "85.0", "85.0", "0.100", "0.0100", "30.0", "–", "5.50"]
    assert (
        "The best within 200 ms: lookahead 9, chunk 1, with accuracy 0.850, 180 ms late, 30 µs a sample." in page.words
    )
    assert "causal <tcn>" in rows


def test_headings_carry_units_and_the_best_is_bold(metrics: dict[str, Any]) -> None:
    text = report.table(metrics["methods"], report.FELT)
    assert "felt latency, median, s" in text
    assert "<strong>95.0</strong>" in text
    assert text.count("<strong>0.500</strong>") == 2  # a tie


def test_texts_are_escaped(metrics: dict[str, Any]) -> None:
    text = report.render(metrics)
    assert "Streaming &lt;TCN&gt;" in text
    assert "A &lt;CPU&gt;" in text
    assert "<TCN>" not in text
    assert "<CPU>" not in text


def test_the_headline_says_the_finding_with_its_numbers(metrics: dict[str, Any]) -> None:
    words = report.headline(metrics)
    for figure in ("0.50 s", figures.number(metrics["methods"][0]["compute_per_sample_us"]["p50"]), "4.80", "2,149"):
        assert figure in words
    assert "BiLSTM window" in report.second_line(metrics)
    metrics["methods"][0]["frame_accuracy"] = 0.99
    assert "No method is more often right than the stream, in 99.0\u00a0%" in report.second_line(metrics)
    metrics["methods"][0]["felt_latency_s"]["median"] = None
    assert "never holds a right label" in report.headline(metrics)


def test_the_same_metrics_give_the_same_page(metrics: dict[str, Any]) -> None:
    assert figures.svg(metrics, "trade_off") == figures.svg(metrics, "trade_off")


def test_the_picture_is_1200_pixels_wide(metrics: dict[str, Any], tmp_path: Path) -> None:
    report.write_report(metrics, tmp_path)
    png = (tmp_path / "latency.png").read_bytes()
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    assert int.from_bytes(png[16:20], "big") == 1200
    assert {file.name for file in tmp_path.iterdir()} == {"latency.png", "budget.png", "report.html"}


def test_a_comparison_without_a_timeline_or_a_found_change_still_has_a_page(
    metrics: dict[str, Any], tmp_path: Path
) -> None:
    metrics["timeline"] = None
    for m in metrics["methods"]:
        m["felt_latency_s"] = {"median": None, "p90": None}
    report.write_report(metrics, tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8").count("<svg") == 3


@pytest.mark.parametrize("height", [0.8, 0.800001, 0.83])
def test_labels_of_near_points_do_not_overlap(metrics: dict[str, Any], height: float) -> None:
    for m, x, y in zip(
        metrics["methods"], (0.5, 0.5, 500, 0.54, 130, 0.6), (0.8, 0.8, 0.8, height, 0.9, 0.81), strict=True
    ):
        m["felt_latency_s"], m["frame_accuracy"] = {"median": x, "p90": x}, y
    figure = Figure(figsize=(10.6, 5.0), layout="constrained")
    ax = figure.add_subplot()
    figures.draw_trade_off(ax, metrics)
    figure.draw_without_rendering()
    boxes = [Text.get_window_extent(note) for note in ax.texts]
    assert len(boxes) == len(metrics["methods"])
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
        assert ax.get_window_extent().contains(box.x0, box.y0)
        assert ax.get_window_extent().contains(box.x1, box.y1)
