"""Ready-made Keras models that label every step or the whole sequence.

Owns how the parts are put together: input normalisation, `TCN` or bidirectional recurrent layers, a dense head.
Refuses arguments that do not fit together (`ConfigError`). The models come back uncompiled: loss, optimiser and data
are the caller's.

Invariant: every model takes any batch size and any length, and sensor models take raw sensor units: the normalisation
constants are part of the model, and so of the exported file.

The head of a tagger is `edgeseq.TimeDistributed` around a `Dense`; Keras' own is wrong for changing lengths.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import keras
import numpy as np
import numpy.typing as npt

from edgeseq.tcn import TCN, check_dropout_rate, config_error, positive_int
from edgeseq.time_distributed import TimeDistributed

__all__ = ["bilstm_tagger", "bilstm_text_tagger", "tcn_classifier", "tcn_tagger"]

_POOLING = {
    "max": keras.layers.GlobalMaxPooling1D,
    "average": keras.layers.GlobalAveragePooling1D,
}
_CELLS = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}
_MERGE_MODES = ("concat", "sum", "mul", "ave")


def tcn_tagger(
    n_channels: int,
    n_labels: int,
    *,
    nb_filters: int | Sequence[int] = 64,
    kernel_size: int = 3,
    nb_stacks: int = 1,
    dilations: Sequence[int] = (1, 2, 4, 8, 16, 32),
    padding: Literal["causal", "same"] = "causal",
    use_skip_connections: bool = True,
    dropout_rate: float = 0.05,
    activation: str | Callable[..., Any] = "relu",
    use_batch_norm: bool = False,
    use_layer_norm: bool = False,
    output_activation: str | Callable[..., Any] | None = "softmax",
    mean: npt.ArrayLike | None = None,
    std: npt.ArrayLike | None = None,
    name: str = "tcn_tagger",
) -> keras.Model:
    """Return a TCN that labels every step of a sensor signal.

    Shapes:
        (B, T, n_channels) float32 -> (B, T, n_labels), any B and T.

    Units: the input is in the units of `mean` and `std`; without them, in whatever the model is trained on.

    Args:
        n_channels: channels of the signal.
        n_labels: labels to choose from.
        nb_filters: see `edgeseq.TCN`, as for all arguments down to `use_layer_norm`.
        kernel_size: taps of each convolution.
        nb_stacks: how often the list of dilations is repeated.
        dilations: distances, in steps, between taps, one per block.
        padding: "causal", or "same", whose outputs need `receptive_field[1]` steps of lookahead.
        use_skip_connections: sum the branches of all blocks.
        dropout_rate: fraction of the channels dropped in training; the default is that of keras-tcn's own models.
        activation: name or function.
        use_batch_norm: batch normalisation after each convolution.
        use_layer_norm: layer normalisation after each convolution.
        output_activation: activation of the head; None gives logits.
        mean: mean of each channel over the training data, (n_channels,); goes with `std`.
        std: standard deviation of each channel, (n_channels,).
        name: name of the model.

    Raises:
        ConfigError: arguments out of their range or that do not fit together.

    Example:
        >>> import numpy as np
        >>> model = tcn_tagger(3, 5, nb_filters=8, dilations=(1, 2), mean=[0.0, 0.0, 9.81], std=[1.0, 1.0, 2.0])
        >>> tuple(model(np.zeros((2, 40, 3), "float32")).shape)
        (2, 40, 5)

    Source: https://arxiv.org/abs/1803.01271.
    """
    inputs, x = _signal(n_channels, mean, std)
    x = TCN(
        nb_filters,
        kernel_size,
        nb_stacks,
        dilations,
        padding=padding,
        use_skip_connections=use_skip_connections,
        dropout_rate=dropout_rate,
        return_sequences=True,
        activation=activation,
        use_batch_norm=use_batch_norm,
        use_layer_norm=use_layer_norm,
        name="tcn",
    )(x)
    return keras.Model(inputs, _head(x, n_labels, output_activation), name=name)


def tcn_classifier(
    n_channels: int,
    n_labels: int,
    *,
    pooling: Literal["max", "average", "last"] = "max",
    nb_filters: int | Sequence[int] = 64,
    kernel_size: int = 3,
    nb_stacks: int = 1,
    dilations: Sequence[int] = (1, 2, 4, 8, 16, 32),
    padding: Literal["causal", "same"] = "causal",
    use_skip_connections: bool = True,
    dropout_rate: float = 0.05,
    activation: str | Callable[..., Any] = "relu",
    use_batch_norm: bool = False,
    use_layer_norm: bool = False,
    output_activation: str | Callable[..., Any] | None = "softmax",
    mean: npt.ArrayLike | None = None,
    std: npt.ArrayLike | None = None,
    name: str = "tcn_classifier",
) -> keras.Model:
    """Return a TCN that gives one label to a whole sequence.

    "max" and "average" pool over all steps, so every step counts; "last" sees the receptive field before the end.

    Shapes:
        (B, T, n_channels) float32 -> (B, n_labels), any B and T.

    Units: the input is in the units of `mean` and `std`; without them, in whatever the model is trained on.

    Args:
        n_channels: channels of the signal.
        n_labels: labels to choose from.
        pooling: how the steps become one vector; "last" needs causal padding.
        nb_filters: see `tcn_tagger`, as for all further arguments.
        kernel_size: taps of each convolution.
        nb_stacks: how often the list of dilations is repeated.
        dilations: distances, in steps, between taps, one per block.
        padding: "causal" or "same".
        use_skip_connections: sum the branches of all blocks.
        dropout_rate: fraction of the channels dropped in training.
        activation: name or function.
        use_batch_norm: batch normalisation after each convolution.
        use_layer_norm: layer normalisation after each convolution.
        output_activation: activation of the head; None gives logits.
        mean: mean of each channel over the training data, (n_channels,); goes with `std`.
        std: standard deviation of each channel, (n_channels,).
        name: name of the model.

    Raises:
        ConfigError: arguments out of their range or that do not fit together.

    Example:
        >>> import numpy as np
        >>> model = tcn_classifier(6, 4, pooling="average", nb_filters=8, dilations=(1, 2))
        >>> tuple(model(np.zeros((2, 40, 6), "float32")).shape)
        (2, 4)

    Source: https://arxiv.org/abs/1803.01271.
    """
    _check_choice("pooling", pooling, (*_POOLING, "last"))
    if pooling == "last" and padding != "causal":
        raise config_error(
            "pooling",
            "'max' or 'average' with this padding",
            pooling,
            f"with padding={padding!r} the last step has no future to see; use padding='causal' or another pooling",
        )
    inputs, x = _signal(n_channels, mean, std)
    x = TCN(
        nb_filters,
        kernel_size,
        nb_stacks,
        dilations,
        padding=padding,
        use_skip_connections=use_skip_connections,
        dropout_rate=dropout_rate,
        return_sequences=pooling != "last",
        activation=activation,
        use_batch_norm=use_batch_norm,
        use_layer_norm=use_layer_norm,
        name="tcn",
    )(x)
    if pooling != "last":
        x = _POOLING[pooling](name="pooling")(x)
    return keras.Model(inputs, _head(x, n_labels, output_activation), name=name)


def bilstm_tagger(
    n_channels: int,
    n_labels: int,
    *,
    units: int = 64,
    cell: Literal["lstm", "gru"] = "lstm",
    layers: int = 1,
    merge_mode: Literal["concat", "sum", "mul", "ave"] = "concat",
    dropout_rate: float = 0.2,
    output_activation: str | Callable[..., Any] | None = "softmax",
    mean: npt.ArrayLike | None = None,
    std: npt.ArrayLike | None = None,
    name: str = "bilstm_tagger",
) -> keras.Model:
    """Return a bidirectional LSTM or GRU that labels every step of a sensor signal.

    Every output depends on the whole sequence, the future included.

    Shapes:
        (B, T, n_channels) float32 -> (B, T, n_labels), any B and T.

    Units: the input is in the units of `mean` and `std`; without them, in whatever the model is trained on.

    Args:
        n_channels: channels of the signal.
        n_labels: labels to choose from.
        units: size of the state in each direction.
        cell: "lstm" or "gru".
        layers: bidirectional layers in a row.
        merge_mode: how the two directions are joined: "concat", "sum", "mul" or "ave".
        dropout_rate: fraction of each bidirectional layer's outputs dropped in training, in [0, 1). Dropout inside
            the recurrence is not offered: it keeps Keras from its fused GPU kernels.
        output_activation: activation of the head; None gives logits.
        mean: mean of each channel over the training data, (n_channels,); goes with `std`.
        std: standard deviation of each channel, (n_channels,).
        name: name of the model.

    Raises:
        ConfigError: arguments out of their range or that do not fit together.

    Example:
        >>> import numpy as np
        >>> model = bilstm_tagger(6, 4, units=8, cell="gru")
        >>> tuple(model(np.zeros((2, 10, 6), "float32")).shape)
        (2, 10, 4)

    Source: Graves and Schmidhuber, "Framewise phoneme classification with bidirectional LSTM and other neural network
    architectures", 2005, https://doi.org/10.1016/j.neunet.2005.06.042.
    """
    inputs, x = _signal(n_channels, mean, std)
    x = _bidirectional(x, units=units, cell=cell, layers=layers, merge_mode=merge_mode, dropout_rate=dropout_rate)
    return keras.Model(inputs, _head(x, n_labels, output_activation), name=name)


def bilstm_text_tagger(
    vocabulary_size: int,
    n_labels: int,
    *,
    embedding_dim: int = 64,
    mask_zero: bool = True,
    units: int = 64,
    cell: Literal["lstm", "gru"] = "lstm",
    layers: int = 1,
    merge_mode: Literal["concat", "sum", "mul", "ave"] = "concat",
    dropout_rate: float = 0.2,
    output_activation: str | Callable[..., Any] | None = "softmax",
    name: str = "bilstm_text_tagger",
) -> keras.Model:
    """Return a bidirectional LSTM or GRU that labels every token of a text.

    With `mask_zero`, id 0 is padding: the recurrence skips it and Keras leaves it out of loss and metrics. Pad at the
    end.

    Shapes:
        (B, T) int32 token ids in [0, vocabulary_size) -> (B, T, n_labels), any B and T.

    Args:
        vocabulary_size: number of token ids, id 0 included.
        n_labels: labels to choose from.
        embedding_dim: size of a token's vector.
        mask_zero: treat id 0 as padding.
        units: size of the state in each direction.
        cell: "lstm" or "gru".
        layers: bidirectional layers in a row.
        merge_mode: how the two directions are joined: "concat", "sum", "mul" or "ave".
        dropout_rate: fraction of each bidirectional layer's outputs dropped in training, in [0, 1).
        output_activation: activation of the head; None gives logits.
        name: name of the model.

    Raises:
        ConfigError: arguments out of their range or that do not fit together.

    Example:
        >>> import numpy as np
        >>> model = bilstm_text_tagger(100, 4, embedding_dim=8, units=8)
        >>> tuple(model(np.array([[5, 17, 3, 0, 0]], "int32")).shape)
        (1, 5, 4)

    Source: Huang, Xu and Yu, "Bidirectional LSTM-CRF Models for Sequence Tagging", 2015,
    https://arxiv.org/abs/1508.01991 (its model without the CRF).
    """
    inputs = keras.Input((None,), dtype="int32", name="tokens")
    x = keras.layers.Embedding(
        positive_int("vocabulary_size", vocabulary_size),
        positive_int("embedding_dim", embedding_dim),
        mask_zero=mask_zero,
        name="embedding",
    )(inputs)
    x = _bidirectional(x, units=units, cell=cell, layers=layers, merge_mode=merge_mode, dropout_rate=dropout_rate)
    return keras.Model(inputs, _head(x, n_labels, output_activation), name=name)


def _signal(n_channels: int, mean: npt.ArrayLike | None, std: npt.ArrayLike | None) -> tuple[Any, Any]:
    n_channels = positive_int("n_channels", n_channels)
    inputs = keras.Input((None, n_channels), name="samples")
    if mean is None and std is None:
        return inputs, inputs
    if mean is None or std is None:
        missing = "mean" if mean is None else "std"
        raise config_error(missing, "both mean and std, or neither", None, f"pass {missing}, (n_channels,), as well")
    offset = _per_channel("mean", mean, n_channels)
    scale = _per_channel("std", std, n_channels)
    # Normalization divides by max(std, epsilon), so a smaller std would be replaced without a word.
    if not np.all(scale > keras.config.epsilon()):
        raise config_error(
            "std",
            f"numbers above {keras.config.epsilon()}",
            scale.tolist(),
            "drop the channels that are constant, or give the signal in a smaller unit",
        )
    return inputs, keras.layers.Normalization(mean=offset, variance=scale**2, name="normalization")(inputs)


def _per_channel(argument: str, values: npt.ArrayLike, n_channels: int) -> npt.NDArray[np.float64]:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise config_error(argument, f"{n_channels} numbers", values, "pass one number per channel") from error
    if array.shape != (n_channels,):
        raise config_error(
            argument,
            f"shape ({n_channels},), one number per channel",
            array.shape,
            "compute it over batch and time, e.g. x.mean(axis=(0, 1))",
        )
    if not np.all(np.isfinite(array)):
        raise config_error(argument, "finite numbers", array.tolist(), "remove NaN and infinity from the data first")
    return array


def _bidirectional(x: Any, *, units: int, cell: str, layers: int, merge_mode: str, dropout_rate: float) -> Any:
    units = positive_int("units", units)
    _check_choice("cell", cell, tuple(_CELLS))
    _check_choice("merge_mode", merge_mode, _MERGE_MODES)
    dropout_rate = check_dropout_rate(dropout_rate)
    for i in range(positive_int("layers", layers)):
        recurrent = _CELLS[cell](units, return_sequences=True, name=f"{cell}_{i}")
        x = keras.layers.Bidirectional(recurrent, merge_mode=merge_mode, name=f"bidirectional_{i}")(x)
        x = keras.layers.Dropout(dropout_rate, name=f"dropout_{i}")(x)
    return x


def _head(x: Any, n_labels: int, activation: str | Callable[..., Any] | None) -> Any:
    """Labels for each step of (B, T, F), or for each sequence of (B, F)."""
    n_labels = positive_int("n_labels", n_labels)
    if n_labels == 1 and activation in ("softmax", keras.activations.softmax):
        raise config_error(
            "n_labels", "at least 2 with softmax", 1, "softmax over one label is always 1; use 'sigmoid' for yes or no"
        )
    if len(x.shape) == 2:
        return keras.layers.Dense(n_labels, activation=activation, name="labels")(x)
    return TimeDistributed(keras.layers.Dense(n_labels, activation=activation), name="labels")(x)


def _check_choice(argument: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise config_error(argument, f"one of {', '.join(map(repr, choices))}", value, "choose one of these")
