"""TimeDistributed: every step alone, whatever batch and length a graph has seen before."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

from edgeseq import TimeDistributed


def _model(inner: Any) -> Any:
    inputs = keras.Input((None, 4))
    return keras.Model(inputs, TimeDistributed(inner)(inputs))


@pytest.mark.parametrize("shape", [(2, 7), (3, 9), (1, 4), (4, 4), (5, 1)])
def test_predict_is_right_for_changing_batches_and_lengths(shape: tuple[int, int]) -> None:
    model = _model(keras.layers.Dense(3))
    x = np.random.default_rng(0).normal(size=(*shape, 4)).astype(np.float32)
    kernel, bias = model.get_weights()
    for _ in range(2):
        model.predict(np.zeros((2, 7, 4)), verbose=0)
        model.predict(np.zeros((6, 3, 4)), verbose=0)
    np.testing.assert_allclose(model.predict(x, verbose=0), x @ kernel + bias, atol=1e-5)


def test_a_layer_with_axes_of_its_own() -> None:
    model = keras.Sequential(
        [keras.Input((None, 6)), keras.layers.Reshape((-1, 3, 2)), TimeDistributed(keras.layers.Conv1D(5, 2))]
    )
    x = np.random.default_rng(0).normal(size=(2, 9, 6)).astype(np.float32)
    conv = model.layers[-1].layer
    steps = [keras.ops.convert_to_numpy(conv(x[:, t].reshape(2, 3, 2))) for t in range(9)]
    np.testing.assert_allclose(model.predict(x, verbose=0), np.stack(steps, axis=1), atol=1e-6)


def test_it_survives_a_file(tmp_path: Any) -> None:
    model = _model(keras.layers.Dense(3, activation="tanh"))
    model.save(tmp_path / "m.keras")
    x = np.ones((2, 5, 4), np.float32)
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert np.array_equal(model.predict(x, verbose=0), again.predict(x, verbose=0))
    assert type(again.layers[-1]) is TimeDistributed
