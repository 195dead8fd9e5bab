"""Batch and time as one axis: merged, worked on, parted again, in either order, beside branches that are not merged."""

from __future__ import annotations

import numpy as np
import pytest

from edgeseq.errors import NotStreamableError
from edgeseq.export.streaming.step_model import streamify
from tests.export.test_streamify import EVERY_STEP, Array, parse, session, stream, weights

# The sizes of (batch, time, 4), as an exporter asks for them.
SIZES = "sizes = Shape(input) two = Slice(sizes, ZERO, TWO) "
INTO = SIZES + "m = Reshape(input, FLAT) "
OUT = " back = Concat<axis=0>(two, WIDTH) output = Reshape(y, back)"
KNOWN: dict[str, Array] = {
    "ZERO": np.array([0]),
    "TWO": np.array([2]),
    "FLAT": np.array([-1, 4]),
    "WIDTH": np.array([4]),
}
# What is done between the two, to (batch · time, 4): body, constants.
BETWEEN: dict[str, tuple[str, dict[str, Array]]] = {
    "dense": ("w = MatMul(m, W) y = Add(w, B)", {"W": weights(4, 4), "B": weights(4)}),
    "gemm": ("y = Gemm<transB=1, alpha=0.5>(m, W, B)", {"W": weights(4, 4), "B": weights(4)}),
    "residual": ("w = MatMul(m, W) y = Add(w, m)", {"W": weights(4, 4)}),
    "softmax": ("y = Softmax(m)", {}),
    "mean over channels": ("c = ReduceMean<keepdims=1>(m, ONE) y = Sub(m, c)", {"ONE": np.array([1])}),
    "convolution over channels": (
        "u = Unsqueeze(m, ONE) c = Conv<pads=[1,1]>(u, W, B) y = ReduceMax<keepdims=0>(c, ONCE)",
        {"ONE": np.array([1]), "W": weights(3, 1, 3), "B": weights(3), "ONCE": np.array([1])},
    ),
    "pool over channels": (
        "u = Unsqueeze(m, ONE) c = MaxPool<kernel_shape=[3], pads=[1,1]>(u) y = Squeeze(c, ONCE)",
        {"ONE": np.array([1]), "ONCE": np.array([1])},
    ),
    "bidirectional recurrence over channels": (
        "u = Unsqueeze(m, LAST) t = Transpose<perm=[1,0,2]>(u) r = LSTM<hidden_size=2, direction=\"bidirectional\">"
        "(t, W, R, B) v = Transpose<perm=[2,0,1,3]>(r) y = ReduceMean<keepdims=0>(v, AXES)",
        {
            "LAST": np.array([2]),
            "W": weights(2, 8, 1),
            "R": weights(2, 8, 2),
            "B": weights(2, 16),
            "AXES": np.array([2]),
            "WIDTH": np.array([8]),
        },
    ),
    "last state of a recurrence over channels": (
        "u = Unsqueeze(m, LAST) t = Transpose<perm=[1,0,2]>(u) r, h = GRU<hidden_size=4>(t, W, R) y = Squeeze(h, Z)",
        {"Z": np.array([0]), "LAST": np.array([2]), "W": weights(1, 12, 1), "R": weights(1, 12, 4)},
    ),
    "attention over channels": (
        "q = Unsqueeze(m, LAST) k = Unsqueeze(m, ONE) s = MatMul(q, k) a = Softmax(s) v = MatMul(a, q) "
        "y = Squeeze(v, LAST2)",
        {"LAST": np.array([2]), "ONE": np.array([1]), "LAST2": np.array([2])},
    ),
    "other sizes on the way": (
        "g = Reshape(m, PAIRS) n = Exp(g) y = Reshape(n, FLAT2)",
        {"PAIRS": np.array([-1, 2, 2]), "FLAT2": np.array([-1, 4])},
    ),
    "padded and cropped channels": (
        "p = Pad(m, PADS) y = Slice(p, START, END, AXIS)",
        {"PADS": np.array([0, 1, 0, 2]), "START": np.array([0]), "END": np.array([4]), "AXIS": np.array([1])},
    ),
    "sorted channels": ("v, i = TopK(m, K) y = Neg(v)", {"K": np.array([4])}),
}  # fmt: skip


def keeps_the_law(body: str, constants: dict[str, Array], batch: int = 3) -> None:
    offline = parse(body, EVERY_STEP, constants)
    step, ort_session = streamify(offline), session(offline)
    assert step.timings[0].law == "equal"
    for n in (1, 2, 7, 23):
        x = np.random.default_rng(n).normal(size=(batch, n, 4)).astype(np.float32)
        (expected,) = ort_session.run(None, {"input": x})
        for sizes in ([1] * n, [3, 1, 7, 2], [n]):
            got = stream(step, x, sizes)
            assert got.shape == expected.shape
            np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("case", BETWEEN)
@pytest.mark.parametrize("batch", [1, 3])
def test_keeps_the_law(case: str, batch: int) -> None:
    body, constants = BETWEEN[case]
    keeps_the_law(INTO + body + OUT, {**KNOWN, **constants}, batch)


