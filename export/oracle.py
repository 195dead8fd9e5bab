"""Keras as the oracle: what a model gives at inference, on the CPU, for a sequence that starts anew.

Owns the ways in which Keras itself fails on a sequence (too short for a kernel, for instance): they are returned, not
raised, since the exporter then leaves that length out. Invariant: the model, its state included, is as it was.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np

from edgeseq.export.signature import structure

Array = np.ndarray[Any, Any]

_WINDOWED = (
    keras.layers.Conv1D,
    keras.layers.DepthwiseConv1D,
    keras.layers.SeparableConv1D,
    keras.layers.MaxPooling1D,
    keras.layers.AveragePooling1D,
)


class NotFiniteError(ValueError):
    """Keras runs, and gives NaN or infinity."""


def keras_outputs(keras_model: Any, inputs: Sequence[Array]) -> list[Array] | Exception:
    """The model's outputs, one array each, or why Keras has none: it raised, or its outputs are not finite.

    Example:
        >>> x = keras.Input((None, 4))
        >>> model = keras.Model(x, keras.layers.Conv1D(2, 3)(x))
        >>> [y.shape for y in keras_outputs(model, [np.zeros((1, 5, 4), np.float32)])]
        [(1, 3, 2)]
        >>> isinstance(keras_outputs(model, [np.zeros((1, 1, 4), np.float32)]), Exception)
        True
    """
    arranged = keras.tree.pack_sequence_as(structure(keras_model)[0], list(inputs))
    try:
        with keras.device("cpu"), _fresh_state(keras_model), _steps_everywhere():
            outputs = keras.tree.flatten(keras_model(arranged, training=False))
        arrays = [keras.ops.convert_to_numpy(y) for y in outputs]
    except Exception as error:  # whatever a layer raises, also one of the user's own
        return error
    if not all(np.isfinite(y).all() for y in arrays):
        return NotFiniteError("Keras' own outputs are not finite")
    return arrays


@contextmanager
def _fresh_state(keras_model: Any) -> Iterator[None]:
    """Let ``stateful=True`` layers start a sequence, and give them back the state that they had."""
    stateful = [layer for layer in keras_model._flatten_layers() if getattr(layer, "stateful", False)]
    states = [state for layer in stateful for state in keras.tree.flatten(getattr(layer, "states", None) or [])]
    kept = [keras.ops.convert_to_numpy(state) for state in states]
    for state in states:
        state.assign(np.zeros(state.shape, np.float32))
    try:
        yield
    finally:
        for state, value in zip(states, kept, strict=True):
            state.assign(value)


@contextmanager
def _steps_everywhere() -> Iterator[None]:
    """Let a layer that leaves no steps raise, here in this thread. One at a time: ``lowering.one_export`` sees to it.

    TensorFlow is undefined there: where a window is one step longer than the sequence, its max pooling ends the process
    (SIGFPE), its convolution without padding gives its input back, and a causal one of nothing gives two steps.
    """
    here = threading.get_ident()
    original = keras.layers.Layer.__call__

    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != here:
            return original(layer, *args, **kwargs)
        if isinstance(layer, _WINDOWED):
            x = args[0] if args else next(iter(kwargs.values()))
            layer.compute_output_shape(tuple(x.shape))  # raises a ValueError if no window fits
        y = original(layer, *args, **kwargs)
        if any(0 in getattr(each, "shape", ()) for each in keras.tree.flatten(y)):
            raise ValueError(f"layer {layer.name!r} leaves no steps of so short a sequence")
        return y

    keras.layers.Layer.__call__ = call
    try:
        yield
    finally:
        keras.layers.Layer.__call__ = original
