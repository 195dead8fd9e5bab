"""The sequences on which an export is verified: random ones that fit the model, and the user's own.

Owns what must be known of a Keras model for that: the range of its tokens, and where it masks steps. A masked step is
padding; Keras' and ONNX' recurrent layers may differ there by definition, so only valid steps are compared.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from edgeseq.errors import ExportError

LENGTHS = (1, 2, 7, 77, 300)
"""Lengths on which Keras and the offline file are compared."""

SEED = 20240229

Array = np.ndarray[Any, Any]


def batches(keras_model: Any, own: Sequence[Array]) -> Iterator[Array]:
    """One to three random sequences of each length, the last one padded where the model masks; then ``own``."""
    rng = np.random.default_rng(SEED)
    source = keras_model.inputs[0]
    dtype, vocabulary = keras.backend.standardize_dtype(source.dtype), vocabulary_size(keras_model)
    padding = _padding(keras_model)
    for i, length in enumerate(LENGTHS):
        x = random(rng, (1 + i % 3, length, *source.shape[2:]), dtype, vocabulary)
        if padding is not None and len(x) > 1:
            x[-1, (length + 1) // 2 :] = padding
        yield x
    for x in own:
        yield x[None]


def random(rng: np.random.Generator, shape: Sequence[int], dtype: str, vocabulary: int) -> Array:
    """Standard normal samples, or tokens from 1, since 0 may be padding."""
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(min(1, vocabulary - 1), vocabulary, size=shape).astype(dtype)


def valid_steps(keras_model: Any, x: Array) -> Array | None:
    """Which steps of (B, T, ...) are no padding, (B, T); None for a model that masks nothing."""
    padding = _padding(keras_model)
    if padding is None:
        return None
    differs = np.not_equal(x, padding)
    return differs if differs.ndim == 2 else np.any(differs, axis=-1)


def vocabulary_size(keras_model: Any) -> int:
    """The number of tokens that every Embedding of the model knows; 2 for a model that takes no tokens."""
    sizes = [layer.input_dim for layer in _layers(keras_model, keras.layers.Embedding)]
    if not sizes and np.dtype(keras.backend.standardize_dtype(keras_model.inputs[0].dtype)).kind != "f":
        raise ExportError(f"model {keras_model.name!r} takes tokens, but has no Embedding layer to tell their range")
    return min(sizes, default=2)


def _padding(keras_model: Any) -> float | None:
    if any(layer.mask_zero for layer in _layers(keras_model, keras.layers.Embedding)):
        return 0
    return next((layer.mask_value for layer in _layers(keras_model, keras.layers.Masking)), None)


def _layers(keras_model: Any, kind: Any) -> list[Any]:
    return [layer for layer in keras_model._flatten_layers() if isinstance(layer, kind)]  # also inside user-made layers
