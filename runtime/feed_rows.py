"""Which sample each row of a model belongs to, and what is known of it: its time, warm-up, gaps, label."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from edgeseq.errors import ConfigError
from edgeseq.model_file import Port, Timing
from edgeseq.runtime.clock_state import Tick
from edgeseq.runtime.inputs import Array
from edgeseq.runtime.labels import LabelRule, smooth
from edgeseq.runtime.model import Model
from edgeseq.runtime.prediction import Prediction

_NEVER = -1


@dataclass(slots=True, eq=False)
class RowState:
    """How far a stream's rows have come. It holds the times of samples whose rows are still to come, no others.

    ``position`` and ``rows`` (of each output) count in the sequence that is under way, ``samples_before`` and
    ``rows_before`` those of the sequences before it. ``times`` are of the samples from ``times_first`` on; ``flagged``
    are the samples among them that predictions after a gap see, and ``flagged_before`` the last one before them.
    """

    rows: list[int]
    rows_before: list[int]
    memories: list[list[Array]]
    position: int = 0
    samples_before: int = 0
    times: list[float | None] = field(default_factory=list)  # mostly one: an empty deque takes ten times as much
    times_first: int = 0
    flagged: list[int] = field(default_factory=list)
    flagged_before: int = _NEVER
    flag_next: bool = False


class _Head:
    """One output of the model."""

    def __init__(self, port: Port, rules: tuple[LabelRule, ...], warm_up: int | None) -> None:
        assert port.timing is not None
        self.port = port
        self.timing: Timing = port.timing
        self.samples, self.rows = port.timing.hop
        self.past, self.future = port.timing.receptive_field
        self.warm_up = (self.past or 0) if warm_up is None else warm_up
        self.names = port.names if port.names is not None and port.shape == (len(port.names),) else None
        self.rules = rules if self.names is not None else ()

    def memories(self) -> list[Array]:
        return [rule.start(len(self.names or ())) for rule in self.rules]


class RowRecords:
    """Makes the predictions of one model's streams; the state is the caller's."""

    def __init__(self, model: Model, rules: Sequence[LabelRule], warm_up: int | None, rate_hz: float) -> None:
        self._heads = [_Head(port, tuple(rules), warm_up) for port in model.description.outputs]
        self._rate_hz = rate_hz
        if rules and not any(head.rules for head in self._heads):
            raise ConfigError(
                f"feeder: expected a model that names its outputs, to make labels steadier, got {model.name!r}; export "
                "it with label_names"
            )

    def start(self) -> RowState:
        """The state of a new stream."""
        heads = self._heads
        return RowState([0] * len(heads), [0] * len(heads), [head.memories() for head in heads])

    def restart(self, state: RowState) -> None:
        """The sequence has ended; numbers go on."""
        new = self.start()
        new.samples_before = state.samples_before + state.position
        new.rows_before = [a + b for a, b in zip(state.rows_before, state.rows, strict=True)]
        for name in state.__slots__:
            setattr(state, name, getattr(new, name))

    def took(self, state: RowState, tick: Tick) -> None:
        """The model has taken one more sample."""
        if tick.flagged or state.flag_next:
            state.flagged.append(state.position)
            state.flag_next = False
        state.times.append(tick.time_s)
        state.position += 1

    def records(self, state: RowState, stream_id: str, given: Any, *, at_end: bool = False) -> list[Prediction]:
        """What a ``step`` or a ``flush`` gave, as predictions."""
        heads, made = self._heads, []
        for i, head in enumerate(heads):
            y = given if len(heads) == 1 else given[head.port.name]
            if y is None:
                continue
            rows = y[None] if y.ndim == len(head.port.shape) else y
            for j, row in enumerate(rows):
                is_last = at_end and j == len(rows) - 1
                made.append(self._record(state, stream_id, i, row, provisional=not is_last))
        self._forget_what_is_done(state)
        return made

    def _record(self, state: RowState, stream_id: str, i: int, row: Array, *, provisional: bool) -> Prediction:
        head, number = self._heads[i], state.rows[i]
        state.rows[i] = number + 1
        own, beyond = divmod(number * head.samples, head.rows)
        label = score = None
        if head.names is not None:
            which, score = smooth(head.rules, state.memories[i], row)
            label = head.names[which]
        return Prediction(
            stream_id,
            index=state.rows_before[i] + number,
            sample=state.samples_before + own,
            time_s=self._time(state, own, beyond / head.rows),
            output=row,
            output_name=head.port.name,
            label=label,
            score=score,
            warm_up=own < head.warm_up,
            after_gap=_sees_flag(state, own, head),
            provisional=provisional and head.timing.law == "prefix",
        )

    def _time(self, state: RowState, own: int, beyond: float) -> float | None:
        """The time of a sample; of a row between samples, or after the last one, by the rate."""
        there = min(own, state.position - 1)
        time_s = state.times[there - state.times_first]
        if time_s is None or (own == there and not beyond):
            return time_s
        return time_s + (own - there + beyond) / self._rate_hz

    def _forget_what_is_done(self, state: RowState) -> None:
        needed = min(rows * head.samples // head.rows for rows, head in zip(state.rows, self._heads, strict=True))
        first = min(needed, state.position - 1)
        if state.times_first < first:
            del state.times[: first - state.times_first]
            state.times_first = first
        while state.flagged and state.flagged[0] < state.times_first:
            state.flagged_before = state.flagged.pop(0)


def _sees_flag(state: RowState, own: int, head: _Head) -> bool:
    if state.flagged_before != _NEVER and (head.past is None or state.flagged_before >= own - head.past):
        return True
    return any(
        (head.past is None or flagged >= own - head.past) and (head.future is None or flagged <= own + head.future)
        for flagged in state.flagged
    )
