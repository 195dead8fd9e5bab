"""Lowering: how Keras layers that convert wrongly, or badly, are traced instead.

``RULES`` maps a Keras layer class to a rule: a function that stands in for the layer's ``call`` while a model is traced
for export. Rules replace the call of the *class* for the time of the trace, so they reach a layer wherever it stands:
in nested models, wrappers, and inside layers that users wrote. The user's model is not copied and not changed. A rule
that does not apply returns ``NotImplemented`` and the layer traces as Keras wrote it.

Invariant: a lowered call computes what the layer computes at inference, in float32, for any batch and any length; the
exporter checks that on numbers before it writes a file.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from edgeseq.errors import ExportError, UnsupportedLayerError
from edgeseq.export import rnn
from edgeseq.export.native import Emitter, NativeOps, weight

Rule = Callable[..., Any]
RULES: dict[type[keras.layers.Layer], Rule] = {}

_tracing = threading.Lock()


def lowers(*classes: type[keras.layers.Layer]) -> Callable[[Rule], Rule]:
    """Register the decorated function as the lowering of these layer classes."""

    def register(rule: Rule) -> Rule:
        for layer_class in classes:
            RULES[layer_class] = rule
        return rule

    return register


@contextmanager
def lowered() -> Iterator[NativeOps]:
    """While open, registered layers trace by their rules. Yields the markers that the trace collects.

    Raises:
        ExportError: another thread is tracing a model for export in this process.
    """
    if not _tracing.acquire(blocking=False):
        raise ExportError("another export runs in this process; export one model at a time, or use two processes")
    native = NativeOps()
    filtering = keras.config.is_traceback_filtering_enabled()
    keras.config.disable_traceback_filtering()  # it wraps our errors in a page about the layer's arguments
    inherited = {layer_class for layer_class in RULES if "call" not in vars(layer_class)}
    originals = {layer_class: layer_class.call for layer_class in RULES}
    try:
        for layer_class, rule in RULES.items():
            layer_class.call = _stand_in(originals[layer_class], rule, native)
        yield native
    finally:
        for layer_class, original in originals.items():
            if layer_class in inherited:
                del layer_class.call
            else:
                layer_class.call = original
        if filtering:
            keras.config.enable_traceback_filtering()
        _tracing.release()


def _stand_in(original: Callable[..., Any], rule: Rule, native: NativeOps) -> Callable[..., Any]:
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
        result = rule(native, layer, *args, **kwargs)
        return original(layer, *args, **kwargs) if result is NotImplemented else result

    return call


@lowers(keras.layers.Dense)
def _dense(_native: NativeOps, layer: Any, inputs: Any, training: Any = None) -> Any:  # noqa: ARG001
    # Keras reshapes by dynamic shapes around a matrix product; a broadcasting product is one MatMul.
    if getattr(layer, "quantization_mode", None) is not None:
        return NotImplemented
    y = tf.matmul(inputs, tf.constant(weight(layer, "kernel")))
    if layer.bias is not None:
        y = y + tf.constant(weight(layer, "bias"))
    return y if layer.activation is None else layer.activation(y)


@lowers(keras.layers.TimeDistributed)
def _time_distributed(_native: NativeOps, layer: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:  # noqa: ARG001
    # With unknown batch and time Keras maps over the batch size and returns (B, B, K) without a word.
    inner = layer.layer
    if isinstance(inner, (keras.layers.Dense, keras.layers.Activation)):
        return inner(inputs)
    shape = tf.shape(inputs)
    merged = tf.reshape(inputs, tf.concat([[-1], shape[2:]], axis=0))
    merged = tf.ensure_shape(merged, [None, *inputs.shape[2:]])
    y = inner(merged)
    split = tf.reshape(y, tf.concat([shape[:2], tf.shape(y)[1:]], axis=0))
    return tf.ensure_shape(split, [*inputs.shape[:2], *y.shape[1:]])


@lowers(keras.layers.Embedding)
def _embedding(_native: NativeOps, layer: Any, inputs: Any) -> Any:
    # Keras wraps negative tokens by arithmetic on every token; a Gather of TensorFlow and of ONNX is one operator.
    if getattr(layer, "quantization_mode", None) is not None:
        return NotImplemented
    return tf.gather(tf.constant(weight(layer, "embeddings")), inputs)


@lowers(keras.layers.LayerNormalization)
def _layer_normalization(native: NativeOps, layer: Any, inputs: Any) -> Any:
    rank = len(inputs.shape)
    if list(np.atleast_1d(layer.axis) % rank) != [rank - 1] or getattr(layer, "rms_scaling", False):
        return NotImplemented
    width = inputs.shape[-1]
    scale = weight(layer, "gamma") if layer.scale else np.ones(width, np.float32)
    shift = weight(layer, "beta") if layer.center else np.zeros(width, np.float32)

    def emit(onnx: Emitter, names: list[str]) -> list[str]:
        constants = onnx.constant(scale), onnx.constant(shift)
        return [onnx.op("LayerNormalization", names[0], *constants, axis=-1, epsilon=layer.epsilon)]

    (y,) = native.add([inputs], [inputs.shape], emit)
    return y


@lowers(keras.layers.BatchNormalization)
def _batch_normalization(_native: NativeOps, layer: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:  # noqa: ARG001
    # At inference an affine map per channel: two operators whose constants the graph clean-up can fold away.
    if layer.axis not in (-1, len(inputs.shape) - 1):
        return NotImplemented
    mean, variance = weight(layer, "moving_mean"), weight(layer, "moving_variance")
    scale = 1.0 / np.sqrt(variance.astype(np.float64) + layer.epsilon)
    scale = scale * weight(layer, "gamma") if layer.scale else scale
    shift = -mean * scale + (weight(layer, "beta") if layer.center else 0.0)
    return inputs * tf.constant(scale.astype(np.float32)) + tf.constant(shift.astype(np.float32))


@lowers(keras.layers.Conv1D)
def _conv1d(native: NativeOps, layer: Any, inputs: Any) -> Any:
    # TensorFlow goes through a 2-D convolution, SpaceToBatch for some dilations, and has no groups on a CPU.
    kernel = weight(layer, "kernel").transpose(2, 1, 0)
    bias = weight(layer, "bias") if layer.use_bias else np.zeros(layer.filters, np.float32)
    attributes: dict[str, Any] = {
        "kernel_shape": [layer.kernel_size[0]],
        "strides": [layer.strides[0]],
        "dilations": [layer.dilation_rate[0]],
        "group": layer.groups,
        **_padding(layer),
    }
    channels_last = layer.data_format == "channels_last"

    def emit(onnx: Emitter, names: list[str]) -> list[str]:
        x = onnx.op("Transpose", names[0], perm=[0, 2, 1]) if channels_last else names[0]
        y = onnx.op("Conv", x, onnx.constant(kernel), onnx.constant(bias), **attributes)
        return [onnx.op("Transpose", y, perm=[0, 2, 1]) if channels_last else y]

    shape = layer.compute_output_shape(tuple(inputs.shape))
    (y,) = native.add([inputs], [shape], emit)
    return y if layer.activation is None else layer.activation(y)


def _padding(layer: Any) -> dict[str, Any]:
    reach = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
    if layer.padding == "causal":
        return {"pads": [reach, 0]}
    if layer.padding == "same" and layer.strides[0] == 1:
        return {"pads": [reach // 2, reach - reach // 2]}
    if layer.padding == "same":
        return {"auto_pad": "SAME_UPPER"}  # how much depends on the length, as in TensorFlow
    return {"pads": [0, 0]}


@lowers(keras.layers.LSTM, keras.layers.GRU, keras.layers.SimpleRNN)
def _recurrent(  # noqa: PLR0917  Keras' own signature
    native: NativeOps,
    layer: Any,
    sequences: Any,
    initial_state: Any = None,
    mask: Any = None,
    training: Any = None,  # noqa: ARG001
) -> Any:
    if layer.stateful:
        raise UnsupportedLayerError(
            f"layer {layer.name!r}: stateful=True keeps its state inside the layer, and a file has none; "
            "export with stateful=False and let the stream carry the state"
        )
    return rnn.one_direction(native, layer, sequences, initial_state, mask)


@lowers(keras.layers.Bidirectional)
def _bidirectional(  # noqa: PLR0917  Keras' own signature
    native: NativeOps,
    layer: Any,
    sequences: Any,
    initial_state: Any = None,
    mask: Any = None,
    training: Any = None,  # noqa: ARG001
) -> Any:
    return rnn.both_directions(native, layer, sequences, initial_state, mask)
