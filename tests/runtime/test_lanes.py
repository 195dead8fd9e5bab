"""Lane counts: what does not agree to the last bit is not used."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeseq import runtime as rt
from edgeseq.runtime import pool_calls
from edgeseq.runtime.lanes import Ladder, Rung, agreeing

STREAMS = np.random.default_rng(0).normal(size=(2, 5)).astype(np.float32)


def _probe(which: Any) -> Any:
    return [STREAMS[which], STREAMS[which, :1].astype(np.int64)]


def test_everything_agrees() -> None:
    ladder = agreeing([4, 16, 8], _probe)
    assert [(rung.size, rung.lanes) for rung in ladder.rungs] == [(4, None), (8, None), (16, None)]
    assert str(ladder) == "4, 8, 16"


def test_a_lane_count_with_other_bits_is_left_out() -> None:
    def probe(which: Any) -> Any:
        first, second = _probe(which)
        return [np.nextafter(first, 9) if len(which) == 8 else first, second]

    assert str(agreeing([4, 8, 16], probe)) == "4, 16"


def test_lanes_with_other_bits_are_left_out() -> None:
    def probe(which: Any) -> Any:
        first = STREAMS[which]
        if len(which) == 8:
            first[5:] = np.nextafter(first[5:], 9)  # as the rest of a vectorised loop
        return [first]

    ladder = agreeing([8, 16], probe)
    assert str(ladder) == "8 (5 used), 16"
    assert ladder.rungs[0].places(3).tolist() == [0, 1, 2]  # type: ignore[union-attr]
    assert ladder.rungs[0].n_streams == 5


def test_neighbours_that_are_felt_leave_one_stream_a_call() -> None:
    def probe(which: Any) -> Any:
        return [STREAMS[which] / np.abs(STREAMS[which]).max()]  # as dynamic quantisation does

    assert str(agreeing([8, 16], probe)) == "1"


def test_a_lane_count_that_disagrees_with_itself_is_not_the_measure() -> None:
    def probe(which: Any) -> Any:
        return [STREAMS[which] + np.arange(len(which), dtype=np.float32)[:, None] * (len(which) == 16)]

    assert str(agreeing([4, 8, 16], probe)) == "4, 8"


def test_zeros_of_another_sign_are_other_bits_and_nan_is_itself() -> None:
    assert str(agreeing([2, 4], lambda which: [np.full((len(which), 1), np.nan)])) == "2, 4"
    assert str(agreeing([2, 4], lambda which: [np.full((len(which), 1), 0.0 if len(which) == 4 else -0.0)])) == "4"


@pytest.mark.parametrize("n", range(0, 700, 7))
def test_calls_serve_every_stream_once(n: int) -> None:
    ladder = Ladder((Rung(16, np.arange(13)), Rung(64), Rung(256)))
    calls = ladder.calls(n)
    assert [i for _, part in calls for i in range(part.start, part.stop)] == list(range(n))
    assert all(part.stop - part.start <= rung.n_streams for rung, part in calls)


def test_a_pool_works_with_whatever_lanes_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    model = rt.load("tests/data/tiny.stream.onnx")
    x = np.random.default_rng(0).normal(size=(9, 40, 3)).astype(np.float32)
    ids = [str(i) for i in range(40)]

    def rows() -> Any:
        pool = model.pool()
        for stream_id in ids:
            pool.open(stream_id)
        return np.stack([pool.step(ids, each) for each in x])

    expected = rows()
    odd = Ladder((Rung(16, np.array([1, 2, 3, 7, 9, 10, 11, 12, 14])), Rung(64, np.arange(3, 60))))
    monkeypatch.setattr(pool_calls, "agreeing", lambda *_: odd)
    np.testing.assert_array_equal(rows(), expected)
