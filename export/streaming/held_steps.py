"""Recurrent layers under a mask, as the exporter writes them, recognised and said in words that stream.

ONNX has no mask in the middle of a sequence, so ``edgeseq.export.lowering.masks`` moves the valid steps to the front,
runs the operator over as many as are valid, and takes its outputs back to their steps. Every one of those moves needs
the whole sequence; together they are causal: at a masked step the state stays as it is. ``hold_masked_steps`` puts one
operator over all steps in their place, ``MaskedLSTM``, ``MaskedGRU`` or ``MaskedRNN``: inputs as in ONNX, but for the
fifth, which is the mask, (B, T) booleans; at a masked step its Y is the h that it holds. They are known to the rules in
``edgeseq.export.streaming.masked`` alone, and stand in no file.

Invariant: moves are taken away only where every reader of what was moved is one that is known here; else the graph
stays as it is, for the walk to refuse.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from edgeseq.export.graph.edit import constant, initializer, insert_after, permutation, replace
from edgeseq.export.streaming.step_graph import refuse

_BATCH_FIRST, _TIME_FIRST, _DIRECTIONS = "(B, T, C)", "(T, B, C)", "(T, directions, B, C)"


@dataclass
class _Region:
    """What reads the compact steps of one tensor: recurrent operators, and what takes their outputs back."""

    mask: ir.Value
    recurrent: list[ir.Node] = field(default_factory=list)
    held: list[ir.Node] = field(default_factory=list)
    zeros: list[ir.Node] = field(default_factory=list)


def hold_masked_steps(model: ir.Model) -> None:
    """Let recurrent operators run over all steps, with a mask, in place. Types of tensors must be known.

    Raises:
        NotStreamableError: one under a mask runs backwards, and its last output is held at masked steps.
    """
    for node in list(model.graph):
        mask = _compacts_by(node)
        if mask is None:
            continue
        region = _Region(mask)
        if _follow(node.outputs[0], _BATCH_FIRST, region):
            _check_held(region)
            _hold(node, region)
    passes.RemoveUnusedNodesPass()(model)


def _follow(value: ir.Value, layout: str, region: _Region) -> bool:
    """Collect what reads a tensor of compact steps; False if it is read by what is not known here."""
    if value.is_graph_output():
        return False
    return all(_follow_into(node, index, layout, region) for node, index in list(value.uses()))


def _follow_into(node: ir.Node, index: int, layout: str, region: _Region) -> bool:
    reads = _READERS.get((node.op_type, layout))
    return index == 0 and reads is not None and reads(node, region)


def _transpose(node: ir.Node, layout: str, region: _Region) -> bool:
    return permutation(node) == [1, 0, 2] and _follow(node.outputs[0], layout, region)


def _check_held(region: _Region) -> None:
    """Refuse to hold outputs of what runs backwards: before the first valid step, seen from the end, is the future."""
    for node in region.recurrent if region.held else []:
        if node.attributes.get_string("direction", "forward") != "forward":
            raise refuse(
                node, "its backward half starts at the end of the sequence", "train a causal model, or run offline"
            )


def _beside(node: ir.Node, region: _Region) -> bool:
    """Both directions' outputs side by side, as the exporter concatenates them."""
    readers = [use.node for use in node.outputs[0].uses()]
    if permutation(node) != [2, 0, 1, 3] or len(readers) != 1 or readers[0].op_type != "Reshape":
        return False
    reader = readers[0]
    target = constant(reader.inputs[1])
    whole = target is not None and target.size == 3 and target[:2].tolist() == [0, 0]
    return whole and _follow(reader.outputs[0], _BATCH_FIRST, region)


def _merge(node: ir.Node, region: _Region) -> bool:
    """The sum, mean or product of both directions' outputs."""
    keeps = node.attributes.get_int("keepdims", 1)
    return not keeps and _is(node.inputs[1:], 1) and _follow(node.outputs[0], _TIME_FIRST, region)


def _halves(node: ir.Node, region: _Region) -> bool:
    """Each direction's outputs alone."""
    return node.attributes.get_int("axis", 0) == 1 and all(_follow(y, _DIRECTIONS, region) for y in node.outputs)


def _squeeze(node: ir.Node, region: _Region) -> bool:
    return _is(node.inputs[1:], 1) and _follow(node.outputs[0], _TIME_FIRST, region)


def _recurrent(node: ir.Node, region: _Region) -> bool:
    if len(node.inputs) < 5 or not _counts(node.inputs[4], region.mask):
        return False
    region.recurrent.append(node)
    return _follow(node.outputs[0], _DIRECTIONS, region)


def _spread(node: ir.Node, region: _Region) -> bool:
    place = _rows_at(node)
    if _is_last_valid(place, region.mask):
        region.held.append(node)
    elif _is_own_or_zeros(place, region.mask):
        region.zeros.append(node)
    else:
        return False
    return True


