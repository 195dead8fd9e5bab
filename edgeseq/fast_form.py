"""What a model file says of its fast form: which arrays it takes, and where a state's rows stand in them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeseq.model_file import StateSpec


@dataclass(frozen=True)
class Ring:
    """The rows of one state in a ring buffer: row i, from the oldest, of ``state`` is slot ``first`` + i of a new ring.

    ``state`` is the input of the ``StateSpec``, ``axis`` the axis of its shape along which its ``size`` rows stand.
    """

    state: str
    axis: int
    first: int
    size: int


@dataclass(frozen=True)
class RingBuffer:
    """Rings whose rows have the same width, in one array (slots, width), float32.

    The function takes the array as ``array``, and as ``slots`` (int64) where the rows stand that it reads: its
    ``taps``, (number of the ring, row from its oldest). It gives one new row for each of ``rings``, (n, width), as
    ``rows``; each takes the place of its ring's oldest row.
    """

    array: str
    slots: str
    rows: str
    width: int
    rings: tuple[Ring, ...]
    taps: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class FastForm:
    """A second form of a step graph, for one stream and one sample at a call: its cost does not grow with its state.

    It is the model-local function ``function`` (domain "edgeseq") of the same file, over the same weights, which are
    the function's remaining inputs. It takes each port's sample without its time axis, (1, C), the ``buffers``, and
    those ``states`` that are no rings; it equals the step graph for a stream that has taken ``start`` samples (the
    phase included), until its end. ``position`` is the state that counts samples: the function leaves it alone.
    """

    function: str
    start: int
    buffers: tuple[RingBuffer, ...]
    states: tuple[str, ...]
    position: str | None


def fast_form(raw: Mapping[str, Any]) -> FastForm:
    """What was written as a JSON object.

    Raises:
        KeyError, TypeError, ValueError: the object is no such description.
    """
    buffers = []
    for each in raw["buffers"]:
        rings, taps = tuple(Ring(**ring) for ring in each["rings"]), tuple((ring, row) for ring, row in each["taps"])
        buffers.append(RingBuffer(**{**each, "rings": rings, "taps": taps}))
    return FastForm(**{**raw, "buffers": tuple(buffers), "states": tuple(raw["states"])})


def check_fast_form(fast: FastForm, states: Mapping[str, StateSpec], expect: Callable[..., None]) -> None:
    """Call ``expect(what, expected, got, right=...)`` for every field."""
    known = [*fast.states, *([] if fast.position is None else [fast.position])]
    texts = [fast.function, *known, *(name for b in fast.buffers for name in (b.array, b.slots, b.rows))]
    expect("fast: names", "texts", texts, right=all(isinstance(n, str) for n in texts))
    expect("fast: start", "start >= 0", fast.start, right=type(fast.start) is int and fast.start >= 0)
    known += [ring.state for buffer in fast.buffers for ring in buffer.rings]
    expect("fast: states", "each state once", known, right=sorted(known) == sorted(states))
    for buffer in fast.buffers:
        first = 0
        for ring in buffer.rings:
            spec = states[ring.state]
            right = (
                ring.axis in range(len(spec.shape)) and ring.first == first and spec.shape[ring.axis] == ring.size > 0
            )
            right = right and math.prod(spec.shape) == ring.size * buffer.width and spec.dtype == "float32"
            expect("fast: ring", f"rows of {spec}, behind the ring before", ring, right=right)
            first += ring.size
        for ring_number, row in buffer.taps:
            right = ring_number in range(len(buffer.rings)) and row in range(buffer.rings[ring_number].size)
            expect("fast: taps", "a row of a ring", (ring_number, row), right=right)
