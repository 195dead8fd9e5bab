"""Keras as the oracle: what it gives, where it fails, and that the model is as it was."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L  # noqa: N812

from edgeseq.export.oracle import keras_outputs


def outputs(model: Any, inputs: list[Any]) -> list[Any]:
    got = keras_outputs(model, inputs)
    assert not isinstance(got, Exception)
    return got


def zeros(batch: int, length: int) -> list[Any]:
    return [np.zeros((batch, length, 3), np.float32)]


def test_a_pool_without_a_window_does_not_end_the_process() -> None:
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, L.ZeroPadding1D(1)(L.MaxPooling1D(3, strides=1)(inputs)))
    error = keras_outputs(model, zeros(1, 2))  # TensorFlow divides by zero in C++ here
    assert isinstance(error, ValueError)
    assert "Computed output size would be zero or negative" in str(error)
    (y,) = outputs(model, zeros(1, 3))
    assert y.shape == (1, 3, 3)


@pytest.mark.parametrize("strides", [1, 2])
def test_a_convolution_without_a_window_is_no_output(strides: int) -> None:
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, L.Conv1D(2, 4, strides=strides)(inputs))
    for length in (1, 2, 3):  # of 3 steps TensorFlow makes (5, 3, 3): the input
        assert isinstance(keras_outputs(model, zeros(5, length)), ValueError)
    assert not isinstance(keras_outputs(model, zeros(5, 4)), Exception)


def test_an_empty_sequence_inside_the_model_is_no_output() -> None:
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, L.Conv1D(2, 3, padding="causal")(L.Cropping1D(2)(inputs)))
    assert isinstance(keras_outputs(model, zeros(5, 4)), ValueError)  # TensorFlow makes (5, 2, 3)
    assert not isinstance(keras_outputs(model, zeros(5, 5)), Exception)
    call = L.Layer.__call__
    assert isinstance(keras_outputs(keras.Model(inputs, keras.ops.relu(inputs[:, 3:])), zeros(5, 3)), ValueError)
    assert L.Layer.__call__ is call


@pytest.mark.parametrize(("length", "fails"), [(2, True), (3, False)])
def test_an_average_over_nothing_is_no_output(length: int, fails: bool) -> None:
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, L.GlobalAveragePooling1D()(L.AveragePooling1D(3)(inputs)))
    assert isinstance(keras_outputs(model, zeros(2, length)), Exception) == fails


def test_several_outputs_in_the_order_of_the_model() -> None:
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, {"b": inputs + 1, "a": inputs[:, -1]})
    assert [y.shape for y in outputs(model, zeros(2, 5))] == [(2, 3), (2, 5, 3)]


def test_a_state_is_given_back() -> None:
    inputs = keras.Input(batch_shape=(1, None, 3))
    layer = L.GRU(2, stateful=True)
    model = keras.Model(inputs, layer(inputs))
    layer.states[0].assign(np.full((1, 2), 0.5))
    (first,) = outputs(model, zeros(1, 4))
    (second,) = outputs(model, zeros(1, 4))
    assert np.array_equal(first, second)
    assert np.array_equal(layer.states[0], np.full((1, 2), 0.5))


def test_a_layer_called_by_the_name_of_its_argument() -> None:
    class Pooled(L.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.pool = L.MaxPooling1D(2)

        def call(self, x: Any) -> Any:
            return self.pool(inputs=x)

    inputs = keras.Input((None, 3))
    (y,) = outputs(keras.Model(inputs, Pooled()(inputs)), zeros(2, 4))
    assert y.shape == (2, 2, 3)


def test_a_layer_that_gives_none_beside_its_output() -> None:
    class Pair(L.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return x * 2.0, None

    class Outer(L.Layer):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.pair = Pair()

        def call(self, x: Any) -> Any:
            return self.pair(x)[0]

    inputs = keras.Input((None, 3))
    assert outputs(keras.Model(inputs, Outer()(inputs)), zeros(2, 4))[0].shape == (2, 4, 3)


def test_whatever_a_layer_raises_is_returned() -> None:
    class Raises(L.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            if x.shape[1] == 3:
                raise KeyError("three")
            return x * 2.0

    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, Raises()(inputs))
    assert isinstance(keras_outputs(model, zeros(1, 3)), KeyError)
    assert not isinstance(keras_outputs(model, zeros(1, 4)), Exception)
