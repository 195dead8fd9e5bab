"""The sensor clock against a plain oracle: permuted, duplicated, dropped, incomplete and jittered feeds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseq import runtime as rt
from edgeseq.errors import InputError
from edgeseq.model_file import Port
from edgeseq.runtime.clock_engine import ClockEngine
from edgeseq.runtime.clock_state import ClockState
from tests.runtime import clock_oracle
from tests.runtime.clock_oracle import Sent, split

Array = np.ndarray[Any, Any]
PORT = Port("x", "float32", (2,))
LINE_ATOL = 1e-5  # lines are drawn in float64 and rounded; the oracle draws them step by step


def arrivals(seed: int, n: int, *, grace: int, drop: float, miss: float) -> list[Sent]:
    """A feed that went wrong in every way: within and beyond the grace."""
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, 2)).astype(np.float32)
    values[rng.random((n, 2)) < miss] = np.nan
    kept = np.flatnonzero(rng.random(n) >= drop)
    again = rng.choice(kept, min(len(kept), 3)) if len(kept) else kept
    slots = np.concatenate([kept, again])
    order = np.argsort(slots + rng.integers(0, grace + 3, len(slots)) * (rng.random(len(slots)) < 0.5), kind="stable")
    return [Sent(int(slot), values[slot]) for slot in slots[order]]


def feed(clock: rt.SensorClock, sent: list[rt.Sample]) -> ClockState:
    """All samples through one clock, and the end."""
    engine, state = ClockEngine(clock, [PORT]), ClockState()
    for sample in sent:
        new = state.copy()
        new.counts.received += 1
        try:
            engine.take(new, sample)
        except InputError:
            state.counts.received += 1
            state.counts.rejected += 1
        else:
            state = new
        assert len(state.waiting) <= clock.grace + 1
    engine.finish(state, "the end")
    return state


@settings(max_examples=300, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(0, 40),
    st.integers(0, 4),
    st.sampled_from(["hold", "interpolate", "reset"]),
    st.sampled_from(["reject", "hold", "interpolate"]),
    st.sampled_from([0.0, 0.2, 0.6]),
    st.sampled_from([0.0, 0.3]),
    st.booleans(),
)
def test_every_policy_gives_what_the_oracle_gives(
    seed: int, n: int, grace: int, gap: str, missing: str, drop: float, miss: float, timed: bool
) -> None:
    clock = rt.SensorClock(rate_hz=50, gap=gap, missing=missing, grace_s=grace / 50)
    sent = arrivals(seed, n, grace=grace, drop=drop, miss=miss)
    expected = clock_oracle.run(clock, sent)
    by = [{"timestamp_s": 3.0 + s.slot / 50} if timed else {"sequence": 7 + s.slot} for s in sent]
    state = feed(clock, [rt.Sample("a", s.values, **place) for s, place in zip(sent, by, strict=True)])
    got = [part for part in split(state.ready) if part]
    assert [len(part) for part in got] == [len(part) for part in expected.sequences]
    for part, oracle in zip(got, expected.sequences, strict=True):
        for tick, (values, flagged) in zip(part, oracle, strict=True):
            assert tick.values is not None
            np.testing.assert_allclose(tick.values[0], values, rtol=0, atol=LINE_ATOL)
            assert tick.flagged == flagged
    counts = state.counts
    assert (counts.used, counts.rejected) == (expected.used, expected.rejected)
    assert (counts.late, counts.duplicates) == (expected.late, expected.duplicates)
    assert counts.received == len(sent) == counts.used + counts.late + counts.duplicates + counts.rejected
    assert counts.ticks == counts.used + counts.filled == sum(map(len, expected.sequences))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 300), st.floats(0, 0.24), st.floats(-0.002, 0.002))
def test_jittered_timestamps_find_their_places(seed: int, n: int, jitter: float, drift: float) -> None:
    """Within a quarter of a period, drift included: sixteen times what the clock is off for each sample."""
    jitter = max(0.0, jitter - 16 * abs(drift))
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, 2)).astype(np.float32)
    times = 1.7e9 + (np.arange(n) * (1 + drift) + rng.uniform(-jitter, jitter, n)) / 50
    order = np.argsort(np.arange(n) + rng.integers(0, 4, n), kind="stable")  # within a grace of 3
    clock = rt.SensorClock(rate_hz=50, grace_s=0.06)
    state = feed(clock, [rt.Sample("a", values[i], timestamp_s=float(times[i])) for i in order])
    assert [tick.time_s for tick in state.ready] == times.tolist()
    for tick, x in zip(state.ready, values, strict=True):
        assert tick.values is not None
        np.testing.assert_array_equal(tick.values[0], x)
        assert not tick.flagged
        assert tick.real


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 10**6),
    st.integers(1, 60),
    st.sampled_from([20.0, 50.0, 60.0, 104.0]),
    st.sampled_from(["linear", "nearest"]),
    st.floats(0, 0.24),
    st.booleans(),
)
def test_resampling_gives_even_times(
    seed: int, n: int, sensor_hz: float, how: str, jitter: float, numbered: bool
) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=(n, 2)).astype(np.float32)
    times = 12.0 + (np.arange(n) + rng.uniform(-jitter, jitter, n)) / sensor_hz
    clock = rt.SensorClock(rate_hz=50, sensor_hz=sensor_hz, resample=how)
    numbers = range(n) if numbered else [None] * n
    sent = [rt.Sample("a", values[i], float(times[i]), number) for i, number in zip(range(n), numbers, strict=True)]
    state = feed(clock, sent)
    even = times[0] + np.arange(len(state.ready)) / 50
    assert even[-1] <= times[-1] + 1e-6 < even[-1] + 1 / 50 + 2e-6
    got = np.stack([tick.values[0] for tick in state.ready if tick.values is not None])
    np.testing.assert_allclose([tick.time_s or 0 for tick in state.ready], even)
    if how == "linear":
        oracle = np.stack([np.interp(even, times, values[:, c]) for c in range(2)], axis=1)
        np.testing.assert_allclose(got, oracle, atol=1e-4)
    else:
        for t, row in zip(even, got, strict=True):
            off = np.abs(times - t)
            near = np.flatnonzero(off <= off.min() + 1e-6)
            assert any((row == values[i]).all() for i in near)
    assert state.counts.used == n


def test_a_sensor_of_the_models_own_rate_is_passed_on_untouched() -> None:
    values = np.random.default_rng(0).normal(size=(50, 2)).astype(np.float32)
    clock = rt.SensorClock(rate_hz=50, resample="linear")
    state = feed(clock, [rt.Sample("a", x, timestamp_s=0.1 + i / 50) for i, x in enumerate(values)])
    assert len(state.ready) == 50
    assert all(
        tick.real and (tick.values[0] == x).all() for tick, x in zip(state.ready, values, strict=True) if tick.values
    )


def test_without_places_samples_pass_as_they_come() -> None:
    values = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    state = feed(rt.SensorClock(rate_hz=50, grace_s=0.1, gap="hold"), [rt.Sample("a", x) for x in values])
    assert [tick.values[0].tolist() for tick in state.ready if tick.values] == values.tolist()
    assert str(state.counts) == "received 20, used 20, ticks 20"


def test_numbers_that_start_again_go_on() -> None:
    clock = rt.SensorClock(rate_hz=50, gap="hold", grace_s=0.04, jump_s=1, sequence_modulus=256)
    numbers = [*range(250, 256), 1, 0, *range(3, 520)]  # 2 is lost
    sent = [rt.Sample("a", [i, 0], sequence=i % 256) for i in numbers]
    state = feed(clock, sent)
    assert state.counts.filled == 1
    assert state.counts.used == len(numbers)
    assert state.counts.reordered == 1
    with pytest.raises(InputError, match="below the sequence_modulus 256"):
        ClockEngine(clock, [PORT]).take(ClockState(), rt.Sample("a", np.zeros(2, np.float32), sequence=256))


def test_what_comes_long_after_its_place_went_by_is_late_even_if_it_came_before() -> None:
    clock = rt.SensorClock(rate_hz=50, jump_s=100)
    numbers = [*range(400), 399, 300, 10]
    state = feed(clock, [rt.Sample("a", np.zeros(2, np.float32), sequence=i) for i in numbers])
    assert (state.counts.duplicates, state.counts.late) == (2, 1)  # of the last 256 places it is known


M, RESET = float("nan"), "|"
# The drawings of docs/clock.md: settings, what is sent as (place, value), and what the model gets.
DRAWN: dict[str, tuple[dict[str, Any], list[Any], list[Any]]] = {
    "late": (
        {"grace_s": 0.04, "gap": "reset"},
        [(i, i) for i in (0, 1, 3, 2, 2, 4, 5, 8, 9, 10, 6)],
        [0, 1, 2, 3, 4, 5, RESET, 8, 9, 10],
    ),
    "gap hold": ({"gap": "hold"}, [(i, i) for i in (0, 1, 2, 5, 6)], [0, 1, 2, 2, 2, 5, 6]),
    "gap interpolate": ({"gap": "interpolate"}, [(i, i) for i in (0, 1, 2, 5, 6)], [0, 1, 2, 3, 4, 5, 6]),
    "gap reset": ({"gap": "reset"}, [(i, i) for i in (0, 1, 2, 5, 6)], [0, 1, 2, RESET, 5, 6]),
    "gap raise": ({}, [(i, i) for i in (0, 1, 2, 5, 6)], [0, 1, 2]),
    "missing reject": ({"gap": "hold"}, [(1, 1), (2, 2), (3, M), (4, M), (5, 5)], [1, 2, 2, 2, 5]),
    "missing hold": ({"missing": "hold"}, [(0, M), (1, 1), (2, 2), (3, M), (4, M), (5, 5)], [1, 2, 2, 2, 5]),
    "missing interpolate": (
        {"missing": "interpolate"},
        [(0, M), (1, 1), (2, 2), (3, M), (4, M), (5, 5), (6, M)],
        [1, 1, 2, 3, 4, 5, 5],
    ),
    "jump reset": ({"jump": "reset"}, [(i, i) for i in (10, 11, 12, 900, 901)], [10, 11, 12, RESET, 900, 901]),
    "jump rebase": ({"jump": "rebase"}, [(i, i) for i in (10, 11, 12, 900, 901)], [10, 11, 12, 900, 901]),
    "jump raise": ({}, [(i, i) for i in (10, 11, 12, 900, 901, 13)], [10, 11, 12, 13]),
    "linear": ({"sensor_hz": 25, "resample": "linear"}, [(0, 0), (2, 2), (4, 4)], [0, 1, 2, 3, 4]),
    "nearest": ({"sensor_hz": 25, "resample": "nearest"}, [(0, 0), (2, 2), (4, 4)], [0, 0, 2, 2, 4]),
}


@pytest.mark.parametrize("name", DRAWN)
def test_the_drawings_of_the_page_are_true(name: str) -> None:
    options, sent, expected = DRAWN[name]
    clock = rt.SensorClock(rate_hz=50, **options)
    state = feed(clock, [rt.Sample("a", [x, 0], timestamp_s=place / 50) for place, x in sent])
    assert [RESET if tick.values is None else round(float(tick.values[0][0]), 5) for tick in state.ready] == expected


def test_a_tick_beside_something_made_up_is_flagged() -> None:
    clock = rt.SensorClock(rate_hz=50, sensor_hz=25, resample="linear", gap="hold")
    state = feed(clock, [rt.Sample("a", [i, 0], i / 25) for i in (0, 1, 3, 4)])
    assert [round(float(tick.values[0][0]), 4) for tick in state.ready if tick.values] == [
        0,
        0.5,
        1,
        1,
        1,
        2,
        3,
        3.5,
        4,
    ]
    assert [tick.flagged for tick in state.ready] == [False] * 3 + [True] * 3 + [False] * 3
    assert [tick.real for tick in state.ready] == [True, False, True, False, False, False, True, False, True]


@pytest.mark.parametrize("wrong", [0.04, 0.03, 0.12, 0.16])
def test_where_the_clock_resamples_timestamps_must_rise_with_the_numbers(wrong: float) -> None:
    clock = rt.SensorClock(rate_hz=50, sensor_hz=25, resample="linear", grace_s=0.08)
    engine, state = ClockEngine(clock, [PORT]), ClockState()
    for i in (0, 1, 3):
        engine.take(state, rt.Sample("a", [i, 0], i / 25, i))
    with pytest.raises(InputError, match=r"stream 'a', sequence number 2.*timestamps must rise"):
        engine.take(state.copy(), rt.Sample("a", [2, 0], wrong, 2))
    engine.take(state, rt.Sample("a", [2, 0], 0.08, 2))
    engine.finish(state, "the end")
    assert [round(tick.time_s or 0, 4) for tick in state.ready] == [0, 0.02, 0.04, 0.06, 0.08, 0.1, 0.12]
