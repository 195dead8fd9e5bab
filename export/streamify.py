"""From an offline ONNX graph to its streaming step graph.

``streamify`` walks the offline graph once and lets the rule of each operator write its step form. Refuses a graph that
has no exact step form, naming the node, the reason and a way out. The law: the step graph's outputs, one chunk after
another, equal the offline model's outputs (``law="equal"``), or, behind a pool or a last-step selection, its output on
samples 0..t (``law="prefix"``); a chunk has any length from 1, and chunks may be mixed with steps at any moment.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx_ir as ir
import onnx_ir.passes.common as passes

from edgeseq.errors import NotStreamableError
from edgeseq.export.cleanup import constant
from edgeseq.export.stream_graph import StepGraph, TimeAxis, Timed, refuse
from edgeseq.export.stream_rules import RULES, Argument
from edgeseq.model_file import Law, StateSpec


@dataclass(frozen=True)
class StepModel:
    """A step graph and what the analysis found out about it."""

    model: ir.Model
    law: Law
    past: int | None
    state: tuple[StateSpec, ...]


def streamify(offline: ir.Model) -> StepModel:
    """Derive the step graph of an offline graph with one input (batch, time[, C]) and one output.

    The step graph takes the input's next T samples, (batch, T[, C]) with T >= 1, and the states; it gives
    (batch, T, K) and the next states.

    Raises:
        NotStreamableError: some output depends on later samples, or an operator has no rule.
    """
    graph = offline.graph
    _refuse_ports(graph)
    step = StepGraph()
    source = graph.inputs[0]
    sample = ir.val(source.name, shape=source.shape, type=source.type)
    known: dict[ir.Value, Timed | ir.Value] = {source: Timed(sample, axis=1, rank=len(source.shape or ()))}
    for node in graph:
        _write(step, node, known)
    result = known.get(graph.outputs[0])
    if isinstance(result, Timed) and result.offline is TimeAxis.LAST:
        raise NotStreamableError(
            f"output {graph.outputs[0].name!r} keeps a time axis of one step; drop it (keepdims=False, or h[:, -1, :])"
        )
    if not isinstance(result, Timed):
        raise NotStreamableError(f"output {graph.outputs[0].name!r} does not depend on the input over time")
    return _finish(offline, step, sample, result)


def _refuse_ports(graph: ir.Graph) -> None:
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise NotStreamableError(
            f"the model has inputs {[v.name for v in graph.inputs]} and outputs {[v.name for v in graph.outputs]}; "
            "this release streams models of one input and one output"
        )
    length = (graph.inputs[0].shape or [None, None])[1]
    if isinstance(length, int):
        raise NotStreamableError(
            f"the model takes sequences of exactly {length} steps; build it with keras.Input((None, n_channels)), and "
            "without what depends on the length"
        )


def _write(step: StepGraph, node: ir.Node, known: dict[ir.Value, Timed | ir.Value]) -> None:
    arguments = [_argument(step, node, value, known) for value in node.inputs]
    if not any(isinstance(a, Timed) for a in arguments):
        inputs = [a for a in arguments if not isinstance(a, Timed)]
        known.update(zip(node.outputs, step.copy(node, inputs), strict=True))  # made of constants alone
        return
    rule = RULES.get(node.op_type) if node.domain == "" else None
    if rule is None:
        raise refuse(
            node, "no streaming rule is known for this operator", "see docs/streaming.md for those that stream"
        )
    for value, timed in zip(node.outputs, rule(step, node, arguments), strict=False):
        if timed is not None and (value.is_graph_output() or list(value.uses())):
            if value.shape is None:
                raise refuse(node, "the rank of its output is unknown", "run ONNX shape inference on the model first")
            known[value] = replace(timed, rank=len(value.shape))


def _argument(
    step: StepGraph, node: ir.Node, value: ir.Value | None, known: dict[ir.Value, Timed | ir.Value]
) -> Argument:
    if value is None or value in known:
        return None if value is None else known[value]
    fixed = constant(value)
    if fixed is None:
        raise refuse(node, f"its input {value.name!r} has no step form", "use another output of that operator")
    return step.constant(fixed, value.name)


def _finish(offline: ir.Model, step: StepGraph, sample: ir.Value, result: Timed) -> StepModel:
    output = result.value
    if result.axis != 1:
        perm = [axis for axis in range(result.rank + result.gone) if axis != result.axis]
        output = step.op("Transpose", output, perm=[perm[0], result.axis, *perm[1:]])
    port = offline.graph.outputs[0]
    shape = ir.Shape(["batch", "time", *(port.shape or [None])[-1:]])
    outputs: list[ir.Value] = []
    for value, name, like_shape, like in [
        (output, port.name, shape, port.type),
        *((step.successors[state], spec.output, state.shape, state.type) for state, spec in step.states.items()),
    ]:
        # A port needs a tensor of its own; two states that are carried alike, or a copied input, get an Identity.
        own = value if value.producer() is not None and value not in outputs else step.op("Identity", value)
        own.name, own.shape, own.type = name, like_shape, like
        outputs.append(own)
    model = ir.Model(
        ir.Graph(
            [sample, *step.states],
            outputs,
            nodes=step.nodes,
            initializers=list(step.initializers.values()),
            opset_imports=dict(offline.graph.opset_imports),
            name=f"{offline.graph.name}.stream",
        ),
        ir_version=offline.ir_version,
        producer_name="edgeseq",
    )
    _tidy(model)
    law: Law = "prefix" if result.gone else "equal"
    return StepModel(model, law, result.past, tuple(step.states.values()))


def _tidy(model: ir.Model) -> None:
    # No identity elimination: it would let the body of a Scan give one tensor as two outputs, which ORT gets wrong.
    steps: Sequence[ir.passes.InPlacePass] = (
        passes.RemoveUnusedNodesPass(),
        passes.NameFixPass(),
        passes.ShapeInferencePass(),
    )
    for each in steps:
        each(model)
