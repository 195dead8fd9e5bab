"""The result of a budget: its rows, the choice among them, and how they are written.

Owns `Row`, `BudgetCurve` and `Target`. Refuses targets that the data cannot tell. Invariant: what is chosen is a row,
and what is written comes from the rows.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from edgeseq.errors import ConfigError, MissingDependencyError

__all__ = ["BudgetCurve", "Row", "Target"]

Kind = Literal["lookahead", "causal", "offline"]


@dataclass(frozen=True)
class Row:
    """One way of running a model, and what was measured of it.

    ``lookahead`` (Nr) is in steps for each recurrent layer and ``chunk`` (Nc) the size of the blocks in which outputs
    come, None for the offline model. ``delay_samples`` is how many samples the slowest output waits for, its own not
    counted, ``mean_delay_samples`` the mean; in ms where the rate is known. Over samples that count: ``accuracy``,
    where there are labels; ``agreement``, the share with the offline model's most likely label; and the largest and
    the mean absolute difference of an output from the offline model's. ``p50_us`` and ``p99_us`` are wall time for a
    sample, its block's divided by its samples, ``p99_us`` None where too few were timed; ``cpu_us`` is its processor
    time, the mean, and ``cpu_s_per_hour`` that of an hour of data.
    """

    name: str
    kind: Kind
    lookahead: int | None
    chunk: int | None
    delay_samples: int
    mean_delay_samples: float
    delay_ms: float | None
    mean_delay_ms: float | None
    accuracy: float | None
    agreement: float | None
    max_difference: float
    mean_difference: float
    p50_us: float
    p99_us: float | None
    cpu_us: float
    cpu_s_per_hour: float | None


_HIGHER_IS_BETTER = {"accuracy": True, "agreement": True, "max_difference": False, "mean_difference": False}


@dataclass(frozen=True)
class Target:
    """What a row is to reach: ``metric`` at least ``value``, or at most, for a difference.

    Example:
        >>> Target.parse("accuracy=0.9")
        Target(metric='accuracy', value=0.9)
        >>> Target.parse("speed=9")
        Traceback (most recent call last):
        edgeseq.errors.ConfigError: target 'speed=9': expected accuracy=, agreement=, max_difference= or ...
    """

    metric: str
    value: float

    @classmethod
    def parse(cls, text: str) -> Target:
        """Read ``"accuracy=0.9"``.

        Raises:
            ConfigError: it is no metric and number.
        """
        metric, _, value = (part.strip() for part in text.partition("="))
        try:
            target = cls(metric, float(value))
        except ValueError:
            target = cls("", 0.0)
        if target.metric not in _HIGHER_IS_BETTER or not math.isfinite(target.value):
            *first, last = (f"{name}=" for name in _HIGHER_IS_BETTER)
            raise ConfigError(
                f"target {text!r}: expected {', '.join(first)} or {last} and a number; for example accuracy=0.9"
            )
        return target

    def of(self, row: Row) -> float:
        """The row's value of the metric, the greater the better."""
        value: float | None = getattr(row, self.metric)
        if value is None:
            raise ConfigError(
                f"target {self}: the data or the model do not tell the {self.metric}; accuracy needs labels, and both "
                "need a model of several outputs; use max_difference instead"
            )
        return value if _HIGHER_IS_BETTER[self.metric] else -value

    def is_met(self, row: Row) -> bool:
        """Whether the row reaches the target."""
        return self.of(row) >= (self.value if _HIGHER_IS_BETTER[self.metric] else -self.value)

    def __str__(self) -> str:
        return f"{self.metric} {self.value:g}"


