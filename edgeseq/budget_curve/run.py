"""`budget`: streams a model at every lookahead and chunk, and measures each over one's own data.

Owns the order of the work and the checks of what is asked for. Refuses models that do not label every sample, a causal
model of other outputs, and targets that cannot be told.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeseq.budget_curve.curve import BudgetCurve, Kind, Row, Target
from edgeseq.budget_curve.replay import (
    Array,
    Compute,
    OfflineWatch,
    Quality,
    StreamWatch,
    delays,
    offline_outputs,
    quality,
    stream_outputs,
)
from edgeseq.budget_curve.sequences import Sequences, as_sequences
from edgeseq.errors import ConfigError
from edgeseq.model_file import Description
from edgeseq.runtime import Model, load, load_offline

__all__ = ["budget"]

FilePath = str | os.PathLike[str]
Progress = Callable[[int, int, str], None]
"""Called with the steps done, all steps, and what comes next."""

_TURNS = 16
_SAMPLES_A_TURN = 128


@dataclass(frozen=True)
class _Way:
    """One stream that is measured, and the lookahead and the chunk that it is called after."""

    name: str
    kind: Kind
    model: Model
    lookahead: int
    chunk: int


def budget(
    model: FilePath,
    data: Any,
    *,
    lookaheads: Sequence[int] = (0, 1, 2, 4, 8, 16, 32),
    chunks: Sequence[int] = (1, 8),
    causal: FilePath | None = None,
    target: str | None = None,
    max_delay_s: float | None = None,
    max_delay_samples: int | None = None,
    groups: Collection[int] | None = None,
    max_samples: int | None = None,
    progress: Progress | None = None,
) -> BudgetCurve:
    """Measure what every step of delay buys for a bidirectional model, on one's own data.

    Args:
        model: an offline file of edgeseq, ``NAME.onnx``, with bidirectional layers.
        data: sequences (T, C), or tokens (T,), with labels or without: `Sessions`, an ``.npz`` or ``.csv`` file,
            arrays, or pairs of an array and its labels, where -1 does not count. Data that the model has not seen.
        lookaheads: steps that each recurrent layer looks ahead.
        chunks: sizes of the blocks in which outputs come.
        causal: a stream file, ``NAME.stream.onnx``, of a model that streams exactly, to compare.
        target: what is to be reached: ``"accuracy=0.9"``, ``"agreement=0.99"``, ``"max_difference=0.01"``.
        max_delay_s: the longest delay that is allowed, in seconds of a model with a sample rate.
        max_delay_samples: the same in samples.
        groups: of sessions, only these.
        max_samples: compare at most so many samples, from the start of the data.
        progress: called with the steps done, all steps, and what comes next.

    Raises:
        ConfigError: the data do not fit the model, or an argument is not what it should be.
        ModelNotFoundError, ModelFileError: a file is missing, damaged or of another kind.
        NotStreamableError: the model cannot be streamed with a lookahead; the message names the node and the reason.

    Example:
        >>> import edgeseq
        >>> x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
        >>> sizes = {"lookaheads": (0, 60), "chunks": (1,)}
        >>> curve = edgeseq.budget("tests/data/tiny_bilstm.onnx", [x], **sizes, target="max_difference=1e-4")
        >>> [row.name for row in curve.rows]
        ['lookahead 0, chunk 1', 'lookahead 60, chunk 1', 'offline, at the end']
        >>> curve.best.name, curve.best.delay_ms
        ('lookahead 60, chunk 1', 1200.0)
    """
    offline = load_offline(model)
    description = offline.description
    taken, given = _ports(description)
    sequences = as_sequences(data, taken, given, groups=groups, most=max_samples)
    rate_hz = description.rate_hz or sequences.rate_hz
    goal = _goal(target, sequences, given.shape[0])
    most = _most_delay(max_delay_s, max_delay_samples, rate_hz)
    grid = _grid(lookaheads, chunks)
    said = _Said(progress, 2 * len(grid) + (causal is not None) + 1 + _TURNS)
    ways = [] if causal is None else [_causal(causal, description)]
    said("running the offline model")
    whole = offline_outputs(offline, sequences)
    with tempfile.TemporaryDirectory() as folder:
        for lookahead, chunk in grid:
            said(f"making the stream of lookahead {lookahead} and chunk {chunk}")
            ways.append(_streamed(Path(model), Path(folder), lookahead, chunk))
    qualities = []
    for way in ways:
        said(f"running {way.name}")
        qualities.append(quality((stream_outputs(way.model, x) for x in sequences.inputs), whole, sequences))
    computes, offline_compute = _timed(ways, OfflineWatch(offline, sequences.inputs), sequences, said)
    samples = np.concatenate(sequences.inputs)
    rows = [
        _row(way, _delay(way.model, samples), seen, compute, rate_hz)
        for way, seen, compute in zip(ways, qualities, computes, strict=True)
    ]
    seen = quality(whole, whole, sequences)
    return BudgetCurve(
        model=os.fspath(model),
        rows=(*rows, _offline_row(sequences, seen, offline_compute, rate_hz)),
        rate_hz=rate_hz,
        n_sequences=len(sequences.inputs),
        n_samples=sequences.n_samples,
        n_counted=sum(int(sequences.counted(i).sum()) for i in range(len(sequences.inputs))),
        majority_rate=sequences.majority_rate,
        target=goal,
        max_delay_samples=most,
    )


class _Said:
    """Counts the steps of the work."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._done = progress, total, 0

    def __call__(self, what: str) -> None:
        if self._progress is not None:
            self._progress(self._done, self._total, what)
        self._done += 1


