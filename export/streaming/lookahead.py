"""Recurrent layers that run backwards, with a bounded lookahead: the latency-controlled algorithm.

Of every layer, the forward half carries its state from sample to sample as it always does, and runs over rows that are
final alone. The backward half runs, once for each block of ``chunk`` rows, over the block and the ``steps`` rows behind
it, from a zero state at the newest of them (at the last row of the sequence, where that comes before), and what it
gives for the block is final. Blocks of one call are folded into the batch, so that a chunk of any size is one operator.

Refuses what the backward half has at the first row alone, its last state. Invariant: neither half ever runs over rows
that are no part of the sequence, and the last rows, ``steps`` of them and more, equal the offline layer's where its
input does.

Sources: Zhang et al. 2016, Highway long short-term memory RNNs for distant speech recognition; Xue and Yan 2017,
Improving latency-controlled BLSTM acoustic models for online speech recognition (there ``chunk`` is N_c, ``steps``
N_r, and the forward half does not run over the right context, either).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeseq.export.graph.edit import constant
from edgeseq.export.streaming.step_graph import StepGraph, Timed, refuse
from edgeseq.lookahead import LookaheadLayer

_INT_MIN = -(2**63)
# Which activations of ONNX take an alpha, and a beta: a layer lists values for these alone.
_WITH = {
    "activation_alpha": {"Affine", "Elu", "HardSigmoid", "LeakyRelu", "ScaledTanh", "ThresholdedRelu"},
    "activation_beta": {"Affine", "HardSigmoid", "ScaledTanh"},
}


def is_turned(node: ir.Node, x: Timed) -> bool:
    """Whether a recurrent node over ``x`` is another one than a forward one over time as it is."""
    return x.backwards or node.attributes.get_string("direction", "forward") != "forward"


def check_turned(step: StepGraph, node: ir.Node) -> None:
    """Refuse a recurrent node that is turned, if it is not to be approximated, or has no approximation."""
    if step.plan.lookahead is None:
        raise refuse(
            node,
            "its backward half starts at the end of the sequence",
            "give streamify(..., lookahead=N_r, chunk=N_c) on the offline file, an approximation with a bounded delay "
            "(docs/lookahead.md), train a causal model, or run offline",
        )
    if any(value.is_graph_output() or list(value.uses()) for value in node.outputs[1:]):
        raise refuse(
            node,
            "the last state of its backward half is that at the first step, after all the others",
            "use its outputs at every step (return_sequences=True)",
        )


def both_halves(step: StepGraph, node: ir.Node, x: Timed) -> Timed:
    """Y (T, D, B, U) of a recurrent node, D directions of which may run backwards; its input is (T, B, C)."""
    directions = directions_of(node, x)
    if not any(directions):
        y, delay, future = forward(step, node, x, x.value, 0), x.delay, x.future
    else:
        promise = step.plan.lookahead
        assert promise is not None
        delay = declare(step, node, x)
        rows = step.with_history(x, promise.steps, what=node.op_type.lower()) if promise.steps else x.value
        final = step.slice(rows, 0, 0, -promise.steps) if promise.steps else rows
        halves = [
            _backward(step, node, x, rows, index)
            if backward
            else forward(step, node, replace(x, delay=delay), final, index)
            for index, backward in enumerate(directions)
        ]
        y = halves[0] if len(halves) == 1 else step.op("Concat", *halves, axis=1)
        future = reach(step, x)
    return replace(x, value=y, batch=2, delay=delay, past=None, future=future, blank=False)


def declare(step: StepGraph, node: ir.Node, x: Timed) -> int:
    """Note that this layer is run in blocks; how many rows late its outputs are."""
    promise = step.plan.lookahead
    assert promise is not None
    step.takes_whole_rows(promise.chunk * x.hop)
    step.lookahead_layers.append(LookaheadLayer(str(node.outputs[0].name), x.delay, x.backwards))
    return x.delay + promise.steps


def reach(step: StepGraph, x: Timed) -> Fraction:
    """How far ahead a row sees, in samples: what has come with its block, and never more than all that was fed."""
    promise = step.plan.lookahead
    assert promise is not None
    late = (x.delay + promise.steps) * x.hop
    return min(x.future + (promise.chunk + promise.steps - 1) * x.hop, late + step.plan.granule - 1)


def forward(step: StepGraph, node: ir.Node, x: Timed, rows: ir.Value, index: int) -> ir.Value:
    """Y (T, 1, B, U) of the forward half over this call's ``rows`` (T, B, C), which come ``x.delay`` rows late.

    Rows from before the sequence come first in a call. Turned around they stand behind those of the sequence, where
    ``sequence_lens`` keeps the operator from them: it runs backwards over rows that are turned around. A call that has
    no others leaves the state as it is.
    """
    kind = node.op_type.lower()
    units = node.attributes.get_int("hidden_size")
    states = [step.state(f"{kind}_{part}", (units,)) for part in (("h", "c") if kind == "lstm" else ("h",))]
    lead = step.constant([0])
    initial = [step.op("Unsqueeze", state, lead) for state in states]
    weights = weights_of(step, node, index)
    n_outputs = 1 + len(states)
    if not x.delay:
        y, *after = step.ops(
            node.op_type, n_outputs, rows, *weights, None, *initial, **attributes_of(node, index, "forward")
        )
    else:
        seen = step.op("Min", _seen(step, x), step.count(x.hop))
        lengths = _as_lengths(step, step.op("Max", seen, step.scalar(1)))
        turned, *after = step.ops(
            node.op_type,
            n_outputs,
            _turned_around(step, rows),
            *weights,
            lengths,
            *initial,
            **attributes_of(node, index, "reverse"),
        )
        y = _turned_around(step, turned)
    for state, value in zip(states, after, strict=True):
        successor = step.op("Squeeze", value, lead)
        if x.delay:
            successor = step.op("Where", step.op("Greater", _seen(step, x), step.scalar(0)), successor, state)
        step.carry(state, successor)
    return y


def _backward(step: StepGraph, node: ir.Node, x: Timed, rows: ir.Value, index: int) -> ir.Value:
    """Y (T, 1, B, U) of the backward half over ``rows`` (steps + T, B, C): the last ones, and this call's."""
    promise = step.plan.lookahead
    assert promise is not None
    window = promise.chunk + promise.steps
    (y,) = step.ops(
        node.op_type,
        1,
        folded(step, x, rows, step.sizes(x)),
        *weights_of(step, node, index),
        _lengths_of_blocks(step, x, window),
        **attributes_of(node, index, "reverse"),
    )
    kept = step.slice(y, 0, 0, promise.chunk) if promise.steps else y
    batch_first = step.op("Transpose", step.op("Squeeze", kept, step.constant([1])), perm=[1, 0, 2])
    return unfolded(step, x, batch_first, node.attributes.get_int("hidden_size"))


