"""Fills missing values, channel by channel: of samples that miss some, and of those that miss all, in gaps."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from edgeseq.errors import NonFiniteError
from edgeseq.runtime.clock_resample import Resampler
from edgeseq.runtime.clock_state import ClockState, Entry
from edgeseq.runtime.sample import Values


class FillMissing:
    """Samples in order in, whole samples in order out. A line waits for its other end, for ``longest`` samples."""

    def __init__(self, longest: int, resampler: Resampler) -> None:
        self._longest = longest
        self._resampler = resampler

    def push(self, state: ClockState, entry: Entry) -> None:
        """Take the next sample."""
        if entry.missing is None and not state.pending:
            self._pass(state, entry)
            return
        state.pending.append(entry)
        self._go_on(state, at_end=False)

    def check_wait(self, state: ClockState, where: object) -> None:
        """Check that no channel has been waited for for too long, once all samples that can go on did.

        Raises:
            NonFiniteError: one has.
        """
        if not state.pending:
            return
        for_long = state.pending[-1].slot - state.pending[0].slot
        if for_long > self._longest:
            raise NonFiniteError(
                f"{where}: expected a value of every channel within {self._longest} samples, got none of one for "
                f"{for_long}; look at the sensor, choose missing='hold', or make jump_s longer"
            )

    def finish(self, state: ClockState) -> None:
        """Wait for no other end: what is missing now is held."""
        self._go_on(state, at_end=True)

    def _go_on(self, state: ClockState, *, at_end: bool) -> None:
        while state.pending:
            done = self._fill_first(state, at_end=at_end)
            if done is None:
                return
            entry = state.pending.pop(0)
            if done:
                self._pass(state, entry)
            else:  # nothing to hold
                state.counts.rejected += entry.real

    def _fill_first(self, state: ClockState, *, at_end: bool) -> bool | None:
        """Fill the first sample: True if it is whole now, False if it never will be, None if it must wait."""
        first = state.pending[0]
        if first.missing is None:
            return True
        if first.fill == "hold":
            if state.last is None:
                return False
            held = tuple(
                np.where(m, h, x) for x, m, h in zip(first.values, first.missing, state.last.values, strict=True)
            )
            state.pending[0] = replace(first, values=held, missing=None)
            return True
        for port, missing in enumerate(first.missing):
            for channel in np.flatnonzero(missing).tolist():
                end = _next_known(state.pending, port, channel)
                if end is None and not at_end:
                    return None
                if end is None and state.last is None:
                    return False
                _draw(state, port, channel, end)
        state.pending[0] = replace(state.pending[0], missing=None)
        return True

    def _pass(self, state: ClockState, entry: Entry) -> None:
        counts = state.counts
        counts.used += entry.real
        counts.filled += not entry.real
        counts.repaired += entry.repaired
        self._resampler.push(state, entry)
        state.last = entry


def _next_known(entries: list[Entry], port: int, channel: int) -> int | None:
    """Which of the samples after the first knows the channel's value."""
    for i in range(1, len(entries)):
        missing = entries[i].missing
        if missing is None or not missing[port].flat[channel]:
            return i
    return None


def _draw(state: ClockState, port: int, channel: int, end: int | None) -> None:
    """A line through a channel, from the last sample to the one at ``end``; level where an end is not known."""
    entries, last = state.pending, state.last
    to = None if end is None else float(entries[end].values[port].flat[channel])
    start = to if last is None else float(last.values[port].flat[channel])
    assert start is not None
    for i in range(1 if end is None else end):
        entry = entries[i]
        if entry.missing is None or not entry.missing[port].flat[channel]:
            continue  # it is on a line already
        if entry.fill == "hold":
            break  # it repeats what is before it, and the next line begins there
        value = start
        if to is not None and last is not None and end is not None:
            value = start + (to - start) * (entry.slot - last.slot) / (entries[end].slot - last.slot)
        values, missing = _with(entry.values, port, channel, value), _with(entry.missing, port, channel, False)
        entries[i] = replace(entry, values=values, missing=missing)


def _with(values: Values, port: int, channel: int, value: float | bool) -> Values:
    changed = values[port].copy()
    changed.flat[channel] = value
    return (*values[:port], changed, *values[port + 1 :])
