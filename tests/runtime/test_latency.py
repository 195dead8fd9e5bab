"""Latency histograms: percentiles within the stated error, exact counts, and text that Prometheus can read."""

from __future__ import annotations

import math
import re
import tracemalloc

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeseq.errors import ConfigError
from edgeseq.runtime.latency import Latency, prometheus_text

NANOSECONDS = st.one_of(
    st.integers(1, 100),
    st.integers(1, 10**7),
    st.integers(1, 2**36),
    st.integers(3, 35).flatmap(lambda p: st.sampled_from([2**p - 1, 2**p, 2**p + 1])),
)
LINE = re.compile(r'[a-zA-Z_:][\w:]*(\{(\w+="(\\[\\"n]|[^\\"\n])*",?)*\})? [-+.e\d]+(Inf)?')


def recorded(values: list[int], budget_us: float | None = None) -> Latency:
    latency = Latency(budget_us)
    for ns in values:
        latency.record(ns)
    return latency


@given(st.lists(NANOSECONDS, min_size=1, max_size=300), st.sampled_from([0.0, 1.0, 50.0, 99.0, 99.9, 100.0]))
def test_a_percentile_is_numpys_within_a_32nd(values: list[int], percent: float) -> None:
    expected = float(np.percentile(values, percent, method="inverted_cdf")) / 1000
    got = recorded(values).percentile_us(percent)
    assert abs(got - expected) <= expected / 32
    assert got <= max(values) / 1000


@pytest.mark.parametrize("scale", [1e3, 3e4, 1e7])
def test_percentiles_of_a_long_tail(scale: float) -> None:
    values = (np.random.default_rng(0).lognormal(0, 1, 20_000) * scale).astype(int).tolist()
    latency = recorded(values)
    for got, percent in ((latency.p50_us, 50), (latency.p99_us, 99), (latency.p999_us, 99.9)):
        expected = float(np.percentile(values, percent, method="inverted_cdf")) / 1000
        assert abs(got / expected - 1) <= 1 / 32


@given(st.lists(NANOSECONDS, min_size=1), st.integers(1, 10**6))
def test_count_mean_largest_and_misses_are_exact(values: list[int], budget_us: int) -> None:
    latency = recorded(values, budget_us)
    assert latency.count == len(values)
    assert latency.mean_us == pytest.approx(sum(values) / len(values) / 1000, rel=1e-12)
    assert latency.max_us == max(values) / 1000
    assert latency.deadline_misses == sum(ns > budget_us * 1000 for ns in values)


@given(st.lists(NANOSECONDS), st.lists(NANOSECONDS))
def test_a_sum_is_the_histogram_of_both(a: list[int], b: list[int]) -> None:
    both, together = recorded(a, 5) + recorded(b, 5), recorded(a + b, 5)
    assert both.prometheus() == together.prometheus()
    assert repr(both) == repr(together)


def test_longer_than_the_last_bucket_is_counted() -> None:
    latency = recorded([2**36, 2**36 + 1, 2**50])
    assert latency.count == 3
    assert latency.max_us == latency.percentile_us(100) == 2**50 / 1000
    assert 'le="+Inf"} 3' in latency.prometheus()


def test_a_call_that_took_no_time_by_its_clock_is_counted() -> None:
    latency = recorded([0, 0])
    assert (latency.count, latency.p50_us, latency.max_us) == (2, 0, 0)


def test_of_no_calls_there_are_no_figures() -> None:
    latency = Latency()
    assert latency.count == latency.deadline_misses == 0
    assert all(math.isnan(f) for f in (latency.p50_us, latency.p99_us, latency.p999_us, latency.max_us))
    assert math.isnan(latency.mean_us)
    assert repr(latency) == "Latency(count=0)"
    assert "edgeseq_step_seconds_count 0" in latency.prometheus().splitlines()


def test_reset_forgets_calls_and_keeps_the_budget() -> None:
    latency = recorded([10_000, 20_000], 15)
    latency.reset()
    assert (latency.count, latency.deadline_misses, latency.budget_us) == (0, 0, 15)
    latency.record(16_000)
    assert latency.deadline_misses == 1


@given(st.lists(NANOSECONDS), st.text())
def test_prometheus_buckets_count_what_is_up_to_their_bound(values: list[int], label: str) -> None:
    text = recorded(values, 7).prometheus(labels={"stream": label})
    lines = text.removesuffix("\n").split("\n")
    assert all(LINE.fullmatch(line) for line in lines if not line.startswith("#"))
    buckets = [re.search(r'le="([^"]*)"\} (\d+)$', line) for line in lines if line.startswith("edgeseq_step_seconds_b")]
    bounds = [(float(b[1]), int(b[2])) for b in buckets if b]
    assert len(bounds) == len(buckets) > 20
    assert bounds[-1] == (math.inf, len(values))
    for bound, counted in bounds:
        assert counted == sum(ns <= round(bound * 1e9) if bound < math.inf else True for ns in values)
    assert sum(line.startswith("# TYPE edgeseq_step_seconds ") for line in lines) == 1


def test_label_values_are_escaped() -> None:
    text = recorded([5], 1).prometheus("m", {"stream": 'a"b\\c\nd'})
    assert 'm_count{stream="a\\"b\\\\c\\nd"} 1' in text.splitlines()
    assert 'm_deadline_misses_total{stream="a\\"b\\\\c\\nd"} 0' in text.splitlines()


def test_several_histograms_are_one_metric() -> None:
    text = prometheus_text([({"stream": "a"}, recorded([5], 1)), ({"stream": "b"}, recorded([9_000]))])
    lines = text.splitlines()
    assert sum(line.startswith("# TYPE") for line in lines) == 2
    assert [line for line in lines if "_count" in line] == [
        'edgeseq_step_seconds_count{stream="a"} 1',
        'edgeseq_step_seconds_count{stream="b"} 1',
    ]
    assert [line for line in lines if line.startswith("edgeseq_step_deadline")] == [
        'edgeseq_step_deadline_misses_total{stream="a"} 0'
    ]


def test_recording_allocates_nothing_that_stays() -> None:
    latency = Latency(10)
    values = [int(ns) for ns in np.random.default_rng(0).lognormal(10, 2, 5000)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for ns in values:
            latency.record(ns)
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert latency.count == 5000
    assert grown < 1000


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Latency(0), "expected budget_us, microseconds above 0, got 0"),
        (lambda: Latency(math.nan), "got nan"),
        (lambda: Latency("5"), "got '5'"),  # type: ignore[arg-type]
        (lambda: Latency().record(-1), "expected nanoseconds of 0 or more, got -1"),
        (lambda: Latency().percentile_us(101), "from 0 to 100, got 101"),
        (lambda: Latency(5) + Latency(6), "of one budget to add, got budget_us 5 and 6"),
        (lambda: Latency().prometheus("a b"), "got 'a b'"),
        (lambda: Latency().prometheus(labels={"le": "1"}), "got 'le'"),
        (lambda: Latency().prometheus(labels={"a-b": "1"}), "got 'a-b'"),
        (lambda: prometheus_text([({}, Latency()), ({}, Latency())]), "got some twice"),
    ],
)
def test_errors_say_what_was_expected(call: object, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        call()  # type: ignore[operator]
