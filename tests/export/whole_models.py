"""Families of the catalogue that are about the model as a whole: its ports, its length, its memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import keras
from keras import layers as L  # noqa: N812

from edgeseq import TCN
from tests.export.small_models import CHANNELS, SMALL, Build, time_distributed

Entry = tuple[str, Build]


def ports() -> Iterator[Entry]:
    """Several inputs and outputs."""
    yield "two sensors, two branches, one output", _two_sensors
    yield "a sensor and an initial state", _given_state
    yield "a sensor and tokens", _sensor_and_tokens
    yield "an output a step and one a sequence", lambda: _outputs(lambda step, whole: [step, whole])
    yield "a dict of outputs", lambda: _outputs(lambda step, whole: {"step": step, "whole": whole})


def _two_sensors() -> Any:
    a, b = keras.Input((None, CHANNELS), name="acc"), keras.Input((None, CHANNELS), name="gyro")
    joined = L.Concatenate()([L.Conv1D(3, 2, padding="causal")(a), L.GRU(3, return_sequences=True)(b)])
    return keras.Model([a, b], L.Dense(3)(joined))


def _given_state() -> Any:
    x, state = keras.Input((None, CHANNELS)), keras.Input((3,))
    return keras.Model([x, state], L.LSTM(3, return_sequences=True)(x, initial_state=[state, state * 2]))


def _sensor_and_tokens() -> Any:
    x, tokens = keras.Input((None, CHANNELS)), keras.Input((None,), dtype="int64")
    joined = L.Concatenate()([x, L.Embedding(11, 3)(tokens)])
    return keras.Model([x, tokens], L.Bidirectional(L.LSTM(3))(joined))


def _outputs(arranged: Callable[[Any, Any], Any]) -> Any:
    x = keras.Input((None, CHANNELS))
    hidden = L.Bidirectional(L.GRU(3, return_sequences=True))(x)
    return keras.Model(x, arranged(L.Dense(3)(hidden), L.Dense(2)(L.GlobalMaxPooling1D()(hidden))))


def of_one_length() -> Iterator[Entry]:
    """Built for twenty steps; all but the last two work for any."""
    yield "Bidirectional(LSTM), TimeDistributed(Dense), of 20 steps", lambda: _built(_bilstm)
    yield "TCN, Dense, of 20 steps", lambda: _built(lambda x: L.Dense(3)(_tcn(x)))
    yield "GRU, Dense, of 20 steps", lambda: _built(lambda x: L.Dense(2)(L.GRU(3)(x)))
    yield "Conv1D, MaxPooling1D, GlobalAveragePooling1D, of 20 steps", lambda: _built(_pooled)
    yield "MultiHeadAttention, of 20 steps", lambda: _built(lambda x: L.MultiHeadAttention(2, 3)(x, x))
    yield "Flatten, Dense, of 20 steps", lambda: _built(lambda x: L.Dense(2)(L.Flatten()(x)))
    yield "Permute, Dense, of 20 steps", lambda: _built(lambda x: L.Permute((2, 1))(L.Dense(5)(L.Permute((2, 1))(x))))


def _built(stack: Callable[[Any], Any], batch: int | None = None, length: int | None = 20) -> Any:
    x = keras.Input(batch_shape=(batch, length, CHANNELS))
    return keras.Model(x, stack(x))


def _bilstm(x: Any) -> Any:
    return time_distributed()(L.Bidirectional(L.LSTM(3, return_sequences=True))(x))


def _tcn(x: Any) -> Any:
    return TCN(return_sequences=True, **SMALL)(x)


def _pooled(x: Any) -> Any:
    return L.Dense(2)(L.GlobalAveragePooling1D()(L.MaxPooling1D(2)(L.Conv1D(3, 3)(x))))


def with_memory() -> Iterator[Entry]:
    """``stateful=True``: every sequence of the file starts anew."""
    yield "stateful LSTM", lambda: _built(L.LSTM(3, stateful=True, return_sequences=True), 2, None)
    yield "stateful GRU, one length", lambda: _built(L.GRU(3, stateful=True), 2)
    yield (
        "stateful Bidirectional(GRU)",
        lambda: _built(L.Bidirectional(L.GRU(3, stateful=True, return_sequences=True)), 2, None),
    )
