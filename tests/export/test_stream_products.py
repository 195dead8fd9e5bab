"""Products of each step alone, what works along channels, and attention, which is refused for one of two reasons."""

from __future__ import annotations

import numpy as np
import pytest

from edgeseq.errors import NotStreamableError
from edgeseq.export.streaming.step_model import streamify
from tests.export.test_streamify import EVERY_STEP, TO_CHANNELS, Array, parse, session, stream, weights

LATE = f"{TO_CHANNELS} c = Conv<pads=[1,1]>(t, V) l = Transpose<perm=[0,2,1]>(c)"  # the input's rows, one later
# body, constants
STREAMABLE: dict[str, tuple[str, dict[str, Array]]] = {
    "projection to heads and back": (
        'h = Einsum<equation="abc,cde->abde">(input, W) a = Add(h, B) o = Tanh(a) '
        'output = Einsum<equation="abcd,cde->abe">(o, U)',
        {"W": weights(4, 2, 3), "B": weights(2, 3), "U": weights(2, 3, 4)},
    ),
    "ellipsis": ('output = Einsum<equation="...c,cd->...d">(input, W)', {"W": weights(4, 3)}),
    "constant first": ('output = Einsum<equation="dc, btc -> btd">(W, input)', {"W": weights(3, 4)}),
    "time and channels turned": (
        'e = Einsum<equation="btc,cd->dbt">(input, W) output = Transpose<perm=[1,2,0]>(e)',
        {"W": weights(4, 3)},
    ),
    "two of different delay": (f'{LATE} output = Einsum<equation="btc,btc->btc">(l, input)', {"V": weights(4, 4, 3)}),
    "outer product of each step": (
        f'{LATE} e = Einsum<equation="btc,btd->btcd">(l, input) output = ReduceMax<keepdims=0>(e, AXIS)',
        {"V": weights(4, 4, 3), "AXIS": np.array([3])},
    ),
    "attention among channels": (
        f"{LATE} q = Unsqueeze(l, A) k = Unsqueeze(input, K) s = MatMul(q, k) w = Softmax(s) o = MatMul(w, q) "
        "output = Squeeze(o, Z)",
        {"V": weights(4, 4, 3), "A": np.array([3]), "K": np.array([2]), "Z": np.array([3])},
    ),
    "sorted channels": ("v, i = TopK(input, K) output = Add(v, C)", {"K": np.array([4]), "C": weights(4)}),
    "sorted channels, channels first": (
        f"{TO_CHANNELS} v, i = TopK<axis=1>(t, K) output = Transpose<perm=[0,2,1]>(v)",
        {"K": np.array([2])},
    ),
    "place of the largest channel": ("i = ArgMax<axis=2>(input) output = Cast<to=1>(i)", {}),
    "place of the smallest channel, dropped": (
        "i = ArgMin<axis=-1, keepdims=0>(input) f = Cast<to=1>(i) output = Unsqueeze(f, A)",
        {"A": np.array([2])},
    ),
    "constant of more axes": (
        "a = Mul(input, C) s = Squeeze(a, Z) output = Exp(s)",
        {"C": weights(1, 1, 1, 4), "Z": np.array([0])},
    ),
    "two constants of more axes, one stacked": (
        f"{LATE} a = Sub(l, input) b = Mul(a, C) output = ReduceSum<keepdims=0>(b, Z)",
        {"V": weights(4, 4, 3), "C": weights(3, 1, 1, 4), "Z": np.array([0])},
    ),
    "padded channels": (
        "p = Pad(input, P, N) output = Exp(p)",
        {"P": np.array([0, 0, 1, 0, 0, 2]), "N": np.array(0.5, np.float32)},
    ),
    "repeated channels": (
        'output = Resize<mode="nearest", nearest_mode="floor", coordinate_transformation_mode="asymmetric">'
        "(input, , S)",
        {"S": np.array([1, 1, 2], np.float32)},
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", STREAMABLE)
def test_keeps_the_law(case: str) -> None:
    body, constants = STREAMABLE[case]
    offline = parse(body, EVERY_STEP, constants)
    step, ort_session = streamify(offline), session(offline)
    for n in (1, 2, 19):
        x = np.random.default_rng(n).normal(size=(3, n, 4)).astype(np.float32)
        (expected,) = ort_session.run(None, {"input": x})
        for sizes in ([1] * n, [3, 1, 7], [n]):
            got = stream(step, x, sizes)
            assert got.shape == expected.shape
            np.testing.assert_allclose(got, expected, atol=1e-5)


SCORES = "k = Transpose<perm=[0,2,1]>(input) s = MatMul(input, k)"
CAUSAL = (
    "shape = Shape<start=1, end=2>(input) square = Concat<axis=0>(shape, shape) ones = ConstantOfShape(square) "
    "e = Add(ones, ONE) lower = Trilu<upper=0>(e, ZERO) keep = Cast<to=9>(lower) m = Where(keep, s, FAR) "
)  # fmt: skip
MASKED = {"ONE": np.array(1, np.float32), "ZERO": np.array(0), "FAR": np.array(-1e9, np.float32)}
REFUSED: dict[str, tuple[str, dict[str, Array], str]] = {
    "attention": (f"{SCORES} w = Softmax(s) output = MatMul(w, input)", {}, "attention over time cannot stream"),
    "causal attention": (
        f"{SCORES} {CAUSAL} w = Softmax(m) output = MatMul(w, input)",
        MASKED,
        "causal attention.*what a stream would have to keep grows with the sequence.*window of the last samples",
    ),
    "attention by Einsum": (
        's = Einsum<equation="btc,bsc->bts">(input, input) w = Softmax(s) output = MatMul(w, input)',
        {},
        "attention over time cannot stream",
    ),
    "causal attention by Einsum": (
        f's = Einsum<equation="btc,bsc->bts">(input, input) {CAUSAL} w = Softmax(m) output = MatMul(w, input)',
        MASKED,
        "grows with the sequence",
    ),
    "additive attention": (
        "q = Unsqueeze(input, A) k = Unsqueeze(input, K) a = Add(q, k) r = ReduceSum<keepdims=0>(a, C) w = Softmax(r) "
        "output = MatMul(w, input)",
        {"A": np.array([2]), "K": np.array([1]), "C": np.array([3])},
        "attention over time cannot stream",
    ),
    "sum over time by Einsum": ('output = Einsum<equation="btc,cd->bd">(input, W)', {"W": weights(4, 3)}, "sums over"),
    "sum over the batch by Einsum": ('e = Einsum<equation="btc->tc">(input) output = Unsqueeze(e, A)',
                                     {"A": np.array([0])}, "mixes the sequences of a batch"),
    "weights by time": ('output = Einsum<equation="btc,tc->btc">(input, W)', {"W": weights(5, 4)}, "varies along time"),
    "equation without a result": ('output = Einsum<equation="btc,cd">(input, W)', {"W": weights(4, 3)}, "leaves out"),
    "sorted steps": ("v, i = TopK<axis=1>(input, K) output = Exp(v)", {"K": np.array([1])}, "sorts the whole sequence"),
    "place of the largest step": ("i = ArgMax<axis=1>(input) output = Cast<to=1>(i)", {}, "picks a step"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusal_names_the_reason(case: str) -> None:
    body, constants, message = REFUSED[case]
    with pytest.raises(NotStreamableError, match=message):
        streamify(parse(body, EVERY_STEP, constants))
