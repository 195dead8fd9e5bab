"""What is padded and cut off again waits for nothing that it throws away; a window takes up the padding before it."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgeseq.export.streaming.step_model import StepModel, streamify
from tests.export.test_streamify import EVERY_STEP, TO_CHANNELS, Array, parse, stream, weights

BACK = "output = Transpose<perm=[0,2,1]>(y)"
CONV = {"W": weights(4, 4, 3), "B": weights(4)}
FAR = 2**63 - 1


def cut(end: int, start: int = 0) -> dict[str, Array]:
    return {"START": np.array([start]), "END": np.array([end]), "AXIS": np.array([2])}


# What stands before a cut: body, constants.
BODIES: dict[str, tuple[str, dict[str, Array]]] = {
    "activation": ("a = Conv<pads=[4,4], dilations=[2]>(t, W, B) h = Relu(a)", CONV),
    "arithmetic": (
        "a = Conv<pads=[4,4], dilations=[2]>(t, W, B) b = Exp(a) h = Mul(b, M)",
        {**CONV, "M": weights(4, 1)},
    ),
    "two readers": ("a = Conv<pads=[4,4], dilations=[2]>(t, W, B) b = Sigmoid(a) h = Mul(a, b)", CONV),
    "norm": (
        "a = Conv<pads=[4,4], dilations=[2]>(t, W, B) u = Transpose<perm=[0,2,1]>(a) n = LayerNormalization(u, G) "
        "h = Transpose<perm=[0,2,1]>(n)",
        {**CONV, "G": weights(4)},
    ),
    "another convolution": (
        "a = Conv<pads=[2,2]>(t, W, B) b = Sigmoid(a) h = Conv<pads=[2,2]>(b, V, D)",
        {**CONV, "V": weights(4, 4, 3), "D": weights(4)},
    ),
    "pool": ("a = MaxPool<kernel_shape=[3], pads=[2,2]>(t) b = Exp(a) h = Concat<axis=1>(b, b)", {}),
    "strided convolution": ("a = Conv<pads=[3,4], strides=[2]>(t, W, B) h = Sigmoid(a)", CONV),
    "transposed convolution": ("a = ConvTranspose<strides=[2]>(t, W, B) h = Sigmoid(a)", CONV),
    "padding": ("p = Pad(t, PADS) h = Exp(p)", {"PADS": np.array([0, 0, 2, 0, 0, 4])}),
}  # fmt: skip
# (body, rows that are cut off, lookahead): as many as the padding behind gives, fewer, and more.
CUTS = [
    *(("activation", n, ahead) for n, ahead in ((4, 0), (3, 0), (1, 0), (5, 1), (7, 3))),
    *(("arithmetic", 4, 0), ("two readers", 4, 0), ("norm", 4, 0), ("norm", 5, 1)),
    *(("another convolution", 4, 0), ("pool", 2, 0), ("pool", 3, 1)),
    *(("strided convolution", 2, 0), ("strided convolution", 1, 0)),
    *(("transposed convolution", 1, 0), ("padding", 6, 0), ("padding", 4, 0)),
]


def reference(offline: ir.Model, x: Array) -> Array:
    """What the offline graph gives as it stands: ONNX Runtime's optimiser takes a padding with zeros before a MaxPool
    for the pool's own, which is none with zeros."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(
        ir.to_proto(offline).SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return np.asarray(session.run(None, {"input": x})[0])


def streamed_like_offline(body: str, constants: dict[str, Array]) -> StepModel:
    offline = parse(body, EVERY_STEP, constants)
    step = streamify(offline)
    for n in (step.timings[0].shortest, 12, 23):
        x = np.random.default_rng(n).normal(size=(2, n, 4)).astype(np.float32)
        expected = reference(offline, x)
        for sizes in ([1] * n, [3, 1, 7, 2], [n]):
            got = stream(step, x, sizes)
            assert got.shape == expected.shape
            np.testing.assert_allclose(got, expected, atol=1e-5)
    return step


