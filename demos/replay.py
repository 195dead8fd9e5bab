"""Replays of a session through a method, with the compute of every call really measured.

Owns the stopwatch, the ways of calling a model (sample by sample, on a sliding window), and the interleaved run in
which several ways take turns, so that their ratios are measured under the same conditions. The clock of a session is
simulated: sample i arrives at ``i / rate_hz``, and `Replay.emitted_at_s` queues the measured calls on that clock.
Refuses sessions that are shorter than the window they are to be cut into.

Invariant: every sample of a session gets exactly one label, from a call that was made once it had arrived.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from demos.felt_latency import Floats, Ints, queue_ends
from edgeseq import runtime
from edgeseq.errors import ConfigError

Signal = NDArray[np.float32]
Outputs = NDArray[np.float32]
Predict = Callable[[Signal], Outputs]
"""A model over a window: (T, C) -> (T, K)."""

BLOCK = 6
"""Consecutive samples of one round of the interleaved run."""

_WARM_UP_CALLS = 3


@dataclass
class Stopwatch:
    """The wall time and the processor time of every call made through it, in nanoseconds.

    Example:
        >>> watch = Stopwatch()
        >>> watch(sum, [1, 2]), len(watch.wall_ns)
        (3, 1)
    """

    wall_ns: list[int] = field(default_factory=list)
    cpu_ns: list[int] = field(default_factory=list)

    def __call__(self, function: Callable[[Any], Any], argument: Any) -> Any:
        """Return ``function(argument)`` and keep what it took."""
        cpu, wall = time.process_time_ns(), time.perf_counter_ns()
        result = function(argument)
        self.wall_ns.append(time.perf_counter_ns() - wall)
        self.cpu_ns.append(time.process_time_ns() - cpu)
        return result

    @property
    def compute_s(self) -> Floats:
        """Wall time of each call, (N,), in seconds."""
        return np.array(self.wall_ns, np.float64) / 1e9

    @property
    def cpu_s(self) -> Floats:
        """Processor time of each call over all threads of the process, (N,), in seconds."""
        return np.array(self.cpu_ns, np.float64) / 1e9


@dataclass(frozen=True, eq=False)
class Replay:
    """One session through one method: N calls that labelled T samples.

    Call k was made when ``ends[k]`` samples had arrived, and labelled the next ``given[k]`` samples: those since the
    call before it, unless something else is said.

    Shapes:
        ends, compute_s, cpu_s, given (N,); labels (T,) with T = ends[-1].

    Example:
        >>> replay = Replay(np.array([2, 3]), np.array([0.5, 0.5]), np.array([0.5, 0.5]), np.array([0, 0, 1]))
        >>> replay.future_samples.tolist(), replay.emitted_at_s(rate_hz=1.0).tolist()
        ([1, 0, 0], [1.5, 1.5, 2.5])
    """

    ends: Ints
    compute_s: Floats
    cpu_s: Floats
    labels: Ints
    given: Ints | None = None

    @property
    def samples_per_call(self) -> Ints:
        """How many samples each call labelled, (N,)."""
        return np.diff(self.ends, prepend=0) if self.given is None else self.given

    @property
    def future_samples(self) -> Ints:
        """How many samples after its own each label had to wait for, (T,)."""
        return np.repeat(self.ends - 1, self.samples_per_call) - np.arange(len(self.labels))

    def emitted_at_s(self, rate_hz: float) -> Floats:
        """When each label is there, on the clock on which sample i arrives at ``i / rate_hz``; (T,), in seconds."""
        return np.repeat(queue_ends((self.ends - 1) / rate_hz, self.compute_s), self.samples_per_call)


def replay_stream(model: runtime.Model, signal: Signal) -> tuple[Replay, Outputs]:
    """One sample in, one label out; returns the outputs too, to be compared with the offline model.

    Shapes:
        (T, C) -> T calls, and (T, K).
    """
    stream, watch = model.stream("replay"), Stopwatch()
    outputs = np.stack([watch(stream.step, sample) for sample in signal])
    ends = np.arange(1, len(signal) + 1)
    return Replay(ends, watch.compute_s, watch.cpu_s, outputs.argmax(axis=-1)), outputs


def replay_blocks(model: runtime.Model, signal: Signal) -> Replay:
    """A stream whose labels come later and in blocks, sample by sample to the end of the session.

    The steps of a block count as one call, when the last sample of the block is there: that step does the work. What
    is left over and `flush` are the last call.

    Shapes:
        (T, C) -> T // block + 1 calls.
    """
    stream, watch = model.stream("replay"), Stopwatch()
    block = model.description.granule
    rows = [watch(stream.step, sample) for sample in signal]
    rows.append(watch(lambda _: stream.flush(), None))
    labels = [np.zeros(0, int) if y is None else np.atleast_1d(y.argmax(axis=-1)) for y in rows]
    starts = np.arange(0, len(signal) + 1, block)
    compute_s, cpu_s, given = (
        np.add.reduceat(values, starts) for values in (watch.compute_s, watch.cpu_s, np.array([len(y) for y in labels]))
    )
    return Replay(np.append(starts[1:], len(signal)), compute_s, cpu_s, np.concatenate(labels), given)


def replay_window(predict: Predict, signal: Signal, *, window: int, hop: int) -> Replay:
    """Run the newest `window` samples again after every `hop` samples; each run labels the samples since the last.

    The first windows are as short as what has arrived, the last hop as short as what is left. With `window` and `hop`
    of the session's length this is one offline run.

    Shapes:
        (T, C) -> ceil(T / hop) calls.

    Example:
        >>> replay = replay_window(lambda x: x, np.eye(5, dtype=np.float32), window=3, hop=2)
        >>> replay.ends.tolist(), replay.labels.tolist()
        ([2, 4, 5], [0, 1, 2, 3, 4])
    """
    watch = Stopwatch()
    ends = np.append(np.arange(hop, len(signal), hop), len(signal))
    labels = np.empty(len(signal), np.int64)
    start = 0
    for end in ends.tolist():
        outputs = watch(predict, signal[max(0, end - window) : end])
        labels[start:end] = outputs[start - end :].argmax(axis=-1)
        start = end
    return Replay(ends, watch.compute_s, watch.cpu_s, labels)


def resampled(replay: Replay, watch: Stopwatch, rng: np.random.Generator) -> Replay:
    """The same labels at hop 1, with the compute of each call drawn from those that `watch` measured.

    For a method that is too slow to be run on every sample, once its outputs are known to be those of `replay`.

    Example:
        >>> replay = Replay(np.array([1, 2]), np.zeros(2), np.zeros(2), np.array([0, 1]))
        >>> resampled(replay, Stopwatch([7_000_000_000], [9_000_000_000]), np.random.default_rng(0)).compute_s.tolist()
        [7.0, 7.0]
    """
    drawn = rng.integers(len(watch.wall_ns), size=len(replay.labels))
    ends = np.arange(1, len(replay.labels) + 1)
    return Replay(ends, watch.compute_s[drawn], watch.cpu_s[drawn], replay.labels)


@dataclass(frozen=True)
class Way:
    """One way of labelling the newest sample of a window, and on how many samples of a round it is run."""

    predict: Predict
    calls: int


@dataclass(frozen=True)
class Interleaved:
    """What took turns on the same samples: the stream's ``"step"``, and each way of running the window again.

    `differences` are the largest ones between the outputs of each way and those of the stream.
    """

    watches: Mapping[str, Stopwatch]
    differences: Mapping[str, float]


def interleave(
    model: runtime.Model, ways: Mapping[str, Way], signals: Sequence[Signal], *, window: int, rounds: int
) -> Interleaved:
    """Measure the step and every way in turn, on consecutive samples from the middle of each signal.

    The first of several calls in a row is made but not measured: how long it takes depends on what ran before it.

    Shapes:
        signals of (T_i, C) with T_i >= window + rounds * BLOCK; a way is given (window, C), its last row is compared.

    Raises:
        ConfigError: a signal is too short.
    """
    watches = {name: Stopwatch() for name in ("step", *ways)}
    differences = dict.fromkeys(ways, 0.0)
    unmeasured = Stopwatch()
    for way in ways.values():
        for _ in range(_WARM_UP_CALLS):
            way.predict(signals[0][:window])
    for number, signal in enumerate(signals):
        start = _start(number, len(signal), window, rounds * BLOCK)
        stream = model.stream(f"session {number}")
        stream.push(signal[:start])
        for begin in range(start, start + rounds * BLOCK, BLOCK):
            block = range(begin, begin + BLOCK)
            expected = [(unmeasured if i == begin else watches["step"])(stream.step, signal[i]) for i in block]
            for name, way in ways.items():
                for i, wanted in zip(block[: way.calls], expected, strict=False):
                    watch = unmeasured if i == begin and way.calls > 1 else watches[name]
                    got = watch(way.predict, signal[i + 1 - window : i + 1])[-1]
                    # np.maximum, because Python's max would let a NaN pass.
                    differences[name] = float(np.maximum(differences[name], np.abs(got - wanted).max()))
    return Interleaved(watches, differences)


def paced(
    model: runtime.Model, predict: Predict, signal: Signal, *, window: int, calls: int, gap_s: float
) -> dict[str, Stopwatch]:
    """Measure the step and the window in turn with the processor idle before each call, as beside a real sensor.

    Units:
        gap_s: seconds of sleep before each call.

    Raises:
        ConfigError: the signal is shorter than window + calls.
    """
    watches = {"step": Stopwatch(), "window": Stopwatch()}
    start = _start(0, len(signal), window, calls)
    stream = model.stream("paced")
    stream.push(signal[:start])
    for i in range(start, start + calls):
        time.sleep(gap_s)
        watches["step"](stream.step, signal[i])
        time.sleep(gap_s)
        watches["window"](predict, signal[i + 1 - window : i + 1])
    return watches


def _start(number: int, length: int, window: int, samples: int) -> int:
    if length < window + samples:
        raise ConfigError(
            f"session {number}: expected at least {window + samples} samples, a window of {window} and {samples} for "
            f"the rounds, got {length}; ask for fewer rounds"
        )
    return max(window, (length - samples) // 2)
