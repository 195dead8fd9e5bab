"""A pool gives what lone streams give, and no bit of it depends on the other streams."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgeseq import runtime as rt
from tests.runtime.pool_models import MODELS, assert_close, bits, part, samples

LoadModel = Callable[[str], rt.Model]
N = 41  # samples of a stream
IDS = [f"pump-{i}" for i in range(20)]  # more than the smallest call has lanes


def _drive(pool: rt.Pool, stream_id: str, x: Any, beside: Callable[[], None] = lambda: None) -> list[Any]:
    """Steps, chunks, and the end; ``beside`` comes before each call."""
    given, start = [], 0
    for size in (1, 1, 1, 4, 1, 0, 9, 1, 1, 2, 1, 1, 13, 1, 1, 1, 2):
        beside()
        if size == 1:
            given.append(pool.step({stream_id: part(x, start)})[stream_id])
        else:
            given.append(pool.push({stream_id: part(x, slice(start, start + size))})[stream_id])
        start += size
    assert start == N
    return [*given, pool.flush(stream_id)]


@pytest.mark.parametrize("name", MODELS)
def test_every_stream_is_as_if_alone(name: str, pool_model: LoadModel) -> None:
    model = pool_model(name)
    pool, rng = model.pool(100, slab=7), np.random.default_rng(1)
    data = {stream_id: samples(model, N, i, 1 + i % 3) for i, stream_id in enumerate(IDS)}
    alone = {stream_id: model.stream(stream_id) for stream_id in IDS}
    for stream_id in IDS:
        pool.open(stream_id)
    for _ in range(60):
        some = [i for i in rng.permutation(IDS)[: rng.integers(1, 21)] if alone[i].position < N]
        if rng.integers(2):
            given = {i: part(data[i], alone[i].position) for i in some}
            got, expected = pool.step(given), {i: alone[i].step(x) for i, x in given.items()}
        else:
            sizes = [int(rng.choice([0, 1, 2, 7])) for _ in some]
            given = {
                i: part(data[i], slice(alone[i].position, alone[i].position + n))
                for i, n in zip(some, sizes, strict=True)
            }
            got, expected = pool.push(given), {i: alone[i].push(x) for i, x in given.items()}
        assert list(got) == list(given)
        for i in given:
            assert_close(got[i], expected[i])
            assert pool.position(i) == alone[i].position
    for i in IDS:
        assert_close(pool.flush(i), alone[i].flush())


@pytest.mark.parametrize("name", MODELS)
def test_no_bit_depends_on_the_neighbours(name: str, pool_model: LoadModel) -> None:
    model = pool_model(name)
    x = samples(model, N, 0)
    quiet = model.pool(100)
    quiet.open("a")
    expected = [bits(y) for y in _drive(quiet, "a", x)]

    crowd, turn = model.pool(100, slab=3), 0
    for stream_id in IDS[:13]:
        crowd.open(stream_id)
    for stream_id in IDS[3:13:2]:
        crowd.close(stream_id)
    crowd.open("a")  # in a place that was another's
    others = [i for i in IDS[:13] if i in crowd]

    def beside() -> None:
        nonlocal turn
        turn += 1
        loud = {i: samples(model, 1 + turn % 4, turn, 1e4) for i in others[: turn % 9]}
        crowd.push(loud)
        crowd.step({i: part(x, 0) for i, x in loud.items()})

    assert [bits(y) for y in _drive(crowd, "a", x, beside)] == expected


@pytest.mark.parametrize("name", MODELS)
def test_no_bit_depends_on_how_many_move_together(name: str, pool_model: LoadModel) -> None:
    model = pool_model(name)
    seen: dict[int, Any] = {}
    for n_others in (0, 1, 15, 16, 40, 70):
        pool = model.pool(100, slab=64)
        ids = [str(i) for i in range(n_others)]
        ids.insert(n_others // 2, "a")
        for stream_id in ids:
            pool.open(stream_id)
        given = []
        for turn in range(12):
            x = {i: samples(model, 3, turn * 1000 + (0 if i == "a" else k), 3) for k, i in enumerate(ids, 1)}
            given.append(pool.step({i: part(each, 0) for i, each in x.items()})["a"])
            if turn % 5 == 2:
                given.append(pool.push(x)["a"])
        seen[n_others] = [bits(y) for y in given]
    assert all(each == seen[0] for each in seen.values())


@pytest.mark.parametrize("name", MODELS)
def test_no_bit_depends_on_where_the_others_stand(name: str, pool_model: LoadModel) -> None:
    """New rows are written as blocks only where all are at one position, side by side."""
    model, seen = pool_model(name), {}
    for others in ("in lock-step", "with a gap", "one elsewhere", "in another order", "of two slabs"):
        pool, ids = model.pool(100, slab=34 if others == "of two slabs" else 64), [str(i) for i in range(68)]
        for stream_id in ids:
            pool.open(stream_id)
        if others == "with a gap":
            pool.close(ids.pop(20))
        elif others == "one elsewhere":
            pool.step({"30": part(samples(model, 1, 0), 0)})
        elif others == "in another order":
            ids.reverse()
        given = []
        for turn in range(15):
            x = {i: part(samples(model, 1, turn * 100 + int(i)), 0) for i in ids}
            rows = pool.step(x)
            given.append([bits(rows[i]) for i in ("5", "40")])
        seen[others] = (given, pool.snapshot("5"), pool.snapshot("40"))
    assert all(each == seen["in lock-step"] for each in seen.values())


@pytest.mark.parametrize("name", MODELS)
def test_a_recycled_place_equals_a_new_one(name: str, pool_model: LoadModel) -> None:
    model = pool_model(name)
    x, loud = samples(model, N, 0), samples(model, 30, 1, 100)
    new, used = model.pool(1), model.pool(1)
    new.open("a")
    expected = [bits(y) for y in _drive(new, "a", x)]
    used.open("b")
    used.push({"b": loud})
    used.step({"b": part(loud, 0)})
    used.close("b")
    used.open("a")
    assert [bits(y) for y in _drive(used, "a", x)] == expected
    used.reset("a")
    assert [bits(y) for y in _drive(used, "a", x)] == expected


@pytest.mark.parametrize("name", ["TCN", "same TCN", "classifier", "strided", "LSTM", "ports"])
def test_shards_give_the_same_bits(name: str, pool_model: LoadModel) -> None:
    model = pool_model(name)
    pools = [model.pool(100, slab=9, shards=n) for n in (1, 2, 5)]
    for stream_id in IDS:
        for pool in pools:
            pool.open(stream_id)
    for turn in range(15):
        x = {i: samples(model, 3, turn * 100 + k) for k, i in enumerate(IDS)}
        step = [{i: bits(y) for i, y in pool.step({i: part(x[i], 0) for i in IDS}).items()} for pool in pools]
        push = [{i: bits(y) for i, y in pool.push(x).items()} for pool in pools]
        assert step[0] == step[1] == step[2]
        assert push[0] == push[1] == push[2]
    assert len({pool.snapshot() for pool in pools}) == 1


def test_arrays_are_the_same_as_mappings(pool_model: LoadModel) -> None:
    for name in MODELS:
        model = pool_model(name)
        pools = [model.pool(100), model.pool(100)]
        order = [IDS[i] for i in (3, 0, 2, 9)]
        for stream_id in IDS:
            for pool in pools:
                pool.open(stream_id)
        for turn in range(12):
            x = samples(model, len(order), turn)
            got = pools[0].step(order, x)
            expected = pools[1].step({i: part(x, k) for k, i in enumerate(order)})
            for k, stream_id in enumerate(order):
                one = {port: rows[k] for port, rows in got.items()} if isinstance(got, dict) else got[k]
                assert bits(one) == bits(expected[stream_id])


def test_a_plain_model_gives_one_array(pool_model: LoadModel) -> None:
    model = pool_model("TCN")
    pool = model.pool()
    for stream_id in IDS:
        pool.open(stream_id)
    y = pool.step(IDS, samples(model, len(IDS), 0))
    assert isinstance(y, np.ndarray)
    assert y.shape == (len(IDS), *model.output.shape)
    assert pool.step([], samples(model, 0, 0)).shape == (0, *model.output.shape)
    assert pool.step({}) == pool.push({}) == {}
