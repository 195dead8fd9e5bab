"""Which axis of each input is time, and the offline graph with its inputs as (batch, time, rest).

A file says it where all but one of the axes besides the batch have a fixed size. Where it leaves a choice, as with
(batch, time, C) and (time, batch, C), each reading is tried: convolutions, recurrences and pools run over time alone,
so the wrong one is refused somewhere. What still leaves a choice is refused: the user names the axis.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir
import onnx_ir.passes.common as passes
from onnx import version_converter

from edgeseq.errors import ConfigError, NotStreamableError
from edgeseq.export.graph.cleanup import clean_up
from edgeseq.export.graph.edit import constant, replace
from edgeseq.export.graph.known_sizes import settle_sizes
from edgeseq.export.streaming.filled import mark_filled
from edgeseq.export.streaming.held_steps import hold_masked_steps
from edgeseq.export.streaming.step_graph import refuse

_TIME = re.compile(r"time|seq|len|step|frame|^t$", re.IGNORECASE)
_BATCH = re.compile(r"batch|^n$|^b$", re.IGNORECASE)
_OLDEST = 18


@dataclass(frozen=True)
class Axes:
    """Where an offline tensor has its batch and its time; ``time`` is None for one value for the whole sequence."""

    batch: int
    time: int | None


TimeAxes = int | Mapping[str, int] | None
"""What a user says of the axis of time: one for all inputs, or by an input's name."""

Reading = dict[str, Axes]
"""For each input, by name, where its batch and time are."""


def by_input(names: Sequence[str], time_axis: TimeAxes) -> dict[str, int]:
    """The axis of time of each input for which ``time_axis``, one for all or a mapping, has one.

    Raises:
        ConfigError: it names an input that the model does not have, or an axis that is no whole number.

    Example:
        >>> by_input(["x", "z"], 1), by_input(["x", "z"], {"z": 2}), by_input(["x", "z"], None)
        ({'x': 1, 'z': 1}, {'z': 2}, {})
    """
    if isinstance(time_axis, Mapping):
        given = dict(time_axis)
    else:
        given = {} if time_axis is None else dict.fromkeys(names, time_axis)
    if unknown := sorted(set(given) - set(names), key=str):
        raise ConfigError(f"time_axis: no input {unknown}, the model has {list(names)}")
    for axis in given.values():
        if not isinstance(axis, int) or isinstance(axis, bool):
            raise ConfigError(f"time_axis: expected a whole number, or one for each input, got {time_axis!r}")
    return given


def readings(graph: ir.Graph, time_axis: TimeAxes) -> list[Reading]:
    """The ways to read the inputs' axes that their shapes leave, the likeliest first.

    Raises:
        NotStreamableError: an input has no time, or a fixed length.
        ConfigError: ``time_axis`` names an input or an axis that the model does not have.
    """
    names = [str(value.name) for value in graph.inputs]
    named = by_input(names, time_axis)
    choices = [_choices(value, named.get(str(value.name))) for value in graph.inputs]
    longest = max(map(len, choices), default=1)
    return [dict(zip(names, (c[min(i, len(c) - 1)] for c in choices), strict=True)) for i in range(longest)]


def _choices(value: ir.Value, named: int | None) -> list[Axes]:
    sizes = list(value.shape or ())
    open_ = [axis for axis, n in enumerate(sizes) if not isinstance(n, int)]
    if len(sizes) < 2 or (len(sizes) == 2 and 1 not in open_ and value.dtype is ir.DataType.FLOAT):
        raise NotStreamableError(
            f"input {value.name!r} of shape {_text(sizes)} has no time; a stream takes samples over time alone, and "
            "nothing once at its start: build the value into the model, or give it at every step, (batch, time, ...), "
            "and take its first one in the model"
        )
    if named is not None and not -len(sizes) <= named < len(sizes):
        raise ConfigError(f"time_axis: input {value.name!r} of shape {_text(sizes)} has no axis {named}")
    wanted = range(1, len(sizes)) if named is None else [named % len(sizes)]
    later = [axis for axis in wanted if axis in open_]
    if not later:
        raise NotStreamableError(
            f"the model takes sequences of exactly {sizes[wanted[0]]} steps; build it with "
            "keras.Input((None, n_channels)) and without what depends on the length, or export it from PyTorch with a "
            "dynamic time axis (dynamic_shapes, dynamic_axes)"
        )
    if named is not None:
        return [_axes(later[0])]
    if later == [1] and 0 in open_:
        return [_axes(0), _axes(1)] if _names_time_first(sizes) else [_axes(1), _axes(0)]
    return [_axes(axis) for axis in later]


def _axes(time: int) -> Axes:
    return Axes(batch=1 if time == 0 else 0, time=time)


def _names_time_first(sizes: Sequence[object]) -> bool:
    return bool(_TIME.search(_name(sizes[0])) and not _TIME.search(_name(sizes[1])))


def _name(size: object) -> str:
    return str(getattr(size, "value", None) or "")


def _text(sizes: Sequence[object]) -> str:
    return "[" + ", ".join(str(n) if isinstance(n, int) else _name(n) or "?" for n in sizes) + "]"


