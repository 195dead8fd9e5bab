"""The check that stands before every exported file: Keras, the offline file and the streamed file agree.

Differences are measured on random sequences of several lengths and batch sizes, and on the user's own where given.
The streamed file is run by ``edgeseq.runtime``, as its users will run it.

Tolerance: 1e-5 of the output's scale, far above what float32 sums in another order differ by and far below any mistake.
An ill-conditioned model (a fresh one with large logits, say) cannot be held to that by any float32 program: there it is
four times what nudging every input by its last bit does to the output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnxruntime as ort

from edgeseq import runtime
from edgeseq.errors import ExportError, VerificationError

TOLERANCE = 1e-5
_ROUNDINGS = 4

LENGTHS = (1, 2, 7, 77, 300)
"""Lengths on which Keras and the offline file are compared."""

_PREFIXES = 24
_SEED = 20240229

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Verification:
    """The largest difference seen, in units of the output's scale (at least 1), and over how many sequences."""

    offline: float
    n_sequences: int
    stream: float | None = None


def verify_offline(keras_model: Any, path: Path, own: Sequence[Array] = ()) -> Verification:
    """Compare a Keras model with its offline file.

    Raises:
        VerificationError: shapes or values differ; the message names the first step that does.
    """
    ort_session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    port = ort_session.get_inputs()[0]
    worst, n_sequences = 0.0, 0
    for x in _batches(keras_model, own):
        with keras.device("cpu"):
            expected = keras.ops.convert_to_numpy(keras_model(x, training=False))
        got, nudged = (ort_session.run(None, {port.name: each})[0] for each in (x, _nudged(x)))
        where = f"Keras and {path.name} on input {x.shape}"
        tolerance = _tolerance(got, nudged)
        worst = max(worst, compare(expected, got, where, valid=_valid(keras_model, x), tolerance=tolerance))
        n_sequences += len(x)
    return Verification(offline=worst, n_sequences=n_sequences)


def verify_stream(offline_path: Path, stream_path: Path, own: Sequence[Array] = (), *, vocabulary: int = 2) -> float:
    """Compare a streamed file, in steps and in chunks of random sizes, with its offline file.

    A model of tokens is given random ones below ``vocabulary``.

    Raises:
        VerificationError: shapes or values differ; the message names the first step that does.
    """
    offline, model = runtime.load_offline(offline_path), runtime.load(stream_path)
    rng = np.random.default_rng(_SEED)
    longest = min((model.warm_up or 0) + 40, 3000)
    sequences = [
        _random(rng, (length, *model.input.shape), model.input.dtype, vocabulary) for length in (1, 9, longest)
    ]
    worst = 0.0
    for x in [*sequences, *own]:
        expected, steps = offline.run(x), np.arange(len(x))
        tolerance = _tolerance(expected, offline.run(_nudged(x)))
        if model.description.law == "prefix":
            steps = np.unique(np.linspace(0, len(x) - 1, _PREFIXES).astype(int))
            expected = np.stack([offline.run(x[: t + 1]) for t in steps])
        for way, got in _streamed(model, x, rng):
            where = f"{offline_path.name} and {stream_path.name} {way} on {len(x)} samples"
            worst = max(worst, compare(expected, got[steps], where, tolerance=tolerance))
    return worst


def _streamed(model: runtime.Model, x: Array, rng: np.random.Generator) -> Iterator[tuple[str, Array]]:
    stream = model.stream("verification")
    yield "in steps", np.stack([stream.step(sample) for sample in x])
    stream.reset()
    cuts = np.sort(rng.integers(0, len(x) + 1, size=5))
    yield f"in chunks cut at {cuts.tolist()}", np.concatenate([stream.push(chunk) for chunk in np.split(x, cuts)])


