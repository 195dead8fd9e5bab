"""The temporal convolutional network as a Keras 3 layer, with keras-tcn's arguments, semantics and weight order.

Owns `TCN` and its `ResidualBlock`. It uses `keras.layers` and `keras.ops` only, so it trains on TensorFlow, JAX and
torch, and the exporter meets nothing but ordinary Keras layers.

Refuses arguments that do not fit together (`ConfigError`) and inputs that are not (B, T, C) (`ShapeError`). It does
not take part in masking: convolutions mix padded steps into their neighbours, so passing a mask on would be a promise
that the numbers do not keep. As with keras-tcn, Keras warns when a mask reaches the layer.

Invariant: with the same arguments and `layer.set_weights(keras_tcn_layer.get_weights())`, the outputs are those of
keras-tcn.

Source: Bai, Kolter and Koltun, "An Empirical Evaluation of Generic Convolutional and Recurrent Networks for Sequence
Modeling", 2018, https://arxiv.org/abs/1803.01271; keras-tcn, https://github.com/philipperemy/keras-tcn.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from numbers import Integral, Real
from typing import Any

import keras

from edgeseq.errors import ConfigError, ShapeError

__all__ = ["TCN", "ResidualBlock"]

CONVS_PER_BLOCK = 2


def config_error(argument: str, expected: str, got: object, fix: str) -> ConfigError:
    """Return a `ConfigError` that says what was expected of an argument, what came, and what to do.

    Example:
        >>> str(config_error("padding", "'causal' or 'same'", "valid", "choose one of the two"))
        "padding: expected 'causal' or 'same', got 'valid'; choose one of the two"
    """
    return ConfigError(f"{argument}: expected {expected}, got {got!r}; {fix}")


def positive_int(argument: str, value: object) -> int:
    """Return `value` as an int.

    Raises:
        ConfigError: it is not an integer of at least 1.

    Example:
        >>> positive_int("kernel_size", 3)
        3
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise config_error(argument, "an integer of at least 1", value, "pass a positive int")
    return int(value)


def check_dropout_rate(rate: object) -> float:
    """Return `rate` as a float.

    Raises:
        ConfigError: it is not a number in [0, 1).

    Example:
        >>> check_dropout_rate(0)
        0.0
    """
    if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 <= float(rate) < 1:
        raise config_error("dropout_rate", "a number in [0, 1)", rate, "pass the fraction of channels to drop, or 0")
    return float(rate)


def _channels(input_shape: Sequence[int | None]) -> int:
    if len(input_shape) != 3 or input_shape[-1] is None:
        raise ShapeError(
            f"TCN input: expected (batch, time, channels) with a known number of channels, got {tuple(input_shape)}; "
            "add the missing axis, or declare keras.Input((None, channels))"
        )
    return input_shape[-1]


def _fresh(initializer: Any) -> Any:
    # A Keras initializer draws the same values at every call, so layers that shared one instance would start equal.
    return initializer.clone() if isinstance(initializer, keras.initializers.Initializer) else initializer


