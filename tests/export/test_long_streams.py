"""A hundred thousand steps through every kind of state: no drift against the offline run."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from edgeseq.export.streaming.step_model import streamify
from tests.export.masked_graphs import COUNTED, MASK, ZEROS, constants, layer
from tests.export.test_streamify import EVERY_STEP, NO_TIME, TO_CHANNELS, Array, parse, session, stream, weights

STEPS, EDGE = 100_000, 10_000
TOLERANCE = 1e-5

GRU = {"W": weights(1, 12, 4), "R": weights(1, 12, 4), "B": weights(1, 24), "ONE": np.array([1])}
LSTM = {"W": weights(1, 16, 4), "R": weights(1, 16, 4), "B": weights(1, 32), "ONE": np.array([1])}
FIRST, SECOND = ({f"W{i}": weights(4, 4, 3), f"B{i}": weights(4)} for i in range(2))
CONVS = FIRST | SECOND | {f"W{i}": weights(4, 4, 3) for i in (2, 3)} | {f"B{i}": weights(4) for i in (2, 3)}


def _tcn(pads: Callable[[int], str]) -> str:
    layers = [
        f"c{d} = Conv<pads=[{pads(d)}], dilations=[{d}]>(h{i}, W{i}, B{i}) r{d} = Tanh(c{d}) h{i + 1} = Add(r{d}, h{i})"
        for i, d in enumerate((1, 2, 4, 8))
    ]
    return f"h0 = Transpose<perm=[0,2,1]>(input) {' '.join(layers)} y = Tanh(h4)"


CAUSAL, SAME = _tcn(lambda d: f"{2 * d},0"), _tcn(lambda d: f"{d},{d}")
BACK = "output = Transpose<perm=[0,2,1]>"

# name: (body that gives every step's features as (B, T, K) in `output`, constants)
EVERY: dict[str, tuple[str, dict[str, Array]]] = {
    "causal convolutions": (f"{CAUSAL} {BACK}(y)", CONVS),
    "'same' convolutions: masks, delay lines, position": (f"{SAME} {BACK}(y)", CONVS),
    "strides, and transposed back": (
        f"{TO_CHANNELS} a = Conv<pads=[2,1], strides=[3]>(t, W0, B0) b = Tanh(a) p = MaxPool<kernel_shape=[2], "
        f"pads=[0,1]>(b) u = ConvTranspose<strides=[3]>(p, W1, B1) {BACK}(u)",
        FIRST | SECOND,
    ),
    "LSTM": (
        "t = Transpose<perm=[1,0,2]>(input) y = LSTM<hidden_size=4>(t, W, R, B) s = Squeeze(y, ONE) "
        "output = Transpose<perm=[1,0,2]>(s)",
        LSTM,
    ),
    "GRU behind lookahead": (
        f"{TO_CHANNELS} c = Conv<pads=[1,1]>(t, W0, B0) u = Transpose<perm=[2,0,1]>(c) "
        "y = GRU<hidden_size=4, linear_before_reset=1>(u, W, R, B) s = Squeeze(y, ONE) "
        "output = Transpose<perm=[1,0,2]>(s)",
        FIRST | GRU,
    ),
}

CONV = "t0 = Transpose<perm=[0,2,1]>(input) c0 = Conv<pads=[1,1]>(t0, W0, B0) seen = Transpose<perm=[0,2,1]>(c0) "
MASKED = {
    "LSTM under a mask": MASK + COUNTED + layer("LSTM"),
    "GRU under a mask, zeros between": MASK + COUNTED + layer("GRU", spread=ZEROS),
    "RNN under a mask, behind lookahead": CONV + MASK + COUNTED + layer("RNN", "seen"),
}
for name, body in MASKED.items():
    EVERY[name] = body, constants(name.split()[0], body, least=1.0) | (FIRST if "Conv" in body else {})

# name: (operator over time of (B, T, 4), what it is of float64 rows)
POOLS: dict[str, tuple[str, Callable[[Array], Array]]] = {
    "mean": ("ReduceMean", lambda h: np.cumsum(h, axis=1) / np.arange(1, h.shape[1] + 1)[:, None]),
    "maximum": ("ReduceMax", lambda h: np.maximum.accumulate(h, axis=1)),
    "norm": ("ReduceL2", lambda h: np.sqrt(np.cumsum(h * h, axis=1))),
}


def samples() -> Array:
    rng = np.random.default_rng(0)
    return (rng.normal(size=(1, STEPS, 4)) + 0.3).astype(np.float32)  # a mean of zero would hide a drift of sums


def chunks() -> list[int]:
    rng, sizes = np.random.default_rng(1), list[int]()
    while sum(sizes) < STEPS:
        sizes += [1, 2, int(rng.integers(1, 10_000))]
    return sizes


def check(got: Array, expected: Array) -> None:
    """Close everywhere, and no farther off at the end than at the start."""
    assert got.shape == expected.shape
    error = np.abs(got - expected) / np.maximum(1.0, np.abs(expected))
    first, last = error[:, :EDGE].max(), error[:, -EDGE:].max()
    assert error.max() <= TOLERANCE
    assert last <= 2 * first + 1e-6, (first, last)


def check_every_step(name: str, sizes: Sequence[int]) -> None:
    offline, x = parse(EVERY[name][0], EVERY_STEP, EVERY[name][1]), samples()
    check(stream(streamify(offline), x, sizes), session(offline).run(None, {"input": x})[0])


def check_pool(name: str, behind: str, sizes: Sequence[int]) -> None:
    op_type, running = POOLS[name]
    body, constants = EVERY[behind]
    (features,) = session(parse(body, EVERY_STEP, constants)).run(None, {"input": samples()})
    body = f"{body.replace('output', 'h')} m = {op_type}<keepdims=0>(h, ONE) output = Identity(m)"
    step = streamify(parse(body, NO_TIME, constants | {"ONE": np.array([1])}))
    check(stream(step, samples(), sizes), running(features.astype(np.float64)))


@pytest.mark.parametrize("name", EVERY)
def test_chunks(name: str) -> None:
    check_every_step(name, chunks())


@pytest.mark.parametrize("behind", ["causal convolutions", "'same' convolutions: masks, delay lines, position"])
@pytest.mark.parametrize("name", POOLS)
def test_pools_in_chunks(name: str, behind: str) -> None:
    check_pool(name, behind, chunks())


@pytest.mark.extended
@pytest.mark.parametrize("name", EVERY)
def test_single_steps(name: str) -> None:
    check_every_step(name, [1] * STEPS)


@pytest.mark.extended
@pytest.mark.parametrize("name", POOLS)
def test_pools_in_single_steps(name: str) -> None:
    check_pool(name, "'same' convolutions: masks, delay lines, position", [1] * STEPS)
