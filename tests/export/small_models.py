"""Small models for the tests of the export, and layers as users write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
from keras import layers as L  # noqa: N812

Build = Callable[[], Any]

CHANNELS = 4
SMALL: dict[str, Any] = {"nb_filters": 5, "kernel_size": 3, "dilations": (1, 2)}


def chain(*stack: Any, channels: int = CHANNELS) -> Any:
    """The model that applies these layers one after the other."""
    inputs = keras.Input((None, channels))
    x = inputs
    for layer in stack:
        x = layer(x)
    return keras.Model(inputs, x)


def tokens(*stack: Any, dtype: str = "int32") -> Any:
    """The same, on tokens."""
    inputs = keras.Input((None,), dtype=dtype)
    x = inputs
    for layer in stack:
        x = layer(x)
    return keras.Model(inputs, x)


def function(call: Callable[[Any], Any], *, channels: int = CHANNELS) -> Any:
    """The model that computes this function of its input."""
    inputs = keras.Input((None, channels))
    return keras.Model(inputs, call(inputs))


def time_distributed(units: int = 3) -> Any:
    return L.TimeDistributed(L.Dense(units, activation="softmax"))


def spelled(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


class Doubling(L.Layer):  # type: ignore[misc]  # a layer that a user wrote around a standard one
    def __init__(self) -> None:
        super().__init__()
        self.conv = L.Conv1D(4, 3, padding="causal", dilation_rate=2)

    def call(self, x: Any) -> Any:
        return self.conv(x) * 2.0


@keras.saving.register_keras_serializable()
class Renamed(L.LSTM):  # type: ignore[misc]  # a subclass that computes what its base computes; Bidirectional copies it
    pass


class Halved(L.Dense):  # type: ignore[misc]  # a subclass that does not
    def call(self, inputs: Any, training: Any = None) -> Any:
        return super().call(inputs, training) / 2


class Unmasked(L.Layer):  # type: ignore[misc]  # ends a mask, as layers that know no masks do
    def __init__(self) -> None:
        super().__init__()
        self.supports_masking = True

    def call(self, x: Any) -> Any:
        return x + 0.0

    def compute_mask(self, inputs: Any, mask: Any = None) -> None:
        return None


def attend(x: Any, **options: Any) -> Any:
    return L.MultiHeadAttention(2, 3)(x, x, **options)
