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

from dataclasses import replace
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


def runs_backwards(node: ir.Node, x: Timed) -> bool:
    """Whether a recurrent node over ``x``, or one half of it, goes from later samples to earlier ones."""
    return any(_directions(node, x))


def both_halves(step: StepGraph, node: ir.Node, x: Timed) -> Timed:
    """Y (T, D, B, U) of a recurrent node, D directions of which may run backwards; its input is (T, B, C)."""
    directions = _directions(node, x)
    if not any(directions):
        y, delay, future = forward(step, node, x, x.value, 0), x.delay, x.future
    else:
        promise = step.plan.lookahead
        assert promise is not None
        step.takes_whole_rows(promise.chunk * x.hop)
        step.lookahead_layers.append(
            LookaheadLayer(str(node.outputs[0].name), delay=x.delay, reversed_input=x.backwards)
        )
        delay = x.delay + promise.steps
        rows = step.with_history(x, promise.steps, what=node.op_type.lower()) if promise.steps else x.value
        final = step.slice(rows, 0, 0, -promise.steps) if promise.steps else rows
        halves = [
            _backward(step, node, x, rows, index)
            if backward
            else forward(step, node, replace(x, delay=delay), final, index)
            for index, backward in enumerate(directions)
        ]
        y = halves[0] if len(halves) == 1 else step.op("Concat", *halves, axis=1)
        # What a row sees has come with its block: never more than all that was fed by then.
        future = min(x.future + (promise.chunk + promise.steps - 1) * x.hop, delay * x.hop + step.plan.granule - 1)
    return replace(x, value=y, batch=2, delay=delay, past=None, future=future, blank=False)


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
    weights = _weights(step, node, index)
    n_outputs = 1 + len(states)
    if not x.delay:
        y, *after = step.ops(
            node.op_type, n_outputs, rows, *weights, None, *initial, **_attributes(node, index, "forward")
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
            **_attributes(node, index, "reverse"),
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
    units, window = node.attributes.get_int("hidden_size"), promise.chunk + promise.steps
    first = _blocks(step, x, promise.chunk)  # (N,): where, in rows, each block begins
    places = step.op("Add", first, step.constant(np.arange(window)[:, None], f"rows_of_{window}"))
    blocks = step.op("Gather", rows, places, axis=0)  # (window, N, B, C)
    folded = step.op("Reshape", blocks, step.constant([window, -1, *step.sizes(x)]))
    (y,) = step.ops(
        node.op_type,
        1,
        folded,
        *_weights(step, node, index),
        _lengths_of_blocks(step, x, first, window),
        **_attributes(node, index, "reverse"),
    )
    kept = step.slice(y, 0, 0, promise.chunk) if promise.steps else y
    each = step.op(
        "Concat", step.constant([promise.chunk]), step.op("Shape", first), step.constant([-1, units]), axis=0
    )
    unfolded = step.op("Transpose", step.op("Reshape", kept, each), perm=[1, 0, 2, 3])  # (N, chunk, B, U)
    return step.op("Reshape", unfolded, step.constant([-1, 1, 0, units]))


def _blocks(step: StepGraph, x: Timed, chunk: int) -> ir.Value:
    once = ("blocks", x.hop, chunk)
    return step.once(once, lambda: step.op("Range", step.scalar(0), step.count(x.hop), step.scalar(chunk)))


def _lengths_of_blocks(step: StepGraph, x: Timed, first: ir.Value, window: int) -> ir.Value:
    """(N · B,): how many rows of each block's window come before the end of the sequence, 1 at least."""
    promise = step.plan.lookahead
    assert promise is not None

    def write() -> ir.Value:
        left = step.op("Sub", step.ends(x.rows), step.op("Sub", step.base(x.hop), step.scalar(x.delay + promise.steps)))
        of_blocks = step.op(
            "Sub", step.op("Transpose", left, perm=[1, 0]), step.op("Unsqueeze", first, step.constant([1]))
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


def _directions(node: ir.Node, x: Timed) -> list[bool]:
    """For each direction of a recurrent node, whether it goes from later samples to earlier ones."""
    named = node.attributes.get_string("direction", "forward")
    return [each != x.backwards for each in {"forward": [False], "reverse": [True]}.get(named, [False, True])]


def _weights(step: StepGraph, node: ir.Node, index: int) -> list[ir.Value | None]:
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


def _attributes(node: ir.Node, index: int, direction: str) -> dict[str, Any]:
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
