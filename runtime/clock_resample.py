"""From the sensor's times to the model's even grid, by a line between two samples or by the nearer one.

No filter stands before it: of a faster sensor, what is above half the model's rate comes out as something slower
(aliasing). Filter at the sensor, or train on data that were resampled alike.
"""

from __future__ import annotations

from collections.abc import Callable

from edgeseq.runtime.clock import SensorClock
from edgeseq.runtime.clock_state import ClockState, Entry, Tick
from edgeseq.runtime.sample import Values

# A tick within a millionth of a period of a sample is that sample: times are rounded.
_SAME = 1e-6


def linear(before: Entry, after: Entry, weight: float) -> Values:
    """The line between two samples, in float64, rounded once."""
    return tuple(
        (a.astype("float64") * (1 - weight) + b.astype("float64") * weight).astype(a.dtype)
        for a, b in zip(before.values, after.values, strict=True)
    )


def nearest(before: Entry, after: Entry, weight: float) -> Values:
    """The sample that is nearer in time, the earlier one if both are."""
    return before.values if weight <= 0.5 else after.values


RESAMPLERS: dict[str, Callable[[Entry, Entry, float], Values]] = {"linear": linear, "nearest": nearest}


class Resampler:
    """Whole samples in order in, ticks out: the samples themselves, if the clock does not resample."""

    def __init__(self, clock: SensorClock) -> None:
        self._between = None if clock.resample is None else RESAMPLERS[clock.resample]
        self._rate_hz = clock.rate_hz

    def push(self, state: ClockState, entry: Entry) -> None:
        """Append the ticks that are due to ``state.ready``."""
        if self._between is None:
            state.counts.ticks += 1
            state.ready.append(Tick(entry.values, entry.time_s, entry.flagged, entry.real))
            return
        assert entry.time_s is not None
        if state.last is None or state.first_s is None:
            state.first_s = entry.time_s
            self._append(state, Tick(entry.values, entry.time_s, entry.flagged, entry.real))
            return
        before = state.last
        assert before.time_s is not None
        while (time_s := state.first_s + state.n_ticks / self._rate_hz) <= entry.time_s + _SAME / self._rate_hz:
            if entry.time_s - time_s <= _SAME / self._rate_hz:
                tick = Tick(entry.values, time_s, entry.flagged, entry.real)
            else:
                weight = (time_s - before.time_s) / (entry.time_s - before.time_s)
                values = self._between(before, entry, weight)
                tick = Tick(values, time_s, before.flagged or entry.flagged)
            self._append(state, tick)

    def _append(self, state: ClockState, tick: Tick) -> None:
        state.counts.ticks += 1
        state.n_ticks += 1
        state.ready.append(tick)
