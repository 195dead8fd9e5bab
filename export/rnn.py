"""Recurrent Keras layers as the native ONNX operators LSTM, GRU and RNN.

Owns the translation of weights (gate order and bias layout), activations, masks and directions. Refuses an activation
that ONNX does not name. A mask becomes ``sequence_lens``, so it must be padding at the end; at padded steps ONNX gives
zeros, as a Keras ``Bidirectional`` does, where a lone Keras layer repeats its last output.

Sources: ONNX operators LSTM, GRU, RNN (https://onnx.ai/onnx/operators/); Keras gate orders i, f, c, o and z, r, h.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from edgeseq.errors import UnsupportedLayerError
from edgeseq.export.native import Emitter, NativeOps, weight

Array = np.ndarray[Any, np.dtype[np.float32]]


@dataclass(frozen=True)
class _Kind:
    """How one Keras cell is written in ONNX."""

    op_type: str
    gates: tuple[int, ...]  # for each ONNX gate, the position of the same gate in Keras
    activations: Callable[[Any], list[Any]]  # of the cell, in ONNX order
    n_states: int


_KINDS: dict[type[keras.layers.Layer], _Kind] = {
    keras.layers.LSTMCell: _Kind(
        "LSTM", (0, 3, 1, 2), lambda cell: [cell.recurrent_activation, cell.activation, cell.activation], 2
    ),
    keras.layers.GRUCell: _Kind("GRU", (0, 1, 2), lambda cell: [cell.recurrent_activation, cell.activation], 1),
    keras.layers.SimpleRNNCell: _Kind("RNN", (0,), lambda cell: [cell.activation], 1),
}

# Keras activation -> (ONNX name, alpha, beta); Keras' hard_sigmoid is relu6(x + 3) / 6.
_ACTIVATIONS: dict[Any, tuple[str, float, float]] = {
    keras.activations.sigmoid: ("Sigmoid", 0.0, 0.0),
    keras.activations.tanh: ("Tanh", 0.0, 0.0),
    keras.activations.relu: ("Relu", 0.0, 0.0),
    keras.activations.softsign: ("Softsign", 0.0, 0.0),
    keras.activations.softplus: ("Softplus", 0.0, 0.0),
    keras.activations.hard_sigmoid: ("HardSigmoid", 1 / 6, 0.5),
    keras.activations.linear: ("Affine", 1.0, 0.0),
}


def one_direction(native: NativeOps, layer: Any, x: Any, initial_state: Any, mask: Any) -> Any:
    """``LSTM``, ``GRU`` or ``SimpleRNN``: (B, T, C) to (B, T, U), or (B, U) without ``return_sequences``."""
    if _kind(layer) is None:
        return NotImplemented
    shapes = [_output_shape(layer, x, layer.units)] + [(x.shape[0], layer.units)] * _states_returned(layer)

    def finish(onnx: Emitter, y: str, last: list[str]) -> list[str]:
        if layer.return_sequences:
            out = onnx.op("Transpose", onnx.op("Squeeze", y, _axis(onnx, 1)), perm=[1, 0, 2])
            out = _reverse_time(onnx, out) if layer.go_backwards else out
        else:
            out = onnx.op("Squeeze", last[0], _axis(onnx, 0))
        states = [onnx.op("Squeeze", s, _axis(onnx, 0)) for s in last[: _states_returned(layer)]]
        return [out, *states]

    outputs = _run(
        native, [layer], x, initial_state=_states_given(initial_state), mask=mask, shapes=shapes, finish=finish
    )
    return tuple(outputs) if layer.return_state else outputs[0]


def both_directions(native: NativeOps, layer: Any, x: Any, initial_state: Any, mask: Any) -> Any:
    """``Bidirectional`` over two layers of one kind as one operator; two operators and a merge otherwise."""
    forward, backward = layer.forward_layer, layer.backward_layer
    same = _kind(forward) is _kind(backward) is not None and forward.units == backward.units
    if not same or forward.go_backwards or initial_state is not None or layer.return_state:
        return _merge_two_layers(layer, x, initial_state, mask)
    units = forward.units
    width = units * 2 if layer.merge_mode == "concat" else units
    shapes = [_output_shape(layer, x, width)] * (2 if layer.merge_mode is None else 1)

    def finish(onnx: Emitter, y: str, last: list[str]) -> list[str]:
        # y is (T, 2, B, U) and last[0] is (2, B, U): directions stand at axis 1 and 0.
        source, axis = (y, 1) if layer.return_sequences else (last[0], 0)
        batch_first = [1, 0, 2]
        if layer.merge_mode == "concat":
            joined = onnx.op("Transpose", source, perm=[2, 0, 1, 3] if axis else [1, 0, 2])
            shape = [0, 0, 2 * units] if axis else [0, 2 * units]
            return [onnx.op("Reshape", joined, onnx.constant(np.array(shape, np.int64)))]
        if layer.merge_mode is None:
            halves = onnx.ops("Split", 2, source, onnx.constant(np.array([1, 1], np.int64)), axis=axis)
            merged = [onnx.op("Squeeze", half, _axis(onnx, axis)) for half in halves]
        else:
            reduce = {"sum": "ReduceSum", "ave": "ReduceMean", "mul": "ReduceProd"}[layer.merge_mode]
            merged = [onnx.op(reduce, source, _axis(onnx, axis), keepdims=0)]
        return [onnx.op("Transpose", m, perm=batch_first) for m in merged] if axis else merged

    outputs = _run(native, [forward, backward], x, initial_state=[], mask=mask, shapes=shapes, finish=finish)
    return tuple(outputs) if layer.merge_mode is None else outputs[0]


def _merge_two_layers(layer: Any, x: Any, initial_state: Any, mask: Any) -> Any:
    if layer.return_state:
        raise UnsupportedLayerError(
            f"layer {layer.name!r}: Bidirectional with return_state=True has no lowering yet; "
            "export the model without the states, which a stream carries by itself"
        )
    given = _states_given(initial_state)
    half = len(given) // 2
    y = layer.forward_layer(x, initial_state=given[:half] or None, mask=mask)
    z = layer.backward_layer(x, initial_state=given[half:] or None, mask=mask)
    z = keras.ops.flip(z, axis=1) if layer.return_sequences else z
    merges: dict[str | None, Callable[[], Any]] = {
        "concat": lambda: keras.ops.concatenate([y, z], axis=-1),
        "sum": lambda: y + z,
        "ave": lambda: (y + z) / 2,
        "mul": lambda: y * z,
        None: lambda: (y, z),
    }
    return merges[layer.merge_mode]()


def _run(
    native: NativeOps,
    layers: Sequence[Any],
    x: Any,
    *,
    initial_state: Sequence[Any],
    mask: Any,
    shapes: Sequence[Any],
    finish: Callable[[Emitter, str, list[str]], list[str]],
) -> list[Any]:
    kind = _kind(layers[0])
    assert kind is not None
    weights = [np.stack(part) for part in zip(*(_weights(kind, layer.cell) for layer in layers), strict=True)]
    attributes = _attributes(kind, layers)
    has_mask = mask is not None
    tensors = [x, *([tf.reduce_sum(tf.cast(mask, tf.int32), axis=1)] if has_mask else []), *initial_state]

    def emit(onnx: Emitter, names: list[str]) -> list[str]:
        sequence, *rest = names
        lengths = rest.pop(0) if has_mask else ""
        states = [onnx.op("Unsqueeze", s, _axis(onnx, 0)) for s in rest]
        time_first = onnx.op("Transpose", sequence, perm=[1, 0, 2])
        constants = [onnx.constant(w) for w in weights]
        inputs = [time_first, *constants, lengths, *states]
        y, *last = onnx.ops(kind.op_type, 1 + kind.n_states, *inputs, **attributes)
        return finish(onnx, y, last)

    return native.add(tensors, shapes, emit)


def _kind(layer: Any) -> _Kind | None:
    """How the layer is written in ONNX; None for other layers, and for cells that compute something of their own."""
    return next((kind for cell, kind in _KINDS.items() if type(getattr(layer, "cell", None)) is cell), None)


def _weights(kind: _Kind, cell: Any) -> tuple[Array, Array, Array]:
    """W (G·U, C), R (G·U, U), B (2·G·U,) of ONNX, gates reordered."""
    units = cell.units

    def reorder(array: Array) -> Array:  # (G·U, ...)
        gates = array.reshape(len(kind.gates), units, *array.shape[1:])
        return gates[list(kind.gates)].reshape(array.shape)

    kernel, recurrent = weight(cell, "kernel").T, weight(cell, "recurrent_kernel").T
    rows = len(kind.gates) * units
    bias = weight(cell, "bias") if cell.use_bias else np.zeros(rows, np.float32)
    both = bias if bias.ndim == 2 else np.stack([bias, np.zeros_like(bias)])  # a GRU with reset_after has two
    return reorder(kernel), reorder(recurrent), np.concatenate([reorder(b) for b in both])


def _attributes(kind: _Kind, layers: Sequence[Any]) -> dict[str, Any]:
    cells = [layer.cell for layer in layers]
    named = [_activation(layer, f) for layer in layers for f in kind.activations(layer.cell)]
    direction = "bidirectional" if len(layers) == 2 else ("reverse" if layers[0].go_backwards else "forward")
    attributes: dict[str, Any] = {
        "hidden_size": cells[0].units,
        "direction": direction,
        "activations": [name for name, _, _ in named],
    }
    parametric = [(alpha, beta) for _, alpha, beta in named if alpha]  # ONNX lists values for these alone
    if parametric:
        attributes["activation_alpha"] = [alpha for alpha, _ in parametric]
        attributes["activation_beta"] = [beta for _, beta in parametric]
    if kind.op_type == "GRU":
        if len({cell.reset_after for cell in cells}) > 1:
            raise UnsupportedLayerError(
                f"layer {layers[0].name!r}: reset_after is {cells[0].reset_after} forward and {cells[1].reset_after} "
                "backward; an ONNX GRU has one setting for both"
            )
        attributes["linear_before_reset"] = int(cells[0].reset_after)
    return attributes


def _activation(layer: Any, function: Any) -> tuple[str, float, float]:
    if function not in _ACTIVATIONS:
        known = ", ".join(sorted(f.__name__ for f in _ACTIVATIONS))
        name = getattr(function, "__name__", function)
        raise UnsupportedLayerError(
            f"layer {layer.name!r}: ONNX recurrent operators have no activation {name!r}; use one of {known}"
        )
    return _ACTIVATIONS[function]


def _output_shape(layer: Any, x: Any, width: int) -> tuple[int | None, ...]:
    return (x.shape[0], x.shape[1], width) if layer.return_sequences else (x.shape[0], width)


def _states_returned(layer: Any) -> int:
    kind = _kind(layer)
    assert kind is not None
    return kind.n_states if layer.return_state else 0


def _states_given(initial_state: Any) -> list[Any]:
    if initial_state is None:
        return []
    return list(initial_state) if isinstance(initial_state, (list, tuple)) else [initial_state]


def _axis(onnx: Emitter, axis: int) -> str:
    return onnx.constant(np.array([axis], np.int64))


def _reverse_time(onnx: Emitter, x: str) -> str:
    starts, ends, axes, steps = ([-1], [np.iinfo(np.int64).min], [1], [-1])
    return onnx.op("Slice", x, *(onnx.constant(np.array(v, np.int64)) for v in (starts, ends, axes, steps)))