def folded(step: StepGraph, x: Timed, rows: ir.Value, sizes: Sequence[int]) -> ir.Value:
    """(window, N · B, *sizes): of rows (steps + T, B, *sizes), the windows of this call's N blocks side by side."""
    promise = step.plan.lookahead
    assert promise is not None
    window = promise.chunk + promise.steps

    def places() -> ir.Value:
        column = step.constant(np.arange(window)[:, None], f"rows_of_{window}")
        return step.op("Add", _begins(step, x), column)

    windows = step.op("Gather", rows, step.once(("places", x.hop), places), axis=0)  # (window, N, B, *sizes)
    return step.op("Reshape", windows, step.constant([window, -1, *sizes]))


def unfolded(step: StepGraph, x: Timed, blocks: ir.Value, units: int) -> ir.Value:
    """Y (T, 1, B, U) of blocks (N · B, chunk, U), one behind the other."""
    promise = step.plan.lookahead
    assert promise is not None
    sizes = step.op("Concat", _count(step, x), step.constant([-1, promise.chunk, units]), axis=0)
    apart = step.op("Transpose", step.op("Reshape", blocks, sizes), perm=[0, 2, 1, 3])  # (N, chunk, B, U)
    return step.op("Reshape", apart, step.constant([-1, 1, 0, units]))


