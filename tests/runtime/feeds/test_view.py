"""The live view, as text, and that it stays away from what is no terminal."""

from __future__ import annotations

import os
import pty
from pathlib import Path

from rich.console import Console

from edgeseq import runtime as rt
from edgeseq.runtime.feeds.report import RunReport
from edgeseq.runtime.feeds.view import Rates, render
from tests.runtime.feeds.running import MODEL, edgeseq_run, walk, write_jsonl


def test_it_shows_rates_latencies_counters_and_labels() -> None:
    report = RunReport(step=rt.Latency(budget_us=100))
    rates = Rates(report)
    for prediction in rt.predictions(rt.load(MODEL), walk(20, [f"wrist-{i}" for i in range(14)])):
        report.saw(prediction)
    report.frames, report.errors["not_json"] = 281, 1
    report.step.record(50_000)
    report.step.record(150_000)
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(render(report, rates))
    console.file.close()
    text = console.export_text()
    for shown in ("281", "280", "/s", "p99", "1 over 100 µs", "refused not_json 1", "wrist-0", "and 2 more", "rest"):
        assert shown in text, shown


def test_it_is_there_on_a_terminal_alone(tmp_path: Path) -> None:
    sent = write_jsonl(tmp_path / "sent", walk(50, ["wrist-7"]))
    near, far = pty.openpty()
    process = edgeseq_run("--from", f"jsonl:{sent}?speed=1", "--to", f"jsonl:{tmp_path}/out", stdout=far)
    os.close(far)
    shown = b""
    try:
        while piece := os.read(near, 65536):
            shown += piece
    except OSError:  # the other end is closed
        pass
    os.close(near)
    process.communicate()
    assert process.returncode == 0
    assert b"predictions" in shown
    assert b"wrist-7" in shown
    (tmp_path / "out").unlink()
    with (tmp_path / "told").open("wb") as told:
        process = edgeseq_run("--from", f"jsonl:{sent}", "--to", f"jsonl:{tmp_path}/out", stdout=told)
        process.communicate()
    assert (tmp_path / "told").read_bytes() == b""
