"""Models built for one length, built again for any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L  # noqa: N812

from edgeseq import TCN, bilstm_tagger
from edgeseq.errors import ExportError
from edgeseq.export.any_length import for_any_length

Randomise = Callable[..., Any]


class Doubled(L.Layer):  # type: ignore[misc]  # not registered with Keras
    def call(self, x: Any) -> Any:
        return x * 2.0


def built(layers: list[Any], length: int | None = 20, batch: int | None = None) -> Any:
    inputs = keras.Input(batch_shape=(batch, length, 4))
    x = inputs
    for layer in layers:
        x = layer(x)
    return keras.Model(inputs, x)


STACKS: dict[str, Callable[[], Any]] = {
    "tcn": lambda: built([TCN(5, 3, dilations=(1, 2), return_sequences=True)]),
    "rnn": lambda: built([L.Bidirectional(L.GRU(3, return_sequences=True)), L.TimeDistributed(L.Dense(2))]),
    "ops": lambda: built([L.Dense(3), lambda x: keras.ops.mean(x * 2.0, axis=1)]),
    "Lambda": lambda: built([L.Lambda(lambda x: x * 2.0), L.Dense(3)]),
    "own layer": lambda: built([Doubled(), L.LSTM(3)]),
    "Sequential": lambda: keras.Sequential([keras.Input((20, 4)), L.Conv1D(3, 3), L.GlobalMaxPooling1D(), L.Dense(2)]),
    "nested": lambda: built([keras.Sequential([keras.Input((20, 4)), L.Conv1D(3, 3, padding="causal")]), L.LSTM(2)]),
    "attention": lambda: built([lambda x: L.MultiHeadAttention(2, 3)(x, x)]),
    "stateful": lambda: built([L.LSTM(3, stateful=True, return_sequences=True)], batch=2),
    "batch norm": lambda: built([L.BatchNormalization(), L.Dropout(0.5)]),
}


@pytest.mark.parametrize("stack", STACKS)
def test_the_same_numbers_at_the_old_length_and_any_other_length(stack: str, randomise: Randomise) -> None:
    model = randomise(STACKS[stack]())
    rebuilt = for_any_length(model)
    assert rebuilt.inputs[0].shape == (None, None, 4)
    x = np.random.default_rng(0).normal(size=(2, 20, 4)).astype(np.float32)
    np.testing.assert_allclose(rebuilt(x), model(x), atol=1e-6)
    for length in (9, 50):
        assert rebuilt(np.zeros((3, length, 4), np.float32)).shape[0] == 3


def test_inputs_without_time_keep_their_size() -> None:
    x, tokens, site = keras.Input((20, 4)), keras.Input((20,), dtype="int32"), keras.Input((3,))
    hidden = L.LSTM(3, return_sequences=True)(x, initial_state=[site, site])
    model = keras.Model([x, tokens, site], L.Concatenate()([hidden, L.Embedding(9, 2)(tokens)]))
    assert [t.shape for t in for_any_length(model).inputs] == [(None, None, 4), (None, None), (None, 3)]


def test_the_model_itself_is_not_changed() -> None:
    model = bilstm_tagger(4, 2, units=3)
    nodes = [len(layer._inbound_nodes) for layer in model.layers]
    weights = model.get_weights()
    for_any_length(model).set_weights([w * 0 for w in weights])
    assert [len(layer._inbound_nodes) for layer in model.layers] == nodes
    assert all(np.array_equal(a, b) for a, b in zip(weights, model.get_weights(), strict=True))


def test_a_layer_that_needs_the_length_is_the_reason() -> None:
    with pytest.raises(ExportError, match=r"cannot be built for any length: .*None.*dense"):
        for_any_length(built([L.Flatten(), L.Dense(2)]))
