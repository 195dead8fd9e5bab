"""What a contract check works on: a stream file, the offline model that it is to equal, and sequences for both.

Every sequence is run through the offline model once, and once more with the last bit of every input moved, which tells
what float32 can be held to (``edgeseq.export.comparison``). The stream file is run in two ways: by ``edgeseq.runtime``,
one sequence at a time, as its users will; and by plain ONNX Runtime, many sequences in one call, following nothing but
the file's description.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from edgeseq import runtime
from edgeseq.errors import ConfigError, VerificationError
from edgeseq.export.comparison import channels, compare, nudged, scale_of, tolerance_of
from edgeseq.export.contract.offline_function import OfflineFunction
from edgeseq.export.reasons import reason
from edgeseq.export.sequences import SEED, Array, Inputs, random, with_gaps
from edgeseq.export.streaming.step_model import Options
from edgeseq.model_file import NEVER, Description, Port, Timing
from edgeseq.runtime.inputs import InputCheck
from edgeseq.runtime.model_source import open_model

T = TypeVar("T")

LONGEST = 3000
"""Samples of the longest sequence, however large the receptive field: what bounds the work."""

_LONG = 200  # samples at least: a recurrent model has no receptive field that would tell

_GAPPED = 30  # samples at least of the sequence with gaps

NO_OPTIONS = Options()

STEP = -1
"""Among the sizes of chunks: one sample, by ``step``."""


@dataclass(frozen=True)
class Case:
    """One sequence: its inputs (T, C), the offline model's outputs, and of each output the tolerance of each channel.

    ``expected`` is None for a sequence so short that the offline model has no output.
    """

    inputs: Inputs
    expected: list[Array] | None
    tolerances: list[Array]

    @property
    def n(self) -> int:
        """How many samples it has."""
        return len(self.inputs[0])


class Pair:
    """A stream file and its offline model; ``own`` are sequences of the user's."""

    def __init__(
        self, path: Path, offline: OfflineFunction, vocabulary: int, own: Sequence[Any], options: Options = NO_OPTIONS
    ) -> None:
        self.path, self.offline, self.vocabulary, self.options = path, offline, vocabulary, options
        self.whole = offline  # the offline model itself, where ``offline`` is a reference that sees less of the future
        self.model = runtime.load(path)
        self.description: Description
        source = open_model(path, "stream")
        self.description, self.ort_session = source.description, source.ort_session
        self.timings: list[Timing] = [p.timing for p in self.description.outputs if p.timing is not None]
        self._own = [self._checked(i, given) for i, given in enumerate(own)]
        self.notes: list[str] = []
        self._once: dict[Callable[[Pair], Any], Any] = {}
        self._rng = np.random.default_rng(SEED)

    def _checked(self, i: int, given: Any) -> Inputs:
        ports = self.description.inputs
        by_port = given if isinstance(given, dict) else {ports[0].name: given}
        if set(by_port) != {port.name for port in ports}:
            raise ConfigError(f"check_inputs[{i}]: expected the inputs {[p.name for p in ports]}, got {list(by_port)}")
        inputs = [InputCheck(p).sequence(by_port[p.name], f"check_inputs[{i}], {p.name}") for p in ports]
        if len({len(x) for x in inputs}) > 1 or len(inputs[0]) < self.shortest:
            raise ConfigError(
                f"check_inputs[{i}]: expected sequences of one length, of {self.shortest} samples at least, "
                f"got {[len(x) for x in inputs]}"
            )
        if self.allowed(len(inputs[0])) != len(inputs[0]):
            raise ConfigError(
                f"check_inputs[{i}]: {len(inputs[0])} samples are not what length_modulo={self.options.length_modulo} "
                "promises; leave it out"
            )
        return inputs

    def allowed(self, n: int) -> int:
        """The next length from ``n`` on that ``length_modulo`` promises."""
        modulus, remainder = self.options.length_modulo or (1, 0)
        return n + (remainder - n) % modulus

    def pools_all(self, timing: Timing, n: int) -> bool:
        """Whether an output on ``n`` samples is the offline model's: not where a window leaves out earlier rows."""
        window = self.options.pooling_window
        return timing.law != "window" or (window is not None and timing.count_rows(n) <= window)

    @property
    def shortest(self) -> int:
        """The samples from which on the offline model is defined."""
        return max(timing.shortest for timing in self.timings)

    @cached_property
    def field(self) -> int:
        """Samples that a row sees: the widest finite receptive field, at most ``LONGEST``."""
        return min(LONGEST, 1 + max(sum(n or 0 for n in timing.receptive_field) for timing in self.timings))

    @cached_property
    def longest(self) -> int:
        """An odd number of samples beyond the receptive field and the lookahead, where that can be."""
        wanted = min(LONGEST, self.field + self.model.lookahead + 2 * self.description.granule + 40)
        return self.allowed(max(wanted, _LONG, self.shortest + 2 * self.description.granule) | 1)

    def draw(self, *shape: int) -> Inputs:
        """Random sequences (..., C) for each input."""
        return [random(self._rng, (*shape, *p.shape), p.dtype, self.vocabulary) for p in self.description.inputs]

    @cached_property
    def cases(self) -> list[Case]:
        """Sequences of the lengths at which things go wrong, and the user's own."""
        granule, shortest = self.description.granule, self.shortest
        lengths = {1, 2, 3, 9, granule, granule + 1, shortest, shortest + 1, self.field, self.field + 1, self.longest}
        window = self.options.pooling_window or 1
        lengths |= {window * max(1, *(timing.hop[0] for timing in self.timings)) - after for after in (0, 1)}
        drawn = [self.draw(n) for n in sorted({self.allowed(max(1, n)) for n in lengths}) if n <= self.longest]
        self._learn_axes()
        runs = [(inputs, self.expected(inputs)) for inputs in [*drawn, *self._own]]
        runs += self._masked_in_part()
        of_full = [expected for _, expected in runs if expected is not None]
        self.scales = [
            scale_of([ys[i][None] for ys in of_full], port) for i, port in enumerate(self.description.outputs)
        ]
        return [Case(inputs, expected, self._tolerances(inputs, expected)) for inputs, expected in runs]

    def _masked_in_part(self) -> list[tuple[Inputs, list[Array]]]:
        """A sequence with samples left out, where the offline model has numbers for it."""
        inputs = with_gaps(self.draw(self.allowed(self.shortest + 2 * self.description.granule + _GAPPED)))
        expected = self.expected(inputs)
        return [] if expected is None or not all(np.isfinite(y).all() for y in expected) else [(inputs, expected)]

    def _learn_axes(self) -> None:
        longer = self.draw(self.longest + 2 * max(t.hop[0] for t in self.timings))
        self.offline.find_output_axes([x[: self.longest] for x in longer], longer)

    def expected(self, inputs: Inputs) -> list[Array] | None:
        """What the offline model gives; no rows where it is not defined, None where that is no answer of a pool.

        None, too, and a note, where it fails on a short sequence against what the file says: a branch that leads to no
        output may do that.
        """
        n = len(inputs[0])
        if n >= self.shortest:
            try:
                return self.offline.run(inputs)
            except VerificationError as error:
                if n >= self.longest:
                    raise
                self.notes.append(f"not compared at {n} samples, since the offline model cannot run them: {error}")
                return None
        n_rows = [timing.count_rows(n) if timing.by_row else 1 for timing in self.timings]
        return None if any(n_rows) else [np.zeros((0, *p.shape), p.dtype) for p in self.description.outputs]

    def _tolerances(self, inputs: Inputs, expected: list[Array] | None) -> list[Array]:
        moved = self.expected([nudged(x) for x in inputs]) if expected is not None else None
        if expected is None or moved is None:
            return []
        ports = self.description.outputs
        return [
            tolerance_of(channels(y, port), channels(other, port), scale)
            for y, other, port, scale in zip(expected, moved, ports, self.scales, strict=True)
        ]

    @property
    def full(self) -> Case:
        """The case of the longest drawn sequence."""
        return next(case for case in self.cases if case.n == self.longest)

    def compare(self, case: Case, got: Sequence[Array], way: str) -> float:
        """Hold all rows of a finished sequence to the offline model's; the largest difference seen.

        Raises:
            VerificationError: the number of rows is another, or a value.
        """
        worst = 0.0
        for i, (port, timing) in enumerate(zip(self.description.outputs, self.timings, strict=True)):
            where = f"output {port.name!r}, {case.n} samples {way}"
            n_rows = timing.count_rows(case.n)
            if len(got[i]) != n_rows:
                raise VerificationError(f"{where}: expected {n_rows} rows, got {len(got[i])}")
            if case.expected is not None and self.pools_all(timing, case.n):
                if n_rows == 0 and not timing.by_row:
                    raise VerificationError(f"{where}: the offline model has an output, the stream has no row")
                rows = got[i] if timing.by_row else got[i][-1]
                at = where if timing.by_row else f"{where}, the last row"
                worst = max(worst, self.differs(i, case, case.expected[i], rows, at))
        return worst

    def differs(self, i: int, case: Case, expected: Array, got: Array, where: str) -> float:
        """The difference of an output from what is expected, held to the case's tolerance.

        The scale is at least that of what is expected: a channel may be near zero at the end of every sequence.
        """
        port = self.description.outputs[i]
        return compare(
            channels(expected, port),
            channels(got, port),
            where,
            tolerance=case.tolerances[i],
            scale=np.maximum(self.scales[i], scale_of([expected], port)),
            consequence="the stream is not the offline model",
        )

    def streamed(self, stream: runtime.Stream, inputs: Inputs, sizes: Sequence[int]) -> list[Array]:
        """All rows of each output, ``flush`` included, in chunks of these sizes (``STEP``: by ``step``)."""
        given: list[list[Any]] = []
        start = 0
        for size in sizes:
            if size == STEP:
                given.append(self.one_step(stream, [x[start] for x in inputs]))
            else:
                given.append(self.one_chunk(stream, [x[start : start + size] for x in inputs]))
            start += abs(size)
        given.append(self._listed(stream.flush()))
        return [
            np.concatenate([as_rows(port, ys[i]) for ys in given]) for i, port in enumerate(self.description.outputs)
        ]

    def one_step(self, stream: runtime.Stream, samples: Inputs) -> list[Array | None]:
        """What one sample (C,) of each input gives, for each output."""
        return self._listed(stream.step(self._named(samples)))

    def one_chunk(self, stream: runtime.Stream, chunks: Inputs) -> list[Array]:
        """What one chunk (T, C) of each input gives, for each output."""
        return self._listed(stream.push(self._named(chunks)))

    def once(self, compute: Callable[[Pair], T]) -> T:
        """What ``compute`` gives for this pair, computed when it is first asked for."""
        if compute not in self._once:
            self._once[compute] = compute(self)
        return self._once[compute]  # type: ignore[no-any-return]

    def _named(self, values: list[Array]) -> Any:
        names = [port.name for port in self.description.inputs]
        return values[0] if len(names) == 1 else dict(zip(names, values, strict=True))

    def _listed(self, outputs: Any) -> list[Any]:
        return list(outputs.values()) if len(self.description.outputs) > 1 else [outputs]

    def raw(self, inputs: Inputs, lengths: Sequence[int], sizes: Sequence[int] = ()) -> list[Array]:
        """All rows (B, R, K) of each output for B sequences (B, T, C) side by side, by plain ONNX Runtime.

        Sequence b has ``lengths[b]`` samples. Calls are of about ``sizes``; the rest comes in one.
        """
        d = self.description
        total = self._to_feed(max(lengths))
        fed = [np.zeros((len(x), total, *x.shape[2:]), x.dtype) for x in inputs]
        for whole, x in zip(fed, inputs, strict=True):
            for b, n in enumerate(lengths):
                whole[b, d.phase : d.phase + n] = x[b, :n]
        wanted = {int(c) // d.granule * d.granule for c in np.cumsum([0, *sizes])}
        places = sorted(c for c in {0, total, *wanted, *d.cuts} if 0 <= c <= total)
        streams = RawStreams(self, len(lengths))
        parts = []
        for start, stop in pairwise(places):
            end = np.array([n if stop > d.phase + n else NEVER for n in lengths])
            parts.append(streams.call([x[:, start:stop] for x in fed], end))
        return [
            np.concatenate([part[i] for part in parts], axis=1)[:, t.delay : t.delay + t.count_rows(max(lengths))]
            for i, t in enumerate(self.timings)
        ]

    def _to_feed(self, n_samples: int) -> int:
        """How many samples, the phase and zeros after the end included, give all rows of so many."""
        d = self.description
        owed = [Fraction(t.count_rows(n_samples) + t.delay) * Fraction(*t.hop) for t in self.timings]
        total = max(d.phase + n_samples, *(-(-f.numerator // f.denominator) for f in owed))
        return total + -total % d.granule


class RawStreams:
    """N streams by plain ONNX Runtime: the graph, and the state that it carries from call to call."""

    def __init__(self, pair: Pair, n_streams: int) -> None:
        self._description, self._ort_session, self._n_streams = pair.description, pair.ort_session, n_streams
        self.state = {
            s.input: np.full((n_streams, *s.shape), s.initial, s.dtype) for s in self._description.state
        }  # by the name under which the graph takes it

    def call(self, inputs: Inputs, end: Array) -> list[Array]:
        """The rows (B, rows, K) that the next samples (B, T, C) give; the state is that after them.

        Raises:
            VerificationError: ONNX Runtime cannot run it.
        """
        d = self._description
        feeds = {port.name: x for port, x in zip(d.inputs, inputs, strict=True)} | self.state
        if d.end is not None:
            feeds[d.end] = end
        names = [*(port.name for port in d.outputs), *(s.output for s in d.state)]
        try:
            results = self._ort_session.run(names, feeds)
        except Exception as error:  # ORT's exception classes have no public common base
            raise VerificationError(
                f"a call of {inputs[0].shape[1]} samples for {self._n_streams} streams: ONNX Runtime cannot run it: "
                f"{reason(error)}"
            ) from error
        n = len(d.outputs)
        self.state = dict(zip((s.input for s in d.state), results[n:], strict=True))
        return results[:n]  # type: ignore[no-any-return]


def as_rows(port: Port, y: Array | None) -> Array:
    """What a step or a chunk returned, as rows (R, K)."""
    if y is None:
        return np.zeros((0, *port.shape), port.dtype)
    return y if y.ndim > len(port.shape) else y[None]