# By operator and layout of its input: whether the reader, and those behind it, are known.
_READERS: dict[tuple[str, str], Callable[[ir.Node, _Region], bool]] = {
    ("Transpose", _BATCH_FIRST): lambda node, region: _transpose(node, _TIME_FIRST, region),
    ("Transpose", _TIME_FIRST): lambda node, region: _transpose(node, _BATCH_FIRST, region),
    ("Squeeze", _DIRECTIONS): _squeeze,
    ("Transpose", _DIRECTIONS): _beside,
    ("Split", _DIRECTIONS): _halves,
    **{(op_type, _DIRECTIONS): _merge for op_type in ("ReduceSum", "ReduceMean", "ReduceProd")},
    **{(op_type, _TIME_FIRST): _recurrent for op_type in ("LSTM", "GRU", "RNN")},
    ("GatherND", _BATCH_FIRST): _spread,
}


def _hold(compact: ir.Node, region: _Region) -> None:
    """Take the moves away."""
    _read_instead(compact.outputs[0], compact.inputs[0])
    for node in region.recurrent:
        node.op_type = f"Masked{node.op_type}"
        node.replace_input_with(4, region.mask)
    for node in region.held:
        _read_instead(node.outputs[0], node.inputs[0])
    for node in region.zeros:
        _put_zeros(node, region.mask)


def _read_instead(old: ir.Value, new: ir.Value | None) -> None:
    assert new is not None
    replace(old, new)


def _put_zeros(node: ir.Node, mask: ir.Value) -> None:
    assert isinstance(node.graph, ir.Graph)
    axis = initializer(node.graph, np.array([2]), f"{node.name}_axis")
    zero = initializer(node.graph, np.array(0, np.float32), f"{node.name}_zero")
    wide = ir.node("Unsqueeze", [mask, axis], name=f"{node.name}_mask")
    chosen = ir.node("Where", [wide.outputs[0], node.inputs[0], zero], name=node.name)
    wide.outputs[0].type, wide.outputs[0].shape = mask.type, ir.Shape([None, None, 1])
    insert_after(node, [wide, chosen])
    replace(node.outputs[0], chosen.outputs[0])


# What the exporter writes, expression by expression; see ``edgeseq.export.lowering.masks``.


def _compacts_by(node: ir.Node) -> ir.Value | None:
    """The mask whose valid steps the node moves to the front, or None if it does something else."""
    sort = _made_by(_rows_at(node), "TopK")
    if sort is None or _rows_at(node) is not sort.outputs[1]:
        return None
    ones, every = sort.inputs
    length, cast = _made_by(every, "Shape"), _made_by(ones, "Cast")
    if length is None or cast is None or length.inputs[0] is not ones:
        return None
    mask, what = cast.inputs[0], sort.attributes
    if [length.attributes.get_int(name, 0) for name in ("start", "end")] != [1, 2] or what.get_int("axis", -1) != 1:
        return None
    in_order = what.get_int("largest", 1) == what.get_int("sorted", 1) == 1
    return mask if in_order and mask is not None and mask.dtype is ir.DataType.BOOL else None


def _rows_at(node: ir.Node) -> ir.Value | None:
    """Of a GatherND that takes whole rows (B, T, C) at places (B, T): the places, before a Cast; else None."""
    if node.op_type != "GatherND" or node.attributes.get_int("batch_dims", 0) != 1:
        return None
    wide = _made_by(node.inputs[1], "Unsqueeze")
    if wide is None or not _is(wide.inputs[1:], -1, 2):
        return None
    places = wide.inputs[0]
    cast = _made_by(places, "Cast")
    return places if cast is None else cast.inputs[0]


def _counts(value: ir.Value | None, mask: ir.Value) -> bool:
    """How many steps are valid, (B,)."""
    total = _made_by(value, "ReduceSum")
    return (
        total is not None
        and _are_ones(total.inputs[0], mask)
        and _is(total.inputs[1:], 1, -1)
        and total.attributes.get_int("keepdims", 1) == 0
    )


def _is_last_valid(place: ir.Value | None, mask: ir.Value) -> bool:
    """The number of valid steps so far, less 1: where a step's own output is, or the last one's before it."""
    less = _made_by(place, "Sub")
    return less is not None and _is(less.inputs[1:], 1) and _is_running_count(less.inputs[0], mask, exclusive=0)


def _is_own_or_zeros(place: ir.Value | None, mask: ir.Value) -> bool:
    """The number of valid steps before a valid one, and -1, where zeros are, for a masked one."""
    choice = _made_by(place, "Where")
    return (
        choice is not None
        and choice.inputs[0] is mask
        and _is(choice.inputs[2:], -1)
        and _is_running_count(choice.inputs[1], mask, exclusive=1)
    )


def _is_running_count(value: ir.Value | None, mask: ir.Value, *, exclusive: int) -> bool:
    total = _made_by(value, "CumSum")
    return (
        total is not None
        and _are_ones(total.inputs[0], mask)
        and _is(total.inputs[1:], 1, -1)
        and total.attributes.get_int("exclusive", 0) == exclusive
        and total.attributes.get_int("reverse", 0) == 0
    )


def _are_ones(value: ir.Value | None, mask: ir.Value) -> bool:
    cast = _made_by(value, "Cast")
    return cast is not None and cast.inputs[0] is mask


def _made_by(value: ir.Value | None, op_type: str) -> ir.Node | None:
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def _is(values: object, *numbers: int) -> bool:
    """Whether there is one value, a constant of one number, and it is one of these."""
    assert isinstance(values, tuple | list)
    fixed = constant(values[0]) if len(values) == 1 else None
    return fixed is not None and fixed.size == 1 and int(fixed.item()) in numbers
