"""The first step of a sequence is held: alone, under every step, and as the initial state of a recurrence."""

from __future__ import annotations

import numpy as np
import pytest

from edgeseq.errors import NotStreamableError
from edgeseq.export.streaming.step_model import streamify
from tests.export.test_streamify import (
    EVERY_STEP,
    NO_TIME,
    ONE_STEP,
    TO_CHANNELS,
    Array,
    parse,
    session,
    stream,
    weights,
)

FIRST = "f = Slice(input, S, E, A)"
CUT = {"S": np.array([0]), "E": np.array([1]), "A": np.array([1])}
LATE = f"{TO_CHANNELS} g = Conv<pads=[1,1]>(t, V, D) l = Transpose<perm=[0,2,1]>(g)"
CONV = {"V": weights(4, 4, 3), "D": weights(4)}
LSTM = {"W": weights(1, 12, 4), "R": weights(1, 12, 3), "B": weights(1, 24)}
GRU = {"W": weights(1, 9, 4), "R": weights(1, 9, 3), "B": weights(1, 18)}
INTO = {"I": np.array(0), "P": weights(4, 3), "Q": weights(3), "Z": np.array([0])}
STATE = "f = Gather<axis=1>(input, I) p = MatMul(f, P) q = Add(p, Q) h = Unsqueeze(q, Z)"
OUT = "s = Squeeze(y, ONCE) output = Transpose<perm=[1,0,2]>(s)"
# body, constants, output
EQUAL: dict[str, tuple[str, dict[str, Array]]] = {
    "change from the first step": (f"{FIRST} output = Sub(input, f)", CUT),
    "scaled by the first step": (f"{FIRST} d = Tanh(f) m = Mul(d, input) output = Add(m, f)", CUT),
    "the first step of what is late": (
        f"{LATE} f = Slice(l, S, E, A) d = Sub(input, f) e = Sigmoid(d) output = Sub(e, l)",
        {**CUT, **CONV},
    ),
    "then a padded convolution": (
        f"{FIRST} d = Sub(input, f) t = Transpose<perm=[0,2,1]>(d) c = Conv<pads=[2,1]>(t, V, D) "
        "output = Transpose<perm=[0,2,1]>(c)",
        {**CUT, **CONV},
    ),
    "sum of several": (
        f"{LATE} f = Slice(input, S, E, A) x = Sigmoid(f) output = Sum(x, f, input, l, x)",
        {**CUT, **CONV},
    ),
    "lstm": (
        f"{STATE} t = Transpose<perm=[1,0,2]>(input) y = LSTM<hidden_size=3>(t, W, R, B, , h, h) {OUT}",
        {**INTO, **LSTM, "ONCE": np.array([1])},
    ),
    "gru": (
        f"{STATE} t = Transpose<perm=[1,0,2]>(input) y = GRU<hidden_size=3>(t, W, R, B, , h) {OUT}",
        {**INTO, **GRU, "ONCE": np.array([1])},
    ),
    "gru behind lookahead": (
        f"{LATE} {STATE} o = Transpose<perm=[1,0,2]>(l) y = GRU<hidden_size=3>(o, W, R, B, , h) {OUT}",
        {**CONV, **INTO, **GRU, "ONCE": np.array([1])},
    ),
    "gru from what is late": (
        f"{LATE} f = Gather<axis=1>(l, I) p = MatMul(f, P) q = Add(p, Q) h = Unsqueeze(q, Z) "
        f"o = Transpose<perm=[1,0,2]>(input) y = GRU<hidden_size=3>(o, W, R, B, , h) {OUT}",
        {**CONV, **INTO, **GRU, "ONCE": np.array([1])},
    ),
    "gru behind a stride": (
        f"{TO_CHANNELS} g = Conv<pads=[2,0], strides=[2]>(t, V, D) l = Transpose<perm=[0,2,1]>(g) "
        "f = Gather<axis=1>(l, I) p = MatMul(f, P) h = Unsqueeze(p, Z) "
        f"o = Transpose<perm=[1,0,2]>(l) y = GRU<hidden_size=3>(o, W, R, B, , h) {OUT}",
        {**CONV, **{k: v for k, v in INTO.items() if k != "Q"}, **GRU, "ONCE": np.array([1])},
    ),
}


