"""Moves the clock of a stream: finds each sample's place, waits out the grace, fills gaps, and gives even ticks.

Invariant: received = used + late + duplicates + rejected + waiting, and a tick whose sample came in time, whole, and
without resampling holds exactly the values that were sent.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgeseq.errors import ConfigError, InputError
from edgeseq.model_file import Port
from edgeseq.runtime.clock import SensorClock
from edgeseq.runtime.clock_fill import FillMissing
from edgeseq.runtime.clock_resample import Resampler
from edgeseq.runtime.clock_rules import GAPS, JUMPS, Gap
from edgeseq.runtime.clock_state import ClockState, Entry
from edgeseq.runtime.sample import Sample, SampleReader

# Timestamps are followed by a sixteenth of what each is off: jitter averages out, and drift of 1 % costs 0.15 periods.
_FOLLOWED = 1 / 16
# Of so many past places it is known whether a sample took them; what comes later still is counted as late.
_REMEMBERED = (1 << 256) - 1
_LARGEST = 2**53  # of a timestamp or a sequence number: both are exact up to here


class ClockEngine:
    """Turns samples into ticks, of all streams of one model; the state is the caller's.

    Example:
        >>> engine = ClockEngine(SensorClock(rate_hz=50, gap="hold"), [Port("x", "float32", (1,))])
        >>> state = ClockState()
        >>> for number in (0, 1, 3):
        ...     engine.take(state, Sample("pump-7", [number], sequence=number))
        >>> [float(tick.values[0][0]) for tick in state.ready]
        [0.0, 1.0, 1.0, 3.0]
        >>> print(state.counts)
        used 3, gaps 1, filled 1, ticks 4
    """

    def __init__(self, clock: SensorClock, ports: Sequence[Port]) -> None:
        lines = [name for name in ("gap", "missing") if getattr(clock, name) == "interpolate"]
        lines += ["resample"] if clock.resample == "linear" else []
        tokens = [port.name for port in ports if not port.dtype.startswith("float")]
        if lines and tokens:
            raise ConfigError(
                f"clock: between the tokens of input {tokens[0]!r} there is no line, but {lines[0]}="
                f"{getattr(clock, lines[0])!r} draws one; choose 'hold' (for resample, 'nearest')"
            )
        self.clock = clock
        self.grace, self.longest_gap = clock.grace, clock.longest_gap
        self._period_s = 1 / clock.source_hz
        self._reader = SampleReader(ports, may_miss=clock.missing != "reject")
        self.fill = FillMissing(self.longest_gap, Resampler(clock))

    def take(self, state: ClockState, sample: Sample) -> None:
        """Take one sample; what is due for the model is appended to ``state.ready``.

        Raises:
            InputError, ShapeError, DTypeError, NonFiniteError, GapError, ClockJumpError: the sample was not taken, and
                the state must be thrown away.
        """
        values, missing = self._reader.read(sample)
        self._check_place(state, sample)
        slot, jumped = self._slot(state, sample), False
        if state.newest is not None and self._is_jump(state, slot, sample):
            state.counts.jumps += 1
            slot, jumped = JUMPS[self.clock.jump](self, state, sample), True
        if slot in state.waiting:
            state.counts.duplicates += 1
            return
        if state.next_slot is not None and slot < state.next_slot:
            if state.seen >> (state.next_slot - 1 - slot) & 1:
                state.counts.duplicates += 1
            else:
                state.counts.late += 1
            return
        if self.clock.resample is not None:
            self._check_rising(state, slot, sample)
        if state.newest is None or slot > state.newest:
            self._follow(state, slot, sample)
        else:
            state.counts.reordered += 1
        state.waiting[slot] = Entry(
            *(slot, sample.timestamp_s, values, missing, self.clock.missing),
            repaired=missing is not None,
            flagged=missing is not None or (jumped and self.clock.jump == "rebase"),
        )
        self.release(state, sample, force=state.order == "arrival")
        self.fill.check_wait(state, sample)

    def finish(self, state: ClockState, where: object) -> None:
        """Wait no longer for anything: what waits is given out, and what is missing at the end is held.

        Raises:
            GapError: there is a hole between samples that wait, and the clock is to raise.
        """
        self.release(state, where, force=True)
        self.fill.finish(state)

    def start_anew(self, state: ClockState) -> None:
        """Let the samples that wait open a new sequence. What was taken before is still known as such."""
        for entry in state.pending:
            if entry.real:
                state.waiting[entry.slot] = entry
        if state.pending and state.next_slot is not None:
            first = state.pending[0].slot
            state.seen >>= state.next_slot - first
            state.next_slot = first
        state.pending, state.last, state.first_s, state.n_ticks = [], None, None, 0
        state.started = False

    def release(self, state: ClockState, where: object, *, force: bool) -> None:
        """Let go on what waits for nothing."""
        waiting = state.waiting
        while waiting:
            lowest = min(waiting) if len(waiting) > 1 else next(iter(waiting))
            assert state.newest is not None
            if not state.started:
                if not force and state.newest - lowest < self.grace:
                    return
                if state.next_slot is not None:
                    state.seen = state.seen << (lowest - state.next_slot) & _REMEMBERED
                state.next_slot, state.started = lowest, True
            assert state.next_slot is not None
            hole = lowest - state.next_slot
            if hole:
                if not force and state.newest - lowest < self.grace:
                    return
                state.counts.gaps += 1
                GAPS[self.clock.gap](self, state, Gap(waiting[lowest], hole, where))
                state.seen = state.seen << hole & _REMEMBERED
            entry = waiting.pop(lowest)
            state.next_slot, state.tail_s = lowest + 1, entry.time_s
            state.seen = (state.seen << 1 | 1) & _REMEMBERED
            self.fill.push(state, entry)

    def _check_place(self, state: ClockState, sample: Sample) -> None:
        """Check that the sample carries what places are found by."""
        number, time_s = sample.sequence, sample.timestamp_s
        if number is not None and not (type(number) is int and 0 <= number <= _LARGEST):
            raise InputError(f"{sample}: expected a sequence number from 0 to 2^53, got {number!r}; give an int")
        if time_s is not None and not (
            isinstance(time_s, (int, float)) and not isinstance(time_s, bool) and abs(time_s) <= _LARGEST
        ):
            raise InputError(f"{sample}: expected a timestamp in seconds up to 2^53, got {time_s!r}; give a number")
        modulus = self.clock.sequence_modulus
        if number is not None and modulus is not None and number >= modulus:
            raise InputError(f"{sample}: expected a sequence number below the sequence_modulus {modulus}, got {number}")
        has = "sequence" if number is not None else "timestamp" if time_s is not None else "arrival"
        expected = self.clock.order_by or state.order or has
        carried = {"sequence": number is not None, "timestamp": time_s is not None, "arrival": True}
        if not carried[expected] or (expected == "arrival" != has and self.clock.order_by is None):
            raise InputError(
                f"{sample}: expected a place by {expected}, as the clock or the samples before say, got one by {has}; "
                "send the same with every sample, or set order_by"
            )
        if self.clock.resample is not None and time_s is None:
            raise InputError(f"{sample}: expected a timestamp, since the clock resamples, got none; send timestamp_s")
        state.order = expected

    def _slot(self, state: ClockState, sample: Sample) -> int:
        """The sample's place."""
        if state.newest is None:
            return 0
        if state.order == "arrival":
            return state.newest + 1
        assert state.anchor is not None
        if state.order == "sequence":
            assert sample.sequence is not None
            off = sample.sequence - int(state.anchor)
            if (modulus := self.clock.sequence_modulus) is not None:
                off = (off + modulus // 2) % modulus - modulus // 2
            return state.anchor_slot + off
        assert sample.timestamp_s is not None
        return state.anchor_slot + round((sample.timestamp_s - state.anchor) * self.clock.source_hz)

    def _is_jump(self, state: ClockState, slot: int, sample: Sample) -> bool:
        assert state.newest is not None
        off = slot - state.newest
        if self.clock.resample is not None and state.newest_s is not None and sample.timestamp_s is not None:
            time_off = (sample.timestamp_s - state.newest_s) / self._period_s
            if not -self.longest_gap - 1 <= time_off <= self.longest_gap + 2:
                return True
        return off < -self.longest_gap or off - 1 > self.longest_gap

    def _check_rising(self, state: ClockState, slot: int, sample: Sample) -> None:
        """Check that time goes forward from place to place: resampling draws lines between them."""
        before = [other for other in state.waiting if other < slot]
        after = [other for other in state.waiting if other > slot]
        low = state.waiting[max(before)].time_s if before else state.tail_s
        high = state.waiting[min(after)].time_s if after else math.inf
        assert sample.timestamp_s is not None
        assert high is not None
        if not (-math.inf if low is None else low) < sample.timestamp_s < high:
            raise InputError(
                f"{sample}: expected a timestamp between those of the samples beside it, {low} and {high}; "
                "timestamps must rise where the clock resamples"
            )

    def _follow(self, state: ClockState, slot: int, sample: Sample) -> None:
        """Let places be counted from the newest sample."""
        time_s = sample.timestamp_s
        if state.order == "sequence":
            state.anchor = sample.sequence
        elif state.order == "timestamp":
            assert time_s is not None
            if state.anchor is None:
                state.anchor = time_s
            else:
                due = state.anchor + (slot - state.anchor_slot) * self._period_s
                state.anchor = due + (time_s - due) * _FOLLOWED
        state.anchor_slot = state.newest = slot
        state.newest_s = time_s
