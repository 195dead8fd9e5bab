"""The check that stands before every exported file: Keras, the offline file and the streamed file agree.

The streamed file is run by ``edgeseq.runtime``, as its users will run it. What may differ by how much:
``edgeseq.export.comparison``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgeseq import runtime
from edgeseq.errors import ConfigError, ExportError, VerificationError
from edgeseq.export.comparison import LOOSEST, TOLERANCE, channels, compare, nudged, scale_of, tolerance_of
from edgeseq.export.oracle import NotFiniteError, keras_outputs
from edgeseq.export.probes import BATCHES, Probe, padded_places, probes
from edgeseq.export.reasons import reason
from edgeseq.export.sequences import SEED, Array, Inputs, random, with_gaps
from edgeseq.export.signature import Signature, signature
from edgeseq.model_file import Port

_PREFIXES = 24


@dataclass(frozen=True)
class Verification:
    """The largest difference seen, in units of the output's scale, over how many sequences, and what was allowed.

    ``by_output`` is the largest difference from Keras of each output, and ``offline`` the largest of those;
    ``tolerance`` is the loosest that any channel on any sequence was given: 1e-5 for a well-conditioned model.
    """

    by_output: Mapping[str, float]
    n_sequences: int
    tolerance: float
    stream: float | None = None

    @property
    def offline(self) -> float:
        """The largest difference between Keras and the offline file."""
        return max(self.by_output.values())

    def __or__(self, other: Verification) -> Verification:
        """What two verifications of the same file saw together."""
        worst = {name: max(seen, other.by_output[name]) for name, seen in self.by_output.items()}
        return Verification(worst, self.n_sequences + other.n_sequences, max(self.tolerance, other.tolerance))


def verify_offline(
    keras_model: Any, path: Path, own: Sequence[Inputs] = (), *, must_run: Sequence[int] = ()
) -> Verification:
    """Compare a Keras model with its offline file.

    Lengths at which Keras itself has no outputs (shorter than a kernel, say) are left out, but for ``must_run``.

    Raises:
        VerificationError: shapes or values differ; the message names the first step that does.
        ExportError: ONNX Runtime cannot open the file, or Keras fails at every length, or at one of ``must_run``.
        ConfigError: Keras fails on one of ``own``.
    """
    ports, run = signature(keras_model), _opened(path)
    ran = list(_expected(keras_model, ports, own, must_run))
    ordinary = [expected for probe, expected in ran if not probe.large]
    scales = [scale_of([ys[i] for ys in ordinary], port) for i, port in enumerate(ports.outputs)]
    worst, loosest = {port.name: 0.0 for port in ports.outputs}, TOLERANCE
    for probe, expected in ran:
        where = f"Keras and {path.name} on input {', '.join(str(x.shape) for x in probe.inputs)}"
        kept = padded_places(keras_model, ports, probe.inputs)
        moved = [nudged(x, places) for x, places in zip(probe.inputs, kept, strict=True)]
        answers = zip(ports.outputs, expected, run(ports, probe.inputs, where), run(ports, moved, where), strict=True)
        for (port, y, ours, moved_y), usual in zip(answers, scales, strict=True):
            scale = np.maximum(usual, scale_of([y], port)) if probe.large else usual
            tolerance = tolerance_of(channels(ours, port), channels(moved_y, port), scale)
            at = where if len(ports.outputs) == 1 else f"{where}, output {port.name!r}"
            if probe.large:
                tolerance, at = np.where(tolerance < LOOSEST, LOOSEST, np.finfo(np.float64).max), f"{at} x 100"
            difference = compare(y, ours, at, tolerance=tolerance, scale=scale)
            if not probe.large:
                worst[port.name] = max(worst[port.name], difference)
                loosest = max(loosest, float(np.max(tolerance, initial=0.0)))
    return Verification(worst, sum(len(probe.inputs[0]) for probe, _ in ran), loosest)


def _expected(
    keras_model: Any, ports: Signature, own: Sequence[Inputs], must_run: Sequence[int]
) -> Iterator[tuple[Probe, list[Array]]]:
    """What Keras gives for each probe that it can run; at least one that is not of large values."""
    failure: Exception = ValueError("no sequence")
    n_ordinary, failed = 0, []
    for probe in probes(keras_model, ports, own, must_run):
        expected = keras_outputs(keras_model, probe.inputs)
        if not isinstance(expected, Exception):
            n_ordinary += not probe.large
            yield probe, expected
        elif probe.own is not None:
            raise ConfigError(
                f"check_inputs[{probe.own}]: Keras itself cannot run the model on it: {reason(expected)}; leave it out"
            ) from expected
        elif probe.must_run and ports.any_length:
            length = next(x.shape[1] for x, port in zip(probe.inputs, ports.inputs, strict=True) if port.has_time)
            raise ExportError(f"Keras cannot run the model at {length} steps: {reason(expected)}") from expected
        elif not probe.large:
            failure = expected
            if probe.must_run and not isinstance(expected, NotFiniteError):
                failed.append((len(probe.inputs[0]), expected))
    if 0 < len(failed) < len(BATCHES) and ports.batch is None:
        size, error = failed[0]
        raise ExportError(f"Keras cannot run the model on a batch of {size}, but on others: {reason(error)}") from error
    if n_ordinary == 0:
        raise ExportError(
            f"Keras itself cannot run the model at any length tried: {reason(failure)}; if its inputs are of different "
            "lengths, give sequences of your own as check_inputs"
        ) from failure


def _opened(path: Path) -> Callable[[Signature, Inputs, str], list[Array]]:
    """The file as a function of the model's ports and inputs."""
    try:
        ort_session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    except Exception as error:  # ORT's exception classes have no public common base
        raise ExportError(f"ONNX Runtime cannot run the converted graph: {reason(error)}") from error

    def run(ports: Signature, inputs: Inputs, where: str) -> list[Array]:
        feeds = {port.name: x for port, x in zip(ports.inputs, inputs, strict=True)}
        try:
            return ort_session.run([port.name for port in ports.outputs], feeds)  # type: ignore[no-any-return]
        except Exception as error:
            raise VerificationError(
                f"{where}: Keras runs, ONNX Runtime does not: {reason(error)}; nothing was written"
            ) from error

    return run


