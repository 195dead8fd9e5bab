"""Recurrent Keras layers as the native ONNX operators LSTM, GRU and RNN.

Owns the translation of weights (gate order and bias layout), activations and directions. Refuses an activation that
ONNX does not name and cells of the user's own. Invariant: with a mask (``masks``) as without, every step is what it is
in Keras. A ``stateful=True`` layer starts every sequence anew: state is the stream's, never the file's.

Sources: ONNX operators LSTM, GRU, RNN (https://onnx.ai/onnx/operators/); Keras gate orders i, f, c, o and z, r, h.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from edgeseq.errors import UnsupportedLayerError
from edgeseq.export.lowering import masks
from edgeseq.export.lowering.native import Emitter, NativeOps, as_list, weight

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

# Keras activation -> (ONNX name, alpha, beta); Keras' hard_sigmoid is relu6(x + 3) / 6. Not softplus, which
# ONNX Runtime's recurrent operators compute as log(1 + exp(x)), infinite from x = 89 on.
_ACTIVATIONS: dict[Any, tuple[str, float | None, float | None]] = {
    keras.activations.sigmoid: ("Sigmoid", None, None),
    keras.activations.tanh: ("Tanh", None, None),
    keras.activations.relu: ("Relu", None, None),
    keras.activations.softsign: ("Softsign", None, None),
    keras.activations.leaky_relu: ("LeakyRelu", 0.2, None),
    keras.activations.elu: ("Elu", 1.0, None),
    keras.activations.hard_sigmoid: ("HardSigmoid", 1 / 6, 0.5),
    keras.activations.linear: ("Affine", 1.0, 0.0),
}


def one_direction(native: NativeOps, layer: Any, x: Any, initial_state: Any, mask: Any) -> Any:
    """``LSTM``, ``GRU``, ``SimpleRNN`` or ``RNN`` of their cells: (B, T, C) to (B, T, U), or to (B, U)."""
    cells, x, mask = _cells(layer), _floats(x), _boolean(layer, mask)
    stacked = isinstance(layer.cell, keras.layers.StackedRNNCells)  # whose states are in one list for each cell
    given = as_list(initial_state) if stacked else [initial_state]
    y, ends = x if mask is None else masks.compact(native, x, mask), []
    for i, cell in enumerate(cells):
        states = as_list(given[i]) if given else []
        y, *end = _run_cell(native, layer, cell, y, mask=mask, states=states)
        ends.append(end)
    output = _output(native, layer, y, ends[-1][0], mask=mask, fresh=initial_state is None)
    if not layer.return_state:
        return output
    return (output, *(end if len(end) > 1 else end[0] for end in ends)) if stacked else (output, *ends[0])


def _run_cell(native: NativeOps, layer: Any, cell: Any, x: Any, *, mask: Any, states: list[Any]) -> list[Any]:
    """All outputs (B, T, U) in the order of the input's steps, then the states (B, U) after the last valid one.

    With a mask the steps are compact, and so are the outputs.
    """
    kind = _kind(cell)
    assert kind is not None
    shapes = [(x.shape[0], x.shape[1], cell.units)] + [(x.shape[0], cell.units)] * kind.n_states

    def finish(onnx: Emitter, y: str, last: list[str]) -> list[str]:
        sequence = onnx.op("Transpose", onnx.op("Squeeze", y, onnx.integers(1)), perm=[1, 0, 2])
        return [sequence, *(onnx.op("Squeeze", s, onnx.integers(0)) for s in last)]

    direction = "reverse" if layer.go_backwards else "forward"
    y, *ends = _run(native, layer, {direction: cell}, x, mask=mask, states=states, shapes=shapes, finish=finish)
    return [y, *masks.initial_unless_any(mask, ends, states)]


def _output(native: NativeOps, layer: Any, y: Any, last: Any, *, mask: Any, fresh: bool) -> Any:
    """What Keras returns, of the outputs of all (compact) steps and the last state."""
    if layer.return_sequences:
        y = y if mask is None else _spread(native, layer, y, mask)
        return tf.reverse(y, [1]) if layer.go_backwards else y
    if mask is None:
        return last
    if layer.zero_output_for_mask:
        return tf.where(mask[:, :1] if layer.go_backwards else mask[:, -1:], last, 0.0)
    return last if fresh else masks.zeros_unless_any(mask, last)


def _spread(native: NativeOps, layer: Any, y: Any, mask: Any) -> Any:
    late_zeros = _reverses_outputs_before_masking(layer)
    zeros = layer.zero_output_for_mask and not late_zeros
    y = masks.spread(native, y, mask, zeros=zeros, backwards=layer.go_backwards)
    return tf.where(tf.expand_dims(tf.reverse(mask, [1]), -1), y, 0.0) if late_zeros else y


def _reverses_outputs_before_masking(layer: Any) -> bool:
    """Whether Keras puts zeros by a mask in the order of time over outputs in reversed order, as it does unrolled."""
    return bool(layer.unroll and layer.go_backwards and layer.zero_output_for_mask)


def both_directions(native: NativeOps, layer: Any, x: Any, initial_state: Any, mask: Any) -> Any:
    """``Bidirectional`` over two layers of one kind as one operator; two operators and a merge otherwise."""
    forward, backward = layer.forward_layer, layer.backward_layer
    if not (isinstance(forward, keras.layers.RNN) and isinstance(backward, keras.layers.RNN)):
        return NotImplemented  # Keras runs any layer that has a go_backwards
    x, mask = _floats(x), _boolean(layer, mask)
    if not _one_operator_does(forward, backward) or (mask is not None and _reverses_outputs_before_masking(backward)):
        return _merge_two_layers(layer, x, initial_state, mask)
    units, kind = forward.cell.units, _kind(forward.cell)
    assert kind is not None
    width = units * 2 if layer.merge_mode == "concat" else units
    output = (x.shape[0], x.shape[1], width) if layer.return_sequences else (x.shape[0], width)
    n_outputs, n_states = 2 if layer.merge_mode is None else 1, 2 * kind.n_states if layer.return_state else 0
    shapes = [output] * n_outputs + [(x.shape[0], units)] * n_states

    def finish(onnx: Emitter, y: str, last: list[str]) -> list[str]:
        merged = _merge(onnx, layer, y if layer.return_sequences else last[0], units)
        halves = [_halves(onnx, state, 0) for state in last] if layer.return_state else []
        return [*merged, *(half[0] for half in halves), *(half[1] for half in halves)]

    cells = {"forward": forward.cell, "reverse": backward.cell}
    states = as_list(initial_state)
    steps = x if mask is None else masks.compact(native, x, mask)
    outputs = _run(native, layer, cells, steps, mask=mask, states=states, shapes=shapes, finish=finish)
    for i in range(n_outputs if mask is not None else 0):
        if layer.return_sequences:
            outputs[i] = masks.spread(native, outputs[i], mask, zeros=True)
        elif states:
            outputs[i] = masks.zeros_unless_any(mask, outputs[i])
    outputs[n_outputs:] = masks.initial_unless_any(mask, outputs[n_outputs:], states)
    return tuple(outputs) if len(outputs) > 1 else outputs[0]


def _one_operator_does(forward: Any, backward: Any) -> bool:
    if forward.go_backwards or len(_cells(forward)) > 1 or len(_cells(backward)) > 1:
        return False
    first, second = forward.cell, backward.cell
    if _kind(first) is not _kind(second) or first.units != second.units:
        return False
    if forward.zero_output_for_mask != forward.return_sequences or backward.zero_output_for_mask != (
        backward.return_sequences
    ):
        return False
    return getattr(first, "reset_after", None) == getattr(second, "reset_after", None)  # ONNX has one for both


def _merge(onnx: Emitter, layer: Any, source: str, units: int) -> list[str]:
    """Of (T, 2, B, U) or (2, B, U): what the merge mode says, batch first."""
    axis = 1 if layer.return_sequences else 0
    if layer.merge_mode == "concat":
        joined = onnx.op("Transpose", source, perm=[2, 0, 1, 3] if axis else [1, 0, 2])
        return [onnx.op("Reshape", joined, onnx.integers(*([0, 0] if axis else [0]), 2 * units))]
    if layer.merge_mode is None:
        merged = _halves(onnx, source, axis)
    else:
        reduce = {"sum": "ReduceSum", "ave": "ReduceMean", "mul": "ReduceProd"}[layer.merge_mode]
        merged = [onnx.op(reduce, source, onnx.integers(axis), keepdims=0)]
    return [onnx.op("Transpose", m, perm=[1, 0, 2]) for m in merged] if axis else merged


def _halves(onnx: Emitter, source: str, axis: int) -> list[str]:
    halves = onnx.ops("Split", 2, source, onnx.integers(1, 1), axis=axis)
    return [onnx.op("Squeeze", half, onnx.integers(axis)) for half in halves]


def _merge_two_layers(layer: Any, x: Any, initial_state: Any, mask: Any) -> Any:
    given = as_list(initial_state)
    half = len(given) // 2
    y, *states = as_list(layer.forward_layer(x, initial_state=given[:half] or None, mask=mask))
    z, *back = as_list(layer.backward_layer(x, initial_state=given[half:] or None, mask=mask))
    z = keras.ops.flip(z, axis=1) if layer.return_sequences else z
    merges: dict[str | None, Callable[[], Any]] = {
        "concat": lambda: keras.ops.concatenate([y, z], axis=-1),
        "sum": lambda: y + z,
        "ave": lambda: (y + z) / 2,
        "mul": lambda: y * z,
        None: lambda: (y, z),
    }
    outputs = as_list(merges[layer.merge_mode]())
    return (*outputs, *states, *back) if len(outputs) > 1 or layer.return_state else outputs[0]


def _run(
    native: NativeOps,
    layer: Any,
    cells: Mapping[str, Any],
    x: Any,
    *,
    mask: Any,
    states: Sequence[Any],
    shapes: Sequence[Any],
    finish: Callable[[Emitter, str, list[str]], list[str]],
) -> list[Any]:
    """One operator over a cell for each direction. ``states``: those of the first direction, then of the second."""
    kind = _kind(next(iter(cells.values())))
    assert kind is not None
    weights = [np.stack(part) for part in zip(*(_weights(kind, cell) for cell in cells.values()), strict=True)]
    attributes = _attributes(kind, layer, cells)
    tensors = [x, *([] if mask is None else [masks.lengths(mask)]), *states]

    def emit(onnx: Emitter, names: list[str]) -> list[str]:
        sequence, *rest = names
        steps = "" if mask is None else rest.pop(0)
        initial = []
        for i in range(kind.n_states if rest else 0):
            each = [onnx.op("Unsqueeze", s, onnx.integers(0)) for s in rest[i :: kind.n_states]]
            initial.append(each[0] if len(each) == 1 else onnx.op("Concat", *each, axis=0))
        time_first = onnx.op("Transpose", sequence, perm=[1, 0, 2])
        inputs = [time_first, *(onnx.constant(w) for w in weights), steps, *initial]
        y, *last = onnx.ops(kind.op_type, 1 + kind.n_states, *inputs, **attributes)
        return finish(onnx, y, last)

    return native.add(tensors, shapes, emit)


def _cells(layer: Any) -> list[Any]:
    cell = layer.cell
    cells = list(cell.cells) if isinstance(cell, keras.layers.StackedRNNCells) else [cell]
    for each in cells:
        if _kind(each) is None:
            raise UnsupportedLayerError(
                f"layer {layer.name!r}: ONNX has no recurrent operator for the cell {type(each).__name__}; use "
                "LSTMCell, GRUCell or SimpleRNNCell, or give the layer a lowering with edgeseq.export.register_lowering"
            )
    return cells


def _kind(cell: Any) -> _Kind | None:
    """How the cell is written in ONNX; None for others, and for subclasses, which may compute something else."""
    return _KINDS.get(type(cell))


def _floats(x: Any) -> Any:
    return tf.cast(x, tf.float32)  # integers, which Keras multiplies by its weights all the same


def _boolean(layer: Any, mask: Any) -> Any:
    if mask is None:
        return None
    if len(mask.shape) != 2:
        raise UnsupportedLayerError(
            f"layer {layer.name!r}: expected a mask with one number for each step, (batch, time), got one of shape "
            f"{tuple(mask.shape)}; make the mask over the axis that the layer runs along"
        )
    return tf.cast(mask, tf.bool)  # Keras takes one of any type


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


def _attributes(kind: _Kind, layer: Any, cells: Mapping[str, Any]) -> dict[str, Any]:
    named = [_activation(layer, f) for cell in cells.values() for f in kind.activations(cell)]
    first = next(iter(cells.values()))
    attributes: dict[str, Any] = {
        "hidden_size": first.units,
        "direction": "bidirectional" if len(cells) == 2 else next(iter(cells)),
        "activations": [name for name, _, _ in named],
    }
    # ONNX lists values for the activations that take one, and for these alone.
    if alphas := [alpha for _, alpha, _ in named if alpha is not None]:
        attributes["activation_alpha"] = alphas
    if betas := [beta for _, _, beta in named if beta is not None]:
        attributes["activation_beta"] = betas
    if kind.op_type == "GRU":
        attributes["linear_before_reset"] = int(first.reset_after)
    return attributes


def _activation(layer: Any, function: Any) -> tuple[str, float | None, float | None]:
    if function not in _ACTIVATIONS:
        known = ", ".join(sorted(f.__name__ for f in _ACTIVATIONS))
        name = getattr(function, "__name__", function)
        raise UnsupportedLayerError(
            f"layer {layer.name!r}: ONNX recurrent operators have no activation {name!r}; use one of {known}"
        )
    return _ACTIVATIONS[function]