def names_settle(graph: ir.Graph, reading: Reading) -> bool:
    """Whether the names of the inputs' sizes say batch where the reading has the batch, or time where it has time."""
    for value in graph.inputs:
        axes, sizes = reading[str(value.name)], list(value.shape or ())
        assert axes.time is not None
        if not (_BATCH.search(_name(sizes[axes.batch])) or _TIME.search(_name(sizes[axes.time]))):
            return False
    return True


def described(found: Sequence[Reading]) -> str:
    """The readings, for a message.

    Example:
        >>> described([{"x": Axes(0, 1)}, {"x": Axes(1, 0)}])
        "time_axis={'x': 1} or time_axis={'x': 0}"
    """
    return " or ".join(f"time_axis={ {name: axes.time for name, axes in reading.items()} }" for reading in found)


def arranged(offline: ir.Model, reading: Reading, length_modulo: tuple[int, int] | None = None) -> ir.Model:
    """A copy of the offline graph whose inputs are (batch, time, rest), in the words of the streaming rules.

    What only the rules know of stands in it for masks; ``cleaned`` is the graph before, which ONNX Runtime runs.
    """
    model = cleaned(offline, reading, length_modulo)
    mark_filled(model)
    hold_masked_steps(model)
    return model


def cleaned(offline: ir.Model, reading: Reading, length_modulo: tuple[int, int] | None = None) -> ir.Model:
    """A copy of the offline graph whose inputs are (batch, time, rest), cleaned up, with its sizes settled.

    Names and sizes of tensors inside the graph, and of its outputs, are derived anew: those in the file may be wrong.
    """
    model = _newer(offline) if offline.graph.opset_imports.get("", 0) < _OLDEST else offline
    model = ir.from_proto(ir.to_proto(model))
    graph = model.graph
    passes.InlinePass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.NameFixPass()(model)
    for node in graph:
        if node.attributes.get_string("auto_pad", "") == "NOTSET":
            del node.attributes["auto_pad"]  # the default, which the clean-up's rules would have to know of
        if node.op_type in ("SplitToSequence", "SequenceAt", "ConcatFromSequence"):
            raise refuse(
                node,
                "it takes the sequence apart step by step, as an unrolled loop does",
                "export with torch.onnx.export(dynamo=False), which keeps a recurrent layer whole",
            )
    for value in [*graph.outputs, *(value for node in graph for value in node.outputs)]:
        value.shape = None
    for index, value in enumerate(graph.inputs):
        _turn(graph, index, reading[str(value.name)])
    settle_sizes(model, length_modulo)
    while _take_known_branch(graph):
        passes.NameFixPass()(model)
        settle_sizes(model, length_modulo)
    clean_up(model)
    return model


def _take_known_branch(graph: ir.Graph) -> bool:
    """Put the branch of an If whose condition is known (Squeeze of an axis, by the older exporter) in its place."""
    for node in graph:
        known = constant(node.inputs[0]) if node.op_type == "If" else None
        if known is None:
            continue
        branch = node.attributes["then_branch" if known.item() else "else_branch"].as_graph()
        outputs, nodes, constants = list(branch.outputs), list(branch), list(branch.initializers.values())
        branch.outputs.clear()
        branch.remove(nodes)
        branch.initializers.clear()
        graph.insert_before(node, nodes)
        for number, value in enumerate(constants):
            value.name = f"{node.name}_{number}_{value.name}"
            graph.register_initializer(value)
        for old, new in zip(node.outputs, outputs, strict=True):
            new.shape = None
            replace(old, new)
        graph.remove(node, safe=True)
        return True
    return False


def _turn(graph: ir.Graph, index: int, axes: Axes) -> None:
    """Let an input be (batch, time, rest), and turn it to what the graph expects."""
    old = graph.inputs[index]
    sizes = list(old.shape or ())
    assert axes.time is not None
    order = [axes.batch, axes.time, *(axis for axis in range(len(sizes)) if axis not in (axes.batch, axes.time))]
    named = [
        sizes[axis] if isinstance(sizes[axis], int) else name
        for axis, name in zip(order, ("batch", "time"), strict=False)
    ]
    rest = [sizes[axis] for axis in order[2:]]
    if order == sorted(order):
        old.shape = ir.Shape([*named, *rest])
        return
    new = ir.val(old.name, type=old.type, shape=ir.Shape([*named, *rest]))
    old.name = f"{old.name}_offline"
    back = ir.node("Transpose", [new], attributes={"perm": [order.index(axis) for axis in range(len(sizes))]})
    back.outputs[0].type = old.type
    ir.convenience.replace_all_uses_with(old, back.outputs[0], replace_graph_outputs=True)
    graph.inputs[index] = new
    graph.insert_before(graph[0], back)


def _newer(model: ir.Model) -> ir.Model:
    """The model in an opset in which axes are inputs."""
    old = model.graph.opset_imports.get("", 0)
    try:
        return ir.from_proto(version_converter.convert_version(ir.to_proto(model), _OLDEST))
    except Exception as error:  # the converter raises what it likes
        raise NotStreamableError(
            f"the model is of opset {old}, and onnx cannot convert it to opset {_OLDEST} ({error}); "
            f"export it with opset_version={_OLDEST}"
        ) from error
