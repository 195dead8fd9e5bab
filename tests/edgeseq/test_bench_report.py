"""A report as tables."""

from __future__ import annotations

import io

import numpy as np
from rich.console import Console

from edgeseq.bench.case import Case, LeftOutError, Prepared, Target
from edgeseq.bench.report import Block, FigureRow, LeftOut, Report, print_report, timed_row


def prepare(target: Target) -> Prepared:
    raise LeftOutError(target.name)


def row(name: str, us: int, base_us: int) -> object:
    answer = {"where": "edgeseq 0.1.0", "difference": None}
    blocks, base = ([Block(np.array([1000 * each] * 5), 5000 * each, 1)] * 4 for each in (us, base_us))
    return timed_row(name, Case("step", "Stream.step", prepare), answer, blocks, base)


def printed(*names: str) -> str:
    environment = {
        "machine": {"cpu": "a processor", "cores": 2, "system": "Linux x86_64"},
        "versions": {"python": "3.11.7", "onnxruntime": "1.31.1"},
    }
    models = [{"name": name, "runs_on": "single steps run on the fast form"} for name in names]
    timed = [row(name, 30 + 3 * i, 30) for i, name in enumerate(names)]
    figures = [FigureRow(names[0], "tail", "latency on its own", "p99.9", 41.6, "µs")]
    left_out = [LeftOut(names[0], "tract", "tract, pulse", "absent: it needs tract", failed=False)]
    report = Report(environment, models, {}, timed, figures, left_out)  # type: ignore[arg-type]
    console = Console(file=io.StringIO(), width=100)
    print_report(report, console)
    out = console.file
    assert isinstance(out, io.StringIO)
    return out.getvalue()


def test_a_report_says_what_where_unit_and_ratio() -> None:
    text = printed("tiny")
    assert "microseconds" in text
    line = next(line for line in text.splitlines() if line.strip().startswith("Stream.step"))
    assert line.split() == ["Stream.step", "(edgeseq", "0.1.0)", "30", "30", "1", "30", "1", "1"]
    assert "41.6   µs" in text
    assert "tract, pulse: absent: it needs tract" in text
    assert "2 cores of a processor, Linux x86_64; python 3.11.7, onnxruntime 1.31.1" in text


def test_rows_of_several_models_are_named() -> None:
    text = printed("D1", "D512")
    assert "D1: Stream.step" in text
    line = next(line for line in text.splitlines() if "D512: Stream.step" in line)
    assert line.split()[-1] == "1.1"
