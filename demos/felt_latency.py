"""What a person feels of a labelling method: its figures, as pure functions of labels and times.

Owns the queue that turns measured compute into moments on a clock, the felt latency, and the counts beside it. It
refuses nothing and reads no clock: what comes in was measured elsewhere, by `demos.replay`.

Words: the *truth* is the label of every sample. A *change* is a sample whose truth differs from the sample before it;
the first sample of a session is none. Sample i of a session arrives at ``i / rate_hz`` seconds.

Invariant: no answer is emitted before its last needed sample has arrived, nor before the answer in front of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

HOLD_S = 0.5
"""A label counts as found when it holds this long: a shorter one is a flicker that nobody would trust."""


def queue_ends(ready_s: Floats, compute_s: Floats) -> Floats:
    """When each call of a single server ends that takes its calls in order, one at a time.

    ``end[k] = max(ready[k], end[k - 1]) + compute[k]``

    Shapes:
        two of (N,) -> (N,). `ready_s[k]` is when the last input of call k has arrived.

    Units:
        seconds on one clock.

    Example:
        >>> queue_ends(np.array([0.0, 1.0, 2.0]), np.array([0.5, 1.5, 0.25])).tolist()
        [0.5, 2.5, 2.75]

    Source: Lindley, "The theory of queues with a single server", 1952, https://doi.org/10.1017/S0305004100027638.
    """
    ends, free = np.empty(len(ready_s)), -np.inf
    for k, (ready, compute) in enumerate(zip(ready_s.tolist(), compute_s.tolist(), strict=True)):
        free = max(ready, free) + compute
        ends[k] = free
    return ends


def change_points(truth: NDArray[Any]) -> Ints:
    """The samples at which the label changes; (T,) -> (M,).

    Example:
        >>> change_points(np.array([4, 4, 1, 1, 4])).tolist()
        [2, 4]
    """
    return np.flatnonzero(truth[1:] != truth[:-1]) + 1


def felt_latencies(
    truth: NDArray[Any], labels: NDArray[Any], emitted_at_s: Floats, *, rate_hz: float, hold_s: float = HOLD_S
) -> Floats:
    """How long after each true change a person sees the right label, and sees it stay.

    For a change at sample c to label L, with the next change (or the end) at c', it is the first sample i >= c for
    which ``labels[i : i + hold]`` are all L and ``i + hold <= c'``. The latency is ``emitted_at_s[i] - c / rate_hz``.
    A change without such a sample was never found: NaN.

    Shapes:
        three of (T,) -> (M,), one value per change of `truth`.

    Units:
        seconds; a hold is ``round(hold_s * rate_hz)`` samples, at least one.

    Example:
        >>> truth = np.array([0, 0, 0, 1, 1, 1, 1, 0, 0])
        >>> labels = np.array([0, 0, 0, 0, 1, 1, 1, 1, 1])
        >>> felt_latencies(truth, labels, np.arange(9) / 10 + 0.25, rate_hz=10.0, hold_s=0.2).round(3).tolist()
        [0.35, nan]
    """
    hold = max(1, round(hold_s * rate_hz))
    starts = change_points(truth)
    ends = np.append(starts, len(truth))[1:]
    latencies = np.full(len(starts), np.nan)
    for k, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if end - start < hold:
            continue
        right = (labels[start:end] == truth[start]).astype(np.int64)
        # A window of `hold` samples is all right when its sum is `hold`.
        held = np.flatnonzero(np.convolve(right, np.ones(hold, np.int64), "valid") == hold)
        if len(held):
            found = start + held[0]
            latencies[k] = emitted_at_s[found] - start / rate_hz
    return latencies


def flips_per_hour(labels: Sequence[NDArray[Any]], *, rate_hz: float) -> float:
    """Label changes per hour of data, over sessions that are each (T_i,); joins between sessions count for nothing.

    Example:
        >>> flips_per_hour([np.array([0, 1, 1, 0]), np.array([1, 1])], rate_hz=6 / 3600)
        2.0
    """
    hours = sum(map(len, labels)) / (rate_hz * 3600)
    return sum(len(change_points(session)) for session in labels) / hours


def quantile(values: Floats, q: float) -> float | None:
    """The q-quantile, or None where no value can lie beyond it: p1 and p99 take 100 values. The median takes one.

    Example:
        >>> quantile(np.arange(101.0), 0.99), quantile(np.arange(50.0), 0.99), quantile(np.array([3.0]), 0.5)
        (99.0, None, 3.0)
    """
    beyond = len(values) * min(q, 1 - q)
    if len(values) == 0 or (q != 0.5 and beyond < 1 - 1e-9):  # 1 - 0.99 is a little less than 0.01
        return None
    return float(np.quantile(values, q))


def shown_at(labels: NDArray[Any], emitted_at_s: Floats, moments_s: Floats) -> Ints:
    """The label on a person's screen at each moment: the newest one emitted by then, or -1 before the first.

    Shapes:
        (T,), (T,) ascending, (M,) -> (M,)

    Example:
        >>> shown_at(np.array([5, 6, 7]), np.array([1.0, 2.0, 2.0]), np.array([0.5, 1.0, 1.9, 2.0])).tolist()
        [-1, 5, 5, 7]
    """
    newest = np.searchsorted(emitted_at_s, moments_s, side="right") - 1
    return np.where(newest < 0, -1, labels[np.maximum(newest, 0)])


def runs(values: NDArray[Any]) -> list[tuple[int, int, int]]:
    """The stretches of equal values as (start, end, value), end excluded.

    Example:
        >>> runs(np.array([3, 3, 5]))
        [(0, 2, 3), (2, 3, 5)]
    """
    edges = [0, *change_points(values).tolist(), len(values)]
    return [(a, b, int(values[a])) for a, b in pairwise(edges) if a < b]