def verify_stream(offline_path: Path, stream_path: Path, own: Sequence[Inputs] = (), *, vocabulary: int = 2) -> float:
    """Compare a streamed file, in steps and in chunks of random sizes, with its offline file.

    A model of tokens is given random ones below ``vocabulary``; one sequence has samples of zeros inside. Lengths at
    which the offline file has no output (shorter than a window) are left out.

    Raises:
        VerificationError: shapes or values differ; the message names the first step that does.
    """
    offline, model = runtime.load_offline(offline_path), runtime.load(stream_path)
    rng = np.random.default_rng(SEED)
    longest = min((model.warm_up or 0) + model.lookahead + 40, 3000)
    ports, outputs = model.description.inputs, model.description.outputs
    sequences = [
        [random(rng, (length, *port.shape), port.dtype, vocabulary) for port in ports] for length in (1, 9, longest)
    ]
    gaps = with_gaps(sequences[-1])  # masked samples, for a model that has a mask
    sequences += [gaps] if _has_numbers(_offline(offline, gaps)) else []
    runs = [
        (inputs, whole, [_rows_to_equal(offline, inputs, i, whole[i], port) for i, port in enumerate(outputs)])
        for inputs in [*sequences, *own]
        if (whole := _offline(offline, inputs)) is not None
    ]
    scales = [scale_of([expected[i] for _, _, expected in runs], port) for i, port in enumerate(outputs) if runs]
    worst = 0.0
    for inputs, whole, expected in runs:
        from_nudged = _offline(offline, [nudged(x) for x in inputs]) or whole
        tolerances = [tolerance_of(y, moved, scale) for y, moved, scale in zip(whole, from_nudged, scales, strict=True)]
        for way, got in _streamed(model, inputs, rng):
            where = f"{offline_path.name} and {stream_path.name} {way} on {len(inputs[0])} samples"
            for i, port in enumerate(outputs):
                at_rows = _places(port, len(inputs[0]))
                rows = got[i] if at_rows is None or not len(got[i]) else got[i][at_rows]
                at = where if len(outputs) == 1 else f"{where}, output {port.name!r}"
                difference = compare(expected[i], rows, at, tolerance=tolerances[i], scale=scales[i])
                worst = max(worst, difference)
    return worst


