"""Stream files in which several ways to stream meet: masks, bounded lookahead, held first steps, merged axes, promises.

Small ONNX graphs of another exporter, so to speak, with random weights and biases; ``SEAMS`` has their names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgeseq.export import streamify
from tests.export import masked_graphs
from tests.export.test_stream_held import GRU, INTO, OUT, STATE

Array = np.ndarray[Any, Any]
_RNG = np.random.default_rng(5)


def _weights(*shape: int) -> Array:
    return np.asarray(_RNG.normal(size=shape) / np.sqrt(np.prod(shape[1:])), np.float32)


@dataclass(frozen=True)
class Seam:
    """A graph: its body, constants, ports, and what ``streamify`` is told."""

    body: str
    constants: dict[str, Any]
    options: dict[str, Any] = field(default_factory=dict)
    inputs: str = "float[batch, time, 4] input"
    outputs: str = "float[batch, rows, channels] output"


_CONV = {"CW": _weights(4, 4, 3), "CB": _weights(4)}
_LAYER = {"BW": _weights(2, 8, 4), "BR": _weights(2, 8, 2), "BB": _weights(2, 16), "BOTH": np.array([0, 0, 4])}
_NARROW = {**_LAYER, "BW": _weights(2, 8, 3)}
_CUT = {"S": np.array([0]), "E": np.array([1]), "A": np.array([1])}


def _conv(source: str, result: str, how: str = "pads=[1,1]") -> str:
    return (
        f"c0 = Transpose<perm=[0,2,1]>({source}) c1 = Conv<{how}>(c0, CW, CB) c2 = Tanh(c1) "
        f"{result} = Transpose<perm=[0,2,1]>(c2) "
    )


def _both_ways(source: str, result: str) -> str:
    return (
        f'b0 = Transpose<perm=[1,0,2]>({source}) b1 = LSTM<hidden_size=2, direction="bidirectional">(b0, BW, BR, BB) '
        f"b2 = Transpose<perm=[2,0,1,3]>(b1) {result} = Reshape(b2, BOTH) "
    )


def _masked(spread: str = masked_graphs.LAST, source: str = "input", result: str = "output", kind: str = "LSTM") -> str:
    return masked_graphs.MASK + masked_graphs.COUNTED + masked_graphs.layer(kind, source, result, spread)


_MASK_LATE = _conv("input", "late") + _masked(source="late")
_MASK_BOTH = _conv("input", "late") + _masked(source="late", result="held") + _both_ways("held", "output")
_ZEROS = _masked(masked_graphs.ZEROS, kind="GRU")
_HELD_GRU = f" t = Transpose<perm=[1,0,2]>(both) y = GRU<hidden_size=3>(t, W, R, B, , h) {OUT}"
_SAME = _conv("input", "half", 'auto_pad="SAME_UPPER", strides=[2]')

SEAMS: dict[str, Seam] = {
    "a mask": Seam(_ZEROS, masked_graphs.constants("GRU", _ZEROS)),
    "a mask behind lookahead": Seam(_MASK_LATE, {**masked_graphs.constants("LSTM", _MASK_LATE), **_CONV}),
    "a mask, then both ways": Seam(
        _MASK_BOTH, {**masked_graphs.constants("LSTM", _MASK_BOTH), **_CONV, **_NARROW}, {"lookahead": 4, "chunk": 3}
    ),
    "both ways, by a promise": Seam(
        _SAME + _both_ways("half", "output"),
        {**_CONV, **_LAYER},
        {"lookahead": 3, "chunk": 2, "length_modulo": (2, 1)},
    ),
    "both ways, of every second sample, and another output": Seam(
        _conv("input", "half", "pads=[2,0], strides=[2]") + _both_ways("half", "slow") + "now = Tanh(input)",
        {**_CONV, **_LAYER},
        {"lookahead": 3, "chunk": 2},
        outputs="float[batch, rows, 4] slow, float[batch, time, 4] now",
    ),
    "both ways, of two inputs": Seam(
        f"e = Gather(TABLE, word) j = Add(e, input) {_both_ways('j', 'both')} {_conv('input', 'near')}",
        {"TABLE": _weights(11, 4), **_CONV, **_LAYER},
        {"lookahead": 2, "chunk": 4},
        "float[batch, time, 4] input, int64[batch, time] word",
        "float[batch, rows, 4] both, float[batch, time, 4] near",
    ),
    "both ways, under the first step": Seam(
        "f = Slice(input, S, E, A) d = Sub(input, f) " + _both_ways("d", "output"),
        {**_CUT, **_LAYER},
        {"lookahead": 3, "chunk": 2},
    ),
    "both ways, then a state of the first step": Seam(
        _both_ways("input", "both") + STATE.replace("(input", "(both") + _HELD_GRU,
        {**INTO, **GRU, "ONCE": np.array([1]), **_LAYER},
        {"lookahead": 3, "chunk": 2},
    ),
    "both ways, behind merged axes": Seam(
        "sizes = Shape(input) two = Slice(sizes, Z, TWO) m = Reshape(input, FLAT) n = Softmax(m) "
        "all = Concat<axis=0>(two, FOUR) p = Reshape(n, all) " + _both_ways("p", "output"),
        {"Z": np.array([0]), "TWO": np.array([2]), "FOUR": np.array([4]), "FLAT": np.array([-1, 4]), **_LAYER},
        {"lookahead": 3, "chunk": 2},
    ),
    "both ways, then a padding before": Seam(
        _both_ways("input", "both") + "t = Transpose<perm=[0,2,1]>(both) p = Pad(t, PADS, ONE) "
        "c = Conv(p, CW, CB) output = Transpose<perm=[0,2,1]>(c)",
        {**_CONV, **_LAYER, "PADS": np.array([0, 0, 4, 0, 0, 1]), "ONE": np.array(1, np.float32)},
        {"lookahead": 3, "chunk": 2},
    ),
    "a window over a promise": Seam(
        _SAME + "output = ReduceMax<keepdims=0>(half, A)",
        {**_CONV, "A": np.array([1])},
        {"length_modulo": (2, 1), "pooling_window": 4},
        outputs="float[batch, 4] output",
    ),
}


def write(name: str, folder: Path) -> Path:
    """The offline file and the stream file of one of them; returns the latter."""
    seam = SEAMS[name]
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]> g ({seam.inputs}) => ({seam.outputs}) {{ {seam.body} }}"""
    )
    used = {name for node in model.graph.node for name in node.input}
    for constant, array in seam.constants.items():
        if constant in used:
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, constant))
    onnx.save(model, folder / "m.onnx")
    return streamify(folder / "m.onnx", folder / "m.stream.onnx", 1, **seam.options).stream
