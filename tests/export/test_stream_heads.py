"""Pools whose batch stands anywhere, and what follows the one step that is left of a sequence."""

from __future__ import annotations

import numpy as np
import pytest

from edgeseq.errors import NotStreamableError
from edgeseq.export.streaming.step_model import streamify
from tests.export.test_streamify import EVERY_STEP, NO_TIME, ONE_STEP, Array, parse, session, stream, weights

LAST = {"S": np.array([-1]), "E": np.array([2**63 - 1]), "A": np.array([1])}
CUT = "c = Slice(input, S, E, A)"
ONE, ZERO, TWO = np.array([1]), np.array([0]), np.array([2])
# body, constants, output
PREFIX: dict[str, tuple[str, dict[str, Array], str]] = {
    "last step": ("output = Slice(input, S, E, A)", LAST, ONE_STEP),
    "last step, dense": (f"{CUT} output = MatMul(c, W)", {**LAST, "W": weights(4, 3)}, ONE_STEP),
    "last step, flat": (f"{CUT} output = Flatten(c)", LAST, NO_TIME),
    "last step, cut again": (
        f"{CUT} output = Slice(c, S2, E2, A2)",
        {**LAST, "S2": ZERO, "E2": np.array([1]), "A2": np.array([1])},
        ONE_STEP,
    ),
    "last step, and the last of it": (
        f"{CUT} output = Slice(c, S2, E2, A2)",
        {**LAST, "S2": np.array([-1]), "E2": np.array([2**31]), "A2": np.array([1])},
        ONE_STEP,
    ),
    "last step, the first of it": (f"{CUT} output = Gather<axis=1>(c, I)", {**LAST, "I": np.array(0)}, NO_TIME),
    "last step, pooled": (f"{CUT} output = ReduceMax<keepdims=1>(c, ONE)", {**LAST, "ONE": ONE}, ONE_STEP),
    "last step, its mean": (f"{CUT} output = ReduceMean<keepdims=0>(c, ONE)", {**LAST, "ONE": ONE}, NO_TIME),
    "last step, its norm": (f"{CUT} output = ReduceL2<keepdims=0>(c, ONE)", {**LAST, "ONE": ONE}, NO_TIME),
    "last step, its global mean": (
        f"{CUT} t = Transpose<perm=[0,2,1]>(c) p = GlobalAveragePool(t) output = Transpose<perm=[0,2,1]>(p)",
        LAST,
        ONE_STEP,
    ),
    **{
        f"{op} of (channels, time, batch)": (
            f"p = Transpose<perm=[2,1,0]>(input) r = {op}<keepdims=0>(p, ONE) output = Transpose<perm=[1,0]>(r)",
            {"ONE": ONE},
            NO_TIME,
        )
        for op in ("ReduceMax", "ReduceMean", "ReduceSum", "ReduceL2")
    },
    "mean of (time, channels, batch)": (
        "p = Transpose<perm=[1,2,0]>(input) r = ReduceMean<keepdims=1>(p, ZERO) output = Transpose<perm=[2,0,1]>(r)",
        {"ZERO": ZERO},
        ONE_STEP,
    ),
    "maximum of (channels, batch, time)": (
        "p = Transpose<perm=[2,0,1]>(input) r = ReduceMin<keepdims=0>(p, TWO) output = Transpose<perm=[1,0]>(r)",
        {"TWO": TWO},
        NO_TIME,
    ),
}


@pytest.mark.parametrize("case", PREFIX)
def test_each_row_is_the_output_so_far(case: str) -> None:
    body, constants, output = PREFIX[case]
    offline = parse(body, output, constants)
    step, ort_session = streamify(offline), session(offline)
    assert step.timings[0].law == "prefix"
    x = np.random.default_rng(0).normal(size=(3, 19, 4)).astype(np.float32)
    rows = stream(step, x, [3, 1, 7, 1])
    for n in range(1, 20):
        (expected,) = ort_session.run(None, {"input": np.ascontiguousarray(x[:, :n])})
        np.testing.assert_allclose(rows[:, n - 1], expected.reshape(3, -1), atol=1e-5)


@pytest.mark.parametrize("exclusive", [0, 1])
@pytest.mark.parametrize(
    ("perm", "back", "axis"), [("2,1,0", "2,1,0", 1), ("1,0,2", "1,0,2", 0), ("1,2,0", "2,0,1", 0)]
)
def test_running_sums_with_the_batch_at_any_axis(perm: str, back: str, axis: int, exclusive: int) -> None:
    body = (
        f"p = Transpose<perm=[{perm}]>(input) r = CumSum<exclusive={exclusive}>(p, AXIS) "
        f"output = Transpose<perm=[{back}]>(r)"
    )
    offline = parse(body, EVERY_STEP, {"AXIS": np.array(axis)})
    x = np.random.default_rng(0).normal(size=(3, 19, 4)).astype(np.float32)
    (expected,) = session(offline).run(None, {"input": x})
    np.testing.assert_allclose(stream(streamify(offline), x, [3, 1, 7, 1]), expected, atol=1e-5)


def test_refuses_a_sum_along_the_batch() -> None:
    with pytest.raises(NotStreamableError, match="not along the batch"):
        streamify(parse("output = CumSum(input, AXIS)", EVERY_STEP, {"AXIS": np.array(0)}), 1)


@pytest.mark.parametrize("perm", ["0,1,2", "2,1,0"])
def test_a_window_with_the_batch_at_any_axis(perm: str) -> None:
    body = (
        f"p = Transpose<perm=[{perm}]>(input) r = ReduceMean<keepdims=1>(p, ONE) output = Transpose<perm=[{perm}]>(r)"
    )
    offline = parse(body, ONE_STEP, {"ONE": ONE})
    x = np.random.default_rng(0).normal(size=(3, 19, 4)).astype(np.float32)
    rows = stream(streamify(offline, pooling_window=5), x, [3, 1, 7, 1])
    for n in range(1, 20):
        np.testing.assert_allclose(rows[:, n - 1], x[:, max(0, n - 5) : n].mean(axis=1), atol=1e-5)
