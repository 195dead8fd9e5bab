"""The clauses of a stream's contract: each a function that looks at one thing and says what it has seen.

A clause takes a ``Pair`` and returns ``Seen``; it raises ``VerificationError`` where the clause is broken. ``CLAUSES``
holds them in the order in which they are checked: first what the later ones need to make sense.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from edgeseq.errors import VerificationError
from edgeseq.export.comparison import channels
from edgeseq.export.contract.pair import STEP, Pair, RawStreams, as_rows
from edgeseq.export.contract.probes import Probe, probe
from edgeseq.export.sequences import SEED, Array
from edgeseq.model_file import NEVER

_PREFIXES = 24
_LOUD = 1000.0
_MOST_STEPS = 300  # of a sequence that is streamed step by step
_MOST_CALLS = 100  # of one that is streamed in chunks


@dataclass(frozen=True)
class Seen:
    """What a clause has seen: in words, the largest difference of an output (in units of its scale), and remarks."""

    text: str
    worst: float | None = None
    notes: tuple[str, ...] = ()


Clause = Callable[[Pair], Seen]


def state(pair: Pair) -> Seen:
    """What the graph carries is what the description declares, call after call, for any batch."""
    d = pair.description
    n_calls = 0
    for where, n_streams, _, streams, _ in _calls(pair):
        n_calls += 1
        for spec in d.state:
            got = streams.state[spec.input]
            if got.dtype != spec.dtype or got.shape != (n_streams, *spec.shape):
                raise VerificationError(
                    f"output {spec.output!r} after {where}: expected {spec.dtype} {(n_streams, *spec.shape)}, "
                    f"got {got.dtype} {got.shape}"
                )
    return Seen(f"{len(d.state)} arrays, {d.state_bytes:,} bytes a stream, the same after each of {n_calls} calls")


def hop(pair: Pair) -> Seen:
    """So many samples give so many rows, in every call."""
    n_calls = 0
    for where, n_streams, n_samples, _, outputs in _calls(pair):
        n_calls += 1
        for port, timing, y in zip(pair.description.outputs, pair.timings, outputs, strict=True):
            samples, rows = timing.hop
            n_rows = n_samples * rows // samples
            expected = (n_streams, n_rows, *port.shape)
            if y.shape != expected:
                raise VerificationError(
                    f"output {port.name!r} of {where}: its declared hop of {rows} rows for {samples} samples makes it "
                    f"{n_rows} rows, (B, R, K) of {expected}; got {y.shape}"
                )
    return Seen(f"as many rows as declared in each of {n_calls} calls")


def _calls(pair: Pair) -> Iterator[tuple[str, int, int, RawStreams, list[Array]]]:
    """Some calls of the raw graph: in words, how many streams, how many samples, the state after it, the rows."""
    d = pair.description
    for n_streams in (1, 3):
        streams = RawStreams(pair, n_streams)
        for i, granules in enumerate((1, 1, 5, 40, 1), start=1):
            n = granules * d.granule
            outputs = streams.call(pair.draw(n_streams, n), np.full(n_streams, NEVER))
            yield f"call {i}, {n} samples for {n_streams} streams", n_streams, n, streams, outputs


def steps(pair: Pair) -> Seen:
    """One sample after another gives the offline model's rows, in number and in value, at both edges."""
    worst = 0.0
    for case in pair.cases:
        at_once = max(0, case.n - _MOST_STEPS)  # of a long sequence only the last samples come one by one
        way = f"in {f'one chunk of {at_once}, and then ' if at_once else ''}single steps"
        rows = pair.streamed(pair.model.stream("contract"), case.inputs, [at_once, *[STEP] * (case.n - at_once)])
        worst = max(worst, pair.compare(case, rows, way))
    lengths = [case.n for case in pair.cases]
    return Seen(f"{len(lengths)} sequences of {min(lengths)} to {max(lengths)} samples", worst)


def chunks(pair: Pair) -> Seen:
    """Any chunking gives them: multiples of the hop and others, empty ones, mixed with single steps."""
    worst, count = 0.0, 0
    for case in pair.cases:
        for way, sizes in _chunkings(case.n, pair.description.granule):
            rows = pair.streamed(pair.model.stream("contract"), case.inputs, sizes)
            worst, count = max(worst, pair.compare(case, rows, way)), count + 1
    return Seen(f"{len(pair.cases)} sequences in {count} chunkings", worst)


