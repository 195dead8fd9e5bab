"""Feeds: the same predictions as a clean feed, whatever the order; records, errors, snapshots at any moment."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseq import runtime as rt
from edgeseq.errors import ConfigError, DTypeError, EdgeseqError, InputError, NonFiniteError, ShapeError, SnapshotError
from edgeseq.runtime.feed_streams import ModelStreams
from edgeseq.runtime.sample import Values
from tests.runtime import feed_models
from tests.runtime.feed_models import MODELS, adds_up, assert_same_bits, drawn, rows_fed, rows_of, said, streaming

TINY = rt.load("tests/data/tiny.stream.onnx")


def tiny_samples(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)


def feed_all(feeder: rt.Feeder, samples: list[rt.Sample]) -> list[rt.Prediction]:
    out = [p for sample in samples for p in feeder.feed(sample)]
    return out + [p for stream_id in feeder.ids for p in feeder.flush(stream_id)]


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=12, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(0, 5), st.booleans())
def test_any_order_within_the_grace_gives_the_clean_feeds_predictions(
    name: str, seed: int, n: int, grace: int, timed: bool
) -> None:
    model, rng = streaming(name), np.random.default_rng(seed)
    values = drawn(model, n, seed)
    sent = [
        rt.Sample("a", feed_models.given(model, x), *((10 + i / 50, None) if timed else (10 + i / 50, i)))
        for i, x in enumerate(values)
    ]
    order = np.argsort(np.arange(n) + rng.integers(0, grace + 1, n), kind="stable").tolist()
    for again in rng.integers(0, n, n // 5).tolist() if n else []:
        order.insert(int(rng.integers(order.index(again) + 1, len(order) + 1)), again)
    feeder = rt.Feeder(model, rt.SensorClock(rate_hz=50, grace_s=grace / 50))
    out = feed_all(feeder, [sent[i] for i in order])
    assert_same_bits(rows_fed(out), rows_of(model, [values]))
    assert not any(p.after_gap for p in out)
    assert feeder.counters.duplicates == n // 5
    assert feeder.counters.used == n
    assert feeder.counters.predictions == len(out)
    adds_up(feeder)


@pytest.mark.parametrize("name", MODELS)
def test_a_gap_that_resets_gives_the_rows_of_each_part(name: str) -> None:
    model = streaming(name)
    values = drawn(model, 60, 1)
    kept = [i for i in range(60) if i not in (13, 14, 15, 40)]
    sent = [rt.Sample("a", feed_models.given(model, values[i]), i / 50, i) for i in kept]
    feeder = rt.Feeder(model, rt.SensorClock(rate_hz=50, gap="reset"))
    out = feed_all(feeder, sent)
    parts = [values[:13], values[16:40], values[41:]]
    assert_same_bits(rows_fed(out), rows_of(model, parts))
    for port in model.description.outputs:
        samples = [p.sample for p in out if p.output_name == port.name]
        assert samples == sorted(samples)
    assert feeder.counters.resets == 3  # the last one is the end
    assert not any(p.after_gap for p in out)


@pytest.mark.parametrize("name", MODELS)
def test_records_carry_the_time_of_their_own_sample(name: str) -> None:
    model = streaming(name)
    values = drawn(model, 50, 1)
    sent = [rt.Sample("a", feed_models.given(model, x), 10 + i / 50, i) for i, x in enumerate(values)]
    feeder, seen = rt.Feeder(model, rt.SensorClock(rate_hz=50)), 0
    for port in model.description.outputs:
        assert port.timing is not None
    for number, sample in enumerate([*sent, None]):
        for p in feeder.feed(sample) if sample is not None else feeder.flush("a"):
            timing = next(port.timing for port in model.description.outputs if port.name == p.output_name)
            assert timing is not None
            own = p.index * timing.hop[0] / timing.hop[1]
            assert p.sample == int(own)
            assert p.time_s == pytest.approx(10 + own / 50)
            assert p.sample >= number - timing.lookahead - timing.hop[0] or sample is None
            past = timing.receptive_field[0]
            assert p.warm_up == (past is not None and p.sample < past)
            seen += 1
    assert seen == feeder.counters.predictions
    assert seen == sum(map(len, rows_of(model, [values]).values()))


def test_after_gap_is_where_the_receptive_field_holds_what_was_made_up() -> None:
    model = streaming("lookahead")
    past, future = model.receptive_field
    assert past is not None
    assert future is not None
    made_up = [30, 31, 60]
    sent = [
        rt.Sample("a", feed_models.given(model, x), sequence=i)
        for i, x in enumerate(drawn(model, 100, 0))
        if i not in made_up
    ]
    out = feed_all(rt.Feeder(model, rt.SensorClock(rate_hz=50, gap="hold")), sent)
    assert len(out) == 100
    for p in out:
        assert p.after_gap == any(p.sample - past <= m <= p.sample + future for m in made_up)
        assert p.time_s is None


def test_only_the_last_value_of_a_pool_is_not_provisional() -> None:
    model = streaming("mean")
    sent = [rt.Sample("a", feed_models.given(model, x)) for x in drawn(model, 20, 0)]
    out = feed_all(rt.Feeder(model, rt.SensorClock(rate_hz=50)), sent)
    assert [p.provisional for p in out] == [True] * (len(out) - 1) + [False]
    assert not any(p.provisional for p in feed_all(rt.Feeder(TINY), [rt.Sample("a", x) for x in tiny_samples(9)]))


def test_a_record_is_json_and_names_the_label() -> None:
    (p,) = rt.Feeder(TINY).feed(rt.Sample("wrist-7", {"z": 1, "x": 2.5, "y": 0}, 12.5, 3))
    direct = TINY.stream().step(np.array([2.5, 0, 1], np.float32))
    assert p.label == ("rest", "move")[int(direct.argmax())]
    assert p.score == float(direct.max())
    read = json.loads(p.to_json())
    assert read == p.to_dict()
    assert read["output"] == direct.tolist()
    assert (read["stream_id"], read["time_s"], read["warm_up"], read["index"]) == ("wrist-7", 12.5, True, 0)


BAD: list[tuple[rt.Sample, type[EdgeseqError], str]] = [
    (rt.Sample("a", np.zeros(3), sequence=5), DTypeError, r"stream 'a', sequence number 5: expected float32 \(3,\)"),
    (rt.Sample("a", [1, 2], sequence=5), ShapeError, "give one for each channel"),
    (rt.Sample("a", [1, 2, "3"], sequence=5), DTypeError, "got str at 2"),
    (rt.Sample("a", [1, 2, True], sequence=5), DTypeError, "got bool at 2"),
    (rt.Sample("a", None, sequence=5), DTypeError, "got NoneType"),
    (rt.Sample("a", "123", sequence=5), DTypeError, "got str"),
    (rt.Sample("a", [1, 2, None], sequence=5), NonFiniteError, "choose what the clock does with missing values"),
    (rt.Sample("a", [1, 2, float("inf")], sequence=5), NonFiniteError, "got inf"),
    (rt.Sample("a", [1, 2, 1e300], sequence=5), NonFiniteError, "got inf"),
    (rt.Sample("a", [1, 2, 10**400], sequence=5), InputError, "cannot hold"),
    (rt.Sample("a", {"x": 1, "y": 2, "w": 3}, sequence=5), InputError, r"got \['w'\]"),
    (rt.Sample("a", [1, 2, 3], sequence=-1), InputError, "from 0 to 2"),
    (rt.Sample("a", [1, 2, 3], sequence=5.0), InputError, "got 5.0"),  # type: ignore[arg-type]
    (rt.Sample("a", [1, 2, 3], sequence=2**60), InputError, "from 0 to 2"),
    (rt.Sample("a", [1, 2, 3], timestamp_s=float("nan"), sequence=5), InputError, "got nan"),
    (rt.Sample("a", [1, 2, 3], timestamp_s="noon", sequence=5), InputError, "got 'noon'"),  # type: ignore[arg-type]
    (rt.Sample("a", [1, 2, 3], timestamp_s=5.0), InputError, "expected a place by sequence"),
    (rt.Sample("a", [1, 2, 3]), InputError, "got one by arrival"),
    (rt.Sample("a", [1, 2, 3], sequence=9), rt.GapError, "behind a gap of 4"),
    (rt.Sample("a", [1, 2, 3], sequence=10**6), rt.ClockJumpError, "within 250 samples"),
    (rt.Sample(7, [1, 2, 3]), InputError, "expected a text as its id"),  # type: ignore[arg-type]
    (rt.Sample(["a"], [1, 2, 3]), InputError, "expected a text as its id"),  # type: ignore[arg-type]
]


@pytest.mark.parametrize(("bad", "error", "match"), BAD)
def test_an_error_names_the_stream_and_changes_nothing_but_the_count(
    bad: rt.Sample, error: type[EdgeseqError], match: str
) -> None:
    feeder, x = rt.Feeder(TINY), tiny_samples(7)
    for i in range(5):
        feeder.feed(rt.Sample("a", x[i], sequence=i))
    with pytest.raises(error, match=match) as raised:
        feeder.feed(bad)
    assert f"stream {bad.stream_id!r}" in str(raised.value)
    assert feeder.counters.rejected == 1
    adds_up(feeder)
    rest = [p for i in (5, 6) for p in feeder.feed(rt.Sample("a", x[i], sequence=i))]
    expected = rows_of(TINY, [[(row,) for row in x]])["output"]
    np.testing.assert_array_equal([p.output for p in rest], expected[5:])
    assert [p.index for p in rest] == [5, 6]


def test_one_of_several_inputs_may_miss_as_a_whole() -> None:
    model = streaming("ports")
    values = drawn(model, 12, 5)
    silent = {4, 5}
    sent = [
        rt.Sample("a", {"acc": acc, "gyro": None if i in silent else gyro}, sequence=i)
        for i, (acc, gyro) in enumerate(values)
    ]
    held = [(acc, values[3][1] if i in silent else gyro) for i, (acc, gyro) in enumerate(values)]
    out = feed_all(rt.Feeder(model, rt.SensorClock(rate_hz=50, missing="hold")), sent)
    assert_same_bits(rows_fed(out), rows_of(model, [list(held)]))
    with pytest.raises(DTypeError, match="stream 'a', sequence number 4, input 'gyro'"):
        feed_all(rt.Feeder(model), sent)


def test_a_first_sample_that_is_refused_opens_no_stream() -> None:
    feeder = rt.Feeder(TINY, max_streams=1)
    for i in range(10):
        with pytest.raises(ShapeError):
            feeder.feed(rt.Sample(f"junk-{i}", [1]))
    assert len(feeder) == 0
    feeder.feed(rt.Sample("a", [1, 2, 3]))
    with pytest.raises(InputError, match="stream 'b': there are 1 streams"):
        feeder.feed(rt.Sample("b", [1, 2, 3]))
    assert str(feeder.counters) == "received 12, used 1, rejected 11, ticks 1, predictions 1"
    for call in (feeder.flush, feeder.reset, feeder.close, feeder.release, feeder.snapshot, feeder.drain):
        with pytest.raises(InputError, match="stream 'b': expected one that sent a sample"):
            call("b")


def test_after_a_gap_error_the_user_starts_anew_and_loses_nothing() -> None:
    x = tiny_samples(30)
    feeder = rt.Feeder(TINY, rt.SensorClock(rate_hz=50, grace_s=0.04))
    out: list[rt.Prediction] = []
    for i in [*range(10), *range(13, 30)]:
        sample = rt.Sample("a", x[i], sequence=i)
        try:
            out += feeder.feed(sample)
        except rt.GapError:
            feeder.reset("a")
            out += feeder.feed(sample)
    out += feeder.flush("a")
    parts: list[list[Values]] = [[(row,) for row in x[:10]], [(row,) for row in x[13:]]]
    assert_same_bits(rows_fed(out), rows_of(TINY, parts))
    adds_up(feeder)


@pytest.mark.parametrize("jump", [10**6, -(10**6)])
@pytest.mark.parametrize("timed", [True, False])
def test_a_jump_resets_or_is_taken_as_the_next_sample(jump: int, timed: bool) -> None:
    x = tiny_samples(40)
    sent = [
        rt.Sample("a", x[i], *(((at / 50), None) if timed else (None, at)))
        for i, at in enumerate([10**7 + i + (jump if i >= 20 else 0) for i in range(40)])
    ]
    anew = rt.Feeder(TINY, rt.SensorClock(rate_hz=50, jump="reset", grace_s=0.06))
    parts: list[list[Values]] = [[(row,) for row in x[:20]], [(row,) for row in x[20:]]]
    assert_same_bits(rows_fed(feed_all(anew, sent)), rows_of(TINY, parts))
    on = rt.Feeder(TINY, rt.SensorClock(rate_hz=50, jump="rebase", grace_s=0.06))
    out = feed_all(on, sent)
    assert_same_bits(rows_fed(out), rows_of(TINY, [[(row,) for row in x]]))
    assert [p.after_gap for p in out] == [20 <= i <= 26 for i in range(40)]  # it sees 6 samples back
    assert on.counters.jumps == anew.counters.jumps == 1
    with pytest.raises(rt.ClockJumpError, match="drop it"):
        feed_all(rt.Feeder(TINY), sent)


def test_a_rebased_clock_resamples_on() -> None:
    x = tiny_samples(60)
    clock = rt.SensorClock(rate_hz=50, sensor_hz=25, resample="linear", jump="rebase")
    even = [rt.Sample("a", row, 1 + i / 25) for i, row in enumerate(x)]
    jumped = [rt.Sample("a", row, 1 + i / 25 + (5000 if i >= 30 else 0)) for i, row in enumerate(x)]
    a, b = (feed_all(rt.Feeder(TINY, clock), sent) for sent in (even, jumped))
    np.testing.assert_allclose([p.output for p in a], [p.output for p in b], atol=1e-5)
    times = np.array([p.time_s for p in b])
    np.testing.assert_allclose(np.diff(times)[[*range(58), *range(60, 118)]], 0.02, atol=1e-6)
    assert times[-1] == pytest.approx(1 + 59 / 25 + 5000)


def test_a_silent_sensor_is_waited_for_no_longer_on_demand() -> None:
    x = tiny_samples(10)
    clock = rt.SensorClock(rate_hz=50, gap="hold", grace_s=0.1)
    feeder = rt.Feeder(TINY, clock)
    assert [len(feeder.feed(rt.Sample("a", x[i], sequence=i))) for i in (0, 1, 3)] == [0, 0, 0]
    assert [p.after_gap for p in feeder.release("a")] == [False, False, True, True]
    assert len(feeder.feed(rt.Sample("a", x[4], sequence=4))) == 1
    assert feeder.feed(rt.Sample("a", x[2], sequence=2)) == []
    assert feeder.counters.late == 1


def test_a_token_that_the_model_refuses_is_left_out_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model = streaming("tokens")
    feeder = rt.Feeder(model, rt.SensorClock(rate_hz=50, grace_s=0.04))
    with pytest.raises(InputError, match="expected tokens from 0 to 10, got 99"):
        feeder.feed(rt.Sample("b", 99, sequence=0))
    # From here on as with a file that does not know its vocabulary.
    for check in (*model._checks.values(), *feeder._engine._reader._checks.values()):
        monkeypatch.setattr(check, "_last_token", 10**6)
    numbers = [3, 1, 99, 4, 10, 7]
    sent = [rt.Sample("a", number, sequence=i) for i, number in enumerate(numbers)]
    out: list[rt.Prediction] = []
    for i in (0, 2):
        out += feeder.feed(sent[i])
    with pytest.raises(InputError, match="stream 'a', sample 2: ONNX Runtime rejected"):
        feeder.feed(sent[1])  # the one before it may go on, the token 99 behind it too
    with pytest.raises(SnapshotError, match="predictions are owed"):
        feeder.snapshot("a")
    owed = feeder.drain("a")
    assert [p.index for p in owed] == [1]
    feeder.snapshot("a")
    out += owed
    for i in (3, 4, 5):
        out += feeder.feed(sent[i])
    out += feeder.flush("a")
    expected = rows_of(model, [[(np.array(k, np.int32),) for k in numbers if k != 99]])
    assert_same_bits(rows_fed(out), expected)
    assert [p.after_gap for p in out] == [False, False, True, True, True]
    assert feeder.counters.rejected == 2
    adds_up(feeder)


def test_the_iterator_gives_what_the_feeder_gives() -> None:
    x = tiny_samples(20)
    sent = [rt.Sample(f"s{i % 2}", x[i], sequence=i // 2) for i in range(20)]
    assert said(list(rt.predictions(TINY, sent))) == said(feed_all(rt.Feeder(TINY), sent))
    with pytest.raises(ShapeError):
        list(rt.predictions(TINY, [rt.Sample("a", [1])]))
    refused: list[rt.Sample] = []
    wrong = rt.Sample("s0", [1])
    taken = rt.predictions(TINY, [*sent[:5], wrong, *sent[5:]], on_error=lambda sample, _: refused.append(sample))
    assert said(list(taken)) == said(feed_all(rt.Feeder(TINY), sent))
    assert refused == [wrong]


def test_flush_ends_a_sequence_and_the_next_sample_starts_another() -> None:
    model = streaming("lookahead")
    values = drawn(model, 20, 0)
    feeder = rt.Feeder(model, rt.SensorClock(rate_hz=50))
    out: list[rt.Prediction] = []
    for part in (values[:12], values[12:]):
        for i, x in enumerate(part):  # numbers start at 0 again
            out += feeder.feed(rt.Sample("a", x[0], sequence=i))
        out += feeder.flush("a")
        assert feeder.flush("a") == []
    assert_same_bits(rows_fed(out), rows_of(model, [values[:12], values[12:]]))
    feeder.close("a")
    assert "a" not in feeder
    assert feeder.counters.used == 20


def test_the_models_rate_and_the_clocks_must_agree() -> None:
    with pytest.raises(ConfigError, match=r"takes 50\.0 Hz, the clock gives 25 Hz; resample"):
        rt.Feeder(TINY, rt.SensorClock(rate_hz=25))
    with pytest.raises(ConfigError, match="between the tokens"):
        rt.Feeder(streaming("tokens"), rt.SensorClock(rate_hz=50, gap="interpolate"))
    with pytest.raises(ConfigError, match="names its outputs"):
        rt.Feeder(streaming("mean"), labels=[rt.Majority(3)])
    with pytest.raises(ConfigError, match="warm_up=-1"):
        rt.Feeder(TINY, warm_up=-1)


class Failing(ModelStreams):
    """Streams that raise, before they move, while they are out of order."""

    out_of_order = False

    def step(self, samples: Any) -> dict[str, Any]:
        if self.out_of_order:
            raise RuntimeError("out of order")
        return super().step(samples)


def test_what_was_taken_while_the_model_was_out_of_order_is_predicted_later_and_does_not_pile_up() -> None:
    x = tiny_samples(8)
    pool = Failing(TINY)
    feeder = rt.Feeder(TINY, rt.SensorClock(rate_hz=50, gap="hold"), pool=pool)
    out = feeder.feed(rt.Sample("a", x[0], sequence=0))
    pool.out_of_order = True
    for i in range(1, 6):  # the first is taken, the others are not
        with pytest.raises(RuntimeError):
            feeder.feed(rt.Sample("a", x[i], sequence=i))
        with pytest.raises(RuntimeError):
            feeder.feed_many([rt.Sample("a", x[i], sequence=i)])
    pool.out_of_order = False
    for i in range(2, 8):
        out += feeder.feed(rt.Sample("a", x[i], sequence=i))
    assert_same_bits(rows_fed(out), rows_of(TINY, [[(row,) for row in x]]))
    adds_up(feeder)


NUMBERS = st.one_of(st.integers(), st.floats(), st.booleans(), st.none(), st.text(max_size=2), st.binary(max_size=2))
ARRAYS = st.sampled_from(
    [np.zeros(3), np.zeros((1, 3), np.float32), np.float32(1), np.ma.zeros(3, np.float32), np.array(["a"], object)]
)
JUNK = st.one_of(NUMBERS, ARRAYS, st.lists(NUMBERS, max_size=4), st.dictionaries(st.sampled_from("xyzw"), NUMBERS))


@settings(max_examples=300, deadline=None)
@given(JUNK, st.one_of(st.just("a"), NUMBERS), NUMBERS, NUMBERS, st.sampled_from(["reject", "hold", "interpolate"]))
def test_junk_gives_named_errors_and_the_feed_goes_on(
    values: Any, stream_id: Any, timestamp_s: Any, sequence: Any, missing: str
) -> None:
    feeder = rt.Feeder(TINY, rt.SensorClock(rate_hz=50, missing=missing, gap="hold"))
    first = feeder.feed(rt.Sample("a", [1.0, 2.0, 3.0], sequence=0))
    for place in ((timestamp_s, sequence), (None, 1)):
        with contextlib.suppress(EdgeseqError):
            feeder.feed(rt.Sample(stream_id, values, *place))
        adds_up(feeder)
    out = first + feeder.flush("a")  # nothing hangs in an array of another kind
    assert all(np.isfinite(p.output).all() for p in out)
    twin = rt.Feeder(TINY, feeder.clock)
    for each in feeder.ids:
        twin.restore(each, feeder.snapshot(each))


def test_a_reset_keeps_what_waits_and_knows_what_was_taken() -> None:
    clock = rt.SensorClock(rate_hz=50, gap="hold", missing="interpolate", grace_s=0.04)
    feeder, x = rt.Feeder(TINY, clock), tiny_samples(9)
    missing = {3, 4}
    sent = [rt.Sample("a", [None, *row[1:].tolist()] if i in missing else row, sequence=i) for i, row in enumerate(x)]
    out = [p for i in (0, 2, 3, 4, 6) for p in feeder.feed(sent[i])]
    assert feeder.n_waiting("a") == 3  # two without the channel's next value, one behind a hole
    feeder.reset("a")
    assert feeder.n_waiting("a") == 3
    adds_up(feeder)
    for i in (3, 5, 7, 8, 1, 2, 4):  # 3 waits already; 1 is late; 2 and 4 were used
        out += feeder.feed(sent[i])
    out += feeder.flush("a")
    assert (feeder.counters.duplicates, feeder.counters.late, feeder.counters.used) == (3, 1, 8)
    adds_up(feeder)
    whole = x.copy()
    whole[1] = x[0]
    whole[[3, 4], 0] = x[5, 0]  # before the first value there is no line to draw
    assert_same_bits(rows_fed(out), rows_of(TINY, [[(row,) for row in whole[:3]], [(row,) for row in whole[3:]]]))
