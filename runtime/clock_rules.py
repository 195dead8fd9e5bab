"""What a gap and a jump of the clock do: one function each, by the name that the user chose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgeseq.errors import ClockJumpError, GapError
from edgeseq.runtime.clock_state import ClockState, Entry, Tick
from edgeseq.runtime.sample import Sample

if TYPE_CHECKING:
    from edgeseq.runtime.clock_engine import ClockEngine


@dataclass(frozen=True, slots=True)
class Gap:
    """So many samples are missing before ``after``. ``where`` is what the engine was at when it gave them up."""

    after: Entry
    n_missing: int
    where: object


GapRule = Callable[["ClockEngine", ClockState, Gap], None]
"""(engine, state, gap) -> None; what stands in for it goes to the filling."""
JumpRule = Callable[["ClockEngine", ClockState, Sample], int]
"""(engine, state, the sample that jumped) -> its place."""


def fill_gap(engine: ClockEngine, state: ClockState, gap: Gap) -> None:
    """Put in samples that are missing as a whole, at times evenly between those beside the gap."""
    after, n_missing = gap.after, gap.n_missing
    values = tuple(np.zeros_like(x) for x in after.values)
    missing = tuple(np.ones(x.shape, np.bool_) for x in after.values)
    before_s, after_s = state.tail_s, after.time_s
    for i in range(1, n_missing + 1):
        time_s = None
        if before_s is not None and after_s is not None:
            time_s = before_s + (after_s - before_s) * i / (n_missing + 1)
        slot = after.slot - n_missing - 1 + i
        entry = Entry(slot, time_s, values, missing, engine.clock.gap, real=False, flagged=True)
        engine.fill.push(state, entry)


def start_anew(engine: ClockEngine, state: ClockState, _gap: Gap) -> None:
    """End the sequence before the gap; another starts behind it."""
    engine.fill.finish(state)
    reset(state)


def refuse_gap(_engine: ClockEngine, _state: ClockState, gap: Gap) -> None:
    """Raise."""
    raise GapError(
        f"{gap.where}: expected the next sample, got one behind a gap of {gap.n_missing}; reset() the stream and feed "
        "it again, or choose what stands in for a gap"
    )


def reset(state: ClockState) -> None:
    """Let the model end its sequence and start anew, if it has seen any of it."""
    if state.last is not None:
        state.ready.append(Tick(None))
        state.counts.resets += 1
    state.last = state.first_s = None
    state.n_ticks = 0


def jump_anew(engine: ClockEngine, state: ClockState, sample: Sample) -> int:
    """End the sequence before the jump, and count places and time anew."""
    engine.finish(state, sample)
    reset(state)
    order = state.order
    state.forget()
    state.order = order
    return 0


def refuse_jump(engine: ClockEngine, state: ClockState, sample: Sample) -> int:
    """Raise."""
    raise ClockJumpError(
        f"{sample}: expected a place within {engine.longest_gap} samples of the newest, whose timestamp is "
        f"{state.newest_s} and whose place by {state.order} is near {state.anchor}; drop it, reset() after a restart "
        "of the sensor, or choose what a jump does"
    )


def rebase(engine: ClockEngine, state: ClockState, sample: Sample) -> int:
    """Take the sample as the next one, and count places and time from it on."""
    engine.release(state, sample, force=True)
    assert state.newest is not None
    slot = state.newest + 1
    if sample.timestamp_s is not None and state.tail_s is not None:
        shift = sample.timestamp_s - 1 / engine.clock.source_hz - state.tail_s
        state.tail_s += shift
        state.first_s = None if state.first_s is None else state.first_s + shift
        state.pending = [_shifted(entry, shift) for entry in state.pending]
        state.last = None if state.last is None else _shifted(state.last, shift)
    state.anchor = state.newest_s = None
    return slot


def _shifted(entry: Entry, shift_s: float) -> Entry:
    time_s = None if entry.time_s is None else entry.time_s + shift_s
    return Entry(
        *(entry.slot, time_s, entry.values, entry.missing, entry.fill, entry.real, entry.repaired, entry.flagged)
    )


GAPS: dict[str, GapRule] = {"hold": fill_gap, "interpolate": fill_gap, "reset": start_anew, "raise": refuse_gap}
JUMPS: dict[str, JumpRule] = {"reset": jump_anew, "raise": refuse_jump, "rebase": rebase}
