"""Chunks: which path they take, and that one which fails on the way has not begun."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeseq import runtime as rt
from edgeseq.export import export_model
from tests.runtime.test_fast_step import MIXED

TINY = Path("tests/data/tiny.stream.onnx")
MODEL = rt.load(TINY)


def _samples(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)


@pytest.mark.parametrize("size", [1, 2, 5, 100, 600])
def test_a_chunk_may_lie_in_memory_in_any_way(size: int) -> None:
    x = _samples(size)
    expected = MODEL.stream().push(x)
    read_only = x.copy()
    read_only.flags.writeable = False
    every_second = np.full((2 * size, 3), np.float32(7))
    every_second[::2] = x
    backwards = x[::-1].copy()
    for chunk in (np.asfortranarray(x), every_second[::2], backwards[::-1], read_only):
        np.testing.assert_array_equal(MODEL.stream().push(chunk), expected)


def test_what_push_gave_is_the_callers_own() -> None:
    stream, x = MODEL.stream(), _samples(90)
    for size in (2, 30):
        given = x[:size].copy()
        y = stream.push(given)
        kept = y.copy()
        given[:] = np.nan
        stream.push(x[size : 2 * size])
        np.testing.assert_array_equal(y, kept)


class Failing:
    """Stands for a function: from its n-th call on, it is interrupted before or after its work."""

    def __init__(self, call: Any, n: int, when: str) -> None:
        self.call, self.left, self.when = call, n, when

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left >= 0:
            return self.call(*args, **kwargs)
        if self.when == "after":
            self.call(*args, **kwargs)
        raise KeyboardInterrupt


@pytest.fixture(scope="module")
def long_model() -> rt.Model:
    """Chunks of up to nine samples run by steps."""
    model = rt.load(TINY)
    assert model._fast is not None
    model._fast.longest_by_steps = 9
    return model


@pytest.mark.parametrize("before", [0, 1, 5])
@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("what", ["_run", "_write", "_about_to_go", "_keep"])
def test_a_chunk_by_steps_counts_as_a_whole_or_not_at_all(
    what: str, when: str, before: int, long_model: rt.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = _samples(40)
    failures = 0
    for n in range(9):
        stream, untouched = long_model.stream(), long_model.stream()
        for row in x[:before]:
            np.testing.assert_array_equal(stream.step(row), untouched.step(row))
        rings = stream._loaded()
        for _ in range(2):  # once more, on what the first failure left
            with monkeypatch.context() as patch:
                patch.setattr(rings, what, Failing(getattr(rings, what), n, when))
                try:
                    stream.push(x[10:19] * 50)
                except KeyboardInterrupt:
                    failures += 1
                else:
                    untouched.push(x[10:19] * 50)
            assert stream.position == untouched.position
            assert stream.snapshot() == untouched.snapshot()
        np.testing.assert_array_equal(stream.push(x[20:25]), untouched.push(x[20:25]))
        for row in x[25:35]:
            np.testing.assert_array_equal(stream.step(row), untouched.step(row))
        np.testing.assert_array_equal(stream.push(x[35:]), untouched.push(x[35:]))
    assert failures


@pytest.mark.parametrize("stack", MIXED)
def test_a_chunk_by_steps_that_was_not_counted_is_taken_back(
    stack: str, randomise: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = export_model(randomise(MIXED[stack]()), tmp_path, name="m").stream
    assert path is not None
    model, x = rt.load(path), np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    assert model._fast is not None
    model._fast.longest_by_steps = 9
    stream, untouched = model.stream(), model.stream()
    for i, row in enumerate(x):
        with monkeypatch.context() as patch:
            patch.setattr(stream, "_advance", Failing(None, 0, "before"))
            with pytest.raises(KeyboardInterrupt):
                stream.push(x[: 1 + i % 9] * 50)
        np.testing.assert_array_equal(stream.push(row[None]), untouched.push(row[None]))
        assert stream.snapshot() == untouched.snapshot()


def test_a_write_that_stops_halfway_is_taken_back(long_model: rt.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    x, fast = _samples(30), long_model._fast
    assert fast is not None
    for n in range(40):  # with two buffers, half of them stop between the two of a write
        stream, untouched = long_model.stream(), long_model.stream()
        for row in x[:7]:
            np.testing.assert_array_equal(stream.step(row), untouched.step(row))
        with monkeypatch.context() as patch:
            patch.setattr(fast, "newest", Failing(fast.newest, n, "before"))
            try:
                stream.push(x[10:19] * 50)
            except KeyboardInterrupt:
                pass
            else:
                assert n >= 34  # two for the step before, four for each of eight rows
                break
        for row in x[20:]:
            np.testing.assert_array_equal(stream.step(row), untouched.step(row))
    else:
        pytest.fail("never came to its end")


def test_a_restored_twin_takes_the_same_path_for_every_chunk() -> None:
    sizes, rng = [1, 2, 3, 1, 40, 2, 2, 1, 7, 1, 1], np.random.default_rng(3)
    x = _samples(sum(sizes))
    stream, at = MODEL.stream(), 0
    for size in sizes:
        twin = MODEL.restore(stream.snapshot())
        chunk = x[at : at + size]
        as_step = size == 1 and bool(rng.integers(2))
        ours = stream.step(chunk[0]) if as_step else stream.push(chunk)
        theirs = twin.step(chunk[0]) if as_step else twin.push(chunk)
        np.testing.assert_array_equal(ours, theirs)
        assert stream.snapshot() == twin.snapshot()
        at += size


def test_memory_does_not_grow_with_steps() -> None:
    stream, x = MODEL.stream(budget_us=1), _samples(40)

    def many(turns: int) -> None:
        for _ in range(turns):
            for row in x:
                stream.step(row)
            stream.push(x[:2])
            stream.push(x)

    many(20)
    tracemalloc.start()
    try:
        many(20)
        before = tracemalloc.get_traced_memory()[0]
        many(250)  # 10,000 steps
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 2000
