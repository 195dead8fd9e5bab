"""The lowering rules of the layers that slide along time: convolutions, pooling, and what changes the length.

TensorFlow computes these in two dimensions, with SpaceToBatch for some dilations and shapes computed at run time; ONNX
has one operator for each. Importing this module registers the rules.
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from edgeseq.errors import UnsupportedLayerError
from edgeseq.export.lowering.native import Emitter, NativeOps, weight
from edgeseq.export.lowering.registry import register_lowering

L = keras.layers


@register_lowering(L.Conv1D, why="native Conv with explicit padding, dilation and groups")
def _conv1d(native: NativeOps, layer: Any, inputs: Any) -> Any:
    kernel = weight(layer, "kernel").transpose(2, 1, 0)
    return _activated(layer, _along_time(native, layer, inputs, _Conv(layer, kernel, layer.groups)))


@register_lowering(L.DepthwiseConv1D, why="native Conv with a group for each channel")
def _depthwise_conv1d(native: NativeOps, layer: Any, inputs: Any) -> Any:
    kernel = _depthwise(weight(layer, "kernel"))
    return _activated(layer, _along_time(native, layer, inputs, _Conv(layer, kernel, inputs.shape[_channels(layer)])))


@register_lowering(L.SeparableConv1D, why="two native Convs, one with a group for each channel")
def _separable_conv1d(native: NativeOps, layer: Any, inputs: Any) -> Any:
    depthwise = _depthwise(weight(layer, "depthwise_kernel"))
    pointwise = weight(layer, "pointwise_kernel").transpose(2, 1, 0)
    bias = weight(layer, "bias") if layer.use_bias else np.zeros(layer.filters, np.float32)
    first = _Conv(layer, depthwise, inputs.shape[_channels(layer)], bias=np.zeros(len(depthwise), np.float32))

    def both(onnx: Emitter, x: str) -> str:
        return onnx.op("Conv", first(onnx, x), onnx.constant(pointwise), onnx.constant(bias), kernel_shape=[1])

    return _activated(layer, _along_time(native, layer, inputs, both))


@register_lowering(L.Conv1DTranspose, why="native ConvTranspose with explicit padding")
def _conv1d_transpose(native: NativeOps, layer: Any, inputs: Any) -> Any:
    # TensorFlow asks for the length of the output and derives the padding; ONNX takes the padding. Both leave out, or
    # add, the same number of steps of the full result at every length.
    (size,), (stride,), (dilation,) = layer.kernel_size, layer.strides, layer.dilation_rate
    time = 1 if layer.data_format == "channels_last" else 2
    example = [1, *inputs.shape[1:]]
    example[time] = 1000
    crop = 999 * stride + (size - 1) * dilation + 1 - layer.compute_output_shape(tuple(example))[time]
    kernel = weight(layer, "kernel").transpose(2, 1, 0)
    bias = weight(layer, "bias") if layer.use_bias else np.zeros(layer.filters, np.float32)
    attributes = {
        "kernel_shape": [size],
        "strides": [stride],
        "dilations": [dilation],
        "pads": [max(crop, 0) // 2, max(crop, 0) - max(crop, 0) // 2],
        "output_padding": [max(-crop, 0)],
    }

    def emit(onnx: Emitter, x: str) -> str:
        return onnx.op("ConvTranspose", x, onnx.constant(kernel), onnx.constant(bias), **attributes)

    return _activated(layer, _along_time(native, layer, inputs, emit))


@register_lowering(L.MaxPooling1D, L.AveragePooling1D, why="native pooling, where TensorFlow pools in two dimensions")
def _pooling1d(native: NativeOps, layer: Any, inputs: Any) -> Any:
    # "same" leaves the padding out of an average in both Keras and ONNX.
    if inputs.dtype != tf.float32:
        raise UnsupportedLayerError(
            f"layer {layer.name!r}: expected float32, got {inputs.dtype.name}, which ONNX Runtime does not pool; put "
            'keras.ops.cast(x, "float32") before it'
        )
    (size,), (stride,) = np.atleast_1d(layer.pool_size).tolist(), np.atleast_1d(layer.strides).tolist()
    attributes = {"kernel_shape": [size], "strides": [stride], **_padding(layer, size - 1, stride)}
    by_length = _pads_by_length(layer, size - 1, stride)

    def maximum(onnx: Emitter, x: str) -> str:
        x = _padded_by_length(onnx, x, size - 1, stride, fill=-np.inf) if by_length else x
        return onnx.op("MaxPool", x, **attributes)

    def average(onnx: Emitter, x: str) -> str:
        if not by_length:
            return onnx.op("AveragePool", x, **attributes)
        one = onnx.constant(np.array(1, np.float32))
        there = onnx.op(
            "Max", onnx.op("Min", x, one), one
        )  # a one for each step, which streams where a tensor made of sizes does not
        padded = (_padded_by_length(onnx, each, size - 1, stride) for each in (x, there))
        return onnx.op("Div", *(onnx.op("AveragePool", each, **attributes) for each in padded))

    return _along_time(native, layer, inputs, maximum if isinstance(layer, L.MaxPooling1D) else average)


@register_lowering(L.UpSampling1D, why="Tile and Reshape, where Keras computes shapes at run time")
def _up_sampling1d(native: NativeOps, layer: Any, inputs: Any) -> Any:
    # Every step n times beside itself along the channels, then cut into steps again.
    width = inputs.shape[-1]

    def emit(onnx: Emitter, names: list[str]) -> list[str]:
        wide = onnx.op("Tile", names[0], onnx.integers(1, 1, layer.size))
        return [onnx.op("Reshape", wide, onnx.integers(0, -1, width))]

    (y,) = native.add([inputs], [layer.compute_output_shape(tuple(inputs.shape))], emit, [inputs.dtype])
    return y


@register_lowering(L.ZeroPadding1D, why="one Pad")
def _zero_padding1d(native: NativeOps, layer: Any, inputs: Any) -> Any:
    before, after = layer.padding
    if layer.data_format != "channels_last":
        return NotImplemented

    def emit(onnx: Emitter, names: list[str]) -> list[str]:
        return [onnx.op("Pad", names[0], onnx.integers(0, before, 0, 0, after, 0), mode="constant")]

    (y,) = native.add([inputs], [layer.compute_output_shape(tuple(inputs.shape))], emit, [inputs.dtype])
    return y


@register_lowering(L.AdaptiveAveragePooling1D, L.AdaptiveMaxPooling1D, why="refused")
def _adaptive_pooling1d(_native: NativeOps, layer: Any, _inputs: Any) -> Any:
    raise UnsupportedLayerError(
        f"layer {layer.name!r}: {type(layer).__name__} has windows that depend on the length, and ONNX has no such "
        "operator; use a pooling layer with a fixed pool_size, or a global one"
    )


class _Conv:
    """Emits the Conv of a layer, channels first."""

    def __init__(
        self, layer: Any, kernel: np.ndarray[Any, Any], groups: int, bias: np.ndarray[Any, Any] | None = None
    ) -> None:
        if bias is None:
            bias = weight(layer, "bias") if layer.use_bias else np.zeros(len(kernel), np.float32)
        (size,), (stride,), (dilation,) = layer.kernel_size, layer.strides, layer.dilation_rate
        self._weights = kernel, bias
        self._attributes: dict[str, Any] = {
            "kernel_shape": [size],
            "strides": [stride],
            "dilations": [dilation],
            "group": groups,
            **_padding(layer, (size - 1) * dilation, stride),
        }
        self._by_length = _pads_by_length(layer, (size - 1) * dilation, stride)
        self._reach, self._stride = (size - 1) * dilation, stride

    def __call__(self, onnx: Emitter, x: str) -> str:
        x = _padded_by_length(onnx, x, self._reach, self._stride) if self._by_length else x
        return onnx.op("Conv", x, *(onnx.constant(w) for w in self._weights), **self._attributes)


def _padding(layer: Any, reach: int, stride: int) -> dict[str, Any]:
    """The attributes that pad as Keras does; the window sees ``reach`` steps beside its first."""
    if layer.padding == "causal":
        return {"pads": [reach, 0]}
    if layer.padding == "valid":
        return {"pads": [0, 0]}
    if stride == 1:
        return {"pads": [reach // 2, reach - reach // 2]}
    if stride <= reach + 1:
        return {"auto_pad": "SAME_UPPER"}  # how much depends on the length, as in TensorFlow
    # Where windows leave steps out, ONNX Runtime takes some lengths for negative padding: pooling fails and a
    # convolution starts late. Up to two steps need no padding before, and one after does not add a window.
    return {"pads": [0, reach if reach < 2 else 0]}


def _pads_by_length(layer: Any, reach: int, stride: int) -> bool:
    """Whether the padding must be computed from the length, since no attribute says it."""
    return layer.padding == "same" and stride > reach + 1 > 2


def _padded_by_length(onnx: Emitter, x: str, reach: int, stride: int, fill: float = 0.0) -> str:
    """(B, C, T) with what the last window lacks, half of it before: max(reach - (T - 1) mod stride, 0) steps.

    Source: https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2
    """
    last = onnx.op("Sub", onnx.op("Shape", x, start=2), onnx.integers(1))
    into_the_stride = onnx.op("Mod", last, onnx.integers(stride))
    lacking = onnx.op("Max", onnx.op("Sub", onnx.integers(reach), into_the_stride), onnx.integers(0))
    before = onnx.op("Div", lacking, onnx.integers(2))
    none = onnx.integers(0, 0)
    pads = onnx.op("Concat", none, before, none, onnx.op("Sub", lacking, before), axis=0)
    return onnx.op("Pad", x, pads, onnx.constant(np.array(fill, np.float32)))


def _depthwise(kernel: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Of Keras, (k, C, m), to ONNX, (C·m, 1, k)."""
    size = kernel.shape[0]
    return kernel.transpose(1, 2, 0).reshape(-1, 1, size)


def _channels(layer: Any) -> int:
    return -1 if layer.data_format == "channels_last" else 1


def _activated(layer: Any, y: Any) -> Any:
    return y if layer.activation is None else layer.activation(y)


def _along_time(native: NativeOps, layer: Any, inputs: Any, operator: Any) -> Any:
    """``operator(onnx, x)``, which works on (B, C, T), with transposes around it where the layer has channels last."""
    turned = layer.data_format == "channels_last"

    def emit(onnx: Emitter, names: list[str]) -> list[str]:
        x = onnx.op("Transpose", names[0], perm=[0, 2, 1]) if turned else names[0]
        y = operator(onnx, x)
        return [onnx.op("Transpose", y, perm=[0, 2, 1]) if turned else y]

    (y,) = native.add([inputs], [layer.compute_output_shape(tuple(inputs.shape))], emit)
    return y
