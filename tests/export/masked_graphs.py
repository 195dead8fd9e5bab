"""Recurrent layers under a mask as ONNX graphs in the exporter's words, and as a loop in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
UNITS, CHANNELS = 3, 4

# A step counts if its largest channel is above LEAST.
MASK = "r = ReduceMax<keepdims=0>(input, TWO) m = Greater(r, LEAST) "
COUNTED = (
    "ones = Cast<to=6>(m) count = ReduceSum<keepdims=0>(ones, ONE) k = Shape<start=1, end=2>(ones) "
    "v, order = TopK<axis=1>(ones, k) o = Unsqueeze(order, TWO) "
)
LAST = "sums = CumSum(ones, ONE32) p = Sub(sums, ONE32) p64 = Cast<to=7>(p) at = Unsqueeze(p64, TWO) "
ZEROS = (
    "sums = CumSum<exclusive=1>(ones, ONE32) p = Where(m, sums, MINUS) p64 = Cast<to=7>(p) at = Unsqueeze(p64, TWO) "
)


def layer(kind: str, source: str = "input", result: str = "output", spread: str = LAST, n: str = "") -> str:
    """The nodes from compact steps to spread ones; ``y, h[, c]`` are the operator's, all names end in ``n``."""
    outputs = f"y{n}, h{n}, c{n}" if kind == "LSTM" else f"y{n}, h{n}"
    reset = ", linear_before_reset=1" if kind == "GRU" else ""
    return (
        f"front{n} = GatherND<batch_dims=1>({source}, o) t{n} = Transpose<perm=[1, 0, 2]>(front{n}) "
        f"{outputs} = {kind}<hidden_size={UNITS}{reset}>(t{n}, W{n}, R, B, count) q{n} = Squeeze(y{n}, ONE) "
        f"u{n} = Transpose<perm=[1, 0, 2]>(q{n}) {spread}{result} = GatherND<batch_dims=1>(u{n}, at) "
    )


def constants(kind: str, body: str, least: float = 0.0) -> dict[str, Array]:
    """Those of the body's constants that it reads."""
    rng = np.random.default_rng(7)
    gates = GATES[kind]
    known: dict[str, Array] = {
        "W": rng.normal(size=(1, gates * UNITS, CHANNELS)).astype(np.float32) * np.float32(0.5),
        "R": rng.normal(size=(1, gates * UNITS, UNITS)).astype(np.float32) * np.float32(0.5),
        "B": rng.normal(size=(1, 2 * gates * UNITS)).astype(np.float32) * np.float32(0.5),
        "ZERO": np.array([0]),
        "ONE": np.array([1]),
        "MINUS1": np.array([-1]),
        "END": np.array([2**63 - 1]),
        "TWO": np.array([2]),
        "ONE32": np.array(1, np.int32),
        "MINUS": np.array(-1, np.int32),
        "LEAST": np.array(least, np.float32),
        "NONE": np.array(0.0, np.float32),
        "NAN": np.array(np.nan, np.float32),
    }
    words = body.replace("(", " ").replace(")", " ").replace(",", " ").split()
    return {name: value for name, value in known.items() if name in words}


def loop(kind: str, given: dict[str, Array], x: Array, mask: Array, *, zeros: bool = False) -> tuple[Array, Array]:
    """Step after step in float64: (outputs (B, T, U), the last of the states, (B, U) each). The state is chosen."""
    w, r, b = (given[name][0].astype(np.float64) for name in ("W", "R", "B"))
    states = [np.zeros((len(x), UNITS)) for _ in range(2 if kind == "LSTM" else 1)]
    rows = []
    for t in range(x.shape[1]):
        new = _CELLS[kind](x[:, t].astype(np.float64), states, w, r, b)
        states = [np.where(mask[:, t, None], fresh, old) for fresh, old in zip(new, states, strict=True)]
        rows.append(np.where(mask[:, t, None], states[0], 0.0) if zeros else states[0])
    return np.stack(rows, axis=1), np.stack(states)


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def _lstm(x: Array, states: list[Array], w: Array, r: Array, b: Array) -> list[Array]:
    h, c = states
    i, o, f, g = np.split(x @ w.T + h @ r.T + b[: len(w)] + b[len(w) :], 4, axis=1)
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
    return [_sigmoid(o) * np.tanh(c), c]


def _gru(x: Array, states: list[Array], w: Array, r: Array, b: Array) -> list[Array]:
    (h,) = states
    (zx, rx, nx), (zh, rh, nh) = (
        np.split(x @ w.T + b[: len(w)], 3, axis=1),
        np.split(h @ r.T + b[len(w) :], 3, axis=1),
    )
    z = _sigmoid(zx + zh)
    return [(1 - z) * np.tanh(nx + _sigmoid(rx + rh) * nh) + z * h]


def _rnn(x: Array, states: list[Array], w: Array, r: Array, b: Array) -> list[Array]:
    return [np.tanh(x @ w.T + states[0] @ r.T + b[: len(w)] + b[len(w) :])]


_CELLS = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


def samples(length: int, least: float = 0.0) -> tuple[Array, Array]:
    """Eight sequences (8, T, 4) and which steps count (8, T): all, none, not the first, not the last, gaps, ..."""
    rng = np.random.default_rng(length)
    mask = np.ones((8, length), bool)
    mask[1] = False
    mask[2, : (length + 1) // 2] = False
    mask[3, length // 2 :] = False
    mask[4, length // 3 : 2 * length // 3 + 1] = False
    mask[5, ::2] = False
    mask[6, 1::2] = False
    mask[7] = rng.random(length) < 0.5
    x = -np.abs(rng.normal(size=(8, length, CHANNELS))).astype(np.float32) + np.float32(least)
    x[..., 1] = np.where(mask, np.abs(x[..., 1]) + np.float32(0.1), x[..., 1])
    return x, mask