def _nudged(x: Array) -> Array:
    """``x`` with every value moved by its last bit, up or down at random; tokens as they are."""
    if x.dtype.kind != "f":
        return x
    towards = np.random.default_rng(_SEED).choice([-np.inf, np.inf], size=x.shape).astype(x.dtype)
    nudged: Array = np.nextafter(x, towards)
    return nudged


def _tolerance(y: Array, nudged: Array) -> float:
    scale = max(1.0, float(np.max(np.abs(y), initial=0.0)))
    return max(TOLERANCE, _ROUNDINGS * float(np.max(np.abs(y - nudged), initial=0.0)) / scale)


def compare(
    expected: Array, got: Array, where: str, *, valid: Array | None = None, tolerance: float = TOLERANCE
) -> float:
    """The largest difference in units of the expected output's scale, at least 1.

    Raises:
        VerificationError: another shape, or a difference above ``tolerance``.

    Example:
        >>> compare(np.array([1.0, 2.0]), np.array([1.0, 2.5]), "a and b")
        Traceback (most recent call last):
        edgeseq.errors.VerificationError: a and b: first difference at step (1,): expected 2, got 2.5, off by 0.5 ...
    """
    if expected.shape != got.shape:
        raise VerificationError(
            f"{where}: expected output shape {expected.shape}, got {got.shape}; nothing was written"
        )
    if expected.size == 0:
        return 0.0
    scale = max(1.0, float(np.max(np.abs(expected))))
    difference = np.abs(expected.astype(np.float64) - got) / scale
    difference[np.isnan(difference)] = np.inf
    if valid is not None and difference.ndim > valid.ndim:
        difference[~valid] = 0.0
    if (wrong := np.argwhere(difference > tolerance)).size:
        at = tuple(int(i) for i in wrong[np.argsort(wrong[:, -2 if wrong.shape[1] > 1 else 0], kind="stable")][0])
        raise VerificationError(
            f"{where}: first difference at step {at}: expected {expected[at]:.7g}, got {got[at]:.7g}, "
            f"off by {difference[at]:.2g} of the output's scale (tolerance {tolerance:.2g}); nothing was written"
        )
    return float(difference.max())


def _batches(keras_model: Any, own: Sequence[Array]) -> Iterator[Array]:
    rng = np.random.default_rng(_SEED)
    source = keras_model.inputs[0]
    dtype, vocabulary = keras.backend.standardize_dtype(source.dtype), vocabulary_size(keras_model)
    for i, length in enumerate(LENGTHS):
        x = _random(rng, (1 + i % 3, length, *source.shape[2:]), dtype, vocabulary)
        if _pads(keras_model) and len(x) > 1:
            x[-1, (length + 1) // 2 :] = 0
        yield x
    for x in own:
        yield x[None]


def _random(rng: np.random.Generator, shape: Sequence[int], dtype: str, vocabulary: int) -> Array:
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(1, vocabulary, size=shape).astype(dtype)


def _layers(layer: Any) -> Iterator[Any]:
    yield layer
    for inner in getattr(layer, "layers", []):
        yield from _layers(inner)


def _embeddings(keras_model: Any) -> list[Any]:
    return [layer for layer in _layers(keras_model) if isinstance(layer, keras.layers.Embedding)]


def vocabulary_size(keras_model: Any) -> int:
    """The number of tokens that every Embedding of the model knows; 2 for a model that takes no tokens."""
    sizes = [layer.input_dim for layer in _embeddings(keras_model)]
    if not sizes and np.dtype(keras.backend.standardize_dtype(keras_model.inputs[0].dtype)).kind != "f":
        raise ExportError(f"model {keras_model.name!r} takes tokens, but has no Embedding layer to tell their range")
    return min(sizes, default=2)


def _pads(keras_model: Any) -> bool:
    return any(layer.mask_zero for layer in _embeddings(keras_model))


def _valid(keras_model: Any, x: Array) -> Array | None:
    """Which steps are no padding; at padded steps Keras' and ONNX' recurrent layers may differ by definition."""
    return x != 0 if _pads(keras_model) else None
