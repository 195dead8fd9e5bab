"""The lowering rules of Keras' own layers, one small rule for each problem.

A rule takes what the layer's ``call`` takes and returns what ``call`` returns at inference. Recurrent layers are in
``edgeseq.export.rnn``. Importing this module registers the rules.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from edgeseq.errors import UnsupportedLayerError
from edgeseq.export import rnn
from edgeseq.export.lowering import register_lowering
from edgeseq.export.native import Emitter, NativeOps, weight

L = keras.layers


@register_lowering(L.Dense, why="one MatMul, where Keras reshapes by dynamic shapes")
def _dense(_native: NativeOps, layer: Any, inputs: Any, training: Any = None) -> Any:  # noqa: ARG001
    # Keras reshapes by dynamic shapes around a matrix product; a broadcasting product is one MatMul.
    if getattr(layer, "quantization_mode", None) is not None:
        return NotImplemented
    y = tf.matmul(inputs, tf.constant(weight(layer, "kernel")))
    if layer.bias is not None:
        y = y + tf.constant(weight(layer, "bias"))
    return y if layer.activation is None else layer.activation(y)


@register_lowering(L.TimeDistributed, why="right for unknown batch and time, where Keras returns (batch, batch, K)")
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


@register_lowering(L.Embedding, why="one Gather")
def _embedding(_native: NativeOps, layer: Any, inputs: Any) -> Any:
    # Keras wraps negative tokens by arithmetic on every token; a Gather of TensorFlow and of ONNX is one operator.
    if getattr(layer, "quantization_mode", None) is not None:
        return NotImplemented
    return tf.gather(tf.constant(weight(layer, "embeddings")), inputs)


@register_lowering(L.LayerNormalization, why="native LayerNormalization")
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


@register_lowering(L.BatchNormalization, why="a scale and a shift, which fold into a convolution before them")
def _batch_normalization(_native: NativeOps, layer: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:  # noqa: ARG001
    # At inference an affine map per channel: two operators whose constants the graph clean-up can fold away.
    if layer.axis not in (-1, len(inputs.shape) - 1):
        return NotImplemented
    mean, variance = weight(layer, "moving_mean"), weight(layer, "moving_variance")
    scale = 1.0 / np.sqrt(variance.astype(np.float64) + layer.epsilon)
    scale = scale * weight(layer, "gamma") if layer.scale else scale
    shift = -mean * scale + (weight(layer, "beta") if layer.center else 0.0)
    return inputs * tf.constant(scale.astype(np.float32)) + tf.constant(shift.astype(np.float32))


@register_lowering(L.Conv1D, why="native Conv with explicit padding, dilation and groups")
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


@register_lowering(L.LSTM, L.GRU, L.SimpleRNN, why="native recurrent operator, where TensorFlow has a loop")
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


@register_lowering(L.Bidirectional, why="one native bidirectional operator")
def _bidirectional(  # noqa: PLR0917  Keras' own signature
    native: NativeOps,
    layer: Any,
    sequences: Any,
    initial_state: Any = None,
    mask: Any = None,
    training: Any = None,  # noqa: ARG001
) -> Any:
    return rnn.both_directions(native, layer, sequences, initial_state, mask)
