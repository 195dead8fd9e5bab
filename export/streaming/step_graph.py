"""The step graph while it is being built, and what is known about each of its tensors.

``Timed`` says what one tensor of the offline graph is to time; ``StepGraph`` is the graph that a rule writes into:
operators, constants, states, and masks of the rows that belong to the sequence. Invariant: a state is declared once,
its successor is set once, and both have a leading batch axis.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeseq.errors import NotStreamableError
from edgeseq.lookahead import LookaheadLayer
from edgeseq.model_file import DTypeName, StateSpec

DTYPES: dict[DTypeName, ir.DataType] = {
    "float32": ir.DataType.FLOAT,
    "float64": ir.DataType.DOUBLE,
    "int32": ir.DataType.INT32,
    "int64": ir.DataType.INT64,
}
END = int(np.iinfo(np.int64).max)

Rows = tuple[tuple[int, int, int], ...]
"""How many rows n samples have; see ``edgeseq.model_file.Timing.rows``."""


History = tuple[int, bool, float]
"""A tensor by the turn in which rows of it are first kept, whether it is masked, and what comes before its first."""

Histories = dict[History, tuple[tuple[str, ...], int]]
"""What each history is kept for, and its rows."""


def then(rows: Rows, multiply: int, add: int, divide: int) -> Rows:
    """``rows``, then n becomes max(0, (n · multiply + add) // divide); in lowest terms, so that equals look equal.

    Example:
        >>> then(((2, 0, 1),), 1, 1, 2)  # every row twice, then every second one
        ()
    """
    # One step for two, unless what a short sequence lacks (max with 0) or a multiple of a floor must be told apart.
    if rows and (multiply == 1 or rows[-1][2] == 1) and (rows[-1][1] >= 0 or add < divide):
        *before, (m, a, d) = rows
        return then(tuple(before), multiply * m, multiply * a + add * d, divide * d)
    common = math.gcd(multiply, divide)
    step = (multiply // common, add // common, divide // common)
    return rows if step == (1, 0, 1) else (*rows, step)


class TimeAxis(Enum):
    """What the offline tensor has where the step tensor has its time axis."""

    FULL = "every step"
    LAST = "one step: the last one, or a pool over all"
    GONE = "no time axis any more"


@dataclass(frozen=True)
class Timed:
    """One tensor that depends on the input.

    ``value`` is the step graph's tensor, ``axis`` its time axis and ``batch`` its batch axis. ``hop`` is how many
    samples there are to one row. Row i of the stream is row i - ``delay`` of the offline tensor, which has ``rows`` of
    them; the stream's rows before and after those hold anything, or zeros if ``blank``. A ``delay`` below 0 says
    that as many rows of ``fill`` stand before the stream's first: only what slides along time takes these up, see
    ``windows.due``. ``past`` and ``future`` are the samples before and after a row's own that influence it (None:
    all). A ``backwards`` tensor is kept in the order of the samples. ``offline`` says what became of the time axis
    in the offline graph: after a pool or a last-step selection the step graph goes on giving one value per step,
    the one of the prefix that ends there. Batch and time are one axis where ``axis == batch``, time first in it if
    ``time_major``. ``held``: every row from the first on is the same. ``rank`` is the offline tensor's; who builds
    a ``Timed`` in a rule leaves it, ``streamify`` sets it.
    """

    value: ir.Value
    axis: int
    batch: int = 0
    hop: Fraction = Fraction(1)
    delay: int = 0
    rows: Rows = ()
    blank: bool = False
    past: Fraction | None = Fraction(0)
    future: Fraction = Fraction(0)
    backwards: bool = False
    offline: TimeAxis = TimeAxis.FULL
    rank: int = 0
    time_major: bool = False
    fill: float = 0.0
    held: bool = False

    @property
    def merged(self) -> bool:
        """Whether batch and time are one axis."""
        return self.axis == self.batch

    @property
    def gone(self) -> bool:
        """Whether the offline tensor has no time axis, so that the step tensor has one axis more."""
        return self.offline is TimeAxis.GONE

    def lift(self, axis: int) -> int:
        """The step tensor's axis for an axis (negative allowed) of the offline tensor."""
        axis %= self.rank
        return axis + 1 if self.gone and axis >= self.axis else axis

    def drop(self, axis: int) -> int:
        """The offline tensor's axis for an axis of the step tensor, which is not one of a time that is gone."""
        return axis - 1 if self.gone and axis > self.axis else axis

    @property
    def axes(self) -> tuple[int, int]:
        """The step tensor's batch axis and time axis."""
        return self.batch, self.axis

    def without(self, dropped: Collection[int]) -> tuple[int, int]:
        """``axes`` after these axes of the step tensor, neither batch nor time, are dropped."""
        batch, axis = (a - sum(d < a for d in dropped) for a in self.axes)
        return batch, axis


