"""What a sensor clock has to give, written down plainly: it knows all arrivals, and is slow."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from edgeseq.runtime.clock import SensorClock
from edgeseq.runtime.clock_state import Tick

Array = np.ndarray[Any, Any]


@dataclass
class Sent:
    """One arrival: its place, and its values, NaN where they are missing."""

    slot: int
    values: Array


@dataclass
class Expected:
    """The sequences (values, flags), and the counts of arrivals."""

    sequences: list[list[tuple[Array, bool]]]
    used: int
    late: int
    duplicates: int
    rejected: int


def run(clock: SensorClock, arrivals: list[Sent]) -> Expected:
    """The result of all arrivals, the end of the feed included. Without resampling, jumps and policies that raise."""
    taken: dict[int, Array] = {}
    late = duplicates = rejected = 0
    following: int | None = None  # the next place that is to go on
    breaks: set[int] = set()
    for sent in arrivals:
        if clock.missing == "reject" and np.isnan(sent.values).any():
            rejected += 1
        elif sent.slot in taken:
            duplicates += 1
        elif following is not None and sent.slot < following:
            late += 1
        else:
            taken[sent.slot] = sent.values
        following = _given_up(taken, following, clock.grace)
    if not taken:
        return Expected([], 0, late, duplicates, rejected)
    slots = sorted(taken)
    if clock.gap == "reset":
        breaks = {b for a, b in pairwise(slots) if b - a > 1}
    parts, start = [], slots[0]
    for stop in [*sorted(breaks), slots[-1] + 1]:
        parts.append({slot: taken[slot] for slot in slots if start <= slot < stop})
        start = stop
    filled = [_fill(clock, part) for part in parts]
    lost = sum(n for _, n in filled)
    sequences = [sequence for sequence, _ in filled if sequence]
    return Expected(sequences, len(taken) - lost, late, duplicates, rejected + lost)


def _given_up(taken: dict[int, Array], following: int | None, grace: int) -> int | None:
    """A hole is given up once there is a sample ``grace`` places after the one behind the hole."""
    while True:
        ahead = sorted(slot for slot in taken if following is None or slot >= following)
        if not ahead or (ahead[0] != following and ahead[-1] - ahead[0] < grace):
            return following
        following = ahead[0] + 1


def _fill(clock: SensorClock, part: dict[int, Array]) -> tuple[list[tuple[Array, bool]], int]:
    """Whole samples and their flags; and how many were left out at the start, for want of a value."""
    first, last = min(part), max(part)
    n_channels = len(part[first])
    sequence: list[tuple[Array, bool]] = []
    lost = 0
    for slot in range(first, last + 1):
        values = part.get(slot, np.full(n_channels, np.nan))
        rule = clock.missing if slot in part else clock.gap
        whole = values.astype(np.float64)
        for c in np.flatnonzero(np.isnan(values)):
            known = [s for s in range(slot + 1, last + 1) if s in part and not np.isnan(part[s][c])]
            if rule == "interpolate" and known:
                end = float(part[known[0]][c])
                start = float(sequence[-1][0][c]) if sequence else end
                whole[c] = start + (end - start) / (known[0] - slot + 1) if sequence else end
            elif sequence:
                whole[c] = sequence[-1][0][c]
        if np.isnan(whole).any():
            lost += slot in part
        else:
            sequence.append((whole.astype(np.float32), bool(np.isnan(values).any())))
    return sequence, lost


def split(ticks: list[Tick]) -> list[list[Tick]]:
    """The ticks of each sequence."""
    parts: list[list[Tick]] = [[]]
    for tick in ticks:
        if tick.values is None:
            parts.append([])
        else:
            parts[-1].append(tick)
    return parts
