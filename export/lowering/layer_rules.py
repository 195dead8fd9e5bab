"""The lowering rules of Keras' own layers, one small rule for each problem.

A rule takes what the layer's ``call`` takes and returns what ``call`` returns at inference. What slides along time
is in ``conv_rules``, how recurrent layers are written in ``rnn``. Importing this module registers all of them.
"""

from __future__ import annotations

import inspect
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from onnx import TensorProto, helper

from edgeseq.errors import UnsupportedLayerError
from edgeseq.export.lowering import conv_rules, rnn  # noqa: F401  conv_rules registers its rules
from edgeseq.export.lowering.native import Emitter, NativeOps, weight
from edgeseq.export.lowering.registry import register_lowering

L = keras.layers


@register_lowering(L.Dense, why="one MatMul, where Keras reshapes by dynamic shapes")
def _dense(_native: NativeOps, layer: Any, inputs: Any, training: Any = None) -> Any:  # noqa: ARG001
    # Keras reshapes by dynamic shapes around a matrix product; a broadcasting product is one MatMul.
    if getattr(layer, "quantization_mode", None) is not None:
        return NotImplemented
    y = tf.matmul(_floats(inputs), tf.constant(weight(layer, "kernel")))
    if layer.bias is not None:
        y = y + tf.constant(weight(layer, "bias"))
    return y if layer.activation is None else layer.activation(y)


def _floats(x: Any) -> Any:
    return tf.cast(x, tf.float32)  # integers, which Keras multiplies by float32 weights all the same


@register_lowering(L.TimeDistributed, why="right for unknown batch and time, where Keras returns (batch, batch, K)")
def _time_distributed(native: NativeOps, layer: Any, inputs: Any, training: Any = None, mask: Any = None) -> Any:  # noqa: ARG001
    # With unknown batch and time Keras maps over the batch size and returns (B, B, K) without a word. At each step it
    # hands the mask's part of that step, mask[:, i], to an inner layer that takes one.
    inner = layer.layer
    mask = mask if inner._call_has_mask_arg else None
    if mask is None and _acts_on_last_axis(inner):
        return inner(inputs)
    if mask is not None and isinstance(inner, L.Softmax):
        _refuse_mask_of_lower_rank(layer, inputs, mask)
    merged = _merge_time(native, inputs)
    y = inner(merged) if mask is None else inner(merged, mask=_merge_time(native, mask))

    def split(onnx: Emitter, names: list[str]) -> list[str]:
        leading = onnx.op("Shape", names[1], start=0, end=2)
        rest = _shape(onnx, [], names[0], y.shape[1:], start=1)
        return [onnx.op("Reshape", names[0], onnx.op("Concat", leading, rest, axis=0))]

    (apart,) = native.add([y, inputs], [(*inputs.shape[:2], *y.shape[1:])], split, [y.dtype])
    return apart


def _merge_time(native: NativeOps, x: Any) -> Any:
    """(B, T, ...) as (B·T, ...)."""
    rest = tuple(x.shape)[2:]

    def merge(onnx: Emitter, names: list[str]) -> list[str]:
        return [onnx.op("Reshape", names[0], _shape(onnx, [-1], names[0], rest, start=2))]

    return native.add([x], [(None, *rest)], merge, [x.dtype])[0]


_LAST_AXIS_FUNCTIONS = tuple(f for f in vars(keras.activations).values() if inspect.isfunction(f))


def _acts_on_last_axis(inner: Any) -> bool:
    """Whether the layer computes the same on (B, T, C) as on (B·T, C)."""
    if type(inner) in (L.LayerNormalization, L.Softmax):
        return inner.axis in (-1, [-1])
    if type(inner) in (L.Dense, L.Activation):  # a function of the user's own may use an axis by its number
        return any(inner.activation is known for known in (None, *_LAST_AXIS_FUNCTIONS))
    return type(inner) in (L.Rescaling, L.Dropout, L.ReLU, L.LeakyReLU, L.ELU, L.Identity)


@register_lowering(L.Softmax, why="refused")
def _softmax(_native: NativeOps, layer: Any, inputs: Any, mask: Any = None) -> Any:
    if mask is not None and getattr(inputs, "_keras_mask", None) is mask:  # not one that the model passes by hand
        _refuse_mask_of_lower_rank(layer, inputs, mask)
    return NotImplemented


