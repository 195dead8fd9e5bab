"""Pools: who may open, what is refused and changes nothing, idle streams, memory, and interrupted calls."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from threading import Event, Thread, Timer
from typing import Any

import numpy as np
import pytest

from edgeseq import runtime as rt
from edgeseq.errors import ConfigError
from edgeseq.runtime import pool_calls
from edgeseq.runtime.pool_rings import RingSlab
from tests.runtime.pool_models import MODELS, bits, part, samples

TINY = rt.load("tests/data/tiny.stream.onnx")
PLAIN = rt.load("tests/data/tiny.stream.onnx", fast=False)
LoadModel = Callable[[str], rt.Model]


def _samples(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)


def _pool(*ids: str, model: rt.Model = TINY, **options: Any) -> rt.Pool:
    pool = model.pool(**options)
    for stream_id in ids:
        pool.open(stream_id)
    return pool


def test_a_pool_knows_its_streams() -> None:
    pool = _pool("b", "a")
    assert (len(pool), pool.ids, "a" in pool, "c" in pool, 3 in pool) == (2, ["b", "a"], True, False, False)
    pool.step({"a": _samples(1)[0]})
    assert (pool.position("a"), pool.position("b")) == (1, 0)
    pool.close("b")
    assert pool.ids == ["a"]
    assert repr(pool) == "Pool('tiny', 1 of 100000 streams)"


def test_explain_says_which_form_runs() -> None:
    assert TINY.pool().explain() == "steps run on the fast form, on 16, 64, 256 streams at a time"
    assert PLAIN.pool().explain() == "everything runs on the step graph: the fast form was not asked for"
    old = rt.load("tests/data/format2.stream.onnx")
    assert old.pool().explain() == "everything runs on the step graph: the file holds no fast form"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"capacity": 0}, "expected capacity, a number of 1 or more, got 0"),
        ({"capacity": 2.0}, "expected capacity, a number of 1 or more, got 2.0"),
        ({"slab": 0}, "expected slab"),
        ({"shards": True}, "expected shards"),
        ({"idle_s": True}, "expected idle_s, seconds above 0, got True"),
        ({"idle_s": 0}, "expected idle_s, seconds above 0, got 0"),
        ({"budget_us": -1}, "budget_us"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], reason: str) -> None:
    with pytest.raises(rt.EdgeseqError, match=reason):
        TINY.pool(**options)


def test_opening_twice_or_too_many_is_refused() -> None:
    pool = _pool("a", "b", capacity=2)
    with pytest.raises(rt.StreamExistsError, match=r"stream 'a': it is open already; close\(\) it"):
        pool.open("a")
    with pytest.raises(rt.PoolFullError, match=r"stream 'c': the pool has all of its 2 streams; close\(\)"):
        pool.open("c")
    with pytest.raises(rt.InputError, match="expected a text as the id of a stream, got int"):
        pool.open(3)  # type: ignore[arg-type]
    pool.close("a")
    pool.open("c")
    assert pool.ids == ["b", "c"]


def test_an_id_without_a_stream_is_an_error_everywhere() -> None:
    pool = _pool("a")
    calls: list[Callable[[], Any]] = [
        lambda: pool.step({"a": _samples(1)[0], "b": _samples(1)[0]}),
        lambda: pool.step(["a", "b"], _samples(2)),
        lambda: pool.push({"a": _samples(2), "b": _samples(2)}),
        lambda: pool.flush("b"),
        lambda: pool.reset("b"),
        lambda: pool.close("b"),
        lambda: pool.position("b"),
        lambda: pool.snapshot("b"),
    ]
    for call in calls:
        with pytest.raises(rt.StreamNotOpenError, match=r"stream 'b': the pool has no such stream; open\(\) it first"):
            call()
    with pytest.raises(rt.StreamNotOpenError, match=r"stream \['x'\]"):
        pool.step([["x"]], _samples(1))
    assert pool.position("a") == 0


def test_the_same_ids_again_may_be_other_streams() -> None:
    pool, names, x = _pool("a", "b", "c"), ["a", "b"], _samples(2)
    pool.step(names, x)
    names[1] = "c"
    pool.step(names, x)
    assert [pool.position(i) for i in "abc"] == [2, 1, 1]
    pool.close("a")
    with pytest.raises(rt.StreamNotOpenError, match="stream 'a'"):
        pool.step(names, x)
    pool.open("takes the place of a")
    pool.open("a")
    pool.step(names, x)
    assert [pool.position(i) for i in pool.ids] == [1, 2, 0, 1]
    with pytest.raises(rt.StreamNotOpenError, match="no such stream"):
        pool.step([np.zeros(2), "c"], x)
    assert [pool.position(i) for i in pool.ids] == [1, 2, 0, 1]


def test_a_bad_sample_names_the_stream_and_moves_nobody() -> None:
    pool, twin = _pool("a", "b"), _pool("a", "b")
    good, nan = _samples(1)[0], np.array([0, np.nan, 0], np.float32)
    for both in (pool, twin):
        both.step({"b": good})
    calls: list[tuple[Callable[[], Any], type[Exception], str]] = [
        (lambda: pool.step({"a": good, "b": nan}), rt.NonFiniteError, "stream 'b', sample 1: expected finite values"),
        (lambda: pool.step(["a", "b"], np.stack([good, nan])), rt.NonFiniteError, "stream 'b', sample 1: expected fin"),
        (lambda: pool.push({"a": good[None], "b": nan[None]}), rt.NonFiniteError, "stream 'b', sample 1: expected fin"),
        (lambda: pool.step({"a": good, "b": good[:2]}), rt.ShapeError, r"stream 'b', sample 1: .*got float32 \(2,\)"),
        (lambda: pool.step({"a": good, "b": good * 1.0j}), rt.DTypeError, "stream 'b', sample 1: .*complex"),
        (lambda: pool.step({"a": good, "b": [1, 2, 3]}), rt.DTypeError, "stream 'b', sample 1: .*list"),
        (lambda: pool.push({"a": good[None], "b": good}), rt.ShapeError, r"stream 'b', sample 1: .*use step\(\)"),
        (
            lambda: pool.step(["a", "b"], good),
            rt.ShapeError,
            r"pool, samples of 2 streams: .*\(2, 3\), got float32 \(3",
        ),
        (lambda: pool.step(["a"], [good]), rt.DTypeError, r"expected a numpy array float32 \(1, 3\), got list"),
        (
            lambda: pool.step(["a", "a"], _samples(2)),
            rt.InputError,
            "stream 'a': expected each stream once, got it twi",
        ),
        (lambda: pool.step(["a"]), rt.InputError, "expected a mapping from ids to samples, got list"),
        (
            lambda: pool.step(None, _samples(1)),
            rt.InputError,
            "expected ids and an array of their samples, got NoneType",
        ),
        (lambda: pool.step(5, _samples(1)), rt.InputError, "expected ids and an array of their samples, got int"),
        (lambda: pool.push([good]), rt.InputError, "expected a mapping from ids to chunks, got list"),  # type: ignore[arg-type]
    ]
    for call, kind, reason in calls:
        with pytest.raises(kind, match=reason):
            call()
        assert pool.snapshot() == twin.snapshot()
    with pytest.raises(rt.NonFiniteError):
        pool.step({"a": np.array([1, np.inf, 2], np.float32), "b": good})


def test_an_ended_stream_is_refused_by_name_until_it_is_reset() -> None:
    pool = _pool("a", "b")
    pool.push({"a": _samples(3), "b": _samples(3)})
    assert pool.flush("b").shape == (0, 2)
    before = pool.snapshot()
    with pytest.raises(rt.StreamEndedError, match=r"stream 'b': the sequence was ended by flush\(\); reset\(\) it"):
        pool.step({"a": _samples(1)[0], "b": _samples(1)[0]})
    with pytest.raises(rt.StreamEndedError, match="stream 'b'"):
        pool.push({"a": _samples(1), "b": _samples(0)})
    assert pool.snapshot() == before
    assert pool.flush("b").shape == (0, 2)
    pool.reset("b")
    pool.step({"b": _samples(1)[0]})


def test_a_token_that_the_model_does_not_know_names_the_stream(
    pool_model: LoadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = pool_model("tokens")
    with pytest.raises(rt.InputError, match="stream 'c', sample 0: expected a token from 0 to 10, got 99"):
        _pool(*"bc", model=model).step({"b": 2, "c": 99})
    (check,) = model._checks.values()
    monkeypatch.setattr(check, "_last_token", 10**6)  # as of a file that does not know its vocabulary
    for options in ({}, {"shards": 2}):
        pool = _pool(*"abcd", model=model, slab=2, **options)
        pool.step(dict.fromkeys("abcd", 3))
        before = pool.snapshot()
        with pytest.raises(rt.InputError, match="stream 'c', sample 1: ONNX Runtime rejected the input"):
            pool.step({"a": 1, "b": 2, "c": 99, "d": 3})
        with pytest.raises(rt.InputError, match="stream 'c', sample 1: expected a token from 0"):
            pool.step({"a": 1, "c": -1})
        chunk = np.array([1, 2], np.int32)
        with pytest.raises(rt.InputError, match="stream 'c', sample 1: ONNX Runtime rejected the input"):
            pool.push({"a": chunk, "c": chunk + 90})
        assert pool.snapshot() == before


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_idle_streams_expire_and_say_so() -> None:
    clock = Clock()
    pool = _pool("a", "b", "c", idle_s=10, clock=clock)
    clock.now = 9
    pool.step({"a": _samples(1)[0]})
    assert pool.expire() == []
    clock.now = 10
    pool.snapshot("b")  # to look is no use
    assert pool.expire() == ["b", "c"]
    assert pool.expire() == []
    assert pool.ids == ["a"]
    for call in (
        lambda: pool.step({"b": _samples(1)[0]}),
        lambda: pool.push({"b": _samples(1)}),
        lambda: pool.close("b"),
    ):
        with pytest.raises(
            rt.StreamExpiredError, match="stream 'b': it was idle for too long and expired, its state is"
        ):
            call()
    pool.open("b")
    pool.step({"b": _samples(1)[0]})
    with pytest.raises(rt.StreamExpiredError):
        pool.position("c")
    pool.open("c")
    pool.close("c")
    with pytest.raises(rt.StreamNotOpenError) as error:
        pool.position("c")
    assert not isinstance(error.value, rt.StreamExpiredError)  # it was closed by whoever opened it again
    with pytest.raises(ConfigError, match="expected idle_s"):
        _pool("a").expire()


def test_what_expired_is_remembered_for_as_many_as_there_may_be_streams() -> None:
    clock = Clock()
    pool = _pool(capacity=3, idle_s=1, clock=clock)
    for i in range(50):
        pool.open(f"{i}")
        clock.now += 1
        assert pool.expire() == [f"{i}"]
    assert len(pool._table._expired) == 3
    with pytest.raises(rt.StreamExpiredError):
        pool.position("49")
    with pytest.raises(rt.StreamNotOpenError):
        pool.position("0")


def test_slabs_come_and_go() -> None:
    pool = _pool(slab=4, capacity=10)
    empty, sizes = pool.n_bytes, []
    for i in range(10):
        pool.open(str(i))
        sizes.append(pool.n_bytes)
    assert empty == 0
    assert [a == b for a, b in pairwise(sizes)] == [(i % 4) != 3 for i in range(9)]
    for i in (4, 5, 6, 7):  # the middle slab
        pool.close(str(i))
    assert pool.n_bytes < sizes[-1]
    for stream_id in ("x", "y"):  # there was room in the last slab
        pool.open(stream_id)
        assert pool.n_bytes < sizes[-1]
    pool.open("z")
    assert pool.n_bytes == sizes[-1]
    for stream_id in pool.ids:
        pool.close(stream_id)
    assert pool.n_bytes == 0


@pytest.mark.parametrize("name", ["TCN", "strided", "LSTM"])
def test_many_streams_take_little_more_than_their_state(name: str, pool_model: LoadModel) -> None:
    model = pool_model(name)
    n = 10_000
    ids = [f"sensor-{i}" for i in range(n)]
    pool = model.pool(n)
    for stream_id in ids:
        pool.open(stream_id)
    pool.step(ids, samples(model, n, 0))
    table = sys.getsizeof(pool._table.place_of) + sum(sys.getsizeof(each) + 32 for each in ids)  # an id, and an int
    assert (pool.n_bytes + table) / n <= model.state_bytes * 1.15 + 1024


def test_idle_streams_cost_no_calls(monkeypatch: pytest.MonkeyPatch) -> None:
    pool = _pool(*map(str, range(300)), slab=64)
    calls = []

    def run(self: Any, shard: int, rung: Any, *rest: Any, run: Any = pool_calls.FastCalls.run) -> Any:
        calls.append(rung.size)
        return run(self, shard, rung, *rest)

    monkeypatch.setattr(pool_calls.FastCalls, "run", run)
    pool.step(["7", "8"], _samples(2))
    assert calls == [16]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_an_error_in_the_middle_loses_nothing(
    name: str, when: str, pool_model: LoadModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, ids = pool_model(name), [str(i) for i in range(9)]
    pool, untouched = (_pool(*ids, model=model, slab=2) for _ in range(2))
    n_failed = 0
    for turn in range(14):
        x = samples(model, 9, turn)
        with monkeypatch.context() as patch:
            for calls in (pool_calls.FastCalls, pool_calls.StepGraphCalls):
                patch.setattr(calls, "run", _failing(calls.run, when, fail_at=turn % 4))
            loud = {i: part(samples(model, 3, turn, 50), slice(k % 4)) for k, i in enumerate(ids)}
            failed = [_message(pool.step, ids, x), _message(pool.push, loud)]
        assert all(message is None or "pulled the plug" in message for message in failed)
        if None in failed:  # samples that wait for others need no call, and few streams too few to fail
            pool = model.restore_pool(untouched.snapshot(), slab=2)
        n_failed += 2 - failed.count(None)
        assert pool.snapshot() == untouched.snapshot()
        got, expected = pool.step(ids, x), untouched.step(ids, x)
        assert bits(np.array(got) if isinstance(got, np.ndarray) else None) == bits(
            np.array(expected) if isinstance(expected, np.ndarray) else None
        )
        assert pool.snapshot() == untouched.snapshot()
    assert n_failed > 4


def _message(call: Callable[..., Any], *arguments: Any) -> str | None:
    try:
        call(*arguments)
    except rt.InputError as error:
        return str(error)
    return None


def _failing(run: Any, when: str, fail_at: int) -> Any:
    done = 0

    def failing(*arguments: Any) -> Any:
        nonlocal done
        done += 1
        if when == "after" or done <= fail_at:
            result = run(*arguments)
        if done > fail_at:
            raise InterruptedError("pulled the plug")
        return result

    return failing


def test_an_interrupt_has_moved_all_or_none() -> None:
    ids, data = ["a", "b", "c"], _samples(30).reshape(10, 3, 3)
    expected = {}
    for n in (6, 7):
        pool = _pool(*ids, slab=2)
        for x in data[:n]:
            pool.step(ids, x)
        found = pool.snapshot()
        expected[found] = pool.step(ids, data[9])
    seen = []
    for line in range(0, 300, 2):
        pool = _pool(*ids, slab=2)
        for x in data[:6]:
            pool.step(ids, x)
        _interrupted(lambda: pool.step(ids, data[6]), line)  # noqa: B023
        found = pool.snapshot()
        assert found in expected, line
        seen.append(found)
        np.testing.assert_array_equal(pool.step(ids, data[9]), expected[found])
    assert len(set(seen)) == 2  # the interrupts came early and late


def _interrupted(call: Callable[[], Any], after: int) -> None:
    seen = 0

    def trace(_frame: Any, event: str, _arg: Any) -> Any:
        nonlocal seen
        if event == "call":  # where Python looks for signals
            seen += 1
            if seen > after:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        pass
    finally:
        sys.settrace(None)


def test_threads_that_an_interrupt_left_at_work_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    ids, x = [str(i) for i in range(200)], _samples(200)
    pool, twin = (_pool(*ids, slab=40, shards=2) for _ in range(2))
    goes_on = Event()

    def slow(self: Any, *rest: Any, run: Any = pool_calls.FastCalls.run) -> Any:
        assert goes_on.wait(20)
        return run(self, *rest)

    def interrupted(_futures: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pool_calls.FastCalls, "run", slow)
        patch.setattr("edgeseq.runtime.pool_moves.wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.step(ids, x * 9)
    Timer(0.2, goes_on.set).start()
    for _ in range(3):
        np.testing.assert_array_equal(pool.step(ids, x), twin.step(ids, x))
    assert pool.snapshot() == twin.snapshot()


def test_a_step_writes_nothing_that_it_reads() -> None:
    pool = _pool("a")
    for x in _samples(40):
        (slab,) = pool._table.slabs
        assert isinstance(slab, RingSlab)
        before = slab.read(np.array([0]), pool._table.records["fed"][:1])
        pool._advances.step(np.array([0]), pool._table.records[:1], [x[None]])
        for a, b in zip(before, slab.read(np.array([0]), pool._table.records["fed"][:1]), strict=True):
            np.testing.assert_array_equal(a, b)
        pool.step({"a": x})


def test_latencies_are_counted() -> None:
    pool = _pool("a", budget_us=1e6)
    for _ in range(3):
        pool.step({"a": _samples(1)[0]})
    pool.push({"a": _samples(2)})
    with pytest.raises(rt.InputError):
        pool.step({"a": None})
    assert (pool.latency.count, pool.push_latency.count, pool.latency.deadline_misses) == (3, 1, 0)


def test_a_pool_refuses_a_second_call_meanwhile() -> None:
    pool, x = _pool("a", "b"), _samples(1)[0]

    class Sneaky(dict[str, Any]):
        def values(self) -> Any:
            for call in (lambda: pool.step({"b": x}), lambda: pool.close("b"), lambda: pool.open("c"), pool.snapshot):
                with pytest.raises(rt.StreamBusyError, match=r"Pool\(.*another call is under way"):
                    call()
            return super().values()

    pool.step(Sneaky(a=x))
    assert (pool.position("a"), pool.position("b"), pool.ids) == (1, 0, ["a", "b"])


def test_threads_may_use_pools_of_one_model() -> None:
    data, ids = _samples(400).reshape(20, 20, 3), [str(i) for i in range(20)]
    expected = [_pool(*ids).step(ids, x) for x in data[:1]]
    results: dict[int, list[Any]] = {}

    def work(number: int) -> None:
        pool = _pool(*ids, shards=1 + number % 2, slab=7)
        results[number] = [pool.step(ids, x) for x in data]

    threads = [Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    for rows in results.values():
        np.testing.assert_array_equal(rows[0], expected[0])
        np.testing.assert_array_equal(rows, results[0])