CONV = {"V": weights(4, 4, 3), "D": weights(4)}
TIME_FIRST = (
    "t = Transpose<perm=[1,0,2]>(input) sizes = Shape(t) two = Slice(sizes, ZERO, TWO) m = Reshape(t, FLAT) "
    "y = Exp(m) back = Concat<axis=0>(two, WIDTH) b = Reshape(y, back) output = Transpose<perm=[1,0,2]>(b)"
)
BRANCHES = (  # two merged tensors of different delays meet
    SIZES + "t = Transpose<perm=[0,2,1]>(input) c = Conv<pads=[1,1]>(t, V, D) e = Sigmoid(c) "
    "d = Transpose<perm=[0,2,1]>(e) m = Reshape(input, FLAT) n = Reshape(d, FLAT2) p = MatMul(m, W) y = Mul(p, n)" + OUT
)  # fmt: skip
DOWNSAMPLED = (  # merged behind a stride: the time that is parted is no input's
    "t = Transpose<perm=[0,2,1]>(input) c = Conv<pads=[2,0], strides=[2]>(t, V, D) d = Transpose<perm=[0,2,1]>(c) "
    "sizes = Shape(d) two = Slice(sizes, ZERO, TWO) m = Reshape(d, FLAT) y = Exp(m)" + OUT
)  # fmt: skip
INTO_STEPS = (  # parted into twice as many steps of half the channels
    "sizes = Shape(input) b = Slice(sizes, ZERO, ONE) m = Reshape(input, FLAT) y = Exp(m) "
    "back = Concat<axis=0>(b, REST) output = Reshape(y, back)"
)
THEN_MASKED = (  # rows outside the sequence are zeros again for the convolution after it
    SIZES + "m = Reshape(input, FLAT) y = Sigmoid(m) back = Concat<axis=0>(two, WIDTH) e = Reshape(y, back) "
    "t = Transpose<perm=[0,2,1]>(e) c = Conv<pads=[1,1]>(t, V, D) x = Sigmoid(c) f = Conv<pads=[0,2]>(x, V2, D2) "
    "output = Transpose<perm=[0,2,1]>(f)"
)  # fmt: skip


@pytest.mark.parametrize(
    ("body", "constants"),
    [
        (TIME_FIRST, {}),
        (BRANCHES, {**CONV, "W": weights(4, 4), "FLAT2": np.array([-1, 4])}),
        (DOWNSAMPLED, CONV),
        (INTO_STEPS, {"ONE": np.array([1]), "REST": np.array([-1, 2])}),
        (THEN_MASKED, {**CONV, "V2": weights(4, 4, 3), "D2": weights(4)}),
    ],
)
def test_keeps_the_law_beside_what_is_not_merged(body: str, constants: dict[str, Array]) -> None:
    used = {name: value for name, value in {**KNOWN, **constants}.items() if name in body}
    keeps_the_law(body, used)


@pytest.mark.parametrize(
    ("body", "constants", "told"),
    [
        # The batch and time of (time · batch) are parted as if they were those of (batch · time).
        (
            "t = Transpose<perm=[1,0,2]>(input) sizes = Shape(input) two = Slice(sizes, ZERO, TWO) "
            "m = Reshape(t, FLAT) y = Exp(m)" + OUT,
            {},
            "rearranges time together with other axes",
        ),
        (INTO + "s = ReduceSum<keepdims=1>(m, AXES) y = Sub(m, s)" + OUT, {"AXES": np.array([0])}, "mixes"),
        (INTO + "y = CumSum(m, AXIS)" + OUT, {"AXIS": np.array(0)}, "not along the batch"),
        (INTO + "n = Slice(m, ONE, FAR, ZERO2) p = Pad(n, PADS) y = Exp(p)" + OUT,
         {"ONE": np.array([1]), "FAR": np.array([2**31]), "ZERO2": np.array([0]), "PADS": np.array([1, 0, 0, 0])},
         "selects sequences of a batch"),
        (INTO + "y = Pad(m, PADS) n = Slice(y, ONE, FAR, ZERO2) output = Exp(n)",
         {"ONE": np.array([1]), "FAR": np.array([2**31]), "ZERO2": np.array([0]), "PADS": np.array([1, 0, 0, 0])},
         "pads time and other axes"),
        ("m = Reshape(input, FLAT) y = Exp(m) output = Unsqueeze(y, ZERO)", {}, "has batch and time as one axis"),
        (INTO + "t = Transpose<perm=[1,0]>(m) u = Unsqueeze(t, ZERO2) c = Conv(u, W) s = Squeeze(c, ZERO3) "
         "y = Transpose<perm=[1,0]>(s)" + OUT,
         {"ZERO2": np.array([0]), "ZERO3": np.array([0]), "W": weights(4, 4, 1)}, "do not stand first"),
    ],
)  # fmt: skip
def test_refuses_what_mixes_steps(body: str, constants: dict[str, Array], told: str) -> None:
    used = {name: value for name, value in {**KNOWN, **constants}.items() if name in body}
    with pytest.raises(NotStreamableError, match=told):
        streamify(parse(body, EVERY_STEP, used))
