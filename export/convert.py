"""From a Keras model to an ONNX graph: lower, trace, freeze, convert with tf2onnx, clean up.

Owns the one way in which this project calls TensorFlow and tf2onnx. Refuses Keras backends other than TensorFlow.
Nothing is placed on a GPU: lowered recurrent layers never reach cuDNN. Invariant: the graph has the ports of the
model's ``Signature``, batch first and of any size, and uses standard ONNX operators only.
"""

from __future__ import annotations

import itertools
import logging
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import onnx
import onnx_ir as ir
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tf2onnx import optimizer, tf_loader
from tf2onnx.optimizer.back_to_back_optimizer import BackToBackOptimizer
from tf2onnx.optimizer.const_fold_optimizer import ConstFoldOptimizer
from tf2onnx.optimizer.loop_optimizer import LoopOptimizer
from tf2onnx.optimizer.reshape_optimizer import ReshapeOptimizer
from tf2onnx.tfonnx import process_tf_graph

from edgeseq.errors import EdgeseqError, ExportError
from edgeseq.export.graph.cleanup import clean_up
from edgeseq.export.lowering import layer_rules  # noqa: F401  registers the rules
from edgeseq.export.lowering.native import LoweredLayer, NativeOps
from edgeseq.export.lowering.registry import lowered
from edgeseq.export.reasons import reason
from edgeseq.export.signature import Signature, signature, structure

OPSET = 18

_PLACEHOLDER = "edgeseq_port_"

# Of tf2onnx' own; what they leave is done by edgeseq.export.graph.cleanup.
_OPTIMIZERS = {
    "fold_constants": ConstFoldOptimizer,
    "loop_optimizer": LoopOptimizer,
    "reshape_optimizer": ReshapeOptimizer,
    "remove_back_to_back": BackToBackOptimizer,
}


@dataclass(frozen=True)
class Converted:
    """A clean ONNX graph, its ports, which layers were lowered for it, and how many nodes tf2onnx had made."""

    model: ir.Model
    ports: Signature
    lowered: tuple[LoweredLayer, ...]
    n_nodes_before: int

    def proto(self) -> onnx.ModelProto:
        """The graph as the onnx package holds it."""
        return ir.to_proto(self.model)


def to_onnx(model: Any) -> Converted:
    """Convert a built Keras model to a clean ONNX graph.

    Shapes: see ``edgeseq.export.signature``.

    Raises:
        ExportError: the model cannot be converted right; the message says why and what to do.
    """
    if keras.backend.backend() != "tensorflow":
        raise ExportError(
            f"Keras runs on {keras.backend.backend()!r}: the conversion needs TensorFlow. Save the model and export it "
            "with KERAS_BACKEND=tensorflow (edgeseq export MODEL.keras -o DIR)"
        )
    ports = signature(model)
    with lowered() as native, _quiet(), tf.device("/cpu:0"), _explained(model):
        concrete = _trace(model, ports)
        frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False, aggressive_inlining=True)
        names = [f"{_PLACEHOLDER}{i}:0" for i in range(len(ports.inputs))], [t.name for t in concrete.outputs]
        graph_model: ir.Model = ir.from_proto(_tf2onnx(frozen.graph.as_graph_def(add_shapes=True), *names, native))
    _set_ports(graph_model, ports)
    n_nodes = len(list(graph_model.graph))
    with _quiet():
        clean_up(graph_model)
    _part_outputs(graph_model.graph, ports)
    _refuse_foreign_operators(graph_model)
    _name_by_order(graph_model.graph)
    return Converted(graph_model, ports, tuple(native.lowered), n_nodes)


def _trace(model: Any, ports: Signature) -> Any:
    arranged, _ = structure(model)

    def run(*inputs: Any) -> list[Any]:
        y: list[Any] = keras.tree.flatten(model(keras.tree.pack_sequence_as(arranged, inputs), training=False))
        return y

    specs = [
        tf.TensorSpec((None, *port.array_shape), tf.as_dtype(port.dtype), name=f"{_PLACEHOLDER}{i}")
        for i, port in enumerate(ports.inputs)
    ]
    concrete = tf.function(run, autograph=False).get_concrete_function(*specs)
    if len(concrete.outputs) != len(ports.outputs):
        raise ExportError(
            f"model {model.name!r}: expected {len(ports.outputs)} output tensors, got {len(concrete.outputs)}"
        )
    for port, tensor in zip(ports.outputs, concrete.outputs, strict=True):
        if tensor.dtype.name != port.dtype:
            raise ExportError(
                f"model {model.name!r}, output {port.name!r}: Keras says {port.dtype}, it computes "
                f'{tensor.dtype.name}; cast it with keras.ops.cast(y, "float32")'
            )
        if not _fits((None, *port.array_shape), tensor.shape):
            raise ExportError(
                f"model {model.name!r}, output {port.name!r}: Keras says {(None, *port.array_shape)}, it computes "
                f"{tuple(tensor.shape)}; correct compute_output_shape, or use a layer instead of an activation that "
                "changes the shape"
            )
    return concrete


