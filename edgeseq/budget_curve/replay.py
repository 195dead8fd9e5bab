"""Runs streams and the offline model over one's own data: what they give, how late, and what it takes.

Owns the comparison of outputs, the count of delays, and the timing in turns. Refuses a stream that does not give one
row for each sample.

Invariant: what is compared and what is timed are calls of the public runtime on the user's samples; the streams take
turns, so that a busy moment of the machine meets them all.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeseq.budget_curve.sequences import Sequences
from edgeseq.errors import ConfigError, InputError
from edgeseq.runtime import Model, OfflineModel, Stream

Array = NDArray[Any]

_FEWEST_FOR_P99 = 100
_FEWEST_BLOCKS = 8
_LATENESS_ROWS = 256


@dataclass(frozen=True)
class Quality:
    """How near outputs come to the offline model's, over the samples that count.

    ``agreement`` is the share of them with the same most likely label, None for a model of one output; ``accuracy`` the
    share with the right one, None without labels. Differences are absolute.
    """

    agreement: float | None
    accuracy: float | None
    max_difference: float
    mean_difference: float


@dataclass(frozen=True)
class Compute:
    """Wall time of a sample and its processor time (the mean), in microseconds; ``p99_us`` is None of a few calls."""

    p50_us: float
    p99_us: float | None
    cpu_us: float


def offline_outputs(model: OfflineModel, data: Sequences) -> list[Array]:
    """What the offline model gives for each sequence, (T, K).

    Raises:
        InputError: ONNX Runtime rejects a sequence, for example for a token that is not in the vocabulary.
        ConfigError: it does not give a finite row for each sample.
    """
    outputs = []
    for number, x in enumerate(data.inputs):
        try:
            y = model.run(x)
        except InputError as error:
            raise InputError(f"data, sequence {number}: {error}") from error
        if len(y) != len(x) or not np.isfinite(y).all():
            raise ConfigError(
                f"{model!r}, sequence {number}: expected a finite row for each of {len(x)} samples, got {y.shape}; "
                "a budget needs a model that labels every sample"
            )
        outputs.append(y)
    return outputs


def stream_outputs(model: Model, x: Array) -> Array:
    """What a stream gives for one sequence, to its end: (T, C) -> (T, K).

    Raises:
        ConfigError: rows and samples are not as many.
    """
    stream = model.stream("budget")
    y: Array = np.concatenate([stream.push(x), stream.flush()])
    if len(y) != len(x):
        raise ConfigError(
            f"model {model.name!r}: expected a row for each of {len(x)} samples, got {len(y)}; a budget needs a model "
            "that labels every sample"
        )
    return y


def quality(outputs: Iterable[Array], offline: Sequence[Array], data: Sequences) -> Quality:
    """Compare the outputs of each sequence with the offline model's and with the labels."""
    n_counted = n_values = n_same = n_right = 0
    largest, total = 0.0, 0.0
    for number, (streamed, whole) in enumerate(zip(outputs, offline, strict=True)):
        counted = data.counted(number)
        got, wanted = streamed[counted], whole[counted]
        if not len(got):
            continue
        difference = np.abs(got.astype(np.float64) - wanted)
        largest = max(largest, float(difference.max()))
        total += float(difference.sum())
        n_values += difference.size
        n_counted += len(got)
        labels = got.argmax(-1)
        n_same += int((labels == wanted.argmax(-1)).sum())
        if data.labels is not None:
            n_right += int((labels == data.labels[number][counted]).sum())
    several = offline[0].shape[-1] > 1
    return Quality(
        agreement=n_same / n_counted if several else None,
        accuracy=n_right / n_counted if several and data.labels is not None else None,
        max_difference=largest,
        mean_difference=total / n_values,
    )


def delays(model: Model, samples: Array) -> Array:
    """How many samples after its own each row comes, one sample being taken at a time; of a few hundred rows.

    The first rows that come are left out, as their block may be cut short by the start of the sequence. Samples are
    repeated as often as needed.

    Shapes: (n,), of rows that come before the end of the sequence.
    """
    stream = model.stream("budget")
    found: list[int] = []
    n_first = n_rows = 0
    for at in range(model.lookahead + _LATENESS_ROWS):
        came = _count(stream.step(samples[at % len(samples)]))
        found += range(at - n_rows, at - n_rows - came, -1)
        n_first, n_rows = n_first or came, n_rows + came
    return np.array(found[n_first:])


def _count(rows: Array | None) -> int:
    """How many rows a step gave: None, one of (K,), or several of (n, K)."""
    return 0 if rows is None else 1 if rows.ndim == 1 else len(rows)


class StreamWatch:
    """Times a stream's steps over an endless repetition of the data, in whole blocks.

    A block is what one call of the graph takes: one step of it does its work, and the others only keep their samples.
    So the time of a sample is that of its block divided by its samples. The first blocks, until rows come, are not
    timed.
    """

    def __init__(self, model: Model, samples: Array) -> None:
        self._stream: Stream = model.stream("budget")
        self._samples, self._at, self._chunk = samples, 0, model.description.granule
        self._block_ns: list[int] = []
        self._cpu_ns = 0
        for _ in range(model.lookahead // self._chunk + 2):
            self._block()

    def turn(self, n_samples: int) -> None:
        """Time about so many samples, a few blocks at least."""
        cpu = time.thread_time_ns()
        self._block_ns += [self._block() for _ in range(max(_FEWEST_BLOCKS, n_samples // self._chunk))]
        self._cpu_ns += time.thread_time_ns() - cpu

    def _block(self) -> int:
        spent = 0
        for _ in range(self._chunk):
            sample = self._samples[self._at]
            self._at = (self._at + 1) % len(self._samples)
            start = time.perf_counter_ns()
            self._stream.step(sample)
            spent += time.perf_counter_ns() - start
        return spent

    def compute(self) -> Compute:
        """What the timed blocks took, for a sample."""
        return _compute(np.array(self._block_ns) / self._chunk, self._cpu_ns / (len(self._block_ns) * self._chunk))


@dataclass
class OfflineWatch:
    """Times the offline model on whole sequences, one after the other; the time of a sample is its share."""

    model: OfflineModel
    inputs: Sequence[Array]
    _each_ns: list[float] = field(default_factory=list)
    _cpu_ns: int = 0
    _n_samples: int = 0

    def turn(self) -> None:
        """Time one sequence."""
        x = self.inputs[len(self._each_ns) % len(self.inputs)]
        cpu, start = time.thread_time_ns(), time.perf_counter_ns()
        self.model.run(x)
        self._each_ns.append((time.perf_counter_ns() - start) / len(x))
        self._cpu_ns += time.thread_time_ns() - cpu
        self._n_samples += len(x)

    def compute(self) -> Compute:
        """What the timed sequences took, for a sample."""
        return _compute(np.array(self._each_ns), self._cpu_ns / self._n_samples)


def _compute(each_ns: Array, cpu_ns: float) -> Compute:
    p99 = float(np.quantile(each_ns, 0.99)) / 1e3 if len(each_ns) >= _FEWEST_FOR_P99 else None
    return Compute(float(np.median(each_ns)) / 1e3, p99, cpu_ns / 1e3)
