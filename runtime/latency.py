"""How long calls took: a histogram of fixed size, cheap enough to stand in every step.

Buckets are logarithmic, as in HdrHistogram: 16 for every power of two, so a percentile is off by at most 1/32 of its
value (3.2 %). The count, the mean, the largest value and the missed deadlines are exact. Nothing here reads a clock.
"""

from __future__ import annotations

import math
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence

from edgeseq.errors import ConfigError

_BITS = 4
_SUB_BUCKETS = 1 << _BITS  # for every power of two
_LARGEST_POWER = 36  # longer than 2^36 ns, 69 s, is in the last bucket
_LARGEST_NS = 1 << _LARGEST_POWER
_N_BUCKETS = (_LARGEST_POWER - _BITS + 1) * _SUB_BUCKETS
# Bounds in the Prometheus text: powers of two from 1 µs on, which are bounds of buckets, so their counts are exact.
_FIRST_POWER = 10
_METRIC_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL_NAME = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*")


class Latency:
    """A histogram of calls' nanoseconds. Every ``Stream`` keeps one for ``step`` and one for ``push``.

    ``budget_us`` is what a call may take; of longer ones, ``deadline_misses`` tells how many there were. Figures of no
    calls are NaN. One thread records at a time; any other may read meanwhile.

    Example:
        >>> latency = Latency(budget_us=1000)
        >>> for us in (20, 21, 22, 5000):
        ...     latency.record(us * 1000)
        >>> latency.count, latency.max_us, latency.deadline_misses
        (4, 5000.0, 1)
        >>> 20 < latency.p50_us < 22
        True

    Raises:
        ConfigError: ``budget_us`` is not a number above 0.

    Source: the layout of buckets is that of HdrHistogram, http://hdrhistogram.org.
    """

    __slots__ = ("_budget_ns", "_counts", "_longest_ns", "_misses", "_total_ns", "budget_us")

    def __init__(self, budget_us: float | None = None) -> None:
        if budget_us is not None and not (isinstance(budget_us, int | float) and 0 < budget_us < math.inf):
            raise ConfigError(
                f"latency: expected budget_us, microseconds above 0, got {budget_us!r}; give None for no deadline"
            )
        self.budget_us = budget_us
        self._budget_ns = math.inf if budget_us is None else budget_us * 1000
        self._counts = array("q", bytes(8 * _N_BUCKETS))
        self._total_ns = self._longest_ns = self._misses = 0

    def record(self, ns: int) -> None:
        """Count a call that took so many nanoseconds.

        Raises:
            ConfigError: ``ns`` is negative.
        """
        # Bucket i holds the values v, low < v <= high, with the high bits of v - 1: so Prometheus counts, too.
        v = ns - 1
        if not 0 <= v < _LARGEST_NS:
            v = _in_range(ns)
        shift = v.bit_length() - _BITS - 1
        self._counts[v if shift <= 0 else (shift << _BITS) + (v >> shift)] += 1
        self._total_ns += ns
        self._longest_ns = max(self._longest_ns, ns)
        if ns > self._budget_ns:
            self._misses += 1

    @property
    def count(self) -> int:
        """How many calls were counted."""
        return sum(self._counts)

    @property
    def p50_us(self) -> float:
        """The median."""
        return self.percentile_us(50)

    @property
    def p99_us(self) -> float:
        """What 99 of 100 calls did not exceed."""
        return self.percentile_us(99)

    @property
    def p999_us(self) -> float:
        """What 999 of 1000 calls did not exceed."""
        return self.percentile_us(99.9)

    @property
    def max_us(self) -> float:
        """The longest call, exactly."""
        return self._longest_ns / 1000 if self.count else math.nan

    @property
    def mean_us(self) -> float:
        """The mean, exactly."""
        count = self.count
        return self._total_ns / count / 1000 if count else math.nan

    @property
    def deadline_misses(self) -> int:
        """How many calls took longer than ``budget_us``; 0 without a budget."""
        return self._misses

    def percentile_us(self, percent: float) -> float:
        """What so many of 100 calls did not exceed, as numpy's ``inverted_cdf``, within 1/32.

        Raises:
            ConfigError: ``percent`` is not from 0 to 100.
        """
        if not 0 <= percent <= 100:
            raise ConfigError(f"latency: expected a percentile from 0 to 100, got {percent!r}")
        counts = self._counts[:]
        rank = max(1, math.ceil(sum(counts) * percent / 100))
        seen = 0
        for bucket, n in enumerate(counts):
            seen += n
            if seen >= rank:
                middle = (_above(bucket) + 1 + _above(bucket + 1)) / 2  # of the whole numbers in it
                return min(middle if bucket < _N_BUCKETS - 1 else math.inf, self._longest_ns) / 1000
        return math.nan

    def histogram(self) -> list[tuple[float, int]]:
        """(upper bound in µs, calls) of every bucket that has any, the smallest first.

        Example:
            >>> latency = Latency()
            >>> latency.record(1000), latency.record(1000), latency.record(2**20)
            (None, None, None)
            >>> latency.histogram()
            [(1.024, 2), (1048.576, 1)]
        """
        counts = self._counts[:]
        return [(_above(bucket + 1) / 1000, n) for bucket, n in enumerate(counts) if n]

    def reset(self) -> None:
        """Forget all calls; the budget stays."""
        self._counts = array("q", bytes(8 * _N_BUCKETS))
        self._total_ns = self._longest_ns = self._misses = 0

    def __add__(self, other: Latency) -> Latency:
        """The calls of both.

        Raises:
            ConfigError: their budgets differ, so that their missed deadlines do not add up.
        """
        if not isinstance(other, Latency):
            return NotImplemented
        if self.budget_us != other.budget_us:
            raise ConfigError(
                f"latency: expected two of one budget to add, got budget_us {self.budget_us} and {other.budget_us}"
            )
        both = Latency(self.budget_us)
        both._counts = array("q", [a + b for a, b in zip(self._counts, other._counts, strict=True)])
        both._total_ns = self._total_ns + other._total_ns
        both._longest_ns = max(self._longest_ns, other._longest_ns)
        both._misses = self._misses + other._misses
        return both

    def prometheus(self, name: str = "edgeseq_step_seconds", labels: Mapping[str, str] | None = None) -> str:
        """The Prometheus text of this histogram alone; see ``prometheus_text`` for several.

        Raises:
            ConfigError: a name is none that Prometheus allows.
        """
        return prometheus_text([(labels or {}, self)], name)

    def __repr__(self) -> str:
        if not (count := self.count):
            return "Latency(count=0)"
        figures = f"p50={self.p50_us:.1f} µs, p99={self.p99_us:.1f} µs, max={self.max_us:.1f} µs"
        misses = "" if self.budget_us is None else f", {self._misses} over {self.budget_us} µs"
        return f"Latency(count={count}, {figures}{misses})"