@pytest.mark.parametrize("case", EQUAL)
def test_keeps_the_law(case: str) -> None:
    body, constants = EQUAL[case]
    offline = parse(body, EVERY_STEP, constants)
    step, ort_session = streamify(offline, 1), session(offline)
    assert step.timings[0].law == "equal"
    assert step.timings[0].receptive_field[0] is None
    for n in (1, 2, 3, 19):
        x = np.random.default_rng(n).normal(size=(3, n, 4)).astype(np.float32)
        (expected,) = ort_session.run(None, {"input": x})
        for sizes in ([1] * n, [3, 1, 7], [n]):
            got = stream(step, x, sizes)
            assert got.shape == expected.shape
            np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("body", "constants", "output"),
    [
        ("output = Slice(input, S, E, A)", CUT, ONE_STEP),
        ("output = Gather<axis=1>(input, I)", {"I": np.array(0)}, NO_TIME),
        (f"{FIRST} l = Slice(input, S2, E2, A2) output = Sub(l, f)",
         {**CUT, "S2": np.array([-1]), "E2": np.array([2**31]), "A2": np.array([1])}, ONE_STEP),
    ],
)  # fmt: skip
def test_as_a_head_each_row_is_the_output_so_far(body: str, constants: dict[str, Array], output: str) -> None:
    offline = parse(body, output, constants)
    step, ort_session = streamify(offline, 1), session(offline)
    assert step.timings[0].law == "prefix"
    x = np.random.default_rng(0).normal(size=(3, 19, 4)).astype(np.float32)
    rows = stream(step, x, [3, 1, 7, 1])
    for n in range(1, 20):
        (expected,) = ort_session.run(None, {"input": np.ascontiguousarray(x[:, :n])})
        np.testing.assert_allclose(rows[:, n - 1], expected.reshape(3, -1), atol=1e-5)


def test_what_is_not_finite_later_leaves_the_first_step_alone() -> None:
    step = streamify(parse(f"{FIRST} t = Tanh(f) output = Add(t, f)", ONE_STEP, CUT), 1)
    x = np.random.default_rng(0).normal(size=(1, 9, 4)).astype(np.float32)
    expected = stream(step, x, [2, 3])
    x[:, 1:] = np.nan
    np.testing.assert_array_equal(stream(step, x, [2, 3]), expected)


@pytest.mark.parametrize(
    ("body", "constants", "told"),
    [
        ("t = Transpose<perm=[1,0,2]>(input) e, h = GRU<hidden_size=3>(t, W, R, B) "
         f"t2 = Transpose<perm=[1,0,2]>(input) y = GRU<hidden_size=3>(t2, W2, R2, B2, , h) {OUT}",
         {**GRU, **{f"{k}2": v for k, v in GRU.items()}, "ONCE": np.array([1])},
         "depends on more of the sequence than its first step"),
        ("r = Slice(input, A, B, C, D) f = Gather<axis=1>(r, I) output = Relu(f)",
         {"A": np.array([-1]), "B": np.array([-(2**31)]), "C": np.array([1]), "D": np.array([-1]), "I": np.array(0)},
         "first step of reversed time"),
        ("f = Gather<axis=1>(input, I) output = Relu(f)", {"I": np.array(2)}, "takes steps at fixed places"),
    ],
)  # fmt: skip
def test_refuses_what_is_not_the_first_step(body: str, constants: dict[str, Array], told: str) -> None:
    with pytest.raises(NotStreamableError, match=told):
        streamify(parse(body, EVERY_STEP, constants), 1)
