"""``TimeDistributed`` that is right for any batch size and any length.

Keras 3.15's own, on TensorFlow, maps over the batch size once a graph has unknown batch and time: ``predict`` and
``fit`` on sequences of several lengths, and every ONNX export, turn (3, 9, F) into (3, 3, K) without a word. This one
merges batch and time, applies the layer, and splits them again. Invariant: output step t of sequence b is the layer's
output on input step t of sequence b.
"""

from __future__ import annotations

from typing import Any

import keras

__all__ = ["TimeDistributed"]


@keras.saving.register_keras_serializable(package="edgeseq")
class TimeDistributed(keras.layers.TimeDistributed):  # type: ignore[misc]  # Keras ships no types
    """Apply one layer to every step. Takes what ``keras.layers.TimeDistributed`` takes; a mask is passed on, not used.

    Shapes: (B, T, ...) -> (B, T, ...), any B and any T.

    Example:
        >>> import numpy as np
        >>> inputs = keras.Input((None, 4))
        >>> model = keras.Model(inputs, TimeDistributed(keras.layers.Dense(2))(inputs))
        >>> [model.predict(np.zeros((3, t, 4)), verbose=0).shape for t in (7, 9)]
        [(3, 7, 2), (3, 9, 2)]
    """

    def call(self, inputs: Any, training: bool | None = None, mask: Any = None) -> Any:  # noqa: ARG002
        """Apply the layer to all steps of all sequences at once."""
        if isinstance(self.layer, (keras.layers.Dense, keras.layers.Activation)):  # they leave all axes but the last
            return self.layer(inputs, training=training)
        steps = keras.ops.shape(inputs)[1]
        y = self.layer(keras.ops.reshape(inputs, (-1, *inputs.shape[2:])), training=training)
        return keras.ops.reshape(y, (-1, steps, *y.shape[1:]))
