"""Lowering: how Keras layers that convert wrongly, or badly, are traced instead.

``RULES`` maps a Keras layer class to a rule: a function that stands in for the layer's ``call`` while a model is traced
for export. Rules replace the call of the *class* for the time of the trace, so they reach a layer wherever it stands:
in nested models, wrappers, and inside layers that users wrote. The user's model is not copied and not changed. A rule
that does not apply returns ``NotImplemented`` and the layer traces as Keras wrote it. The rules for Keras' own layers
are in ``edgeseq.export.lowering.layer_rules``.

Invariant: a lowered call computes what the layer computes at inference, in float32, for any batch and any length; the
exporter checks that on numbers before it writes a file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

import keras

from edgeseq.errors import ExportError, UnsupportedLayerError
from edgeseq.export.lowering.native import NativeOps

Rule = Callable[..., Any]


@dataclass(frozen=True)
class Lowering:
    """A rule, and why the layer needs it, in a few words for the export's report."""

    rule: Rule
    why: str


RULES: dict[type[keras.layers.Layer], Lowering] = {}

_exporting = threading.RLock()
_tracing = threading.Lock()
_BUSY = "another export runs in this process; export one model at a time, or use two processes"


def register_lowering(*classes: type[keras.layers.Layer], why: str) -> Callable[[Rule], Rule]:
    """Register the decorated function as the lowering of these layer classes, in place of an older one.

    The function is called as ``rule(native, layer, *args, **kwargs)`` with the arguments of the layer's ``call``, on
    TensorFlow tensors, and returns what ``call`` returns at inference, made of TensorFlow or ``keras.ops``, or of ONNX
    operators with ``native.add``; or ``NotImplemented`` to let the layer trace as it is written.

    Args:
        classes: layer classes; subclasses that inherit their ``call`` are lowered too.
        why: what is gained, for the report of the export.

    Example:
        >>> @register_lowering(keras.layers.Identity, why="nothing to compute")
        ... def _identity(native, layer, inputs, mask=None):
        ...     return inputs
        >>> del RULES[keras.layers.Identity]
    """

    def register(rule: Rule) -> Rule:
        for layer_class in classes:
            RULES[layer_class] = Lowering(rule, why)
        return rule

    return register


@contextmanager
def one_export() -> Iterator[None]:
    """Held while one thread exports: what it replaces in Keras' classes is the whole process' own.

    Raises:
        ExportError: another thread exports a model in this process.
    """
    if not _exporting.acquire(blocking=False):
        raise ExportError(_BUSY)
    try:
        yield
    finally:
        _exporting.release()


@contextmanager
def lowered() -> Iterator[NativeOps]:
    """While open, registered layers trace by their rules. Yields the markers that the trace collects.

    Raises:
        ExportError: another thread exports a model in this process, or this one traces one already.
    """
    with one_export():
        if not _tracing.acquire(blocking=False):
            raise ExportError(_BUSY)
        try:
            yield from _replaced()
        finally:
            _tracing.release()


def _replaced() -> Iterator[NativeOps]:
    native = NativeOps()
    filtering = keras.config.is_traceback_filtering_enabled()
    keras.config.disable_traceback_filtering()  # it wraps our errors in a page about the layer's arguments
    inherited = {layer_class for layer_class in RULES if "call" not in vars(layer_class)}
    originals = {layer_class: layer_class.call for layer_class in RULES}
    try:
        for layer_class, lowering in RULES.items():
            layer_class.call = _stand_in(originals[layer_class], lowering, native)
        yield native
    finally:
        for layer_class, original in originals.items():
            if layer_class in inherited:
                del layer_class.call
            else:
                layer_class.call = original
        if filtering:
            keras.config.enable_traceback_filtering()


def _stand_in(original: Callable[..., Any], lowering: Lowering, native: NativeOps) -> Callable[..., Any]:
    tracing_thread = threading.get_ident()

    @wraps(original)
    def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() != tracing_thread:  # a model that another thread runs meanwhile
            return original(layer, *args, **kwargs)
        if layer.compute_dtype != "float32":
            raise UnsupportedLayerError(
                f"layer {layer.name!r}: expected compute dtype float32, got {layer.compute_dtype}; the exported model "
                "is float32. Rebuild the model under keras.config.set_dtype_policy('float32') and copy the weights"
            )
        result = lowering.rule(native, layer, *args, **kwargs)
        if result is NotImplemented:
            return original(layer, *args, **kwargs)
        native.note_lowered(layer.path or layer.name, type(layer).__name__, lowering.why)
        return result

    return call