def prometheus_text(series: Iterable[tuple[Mapping[str, str], Latency]], name: str = "edgeseq_step_seconds") -> str:
    """Histograms as one metric of Prometheus' text format, told apart by their labels.

    Missed deadlines of those with a budget are a counter, ``edgeseq_step_deadline_misses_total``.

    Raises:
        ConfigError: a name is none that Prometheus allows, or two histograms have the same labels.

    Example:
        >>> latency = Latency(budget_us=50)
        >>> latency.record(60_000)
        >>> text = prometheus_text([({"stream": "pump-7"}, latency)])
        >>> print(*[line for line in text.splitlines() if "_bucket" not in line], sep="\\n")
        # HELP edgeseq_step_seconds Latency of calls.
        # TYPE edgeseq_step_seconds histogram
        edgeseq_step_seconds_sum{stream="pump-7"} 6e-05
        edgeseq_step_seconds_count{stream="pump-7"} 1
        # HELP edgeseq_step_deadline_misses_total Calls longer than their budget.
        # TYPE edgeseq_step_deadline_misses_total counter
        edgeseq_step_deadline_misses_total{stream="pump-7"} 1

    Source: https://prometheus.io/docs/instrumenting/exposition_formats/
    """
    if not _METRIC_NAME.fullmatch(name):
        raise ConfigError(f"latency: expected a metric's name of letters, digits, '_' and ':', got {name!r}")
    labelled = [(_labels(labels), latency) for labels, latency in series]
    if len({tuple(sorted(labels)) for labels, _ in labelled}) < len(labelled):
        raise ConfigError(f"latency: expected other labels for each histogram of {name!r}, got some twice")
    lines = [f"# HELP {name} Latency of calls.", f"# TYPE {name} histogram"]
    for labels, latency in labelled:
        lines += _histogram(name, labels, latency)
    if any(latency.budget_us is not None for _, latency in labelled):
        counter = f"{name.removesuffix('_seconds')}_deadline_misses_total"
        lines += [f"# HELP {counter} Calls longer than their budget.", f"# TYPE {counter} counter"]
        lines += [
            f"{counter}{_braced(labels)} {latency.deadline_misses}"
            for labels, latency in labelled
            if latency.budget_us is not None
        ]
    return "\n".join(lines) + "\n"


def _histogram(name: str, labels: Sequence[str], latency: Latency) -> list[str]:
    counts = latency._counts[:]  # another thread may be recording
    bounds = [(repr((1 << p) / 1e9), _bucket_above(1 << p)) for p in range(_FIRST_POWER, _LARGEST_POWER)]
    lines = [
        f"{name}_bucket{_braced([*labels, _label('le', bound)])} {sum(counts[:stop])}"
        for bound, stop in (*bounds, ("+Inf", _N_BUCKETS))
    ]
    lines.append(f"{name}_sum{_braced(labels)} {latency._total_ns / 1e9!r}")
    return [*lines, f"{name}_count{_braced(labels)} {sum(counts)}"]


def _labels(labels: Mapping[str, str]) -> list[str]:
    written = []
    for name, value in labels.items():
        if name == "le" or not _LABEL_NAME.fullmatch(name):
            raise ConfigError(f"latency: expected a label's name of letters, digits and '_', not 'le', got {name!r}")
        written.append(_label(name, str(value)))
    return written


def _label(name: str, value: str) -> str:
    escaped = value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
    return f'{name}="{escaped}"'


def _braced(labels: Sequence[str]) -> str:
    return "{" + ",".join(labels) + "}" if labels else ""


def _in_range(ns: int) -> int:
    if ns < 0:
        raise ConfigError(f"latency: expected nanoseconds of 0 or more, got {ns}; use a monotonic clock")
    return min(max(ns - 1, 0), _LARGEST_NS - 1)


def _above(bucket: int) -> int:
    """What all values in this bucket are above, and those in the one before are not."""
    shift = max(0, (bucket >> _BITS) - 1)
    return (bucket - (shift << _BITS)) << shift


def _bucket_above(ns: int) -> int:
    """The first bucket whose values are all above a power of two."""
    shift = max(0, ns.bit_length() - _BITS - 1)
    return (shift << _BITS) + (ns >> shift)