@dataclass(frozen=True)
class BudgetCurve:
    """What `edgeseq.budget` measured: ``rows``, and of them ``best``, or ``nearest`` if none is what was asked for.

    ``best`` is the row with the smallest delay that meets the target, the cheaper one of equals; without a target the
    row that comes nearest to the offline model, or is most often right, within the delay. ``verdict`` says it in words.
    """

    model: str
    rows: tuple[Row, ...]
    rate_hz: float | None
    n_sequences: int
    n_samples: int
    n_counted: int
    majority_rate: float | None
    target: Target | None = None
    max_delay_samples: int | None = None

    @property
    def metric(self) -> str:
        """What the curve shows: the target's metric, else accuracy, agreement, or the largest difference."""
        if self.target is not None:
            return self.target.metric
        told = (name for name in ("accuracy", "agreement") if getattr(self.rows[0], name) is not None)
        return next(told, "max_difference")

    @property
    def best(self) -> Row | None:
        """The row to use, or None if none is what was asked for, or nothing was."""
        if self.target is None and self.max_delay_samples is None:
            return None
        rows = self._in_time()
        if self.target is None:
            return max(rows, key=self._goodness, default=None)
        met = [row for row in rows if self.target.is_met(row)]
        return min(met, key=lambda row: (row.delay_samples, row.p50_us), default=None)

    @property
    def nearest(self) -> Row | None:
        """Where there is no best row: the one that comes nearest to what was asked for."""
        if self.best is not None or (self.target is None and self.max_delay_samples is None):
            return None
        if rows := self._in_time():
            return max(rows, key=self._goodness)
        return min(self._streams(), key=lambda row: (row.delay_samples, row.p50_us))

    def _streams(self) -> list[Row]:
        return [row for row in self.rows if row.kind != "offline"]

    def _in_time(self) -> list[Row]:
        most = self.max_delay_samples
        return [row for row in self._streams() if most is None or row.delay_samples <= most]

    def _goodness(self, row: Row) -> tuple[float, float, float]:
        target = self.target or Target(self.metric, 0.0)
        return target.of(row), -row.delay_samples, -row.p50_us

    @property
    def verdict(self) -> str:
        """The choice in words; empty if nothing was asked for."""
        best, nearest = self.best, self.nearest
        within = "" if self.max_delay_samples is None else f" within {self.delay_words(self.max_delay_samples)}"
        if best is not None and self.target is not None:
            return f"the smallest delay that reaches {self.target}{within}: {self._row_words(best)}"
        if best is not None:
            return f"the best{within}: {self._row_words(best)}"
        if nearest is None:
            return ""
        if not self._in_time():
            return f"none comes{within}; the nearest is {self._row_words(nearest)}"
        said = f"none reaches {self.target}{within}; the nearest is {self._row_words(nearest)}"
        offline = next(row for row in self.rows if row.kind == "offline")
        assert self.target is not None
        if not self.target.is_met(offline):
            said += f"; the offline model itself has {self.metric} {_share(getattr(offline, self.metric))}"
        return said

    def _row_words(self, row: Row) -> str:
        late, value = self.delay_words(row.delay_samples), _share(getattr(row, self.metric))
        return f"{row.name}, with {self.metric} {value}, {late} late, {row.p50_us:.3g} µs a sample"

    def delay_words(self, samples: int) -> str:
        """A delay as one says it: in ms or s, or in samples where no rate is known."""
        if self.rate_hz is None:
            return f"{samples} sample{'' if samples == 1 else 's'}"
        seconds = samples / self.rate_hz
        return f"{1000 * seconds:.4g} ms" if seconds < 1 else f"{seconds:.4g} s"

    def to_dict(self) -> dict[str, Any]:
        """Everything, as values that JSON has."""
        return asdict(self) | {
            "metric": self.metric,
            "best": None if self.best is None else asdict(self.best),
            "nearest": None if self.nearest is None else asdict(self.nearest),
            "verdict": self.verdict,
        }

    @classmethod
    def from_dict(cls, told: Mapping[str, Any]) -> BudgetCurve:
        """What `to_dict` gave, or what ``json.loads`` made of it, as a curve again."""
        given = {field.name: told[field.name] for field in fields(cls)}
        target = told["target"]
        return cls(
            **given
            | {
                "rows": tuple(Row(**row) for row in told["rows"]),
                "target": None if target is None else Target(**target),
            }
        )

    def to_json(self) -> str:
        """Everything as one JSON object."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False)

    def save_plot(self, path: str | os.PathLike[str]) -> None:
        """Draw the curve as a ``.png`` or ``.svg`` file.

        Raises:
            MissingDependencyError: matplotlib is not installed.
            ConfigError: the path ends in something else.
        """
        try:
            from edgeseq.budget_curve.plot import save
        except ModuleNotFoundError as error:
            raise MissingDependencyError(
                f'a plot needs the package {error.name!r}; install it with pip install "edgeseq[demos]"'
            ) from error
        save(self, path)

    def __str__(self) -> str:
        """The table, and the verdict below it."""
        return "\n".join([*_table(self), *([self.verdict] if self.verdict else [])])


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}" if value == 0 or value >= 0.001 else f"{value:.1e}"


def _time(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if value == 0 or value >= 99.95 else f"{value:.3g}"


def _table(curve: BudgetCurve) -> list[str]:
    """Aligned lines: two of headings, one for each row, the chosen one marked."""
    ms = curve.rate_hz is not None
    chosen = curve.best or curve.nearest
    heads = [
        ("", ""),
        *((("delay, ms" if ms else "delay, samples"), "slowest"), ("", "mean")),
        *((("share right", ""),) if curve.rows[0].accuracy is not None else ()),
        *((("as offline", ""),) if curve.rows[0].agreement is not None else ()),
        *(("difference", "largest"), ("", "mean")),
        *(("µs a sample", "p50"), ("", "p99")),
        ("CPU s", "an hour" if ms else "a million"),
    ]
    lines = [[first for first, _ in heads], [second for _, second in heads]]
    lines += [
        [
            ("→ " if row == chosen else "  ") + row.name,
            _time(row.delay_ms if ms else row.delay_samples),
            _time(row.mean_delay_ms if ms else row.mean_delay_samples),
            *([] if row.accuracy is None else [_share(row.accuracy)]),
            *([] if row.agreement is None else [f"{row.agreement:.4f}"]),
            *(_share(row.max_difference), _share(row.mean_difference)),
            *(_time(row.p50_us), _time(row.p99_us)),
            _time(row.cpu_s_per_hour if ms else row.cpu_us),
        ]
        for row in curve.rows
    ]
    return _aligned(lines)


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            [line[0].ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(line[1:], widths[1:], strict=True))]
        ).rstrip()
        for line in lines
    ]
