"""What a bench found: rows, figures, what was left out; and the same as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from edgeseq.bench.case import Array, Case

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Block:
    """Calls of one row, one after another: nanoseconds of each by the clock, and of the process in all of them."""

    ns: Array
    cpu_ns: int
    samples_per_call: int

    @property
    def sample_ns(self) -> float:
        """The median of the calls, for a sample."""
        return float(np.median(self.ns)) / self.samples_per_call

    @property
    def cpu_sample_ns(self) -> float:
        """What the process took for a sample; not 0, though its clock may be coarse."""
        return max(1.0, self.cpu_ns / (len(self.ns) * self.samples_per_call))


@dataclass(frozen=True)
class TimedRow:
    """One row of the interleaved run.

    Microseconds are wall time, but for ``cpu_us_per_sample``, which all threads of the process took. ``ratio`` is the
    time of a sample in units of that of the run's first row: the median over rounds of the ratio of the two blocks'
    medians, with its quartiles; ``cpu_ratio`` the same of the processor's time. ``difference`` is how far a peer's
    outputs were from what they should be, in units of the largest output.
    """

    model: str
    key: str
    what: str
    where: str
    calls: int
    samples_per_call: int
    median_us: float
    p99_us: float
    p99_over_p50: float
    us_per_sample: float
    samples_per_s: float
    ratio: float
    ratio_quartiles: tuple[float, float]
    cpu_us_per_sample: float
    cpu_ratio: float
    difference: float | None


@dataclass(frozen=True)
class FigureRow:
    """One figure that was measured once."""

    model: str
    key: str
    what: str
    name: str
    value: float
    unit: str


@dataclass(frozen=True)
class LeftOut:
    """A row or figure that is not there, and why; ``failed`` where that is a mistake, not a matter of the model."""

    model: str
    key: str
    what: str
    why: str
    failed: bool


@dataclass(frozen=True)
class Report:
    """All of it; ``dataclasses.asdict`` gives what the JSON file holds."""

    environment: Mapping[str, Any]
    models: Sequence[Mapping[str, Any]]
    sizes: Mapping[str, Any]
    timed: Sequence[TimedRow]
    figures: Sequence[FigureRow]
    left_out: Sequence[LeftOut]
    format_version: int = FORMAT_VERSION


def timed_row(
    model: str, case: Case, answer: Mapping[str, Any], blocks: Sequence[Block], base: Sequence[Block]
) -> TimedRow:
    """The row of a case, from its blocks of all rounds and the first row's of the same ones.

    Example:
        >>> case = Case("twice", "twice as slow", lambda target: None)
        >>> slow, fast = [Block(np.array([4000] * 2), 8000, 1)] * 3, [Block(np.array([2000] * 2), 4000, 1)] * 3
        >>> row = timed_row("m", case, {"where": "here", "difference": None}, slow, fast)
        >>> row.median_us, row.ratio, row.cpu_ratio, row.calls
        (4.0, 2.0, 2.0, 6)
    """
    n = blocks[0].samples_per_call
    took = np.concatenate([block.ns for block in blocks]) / 1e3
    p50, p99 = np.percentile(took, (50, 99))
    pairs = list(zip(blocks, base, strict=True))
    ratios = [block.sample_ns / of.sample_ns for block, of in pairs]
    low, middle, high = (float(q) for q in np.percentile(ratios, (25, 50, 75)))
    return TimedRow(
        model=model,
        key=case.key,
        what=case.what,
        where=str(answer["where"]),
        calls=len(took),
        samples_per_call=n,
        median_us=float(p50),
        p99_us=float(p99),
        p99_over_p50=float(p99 / p50),
        us_per_sample=float(p50) / n,
        samples_per_s=1e6 * n / float(p50),
        ratio=middle,
        ratio_quartiles=(low, high),
        cpu_us_per_sample=float(np.median([block.cpu_sample_ns for block in blocks])) / 1e3,
        cpu_ratio=float(np.median([block.cpu_sample_ns / of.cpu_sample_ns for block, of in pairs])),
        difference=answer["difference"],
    )


def print_report(report: Report, console: Console) -> None:
    """Print the report as tables."""
    several = len(report.models) > 1
    for about in report.models:
        console.print(f"[bold]{about['name']}[/bold]: {about['runs_on']}")
    _print_timed(report.timed, console, several=several)
    _print_figures(report.figures, console, several=several)
    for row in report.left_out:
        style = "red" if row.failed else "dim"
        console.print(f"{_named(row.model, row.what, several=several)}: {row.why}", style=style, highlight=False)
    machine = report.environment["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in report.environment["versions"].items())
    console.print(f"{machine['cores']} cores of {machine['cpu']}, {machine['system']}; {versions}", highlight=False)


def _named(model: str, what: str, *, several: bool) -> str:
    return f"{model}: {what}" if several else what


def _print_timed(rows: Sequence[TimedRow], console: Console, *, several: bool) -> None:
    if not rows:
        return
    table = _table(
        "In turns: microseconds of a call and of a sample; x and cpu x, a sample's in units of the first row's"
    )
    table.add_column("what and where", overflow="fold")
    for unit in ("p50", "p99", "p99/p50", "a sample", "x", "cpu x"):
        table.add_column(unit, justify="right", no_wrap=True)
    for row in rows:
        numbers = (row.median_us, row.p99_us, row.p99_over_p50, row.us_per_sample, row.ratio, row.cpu_ratio)
        told = f"{row.what} ({row.where})"
        table.add_row(_named(row.model, told, several=several), *map(number, numbers))
    console.print(table)


def _print_figures(rows: Sequence[FigureRow], console: Console, *, several: bool) -> None:
    if not rows:
        return
    table = _table("Once")
    for column in ("what", "figure"):
        table.add_column(column, overflow="fold")
    table.add_column("value", justify="right", no_wrap=True)
    table.add_column("unit")
    told = ""
    for row in rows:
        what = _named(row.model, row.what, several=several)
        table.add_row("" if what == told else what, row.name, number(row.value), row.unit)
        told = what
    console.print(table)


def _table(title: str) -> Table:
    from rich import box
    from rich.table import Table

    return Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)


def number(value: float) -> str:
    """Three significant digits, or whole numbers from 100.

    Example:
        >>> number(0.01234), number(5.678), number(99.96), number(12345.6), number(0.0)
        ('0.0123', '5.68', '100', '12,346', '0')
    """
    if value == 0 or abs(value) >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 1e-4 else f"{value:.1e}"
