"""A slow reference of bounded lookahead in numpy, by the definition, and small models for it.

Nothing here is shared with what it is held against: the cells are written after the ONNX operators' own formulas, one
step of one sequence at a time, and blocks are cut from the whole sequence.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

Array = np.ndarray[Any, Any]

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
MERGES: dict[str, Callable[[Array, Array], Array]] = {
    "concat": lambda a, b: np.concatenate([a, b], axis=-1),
    "sum": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "ave": lambda a, b: (a + b) / 2,
}


@dataclass(frozen=True)
class Weights:
    """Of one direction: W (G·U, C), R (G·U, U), the input's bias and the recurrence's (G·U,) each."""

    w: Array
    r: Array
    b: Array
    rb: Array


def draw(rng: np.random.Generator, op_type: str, n_in: int, units: int, gain: float = 1.0) -> Weights:
    """Random weights and biases."""
    rows = GATES[op_type] * units
    w, r = rng.normal(size=(rows, n_in)) / np.sqrt(n_in), rng.normal(size=(rows, units)) * gain / np.sqrt(units)
    return Weights(*(a.astype(np.float32) for a in (w, r, rng.normal(size=rows) / 2, rng.normal(size=rows) / 2)))


def _sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def run_cell(op_type: str, weights: Weights, x: Array, h: Array, c: Array) -> tuple[Array, Array]:
    """One step of one sequence, x (C,): the next (h, c). The GRU is the one of linear_before_reset=1."""
    given, back = weights.w @ x + weights.b, weights.r @ h + weights.rb
    if op_type == "RNN":
        return np.tanh(given + back), c
    if op_type == "GRU":
        (z, r, n), (bz, br, bn) = np.split(given, 3), np.split(back, 3)
        update, reset = _sigmoid(z + bz), _sigmoid(r + br)
        return (1 - update) * np.tanh(n + reset * bn) + update * h, c
    i, o, f, g = np.split(given + back, 4)
    c = _sigmoid(f) * c + _sigmoid(i) * np.tanh(g)
    return _sigmoid(o) * np.tanh(c), c


def run_rows(op_type: str, weights: Weights, x: Array) -> Array:
    """All h (T, U) over x (T, C), from zero."""
    h = c = np.zeros(weights.r.shape[1])
    rows = np.zeros((len(x), len(h)))
    for t, row in enumerate(x.astype(np.float64)):
        h, c = run_cell(op_type, weights, row, h, c)
        rows[t] = h
    return rows


def run_blocks(op_type: str, weights: Weights, x: Array, *, chunk: int, steps: int, delay: int) -> Array:
    """The backward half (T, U): whenever ``chunk`` more rows have come, ``delay`` rows late, the oldest are final."""
    rows = np.full((len(x), weights.r.shape[1]), np.nan)
    newest = -delay
    while newest - steps < len(x):
        newest += chunk
        begin = newest - steps - chunk
        seen = x[max(0, begin) : max(0, newest)]  # numpy itself ends at the last row
        h = run_rows(op_type, weights, seen[::-1])[::-1]
        final = max(0, newest - steps) - max(0, begin)
        rows[max(0, begin) : max(0, newest - steps)] = h[: max(0, final)]
    assert not np.isnan(rows).any()
    return rows


@dataclass(frozen=True)
class Stack:
    """Recurrent layers over (T, C), each both ways and merged; then a dense head for every step."""

    op_type: str
    merge: str
    layers: tuple[tuple[Weights, Weights], ...]
    head: tuple[Array, Array]

    def offline(self, x: Array) -> Array:
        """(T, K): what the layers give, the future unbounded."""
        for ahead, back in self.layers:
            x = MERGES[self.merge](
                run_rows(self.op_type, ahead, x), run_rows(self.op_type, back, np.asarray(x)[::-1])[::-1]
            )
        return np.asarray(x @ self.head[0] + self.head[1])

    def latency_controlled(self, x: Array, *, chunk: int, steps: int) -> Array:
        """(T, K): what they give with bounded lookahead."""
        for i, (ahead, back) in enumerate(self.layers):
            future = run_blocks(self.op_type, back, x, chunk=chunk, steps=steps, delay=i * steps)
            x = MERGES[self.merge](run_rows(self.op_type, ahead, x), future)
        return np.asarray(x @ self.head[0] + self.head[1])


def stack(
    op_type: str,
    *,
    merge: str = "concat",
    n_layers: int = 1,
    n_in: int = 3,
    units: int = 5,
    gain: float = 1.0,
    seed: int = 0,
) -> Stack:
    """A stack of random weights, with a head of two outputs."""
    rng = np.random.default_rng(seed)
    layers, width = [], n_in
    for _ in range(n_layers):
        layers.append((draw(rng, op_type, width, units, gain), draw(rng, op_type, width, units, gain)))
        width = units * (2 if merge == "concat" else 1)
    return Stack(
        op_type,
        merge,
        tuple(layers),
        (rng.normal(size=(width, 2)).astype(np.float32), rng.normal(size=2).astype(np.float32)),
    )


def write(path: Path, model: Stack, *, one_node: bool = True, turned: bool = False) -> Path:
    """An offline file (batch, time, C) -> (batch, time, 2): one bidirectional node a layer, or one each way.

    One node each way is written as Keras does: the input is reversed, and so is what comes of it. If ``turned``, the
    backward node has the direction "reverse", and so has the forward one, between two reversals.
    """
    nodes: list[onnx.NodeProto] = []
    constants: dict[str, Array] = {
        "one": np.array([1]),
        "half": np.array(0.5, np.float32),
        "last": np.array([-1]),
        "first": np.array([np.iinfo(np.int64).min]),
        "zero": np.array([0]),
    }

    def op(op_type: str, name: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(op_type, list(inputs), [name], name=name, **attributes))
        return name

    def recurrent(name: str, x: str, halves: Sequence[Weights], **attributes: Any) -> str:
        parts = {
            "w": np.stack([half.w for half in halves]),
            "r": np.stack([half.r for half in halves]),
            "b": np.stack([np.concatenate([half.b, half.rb]) for half in halves]),
        }
        constants.update({f"{name}_{key}": value for key, value in parts.items()})
        more = {"linear_before_reset": 1} if model.op_type == "GRU" else {}
        units = halves[0].r.shape[1]
        return op(model.op_type, name, x, *(f"{name}_{key}" for key in parts), hidden_size=units, **more, **attributes)

    def reverse(name: str, x: str) -> str:
        return op("Slice", name, x, "last", "first", "zero", "last")

    x = op("Transpose", "time_first", "input", perm=[1, 0, 2])
    for i, halves in enumerate(model.layers):
        if one_node:
            y = recurrent(f"both_{i}", x, halves, direction="bidirectional")
            nodes.append(helper.make_node("Split", [y], [f"f_{i}", f"r_{i}"], axis=1, num_outputs=2))
            ahead, back = f"f_{i}", f"r_{i}"
        else:
            ahead = x if not turned else reverse(f"x_a_{i}", x)
            ahead = recurrent(f"ahead_{i}", ahead, halves[:1], direction="reverse" if turned else "forward")
            ahead = reverse(f"a_{i}", ahead) if turned else ahead
        if not one_node and turned:
            back = recurrent(f"back_{i}", x, halves[1:], direction="reverse")
        elif not one_node:
            back = reverse(f"r_{i}", recurrent(f"back_{i}", reverse(f"x_r_{i}", x), halves[1:]))
        ahead, back = (op("Squeeze", f"{each}_flat", each, "one") for each in (ahead, back))
        if model.merge == "concat":
            x = op("Concat", f"merged_{i}", ahead, back, axis=2)
        else:
            x = op("Mul" if model.merge == "mul" else "Add", f"merged_{i}", ahead, back)
            x = op("Mul", f"halved_{i}", x, "half") if model.merge == "ave" else x
    constants |= {"head": model.head[0], "bias": model.head[1]}
    op("Add", "output", op("MatMul", "scores", op("Transpose", "batch_first", x, perm=[1, 0, 2]), "head"), "bias")
    n_in = model.layers[0][0].w.shape[1]
    used = {name for node in nodes for name in node.input}
    graph = helper.make_graph(
        nodes,
        "lookahead",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["batch", "time", n_in])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, ["batch", "time", 2])],
        [numpy_helper.from_array(value, name) for name, value in constants.items() if name in used],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(made, path)
    return path
