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
class Read:
    """Rows of rings that the step reads together: its input ``slots`` (int64) is told where they stand.

    ``taps`` are (number of the ring, row from its oldest); ``taps_each`` of them make one row of a product.
    """

    slots: str
    taps_each: int
    taps: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class RingBuffer:
    """Rings whose rows have the same width, in one array (slots, width), float32.

    The function takes it as ``array``, and gives one new row for each of ``rings``, (n, width), as ``rows``; each takes
    the place of its ring's oldest row.
    """

    array: str
    rows: str
    width: int
    rings: tuple[Ring, ...]
    reads: tuple[Read, ...]


@dataclass(frozen=True)
class FastForm:
    """A second form of a step graph, for one sample of each stream at a call: its cost does not grow with its state.

    It is the model-local function ``function`` (domain "edgeseq") of the same file, over the same weights, which are
    the function's remaining inputs. It takes each port's sample without its time axis, (B, C), the ``buffers``, and
    those ``states`` that are no rings; it equals the step graph for streams that have taken ``start`` samples (the
    phase included), until their end. ``position`` is the state that counts samples: the function leaves it alone.

    Of B streams, slot s of stream b is row s·B + b of a buffer's array, and its new row of ring r is row r·B + b; a
    read lists its taps, ``taps_each`` at a time, for all streams in turn.
    """

    function: str
    start: int
    buffers: tuple[RingBuffer, ...]
    states: tuple[str, ...]
    position: str | None


def read_fast_form(raw: Mapping[str, Any]) -> FastForm:
    """What was written as a JSON object.

    Raises:
        KeyError, TypeError, ValueError: the object is no such description.
    """
    buffers = []
    for each in raw["buffers"]:
        rings = tuple(Ring(**ring) for ring in each["rings"])
        reads = tuple(
            Read(**{**read, "taps": tuple((ring, row) for ring, row in read["taps"])}) for read in each["reads"]
        )
        buffers.append(RingBuffer(**{**each, "rings": rings, "reads": reads}))
    return FastForm(**{**raw, "buffers": tuple(buffers), "states": tuple(raw["states"])})


def check_fast_form(fast: FastForm, states: Mapping[str, StateSpec], expect: Callable[..., None]) -> None:
    """Call ``expect(what, expected, got, right=...)`` for every field."""
    known = [*fast.states, *([] if fast.position is None else [fast.position])]
    texts = [fast.function, *known, *(name for b in fast.buffers for name in (b.array, b.rows))]
    texts += [read.slots for b in fast.buffers for read in b.reads]
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
        for read in buffer.reads:
            right = type(read.taps_each) is int and read.taps_each > 0 and len(read.taps) % read.taps_each == 0
            expect("fast: taps_each", "a part of the taps", read.taps_each, right=right)
            for ring_number, row in read.taps:
                right = ring_number in range(len(buffer.rings)) and row in range(buffer.rings[ring_number].size)
                expect("fast: taps", "a row of a ring", (ring_number, row), right=right)
