"""The fast form of a step graph: one sample of each stream at a call, ring buffers.

The step graph is walked once more, with every tensor reduced to its newest row and the time axis dropped: a convolution
becomes a product of the newest row, and one of rows that stand in a ring (``edgeseq.export.fast.rings``). Masks by
position are true once a stream has taken as many samples as its outputs are late, and until it ends, so the fast form
needs none. What has no rule here has no fast form; the step graph serves it.

The winning layout, one Gather and one batched product for the past of all layers, was found by measurement:
docs/decisions/0008.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import onnx_ir as ir

from edgeseq.export.fast.rings import Buffer, FunctionGraph
from edgeseq.export.fast.rules import RULES, Known, Mask, NoFastFormError, Row, Rows
from edgeseq.export.streaming.step_model import StepModel
from edgeseq.fast_form import FastForm

DOMAIN, FUNCTION = "edgeseq", "FastStep"
_OPSET = 18  # where Split takes a number of parts, and Reduce its axes as an input
_POSITION = "_position"  # the end of the name of the state that counts samples


def with_fast_form(step: StepModel) -> StepModel:
    """The same model with its fast form, a function beside its graph, or with the reason why it has none."""
    try:
        if step.granule != 1 or any(timing.hop != (1, 1) for timing in step.timings):
            raise NoFastFormError("its outputs do not come one a sample")
        if step.model.graph.opset_imports.get("", 0) < _OPSET:
            raise NoFastFormError(f"the model is written with an opset before {_OPSET}")
        form, function = _Walk(step).finish()
    except NoFastFormError as error:
        return replace(step, not_fast=str(error))
    step.model.functions[function.identifier()] = function
    step.model.opset_imports[DOMAIN] = 1
    return replace(step, fast=form)


class _Walk:
    """One pass over the step graph."""

    def __init__(self, step: StepModel) -> None:
        self._step, self._graph = step, step.model.graph
        self.function = FunctionGraph()
        taken = [*self._graph.inputs, *self._graph.outputs, *self._graph.initializers.values()]
        self._prefix = "fast_"
        while any(str(value.name).startswith(self._prefix) for value in taken):
            self._prefix += "_"
        self._states = {state.input: state for state in step.state}
        self._buffers: dict[int, Buffer] = {}
        self._known: dict[ir.Value, Known] = {}
        self._inputs: list[ir.Value] = []
        self._weights: dict[str, ir.Value] = {}
        self._plain: dict[str, ir.Value] = {}
        self._in_rings: set[str] = set()
        for value in self._graph.inputs:
            self._known[value] = self._port(value)
        for node in self._graph:
            self._write(node)

    def _port(self, value: ir.Value) -> Known:
        name = str(value.name)
        if name == self._step.end:
            return Mask.TRUE
        if name not in self._states:
            rank = len(value.shape or ())
            self._inputs.append(ir.val(name, dtype=value.dtype))
            return Row(self._inputs[-1], axis=1, rank=rank)
        return Mask.TRUE if name.endswith(_POSITION) else value

    def _write(self, node: ir.Node) -> None:
        arguments = [None if value is None else self.argument(value) for value in node.inputs]
        results: Sequence[Known]
        if any(isinstance(a, (Row, Rows)) for a in arguments):
            rule = RULES.get(node.op_type) if node.domain == "" else None
            if rule is None:
                raise NoFastFormError(f"operator {node.op_type} has none")
            results = rule(self, node, arguments)
        elif Mask.TRUE in arguments:
            results = [Mask.TRUE] * len(node.outputs)
        else:
            raise NoFastFormError(f"operator {node.op_type} works on a state, as in a recurrent layer, or on constants")
        self._known.update(zip(node.outputs, results, strict=False))

    def argument(self, value: ir.Value) -> Known:
        if value in self._known:
            return self._known[value]
        name = str(value.name)
        if name not in self._weights:
            self._weights[name] = ir.val(name, dtype=value.dtype, shape=value.shape, const_value=value.const_value)
        return self._weights[name]

    def op(self, op_type: str, *inputs: ir.Value | None, like: ir.Node | None = None, **attributes: Any) -> ir.Value:
        """Add a node, with the attributes of another one and these."""
        given = {} if like is None else dict(like.attributes)
        return self.function.op(op_type, *inputs, **{**given, **attributes})

    def ring(self, state: ir.Value, newest: Row) -> Rows:
        """The ring that a state becomes, and the row that is added to it."""
        spec = self._states[str(state.name)]
        if newest.rank != 3 or newest.axis == 0 or spec.dtype != "float32":
            raise NoFastFormError(f"state {spec.input!r} does not hold rows of one axis")
        if str(state.name) in self._in_rings:
            raise NoFastFormError(f"state {spec.input!r} is read twice")
        self._in_rings.add(str(state.name))
        axis = newest.axis - 1
        width, size = spec.shape[1 - axis], spec.shape[axis]
        buffer = self._buffers.setdefault(width, Buffer(width, self._prefix))
        number = buffer.add(spec.input, axis, size, newest.value)
        return Rows(buffer, number, 0, size + 1, newest)

    def plain(self, state: ir.Value) -> ir.Value:
        """A state that is carried as it is."""
        if str(state.name) in self._plain:
            raise NoFastFormError(f"state {state.name!r} is read twice")
        self._plain[str(state.name)] = ir.val(str(state.name), type=state.type)
        return self._plain[str(state.name)]

    def finish(self) -> tuple[FastForm, ir.Function]:
        """Grant what was asked of the rings, and tie it all up."""
        head, body = FunctionGraph(), self.function
        outputs = []
        for port in self._graph.outputs:
            known, name = self._known[port], str(port.name)
            state = next((s for s in self._step.state if s.output == name), None)
            if state is None or state.input in self._plain:
                if not isinstance(known, Row):
                    raise NoFastFormError(f"output {name!r} is not the newest row of a tensor")
                outputs.append(body.op("Identity", known.value, into=ir.val(name)))
            elif isinstance(known, Rows) and (known.first, known.stop) != (1, known.size + 1):
                raise NoFastFormError(f"state {state.input!r} is not carried as the last rows")
        for name in self._states:
            if name not in self._in_rings | set(self._plain) and not name.endswith(_POSITION):
                raise NoFastFormError(f"state {name!r} depends on the edges of the sequence")
        buffers = [buffer.write_reads(head) for buffer in self._buffers.values()]
        outputs += [buffer.write_rows(body) for buffer in self._buffers.values()]
        rings = [value for buffer in self._buffers.values() for value in (buffer.array, *buffer.slots)]
        nodes = [*head.nodes, *body.nodes]
        for i, value in enumerate(value for node in nodes for value in node.outputs if value.name is None):
            value.name = f"{self._prefix}value_{i}"
        read = {value for node in nodes for value in node.inputs}
        weights = [weight for weight in self._weights.values() if weight in read]
        for weight in weights:
            weight.const_value = None  # the function is given it
        inputs = [*self._inputs, *rings, *self._plain.values(), *weights]
        graph = ir.Graph(inputs, outputs, nodes=nodes, opset_imports={"": self._graph.opset_imports[""]}, name=FUNCTION)
        position = next((name for name in self._states if name.endswith(_POSITION)), None)
        start = max(self._step.settled, *(timing.delay for timing in self._step.timings))
        form = FastForm(FUNCTION, start, tuple(buffers), tuple(self._plain), position)
        return form, ir.Function(DOMAIN, FUNCTION, graph=graph, attributes=[])
