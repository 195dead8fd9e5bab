"""Drawn operations on a pool, against one lone stream for each id, and a pool of one for each id for the bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from edgeseq import runtime as rt
from tests.runtime.pool_models import assert_close, bits, part, samples

IDS = [f"s{i}" for i in range(7)]
CAPACITY = 5
IDLE_S = 50.0


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class PoolMachine(RuleBasedStateMachine):
    """The oracles of a stream: a ``Stream`` for its values, and a pool in which it is alone for its bits."""

    model: rt.Model
    operations = 0

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.options: dict[str, Any] = {"capacity": CAPACITY, "slab": 2, "idle_s": IDLE_S, "clock": self.clock}
        self.alone: dict[str, rt.Stream] = {}
        self.lonely: dict[str, rt.Pool] = {}
        self.ended: set[str] = set()
        self.used: dict[str, float] = {}
        self.expired: set[str] = set()
        self.kept: list[tuple[bytes, bytes, bytes, bool]] = []
        self.seed = 0

    @initialize(shards=st.sampled_from([1, 1, 2]))
    def make(self, shards: int) -> None:
        self.options["shards"] = shards
        self.pool = self.model.pool(**self.options)

    def _samples(self, n: int) -> Any:
        self.seed += 1
        return samples(self.model, n, self.seed, 10.0 ** (self.seed % 3))

    def _use(self, *ids: str) -> None:
        type(self).operations += 1
        for stream_id in ids:
            self.used[stream_id] = self.clock.now

    def _forget(self, stream_id: str) -> None:
        del self.alone[stream_id], self.lonely[stream_id], self.used[stream_id]
        self.ended.discard(stream_id)

    def _running(self, ids: list[str]) -> list[str]:
        return [i for i in ids if i in self.alone and i not in self.ended]

    @rule(stream_id=st.sampled_from(IDS))
    def open(self, stream_id: str) -> None:
        if stream_id in self.alone:
            with pytest.raises(rt.StreamExistsError, match=stream_id):
                self.pool.open(stream_id)
        elif len(self.alone) == CAPACITY:
            with pytest.raises(rt.PoolFullError, match=stream_id):
                self.pool.open(stream_id)
        else:
            self.pool.open(stream_id)
            self._opened(stream_id, self.model.stream(stream_id), None)
        self._use(*({stream_id} & set(self.alone) - set(self.used)))

    def _opened(self, stream_id: str, stream: rt.Stream, snapshot: bytes | None) -> None:
        self.alone[stream_id] = stream
        self.lonely[stream_id] = self.model.pool(1)
        self.lonely[stream_id].open(stream_id, snapshot=snapshot)
        self.used[stream_id] = self.clock.now
        self.expired.discard(stream_id)

    @rule(ids=st.lists(st.sampled_from(IDS), unique=True), arrays=st.booleans())
    def step(self, ids: list[str], arrays: bool) -> None:
        ids = self._running(ids)
        x = self._samples(len(ids))
        given = {i: part(x, k) for k, i in enumerate(ids)}
        if arrays:
            made = self.pool.step(ids, x)
            got = {
                i: {p: y[k] for p, y in made.items()} if isinstance(made, dict) else made[k] for k, i in enumerate(ids)
            }
        else:
            got = self.pool.step(given)
        for i in ids:
            assert_close(got[i], self.alone[i].step(given[i]))
            assert bits(got[i]) == bits(self.lonely[i].step({i: given[i]})[i])
        self._use(*ids)

    @rule(sizes=st.dictionaries(st.sampled_from(IDS), st.sampled_from([0, 1, 1, 2, 3, 5, 20])))
    def push(self, sizes: dict[str, int]) -> None:
        given = {i: self._samples(sizes[i]) for i in self._running(list(sizes))}
        got = self.pool.push(given)
        assert list(got) == list(given)
        for i, x in given.items():
            assert_close(got[i], self.alone[i].push(x))
            assert bits(got[i]) == bits(self.lonely[i].push({i: x})[i])
        self._use(*given)

    @rule(ids=st.lists(st.sampled_from(IDS), unique=True, min_size=1), n=st.integers(1, 12))
    def go_on_for_a_while(self, ids: list[str], n: int) -> None:
        for _ in range(n):
            self.step(ids, False)

    @rule(stream_id=st.sampled_from(IDS), wrong=st.sampled_from(["id", "twice", "shape", "nan", "dtype"]))
    def bad_input(self, stream_id: str, wrong: str) -> None:
        ids = self._running(IDS)
        given = {i: part(self._samples(1), 0) for i in ids}
        if not ids or stream_id not in ids:
            given[stream_id] = part(self._samples(1), 0)
            kind = rt.StreamEndedError if stream_id in self.ended else rt.StreamNotOpenError
            if stream_id in self.expired:
                kind = rt.StreamExpiredError
            with pytest.raises(kind, match=stream_id):
                self.pool.step(given)
            with pytest.raises(kind, match=stream_id):
                self.pool.push({i: self._samples(2) for i in given})
        elif wrong == "twice":
            with pytest.raises(rt.InputError, match=stream_id):
                self.pool.step([*ids, stream_id], self._samples(len(ids) + 1))
        else:
            given[stream_id] = _spoilt(self._samples(1), wrong)
            with pytest.raises(rt.EdgeseqError, match=stream_id):
                self.pool.step(given)
            chunks = {i: self._samples(2) for i in ids}
            chunks[stream_id] = _spoilt(self._samples(1), wrong, chunk=True)
            with pytest.raises(rt.EdgeseqError, match=stream_id):
                self.pool.push(chunks)
        self._use()

    @rule(stream_id=st.sampled_from(IDS))
    def flush(self, stream_id: str) -> None:
        if stream_id not in self.alone:
            with pytest.raises(rt.StreamNotOpenError, match=stream_id):
                self.pool.flush(stream_id)
        else:
            got = self.pool.flush(stream_id)
            assert_close(got, self.alone[stream_id].flush())
            assert bits(got) == bits(self.lonely[stream_id].flush(stream_id))
            self.ended.add(stream_id)
            self._use(stream_id)

    @rule(stream_id=st.sampled_from(IDS))
    def reset(self, stream_id: str) -> None:
        if stream_id in self.alone:
            self.pool.reset(stream_id)
            self.alone[stream_id].reset()
            self.lonely[stream_id].reset(stream_id)
            self.ended.discard(stream_id)
            self._use(stream_id)

    @rule(stream_id=st.sampled_from(IDS))
    def close(self, stream_id: str) -> None:
        if stream_id in self.alone:
            self.pool.close(stream_id)
            self._forget(stream_id)
        else:
            with pytest.raises(rt.StreamNotOpenError, match=stream_id):
                self.pool.close(stream_id)
        self._use()

    @rule(seconds=st.sampled_from([1.0, 20.0, IDLE_S]))
    def time_goes_by(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule()
    def expire(self) -> None:
        idle = [i for i, used in self.used.items() if self.clock.now - used >= IDLE_S]
        assert sorted(self.pool.expire()) == sorted(idle)
        for stream_id in idle:
            self._forget(stream_id)
            self.expired.add(stream_id)
        self._use()

    @precondition(lambda self: self.alone)
    @rule(data=st.data())
    def snapshot_of_a_stream(self, data: st.DataObject) -> None:
        stream_id = data.draw(st.sampled_from(sorted(self.alone)))
        taken, own = self.pool.snapshot(stream_id), self.alone[stream_id].snapshot()
        assert taken == self.lonely[stream_id].snapshot(stream_id)
        self.model.restore(taken)
        self.kept.append((taken, own, taken, stream_id in self.ended))
        self.kept = self.kept[-4:]
        self._use()

    @precondition(lambda self: self.kept and len(self.alone) < CAPACITY)
    @rule(data=st.data())
    def open_from_a_snapshot(self, data: st.DataObject) -> None:
        stream_id = data.draw(st.sampled_from([i for i in IDS if i not in self.alone]))
        ours, own, lonely, ended = data.draw(st.sampled_from(self.kept))
        self.pool.open(stream_id, snapshot=ours)
        self._opened(stream_id, self.model.restore(own, stream_id), lonely)
        if ended:
            self.ended.add(stream_id)
        self._use()

    @precondition(lambda self: self.kept)
    @rule(cut=st.integers(0, 10_000))
    def open_from_half_a_snapshot(self, cut: int) -> None:
        free = [i for i in IDS if i not in self.alone]
        with pytest.raises(rt.SnapshotError):
            self.pool.open(free[0], snapshot=self.kept[0][0][: cut % len(self.kept[0][0])])
        self._use()

    @rule(slab=st.sampled_from([1, 2, 3]), shards=st.sampled_from([1, 2]))
    def another_pool_takes_over(self, slab: int, shards: int) -> None:
        data = self.pool.snapshot()
        self.pool = self.model.restore_pool(data, **{**self.options, "slab": slab, "shards": shards})
        assert self.pool.snapshot() == data
        self.used = dict.fromkeys(self.used, self.clock.now)
        self.expired = set()
        self._use()

    @invariant()
    def knows_its_streams(self) -> None:
        if hasattr(self, "pool"):
            assert set(self.pool.ids) == set(self.alone)
            assert len(self.pool) == len(self.alone)
            for stream_id, stream in self.alone.items():
                assert stream_id in self.pool
                assert self.pool.position(stream_id) == stream.position


def _spoilt(x: Any, wrong: str, *, chunk: bool = False) -> Any:
    """A sample, or a chunk, that no model takes."""
    if isinstance(x, dict):
        first, *rest = x
        return {
            first: _spoilt(x[first], wrong, chunk=chunk),
            **{name: part(x[name], slice(None) if chunk else 0) for name in rest},
        }
    x = x if chunk else x[0]
    if wrong == "shape":
        return np.zeros((*x.shape, 2), x.dtype)
    if wrong == "nan" and x.dtype.kind == "f":
        return np.full_like(x, np.nan)
    return np.asarray(x).astype(np.complex64)


SOME = ["TCN", "same TCN", "classifier", "strided, ahead", "GRU behind lookahead", "ports"]
CHECKS = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]


def _run(model: rt.Model, **options: Any) -> int:
    machine = type("Machine", (PoolMachine,), {"model": model, "operations": 0})
    run_state_machine_as_test(machine, settings=settings(deadline=None, suppress_health_check=CHECKS, **options))
    return int(machine.operations)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", SOME)
def test_a_pool_is_so_many_streams(name: str, pool_model: Callable[[str], rt.Model]) -> None:
    assert _run(pool_model(name), max_examples=6, stateful_step_count=40) > 50


@pytest.mark.extended
def test_a_pool_is_so_many_streams_for_long(pool_model: Callable[[str], rt.Model]) -> None:
    done = 0
    while done < 100_000:
        for name in SOME:
            done += _run(pool_model(name), max_examples=50, stateful_step_count=200)
