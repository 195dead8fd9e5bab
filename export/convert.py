"""From a Keras model to an ONNX graph: lower, trace, freeze, convert with tf2onnx, clean up.

Owns the one way in which this project calls TensorFlow and tf2onnx. Refuses models with several inputs or outputs and
Keras backends other than TensorFlow. Nothing is placed on a GPU: lowered recurrent layers never reach cuDNN.
Invariant: the graph has one input ``input`` (batch, time[, C]) and one output ``output``, both with dynamic batch and
time, and uses standard ONNX operators only.
"""

from __future__ import annotations

import itertools
import logging
import re
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

from edgeseq.errors import ExportError
from edgeseq.export import layer_rules  # noqa: F401  registers the rules
from edgeseq.export.cleanup import clean_up
from edgeseq.export.lowering import lowered
from edgeseq.export.native import LoweredLayer, NativeOps

OPSET = 18
INPUT, OUTPUT = "input", "output"

# Of tf2onnx' own; what they leave is done by edgeseq.export.cleanup.
_OPTIMIZERS = {
    "fold_constants": ConstFoldOptimizer,
    "loop_optimizer": LoopOptimizer,
    "reshape_optimizer": ReshapeOptimizer,
    "remove_back_to_back": BackToBackOptimizer,
}


@dataclass(frozen=True)
class Converted:
    """A clean ONNX graph, which layers were lowered for it, and how many nodes tf2onnx had made."""

    model: ir.Model
    lowered: tuple[LoweredLayer, ...]
    n_nodes_before: int


def to_onnx(model: Any) -> Converted:
    """Convert a built Keras model to a clean ONNX graph.

    Shapes: the model takes (B, T, C) or tokens (B, T), and gives (B, T, K) or (B, K).

    Raises:
        ExportError: the model cannot be converted right; the message says why and what to do.
    """
    shape, dtype = _signature(model)
    output_shape = _output_shape(model)
    with lowered() as native, _quiet(), tf.device("/cpu:0"):
        traced = tf.function(lambda x: model(x, training=False), autograph=False)
        concrete = traced.get_concrete_function(tf.TensorSpec(shape, dtype, name=INPUT))
        frozen = convert_variables_to_constants_v2(concrete, lower_control_flow=False, aggressive_inlining=True)
        graph_def = frozen.graph.as_graph_def(add_shapes=True)
        graph_model: ir.Model = ir.from_proto(_tf2onnx(graph_def, _output_tensor(model, concrete).name, native))
    _name_ports(graph_model, list(shape), output_shape)
    n_nodes = len(list(graph_model.graph))
    clean_up(graph_model)
    _refuse_foreign_operators(graph_model)
    _name_by_order(graph_model.graph)
    return Converted(graph_model, tuple(native.lowered), n_nodes)


def _tf2onnx(graph_def: Any, output: str, native: NativeOps) -> Any:
    # Not tf2onnx.convert.from_function: it takes tensors that a layer captured (a mean to subtract) for inputs, goes
    # on after errors, and its transpose optimizer makes a Reshape of a Transpose over an axis of one channel.
    ports = {"input_names": [f"{INPUT}:0"], "output_names": [output]}
    with tf.Graph().as_default():
        tf.import_graph_def(graph_def, name="")
        graph_def = tf_loader.tf_optimize(*ports.values(), graph_def)
    with tf.Graph().as_default() as graph:
        tf.import_graph_def(graph_def, name="")
        onnx_graph = process_tf_graph(graph, opset=OPSET, custom_op_handlers=native.handlers(), **ports)
    onnx_graph = optimizer.optimize_graph(onnx_graph, catch_errors=False, optimizers=_OPTIMIZERS)
    return onnx_graph.make_model("offline", graph_name="offline")


def _signature(model: Any) -> tuple[tuple[int | None, ...], Any]:
    if keras.backend.backend() != "tensorflow":
        raise ExportError(
            f"Keras runs on {keras.backend.backend()!r}: the conversion needs TensorFlow. Save the model and export it "
            "with KERAS_BACKEND=tensorflow (edgeseq export MODEL.keras -o DIR)"
        )
    if not isinstance(model, keras.Model):
        raise ExportError(
            f"expected a keras.Model, got {type(model).__name__}; wrap a layer as keras.Model(inputs, outputs)"
        )
    inputs, outputs = getattr(model, "inputs", None), getattr(model, "outputs", None)
    if not inputs or not outputs:
        raise ExportError(
            f"model {model.name!r} has no known input shape: build it as a functional model, or call it once on a "
            "keras.Input((None, n_channels))"
        )
    if len(inputs) != 1 or len(outputs) != 1:
        raise ExportError(
            f"model {model.name!r}: expected one input and one output, got {len(inputs)} and {len(outputs)}; "
            "export one keras.Model per output"
        )
    shape, dtype = tuple(inputs[0].shape), keras.backend.standardize_dtype(inputs[0].dtype)
    tokens = len(shape) == 2 and dtype in ("int32", "int64")
    sensor = len(shape) == 3 and shape[2] is not None and dtype == "float32"
    if not (tokens or sensor):
        raise ExportError(
            f"model {model.name!r}: expected input (batch, time, channels) float32 with known channels, or tokens "
            f'(batch, time) int32 or int64, got {shape} {dtype}; tokens need keras.Input((None,), dtype="int32")'
        )
    if shape[1] is not None:
        raise ExportError(
            f"model {model.name!r}: expected any length, got an input of {shape[1]} steps; build it with "
            "keras.Input((None, n_channels)) and copy the weights with set_weights"
        )
    return (None, None, *shape[2:]), tf.as_dtype(dtype)


def _output_tensor(model: Any, concrete: Any) -> Any:
    if len(concrete.outputs) != 1:
        raise ExportError(f"model {model.name!r}: expected one output tensor, got {len(concrete.outputs)}")
    return concrete.outputs[0]


def _output_shape(model: Any) -> list[int | None]:
    shape = tuple(model.outputs[0].shape)
    if len(shape) not in (2, 3) or shape[-1] is None:
        raise ExportError(
            f"model {model.name!r}: expected output (batch, time, K) or (batch, K) with known K, got {shape}; "
            "end it in a Dense or a Reshape to one of these"
        )
    return [None, *([None] if len(shape) == 3 else []), shape[-1]]


@contextmanager
def _quiet() -> Iterator[None]:
    # tf2onnx warns that it cannot infer the shape of each marker (it is given one node later) and that the TensorFlow
    # function it freezes graphs with is old. Its errors are raised by _refuse_foreign_operators.
    loggers = [logging.getLogger(name) for name in ("tf2onnx", "tensorflow")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _name_ports(model: ir.Model, in_shape: list[int | None], out_shape: list[int | None]) -> None:
    graph = model.graph
    if len(graph.inputs) != 1 or len(graph.outputs) != 1:
        raise ExportError(f"conversion gave inputs {[v.name for v in graph.inputs]}; please report this model")
    taken = {value.name for node in graph for value in node.outputs} | set(graph.initializers)
    for value, name, shape in ((graph.inputs[0], INPUT, in_shape), (graph.outputs[0], OUTPUT, out_shape)):
        if value.name != name and name in taken:
            raise ExportError(
                f"a layer is named {name!r}, which the exported file needs for its port; rename the layer"
            )
        value.name = name
        dynamic = iter(("batch", "time"))
        value.shape = ir.Shape([next(dynamic) if n is None else n for n in shape])


def _name_by_order(graph: ir.Graph) -> None:
    """Give values and nodes names that depend on the model alone, not on how many were converted before it."""
    taken = {INPUT, OUTPUT}

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
