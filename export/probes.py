"""The sequences on which an export is verified: random ones that fit the model, and the user's own.

Owns what must be known of a Keras model for that: the range of its tokens, and the values with which it masks steps.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from edgeseq.errors import ExportError
from edgeseq.export.sequences import SEED, Array, Inputs, random
from edgeseq.export.signature import Signature
from edgeseq.model_file import Port

LENGTHS = (1, 2, 7, 77, 300)
"""Lengths on which Keras and the offline file are compared."""

BATCHES = (1, 2, 3)

_SPECIAL_LENGTHS = (7, 77)
_LARGE = 100.0  # times a standard normal sample: where an exponential or a square overflows


@dataclass(frozen=True)
class Probe:
    """One batch on which Keras and the file are compared.

    ``must_run``: that Keras cannot run it is a mistake. ``large``: of values so large that Keras may overflow, or be so
    ill-conditioned that nothing but an overflow can be seen. ``own``: the place in the user's ``check_inputs``.
    """

    inputs: Inputs
    must_run: bool = False
    large: bool = False
    own: int | None = None


def probes(keras_model: Any, ports: Signature, own: Sequence[Inputs], must_run: Sequence[int]) -> Iterator[Probe]:
    """One to three random sequences of each length, gaps, large values, then ``own``.

    An input of one length has that length in all of them; a model of a fixed batch is given that batch. Keras must run
    the lengths of ``must_run``, and a model of one length at every batch size.
    """
    rng = np.random.default_rng(SEED)
    vocabulary, paddings = vocabulary_size(keras_model, own), _paddings(keras_model, ports)
    fixed = [port.length for port in ports.inputs if port.length is not None]
    is_open = any(port.has_time and port.length is None for port in ports.inputs)
    lengths = (*LENGTHS, *fixed, *must_run) if is_open else (max(fixed, default=1),) * len(BATCHES)

    def drawn(length: int, size: int) -> Inputs:
        shapes = [(ports.batch or size, *_shape(port, length)) for port in ports.inputs]
        return [random(rng, shape, port.dtype, vocabulary) for port, shape in zip(ports.inputs, shapes, strict=True)]

    for i, length in enumerate(lengths):
        inputs = drawn(length, BATCHES[i % len(BATCHES)])
        for x, values in zip(inputs, paddings, strict=True):
            _end_masked(x, values[i % len(values)] if values else None)
        yield Probe(inputs, must_run=not is_open or length in must_run)
    for length in _SPECIAL_LENGTHS if is_open else lengths[:1]:
        for i in range(max(1, *map(len, paddings))):
            chosen = [values[i % len(values)] if values else 0.0 for values in paddings]
            yield Probe([_with_gaps(rng, *each) for each in zip(drawn(length, 3), ports.inputs, chosen, strict=True)])
        if any(port.dtype == "float32" for port in ports.inputs):
            inputs = drawn(length, 2)
            yield Probe([x * np.float32(_LARGE) if x.dtype.kind == "f" else x for x in inputs], large=True)
    for i, sequence in enumerate(own):
        yield Probe([np.repeat(x[None], ports.batch or 1, axis=0) for x in sequence], own=i)


def _shape(port: Port, length: int) -> tuple[int, ...]:
    return tuple(length if n is None else n for n in port.array_shape)


def _end_masked(x: Array, padding: float | None) -> None:
    """Mask the second half of the last sequence of several, and a step in its first half."""
    if padding is not None and len(x) > 1:
        x[-1, (x.shape[1] + 1) // 2 :] = padding
        x[-1, x.shape[1] // 4] = padding


def _with_gaps(rng: np.random.Generator, x: Array, port: Port, padding: float) -> Array:
    """``x`` with ``padding`` at a third of its places at random: in tokens anywhere, else in whole rows of channels.

    The first step has none. Also where no layer is known to mask: a layer of the user's own may.
    """
    if not port.has_time:
        return x
    is_token = x.dtype.kind == "i"
    places: Array = rng.random(x.shape if is_token else x.shape[:-1]) < np.full(1, 1 / 3)
    places[:, :1] = False
    return np.where(places if is_token else places[..., None], np.asarray(padding, x.dtype), x)


def padded_places(keras_model: Any, ports: Signature, inputs: Inputs) -> list[Array]:
    """Where each input masks, (B, T, ...) or (B, T, ..., 1): values that must stay as they are to the last bit."""
    return [
        np.logical_or.reduce(
            [np.all(x == np.asarray(value, x.dtype), axis=-1, keepdims=True) for value in values]
            or [np.zeros((1,) * x.ndim, bool)]
        )
        for x, values in zip(inputs, _paddings(keras_model, ports), strict=True)
    ]


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


def _paddings(keras_model: Any, ports: Signature) -> list[list[float]]:
    """For each input the values that mask a step of it, none where nothing does."""
    tokens = [0.0] if any(layer.mask_zero for layer in _layers(keras_model, keras.layers.Embedding)) else []
    samples = sorted({float(layer.mask_value) for layer in _layers(keras_model, keras.layers.Masking)})
    return [(samples if port.dtype == "float32" else tokens) if port.has_time else [] for port in ports.inputs]


def _layers(keras_model: Any, kind: Any) -> list[Any]:
    return [layer for layer in keras_model._flatten_layers() if isinstance(layer, kind)]  # also inside user-made layers