def _chunkings(n: int, granule: int) -> Iterator[tuple[str, list[int]]]:
    rng = np.random.default_rng(SEED + n)
    yield "in one chunk", [n]
    yield f"in chunks of {4 * granule}", _filled(n, [4 * granule])
    yield f"in chunks of {granule + 1}", _filled(n, [granule + 1])
    drawn = [int(size) for size in rng.integers(0, max(2, n // 3), size=12)]
    yield "in chunks of random sizes, empty ones among them", _filled(n, [0, *drawn, 0, 1])
    mixed = [int(size) for size in rng.choice([STEP, STEP, 0, 1, granule, 2 * granule + 1, 50], size=24)]
    yield "in single steps mixed with chunks", _filled(n, [*mixed, STEP])


def _filled(n: int, sizes: list[int]) -> list[int]:
    """``sizes`` again and again, the last one cut; what so many calls leave of ``n`` samples comes first, at once."""
    chosen: list[int] = []
    left = n
    while left > 0 and len(chosen) < _MOST_CALLS:
        size = min(sizes[len(chosen) % len(sizes)], left)
        chosen.append(size)
        left -= abs(size)
    return [left, *chosen, 0]


def prefix(pair: Pair) -> Seen:
    """Behind a pool over time, every row is the offline model's output on the samples so far, or the last one is."""
    worst, count, last_only = 0.0, 0, []
    case = pair.full
    for i, (port, timing) in enumerate(zip(pair.description.outputs, pair.timings, strict=True)):
        if timing.by_row:
            continue
        if timing.law == "window":
            last_only.append(
                f"output {port.name!r}: its rows were compared while no more than the window's had come"
                if pair.options.pooling_window
                else f"output {port.name!r}: its rows were not compared; give the pooling_window that it was made with"
            )
        if timing.lookahead or timing.rows:  # its rows are of the features so far; the others see to the last one
            last_only.append(f"output {port.name!r}: only its last row is the offline model's")
            continue
        rows = pair.streamed(pair.model.stream("contract"), case.inputs, [STEP] * case.n)[i]
        first = np.arange(pair.shortest, min(case.n, pair.shortest + _PREFIXES))
        for t in np.unique([*first, *np.linspace(pair.shortest, case.n, _PREFIXES).astype(int)]):
            if pair.allowed(int(t)) != t or not pair.pools_all(timing, int(t)):
                continue
            expected = pair.expected([x[:t] for x in case.inputs])
            if expected is not None:
                where = f"output {port.name!r}, row {t - 1}, against the first {t} samples"
                worst, count = max(worst, pair.differs(i, case, expected[i], rows[t - 1], where)), count + 1
    if not count:
        return Seen("no output has a row for each prefix", notes=tuple(last_only))
    return Seen(f"{count} prefixes", worst, tuple(last_only))


def lookahead(pair: Pair) -> Seen:
    """A row comes at the latest ``lookahead`` samples after its own."""
    stream = pair.model.stream("contract")
    n = pair.model.lookahead + 8 * pair.description.granule + 40
    inputs = pair.draw(n)
    given, late = [0] * len(pair.timings), [-1] * len(pair.timings)
    for t in range(n):
        answer = pair.one_step(stream, [x[t] for x in inputs])
        for i, (port, timing) in enumerate(zip(pair.description.outputs, pair.timings, strict=True)):
            samples, rows = timing.hop
            n_new = len(as_rows(port, answer[i]))
            if n_new:
                late[i] = max(late[i], t - given[i] * samples // rows)
            given[i] += n_new
            due = max(0, -(-(t - timing.lookahead + 1) * rows // samples))
            if given[i] < due:
                raise VerificationError(
                    f"output {port.name!r}, step {t}: its declared lookahead of {timing.lookahead} samples makes "
                    f"{due} rows due, {given[i]} have come"
                )
    notes = [
        f"output {port.name!r}: lookahead {timing.lookahead} is declared, rows came {seen} samples after their own"
        for port, timing, seen in zip(pair.description.outputs, pair.timings, late, strict=True)
        if 0 <= seen < timing.lookahead
    ]
    return Seen(f"{n} steps, no row later than {max(late)} samples after its own", notes=tuple(notes))


def batch(pair: Pair) -> Seen:
    """N streams in one call give what each gives alone, whatever its neighbours are."""
    case, n = pair.full, pair.longest
    inputs = [np.concatenate([x[None], more]) for x, more in zip(case.inputs, pair.draw(4, n), strict=True)]
    lengths = [n, max(1, n - 1), max(1, n // 2), 3 if n > 3 else 1, 1]
    sizes = [7, 64, 1, 200]
    together = pair.raw(inputs, lengths, sizes)
    worst = pair.compare(case, [y[0] for y in together], f"beside {len(lengths) - 1} other streams")
    alone_same = beside_same = True
    for b, length in enumerate(lengths):
        alone = pair.raw([x[b : b + 1] for x in inputs], [length], sizes)
        seen, same = _same(pair, alone, [y[b : b + 1] for y in together], f"stream {b} of {len(lengths)} in a batch")
        worst, alone_same = max(worst, seen), alone_same and same
    for what, factor in (("loud", _LOUD), ("NaN", np.nan)):
        beside = [np.concatenate([x[:1], _scaled(x[1:], factor)]) for x in inputs]
        with np.errstate(all="ignore"):
            got = [y[:1] for y in pair.raw(beside, lengths, sizes)]
        seen, same = _same(pair, [y[:1] for y in together], got, f"a stream beside {what} neighbours")
        worst, beside_same = max(worst, seen), beside_same and same
    how = [("bitwise" if same else "within the tolerance") for same in (alone_same, beside_same)]
    return Seen(f"{len(lengths)} streams in one call and alone: {how[0]}; beside other neighbours: {how[1]}", worst)


def _scaled(x: Array, factor: float) -> Array:
    return x if x.dtype.kind != "f" else (x * np.asarray(factor, x.dtype))


def _same(pair: Pair, expected: list[Array], got: list[Array], where: str) -> tuple[float, bool]:
    """The largest difference of one stream's rows (1, R, K), and whether there is none at all."""
    worst, same = 0.0, True
    for i, (y, other) in enumerate(zip(expected, got, strict=True)):
        n_rows = min(y.shape[1], other.shape[1])
        at = f"output {pair.description.outputs[i].name!r}, {where}"
        worst = max(worst, pair.differs(i, pair.full, y[0, :n_rows], other[0, :n_rows], at))
        same &= np.array_equal(y[0, :n_rows], other[0, :n_rows])
    return worst, same


def reset(pair: Pair) -> Seen:
    """A stream that was reset is a new one, to the last bit; in the middle of a sequence, and after its end."""
    case = pair.full
    sizes = _filled(case.n, [5, STEP, 0, 90])
    expected = pair.streamed(pair.model.stream("contract"), case.inputs, sizes)
    for ended in (False, True):
        stream = pair.model.stream("contract")
        drawn = pair.draw(pair.allowed(pair.field + 5))
        garbage = [x * np.asarray(100, x.dtype) if x.dtype.kind == "f" else x for x in drawn]
        if ended:
            pair.streamed(stream, garbage, _filled(len(garbage[0]), [STEP, 30]))
        else:
            for t in range(3):
                pair.one_step(stream, [x[t] for x in garbage])
            pair.one_chunk(stream, garbage)
        stream.reset()
        got = pair.streamed(stream, case.inputs, sizes)
        for port, y, other in zip(pair.description.outputs, expected, got, strict=True):
            if not np.array_equal(y, other):
                row = int(np.argwhere(channels(y, port) != channels(other, port))[0, 0])
                raise VerificationError(
                    f"output {port.name!r}, row {row}: a new stream gives {y[row].ravel()[:3]}, one that was reset "
                    f"{'after flush' if ended else 'in the middle of a sequence'} gives {other[row].ravel()[:3]}"
                )
    return Seen("in the middle of a sequence and after its end: bitwise a new stream")


def causality(pair: Pair) -> Seen:
    """A sample influences no row that is more than the declared future before it."""
    for seen in pair.once(probe):
        for port, timing, rows in zip(pair.description.outputs, pair.timings, seen.changed, strict=True):
            own = rows * timing.hop[0] / timing.hop[1]
            future = timing.receptive_field[1]
            if future is not None and len(rows) and (ahead := seen.position - own[0]) > future:
                raise VerificationError(
                    f"output {port.name!r}, row {rows[0]}: {seen.what} changes it, {ahead:g} samples after the row's "
                    f"own; {future} are declared"
                )
    return Seen(_probed(pair), notes=tuple(_overstated(pair, 1)))


def receptive_field(pair: Pair) -> Seen:
    """A sample influences no row that is more than the declared past after it."""
    for seen in pair.once(probe):
        for port, timing, rows in zip(pair.description.outputs, pair.timings, seen.changed, strict=True):
            own = rows * timing.hop[0] / timing.hop[1]
            past = timing.receptive_field[0]
            if past is not None and len(rows) and (behind := own[-1] - seen.position) > past:
                raise VerificationError(
                    f"output {port.name!r}, row {rows[-1]}: {seen.what} changes it, {behind:g} samples before the "
                    f"row's own; {past} are declared"
                )
    return Seen(_probed(pair), notes=tuple(_overstated(pair, 0)))


def _probed(pair: Pair) -> str:
    return f"{len(pair.once(probe))} changed samples in sequences of {pair.longest} samples"


def _overstated(pair: Pair, side: int) -> Iterator[str]:
    """Where what is declared was not reached: no mistake, but worth knowing. ``side``: 0 the past, 1 the future."""
    for i, (port, timing) in enumerate(zip(pair.description.outputs, pair.timings, strict=True)):
        declared = timing.receptive_field[side]
        reached = max((_reach(seen, i, timing.hop, side) for seen in pair.once(probe)), default=0.0)
        if declared is not None and math.ceil(reached) < declared:  # what is declared is rounded up
            which = ("past", "future")[side]
            yield f"output {port.name!r}: {declared} {which} samples are declared, {reached:g} were seen to matter"


def _reach(seen: Probe, i: int, hop: tuple[int, int], side: int) -> float:
    rows = seen.changed[i]
    if not len(rows):
        return 0.0
    own = rows[(-1, 0)[side]] * hop[0] / hop[1]
    return float(max(0.0, own - seen.position if side == 0 else seen.position - own))


CLAUSES: dict[str, Clause] = {
    "state": state,
    "hop": hop,
    "steps": steps,
    "chunks": chunks,
    "prefix": prefix,
    "lookahead": lookahead,
    "batch": batch,
    "reset": reset,
    "causality": causality,
    "receptive field": receptive_field,
}
