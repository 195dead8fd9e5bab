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
from edgeseq.export.any_length import for_any_length, length_kept_by

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


def _adapted() -> Any:
    layer = L.Normalization()
    layer.adapt(np.random.default_rng(1).normal(3.0, 2.0, (5, 20, 4)))
    return layer


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
    "adapted Normalization": lambda: built([_adapted(), L.Dense(3)]),
    "batch norm": lambda: built([L.BatchNormalization(), L.Dropout(0.5)]),
}


@pytest.mark.parametrize("stack", STACKS)
def test_the_same_numbers_at_the_old_length_and_any_other_length(stack: str, randomise: Randomise) -> None:
    model = randomise(STACKS[stack]())
    for layer in model.layers:
        if isinstance(layer, L.Normalization):
            layer.finalize_state()  # as adapt and load_weights do
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


class OnlyKnown(L.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        if x.shape[1] is None:
            raise NotImplementedError("the length must be known here")
        return x


def test_what_a_sequential_model_keeps_to_itself_is_the_reason() -> None:
    with pytest.raises(ExportError, match=r"cannot be built for any length: .*only_known"):
        for_any_length(keras.Sequential([keras.Input((20, 4)), OnlyKnown(), L.Dense(2)]))


def test_only_the_batch_is_opened() -> None:
    assert for_any_length(built([L.Dense(2)], batch=3), keep_length=True).inputs[0].shape == (None, 20, 4)


NO_SIGN: dict[str, Callable[[Any], Any]] = {
    "the last step": lambda x: x[:, -1],
    "the first step dropped": lambda x: x[:, 1:] - x[:, :-1],
    "channels": lambda x: x[..., 2:4],
    "a channel of a pooled sequence": lambda x: L.GlobalMaxPooling1D()(x)[:, 2:],
    "every other step": lambda x: x[:, ::2],
    "other numbers": lambda x: keras.ops.mean(x * 2.0, axis=1) / 7.0,
    "pools and kernels": lambda x: L.AveragePooling1D(2)(L.Conv1D(20, 3)(x)),
    "features into shape": lambda x: L.Reshape((-1, 2, 2))(x),
}


@pytest.mark.parametrize("case", NO_SIGN)
def test_what_has_nothing_to_do_with_the_length_is_no_sign_of_it(case: str) -> None:
    model = built([NO_SIGN[case]])
    assert length_kept_by(model, for_any_length(model)) is None


def test_a_length_inside_a_nested_model_or_after_a_pool_is_seen() -> None:
    inner = built([lambda x: keras.ops.sum(x, axis=1) / x.shape[1]])
    pooled = built([L.MaxPooling1D(2), lambda x: x * (x.shape[1] + 0.0)])
    for model, seen in ((built([inner]), "TrueDivide holds 20"), (pooled, "Multiply holds 10")):
        assert seen in str(length_kept_by(model, for_any_length(model)))