def _streamed(model: runtime.Model, inputs: Inputs, rng: np.random.Generator) -> Iterator[tuple[str, list[Array]]]:
    """All rows of each output, flush() included; and, of pools over time, what they give on shorter sequences."""
    stream, n = model.stream("verification"), len(inputs[0])
    steps = [_by_port(model, stream.step(_given(model, [x[t] for x in inputs]))) for t in range(n)]
    rows = [[_rows(port, y[i]) for y in steps] for i, port in enumerate(model.description.outputs)]
    tail = _by_port(model, stream.flush())
    yield "in steps", [np.concatenate([*each, last]) for each, last in zip(rows, tail, strict=True)]
    stream.reset()
    cuts = np.sort(rng.integers(0, n + 1, size=5))
    chunks = zip(*(np.split(x, cuts) for x in inputs), strict=True)
    parts = [_by_port(model, stream.push(_given(model, list(chunk)))) for chunk in chunks]
    parts.append(_by_port(model, stream.flush()))
    yield f"in chunks cut at {cuts.tolist()}", [np.concatenate(each) for each in zip(*parts, strict=True)]


def _places(port: Port, n_samples: int) -> Array | None:
    """The rows to compare: all (None), or, behind a pool over time, some that equal the offline file on prefixes."""
    timing = port.timing
    if timing is None or timing.by_row:
        return None
    if timing.lookahead == 0 and not timing.rows:  # a row for each sample, at once
        return np.unique(np.linspace(0, n_samples - 1, _PREFIXES).astype(int))
    return np.array([-1])  # the last row is of the whole sequence


def _rows_to_equal(offline: runtime.OfflineModel, inputs: Inputs, i: int, y: Array, port: Port) -> Array:
    """What the rows at ``_places`` are to equal, (n, K), of output ``i``, which is ``y`` on the whole sequence."""
    places = _places(port, len(inputs[0]))
    if places is None:
        return y
    prefixes = [_offline(offline, [x[: t + 1] for x in inputs]) for t in places if t >= 0]
    values = np.stack([prefix[i] for prefix in prefixes if prefix is not None]) if prefixes else y
    return values.reshape(-1, *port.shape)  # a pool may keep its axis of one step, which a stream's rows do not have


def _offline(offline: runtime.OfflineModel, inputs: Inputs) -> list[Array] | None:
    ports = offline.description.inputs
    given = inputs[0] if len(ports) == 1 else dict(zip((port.name for port in ports), inputs, strict=True))
    try:
        outputs = offline.run(given)
    except runtime.InputError:
        return None
    return list(outputs.values()) if isinstance(outputs, dict) else [outputs]


def _has_numbers(outputs: list[Array] | None) -> bool:
    return outputs is not None and all(np.isfinite(y).all() for y in outputs)


def _given(model: runtime.Model, values: list[Array]) -> Any:
    names = [port.name for port in model.description.inputs]
    return values[0] if len(names) == 1 else dict(zip(names, values, strict=True))


def _by_port(model: runtime.Model, outputs: Any) -> list[Any]:
    return list(outputs.values()) if len(model.description.outputs) > 1 else [outputs]


def _rows(port: Port, y: Array | None) -> Array:
    """What a step returned, as rows."""
    if y is None:
        return np.zeros((0, *port.shape), port.dtype)
    return y if y.ndim > len(port.shape) else y[None]