def _refuse_mask_of_lower_rank(layer: Any, inputs: Any, mask: Any) -> None:
    """Keras aligns the mask's axes with the last ones of a softmax' input, its batch with their time or channels."""
    if len(mask.shape) != len(inputs.shape):
        raise UnsupportedLayerError(
            f"layer {layer.name!r}: a softmax takes a mask with the axes of its input, {len(inputs.shape)}, and gets "
            f"one with {len(mask.shape)}, which Keras applies to the wrong axes, or fails; end the mask before it, or "
            "write the softmax as an activation of the layer before"
        )


def _shape(onnx: Emitter, leading: list[int], name: str, sizes: Any, *, start: int) -> str:
    """The shape ``leading`` + ``sizes``, taken from the axes from ``start`` on where not all sizes are known."""
    if None not in sizes:
        return onnx.integers(*leading, *sizes)
    rest = onnx.op("Shape", name, start=start)
    return onnx.op("Concat", onnx.integers(*leading), rest, axis=0) if leading else rest


@register_lowering(L.Embedding, why="one Gather")
def _embedding(_native: NativeOps, layer: Any, inputs: Any) -> Any:
    # Keras takes numbers of any other type as int32.
    # It wraps negative tokens by arithmetic on every token; a Gather of TensorFlow and of ONNX is one operator.
    if getattr(layer, "quantization_mode", None) is not None:
        return NotImplemented
    tokens = inputs if inputs.dtype in (tf.int32, tf.int64) else tf.cast(inputs, tf.int32)
    return tf.gather(tf.constant(weight(layer, "embeddings")), tokens)


@register_lowering(L.LayerNormalization, why="native LayerNormalization")
def _layer_normalization(native: NativeOps, layer: Any, inputs: Any) -> Any:
    rank = len(inputs.shape)
    if list(np.atleast_1d(layer.axis) % rank) != [rank - 1] or getattr(layer, "rms_scaling", False):
        return NotImplemented
    if inputs.dtype != tf.float32:  # of integers Keras makes integers again
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
    _refuse_training(layer, training)
    # At inference an affine map per channel: two operators whose constants the graph clean-up can fold away.
    if layer.axis not in (-1, len(inputs.shape) - 1):
        return NotImplemented
    mean, variance = weight(layer, "moving_mean"), weight(layer, "moving_variance")
    scale = 1.0 / np.sqrt(variance.astype(np.float64) + layer.epsilon)
    scale = scale * weight(layer, "gamma") if layer.scale else scale
    shift = -mean * scale + (weight(layer, "beta") if layer.center else 0.0)
    return _floats(inputs) * tf.constant(scale.astype(np.float32)) + tf.constant(shift.astype(np.float32))


