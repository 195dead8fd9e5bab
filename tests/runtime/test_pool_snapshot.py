"""Snapshots of pools: equal bytes for equal states, streams that go in and out, and what is refused."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from edgeseq import runtime as rt
from edgeseq.runtime.snapshot import pack, unpack
from tests.runtime.pool_models import MODELS, assert_close, bits, part, samples

TINY = rt.load("tests/data/tiny.stream.onnx")
LoadModel = Callable[[str], rt.Model]
IDS = ["b", "ä", "a", "pump/7"]


def _moved(model: rt.Model, pool: rt.Pool, seed: int = 0) -> rt.Pool:
    for k, stream_id in enumerate(sorted(pool.ids)):
        pool.push({stream_id: samples(model, 5 + 3 * k, seed + k)})
        pool.step({stream_id: part(samples(model, 1, seed + k), 0)})
    return pool


def _opened(model: rt.Model, ids: list[str], **options: Any) -> rt.Pool:
    pool = model.pool(**options)
    for stream_id in ids:
        pool.open(stream_id)
    return pool


@pytest.mark.parametrize("name", MODELS)
def test_equal_states_give_equal_bytes(name: str, pool_model: LoadModel) -> None:
    model = pool_model(name)
    pool = _moved(model, _opened(model, IDS))
    other = _opened(model, ["x", *IDS[::-1], "y"], slab=2, shards=2, clock=lambda: 99.0, idle_s=3)
    other.step({"a": part(samples(model, 1, 9), 0)})
    for stream_id in ("a", "b"):
        other.reset(stream_id)
    other.close("x")
    other.close("y")
    _moved(model, other)
    assert pool.snapshot() == other.snapshot()
    assert pool.snapshot("a") == other.snapshot("a")


@pytest.mark.parametrize("name", MODELS)
def test_a_stream_goes_from_a_pool_to_a_lone_stream_and_back(name: str, pool_model: LoadModel) -> None:
    model = pool_model(name)
    pool = _moved(model, _opened(model, IDS))
    taken = pool.snapshot("b")
    alone = model.restore(taken, "b")
    assert alone.snapshot() == taken
    assert alone.position == pool.position("b")
    other = model.pool()
    other.open("new", snapshot=alone.snapshot())
    assert other.snapshot("new") == taken
    x = samples(model, 9, 5)
    for k in range(4):
        rows = pool.step({"b": part(x, k)})["b"]
        assert_close(alone.step(part(x, k)), rows)
        assert bits(other.step({"new": part(x, k)})["new"]) == bits(rows)
    rows = pool.push({"b": x})["b"]
    assert_close(alone.push(x), rows)
    assert bits(other.push({"new": x})["new"]) == bits(rows)
    assert_close(alone.flush(), pool.flush("b"))


@pytest.mark.parametrize("name", MODELS)
def test_a_restored_pool_goes_on_bitwise(name: str, pool_model: LoadModel) -> None:
    model = pool_model(name)
    pool = _moved(model, _opened(model, IDS, slab=3))
    pool.flush("a")
    twin = model.restore_pool(pool.snapshot(), capacity=7, slab=2)
    assert sorted(twin.ids) == sorted(IDS)
    x = samples(model, 6, 1)
    running = [i for i in IDS if i != "a"]
    for _ in range(2):
        given = {i: part(x, k) for k, i in enumerate(running)}
        assert bits(pool.step(given)) == bits(twin.step(given))
        chunks = {i: part(x, slice(k + 1)) for k, i in enumerate(running)}
        assert bits(pool.push(chunks)) == bits(twin.push(chunks))
    with pytest.raises(rt.StreamEndedError):
        twin.step({"a": part(x, 0)})
    assert pool.snapshot() == twin.snapshot()


def test_an_empty_pool_has_a_snapshot() -> None:
    pool = TINY.restore_pool(TINY.pool().snapshot())
    assert len(pool) == 0
    pool.open("a")


def test_a_pool_that_is_too_small_is_refused() -> None:
    data = _opened(TINY, IDS).snapshot()
    with pytest.raises(rt.PoolFullError, match="all of its 3 streams"):
        TINY.restore_pool(data, capacity=3)


def test_a_snapshot_of_the_other_kind_is_refused() -> None:
    pool = _opened(TINY, IDS)
    with pytest.raises(rt.SnapshotError, match=r"of a pool, expected one of a stream; use Model\.restore_pool"):
        pool.open("x", snapshot=pool.snapshot())
    with pytest.raises(rt.SnapshotError, match=r"of a stream, expected one of a pool; use Model\.restore"):
        TINY.restore_pool(pool.snapshot("a"))
    with pytest.raises(rt.SnapshotError):
        TINY.restore(pool.snapshot())
    assert "x" not in pool


def test_truncated_damaged_foreign_and_newer_snapshots_are_refused(pool_model: LoadModel) -> None:
    pool = _moved(TINY, _opened(TINY, IDS))
    before = pool.snapshot()
    for data, load in ((before, TINY.restore_pool), (pool.snapshot("a"), lambda data: pool.open("x", snapshot=data))):
        for stop in [*range(0, 60), *range(60, len(data), 97), len(data) - 1]:
            with pytest.raises(rt.SnapshotError):
                load(data[:stop])
        for at in range(0, len(data), 53):
            with pytest.raises(rt.SnapshotError):
                load(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(rt.SnapshotError, match=r"truncated|damaged"):
            load(data + b"0")
        header, arrays = unpack(data)
        with pytest.raises(rt.SnapshotError, match="of another model"):
            load(pack({**header, "graph_sha256": "0"}, list(arrays.items())))
        with pytest.raises(rt.SnapshotError, match="of format 9, this edgeseq reads 1"):
            load(_signed(data.replace(b'"format_version":1', b'"format_version":9')))
    with pytest.raises(rt.SnapshotError, match="of another model"):
        pool_model("LSTM").restore_pool(before)
    assert pool.snapshot() == before


def _signed(data: bytes) -> bytes:
    return data[:-32] + hashlib.sha256(data[:-32]).digest()


def _ids(value: Any) -> Any:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"streams": 5}, "'position': expected"),
        ({"streams": -1}, "'streams'"),
        ({"streams": True}, "'streams'"),
        ({"extra": 1}, "its fields"),
        ({"ids": None}, "its array 'ids'"),
        ({"ids": _ids(["b", "a", "c", "d"])}, "a list of 4 texts"),  # not in order
        ({"ids": _ids(["a", "a", "b", "c"])}, "a list of 4 texts"),
        ({"ids": _ids(["a", "b", "c"])}, "a list of 4 texts"),
        ({"ids": _ids(["a", "b", "c", 1])}, "a list of 4 texts"),
        ({"ids": _ids({"a": 1})}, "a list of 4 texts"),
        ({"ids": np.frombuffer(b"\xff[", np.uint8)}, "expected JSON"),
        ({"ids": np.frombuffer(b"[" * 100_000, np.uint8)}, "expected JSON"),
        ({"position": np.array([1, 2, 3, -4])}, "'position'"),
        ({"position": np.array([1, 2, 3, 2**41])}, "'position'"),
        ({"fed": np.array([0, 0, 0, 9])}, "samples that wait"),
        ({"ended": np.array([0, 0, 0, 2])}, "0 or 1"),
        ({"ended": np.array([0, 0, 0, 0], np.int32)}, "'ended'"),
        ({"more": np.zeros(3)}, "its arrays"),
    ],
)
def test_a_signed_snapshot_that_no_pool_has_is_refused(changes: dict[str, Any], reason: str) -> None:
    header, arrays = unpack(_opened(TINY, IDS).snapshot())
    for name, value in changes.items():
        if name in {"streams", "extra"}:
            header[name] = value
        elif value is None:
            del arrays[name]
        else:
            arrays[name] = value
    with pytest.raises(rt.SnapshotError, match=reason):
        TINY.restore_pool(pack(header, list(arrays.items())))


def test_a_count_in_a_state_that_is_not_what_was_fed_is_refused(pool_model: LoadModel) -> None:
    model = pool_model("same TCN")
    pool = _moved(model, _opened(model, IDS))
    header, arrays = unpack(pool.snapshot())
    (name,) = [name for name in arrays if name.endswith("_position")]
    arrays[name] = arrays[name] + 1
    with pytest.raises(rt.SnapshotError, match="as many samples as were fed"):
        model.restore_pool(pack(header, list(arrays.items())))
