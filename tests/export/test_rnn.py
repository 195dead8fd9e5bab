"""Recurrent layers under any mask: every step, valid or masked, equals Keras."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import keras
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from keras import layers as L  # noqa: N812

from edgeseq.errors import UnsupportedLayerError
from edgeseq.export.comparison import compare
from edgeseq.export.convert import to_onnx
from edgeseq.export.lowering.rnn import _ACTIVATIONS
from tests.conftest import random_weights

Build = Callable[[Any], Any]
Array = np.ndarray[Any, Any]

CELLS = (L.LSTM, L.GRU, L.SimpleRNN)
MERGES = ("concat", "sum", "ave", "mul", None)
MASKS = """
    1111111
    1110000
    0001111
    1100011
    0101010
    1000001
    0001000
    0000000
"""


def _model(build: Build, length: int | None = None) -> Any:
    """Of (B, T, 3): ``build`` over a Masking layer."""
    inputs = keras.Input((length, 3))
    return random_weights(keras.Model(inputs, build(L.Masking()(inputs))))


def _session(model: Any) -> Any:
    data = ir.to_proto(to_onnx(model).model).SerializeToString()
    return ort.InferenceSession(data, providers=["CPUExecutionProvider"])


def _masked(mask: Array) -> Array:
    """Random samples (B, T, 3), zeros where the mask is False."""
    return np.random.default_rng(0).normal(size=(*mask.shape, 3)).astype(np.float32) * mask[..., None]


def _compare(call: Any, ort_session: Any, x: Array) -> None:
    for expected, got in zip(keras.tree.flatten(call(x)), ort_session.run(None, {"input": x}), strict=True):
        compare(np.asarray(expected), got, f"mask {np.any(x != 0, axis=-1).astype(int)}")


def _compare_under_masks(model: Any) -> None:
    masks = np.array([[step == "1" for step in row] for row in MASKS.split()])
    ort_session = _session(model)
    for batch in (masks, masks[-1:]):  # together, and a batch without a single valid step
        _compare(model, ort_session, _masked(batch))


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_a_layer_on_its_own(cell: Any, backwards: bool, sequences: bool, zero: bool) -> None:
    options = {"go_backwards": backwards, "return_sequences": sequences, "zero_output_for_mask": zero}
    _compare_under_masks(_model(cell(4, return_state=True, **options)))


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
def test_stacked_cells(backwards: bool, sequences: bool, zero: bool) -> None:
    options = {"go_backwards": backwards, "return_sequences": sequences, "zero_output_for_mask": zero}
    cells = [L.LSTMCell(3), L.GRUCell(5), L.SimpleRNNCell(4)]
    _compare_under_masks(_model(lambda x: keras.tree.flatten(L.RNN(cells, return_state=True, **options)(x))))


@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("cell", CELLS)
def test_both_directions(cell: Any, merge: str | None, sequences: bool) -> None:
    _compare_under_masks(_model(L.Bidirectional(cell(4, return_sequences=sequences), merge_mode=merge)))


@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
def test_two_layers_merged(backwards: bool, sequences: bool) -> None:
    forward = L.LSTM(4, return_sequences=sequences, go_backwards=backwards)
    backward = L.GRU(4, return_sequences=sequences, go_backwards=not backwards)
    _compare_under_masks(_model(L.Bidirectional(forward, backward_layer=backward)))


@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_states_of_a_masked_sequence_start_another_layer(cell: Any, both: bool, sequences: bool) -> None:
    def wrap(layer: Any) -> Any:
        return L.Bidirectional(layer) if both else layer

    def call(x: Any) -> Any:
        encoded, *states = wrap(cell(4, return_sequences=True, return_state=True))(x)
        return wrap(cell(4, return_sequences=sequences))(encoded, initial_state=states)

    _compare_under_masks(_model(call))


@pytest.mark.parametrize("merge", [*MERGES, "forward", "backward"])
@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_states_given_from_outside_the_sequence(cell: Any, sequences: bool, merge: str | None) -> None:
    # A sequence that is masked throughout returns zeros, although its state is the one that it was given.
    layer = cell(4, return_sequences=sequences, return_state=True, go_backwards=merge == "backward")
    layer = L.Bidirectional(layer, merge_mode=merge) if merge in MERGES else layer
    n_states = (2 if merge in MERGES else 1) * (2 if cell is L.LSTM else 1)

    def call(x: Any) -> Any:
        summary = L.Dense(4)(x[:, 0]) + 1.0
        return keras.tree.flatten(layer(x, initial_state=[summary * (i + 1.0) for i in range(n_states)]))

    _compare_under_masks(_model(call))


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("sequences", [False, True])
def test_unrolled(sequences: bool, backwards: bool, zero: bool, both: bool) -> None:
    layer = L.GRU(
        4, unroll=True, return_sequences=sequences, go_backwards=backwards and not both, zero_output_for_mask=zero
    )
    _compare_under_masks(_model(L.Bidirectional(layer) if both else layer, length=7))


def test_a_mask_of_another_type() -> None:
    inputs = keras.Input((None, 3))
    mask = keras.ops.cast(keras.ops.any(inputs != 0, axis=-1), "int32") * 2
    outputs = [
        L.LSTM(4, return_sequences=True)(inputs, mask=mask),
        L.Bidirectional(L.GRU(4, return_sequences=True))(inputs, mask=mask),
    ]
    _compare_under_masks(random_weights(keras.Model(inputs, outputs)))


def test_layers_share_the_order_of_the_steps() -> None:
    def call(x: Any) -> Any:
        for _ in range(3):
            x = L.Bidirectional(L.LSTM(4, return_sequences=True))(x)
        return x

    model = _model(call)
    operators = [node.op_type for node in to_onnx(model).model.graph]
    assert [operators.count(op) for op in ("LSTM", "TopK", "CumSum", "GatherND")] == [3, 1, 1, 6]
    _compare_under_masks(model)


def _last_outputs(x: Any) -> Any:
    return [L.LSTM(4)(x), L.GRU(4, go_backwards=True)(x), L.Bidirectional(L.LSTM(4))(x)]


def _three_layers(x: Any) -> Any:
    x = L.Bidirectional(L.LSTM(4, return_sequences=True))(x)
    x = L.GRU(4, return_sequences=True, go_backwards=True)(x)
    return L.SimpleRNN(4, return_sequences=True)(x)


def _two_ways_of_two_cells(x: Any) -> Any:
    backward = L.GRU(4, return_sequences=True, go_backwards=True)
    return L.Bidirectional(L.LSTM(4, return_sequences=True), backward_layer=backward, merge_mode="sum")(x)


KINDS: dict[str, Callable[[], Build]] = {
    "LSTM": lambda: L.LSTM(4, return_sequences=True, return_state=True),
    "GRU, backwards": lambda: L.GRU(4, return_sequences=True, return_state=True, go_backwards=True),
    "SimpleRNN, zeros": lambda: L.SimpleRNN(4, return_sequences=True, zero_output_for_mask=True),
    "last outputs": lambda: _last_outputs,
    "stacked cells": lambda: L.RNN([L.LSTMCell(3), L.GRUCell(4)], return_sequences=True),
    "both directions": lambda: L.Bidirectional(L.LSTM(4, return_sequences=True, return_state=True)),
    "two cells": lambda: _two_ways_of_two_cells,
    "three layers": lambda: _three_layers,
}


@cache
def _both_sides(kind: str) -> tuple[Any, Any]:
    """Keras, traced once for all shapes, and ONNX Runtime."""
    model = _model(KINDS[kind]())
    traced = tf.function(model, input_signature=[tf.TensorSpec((None, None, 3))], autograph=False)
    return traced, _session(model)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None)
@given(mask=arrays(bool, st.tuples(st.integers(1, 4), st.integers(1, 9))))
def test_any_mask(kind: str, mask: Array) -> None:
    _compare(*_both_sides(kind), _masked(mask))


def test_a_mask_of_another_rank_is_refused() -> None:
    inputs = keras.Input((None, 3))
    mask = keras.ops.any(inputs != 0, axis=(1, 2))
    with pytest.raises(UnsupportedLayerError, match="'recurrent': expected a mask with one number for each step"):
        to_onnx(keras.Model(inputs, L.GRU(2, name="recurrent")(inputs, mask=mask)))


@pytest.mark.parametrize("cell", CELLS)
def test_softplus_is_refused(cell: Any) -> None:
    # ONNX Runtime's, inside a recurrent operator, is infinite from 89 on.
    inputs = keras.Input((None, 3))
    with pytest.raises(UnsupportedLayerError, match="no activation 'softplus'; use one of elu"):
        to_onnx(keras.Model(inputs, cell(2, activation="softplus")(inputs)))


@pytest.mark.parametrize("scale", [1e3, 1e5])
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("name", [f.__name__ for f in _ACTIVATIONS])
def test_activations_of_large_values(name: str, cell: Any, scale: float) -> None:
    inputs = keras.Input((None, 3))
    bounded = name in ("sigmoid", "tanh", "softsign", "hard_sigmoid")  # no other gate is finite in Keras itself
    gates = {} if cell is L.SimpleRNN else {"recurrent_activation": name if bounded else "sigmoid"}
    model = random_weights(keras.Model(inputs, cell(4, activation=name, return_sequences=True, **gates)(inputs)))
    x = np.random.default_rng(0).normal(size=(2, 3, 3)).astype(np.float32) * np.float32(scale)
    expected = np.asarray(model(x))
    assert np.isfinite(expected).all()
    compare(expected, _session(model).run(None, {"input": x})[0], name)


def test_each_activation_takes_its_own_numbers() -> None:
    # ONNX lists alpha and beta for the activations that take one: here two alphas, one beta, of six activations.
    forward = L.LSTM(4, activation="elu", recurrent_activation="sigmoid", return_sequences=True)
    backward = L.LSTM(
        4, activation="tanh", recurrent_activation="hard_sigmoid", return_sequences=True, go_backwards=True
    )
    model = _model(L.Bidirectional(forward, backward_layer=backward))
    (node,) = (n for n in to_onnx(model).model.graph if n.op_type == "LSTM")
    assert list(node.attributes["activation_alpha"].as_floats()) == pytest.approx([1.0, 1.0, 1 / 6])
    _compare_under_masks(model)
