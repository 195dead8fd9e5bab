"""The check that stands before every exported file: Keras, the offline file and the streamed file agree.

The streamed file is run by ``edgeseq.runtime``, as its users will run it. Every output channel has its own tolerance:
1e-5 of its scale (its largest value, at least 1), far above what float32 sums in another order differ by and far below
any mistake. Where a model is so ill-conditioned that moving every input by its last bit moves the channel by more, no
float32 program can be held to that: there it is four times that move, and never more than 1e-3.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnxruntime as ort
import tensorflow as tf

from edgeseq import runtime
from edgeseq.errors import ExportError, VerificationError
from edgeseq.export.probes import SEED, Array, batches, random, valid_steps

TOLERANCE = 1e-5
_ROUNDINGS, _LOOSEST = 4, 1e-3

_PREFIXES = 24


@dataclass(frozen=True)
class Verification:
    """The largest difference seen, in units of the output's scale, over how many sequences, and what was allowed.

    ``tolerance`` is the loosest that any channel on any sequence was given: 1e-5 for a well-conditioned model.
    """

    offline: float
    n_sequences: int
    tolerance: float
    stream: float | None = None


def verify_offline(keras_model: Any, path: Path, own: Sequence[Array] = ()) -> Verification:
    """Compare a Keras model with its offline file.

    Lengths at which Keras itself fails (shorter than a kernel without padding) are left out.

    Raises:
        VerificationError: shapes or values differ; the message names the first step that does.
        ExportError: ONNX Runtime cannot open the file, or Keras fails at every length.
    """
    try:
        ort_session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # ORT's exception classes have no public common base
        raise ExportError(f"ONNX Runtime cannot run the converted graph: {str(error).splitlines()[0]}") from error
    worst, loosest, n_sequences = 0.0, TOLERANCE, 0
    for x in batches(keras_model, own):
        expected = _keras(keras_model, x)
        if isinstance(expected, Exception):
            failure = expected
            continue
        valid = valid_steps(keras_model, x)
        got, nudged = (ort_session.run(None, {"input": each})[0] for each in (x, _nudged(x, valid)))
        where = f"Keras and {path.name} on input {x.shape}"
        tolerance = _tolerance(got, nudged)
        worst = max(worst, compare(expected, got, where, valid=valid, tolerance=tolerance))
        loosest, n_sequences = max(loosest, float(np.max(tolerance, initial=0.0))), n_sequences + len(x)
    if n_sequences == 0:
        raise ExportError(f"Keras itself cannot run the model at any length tried: {failure}") from failure
    return Verification(offline=worst, n_sequences=n_sequences, tolerance=loosest)


def _keras(keras_model: Any, x: Array) -> Array | Exception:
    try:
        with keras.device("cpu"):
            outputs = keras.tree.flatten(keras_model(x, training=False))
    except (ValueError, tf.errors.InvalidArgumentError) as error:
        return error
    expected: Array = keras.ops.convert_to_numpy(outputs[0])
    return expected


def verify_stream(offline_path: Path, stream_path: Path, own: Sequence[Array] = (), *, vocabulary: int = 2) -> float:
    """Compare a streamed file, in steps and in chunks of random sizes, with its offline file.

    A model of tokens is given random ones below ``vocabulary``.

    Raises:
        VerificationError: shapes or values differ; the message names the first step that does.
    """
    offline, model = runtime.load_offline(offline_path), runtime.load(stream_path)
    rng = np.random.default_rng(SEED)
    longest = min((model.warm_up or 0) + 40, 3000)
    sequences = [random(rng, (length, *model.input.shape), model.input.dtype, vocabulary) for length in (1, 9, longest)]
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


def _nudged(x: Array, valid: Array | None = None) -> Array:
    """``x`` with every value moved by its last bit, up or down at random; tokens and padding as they are."""
    if x.dtype.kind != "f":
        return x
    towards = np.random.default_rng(SEED).choice([-np.inf, np.inf], size=x.shape).astype(x.dtype)
    nudged: Array = np.nextafter(x, towards)
    return nudged if valid is None else np.where(valid[..., None], nudged, x)


def _scale(y: Array) -> Array:
    """Of each channel, (K,): its largest value, at least 1."""
    largest: Array = np.max(np.abs(y.reshape(-1, y.shape[-1])), axis=0, initial=0.0)
    scale: Array = np.maximum(1.0, largest)
    return scale


def _tolerance(y: Array, nudged: Array) -> Array:
    """Of each channel, (K,), in units of its scale."""
    moved = np.max(np.abs(y - nudged).reshape(-1, y.shape[-1]), axis=0, initial=0.0) / _scale(y)
    tolerance: Array = np.clip(_ROUNDINGS * moved, TOLERANCE, _LOOSEST)
    return tolerance


def compare(
    expected: Array, got: Array, where: str, *, valid: Array | None = None, tolerance: float | Array = TOLERANCE
) -> float:
    """The largest difference in units of the scale of its channel (the largest value expected there, at least 1).

    Shapes: (..., K) both; ``tolerance`` a number or (K,).

    Raises:
        VerificationError: another shape, or a difference above ``tolerance``.

    Example:
        >>> compare(np.array([1.0, 2.0]), np.array([1.0, 2.5]), "a and b")
        Traceback (most recent call last):
        edgeseq.errors.VerificationError: a and b: first difference at step (1,): expected 2, got 2.5, off by 0.25 ...
    """
    if expected.shape != got.shape:
        raise VerificationError(
            f"{where}: expected output shape {expected.shape}, got {got.shape}; nothing was written"
        )
    if expected.size == 0:
        return 0.0
    difference = np.abs(expected.astype(np.float64) - got) / _scale(expected)
    difference[np.isnan(difference)] = np.inf
    if valid is not None and difference.ndim > valid.ndim:
        difference[~valid] = 0.0
    if (wrong := np.argwhere(difference > tolerance)).size:
        at = tuple(int(i) for i in wrong[np.argsort(wrong[:, -2 if wrong.shape[1] > 1 else 0], kind="stable")][0])
        allowed = np.broadcast_to(tolerance, expected.shape)[at]
        raise VerificationError(
            f"{where}: first difference at step {at}: expected {expected[at]:.7g}, got {got[at]:.7g}, "
            f"off by {difference[at]:.2g} of the output's scale (tolerance {allowed:.2g}); nothing was written"
        )
    return float(difference.max())
