"""Opening the fast form of a model, which happens only after it gave what the step graph gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeseq.errors import ModelFileError
from edgeseq.model_file import NEVER, Description
from edgeseq.runtime.fast_step import FastStep, Rings, fast_graph
from edgeseq.runtime.inputs import Array
from edgeseq.runtime.model_source import Source, session

_STEPS = 3  # the second one reads what the first one wrote
_TOLERANCE = 1e-4  # of the largest value: float32 sums in another order stay far below, and mistakes far above
_SMALLEST_SCALE = 1e-2  # of what stays when values around 1 cancel


class FastFormError(Exception):
    """The fast form cannot be used."""


def open_fast_step(source: Source) -> FastStep | None:
    """The fast form of a model; None if the file holds none.

    Raises:
        FastFormError: it cannot be opened, or gives something else than the step graph.
    """
    d, form = source.description, source.description.fast
    if form is None:
        return None
    try:
        fast = FastStep(session(fast_graph(source.data, d, form), source.execution), d, form)
        worst = _difference(source, fast)
    except Exception as error:  # whatever fails here, the step graph is there
        raise FastFormError(f"its fast form fails: {(str(error).splitlines() or [type(error).__name__])[0]}") from error
    if not worst <= _TOLERANCE:
        raise FastFormError(f"its fast form differs from its step graph by {worst:.1e} of the largest value")
    return fast


def _difference(source: Source, fast: FastStep) -> float:
    """The largest difference of outputs and states over some steps from random states, in units of each one's scale."""
    d, rng = source.description, np.random.default_rng(0)
    states = [_random(rng, (1, *s.shape), s.dtype) for s in d.state]
    fed = fast.form.start
    for spec, state in zip(d.state, states, strict=True):
        if spec.input == fast.form.position:
            state[...] = fed
    samples = [np.zeros((1, *port.shape), port.dtype) for port in d.inputs]
    results = [np.zeros((1, *port.shape), port.dtype) for port in d.outputs]
    rings = Rings(fast, samples, results)
    rings.load(states, fed)
    worst = 0.0
    for step in range(_STEPS):
        for sample in samples:
            sample[...] = _random(rng, sample.shape, sample.dtype)
        *expected, states = _portable(source, samples, states)
        rings.step(fed + step)
        worst = max([worst, *(_apart(y[:, 0], result) for y, result in zip(expected, results, strict=True))])
    stored = [np.empty_like(state) for state in states]
    rings.store(stored, fed + _STEPS)
    return max([worst, *(_apart(state, kept) for state, kept in zip(states, stored, strict=True))])


def _portable(source: Source, samples: Sequence[Array], states: Sequence[Array]) -> list[Any]:
    d: Description = source.description
    feeds = {port.name: sample[:, None] for port, sample in zip(d.inputs, samples, strict=True)}
    feeds |= {spec.input: state for spec, state in zip(d.state, states, strict=True)}
    if d.end is not None:
        feeds[d.end] = np.full(1, NEVER, np.int64)
    names = [*(port.name for port in d.outputs), *(spec.output for spec in d.state)]
    results = source.ort_session.run(names, feeds)
    return [*results[: len(d.outputs)], results[len(d.outputs) :]]


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> Array:
    """Numbers above 0, since some states are counts; tokens are 0, which every vocabulary has."""
    kind = np.dtype(dtype)
    return rng.uniform(0.5, 1.5, shape).astype(kind) if kind.kind == "f" else np.zeros(shape, kind)


def _apart(expected: Array, got: Array) -> float:
    """The largest difference in units of the largest value; infinite where one has a number and the other has none."""
    if expected.shape != got.shape:
        raise ModelFileError(f"expected shape {expected.shape}, got {got.shape}")
    finite = np.isfinite(expected)
    alike = (finite & np.isfinite(got)) | (expected == got) | (np.isnan(expected) & np.isnan(got))
    if not alike.all():
        return float("inf")
    scale = max(_SMALLEST_SCALE, float(np.max(np.abs(expected[finite]), initial=0.0)))
    return float(np.max(np.abs(expected[finite].astype(np.float64) - got[finite]), initial=0.0)) / scale