def _ports(description: Description) -> tuple[Any, Any]:
    d = description
    if len(d.inputs) != 1 or len(d.outputs) != 1 or not d.outputs[0].has_time or len(d.outputs[0].shape) != 1:
        raise ConfigError(
            f"model {d.name!r}: expected one input and one output (T, K), got inputs "
            f"{[port.name for port in d.inputs]} and outputs {[(port.name, port.shape) for port in d.outputs]}; a "
            "budget needs a model that labels every sample"
        )
    if d.kind == "offline" and d.outputs[0].timing is not None:
        raise ConfigError(
            f"model {d.name!r}: expected bidirectional layers, got a model that streams exactly, "
            f"{d.outputs[0].timing.lookahead} samples late, so that there is nothing to choose; use its stream file"
        )
    return d.inputs[0], d.outputs[0]


def _goal(target: str | None, data: Sequences, n_outputs: int) -> Target | None:
    if target is None:
        return None
    goal = Target.parse(target)
    if goal.metric == "accuracy" and data.labels is None:
        raise ConfigError(f"target {goal}: expected data with labels; label them, or ask for an agreement")
    if goal.metric in {"accuracy", "agreement"} and n_outputs == 1:
        raise ConfigError(f"target {goal}: expected a model of several outputs; ask for a max_difference")
    return goal


def _most_delay(seconds: float | None, samples: int | None, rate_hz: float | None) -> int | None:
    if seconds is not None and samples is not None:
        raise ConfigError("expected max_delay_s or max_delay_samples, got both; give one")
    given = seconds if samples is None else samples
    if given is not None and not given >= 0:
        raise ConfigError(f"expected a longest delay of at least 0, got {given}")
    if seconds is None:
        return samples
    if rate_hz is None:
        raise ConfigError(
            f"max_delay_s={seconds:g}: expected a model with a sample rate, got none; give max_delay_samples, or "
            "export the model with rate_hz"
        )
    return int(seconds * rate_hz + 1e-6)


def _grid(lookaheads: Sequence[int], chunks: Sequence[int]) -> list[tuple[int, int]]:
    for what, values, least in (("lookaheads", lookaheads, 0), ("chunks", chunks, 1)):
        if not len(values) or any(not isinstance(n, int | np.integer) or n < least for n in values):
            raise ConfigError(f"{what}: expected integers of at least {least}, one or more, got {list(values)}")
    return [(int(nr), int(nc)) for nc in sorted(set(chunks)) for nr in sorted(set(lookaheads))]


def _streamed(model: Path, folder: Path, lookahead: int, chunk: int) -> _Way:
    from edgeseq.export import streamify  # the budget alone needs it, so that reading a curve does not

    path = folder / f"{model.stem}_{lookahead}_{chunk}.stream.onnx"
    streamify(model, path, lookahead=lookahead, chunk=chunk)
    return _Way(f"lookahead {lookahead}, chunk {chunk}", "lookahead", load(path), lookahead, chunk)


def _causal(path: FilePath, offline: Description) -> _Way:
    model = load(path)
    d = model.description
    _ports(d)
    for what, own, other in (("input", d.input, offline.input), ("output", d.output, offline.output)):
        names = own.names and other.names and own.names != other.names
        if (own.shape, own.dtype) != (other.shape, other.dtype) or names:
            raise ConfigError(
                f"causal model {os.fspath(path)!r}: expected the {what} of {offline.name!r}, {other.dtype} "
                f"{other.shape} {list(other.names or ())}, got {own.dtype} {own.shape} {list(own.names or ())}; "
                "compare models of the same data"
            )
    kind = "causal" if model.lookahead == 0 else "stream"
    return _Way(f"{kind} {model.name}", "causal", model, model.lookahead, model.description.granule)


def _timed(ways: Sequence[_Way], offline: OfflineWatch, data: Sequences, said: _Said) -> tuple[list[Compute], Compute]:
    """The compute of each way and of the offline model, in turns."""
    samples = np.concatenate(data.inputs)
    watches = [StreamWatch(way.model, samples) for way in ways]
    offline.model.run(data.inputs[0])
    for number in range(_TURNS):
        said(f"timing, turn {number + 1} of {_TURNS}")
        for watch in watches:
            watch.turn(_SAMPLES_A_TURN)
        offline.turn()
    return [watch.compute() for watch in watches], offline.compute()


def _delay(model: Model, samples: Array) -> tuple[int, float]:
    """The delay of the slowest output, and the mean."""
    found = delays(model, samples)
    return model.lookahead, float(found.mean()) if len(found) else float(model.lookahead)


def _row(way: _Way, late: tuple[int, float], seen: Quality, compute: Compute, rate_hz: float | None) -> Row:
    measured = _measured(late, seen, compute, rate_hz)
    return Row(way.name, way.kind, lookahead=way.lookahead, chunk=way.chunk, **measured)


def _offline_row(data: Sequences, seen: Quality, compute: Compute, rate_hz: float | None) -> Row:
    lengths = np.array([len(x) for x in data.inputs])
    mean = float((lengths * (lengths - 1) / 2).sum() / lengths.sum())  # each sample waits for the end of its sequence
    measured = _measured((int(lengths.max()) - 1, mean), seen, compute, rate_hz)
    return Row("offline, at the end", "offline", lookahead=None, chunk=None, **measured)


def _measured(late: tuple[int, float], seen: Quality, compute: Compute, rate_hz: float | None) -> dict[str, Any]:
    """The fields of a row that were measured."""
    slowest, mean = late
    return {
        "delay_samples": slowest,
        "mean_delay_samples": mean,
        "delay_ms": None if rate_hz is None else 1000 * slowest / rate_hz,
        "mean_delay_ms": None if rate_hz is None else 1000 * mean / rate_hz,
        **asdict(seen),
        **asdict(compute),
        "cpu_s_per_hour": None if rate_hz is None else compute.cpu_us * rate_hz * 3600 / 1e6,
    }