@pytest.mark.parametrize(("case", "rows", "lookahead"), CUTS)
def test_a_cut_waits_for_what_it_needs_alone(case: str, rows: int, lookahead: int) -> None:
    body, constants = BODIES[case]
    step = streamed_like_offline(
        f"{TO_CHANNELS} {body} y = Slice(h, START, END, AXIS) {BACK}", {**constants, **cut(-rows)}
    )
    assert step.timings[0].lookahead == lookahead
    if (case, rows) in (("activation", 4), ("arithmetic", 4)):
        assert step.end is None  # the convolution pads no more than what is left: no masks
        assert [s.shape for s in step.state] == [(4, 4)]


def test_cuts_at_both_ends() -> None:
    body, constants = BODIES["activation"]
    step = streamed_like_offline(
        f"{TO_CHANNELS} {body} y = Slice(h, START, END, AXIS) {BACK}", {**constants, **cut(-4, start=2)}
    )
    assert step.timings[0].lookahead == 2


PADDED = [
    "y = MaxPool<kernel_shape=[3]>(p)",
    "y = AveragePool<kernel_shape=[3]>(p)",
    "y = MaxPool<kernel_shape=[2], dilations=[2]>(p)",
    "u = Unsqueeze(p, LAST) s = Squeeze(u, LAST2) y = MaxPool<kernel_shape=[3]>(s)",
]


@pytest.mark.parametrize("number", [0.0, 0.7, -3.0])
@pytest.mark.parametrize("pool", PADDED)
def test_a_causal_padding_before_a_pool_waits_for_nothing(pool: str, number: float) -> None:
    constants = {"PADS": np.array([0, 0, 2, 0, 0, 0]), "F": np.array(number, np.float32)}
    constants |= {name: np.array([3]) for name in ("LAST", "LAST2") if name in pool}
    step = streamed_like_offline(f"{TO_CHANNELS} p = Pad(t, PADS, F) {pool} {BACK}", constants)
    assert (step.timings[0].lookahead, step.end) == (0, None)
    assert [s.shape for s in step.state] == [(4, 2)]


@pytest.mark.parametrize("number", [0.0, 0.7])
@pytest.mark.parametrize(
    ("after", "lookahead"),
    [
        ("y = Identity(p)", 0),
        ("y = MaxPool<kernel_shape=[3], strides=[2]>(p)", 0),
        ("y = MaxPool<kernel_shape=[5]>(p)", 2),
        ("y = MaxPool<kernel_shape=[3], pads=[1,1]>(p)", 1),
        ("y = AveragePool<kernel_shape=[3], pads=[1,0]>(p)", 1),
        ("y = Conv<pads=[1,2]>(p, W, B)", None),
        ("e = Exp(p) y = Conv(e, W, B)", 2),
        ("y = Slice(p, START, END, AXIS)", 0),
        ("c = Conv(p, W, B) d = Slice(p, START, END, AXIS) y = Add(c, d)", 0),
    ],
)
def test_a_padding_is_right_before_anything(after: str, lookahead: int | None, number: float) -> None:
    given = {**CONV, **cut(-1, start=1), "PADS": np.array([0, 0, 2, 0, 0, 0]), "F": np.array(number, np.float32)}
    constants = {name: value for name, value in given.items() if re.search(rf"\b{name}\b", after)}
    constants |= {name: given[name] for name in ("PADS", "F")}
    for source in ("t", "s"):  # behind lookahead, too, where rows from before the sequence come first
        behind = "" if source == "t" else "s = Slice(t, S2, E2, A2)"
        body = f"{TO_CHANNELS} {behind} p = Pad({source}, PADS, F) {after} {BACK}"
        more = {} if source == "t" else {"S2": np.array([0]), "E2": np.array([-1]), "A2": np.array([2])}
        step = streamed_like_offline(body, {**constants, **more})
        if source == "t" and lookahead is not None:
            assert step.timings[0].lookahead == lookahead
