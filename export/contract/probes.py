"""Which rows a sample influences: one sample of a sequence is changed, and the rows that change are noted.

A sample is moved by much, and replaced by NaN, which a convolution hands on even where a weight or an activation is 0.
ONNX Runtime's LSTM swallows NaN: there only the move tells. All changed sequences run beside the unchanged one, in
one call of the raw graph, since the runtime refuses NaN.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgeseq.export.comparison import channels
from edgeseq.export.contract.pair import Pair
from edgeseq.export.sequences import Array

_MOVE = 10.0  # in standard deviations of the samples
_PHASES = 32  # neighbouring samples that are tried, since with strides not all are seen alike
_SAMPLES_A_CALL = 100_000


@dataclass(frozen=True)
class Probe:
    """Sample ``position`` was changed; ``changed`` are, for each output, the rows that changed with it."""

    what: str
    position: int
    changed: list[Array]


def probe(pair: Pair) -> list[Probe]:
    """Change single samples of each input in turn: near the start, in the middle, and near the end."""
    base, n = pair.full.inputs, pair.longest
    phases = np.arange(min(_PHASES, pair.description.granule))
    starts = [np.array([0, n - 1]), 5 + phases, n // 2 + phases, n - 1 - pair.field // 3 - phases]
    positions = sorted({int(p) for p in np.concatenate(starts) if 0 <= p < n})
    planned: list[tuple[str, int, list[Array]]] = []
    for i, port in enumerate(pair.description.inputs):
        for position in positions:
            for what, value in _changes(pair, base[i][position]):
                x = base[i].copy()
                x[position] = value
                named = f"sample {position}" if len(base) == 1 else f"sample {position} of input {port.name!r}"
                planned.append((f"{named}, {what},", position, [*base[:i], x, *base[i + 1 :]]))
    found = []
    size = max(1, _SAMPLES_A_CALL // n)
    for start in range(0, len(planned), size):
        part = planned[start : start + size]
        found += _run(pair, part)
    return found


def _run(pair: Pair, planned: list[tuple[str, int, list[Array]]]) -> list[Probe]:
    inputs = [np.stack([x, *(changed[i] for _, _, changed in planned)]) for i, x in enumerate(pair.full.inputs)]
    with np.errstate(all="ignore"):
        outputs = pair.raw(inputs, [pair.longest] * len(inputs[0]))
    return [
        Probe(what, position, [_changed(pair, i, y[0], y[b]) for i, y in enumerate(outputs)])
        for b, (what, position, _) in enumerate(planned, start=1)
    ]


def _changed(pair: Pair, i: int, y: Array, other: Array) -> Array:
    """The rows that differ by more than rounding; what is no number differs."""
    port = pair.description.outputs[i]
    with np.errstate(all="ignore"):
        same = np.abs(channels(y, port) - channels(other, port)) <= pair.full.tolerances[i] * pair.scales[i]
    return np.flatnonzero(~same.reshape(len(same), -1).all(axis=1))


def _changes(pair: Pair, sample: Array) -> list[tuple[str, Array]]:
    if sample.dtype.kind != "f":
        return [("another token", np.asarray((sample + 1) % pair.vocabulary, sample.dtype))]
    signs = np.where(np.arange(sample.size).reshape(sample.shape) % 2, -1, 1)
    moved = [np.asarray(sample + sign * _MOVE * signs, sample.dtype) for sign in (1, -1)]
    return [("moved", moved[0]), ("moved", moved[1]), ("made NaN", np.full_like(sample, np.nan))]
