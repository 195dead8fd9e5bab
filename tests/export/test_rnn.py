"""Recurrent layers over padding: every step equals Keras, also where a whole sequence is padding."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from keras import layers as L  # noqa: N812

from edgeseq.export.convert import to_onnx
from edgeseq.export.verify import compare

Randomise = Callable[..., Any]
CELLS = (L.LSTM, L.GRU, L.SimpleRNN)


def _compare_on_padding(model: Any) -> None:
    data = ir.to_proto(to_onnx(model).model).SerializeToString()
    ort_session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(0).normal(size=(4, 6, 3)).astype(np.float32)
    for row, length in enumerate((6, 3, 1, 0)):  # the last is padding alone
        x[row, length:] = 0
    expected = np.asarray(model(x, training=False))
    (got,) = ort_session.run(None, {"input": x})
    compare(expected, got, "padded batch")


@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_a_layer_on_its_own(cell: Any, backwards: bool, sequences: bool, zero: bool, randomise: Randomise) -> None:
    options = {"go_backwards": backwards, "return_sequences": sequences, "zero_output_for_mask": zero}
    inputs = keras.Input((None, 3))
    _compare_on_padding(randomise(keras.Model(inputs, cell(4, **options)(L.Masking()(inputs)))))


@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_both_directions(cell: Any, sequences: bool, randomise: Randomise) -> None:
    inputs = keras.Input((None, 3))
    layer = L.Bidirectional(cell(4, return_sequences=sequences))
    _compare_on_padding(randomise(keras.Model(inputs, layer(L.Masking()(inputs)))))


@pytest.mark.parametrize("sequences", [False, True])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("cell", CELLS)
def test_states_of_a_padded_sequence_start_another_layer(
    cell: Any, both: bool, sequences: bool, randomise: Randomise
) -> None:
    def wrap(layer: Any) -> Any:
        return L.Bidirectional(layer) if both else layer

    inputs = keras.Input((None, 3))
    x = L.Masking()(inputs)
    encoded, *states = wrap(cell(4, return_sequences=True, return_state=True))(x)
    decoded = wrap(cell(4, return_sequences=sequences))(encoded, initial_state=states)
    _compare_on_padding(randomise(keras.Model(inputs, decoded)))


@pytest.mark.parametrize("n_directions", [1, 2])
def test_states_given_from_outside_the_sequence(n_directions: int, randomise: Randomise) -> None:
    # A sequence that is padding alone returns zeros, although its state is the one that it was given.
    inputs = keras.Input((None, 3))
    summary = L.Dense(4, name="summary")(L.GlobalMaxPooling1D()(inputs)) + 1.0
    layer = L.GRU(4, return_sequences=True)
    layer = L.Bidirectional(layer) if n_directions == 2 else layer
    y = layer(L.Masking()(inputs), initial_state=[summary] * n_directions)
    _compare_on_padding(randomise(keras.Model(inputs, y)))


def test_each_activation_takes_its_own_numbers(randomise: Randomise) -> None:
    # ONNX lists alpha and beta for the activations that take one: here two alphas, one beta, of six activations.
    inputs = keras.Input((None, 3))
    forward = L.LSTM(4, activation="elu", recurrent_activation="sigmoid", return_sequences=True)
    backward = L.LSTM(
        4, activation="tanh", recurrent_activation="hard_sigmoid", return_sequences=True, go_backwards=True
    )
    layer = L.Bidirectional(forward, backward_layer=backward)
    model = randomise(keras.Model(inputs, layer(inputs)))
    (node,) = (n for n in to_onnx(model).model.graph if n.op_type == "LSTM")
    assert list(node.attributes["activation_alpha"].as_floats()) == pytest.approx([1.0, 1.0, 1 / 6])
    _compare_on_padding(model)
