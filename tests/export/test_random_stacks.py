"""Random stacks of layers: whatever is drawn, the export equals Keras, or Keras itself cannot run it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import onnxruntime as ort
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from keras import layers as L  # noqa: N812

from edgeseq import TCN
from edgeseq.export.comparison import compare
from edgeseq.export.convert import to_onnx
from edgeseq.export.oracle import keras_outputs

Randomise = Callable[..., Any]
Draw = Callable[[st.SearchStrategy[Any]], Any]

# Of the output's scale. Looser than the exporter's own: a stack may be worse conditioned than a model that was trained.
TOLERANCE = 1e-4
BATCHES, LENGTHS = (1, 2, 5), (1, 2, 7, 77, 300)
VOCABULARY = 11

# Layers without a mask behind a layer with one: every Keras user is warned of it.
pytestmark = pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask:UserWarning")

activations = st.sampled_from([None, "relu", "tanh", "gelu", "silu", "elu", "softplus"])
widths = st.integers(1, 6)


def _conv(draw: Draw, x: Any) -> Any:
    groups = draw(st.sampled_from([g for g in (1, 2, 3) if x.shape[-1] % g == 0]))
    stride = draw(st.sampled_from([1, 1, 1, 2]))
    return L.Conv1D(
        groups * draw(st.integers(1, 3)),
        draw(st.integers(1, 4)),
        padding=draw(st.sampled_from(["causal", "same", "valid"])),
        strides=stride,
        dilation_rate=1 if stride > 1 else draw(st.integers(1, 3)),
        groups=groups,
        activation=draw(activations),
    )(x)


def _depthwise(draw: Draw, x: Any) -> Any:
    layer = draw(st.sampled_from([L.DepthwiseConv1D, lambda *a, **k: L.SeparableConv1D(3, *a, **k)]))
    return layer(draw(st.integers(1, 3)), padding=draw(st.sampled_from(["same", "valid"])), depth_multiplier=2)(x)


def _recurrent(draw: Draw, x: Any) -> Any:
    options = draw(st.sampled_from([(L.LSTM, {}), (L.GRU, {}), (L.GRU, {"reset_after": False}), (L.SimpleRNN, {})]))
    kind, arguments = options
    backwards = draw(st.booleans())
    return kind(draw(widths), return_sequences=True, go_backwards=backwards, **arguments)(x)


def _bidirectional(draw: Draw, x: Any) -> Any:
    kind = draw(st.sampled_from([L.LSTM, L.GRU, L.SimpleRNN]))
    merge_mode = draw(st.sampled_from(["concat", "sum", "ave", "mul"]))
    return L.Bidirectional(kind(draw(widths), return_sequences=True), merge_mode=merge_mode)(x)


def _tcn(draw: Draw, x: Any) -> Any:
    return TCN(
        draw(widths),
        draw(st.integers(1, 3)),
        dilations=(1, 2),
        padding=draw(st.sampled_from(["causal", "same"])),
        use_batch_norm=draw(st.booleans()),
        use_skip_connections=draw(st.booleans()),
        return_sequences=True,
    )(x)


def _normalisation(draw: Draw, x: Any) -> Any:
    return draw(st.sampled_from([L.BatchNormalization, L.LayerNormalization, lambda: L.GroupNormalization(1)]))()(x)


def _pool(draw: Draw, x: Any) -> Any:
    kind = draw(st.sampled_from([L.MaxPooling1D, L.AveragePooling1D]))
    return kind(
        draw(st.integers(1, 3)), strides=draw(st.integers(1, 2)), padding=draw(st.sampled_from(["same", "valid"]))
    )(x)


def _resize(draw: Draw, x: Any) -> Any:
    return draw(st.sampled_from([L.UpSampling1D(2), L.ZeroPadding1D((2, 1)), L.Cropping1D((1, 0))]))(x)


def _pointwise(draw: Draw, x: Any) -> Any:
    layers: list[Callable[[], Any]] = [
        lambda: L.Dense(draw(widths), activation=draw(activations)),
        lambda: L.TimeDistributed(L.Dense(draw(widths))),
        lambda: L.TimeDistributed(keras.Sequential([L.Dense(3, activation="relu"), L.LayerNormalization()])),
        lambda: L.Activation(draw(st.sampled_from(["relu", "sigmoid", "softmax", "hard_sigmoid", "mish"]))),
        lambda: L.Rescaling(0.5, 0.1),
        lambda: L.SpatialDropout1D(0.2),
    ]
    return draw(st.sampled_from(layers))()(x)


def _residual(draw: Draw, x: Any) -> Any:
    merge = draw(st.sampled_from([L.Add, L.Multiply, L.Average, L.Maximum, L.Concatenate]))
    if draw(st.booleans()):
        branch = L.Conv1D(x.shape[-1], draw(st.integers(1, 3)), padding="causal")(x)
    else:
        branch = L.Bidirectional(L.GRU(x.shape[-1], return_sequences=True), merge_mode="sum")(x)
    return merge()([x, branch])


def _attention(draw: Draw, x: Any) -> Any:
    return L.MultiHeadAttention(2, 3)(x, x, use_causal_mask=draw(st.booleans()))


def _nested(draw: Draw, x: Any) -> Any:
    inner = keras.Input((None, x.shape[-1]))
    return keras.Model(inner, _recurrent(draw, _conv(draw, inner)))(x)


BLOCKS = [_conv, _conv, _depthwise, _recurrent, _bidirectional, _tcn, _normalisation, _pool, _resize]
BLOCKS += [_pointwise, _pointwise, _residual, _attention, _nested]

HEADS: list[Callable[[Any], Any]] = [
    lambda x: x,
    lambda x: L.TimeDistributed(L.Dense(3, activation="softmax"))(x),
    lambda x: L.Dense(2)(L.GlobalAveragePooling1D()(x)),
    lambda x: L.Dense(2)(L.GlobalMaxPooling1D()(x)),
    lambda x: L.Bidirectional(L.LSTM(2))(x),
    lambda x: L.GRU(3, go_backwards=True)(x),
]


def _stack(draw: Draw) -> Any:
    """A model of one to five blocks on a sensor or on tokens, with or without a mask, and one or two heads."""
    front = draw(st.sampled_from(["sensor", "sensor", "sensor", "masked sensor", "tokens", "masked tokens"]))
    if "tokens" in front:
        inputs = keras.Input((None,), dtype=draw(st.sampled_from(["int32", "int64"])))
        x = L.Embedding(VOCABULARY, draw(widths), mask_zero="masked" in front)(inputs)
    else:
        inputs = keras.Input((None, draw(widths)))
        x = L.Masking()(inputs) if "masked" in front else inputs
    for block in draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=5)):
        x = block(draw, x)
    heads = draw(st.lists(st.sampled_from(HEADS), min_size=1, max_size=2))
    outputs = [head(x) for head in heads]
    return keras.Model(inputs, outputs[0] if len(outputs) == 1 else outputs)


def _sequences(model: Any, length: int, seed: int) -> np.ndarray[Any, Any]:
    """Five sequences; where the model masks, all but the first end in padding."""
    rng, batch = np.random.default_rng(seed), max(BATCHES)
    (source,) = model.inputs
    if source.dtype != "float32":
        x = rng.integers(1, VOCABULARY, (batch, length)).astype(source.dtype)
    else:
        x = rng.normal(size=(batch, length, source.shape[-1])).astype(np.float32)
    layers = model._flatten_layers()
    if any(isinstance(layer, L.Masking) or getattr(layer, "mask_zero", False) for layer in layers):
        for row in range(1, batch):
            x[row, max(1, length * row // batch) :] = 0
    return x


def _check(model: Any, randomise: Randomise, seed: int) -> None:
    converted = to_onnx(randomise(model, seed))
    ort_session = ort.InferenceSession(converted.proto().SerializeToString(), providers=["CPUExecutionProvider"])
    ran = 0
    for length in LENGTHS:
        x = _sequences(model, length, seed)
        expected = keras_outputs(model, [x])
        if isinstance(expected, Exception):
            continue  # too short for Keras itself
        ran += 1
        for batch in BATCHES:
            got = ort_session.run([port.name for port in converted.ports.outputs], {"input": x[:batch]})
            for port, y, ours in zip(converted.ports.outputs, expected, got, strict=True):
                compare(y[:batch], ours, f"{length} steps, batch {batch}, {port.name}", tolerance=TOLERANCE)
    assert ran, "Keras ran it at no length"


# Without shrinking: a stack costs a second, and its layers are in the message.
QUIET: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": list(HealthCheck),
    "phases": (Phase.explicit, Phase.reuse, Phase.generate),
}


@settings(max_examples=25, derandomize=True, **QUIET)
@given(data=st.data(), seed=st.integers(0, 99))
def test_25_random_stacks_equal_keras(data: st.DataObject, seed: int, randomise: Randomise) -> None:
    _check(_stack(data.draw), randomise, seed)


@pytest.mark.extended
@settings(max_examples=200, **QUIET)
@given(data=st.data(), seed=st.integers(0, 9999))
def test_200_random_stacks_equal_keras(data: st.DataObject, seed: int, randomise: Randomise) -> None:
    _check(_stack(data.draw), randomise, seed)
