"""What a sensor clock remembers of one stream: a value, copied before it is moved, so that an error changes nothing."""

from __future__ import annotations

from dataclasses import dataclass, field

from edgeseq.runtime.clock_counters import Counters
from edgeseq.runtime.sample import Values


@dataclass(slots=True, eq=False)
class Entry:
    """A sample in its place, or one that is made up. Never changed, but replaced."""

    slot: int
    time_s: float | None
    values: Values
    missing: Values | None = None  # where values are missing, one mask for each input
    fill: str = ""  # how they are to be filled
    real: bool = True  # it was sent
    repaired: bool = False  # values of it were missing
    flagged: bool = False  # predictions that see it are "after a gap"


@dataclass(slots=True, eq=False)
class Tick:
    """One sample for the model. A tick without values is a reset: the sequence ends, and another one starts."""

    values: Values | None
    time_s: float | None = None
    flagged: bool = False
    real: bool = False  # it was sent as it is


@dataclass(slots=True, eq=False)
class ClockState:
    """The clock of one stream. Its size is bounded by ``grace`` and ``longest_gap`` of the settings.

    Slots are the numbers of places. ``anchor`` is the sequence number or the timestamp that belongs to
    ``anchor_slot``. Slots before ``next_slot`` are past; bit i of ``seen`` says whether a sample took slot
    ``next_slot - 1 - i``. ``waiting`` holds samples behind a hole; ``pending`` those in order whose missing values are
    not known yet; ``last`` is the last one that went on. ``first_s`` and ``n_ticks`` are the grid of resampling.
    """

    order: str | None = None
    anchor: float | int | None = None
    anchor_slot: int = 0
    newest: int | None = None
    newest_s: float | None = None
    next_slot: int | None = None
    started: bool = False
    seen: int = 0
    tail_s: float | None = None  # the timestamp of the last sample that left ``waiting``
    first_s: float | None = None
    n_ticks: int = 0
    last: Entry | None = None
    waiting: dict[int, Entry] = field(default_factory=dict)
    pending: list[Entry] = field(default_factory=list)
    ready: list[Tick] = field(default_factory=list)
    counts: Counters = field(default_factory=Counters)

    def copy(self) -> ClockState:
        """A state that may be moved while this one stays."""
        return ClockState(
            *(self.order, self.anchor, self.anchor_slot, self.newest, self.newest_s, self.next_slot, self.started),
            *(self.seen, self.tail_s, self.first_s, self.n_ticks, self.last),
            *(self.waiting.copy(), self.pending.copy(), self.ready.copy(), self.counts.copy()),
        )

    @property
    def n_waiting(self) -> int:
        """How many samples that were sent wait here."""
        return len(self.waiting) + sum(entry.real for entry in self.pending)

    def forget(self) -> None:
        """Forget time and places; only counts and what is ready stay."""
        new = ClockState(ready=self.ready, counts=self.counts)
        for name in self.__slots__:
            setattr(self, name, getattr(new, name))
