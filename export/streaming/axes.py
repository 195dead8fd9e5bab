"""Rules of the operators that move, add, drop and part axes: where batch and time are afterwards.

Refused is what mixes time or the batch with another axis. A value for the whole sequence (``TimeAxis.GONE``) keeps a
time axis in the step graph; the rules say where.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from edgeseq.export.graph.edit import constant, permutation
from edgeseq.export.streaming.held import first_step
from edgeseq.export.streaming.merging import parted
from edgeseq.export.streaming.registry import REARRANGE, Argument, first, streams, values
from edgeseq.export.streaming.step_graph import StepGraph, TimeAxis, Timed, refuse, then

# Sizes that stand for the batch's and time's in products: no other axis, nor a product of some, is as long.
_BATCH, _TIME = 1_000_003, 1_000_033


def time_second(step: StepGraph, x: Timed) -> Timed:
    """``x``, a value for the whole sequence, with its axes as (batch, time, rest); others as they are."""
    if not x.gone or x.axes == (0, 1):
        return x
    order = [*x.axes, *(axis for axis in range(x.rank + 1) if axis not in x.axes)]
    if [axis for axis in order if axis != x.axis] != [axis for axis in range(x.rank + 1) if axis != x.axis]:
        return x
    moved = replace(x, value=step.op("Transpose", x.value, perm=order), batch=0, axis=1)
    step.copies_sizes(x.value, moved.value)
    return moved


def as_gone(step: StepGraph, x: Timed) -> Timed:
    """``x``, of one step offline, as a value for the whole sequence with an axis of one number where time was."""
    if x.offline is not TimeAxis.LAST:
        return x
    at = x.axis + 1
    sizes = list(step.sizes(x))
    sizes.insert(x.axis - (x.batch < x.axis), 1)
    y = step.op("Unsqueeze", x.value, step.constant([at]))
    step.knows_sizes(y, sizes)
    step.knows_dtype(y, step.dtype(x.value))
    return replace(x, value=y, batch=x.batch + (x.batch >= at), offline=TimeAxis.GONE)


def last_step(node: ir.Node, x: Timed, offline: TimeAxis) -> Timed:
    """``x`` where the offline graph goes on with its last step alone."""
    if x.backwards or x.offline is not TimeAxis.FULL:
        raise refuse(node, "the last step of reversed time is the first one", "select the last step before reversing")
    return replace(x, offline=offline)


def repeated(x: Timed, times: int) -> Timed:
    """Of a tensor with ``times`` rows for each row before."""
    if times == 1:
        return x
    past = None if x.past is None else x.past + Fraction(times - 1, times) * x.hop
    return replace(x, hop=x.hop / times, delay=x.delay * times, rows=then(x.rows, times, 0, 1), past=past)


@streams("Transpose")
def _transpose(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x = first(node, arguments)
    perm = [x.lift(axis) for axis in permutation(node)]
    if x.gone:
        perm.insert(x.axis, x.axis)
    y = step.copy(node, [x.value], perm=perm)[0]
    return [replace(x, value=y, axis=perm.index(x.axis), batch=perm.index(x.batch))]


@streams("Squeeze")
def _squeeze(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x = first(node, arguments)
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None:
        raise refuse(node, "the axes are not constant", "give them as an initializer")
    dropped = sorted(x.lift(int(axis)) for axis in np.atleast_1d(axes))
    offline = x.offline
    if x.batch in dropped:
        raise refuse(node, "it drops the batch axis, which holds one sequence only by accident", REARRANGE)
    if x.axis in dropped:
        if offline is not TimeAxis.LAST:
            raise refuse(node, "it drops the time axis, which holds one step only by accident", REARRANGE)
        dropped.remove(x.axis)
        offline = TimeAxis.GONE
    y = step.op("Squeeze", x.value, step.constant(dropped)) if dropped else x.value
    batch, axis = x.without(dropped)
    return [replace(x, value=y, axis=axis, batch=batch, offline=offline)]


@streams("Unsqueeze")
def _unsqueeze(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x = first(node, arguments)
    axes = constant(node.inputs[1]) if len(node.inputs) > 1 else None
    if axes is None:
        raise refuse(node, "it adds an axis that is not constant", REARRANGE)
    rank = x.rank + axes.size
    new = {int(axis) % rank for axis in np.atleast_1d(axes)}
    kept = [axis for axis in range(rank) if axis not in new]
    if not x.gone:
        y = step.op("Unsqueeze", x.value, step.constant(sorted(new)))
        return [replace(x, value=y, axis=kept[x.axis], batch=kept[x.batch])]
    at = kept[x.axis - 1] + 1 if x.axis > 0 else 0  # time stays behind the axis that it is behind
    y = step.op("Unsqueeze", x.value, step.constant(sorted(axis + (axis >= at) for axis in new)))
    batch = kept[x.drop(x.batch)]
    return [replace(x, value=y, axis=at, batch=batch + (batch >= at))]


@streams("Split")
def _split(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed | None]:
    x = first(node, arguments)
    axis = x.lift(node.attributes.get_int("axis", 0))
    if axis in x.axes:
        raise refuse(node, "it parts the sequence, or the batch", "split channels instead")
    return [replace(x, value=part) for part in step.copy(node, values(arguments), axis=axis)]


@streams("Gather")
def _gather(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    table, tokens = arguments
    axis = node.attributes.get_int("axis", 0)
    if isinstance(tokens, Timed) and isinstance(table, ir.Value) and axis == 0:
        return [replace(tokens, value=step.copy(node, values(arguments))[0], blank=False)]
    x, indices = table, constant(node.inputs[1])
    if not isinstance(x, Timed) or indices is None or indices.ndim > 1:
        raise refuse(node, "only a look-up of tokens in a constant table, or of constant channels, streams", REARRANGE)
    at = x.lift(axis)
    if at == x.batch:
        raise refuse(node, "it selects sequences of a batch", REARRANGE)
    if at == x.axis:
        gone = TimeAxis.LAST if indices.ndim else TimeAxis.GONE
        if x.offline is TimeAxis.LAST and indices.ravel().tolist() in ([0], [-1]):  # the one step that there is
            return [replace(x, offline=gone)]
        if indices.ravel().tolist() == [0]:
            return [first_step(step, node, x, gone)]
        if indices.ravel().tolist() != [-1]:
            raise refuse(node, "it takes steps at fixed places", "select the last step, or every step")
        return [last_step(node, x, gone)]
    y = step.copy(node, values(arguments), axis=at)[0]
    batch, axis = x.without([] if indices.ndim else [at])
    return [replace(x, value=y, axis=axis, batch=batch)]


@streams("Tile")
def _tile(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x, repeats = first(node, arguments), constant(node.inputs[1])
    if repeats is None or x.gone or repeats[x.axis] != 1 or repeats[x.batch] != 1:
        raise refuse(node, "it repeats the sequence, or the batch", "repeat channels instead")
    return [replace(x, value=step.copy(node, values(arguments))[0])]


@streams("Expand")
def _expand(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x, target = first(node, arguments), constant(node.inputs[1])
    if target is None or x.gone or len(target) > x.rank:
        raise refuse(node, "it repeats the sequence, or the batch", "repeat channels instead")
    wanted = dict(enumerate(target.tolist(), start=x.rank - len(target)))
    if any(wanted.get(axis, 1) != 1 for axis in x.axes):
        raise refuse(node, "it repeats the sequence, or the batch", "repeat channels instead")
    return [replace(x, value=step.copy(node, values(arguments))[0])]


@streams("Reshape", "Flatten")
def _reshape(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x = first(node, [arguments[0]])
    before = _before(step, x)
    after = _target(node, before, x)
    if after is None:
        raise refuse(node, "it rearranges time together with other axes", REARRANGE)
    if x.offline is not TimeAxis.FULL:
        return [_reshape_gone(step, node, x, after)]
    if _BATCH * _TIME in after:
        return [_reshape_merged(step, node, x, before, after)]
    if x.merged:
        x = parted(step, x)
        before = _before(step, x)
    if after == before:
        return [x]
    batch, time = _place(before, x.batch, after), _place(before, x.axis, after)
    if batch is None or time is None or batch == time or after[batch] != _BATCH:
        raise refuse(node, "it rearranges time together with other axes", REARRANGE)
    times = after[time] // _TIME
    after[batch] = 0 if batch == x.batch else -1
    after[time] = 0 if (time, times) == (x.axis, 1) else -1
    shape = step.constant(after)
    if after.count(-1) > 1:
        ends = [[step.constant(part)] if part else [] for part in (after[:batch], after[batch + 1 :])]
        shape = step.op("Concat", *ends[0], step.batch_size(), *ends[1], axis=0)
    return [repeated(replace(x, value=step.op("Reshape", x.value, shape), batch=batch, axis=time), times)]


def _reshape_merged(step: StepGraph, node: ir.Node, x: Timed, before: list[int], after: list[int]) -> Timed:
    """Where batch and time become one axis, or are one and stay it."""
    at, start = after.index(_BATCH * _TIME), min(x.axes)
    side_by_side = x.merged or abs(x.batch - x.axis) == 1
    if not side_by_side or math.prod(before[:start]) != math.prod(after[:at]):
        raise refuse(node, "it rearranges time together with other axes", REARRANGE)
    y = step.op("Reshape", x.value, step.constant([*after[:at], -1, *after[at + 1 :]]))
    return replace(x, value=y, batch=at, axis=at, time_major=x.time_major if x.merged else x.axis < x.batch)


def _before(step: StepGraph, x: Timed) -> list[int]:
    """The sizes of the step tensor, with ``_BATCH`` and ``_TIME`` for those two."""
    sizes = list(step.sizes(x))
    for axis, size in sorted({x.axis: _TIME, x.batch: _BATCH}.items()):
        sizes.insert(axis, _BATCH * _TIME if x.merged else size)
    return sizes


def _reshape_gone(step: StepGraph, node: ir.Node, x: Timed, after: list[int]) -> Timed:
    """Where time is gone: as offline, behind the batch and time. A time axis of one step is as good as gone."""
    if x.offline is TimeAxis.LAST:
        x = replace(x, offline=TimeAxis.GONE, rank=x.rank - 1)
    x = time_second(step, x)
    if x.axes != (0, 1) or after[:1] != [_BATCH] or any(n % _BATCH == 0 for n in after[1:]):
        raise refuse(node, "it rearranges the batch together with other axes", REARRANGE)
    return replace(x, value=step.op("Reshape", x.value, step.constant([0, 0, *after[1:]])))


def _target(node: ir.Node, before: list[int], x: Timed) -> list[int] | None:
    """The sizes of the offline result, with ``_BATCH`` and ``_TIME`` for those two; None if they are not constant."""
    if x.gone:
        before = [n for n in before if n != _TIME]
    if x.offline is TimeAxis.LAST:
        before = [1 if n == _TIME else n for n in before]
    if node.op_type == "Flatten":
        axis = node.attributes.get_int("axis", 1)
        axis = axis + len(before) if axis < 0 else axis
        return [math.prod(before[:axis]), math.prod(before[axis:])]
    wanted = _asked(node.inputs[1])
    if wanted is None:
        return None
    copies = not node.attributes.get_int("allowzero", 0)
    sizes = [before[axis] if n == 0 and copies else n for axis, n in enumerate(wanted)]
    rest = math.prod(n for n in sizes if n != -1)
    if rest == 0 or math.prod(before) % rest:
        return None
    return [math.prod(before) // rest if n == -1 else n for n in sizes]


def _asked(value: ir.Value | None) -> list[int] | None:
    """The sizes that a Reshape asks for: constant but for the batch size, the first size of an input of the graph."""
    fixed, producer = constant(value), None if value is None else value.producer()
    if fixed is not None:
        return [int(n) for n in fixed.ravel()]
    if producer is not None and producer.op_type == "Concat":
        parts = [_asked(part) for part in producer.inputs]
        return None if None in parts else [n for part in parts if part is not None for n in part]
    if producer is not None and is_batch_size(producer):
        return [_BATCH]
    return None


def is_batch_size(node: ir.Node) -> bool:
    """Whether it asks an input of the graph, (batch, time, ...), for its first size alone."""
    source = node.inputs[0] if node.op_type == "Shape" else None
    ends = node.attributes.get_int("start", 0), node.attributes.get_int("end", -1)
    return source is not None and source.is_graph_input() and ends == (0, 1)


def _place(before: list[int], axis: int, after: list[int]) -> int | None:
    """Which axis of ``after`` begins where that of ``before`` does; it may have taken up what was behind it."""
    left, size = math.prod(before[:axis]), before[axis]
    for place, n in enumerate(after):
        if math.prod(after[:place]) == left and n % size == 0:
            return place
    return None
