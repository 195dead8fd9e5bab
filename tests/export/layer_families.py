"""Families of all layers that are not recurrent: (name, build, options of the family)."""

from __future__ import annotations

import inspect
import itertools
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import layers as L  # noqa: N812

from edgeseq import TCN, bilstm_tagger, tcn_classifier, tcn_tagger
from tests.export.small_models import (
    CHANNELS,
    SMALL,
    Build,
    Doubling,
    Halved,
    Renamed,
    attend,
    chain,
    function,
    spelled,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # keras-tcn asks for names that newer Keras versions call old
    from tcn import TCN as KerasTCN  # noqa: N811

Entry = tuple[str, Build] | tuple[str, Build, dict[str, Any]]


def _activation_names() -> list[str]:
    return sorted(
        name
        for name, value in vars(keras.activations).items()
        if inspect.isfunction(value) and name not in {"deserialize", "get", "serialize", "glu", "threshold"}
    )


def tcns() -> Iterator[Entry]:
    options: dict[str, dict[str, Any]] = {
        "": {},
        "use_batch_norm": {"use_batch_norm": True},
        "use_layer_norm": {"use_layer_norm": True},
        "no skip connections": {"use_skip_connections": False},
        "nb_stacks=2, tanh": {"nb_stacks": 2, "activation": "tanh"},
        "padding='same'": {"padding": "same"},
        "padding='same', kernel_size=4": {"padding": "same", "kernel_size": 4},
        "dropout": {"dropout_rate": 0.3},
        "go_backwards": {"go_backwards": True},
        "a list of filters": {"nb_filters": [5, 3], "use_skip_connections": False},
    }
    for layer, owner in ((TCN, "edgeseq TCN"), (KerasTCN, "keras-tcn TCN")):
        for name, option in options.items():
            settings = {**SMALL, **option}
            yield (
                ", ".join(part for part in (owner, name) if part),
                lambda layer=layer, s=settings: chain(layer(return_sequences=True, **s), L.Dense(3)),
            )
        for padding in ("causal", "same"):
            yield (
                f"{owner}, padding={padding!r}, one step out",
                lambda layer=layer, padding=padding: chain(layer(padding=padding, **SMALL), L.Dense(2)),
            )
        both_ways = {"merge_mode='concat'": True, "merge_mode='sum', one step out": False}
        for name, sequences in both_ways.items():
            merge_mode = name.split("'")[1]
            yield (
                f"Bidirectional({owner}), {name}",
                lambda layer=layer, seq=sequences, mode=merge_mode: chain(
                    L.Bidirectional(layer(return_sequences=seq, **SMALL), merge_mode=mode), L.Dense(2)
                ),
            )
    yield "keras-tcn TCN, default", lambda: chain(KerasTCN(return_sequences=True, use_batch_norm=True))


def builders() -> Iterator[Entry]:
    normalised: dict[str, Any] = {"mean": [1, 2, 3, 4], "std": [1, 2, 3, 4]}
    yield "tcn_tagger, normalised input", lambda: tcn_tagger(4, 3, **normalised, **SMALL)
    for pooling in ("max", "average", "last"):
        yield f"tcn_classifier, {pooling}", lambda pooling=pooling: tcn_classifier(4, 3, pooling=pooling, **SMALL)
    yield "bilstm_tagger", lambda: bilstm_tagger(4, 3, units=6, layers=2)
    yield "bilstm_tagger, cell='gru'", lambda: bilstm_tagger(4, 3, units=6, cell="gru")


def time_distributed_layers() -> Iterator[Entry]:
    flat: dict[str, Build] = {
        "Dense": lambda: L.Dense(3),
        "Sequential of Dense": lambda: keras.Sequential([L.Dense(5, activation="tanh"), L.Dense(3)]),
        "functional model": _step_model,
        "LayerNormalization": L.LayerNormalization,
        "BatchNormalization": L.BatchNormalization,
        "Dropout": lambda: L.Dropout(0.3),
        "Activation": lambda: L.Activation("relu"),
        "Softmax": L.Softmax,
        "Rescaling": lambda: L.Rescaling(0.1, 2.0),
    }
    for name, inner in flat.items():
        yield f"TimeDistributed({name})", lambda inner=inner: chain(L.TimeDistributed(inner()))
    deep: dict[str, Build] = {
        "Conv1D over an inner axis": lambda: L.Conv1D(3, 2, padding="causal"),
        "LSTM over an inner axis": lambda: L.LSTM(3, return_sequences=True),
        "MaxPooling1D over an inner axis": lambda: L.MaxPooling1D(2),
        "Flatten": L.Flatten,
    }
    for name, inner in deep.items():
        yield (
            f"TimeDistributed({name})",
            lambda inner=inner: chain(
                L.Reshape((-1, 2, 2)), L.TimeDistributed(inner()), L.TimeDistributed(L.Flatten()), L.Dense(2)
            ),
        )


def _step_model() -> Any:
    inputs = keras.Input((CHANNELS,))
    hidden = L.Dense(CHANNELS, activation="tanh")(inputs)
    return keras.Model(inputs, L.Add()([hidden, inputs]))


def _convolution(layer: Any, **options: Any) -> Any:
    return chain(layer(**options), L.Dense(2))


def convolutions() -> Iterator[Entry]:
    """Every combination that Keras accepts, with the shortest sequence that Keras itself can run."""
    kinds: dict[Any, list[dict[str, Any]]] = {
        L.Conv1D: [{"filters": 6, "groups": 1}, {"filters": 6, "groups": 2}],
        L.DepthwiseConv1D: [{"depth_multiplier": 1}, {"depth_multiplier": 3}],
        L.SeparableConv1D: [{"filters": 6, "depth_multiplier": 1}, {"filters": 6, "depth_multiplier": 2}],
    }
    spans = [(s, d) for s, d in itertools.product((1, 2, 3), (1, 2, 3)) if s == 1 or d == 1]
    for (layer, own), padding, (stride, dilation), size in itertools.product(
        [(layer, own) for layer, owns in kinds.items() for own in owns], ("valid", "same", "causal"), spans, (3, 4)
    ):
        if padding == "causal" and layer is not L.Conv1D:
            continue  # Keras refuses it
        options = {**own, "kernel_size": size, "padding": padding, "strides": stride, "dilation_rate": dilation}
        shortest = (size - 1) * dilation + 1 if padding == "valid" else 1
        further = 3 in (stride, dilation) or (size == 4 and padding != "same")
        yield (
            f"{layer.__name__}({spelled(options)})",
            partial(_convolution, layer, **options),
            {"min_length": shortest, "extended": further},
        )
    for layer, own in ((L.Conv1D, {"filters": 3}), (L.DepthwiseConv1D, {}), (L.SeparableConv1D, {"filters": 3})):
        options = {**own, "kernel_size": 3, "padding": "same", "strides": 5}  # windows that leave steps out
        yield f"{layer.__name__}({spelled(options)})", partial(_convolution, layer, **options)
    for size in (2, 3):
        options = {"filters": 3, "kernel_size": size, "strides": 2, "output_padding": 1}
        yield f"Conv1DTranspose({spelled(options)})", partial(_convolution, L.Conv1DTranspose, **options)
    for padding, stride, size, dilation in itertools.product(("valid", "same"), (1, 2, 3), (2, 3, 5), (1, 2)):
        if stride == 1 or dilation == 1:
            options = {"filters": 3, "kernel_size": size, "padding": padding, "strides": stride}
            options |= {"dilation_rate": dilation} if dilation > 1 else {}
            yield (
                f"Conv1DTranspose({spelled(options)})",
                partial(_convolution, L.Conv1DTranspose, **options),
                {"extended": size != 3},
            )


def poolings() -> Iterator[Entry]:
    """Every combination of the windowed pooling layers, with the shortest sequence that Keras itself can run."""
    for layer, padding, size, stride in itertools.product(
        (L.MaxPooling1D, L.AveragePooling1D), ("valid", "same"), (2, 3), (None, 1, 2, 3, 5)
    ):
        options = {"pool_size": size, "strides": stride, "padding": padding}
        yield (
            f"{layer.__name__}({spelled(options)})",
            partial(_pooling, layer, **options),
            {"min_length": size if padding == "valid" else 1, "extended": stride == 3},
        )


def _pooling(layer: Any, **options: Any) -> Any:
    return chain(L.Conv1D(3, 3, padding="same"), layer(**options), L.Conv1D(2, 3, padding="same"))


def reshaping() -> Iterator[Entry]:
    for layer, keep in itertools.product((L.GlobalMaxPooling1D, L.GlobalAveragePooling1D), (False, True)):
        yield f"{layer.__name__}(keepdims={keep})", partial(_convolution, layer, keepdims=keep)
    for size in (2, 3):
        yield f"UpSampling1D({size})", lambda n=size: chain(L.Dense(3), L.UpSampling1D(n), L.Dense(2))
    yield "ZeroPadding1D, then Conv1D 'valid'", lambda: chain(L.ZeroPadding1D((2, 1)), L.Conv1D(3, 4))
    yield "ZeroPadding1D", lambda: chain(L.Dense(3), L.ZeroPadding1D(2), L.Dense(2))
    for crop in ((1, 2), (0, 2), (2, 0)):
        yield f"Cropping1D({crop})", partial(_convolution, L.Cropping1D, cropping=crop), {"min_length": 4}
    yield "Conv1D after Cropping1D", lambda: chain(L.Cropping1D(1), L.Conv1D(2, 3, padding="same")), {"min_length": 3}
    yield "Reshape", lambda: chain(L.Reshape((-1, 2, 2)), L.Reshape((-1, 4)), L.Dense(2))
    yield "Permute twice", lambda: chain(L.Permute((2, 1)), L.Activation("tanh"), L.Permute((2, 1)), L.Dense(2))
    yield "RepeatVector", lambda: chain(L.LSTM(3), L.RepeatVector(5), L.LSTM(3, return_sequences=True))
    yield (
        "strided encoder, transposed decoder",
        lambda: chain(
            L.Conv1D(6, 3, strides=2, padding="same", activation="relu"),
            L.Conv1DTranspose(3, 3, strides=2, padding="same"),
        ),
    )


def normalisations() -> Iterator[Entry]:
    after_dense: dict[str, Build] = {
        "BatchNormalization": L.BatchNormalization,
        "BatchNormalization, no scale, no center": lambda: L.BatchNormalization(scale=False, center=False),
        "LayerNormalization": L.LayerNormalization,
        "LayerNormalization, no scale": lambda: L.LayerNormalization(scale=False),
        "LayerNormalization, no center": lambda: L.LayerNormalization(center=False),
        "LayerNormalization over time": lambda: L.LayerNormalization(axis=1, scale=False, center=False),
        "LayerNormalization over time and channels": lambda: L.LayerNormalization(
            axis=[1, 2], scale=False, center=False
        ),
        "GroupNormalization": lambda: L.GroupNormalization(2),
        "GroupNormalization, instance": lambda: L.GroupNormalization(-1),
        "GroupNormalization, one group, no scale": lambda: L.GroupNormalization(1, scale=False, center=False),
        "UnitNormalization": L.UnitNormalization,
        "UnitNormalization over time": lambda: L.UnitNormalization(axis=1),
        "RMSNormalization": L.RMSNormalization,
        "SpectralNormalization(Conv1D)": lambda: L.SpectralNormalization(L.Conv1D(4, 3, padding="causal")),
        "SpectralNormalization(Dense)": lambda: L.SpectralNormalization(L.Dense(4)),
    }
    for name, layer in after_dense.items():
        yield name, lambda layer=layer: chain(L.Dense(6), layer(), L.Dense(2))
    yield (
        "BatchNormalization around Conv1D",
        lambda: chain(L.BatchNormalization(), L.Conv1D(3, 2, padding="causal"), L.BatchNormalization(), L.ReLU()),
    )
    yield "BatchNormalization before Conv1D 'valid'", lambda: chain(L.BatchNormalization(), L.Conv1D(3, 1))
    yield "Rescaling", lambda: chain(L.Rescaling(0.1, 2.0), L.Dense(2))
    yield "Rescaling per channel", lambda: chain(L.Rescaling([0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0]), L.Dense(2))
    yield "Normalization", lambda: chain(L.Normalization(mean=[1.0, 2, 3, 4], variance=[1.0, 4, 9, 16]), L.Dense(2))
    yield "Normalization, invert", lambda: chain(L.Normalization(mean=1.0, variance=4.0, invert=True), L.Dense(2))


def activations() -> Iterator[Entry]:
    for name in _activation_names():
        yield f"activation {name!r}", lambda n=name: chain(L.Dense(6), L.Activation(n), L.Dense(2))
    # Not as an Activation: Keras says that glu keeps the number of channels, and threshold takes two numbers.
    yield "activation 'glu'", lambda: function(lambda x: L.Dense(2)(keras.ops.glu(L.Dense(6)(x))))
    yield "activation 'threshold'", lambda: function(lambda x: keras.ops.threshold(L.Dense(6)(x), 0.3, 0.1))
    yield "Conv1D, activation='gelu'", lambda: chain(L.Conv1D(3, 2, padding="causal", activation="gelu"))
    layers: dict[str, Build] = {
        "LeakyReLU": lambda: L.LeakyReLU(0.2),
        "PReLU(shared_axes=[1])": lambda: L.PReLU(shared_axes=[1]),
        "ELU": lambda: L.ELU(0.7),
        "ReLU": L.ReLU,
        "ReLU(max_value, negative_slope, threshold)": lambda: L.ReLU(1.5, negative_slope=0.1, threshold=0.2),
        "Softmax": L.Softmax,
        "Softmax over time": lambda: L.Softmax(axis=1),
    }
    for name, layer in layers.items():
        yield name, lambda layer=layer: chain(L.Conv1D(6, 3, padding="same"), layer(), L.Dense(2))


def merging() -> Iterator[Entry]:
    for layer in (L.Add, L.Subtract, L.Concatenate, L.Multiply, L.Average, L.Maximum, L.Minimum):
        yield (
            layer.__name__,
            lambda layer=layer: function(
                lambda x: layer()([L.Dense(4, activation="tanh")(x), L.LSTM(4, return_sequences=True)(x)])
            ),
        )
    yield "Concatenate over time", lambda: function(lambda x: L.Concatenate(axis=1)([L.Dense(4)(x), x]))
    yield "Dot", lambda: function(lambda x: L.Dot(axes=(2, 2))([L.Dense(4)(x), L.Dense(4)(x)]) @ x)
    yield "WaveNet gated unit", lambda: function(_gated)
    yield "squeeze and excitation", lambda: function(_squeeze_excite)
    yield "choices between numbers and between conditions", lambda: function(_choices)
    yield "arithmetic on tensors", lambda: function(lambda x: (x * 2.0 - 1.0) / (1.0 + x * x))


def _gated(x: Any) -> Any:
    def conv(activation: str) -> Any:
        return L.Conv1D(4, 2, padding="causal", dilation_rate=2, activation=activation)

    gate = L.Multiply()([conv("tanh")(x), conv("sigmoid")(x)])
    return L.Add()([x, L.Conv1D(4, 1)(gate)])


def _choices(x: Any) -> Any:
    ops = keras.ops
    chosen = ops.where(x > 0, x > 1, x < -1)
    return ops.where(chosen, x, ops.cast(ops.where(chosen, 1, ops.cast(x * 10, "int32")), "float32"))


def _squeeze_excite(x: Any) -> Any:
    h = L.Conv1D(6, 3, padding="same", activation="relu")(x)
    gate = L.Dense(6, activation="sigmoid")(L.Dense(2, activation="relu")(L.GlobalAveragePooling1D(keepdims=True)(h)))
    return L.Multiply()([h, gate])


def training_only() -> Iterator[Entry]:
    layers: dict[str, Build] = {
        "Dropout": lambda: L.Dropout(0.5),
        "SpatialDropout1D": lambda: L.SpatialDropout1D(0.5),
        "GaussianNoise": lambda: L.GaussianNoise(0.5),
        "GaussianDropout": lambda: L.GaussianDropout(0.5),
        "AlphaDropout": lambda: L.AlphaDropout(0.5),
        "ActivityRegularization": lambda: L.ActivityRegularization(0.1),
    }
    for name, layer in layers.items():
        yield name, lambda layer=layer: chain(L.Dense(3), layer(), L.Dense(2))


def attention() -> Iterator[Entry]:
    yield "MultiHeadAttention", lambda: function(attend)
    yield "MultiHeadAttention, use_causal_mask", lambda: function(partial(attend, use_causal_mask=True))
    yield "GroupQueryAttention", lambda: function(lambda x: L.GroupQueryAttention(3, 4, 2)(x, x))
    for layer in (L.Attention, L.AdditiveAttention):
        yield layer.__name__, lambda layer=layer: function(lambda x: layer()([L.Dense(4)(x), L.Dense(4)(x)]))
        yield (
            f"{layer.__name__}, use_causal_mask",
            lambda layer=layer: function(lambda x: layer()([L.Dense(4)(x), x], use_causal_mask=True)),
        )
    yield "transformer block", lambda: function(_transformer)


def _transformer(x: Any) -> Any:
    x = L.LayerNormalization()(L.Add()([x, attend(x, use_causal_mask=True)]))
    return L.Add()([x, L.Dense(4)(L.Dense(8, activation="gelu")(x))])


def _shared() -> Any:
    conv = L.Conv1D(4, 3, padding="causal")
    return function(lambda x: conv(L.Activation("tanh")(conv(x))))


def _lora() -> Any:
    model = chain(L.Conv1D(4, 2, padding="causal"), L.Dense(3))
    for layer in model.layers[1:]:
        layer.enable_lora(2)
    return model


def composition() -> Iterator[Entry]:
    yield (
        "nested models",
        lambda: chain(chain(L.Conv1D(4, 2, padding="causal")), L.Bidirectional(L.LSTM(3, return_sequences=True))),
    )
    yield (
        "Sequential",
        lambda: keras.Sequential([keras.Input((None, 4)), L.Conv1D(3, 2), L.LSTM(3), L.Dense(2)]),
        {"min_length": 2},
    )
    yield "Sequential in a functional model", lambda: chain(keras.Sequential([L.Dense(5), L.LSTM(3)]), L.Dense(2))
    yield "shared layer", _shared
    yield "user-made layer", lambda: chain(Doubling(), L.Dense(3))
    yield "subclasses of layers", lambda: chain(L.Bidirectional(Renamed(3, return_sequences=True)), Halved(3))
    yield "LoRA", _lora
    yield "Lambda", lambda: chain(L.Lambda(lambda x: x[:, ::2] * 2.0), L.Dense(2))
    yield "EinsumDense", lambda: chain(L.EinsumDense("btc,cd->btd", output_shape=(None, 5), bias_axes="d"), L.Dense(2))
    yield "Identity", lambda: chain(L.Identity(), L.Dense(2))
    yield (
        "constant of higher rank",
        lambda: function(lambda x: (L.Conv1D(4, 2, padding="causal")(x) * np.ones((1, 1, 1, 4), np.float32))[0]),
    )
    yield "CNN, then BiLSTM", lambda: chain(
        L.Conv1D(6, 3, padding="same"), L.BatchNormalization(), L.ReLU(), L.MaxPooling1D(2, padding="same"),
        L.Bidirectional(L.LSTM(4, return_sequences=True)), L.Dense(3),
    )  # fmt: skip