def _fits(told: tuple[int | None, ...], computed: Any) -> bool:
    if computed.rank is None:
        return True
    return computed.rank == len(told) and all(
        a is None or b is None or a == b for a, b in zip(told, computed, strict=True)
    )


def _tf2onnx(graph_def: Any, inputs: list[str], outputs: list[str], native: NativeOps) -> Any:
    # Not tf2onnx.convert.from_function: it takes tensors that a layer captured (a mean to subtract) for inputs, goes
    # on after errors, and its transpose optimizer makes a Reshape of a Transpose over an axis of one channel.
    with tf.Graph().as_default():
        tf.import_graph_def(graph_def, name="")
        graph_def = tf_loader.tf_optimize(inputs, outputs, graph_def)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        onnx_graph = process_tf_graph(
            graph, opset=OPSET, custom_op_handlers=native.handlers(), input_names=inputs, output_names=outputs
        )
    onnx_graph = optimizer.optimize_graph(onnx_graph, catch_errors=False, optimizers=_OPTIMIZERS)
    return onnx_graph.make_model("offline", graph_name="offline")


@contextmanager
def _explained(model: Any) -> Iterator[None]:
    """Whatever TensorFlow, Keras or tf2onnx raise becomes an ``ExportError`` that names the layer."""
    try:
        yield
    except EdgeseqError:
        raise
    except Exception as error:
        frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
        layers = [frame.f_locals[name] for frame in frames for name in ("self", "layer") if name in frame.f_locals]
        named = [layer.name for layer in layers if isinstance(layer, keras.layers.Layer) and layer is not model]
        where = f"layer {named[-1]!r}" if named else f"model {model.name!r}"
        raise ExportError(
            f"{where}: the conversion failed with {type(error).__name__}: {reason(error)}; give the layer a lowering "
            "with edgeseq.export.register_lowering, or use another layer"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    # tf2onnx warns that it cannot infer the shape of each marker (it is given one node later) and that the TensorFlow
    # function it freezes graphs with is old. Its errors are raised by _refuse_foreign_operators. onnx_ir tells of every
    # pass of the clean-up.
    loggers = [logging.getLogger(name) for name in ("tf2onnx", "tensorflow", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _set_ports(model: ir.Model, ports: Signature) -> None:
    graph = model.graph
    by_name = {value.name: value for value in graph.inputs}
    graph.inputs[:] = [by_name[f"{_PLACEHOLDER}{i}:0"] for i in range(len(ports.inputs))]
    taken = {value.name for node in graph for value in node.outputs} | set(graph.initializers)
    one_time = sum(port.has_time for port in ports.inputs) == 1
    for value, port in zip((*graph.inputs, *graph.outputs), (*ports.inputs, *ports.outputs), strict=True):
        if value.name != port.name and port.name in taken:
            raise ExportError(
                f"a layer is named {port.name!r}, which the exported file needs for its port; rename the layer"
            )
        value.name = port.name
        time = "time" if one_time and port in ports.inputs else f"{port.name}_time"  # a stride changes it
        value.shape = ir.Shape(["batch", *(time if n is None else n for n in port.array_shape)])


def _part_outputs(graph: ir.Graph, ports: Signature) -> None:
    """Two outputs of equal value became one tensor; each gets its own again."""
    for i, port in enumerate(ports.outputs):
        merged = graph.outputs[i]
        if merged.name != port.name:
            node = ir.node("Identity", [merged])
            graph.append(node)
            node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = port.name, merged.type, merged.shape
            graph.outputs[i] = node.outputs[0]


def _name_by_order(graph: ir.Graph) -> None:
    """Give values and nodes names that depend on the model alone, not on how many were converted before it."""
    taken = {value.name for value in (*graph.inputs, *graph.outputs)}

    def fresh(name: str | None, otherwise: str) -> str:
        base = re.sub(r"(__\d+)+(?=$|/|:)|:\d+$", "", name or "") or otherwise
        candidates = (f"{base}_{i}" if i else base for i in itertools.count())
        chosen = next(c for c in candidates if c not in taken)
        taken.add(chosen)
        return chosen

    for node in graph:
        for value in node.inputs:
            if value is not None and value.is_initializer() and value.name not in taken:
                value.name = fresh(value.name, "constant")
        node.name = fresh(node.name, node.op_type)
        for value in node.outputs:
            if not value.is_graph_output():
                value.name = fresh(node.name, node.op_type)


def _refuse_foreign_operators(model: ir.Model) -> None:
    # tf2onnx logs what it cannot convert, leaves it in, and returns.
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        if not onnx.defs.has(node.op_type, node.domain):
            raise ExportError(
                f"node {node.name!r}: {node.op_type} is no ONNX operator; tf2onnx cannot convert this TensorFlow "
                "operation. Give its layer a lowering with edgeseq.export.register_lowering, or use another layer"
            )