@keras.saving.register_keras_serializable(package="edgeseq")
class ResidualBlock(keras.layers.Layer):  # type: ignore[misc]  # Keras ships no types
    """Two dilated convolutions beside an identity or 1x1 convolution: the unit that `TCN` stacks.

    Branch: (Conv1D, normalisation, activation, spatial dropout) twice, then the activation once more. That last
    activation changes nothing for relu, and does for tanh and most others. Output: activation(input + branch), where
    the input passes a 1x1 convolution if its channels are not `nb_filters`.

    Shapes:
        (B, T, C) -> ((B, T, nb_filters), (B, T, nb_filters)), the output and the branch.

    Args:
        dilation_rate: distance, in steps, between the taps of both convolutions.
        nb_filters: channels of the output.
        kernel_size: taps of each convolution.
        padding: "causal" (the past only) or "same" (past and future).
        activation: name or function.
        dropout_rate: fraction of the channels dropped in training, in [0, 1).
        kernel_initializer: name, config or initializer of every convolution kernel.
        use_batch_norm: batch normalisation after each convolution.
        use_layer_norm: layer normalisation, over the channels of a step, after each convolution.
        **kwargs: what every Keras layer takes: name, dtype, trainable.

    Raises:
        ConfigError: an argument out of its range, or both normalisations at once.
        ShapeError: at build, an input that is not (B, T, C) with a known C.

    Example:
        >>> import numpy as np
        >>> block = ResidualBlock(dilation_rate=2, nb_filters=4, kernel_size=3, padding="causal")
        >>> output, branch = block(np.zeros((1, 10, 6), "float32"))
        >>> tuple(output.shape), tuple(branch.shape)
        ((1, 10, 4), (1, 10, 4))

    Source: figure 1 (b) of https://arxiv.org/abs/1803.01271; keras-tcn for the second activation on the branch.
    """

    def __init__(
        self,
        *,
        dilation_rate: int,
        nb_filters: int,
        kernel_size: int,
        padding: str,
        activation: str | Callable[..., Any] | None = "relu",
        dropout_rate: float = 0.0,
        kernel_initializer: Any = "he_normal",
        use_batch_norm: bool = False,
        use_layer_norm: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if padding not in {"causal", "same"}:
            raise config_error("padding", "'causal' or 'same'", padding, "use 'causal' for the past only")
        if use_batch_norm and use_layer_norm:
            raise config_error(
                "use_batch_norm, use_layer_norm", "at most one of them", (True, True), "turn one of the two off"
            )
        if isinstance(activation, keras.layers.Layer):
            raise config_error(
                "activation", "a name or a function", activation, "a layer would be shared; use e.g. 'leaky_relu'"
            )
        self.dilation_rate = positive_int("dilation_rate", dilation_rate)
        self.nb_filters = positive_int("nb_filters", nb_filters)
        self.kernel_size = positive_int("kernel_size", kernel_size)
        self.padding = padding
        self.activation = keras.activations.get(activation)
        self.dropout_rate = check_dropout_rate(dropout_rate)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.use_batch_norm = bool(use_batch_norm)
        self.use_layer_norm = bool(use_layer_norm)

        # Keras orders weights as the sublayers are attached: this order, then the matching convolution made in
        # build(), is keras-tcn's.
        self.branch_layers: list[Any] = []
        for i in range(CONVS_PER_BLOCK):
            self.branch_layers.append(self._conv(self.kernel_size, self.dilation_rate, self.padding, f"conv_{i}"))
            if self.use_batch_norm:
                self.branch_layers.append(keras.layers.BatchNormalization(name=f"norm_{i}", dtype=self.dtype_policy))
            elif self.use_layer_norm:
                self.branch_layers.append(keras.layers.LayerNormalization(name=f"norm_{i}", dtype=self.dtype_policy))
            self.branch_layers.append(self._activation(f"activation_{i}"))
            self.branch_layers.append(
                keras.layers.SpatialDropout1D(self.dropout_rate, name=f"dropout_{i}", dtype=self.dtype_policy)
            )
        self.branch_layers.append(self._activation("branch_activation"))
        self.output_activation = self._activation("output_activation")
        self.matching_conv: Any = None

    def _conv(self, kernel_size: int, dilation_rate: int, padding: str, name: str) -> Any:
        return keras.layers.Conv1D(
            self.nb_filters,
            kernel_size,
            dilation_rate=dilation_rate,
            padding=padding,
            kernel_initializer=_fresh(self.kernel_initializer),
            name=name,
            dtype=self.dtype_policy,
        )

    def _activation(self, name: str) -> Any:
        return keras.layers.Activation(self.activation, name=name, dtype=self.dtype_policy)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create the weights for inputs of shape (B, T, C)."""
        channels = _channels(input_shape)
        shape = tuple(input_shape)
        for layer in self.branch_layers:
            layer.build(shape)
            shape = layer.compute_output_shape(shape)
        if channels != self.nb_filters:
            self.matching_conv = self._conv(1, 1, "same", "matching_conv")
            self.matching_conv.build(tuple(input_shape))
        self.built = True

    def call(self, inputs: Any, training: bool | None = None) -> tuple[Any, Any]:
        """Return the output and the branch: (B, T, C) -> two of (B, T, nb_filters)."""
        branch = inputs
        for layer in self.branch_layers:
            branch = layer(branch, training=training)
        shortcut = inputs if self.matching_conv is None else self.matching_conv(inputs)
        return self.output_activation(shortcut + branch), branch

    def compute_output_shape(
        self, input_shape: Sequence[int | None]
    ) -> tuple[tuple[int | None, ...], tuple[int | None, ...]]:
        """Return the shapes of the output and the branch; needs no built layer."""
        shape = (*input_shape[:-1], self.nb_filters)
        return shape, shape

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this block."""
        return {
            **super().get_config(),
            "dilation_rate": self.dilation_rate,
            "nb_filters": self.nb_filters,
            "kernel_size": self.kernel_size,
            "padding": self.padding,
            "activation": keras.activations.serialize(self.activation),
            "dropout_rate": self.dropout_rate,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "use_batch_norm": self.use_batch_norm,
            "use_layer_norm": self.use_layer_norm,
        }


@keras.saving.register_keras_serializable(package="edgeseq")
class TCN(keras.layers.Layer):  # type: ignore[misc]  # Keras ships no types
    """Temporal convolutional network: `nb_stacks` times one `ResidualBlock` per dilation.

    Takes the arguments of keras-tcn, loads its `get_config()` and, by `set_weights`, its `get_weights()`. With skip
    connections the output is the sum of the block branches, without a final activation; without them it is the
    output of the last block. (A TCN of one single block with skip connections therefore has a 1x1 convolution that
    nothing depends on; it is kept, as in keras-tcn, so that weights load.)

    Masks are not supported. On padded batches give the padded steps a sample weight of 0; with causal padding, steps
    padded at the end do not reach the steps before them.

    Shapes:
        (B, T, C) -> (B, T, F) with `return_sequences`, else (B, F); F is `nb_filters`, or its last entry.

    Args:
        nb_filters: channels of every block, or one number per dilation.
        kernel_size: taps of each convolution.
        nb_stacks: how often the list of dilations is repeated.
        dilations: distances, in steps, between taps, one per block.
        padding: "causal" (the past only) or "same" (past and future).
        use_skip_connections: sum the branches of all blocks.
        dropout_rate: fraction of the channels dropped in training, in [0, 1).
        return_sequences: all steps, or one: the last with causal padding, the middle one, T // 2, with "same". T is
            that of the input at hand (keras-tcn keeps the one seen at build, where it was known).
        activation: name or function.
        kernel_initializer: name, config or initializer of every convolution kernel. Every convolution gets a copy.
        use_batch_norm: batch normalisation after each convolution.
        use_layer_norm: layer normalisation, over the channels of a step, after each convolution.
        go_backwards: reverse the input in time first. The output stays reversed: output i belongs to input T-1-i.
        return_state: has no effect here or in keras-tcn, which stores it; kept so that its configs load.
        **kwargs: what every Keras layer takes: name, dtype, trainable.

    Raises:
        ConfigError: an argument out of its range, both normalisations at once, a list of filters whose length is not
            that of the dilations, or unequal filters with skip connections.
        ShapeError: at build, an input that is not (B, T, C) with a known C.

    Example:
        >>> import numpy as np
        >>> layer = TCN(8, kernel_size=3, dilations=(1, 2, 4), return_sequences=True)
        >>> tuple(layer(np.zeros((2, 50, 6), "float32")).shape)
        (2, 50, 8)
        >>> layer.receptive_field
        (28, 0)

    Source: https://arxiv.org/abs/1803.01271 and https://github.com/philipperemy/keras-tcn.
    """

    def __init__(  # noqa: PLR0917  # keras-tcn's order, so that positional calls move over unchanged
        self,
        nb_filters: int | Sequence[int] = 64,
        kernel_size: int = 3,
        nb_stacks: int = 1,
        dilations: Sequence[int] = (1, 2, 4, 8, 16, 32),
        padding: str = "causal",
        use_skip_connections: bool = True,
        dropout_rate: float = 0.0,
        return_sequences: bool = False,
        activation: str | Callable[..., Any] | None = "relu",
        kernel_initializer: Any = "he_normal",
        use_batch_norm: bool = False,
        use_layer_norm: bool = False,
        go_backwards: bool = False,
        return_state: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if return_state:
            warnings.warn("TCN: return_state=True has no effect, a TCN returns its output only", stacklevel=2)
        self.nb_stacks = positive_int("nb_stacks", nb_stacks)
        self.dilations = _positive_ints("dilations", dilations)
        self.use_skip_connections = bool(use_skip_connections)
        filters = self._filters_per_dilation(nb_filters)
        self.nb_filters = filters[0] if isinstance(nb_filters, Integral) else filters
        self.return_sequences = bool(return_sequences)
        self.go_backwards = bool(go_backwards)
        self.return_state = bool(return_state)
        self.stateful = False  # asked for by Bidirectional, which also passes initial_state=None to call()
        self.residual_blocks: list[Any] = [
            ResidualBlock(
                dilation_rate=dilation_rate,
                nb_filters=nb_block_filters,
                kernel_size=kernel_size,
                padding=padding,
                activation=activation,
                dropout_rate=dropout_rate,
                kernel_initializer=kernel_initializer,
                use_batch_norm=use_batch_norm,
                use_layer_norm=use_layer_norm,
                name=f"residual_block_{stack * len(self.dilations) + i}",
                dtype=self.dtype_policy,
            )
            for stack in range(self.nb_stacks)
            for i, (dilation_rate, nb_block_filters) in enumerate(zip(self.dilations, filters, strict=True))
        ]
        # Checked and normalised by the blocks.
        block = self.residual_blocks[0]
        self.kernel_size: int = block.kernel_size
        self.padding: str = block.padding
        self.activation = block.activation
        self.dropout_rate: float = block.dropout_rate
        self.kernel_initializer = block.kernel_initializer
        self.use_batch_norm: bool = block.use_batch_norm
        self.use_layer_norm: bool = block.use_layer_norm

    def _filters_per_dilation(self, nb_filters: int | Sequence[int]) -> tuple[int, ...]:
        if not isinstance(nb_filters, Sequence):
            return (positive_int("nb_filters", nb_filters),) * len(self.dilations)
        filters = _positive_ints("nb_filters", nb_filters)
        if len(filters) != len(self.dilations):
            raise config_error(
                "nb_filters",
                f"one number per dilation, {len(self.dilations)} in all",
                list(filters),
                f"dilations are {list(self.dilations)}; pass as many filters, or one int for all",
            )
        if self.use_skip_connections and len(set(filters)) > 1:
            raise config_error(
                "nb_filters",
                "equal numbers, because skip connections add the branches of all blocks",
                list(filters),
                "make them equal or pass use_skip_connections=False",
            )
        return filters

    @property
    def receptive_field(self) -> tuple[int, int]:
        """Steps before and after the current one that influence an output: (past, future), the current not counted.

        keras-tcn's property of this name is one number, that of causal padding, and counts the current step.

        With `go_backwards` the two are swapped, because they are counted in the time of the input, around the input
        step that an output belongs to: output i belongs to step T-1-i. Batch normalisation adds nothing at inference;
        in training it looks at the whole batch.

        Example:
            >>> TCN(4, kernel_size=2, dilations=(1, 2), padding="same").receptive_field
            (2, 4)
        """
        past = future = 0
        for dilation in self.dilations:
            span = dilation * (self.kernel_size - 1)
            # An odd span cannot be split evenly: 'same' puts the extra step after, on every Keras backend.
            left = span if self.padding == "causal" else span // 2
            past += CONVS_PER_BLOCK * self.nb_stacks * left
            future += CONVS_PER_BLOCK * self.nb_stacks * (span - left)
        return (future, past) if self.go_backwards else (past, future)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Create the weights for inputs of shape (B, T, C)."""
        _channels(input_shape)
        shape = tuple(input_shape)
        for block in self.residual_blocks:
            block.build(shape)
            shape, _ = block.compute_output_shape(shape)
        self.built = True

    def call(self, inputs: Any, training: bool | None = None, initial_state: None = None) -> Any:
        """Return (B, T, F) with `return_sequences`, else (B, F). `Bidirectional` passes an `initial_state` of None."""
        if initial_state is not None:
            raise config_error("initial_state", "None", initial_state, "a TCN has no state to start from")
        x = keras.ops.flip(inputs, axis=1) if self.go_backwards else inputs
        branches = []
        for block in self.residual_blocks:
            x, branch = block(x, training=training)
            branches.append(branch)
        if self.use_skip_connections:
            x = sum(branches[1:], start=branches[0])
        if self.return_sequences:
            return x
        step = -1 if self.padding == "causal" else keras.ops.shape(x)[1] // 2
        return x[:, step, :]

    def compute_output_shape(self, input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
        """Return the output shape; needs no built layer."""
        filters = self.residual_blocks[-1].nb_filters
        return (*input_shape[:-1], filters) if self.return_sequences else (input_shape[0], filters)

    def get_config(self) -> dict[str, Any]:
        """Return the arguments that rebuild this layer: keras-tcn's keys."""
        return {
            **super().get_config(),
            "nb_filters": self.nb_filters if isinstance(self.nb_filters, int) else list(self.nb_filters),
            "kernel_size": self.kernel_size,
            "nb_stacks": self.nb_stacks,
            "dilations": list(self.dilations),
            "padding": self.padding,
            "use_skip_connections": self.use_skip_connections,
            "dropout_rate": self.dropout_rate,
            "return_sequences": self.return_sequences,
            "activation": keras.activations.serialize(self.activation),
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "use_batch_norm": self.use_batch_norm,
            "use_layer_norm": self.use_layer_norm,
            "go_backwards": self.go_backwards,
            "return_state": self.return_state,
        }


def _positive_ints(argument: str, values: object) -> tuple[int, ...]:
    if not isinstance(values, Sequence) or isinstance(values, str) or not values:
        raise config_error(argument, "a list of at least one positive int", values, "pass e.g. [1, 2, 4, 8]")
    return tuple(positive_int(f"{argument}[{i}]", value) for i, value in enumerate(values))