@dataclass(frozen=True)
class BlockSizes:
    """Of recurrent layers that run backwards: rows released at a time, and rows behind them that are seen."""

    chunk: int
    steps: int


@dataclass(frozen=True)
class Plan:
    """What must be known of the whole graph before it is written, found by walking it once.

    ``granule``: every call takes a multiple of so many samples. ``phase``: so many rows of zeros come before the first
    sample. ``depths``: for tensors of a hop and a number of rows, the longest delay at which their mask is needed.
    ``histories``: of each tensor of which rows are kept, what for, and how many at most. ``pooling_window``: how many
    rows a pool over time sees, all if None. ``length_modulo``: every sequence has ``remainder`` samples modulo
    ``modulus``, or any number if None. ``lookahead``: how recurrent layers that run backwards are approximated, refused
    if None.
    """

    granule: int = 1
    phase: int = 0
    depths: dict[tuple[Fraction, Rows], int] = field(default_factory=dict)
    histories: Histories = field(default_factory=dict)
    pooling_window: int | None = None
    length_modulo: tuple[int, int] | None = None
    lookahead: BlockSizes | None = None


@dataclass
class StepGraph:
    """Nodes, constants, states and masks of the step graph under construction."""

    plan: Plan
    sample: ir.Value
    nodes: list[ir.Node] = field(default_factory=list)
    initializers: dict[str, ir.Value] = field(default_factory=dict)
    states: dict[ir.Value, StateSpec] = field(default_factory=dict)
    successors: dict[ir.Value, ir.Value] = field(default_factory=dict)
    granule: int = 1
    depths: dict[tuple[Fraction, Rows], int] = field(default_factory=dict)
    histories: Histories = field(default_factory=dict)
    cuts: set[int] = field(default_factory=set)
    windowed: bool = False
    lookahead_layers: list[LookaheadLayer] = field(default_factory=list)
    end: ir.Value | None = None
    _once: dict[Any, Any] = field(default_factory=dict)

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: Any) -> ir.Value:
        """Add a node with one output."""
        return self.ops(op_type, 1, *inputs, **attributes)[0]

    def ops(self, op_type: str, n_outputs: int, *inputs: ir.Value | None, **attributes: Any) -> Sequence[ir.Value]:
        """Add a node with several outputs; an input None is an optional one left out."""
        given = {name: value for name, value in attributes.items() if value is not None}
        node = ir.node(op_type, list(inputs), attributes=given, num_outputs=n_outputs)
        self.nodes.append(node)
        return node.outputs

    def copy(self, node: ir.Node, inputs: Sequence[ir.Value | None], **changed: Any) -> Sequence[ir.Value]:
        """Add a node like one of the offline graph, on other inputs and with some attributes changed."""
        attributes: dict[str, Any] = {**node.attributes, **changed}
        new = ir.node(node.op_type, list(inputs), attributes=attributes, num_outputs=len(node.outputs), name=node.name)
        self.nodes.append(new)
        return new.outputs

    def constant(self, value: np.ndarray[Any, Any] | Sequence[int], name: str | None = None) -> ir.Value:
        """An initializer, shared by name; integer sequences become int64, as ONNX wants for axes and shapes."""
        array = value if isinstance(value, np.ndarray) else np.array(value, np.int64)
        key = name or "_".join(["constant", *map(str, array.ravel())])
        if key not in self.initializers:
            self.initializers[key] = ir.val(key, const_value=ir.tensor(array, name=key))
        return self.initializers[key]

    def scalar(self, value: float, dtype: Any = np.int64) -> ir.Value:
        """An initializer of rank 0."""
        array = np.array(value, dtype)
        return self.constant(array, f"scalar_{array.dtype.name}_{value}")

    def state(self, kind: str, shape: Sequence[int], *, dtype: DTypeName = "float32", initial: float = 0.0) -> ir.Value:
        """Declare an array that is carried between calls, and read it; ``shape`` is without the batch axis."""
        name = f"{len(self.states)}_{kind}"
        value = ir.val(f"state_{name}", dtype=DTYPES[dtype], shape=["batch", *shape])
        self.states[value] = StateSpec(f"state_{name}", f"next_{name}", dtype, tuple(shape), initial)
        return value

    def carry(self, state: ir.Value, successor: ir.Value) -> None:
        """Set what the next call reads as ``state``."""
        self.successors[state] = successor

    def batch_size(self) -> ir.Value:
        """(1,): how many streams this call has."""
        if "batch size" not in self._once:
            self._once["batch size"] = self.op("Shape", self.sample, start=0, end=1)
        return self._once["batch size"]  # type: ignore[no-any-return]

    def slice(self, x: ir.Value, axis: int, start: int, end: int = END) -> ir.Value:
        """Some of the rows, by constant positions."""
        return self.op("Slice", x, *(self.constant([n]) for n in (start, end, axis)))

    def with_history(self, x: Timed, n_rows: int, fill: float = 0.0, *, what: str) -> ir.Value:
        """The chunk behind the ``n_rows`` rows that came before it; at the start those are ``fill``.

        One state serves all histories of a tensor. It has the longest, which the walk before this one has found out;
        who needs fewer rows takes the last ones.
        """
        key = self._history(x.value, fill)
        uses, most = self.histories.get(key, ((), 0))
        self.histories[key] = (uses if what in uses else (*uses, what), max(most, n_rows))
        uses, longest = self.plan.histories.get(key, self.histories[key])
        longest = max(longest, n_rows)
        once = ("history", key, longest)
        if once not in self._once:
            self._once[once] = self._kept(x, longest, fill, "_".join([*uses, "rows"]))
        if longest == n_rows:
            return self._once[once]  # type: ignore[no-any-return]
        shorter = ("history", key, n_rows)
        if shorter not in self._once:
            self._once[shorter] = self.slice(self._once[once], x.axis, longest - n_rows)
        return self._once[shorter]  # type: ignore[no-any-return]

    def _kept(self, x: Timed, n_rows: int, fill: float, kind: str) -> ir.Value:
        sizes = self.sizes(x)
        # A state has its batch first, else it is laid out as the tensor is.
        order = [x.batch, *(axis for axis in range(x.rank + x.gone) if axis != x.batch)]
        at = order.index(x.axis) - 1
        state = self.state(kind, [*sizes[:at], n_rows, *sizes[at:]], initial=fill)
        turned = order != sorted(order)
        back = [order.index(axis) for axis in range(len(order))]
        history = self.op("Transpose", state, perm=back) if turned else state
        joined = self.op("Concat", history, x.value, axis=x.axis)
        last = self.slice(joined, x.axis, -n_rows)
        self.carry(state, self.op("Transpose", last, perm=order) if turned else last)
        return joined

    def delayed(self, x: Timed, by: int) -> ir.Value:
        """The rows of ``x`` that came ``by`` rows before those of this chunk: a delay line.

        Rows outside the sequence may be anything, so that the history that a window has of the same tensor serves,
        masked or not, and of the same tensor transposed.
        """
        for alike, perm in [(x, None), *_transposed(x)]:
            masked = self._history(alike.value, 0.0, masked=True)
            if masked in self.plan.histories:
                kept = replace(alike, value=self.masked(alike, self.scalar(0.0, np.float32)))
            elif {*self.plan.histories.get(self._history(alike.value, 0.0), ((), 0))[0]} - {"delay"}:
                kept = alike
            else:
                continue
            rows = self.slice(self.with_history(kept, by, what="delay"), kept.axis, 0, -by)
            return rows if perm is None else self.op("Transpose", rows, perm=perm)
        return self.slice(self.with_history(x, by, what="delay"), x.axis, 0, -by)

    def _history(self, value: ir.Value, fill: float, *, masked: bool = False) -> History:
        plain = self._once.get(("unmasked", value), value)
        turn = self._once.setdefault("turns", {})
        return turn.setdefault(plain, len(turn)), masked or plain is not value, fill

    def sizes(self, x: Timed) -> tuple[int, ...]:
        """Sizes of the tensor's axes but for batch and time."""
        sizes: tuple[int, ...] | None = self._once.get(("sizes", x.value))
        if sizes is None:
            raise NotStreamableError(
                f"tensor {x.value.name!r} has axes of unknown size beside batch and time, so it is unknown what a "
                "stream must keep of it; give the model a known number of channels, or run ONNX shape inference on it"
            )
        return sizes

    def knows_sizes(self, value: ir.Value, sizes: Sequence[int]) -> None:
        """Remember the sizes of the axes but for batch and time; a history needs them."""
        self._once[("sizes", value)] = tuple(sizes)

    def knows_dtype(self, value: ir.Value, dtype: ir.DataType | None) -> None:
        """Remember what a tensor is made of; float32 if nothing is said."""
        self._once[("dtype", value)] = dtype

    def dtype(self, value: ir.Value) -> ir.DataType:
        """What a tensor is made of."""
        return self._once.get(("dtype", value)) or ir.DataType.FLOAT

    def once(self, key: Any, make: Callable[[], ir.Value]) -> ir.Value:
        """What ``make`` writes, written for the first who asks by this key."""
        if key not in self._once:
            self._once[key] = make()
        return self._once[key]  # type: ignore[no-any-return]

    def copies_sizes(self, source: ir.Value, value: ir.Value) -> None:
        """Let ``value`` have the sizes of ``source``."""
        self._once[("sizes", value)] = self._once.get(("sizes", source))

    def takes_whole_rows(self, hop: Fraction) -> None:
        """Let every call have at least one row of a tensor with this hop."""
        self.granule = math.lcm(self.granule, hop.numerator)

    def rows_a_granule(self, hop: Fraction) -> int:
        """How many rows of a tensor with this hop the smallest call has."""
        return int(self.plan.granule / hop) if (self.plan.granule / hop).denominator == 1 else 1

    def valid(self, x: Timed) -> ir.Value:
        """Which rows of this chunk belong to the sequence: booleans that broadcast against ``x.value``."""
        layout = (x.axis, x.batch, x.rank + x.gone)
        key = (x.hop, x.rows)
        self.depths[key] = max(self.depths.get(key, 0), x.delay)
        depth = max(self.plan.depths.get(key, 0), x.delay)
        once = ("valid", key, layout, depth)
        if once not in self._once:
            inside = self.inside(x.hop, x.rows, depth)
            inside = self.op("Transpose", inside, perm=[1, 0]) if x.batch > x.axis else inside
            others = [axis for axis in range(layout[-1]) if axis not in x.axes]
            self._once[once] = self.op("Unsqueeze", inside, self.constant(others))
        wide: ir.Value = self._once[once]
        if depth == 0:
            return wide
        sliced = ("valid slice", once, x.delay)
        if sliced not in self._once:
            self._once[sliced] = self.slice(wide, x.axis, depth - x.delay, -x.delay if x.delay else END)
        return self._once[sliced]  # type: ignore[no-any-return]

    def masked(self, x: Timed, fill: ir.Value) -> ir.Value:
        """``x`` with ``fill`` in the rows that belong to no sample. By choice, not by a product: 0 · NaN is NaN."""
        once = ("masked", x.value, fill)
        if once not in self._once:
            self._once[once] = self.op("Where", self.valid(x), x.value, fill)
            self._once[("unmasked", self._once[once])] = x.value
            self.copies_sizes(x.value, self._once[once])
        return self._once[once]  # type: ignore[no-any-return]

    def inside(self, hop: Fraction, rows: Rows, depth: int) -> ir.Value:
        """(B, depth + this chunk's rows): whether a row, from ``depth`` before the chunk on, is of the sequence."""
        once = ("inside", hop, rows, depth)
        if once not in self._once:
            reach = self.op("Range", self.scalar(-depth), self.count(hop), self.scalar(1))
            numbers = self.op("Add", self.base(hop), reach)
            started = self.op("GreaterOrEqual", numbers, self.scalar(0))
            self._once[once] = self.op("And", started, self.op("Less", numbers, self.ends(rows)))
        return self._once[once]  # type: ignore[no-any-return]

    def numbers(self, hop: Fraction) -> ir.Value:
        """(B, this chunk's rows): the number of each row."""
        once = ("numbers", hop)
        if once not in self._once:
            reach = self.op("Range", self.scalar(0), self.count(hop), self.scalar(1))
            self._once[once] = self.op("Add", self.base(hop), reach)
        return self._once[once]  # type: ignore[no-any-return]

    def base(self, hop: Fraction) -> ir.Value:
        """(B, 1): the number of this chunk's first row."""
        return self._per_hop("base", self.position(), hop)

    def count(self, hop: Fraction) -> ir.Value:
        """How many rows this chunk has, a scalar."""
        if "samples" not in self._once:
            self._once["samples"] = self.op("Gather", self.op("Shape", self.sample), self.scalar(1), axis=0)
        return self._per_hop("count", self._once["samples"], hop)

    def next_base(self, hop: Fraction) -> ir.Value:
        """(B, 1): the number of the next chunk's first row."""
        once = ("next", hop)
        if once not in self._once:
            self._once[once] = self.op("Add", self.base(hop), self.count(hop))
        return self._once[once]  # type: ignore[no-any-return]

    def _per_hop(self, what: str, samples: ir.Value, hop: Fraction) -> ir.Value:
        once = (what, hop)
        if once not in self._once:
            more = samples if hop.denominator == 1 else self.op("Mul", samples, self.scalar(hop.denominator))
            self._once[once] = more if hop.numerator == 1 else self.op("Div", more, self.scalar(hop.numerator))
        return self._once[once]  # type: ignore[no-any-return]

    def position(self) -> ir.Value:
        """(B, 1): how many samples came before this chunk, the phase included."""
        if "position" not in self._once:
            position = self.state("position", [1], dtype="int64")
            self._once["position"] = position
            self.carry(position, self.next_base(Fraction(1)))
        return self._once["position"]  # type: ignore[no-any-return]

    def ends(self, rows: Rows) -> ir.Value:
        """(B, 1): how many rows the sequence has."""
        once = ("ends", rows)
        if once not in self._once:
            if not rows:
                self.end = ir.val("end", dtype=ir.DataType.INT64, shape=["batch"])
                self._once[once] = self.op("Unsqueeze", self.end, self.constant([1]))
            else:
                *before, (multiply, add, divide) = rows
                n = self.ends(tuple(before))
                for op_type, operand, neutral in (("Mul", multiply, 1), ("Add", add, 0), ("Div", divide, 1)):
                    n = n if operand == neutral else self.op(op_type, n, self.scalar(operand))
                self._once[once] = self.op("Max", n, self.scalar(0))
        return self._once[once]  # type: ignore[no-any-return]


def _transposed(x: Timed) -> list[tuple[Timed, list[int]]]:
    """The transposed forms of a tensor, and how each is turned back."""
    forms = []
    for node, _ in x.value.uses():
        if node.op_type == "Transpose":
            perm = list(node.attributes.get_ints("perm"))
            turned = replace(x, value=node.outputs[0], axis=perm.index(x.axis), batch=perm.index(x.batch))
            forms.append((turned, [perm.index(axis) for axis in range(len(perm))]))
    return forms


def refuse(node: ir.Node, reason: str, fix: str) -> NotStreamableError:
    """The error for a node that has no exact step form."""
    name = node.name or node.outputs[0].name
    return NotStreamableError(f"node {name!r} ({node.op_type}): {reason}; {fix}")
