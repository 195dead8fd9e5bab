"""Rules of products beside a MatMul by a constant, of what sorts or picks among channels, and why attention is refused.

Attention combines every step with every other one. Under a causal mask it needs no later step, but what a stream would
have to keep grows with the sequence, and a stream's state has one size for ever: refused, too.
"""

from __future__ import annotations

import itertools
import string
from dataclasses import replace

import onnx_ir as ir

from edgeseq.errors import NotStreamableError
from edgeseq.export.streaming.registry import REARRANGE, Argument, farthest, first, streams, values
from edgeseq.export.streaming.step_graph import StepGraph, Timed, refuse
from edgeseq.export.streaming.windows import aligned

_BY_POSITION = {"Trilu", "CumSum", "Range"}
_ON_THE_WAY = 200  # nodes after a product among which its softmax is looked for


def attention(node: ir.Node) -> NotStreamableError:
    """The refusal of a node that combines every step with every other one."""
    if any(map(_is_mask_by_position, _on_the_way_to_softmax(node))):
        return refuse(
            node,
            "it is causal attention, or attention under another mask by position: it looks at more steps the longer "
            "the sequence is, so what a stream would have to keep grows with the sequence; a state has one size",
            "run it offline on a window of the last samples, or use causal convolutions or a recurrent layer instead",
        )
    return refuse(
        node,
        "it combines every step with every other one, so the first output needs the last sample",
        "attention over time cannot stream: run it offline, or use causal convolutions or a recurrent layer instead",
    )


def leads_to_softmax(node: ir.Node) -> bool:
    """Whether what the node gives becomes the weights of attention."""
    return any(after.op_type == "Softmax" for after in _on_the_way_to_softmax(node))


def _on_the_way_to_softmax(node: ir.Node) -> list[ir.Node]:
    """The nodes after this one, up to the first softmax on each way."""
    queue, seen = [node], [node]
    while queue and len(seen) < _ON_THE_WAY:
        for after, _ in (use for value in queue.pop(0).outputs for use in value.uses()):
            if after not in seen:
                seen.append(after)
                queue += [after] if after.op_type != "Softmax" else []
    return seen[1:]


def _is_mask_by_position(node: ir.Node) -> bool:
    """Whether the node lets something made of positions alone say what counts."""
    return node.op_type in ("Where", "Add", "Sub", "Mul", "And") and any(map(_made_of_positions, node.inputs))


def _made_of_positions(value: ir.Value | None) -> bool:
    """Whether a value is computed from lengths alone, by an operator that counts."""
    queue, seen, counts = [value], set(), False
    while queue:
        producer = None if (head := queue.pop()) is None else head.producer()
        if head is not None and head.is_graph_input():
            return False
        if producer is None or producer in seen:
            continue
        seen.add(producer)
        counts |= producer.op_type in _BY_POSITION
        if producer.op_type not in ("Shape", "Size"):
            queue += producer.inputs
    return counts


def product_of_two(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    """A MatMul of two tensors over time: of each step alone, if time and batch are none of the axes it works on."""
    timed = [a for a in arguments if isinstance(a, Timed)]
    head = timed[0]
    if any(a.gone or max(a.axes) >= a.rank - 2 for a in timed):
        raise attention(node)
    if any((a.axes, a.rank, a.time_major) != (head.axes, head.rank, head.time_major) for a in timed):
        raise refuse(node, "its inputs have time at different axes", REARRANGE)
    return [_combined(step, node, timed, aligned(step, node, timed))]


def _combined(step: StepGraph, node: ir.Node, arguments: list[Argument] | list[Timed], timed: list[Timed]) -> Timed:
    """The node on the tensors over time, which are ``timed`` when they are aligned, and on constants."""
    in_turn = iter(timed)
    inputs = [next(in_turn).value if isinstance(a, Timed) else a for a in arguments]
    past, future = farthest(timed)
    return replace(timed[0], value=step.copy(node, inputs)[0], past=past, future=future, blank=False, held=False)


@streams("Einsum")
def _einsum(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    timed = [a for a in arguments if isinstance(a, Timed)]
    letters, result = _letters(node, [a.rank if isinstance(a, Timed) else None for a in arguments])
    over = [terms for terms, a in zip(letters, arguments, strict=True) if isinstance(a, Timed)]
    if any(a.gone for a in timed) or any(len(terms) != a.rank for terms, a in zip(over, timed, strict=True)):
        raise refuse(node, "its equation does not say what becomes of time", "use a MatMul")
    times = {terms[a.axis] for terms, a in zip(over, timed, strict=True)}
    batches = {terms[a.batch] for terms, a in zip(over, timed, strict=True)}
    if len(times) > 1 or not times <= set(result):
        raise attention(node) if len(timed) > 1 else refuse(node, "it sums over time", REARRANGE)
    if len(batches) > 1 or not batches <= set(result):
        raise refuse(node, "it mixes the sequences of a batch", REARRANGE)
    (time,), (batch,) = times, batches
    fixed = [terms for terms, a in zip(letters, arguments, strict=True) if not isinstance(a, Timed)]
    if any({time, batch} & set(terms) for terms in fixed) or any(t.count(time) + t.count(batch) > 2 for t in over):
        raise refuse(node, "a constant varies along time, or along the batch", "a stream has no fixed length")
    if len({a.time_major for a in timed}) > 1:
        raise refuse(node, "its inputs have time at different axes", REARRANGE)
    y = _combined(step, node, arguments, aligned(step, node, timed))
    return [replace(y, axis=result.index(time), batch=result.index(batch))]


def _letters(node: ir.Node, ranks: list[int | None]) -> tuple[list[str], str]:
    """The terms of an Einsum's operands and of its result, with letters for an ellipsis."""
    equation = node.attributes.get_string("equation", "").replace(" ", "")
    if "->" not in equation:
        raise refuse(node, "its equation leaves out the result", "write it with ->")
    left, result = equation.split("->")
    terms = left.split(",")
    unused = [letter for letter in string.ascii_letters if letter not in equation]
    most = max((rank - len(t.replace("...", "")) for t, rank in zip(terms, ranks, strict=True) if rank), default=0)
    dots = "".join(itertools.islice(unused, max(0, most)))
    given = [
        t.replace("...", dots[len(dots) - (rank - len(t) + 3) :] if rank else "") if "..." in t else t
        for t, rank in zip(terms, ranks, strict=True)
    ]
    return given, result.replace("...", dots)


@streams("TopK")
def _top_k(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x = first(node, arguments)
    axis = x.lift(node.attributes.get_int("axis", -1))
    if axis in x.axes:
        raise refuse(node, "it sorts the whole sequence, as a mask does", "sort channels instead, or run it offline")
    return [replace(x, value=y, blank=False) for y in step.copy(node, values(arguments), axis=axis)]


@streams("ArgMax", "ArgMin")
def _arg_of_channels(step: StepGraph, node: ir.Node, arguments: list[Argument]) -> list[Timed]:
    x = first(node, arguments)
    axis = x.lift(node.attributes.get_int("axis", 0))
    if axis in x.axes:
        raise refuse(node, "it picks a step, or a sequence of a batch", "pick among channels instead")
    (y,) = step.copy(node, [x.value], axis=axis)
    batch, time = x.without([] if node.attributes.get_int("keepdims", 1) else [axis])
    return [replace(x, value=y, batch=batch, axis=time, blank=False)]
