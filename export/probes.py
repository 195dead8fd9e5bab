"""The sequences on which an export is verified: random ones that fit the model, and the user's own.

Owns what must be known of a Keras model for that: the range of its tokens, and the values with which it masks steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from edgeseq.errors import ExportError
from edgeseq.export.signature import Signature
from edgeseq.model_file import Port

LENGTHS = (1, 2, 7, 77, 300)
"""Lengths on which Keras and the offline file are compared."""

SEED = 20240229

Array = np.ndarray[Any, Any]
Inputs = list[Array]  # one array for each input of the model, batch first


def batches(keras_model: Any, ports: Signature, own: Sequence[Inputs], more_lengths: Sequence[int]) -> Iterator[Inputs]:
    """One to three random sequences of each length, the last one with masked steps where the model masks; then ``own``.

    A model of one length is given that length alone, and one of a fixed batch that batch.
    """
    rng = np.random.default_rng(SEED)
    vocabulary, paddings = vocabulary_size(keras_model, own), _paddings(keras_model, ports)
    lengths = (*LENGTHS, *more_lengths) if ports.any_length else (0,)  # 0: each port has its own
    for i, length in enumerate(lengths):
        size = ports.batch or 1 + i % 3
        inputs = [random(rng, (size, *_shape(port, length)), port.dtype, vocabulary) for port in ports.inputs]
        for x, padding in zip(inputs, paddings, strict=True):
            if padding is not None and len(x) > 1:
                x[-1, (x.shape[1] + 1) // 2 :] = padding
                x[-1, x.shape[1] // 4] = padding
        yield inputs
    for sequence in own:
        yield [np.repeat(x[None], ports.batch or 1, axis=0) for x in sequence]


def _shape(port: Port, length: int) -> tuple[int, ...]:
    return tuple(length if n is None else n for n in port.array_shape)


def random(rng: np.random.Generator, shape: Sequence[int], dtype: str, vocabulary: int) -> Array:
    """Standard normal samples, or tokens from 1, since 0 may be padding."""
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(min(1, vocabulary - 1), vocabulary, size=shape).astype(dtype)


def valid_steps(keras_model: Any, ports: Signature, inputs: Inputs) -> Array | None:
    """Which steps of (B, T, ...) are not masked, (B, T); None for a model that masks nothing."""
    masks = [
        np.any(np.not_equal(x, padding).reshape(*x.shape[:2], -1), axis=-1)
        for x, padding in zip(inputs, _paddings(keras_model, ports), strict=True)
        if padding is not None
    ]
    if not masks or any(mask.shape != masks[0].shape for mask in masks):
        return None
    return np.logical_and.reduce(masks)  # type: ignore[no-any-return]


def vocabulary_size(keras_model: Any, own: Sequence[Inputs] = ()) -> int:
    """The number of tokens that every Embedding of the model knows; 2 for a model that takes no tokens.

    Without an Embedding, the tokens of ``own`` tell.
    """
    sizes = [layer.input_dim for layer in _layers(keras_model, keras.layers.Embedding)]
    takes_tokens = any(keras.backend.standardize_dtype(x.dtype) != "float32" for x in keras_model.inputs)
    if sizes or not takes_tokens:
        return min(sizes, default=2)
    seen = [int(x.max()) + 1 for sequence in own for x in sequence if x.dtype.kind == "i" and x.size]
    if not seen:
        raise ExportError(
            f"model {keras_model.name!r} takes tokens, but has no Embedding layer to tell their range; "
            "give sequences of your own as check_inputs"
        )
    return max(2, *seen)


def _paddings(keras_model: Any, ports: Signature) -> list[float | None]:
    """For each input the value that masks a step of it, None where nothing does."""
    token = 0 if any(layer.mask_zero for layer in _layers(keras_model, keras.layers.Embedding)) else None
    masking: Iterator[float] = (layer.mask_value for layer in _layers(keras_model, keras.layers.Masking))
    sample = next(masking, None)
    return [(sample if port.dtype == "float32" else token) if port.has_time else None for port in ports.inputs]


def _layers(keras_model: Any, kind: Any) -> list[Any]:
    return [layer for layer in keras_model._flatten_layers() if isinstance(layer, kind)]  # also inside user-made layers
