"""Small models for the tests of pools: one for each way in which a stream can behave."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers as L  # noqa: N812

from edgeseq import TCN
from edgeseq import runtime as rt
from tests.export.small_models import CHANNELS, chain, tokens


def _two_ports() -> Any:
    a, b = keras.Input((None, CHANNELS), name="acc"), keras.Input((None, 2), name="gyro")
    joined = L.Concatenate()([L.Conv1D(3, 2, padding="causal")(a), b])
    late = L.Conv1D(2, 3, padding="same")(joined)
    return keras.Model([a, b], {"now": L.Dense(2)(joined), "late": late, "max": L.GlobalMaxPooling1D()(late)})


def _tcn(**options: Any) -> Any:
    given = {"nb_filters": 5, "kernel_size": 3, "dilations": (1, 2), "return_sequences": True, **options}
    return chain(TCN(**given))


MODELS: dict[str, Callable[[], Any]] = {
    "TCN": lambda: _tcn(nb_stacks=2, activation="elu"),
    "same TCN": lambda: _tcn(padding="same"),
    "classifier": lambda: chain(TCN(5, 3, dilations=(1, 2)), L.Dense(3)),
    "strided": lambda: chain(L.Conv1D(4, 5, strides=3), L.MaxPooling1D(2), L.Dense(3)),
    "strided, ahead": lambda: chain(L.ZeroPadding1D((2, 2)), L.Conv1D(4, 5, strides=2), L.UpSampling1D(2)),
    "several rows": lambda: chain(L.Conv1D(4, 2, padding="causal"), L.UpSampling1D(3)),
    "LSTM": lambda: chain(L.LSTM(5, return_sequences=True), L.Dense(2)),
    "GRU behind lookahead": lambda: chain(L.Conv1D(4, 3, padding="same"), L.GRU(3, return_sequences=True)),
    "mean": lambda: chain(L.Conv1D(4, 3, padding="same"), L.GlobalAveragePooling1D()),
    "tokens": lambda: tokens(L.Embedding(11, 3), L.Conv1D(4, 3, padding="causal"), L.Dense(2, activation="softmax")),
    "ports": _two_ports,
}


def samples(model: rt.Model, n: int, seed: int, scale: float = 1.0) -> Any:
    """So many samples of each input: an array, or a mapping of them."""
    rng = np.random.default_rng(seed)
    made = {
        port.name: (rng.normal(size=(n, *port.shape)) * scale).astype(port.dtype)
        if port.dtype.startswith("float")
        else rng.integers(0, 11, (n, *port.shape)).astype(port.dtype)
        for port in model.description.inputs
    }
    return made if len(made) > 1 else next(iter(made.values()))


def part(x: Any, which: Any) -> Any:
    """Some of the samples, or one."""
    return {name: each[which] for name, each in x.items()} if isinstance(x, dict) else x[which]


def bits(y: Any) -> Any:
    """What a call gave, as a value that is equal when all bits are."""
    if y is None:
        return None
    if isinstance(y, dict):
        return {name: bits(each) for name, each in y.items()}
    return y.shape, y.dtype.name, np.ascontiguousarray(y).tobytes()


def assert_close(got: Any, expected: Any) -> None:
    """The law's tolerance, for outputs of order one."""
    if isinstance(expected, dict):
        assert set(got) == set(expected)
        for name, each in expected.items():
            assert_close(got[name], each)
    elif expected is None:
        assert got is None
    else:
        assert got.shape == expected.shape
        assert got.dtype == expected.dtype
        scale = max(1.0, float(np.max(np.abs(expected), initial=0)))
        np.testing.assert_allclose(got / scale, expected / scale, atol=1e-5)
