from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demos import felt_latency as felt

times = st.lists(st.floats(0, 100), min_size=1, max_size=40)


def slow_queue(ready_s: list[float], compute_s: list[float]) -> list[float]:
    """A call ends after the longest chain of calls that waited for each other, whichever began it."""
    return [max(ready_s[first] + sum(compute_s[first : k + 1]) for first in range(k + 1)) for k in range(len(ready_s))]


def slow_latencies(truth: list[int], labels: list[int], emitted: list[float], rate_hz: float, hold: int) -> list[float]:
    out = []
    for c in range(1, len(truth)):
        if truth[c] == truth[c - 1]:
            continue
        end = c
        while end < len(truth) and truth[end] == truth[c]:
            end += 1
        latency = math.nan
        for i in range(c, end - hold + 1):
            if all(labels[j] == truth[c] for j in range(i, i + hold)):
                latency = emitted[i] - c / rate_hz
                break
        out.append(latency)
    return out


@given(st.lists(st.tuples(st.floats(0, 10), st.floats(0, 10)), min_size=1, max_size=40))
def test_queue_equals_the_longest_chain_of_calls(calls: list[tuple[float, float]]) -> None:
    ready = np.cumsum([gap for gap, _ in calls])
    compute = np.array([work for _, work in calls])
    got = felt.queue_ends(ready, compute)
    np.testing.assert_allclose(got, slow_queue(ready.tolist(), compute.tolist()), atol=1e-9)
    assert (got >= ready).all()
    assert (np.diff(got) >= 0).all()


def test_queue_of_a_slow_server_falls_behind_by_the_same_time_every_second() -> None:
    rate_hz, compute = 50.0, 0.1
    ends = felt.queue_ends(np.arange(500) / rate_hz, np.full(500, compute))
    late = ends - np.arange(500) / rate_hz
    utilisation = compute * rate_hz
    np.testing.assert_allclose(np.diff(late[::50]), utilisation - 1)


@given(st.data())
def test_felt_latencies_equal_a_plain_search(data: st.DataObject) -> None:
    label = st.integers(0, 2)
    bouts = data.draw(st.lists(st.tuples(label, st.integers(1, 9)), min_size=1, max_size=6))
    truth = [value for value, length in bouts for _ in range(length)]
    noise = data.draw(st.lists(st.none() | label, min_size=len(truth), max_size=len(truth)))
    labels = [t if n is None else n for t, n in zip(truth, noise, strict=True)]
    emitted = sorted(data.draw(st.lists(st.floats(0, 50), min_size=len(truth), max_size=len(truth))))
    hold = data.draw(st.integers(1, 4))
    got = felt.felt_latencies(np.array(truth), np.array(labels), np.array(emitted), rate_hz=10.0, hold_s=hold / 10.0)
    np.testing.assert_array_equal(got, slow_latencies(truth, labels, emitted, 10.0, hold))


# Ten samples a second, a hold of 0.3 s; label k of sample i is emitted at i / 10 + 0.05.
@pytest.mark.parametrize(
    ("truth", "labels", "expected_s"),
    [
        ("000111110000", "000111110000", [0.05, 0.05]),  # at once
        ("000111110000", "000001110000", [0.25, 0.05]),  # two samples late
        ("000111110000", "000101110000", [0.25, 0.05]),  # a flicker before does not count
        ("000111110000", "000000110000", [math.nan, 0.05]),  # the hold would reach into the next exercise
        ("000111110000", "000000011111", [math.nan, math.nan]),  # right only after the next change
        ("000110000000", "000110000000", [math.nan, 0.05]),  # an exercise shorter than the hold is never found
        ("000111", "011111", [0.05]),  # early is not felt earlier than the change
        ("000111", "000111", [0.05]),  # the last exercise ends with the session
        ("000000", "010101", []),  # no change
    ],
)
def test_felt_latency_by_hand(truth: str, labels: str, expected_s: list[float]) -> None:
    emitted = np.arange(len(truth)) / 10 + 0.05
    got = felt.felt_latencies(
        np.array(list(truth), int), np.array(list(labels), int), emitted, rate_hz=10.0, hold_s=0.3
    )
    np.testing.assert_allclose(got, expected_s)


def test_half_a_second_is_25_samples_at_50_hz() -> None:
    truth = np.repeat([0, 1], [10, 25])
    emitted = np.arange(35) / 50
    assert felt.felt_latencies(truth, truth, emitted, rate_hz=50.0).tolist() == [0.0]
    late = truth.copy()
    late[10] = 0
    assert np.isnan(felt.felt_latencies(truth, late, emitted, rate_hz=50.0)).all()


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30))
def test_runs_tile_the_values(values: list[int]) -> None:
    runs = felt.runs(np.array(values))
    assert [value for a, b, value in runs for _ in range(a, b)] == values
    assert len(runs) == len(felt.change_points(np.array(values))) + 1


@given(times, times)
def test_shown_is_the_newest_emitted(emitted: list[float], moments: list[float]) -> None:
    emitted = sorted(emitted)
    labels = np.arange(len(emitted)) + 7
    shown = felt.shown_at(labels, np.array(emitted), np.array(moments))
    for moment, label in zip(moments, shown, strict=True):
        before = [int(k) for k, at in zip(labels, emitted, strict=True) if at <= moment]
        assert label == (before[-1] if before else -1)


@pytest.mark.parametrize(
    ("n", "q", "known"),
    [
        *((0, 0.5, False), (1, 0.5, True), (99, 0.99, False), (100, 0.99, True), (100, 0.01, True), (99, 0.01, False)),
        *((999, 0.999, False), (1000, 0.999, True), (9, 0.9, False), (10, 0.9, True)),
    ],
)
def test_a_quantile_needs_values_beyond_it(n: int, q: float, known: bool) -> None:
    values: Any = np.arange(float(n))
    assert (felt.quantile(values, q) is not None) == known


def test_flips_do_not_count_the_joins_of_sessions() -> None:
    sessions = [np.zeros(50, int), np.ones(50, int)]
    assert felt.flips_per_hour(sessions, rate_hz=50.0) == 0
