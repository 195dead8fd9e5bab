"""Native ONNX operators inside a TensorFlow trace.

tf2onnx converts what TensorFlow traced, and TensorFlow has no operator for "an LSTM over a sequence of any length" or
"a grouped, dilated, causal 1-D convolution": it has loops and reshapes that tf2onnx must recognise again, which is
where silent errors come from. ``native_op`` puts a marker into the trace instead (a ``tf.numpy_function`` that is never
run) and remembers how to write the ONNX nodes that take its place; ``handlers`` gives tf2onnx the translation.

Invariant: a marker is translated by the emitter that it was created with, or the conversion raises.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import tensorflow as tf
from onnx import TensorProto
from tf2onnx import utils

from edgeseq.errors import ExportError

_MARKER = "edgeseq_native_"

Shape = Sequence[int | None]


class Emitter:
    """Writes ONNX nodes into the graph that tf2onnx is building, named after the layer that they stand for."""

    def __init__(self, graph: Any, scope: str) -> None:
        self._graph = graph
        self._scope = scope

    def op(self, op_type: str, *inputs: str, **attributes: Any) -> str:
        """Add a node with one output and return the output's name."""
        return self.ops(op_type, 1, *inputs, **attributes)[0]

    def ops(self, op_type: str, n_outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """Add a node with several outputs and return their names. An input "" is an optional one left out."""
        name = utils.make_name(f"{self._scope}/{op_type}")
        node = self._graph.make_node(op_type, list(inputs), attr=attributes, output_count=n_outputs, name=name)
        return list(node.output)

    def constant(self, value: np.ndarray[Any, Any]) -> str:
        """Add an initializer and return its name."""
        name = utils.make_name(f"{self._scope}/constant")
        return str(self._graph.make_const(name, np.ascontiguousarray(value)).output[0])

    def integers(self, *values: int) -> str:
        """Add an initializer of 64-bit integers, as ONNX takes axes and shapes, and return its name."""
        return self.constant(np.array(values, np.int64))

    def shape(self, name: str) -> list[int] | None:
        """The static shape of a value, -1 for an axis of any size; None if not even its rank is known."""
        shape: list[int] | None = self._graph.get_shape(name)
        return shape

    def is_boolean(self, name: str) -> bool:
        """Whether a value is true or false."""
        return bool(self._graph.get_dtype(name) == TensorProto.BOOL)


Emit = Callable[[Emitter, list[str]], list[str]]


@dataclass(frozen=True)
class LoweredLayer:
    """One layer that was not traced as Keras wrote it: its path in the model, its class, and why."""

    layer: str
    kind: str
    why: str


@dataclass
class NativeOps:
    """The markers of one conversion and how each becomes ONNX, and which layers were lowered."""

    lowered: list[LoweredLayer] = field(default_factory=list)
    _emits: list[Emit] = field(default_factory=list)

    def note_lowered(self, layer: str, kind: str, why: str) -> None:
        """Remember for the report that a layer was lowered; one that is called twice is told once."""
        note = LoweredLayer(layer, kind, why)
        if note not in self.lowered:
            self.lowered.append(note)

    def add(
        self, inputs: Sequence[Any], shapes: Sequence[Shape], emit: Emit, dtypes: Sequence[Any] | None = None
    ) -> list[Any]:
        """Put a marker into the current TensorFlow trace.

        Args:
            inputs: TensorFlow tensors that the ONNX nodes read.
            shapes: the static shape of each output; None for an axis of any size.
            emit: writes the nodes, given the names of the inputs, and returns the names of the outputs.
            dtypes: of the outputs, float32 by default; what only moves data passes on the dtype of its input.

        Returns:
            One TensorFlow tensor for each shape.
        """
        name = f"{_MARKER}{len(self._emits)}"
        self._emits.append(emit)
        types = [tf.float32] * len(shapes) if dtypes is None else list(dtypes)
        outputs = tf.numpy_function(_never_run, list(inputs), types, stateful=False, name=name)
        # ensure_shape, unlike set_shape, survives the freezing of the graph; tf2onnx needs the rank.
        return [tf.ensure_shape(y, list(shape)) for y, shape in zip(as_list(outputs), shapes, strict=True)]

    def handlers(self) -> dict[str, tuple[Callable[..., None], list[str]]]:
        """What tf2onnx wants as ``custom_op_handlers``: for the markers, and for what we translate ourselves."""
        own: dict[str, tuple[Callable[..., None], list[str]]] = {
            op: (partial(_translate_op, emit), []) for op, emit in _OWN_TRANSLATIONS.items()
        }
        return {"PyFunc": (self._translate, []), "PyFuncStateless": (self._translate, []), **own}

    def _translate(self, graph: Any, node: Any, name: str, _args: Any) -> None:
        found = re.search(rf"{_MARKER}(\d+)$", name)
        if found is None:
            raise ExportError(
                f"node {name!r}: a layer calls Python from inside the graph (tf.numpy_function or tf.py_function), "
                "which no ONNX file can hold; write it with keras.ops"
            )
        _replace(graph, node, name[: found.start()].rstrip("/"), self._emits[int(found.group(1))])


def _erfc(onnx: Emitter, inputs: list[str]) -> list[str]:
    return [onnx.op("Sub", onnx.constant(np.array(1, np.float32)), onnx.op("Erf", inputs[0]))]


def _expm1(onnx: Emitter, inputs: list[str]) -> list[str]:
    return [onnx.op("Sub", onnx.op("Exp", inputs[0]), onnx.constant(np.array(1, np.float32)))]


def _where(onnx: Emitter, inputs: list[str]) -> list[str]:
    condition, yes, no = inputs
    if not onnx.is_boolean(yes):
        return [onnx.op("Where", *inputs)]
    otherwise = onnx.op("And", onnx.op("Not", condition), no)  # ONNX Runtime has no Where of booleans
    return [onnx.op("Or", onnx.op("And", condition, yes), otherwise)]


def _reverse(onnx: Emitter, inputs: list[str]) -> list[str]:
    (n_axes,) = onnx.shape(inputs[1]) or [1]
    axes = onnx.op("Cast", inputs[1], to=TensorProto.INT64)
    starts, ends, steps = ([value] * n_axes for value in (-1, np.iinfo(np.int64).min, -1))
    return [onnx.op("Slice", inputs[0], onnx.integers(*starts), onnx.integers(*ends), axes, onnx.integers(*steps))]


# What tf2onnx does not know (of gelu, and of celu), and what it writes otherwise than it should: a choice as a sum of
# products with 0 and 1, which lets NaN and Inf of the side not chosen through, and a reversal as a ReverseSequence.
_OWN_TRANSLATIONS: dict[str, Emit] = {
    "Erfc": _erfc,
    "Expm1": _expm1,
    "SelectV2": _where,
    "ReverseV2": _reverse,
}


def _translate_op(emit: Emit, graph: Any, node: Any, name: str, _args: Any) -> None:
    _replace(graph, node, name, emit)


def _replace(graph: Any, node: Any, scope: str, emit: Emit) -> None:
    old = list(node.output)
    dtypes, shapes = [graph.get_dtype(o) for o in old], [graph.get_shape(o) for o in old]
    new = emit(Emitter(graph, scope), list(node.input))
    graph.remove_node(node.name)
    for was, now, dtype, shape in zip(old, new, dtypes, shapes, strict=True):
        graph.replace_all_inputs(was, now)
        graph.set_dtype(now, dtype)
        if shape is not None:
            graph.set_shape(now, shape)


def as_list(value: Any) -> list[Any]:
    """A list or a tuple as a list, one value as a list of it, and None as an empty one."""
    if value is None:
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _never_run(*_inputs: Any) -> None:
    raise AssertionError("an edgeseq marker was executed; it exists only to be converted")


def weight(layer: Any, name: str) -> np.ndarray[Any, Any]:
    """The value of a layer's weight, also while TensorFlow is tracing, and also where it is computed (LoRA)."""
    with tf.init_scope():
        value: np.ndarray[Any, Any] = tf.convert_to_tensor(getattr(layer, name)).numpy()
        return value
