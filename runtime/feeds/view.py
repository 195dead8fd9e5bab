"""The live view of a run on a terminal: rates, latencies, counters, and the labels as they change."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from edgeseq.runtime.feeds.report import RunReport
from edgeseq.runtime.latency import Latency

_PERIOD_S = 0.25
_MOST_STREAMS = 12


@asynccontextmanager
async def live_view(now: Callable[[], RunReport], console: Console) -> AsyncIterator[None]:
    """Show the report that ``now`` gives, while the block runs."""
    rates = Rates(now())
    with Live(render(now(), rates), console=console, auto_refresh=False, transient=True) as live:

        async def refresh() -> None:
            while True:
                await asyncio.sleep(_PERIOD_S)
                live.update(render(now(), rates), refresh=True)

        task = asyncio.ensure_future(refresh())
        try:
            yield
        finally:
            task.cancel()


class Rates:
    """Frames and predictions per second, of the last second or so."""

    def __init__(self, report: RunReport) -> None:
        self._report = report
        self._marks = [(time.monotonic(), report.frames, report.predictions)]

    def now(self) -> tuple[float, float]:
        """(frames, predictions) per second."""
        now = time.monotonic()
        self._marks = [*self._marks[-4:], (now, self._report.frames, self._report.predictions)]
        then, frames, predictions = self._marks[0]
        elapsed_s = max(now - then, 1e-9)
        return (self._report.frames - frames) / elapsed_s, (self._report.predictions - predictions) / elapsed_s


def render(report: RunReport, rates: Rates) -> Group:
    """The view as it is now."""
    frames, predictions = rates.now()
    facts = Table.grid(padding=(0, 2))
    facts.add_row("frames", f"{report.frames:,}", f"{frames:,.0f} /s", f"{report.queued} waiting")
    facts.add_row("predictions", f"{report.predictions:,}", f"{predictions:,.0f} /s", f"{report.streams} streams")
    facts.add_row("step", *_latency(report.step))
    facts.add_row("end to end", *_latency(report.end_to_end))
    told = [f"{name} {n}" for name, n in sorted(report.errors.items())]
    told += [f"{name} {n}" for name, n in (("dropped", report.dropped), *report.transport.items()) if n]
    facts.add_row("clock", str(report.samples))
    refused = Text("refused " + ", ".join(told), style="yellow") if told else Text("nothing refused", style="dim")
    return Group(facts, refused, _labels(report))


def _latency(latency: Latency) -> tuple[str, str, str]:
    if not latency.count:
        return "", "", ""
    over = "" if latency.budget_us is None else f"{latency.deadline_misses} over {latency.budget_us:g} µs"
    return f"p50 {latency.p50_us:,.0f} µs", f"p99 {latency.p99_us:,.0f} µs", over


def _labels(report: RunReport) -> Table:
    table = Table(box=None, show_header=False, padding=(0, 2))
    for prediction in list(report.latest.values())[:_MOST_STREAMS]:
        score = "" if prediction.score is None else f"{prediction.score:.2f}"
        flags = " ".join(name for name in ("warm_up", "after_gap", "provisional") if getattr(prediction, name))
        table.add_row(prediction.stream_id, f"#{prediction.index}", prediction.label or "", score, flags)
    if len(report.latest) > _MOST_STREAMS:
        table.add_row(f"and {len(report.latest) - _MOST_STREAMS} more")
    changes = " → ".join(f"{p.label} ({p.stream_id} #{p.index})" for p in report.changes)
    table.caption, table.caption_justify = changes, "left"
    return table