def _begins(step: StepGraph, x: Timed) -> ir.Value:
    """(N,): where, in this call's rows, each block begins."""
    promise = step.plan.lookahead
    assert promise is not None
    write = lambda: step.op("Range", step.scalar(0), step.count(x.hop), step.scalar(promise.chunk))  # noqa: E731
    return step.once(("blocks", x.hop), write)


def _count(step: StepGraph, x: Timed) -> ir.Value:
    """(1,): how many blocks this call has."""
    return step.once(("number of blocks", x.hop), lambda: step.op("Shape", _begins(step, x)))


def _lengths_of_blocks(step: StepGraph, x: Timed, window: int) -> ir.Value:
    """(N · B,): how many rows of each block's window come before the end of the sequence, 1 at least."""
    promise = step.plan.lookahead
    assert promise is not None

    def write() -> ir.Value:
        left = step.op("Sub", step.ends(x.rows), step.op("Sub", step.base(x.hop), step.scalar(x.delay + promise.steps)))
        of_blocks = step.op(
            "Sub", step.op("Transpose", left, perm=[1, 0]), step.op("Unsqueeze", _begins(step, x), step.constant([1]))
        )
        inside = step.op("Max", step.op("Min", of_blocks, step.scalar(window)), step.scalar(1))
        return _as_lengths(step, inside)

    return step.once(("lengths of blocks", x.hop, x.rows, x.delay), write)


def _seen(step: StepGraph, x: Timed) -> ir.Value:
    """(B, 1): how many rows of the sequence have come with this call's, less than 1 if none."""
    once = ("seen", x.hop, x.delay)
    return step.once(once, lambda: step.op("Sub", step.next_base(x.hop), step.scalar(x.delay)))


def _as_lengths(step: StepGraph, counts: ir.Value) -> ir.Value:
    flat = step.op("Reshape", counts, step.constant([-1]))
    return step.op("Cast", flat, to=ir.DataType.INT32)


def _turned_around(step: StepGraph, rows: ir.Value) -> ir.Value:
    return step.op("Slice", rows, *(step.constant([n]) for n in (-1, _INT_MIN, 0, -1)))


def directions_of(node: ir.Node, x: Timed) -> list[bool]:
    """For each direction of a recurrent node, whether it goes from later samples to earlier ones."""
    named = node.attributes.get_string("direction", "forward")
    return [each != x.backwards for each in {"forward": [False], "reverse": [True]}.get(named, [False, True])]


def weights_of(step: StepGraph, node: ir.Node, index: int) -> list[ir.Value | None]:
    """W, R and B of one direction; ``index`` counts directions."""
    parts: list[ir.Value | None] = []
    for value in node.inputs[1:4]:
        whole = constant(value)
        if value is not None and whole is None:
            raise refuse(node, "its weights depend on the input", "make them constants")
        if value is None or whole is None:
            parts.append(None)
        elif len(whole) == 1:
            parts.append(step.constant(whole, str(value.name)))
        else:
            parts.append(step.constant(whole[index : index + 1], f"{value.name}_{('forward', 'reverse')[index]}"))
    return parts


def attributes_of(node: ir.Node, index: int, direction: str) -> dict[str, Any]:
    """The node's attributes for one direction."""
    attributes: dict[str, Any] = {**node.attributes, "direction": direction}
    names = node.attributes.get_strings("activations", [])
    if node.attributes.get_string("direction", "forward") != "bidirectional" or not names:
        return attributes
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    attributes["activations"] = list(halves[index])
    for attribute, takers in _WITH.items():
        if attribute in node.attributes:
            before, own = (sum(name in takers for name in half) for half in halves)
            given = list(node.attributes.get_floats(attribute))
            attributes[attribute] = given[before : before + own] if index else given[:before]
            if not attributes[attribute]:
                del attributes[attribute]
    return attributes
