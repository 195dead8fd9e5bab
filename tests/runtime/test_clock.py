"""The settings of a sensor clock, its counts, and what it remembers: bounded, whatever a sensor sends."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseq import runtime as rt
from edgeseq.errors import ConfigError, InputError, NonFiniteError
from edgeseq.model_file import Port
from edgeseq.runtime.clock import GAP_POLICIES, JUMP_POLICIES, RESAMPLING
from edgeseq.runtime.clock_engine import ClockEngine
from edgeseq.runtime.clock_resample import RESAMPLERS
from edgeseq.runtime.clock_rules import GAPS, JUMPS
from edgeseq.runtime.clock_state import ClockState
from edgeseq.runtime.feed_streams import Streams

TINY = rt.load("tests/data/tiny.stream.onnx")
# Of the clock, the rows and the counts of one stream, in CPython 3.11 on 64 bits: about 2.1 kB were seen.
BYTES_A_STREAM = 3000


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"gap": "guess"}, "expected gap, one of"),
        ({"missing": "zero"}, "expected missing, one of"),
        ({"jump": "hold"}, "expected jump, one of"),
        ({"resample": "cubic"}, "expected resample, one of"),
        ({"order_by": "time"}, "expected order_by, one of"),
        ({"rate_hz": 0}, "expected rate_hz, a number above 0"),
        ({"rate_hz": True}, "expected rate_hz"),
        ({"jump_s": float("nan")}, "expected jump_s"),
        ({"sensor_hz": -1}, "expected sensor_hz"),
        ({"grace_s": -1}, "expected grace_s"),
        ({"grace_s": 6}, "a grace_s of up to jump_s"),
        ({"sensor_hz": 25}, "need resampling"),
        ({"resample": "linear", "order_by": "arrival"}, "resampling needs timestamps"),
        ({"sequence_modulus": 256}, "a whole number above 502"),
        ({"sequence_modulus": 1000.0}, "expected a sequence_modulus"),
    ],
)
def test_settings_that_do_not_fit_are_refused(wrong: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=f"clock: .*{match}"):
        rt.SensorClock(**{"rate_hz": 50, **wrong})


def test_every_policy_has_its_rule() -> None:
    assert set(GAPS) == set(GAP_POLICIES)
    assert set(JUMPS) == set(JUMP_POLICIES)
    assert set(RESAMPLERS) == set(RESAMPLING)


def test_the_delay_of_resampling_is_stated() -> None:
    assert rt.SensorClock(rate_hz=50).resampling_delay_s == 0
    assert rt.SensorClock(rate_hz=50, sensor_hz=25, resample="nearest").resampling_delay_s == 0.04


def test_counts_add_print_and_go_to_prometheus() -> None:
    counts = rt.Counters(received=3, late=1, used=2)
    assert str(counts) == "received 3, used 2, late 1"
    assert repr(counts) == "Counters(received=3, used=2, late=1)"
    assert str(rt.Counters()) == "nothing"
    total = counts + counts
    assert (total.late, counts.late, total.as_dict()["used"]) == (2, 1, 4)
    lines = total.prometheus("edgeseq_feed").splitlines()
    assert "edgeseq_feed_late_total 2" in lines
    assert len(lines) == 3 * len(total.as_dict())
    assert all(line.startswith(("# HELP edgeseq_feed_", "# TYPE edgeseq_feed_", "edgeseq_feed_")) for line in lines)
    with pytest.raises(ConfigError, match="late"):
        rt.Counters(lost=1)


def _everything(state: ClockState) -> int:
    return len(state.waiting) + len(state.pending)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 2**53) | st.integers(1000, 1100), st.floats(-1e9, 1e9) | st.floats(0, 5), st.booleans()
        ),
        max_size=80,
    ),
    st.sampled_from([None, "linear"]),
    st.sampled_from(["hold", "interpolate"]),
)
def test_what_a_sensor_sends_never_makes_memory_grow(
    sent: list[tuple[int, float, bool]], resample: str | None, policy: str
) -> None:
    clock = rt.SensorClock(
        rate_hz=50, gap=policy, missing=policy, jump="rebase", resample=resample, grace_s=0.1, jump_s=0.4
    )
    engine, state = ClockEngine(clock, [Port("x", "float32", (2,))]), ClockState()
    for number, time_s, is_missing in sent:
        new = state.copy()
        try:
            engine.take(new, rt.Sample("a", [None if is_missing else 1.0, 2.0], time_s, number))
        except InputError:
            continue
        state = new
        assert _everything(state) <= 3 * (clock.grace + clock.longest_gap) + 3
        # One sample fills what waits, at most, each hole of it, and what jumps in time.
        assert len(state.ready) <= 4 * (clock.grace + clock.longest_gap + 2)
        state.ready.clear()


def test_a_channel_that_is_dead_is_refused_after_the_longest_wait_and_then_goes_on() -> None:
    clock = rt.SensorClock(rate_hz=50, missing="interpolate", gap="hold", jump_s=0.2)
    feeder = rt.Feeder(TINY, clock)
    feeder.feed(rt.Sample("a", [0, 0, 0], sequence=0))
    for i in range(1, 15):
        sample = rt.Sample("a", [i, None, 0], sequence=i)
        if i < 12:
            assert feeder.feed(sample) == []
        else:
            with pytest.raises(NonFiniteError, match=r"stream 'a'.*every channel within 10 samples, got none of one"):
                feeder.feed(sample)
    out = feeder.feed(rt.Sample("a", [15, 15, 0], sequence=15))
    assert len(out) == 15
    assert feeder.counters.filled == 3
    assert feeder.counters.rejected == 3


class NoModel(Streams):
    """Streams that cost nothing, to count what a feeder itself keeps; they give these rows, and zeros from then on."""

    def __init__(self, rows: Iterable[Any] = ()) -> None:
        self.row, self.rows = np.zeros(2, np.float32), iter(rows)

    def open(self, stream_id: str, *, snapshot: bytes | None = None) -> None:
        pass

    def step(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        return {stream_id: next(self.rows, self.row) for stream_id in samples}

    def flush(self, stream_id: str) -> Any:
        return np.zeros((0, 2), np.float32)

    def reset(self, stream_id: str) -> None:
        pass

    def close(self, stream_id: str) -> None:
        pass

    def snapshot(self, stream_id: str) -> bytes:
        return b""


def test_ten_thousand_streams_cost_a_known_amount_of_memory_each() -> None:
    feeder = rt.Feeder(TINY, rt.SensorClock(rate_hz=50, gap="hold", missing="hold"), pool=NoModel())
    ids, x = [f"sensor-{i}" for i in range(10_000)], np.ones(3, np.float32)
    gc.collect()
    tracemalloc.start()
    for number in range(2):
        for stream_id in ids:
            feeder.feed(rt.Sample(stream_id, x, sequence=number))
    gc.collect()
    each = tracemalloc.get_traced_memory()[0] / len(ids)
    tracemalloc.stop()
    assert len(feeder) == 10_000
    assert feeder.counters.used == 20_000
    assert each < BYTES_A_STREAM, each
    for stream_id in ids:
        feeder.close(stream_id)
    assert len(feeder) == 0
    assert feeder.counters.used == 20_000