@register_lowering(L.GroupNormalization, why="native InstanceNormalization, where Keras computes shapes at run time")
def _group_normalization(native: NativeOps, layer: Any, inputs: Any) -> Any:
    shape = tuple(inputs.shape)
    if len(shape) != 3 or layer.axis not in (-1, 2) or inputs.dtype != tf.float32:
        return NotImplemented
    width, groups = shape[-1], layer.groups
    ones, zeros = np.ones(groups, np.float32), np.zeros(groups, np.float32)

    def emit(onnx: Emitter, names: list[str]) -> list[str]:
        grouped = onnx.op("Reshape", names[0], onnx.integers(0, 0, groups, width // groups))
        turned = onnx.op("Transpose", grouped, perm=[0, 2, 1, 3])
        constants = onnx.constant(ones), onnx.constant(zeros)
        y = onnx.op("InstanceNormalization", turned, *constants, epsilon=float(layer.epsilon))
        return [onnx.op("Reshape", onnx.op("Transpose", y, perm=[0, 2, 1, 3]), onnx.integers(0, 0, width))]

    (y,) = native.add([inputs], [shape], emit)
    y = y * tf.constant(weight(layer, "gamma")) if layer.scale else y
    return y + tf.constant(weight(layer, "beta")) if layer.center else y


@register_lowering(L.MultiHeadAttention, L.GroupQueryAttention, why="one Trilu for the causal mask")
def _causal_attention(
    native: NativeOps,
    layer: Any,
    query: Any,
    value: Any,
    *args: Any,
    use_causal_mask: Any = False,
    attention_mask: Any = None,
    **kwargs: Any,
) -> Any:
    if not use_causal_mask or len(args) > 1:  # more than a key by position: Keras' own words
        return NotImplemented

    def emit(onnx: Emitter, names: list[str]) -> list[str]:
        sizes = [onnx.op("Shape", name, start=1, end=2) for name in names]
        square = onnx.op("Concat", *sizes, axis=0)
        ones = onnx.op("ConstantOfShape", square, value=helper.make_tensor("", TensorProto.FLOAT, [1], [1.0]))
        return [onnx.op("Trilu", ones, upper=0)]

    (lower,) = native.add([query, value], [(query.shape[1], value.shape[1])], emit)
    causal = tf.expand_dims(lower > 0, 0)
    mask = causal if attention_mask is None else tf.logical_and(causal, tf.cast(attention_mask, tf.bool))
    return layer.call(query, value, *args, attention_mask=mask, **kwargs)  # again, and then as Keras wrote it


@register_lowering(L.Masking, why="one mask, where Keras computes it twice")
def _masking(_native: NativeOps, layer: Any, inputs: Any) -> Any:
    # Keras asks compute_mask() again afterwards; in these words it is the same expression, which the clean-up merges.
    return tf.where(tf.expand_dims(layer.compute_mask(inputs), -1), inputs, tf.zeros([], inputs.dtype))


@register_lowering(L.Reshape, why="one Reshape, where Keras computes shapes at run time")
def _reshape(native: NativeOps, layer: Any, inputs: Any) -> Any:
    def emit(onnx: Emitter, names: list[str]) -> list[str]:
        return [onnx.op("Reshape", names[0], onnx.integers(0, *layer.target_shape))]

    (y,) = native.add([inputs], [layer.compute_output_shape(tuple(inputs.shape))], emit, [inputs.dtype])
    return y


@register_lowering(L.RepeatVector, why="one Expand, where Keras computes shapes at run time")
def _repeat_vector(native: NativeOps, layer: Any, inputs: Any) -> Any:
    def emit(onnx: Emitter, names: list[str]) -> list[str]:
        return [onnx.op("Expand", onnx.op("Unsqueeze", names[0], onnx.integers(1)), onnx.integers(1, layer.n, 1))]

    (y,) = native.add([inputs], [layer.compute_output_shape(tuple(inputs.shape))], emit, [inputs.dtype])
    return y


@register_lowering(
    L.Dropout,
    L.SpatialDropout1D,
    L.GaussianNoise,
    L.GaussianDropout,
    L.AlphaDropout,
    L.ActivityRegularization,
    why="acts in training only",
)
def _training_only(_native: NativeOps, layer: Any, inputs: Any, training: Any = None) -> Any:
    _refuse_training(layer, training)
    return inputs


@register_lowering(L.LSTM, L.GRU, L.SimpleRNN, L.RNN, why="native recurrent operator, where TensorFlow has a loop")
def _recurrent(  # noqa: PLR0917  Keras' own signature
    native: NativeOps,
    layer: Any,
    sequences: Any,
    initial_state: Any = None,
    mask: Any = None,
    training: Any = None,
) -> Any:
    if getattr(layer, "dropout", 0) or getattr(layer, "recurrent_dropout", 0):
        _refuse_training(layer, training)
    return rnn.one_direction(native, layer, sequences, initial_state, mask)


@register_lowering(L.Bidirectional, why="one native bidirectional operator")
def _bidirectional(  # noqa: PLR0917  Keras' own signature
    native: NativeOps,
    layer: Any,
    sequences: Any,
    initial_state: Any = None,
    mask: Any = None,
    training: Any = None,
) -> Any:
    for direction in (layer.forward_layer, layer.backward_layer):
        if getattr(direction, "dropout", 0) or getattr(direction, "recurrent_dropout", 0):
            _refuse_training(layer, training)
    return rnn.both_directions(native, layer, sequences, initial_state, mask)


def _refuse_training(layer: Any, training: Any) -> None:
    """A model may call a layer with ``training=True`` also at inference (Monte Carlo dropout)."""
    if training is not None and training is not False:
        raise UnsupportedLayerError(
            f"layer {layer.name!r}: it is called with training={training!r} also at inference, where it is random or "
            "learns; a file does neither. Call it without training="
        )
