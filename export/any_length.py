"""A model built for one length, built again for any.

Most Keras models are built with a fixed length, ``keras.Input((100, 6))``, though nothing in them depends on it.
``for_any_length`` builds such a model anew from its own config with the length left open and copies the weights, which
is what its author would have to do by hand. Whether the two are the same model at the old length is for the exporter's
verification to say. The user's model is not changed.
"""

from __future__ import annotations

from typing import Any

import keras
from keras.src.saving.serialization_lib import SafeModeScope  # no public name

from edgeseq.errors import ExportError
from edgeseq.export.reasons import reason


def for_any_length(model: Any) -> Any:
    """Build ``model`` again for any batch, any length, and without state between batches.

    Raises:
        ExportError: the model cannot be built so; the message says why.

    Example:
        >>> x = keras.Input((100, 6))
        >>> for_any_length(keras.Model(x, keras.layers.LSTM(4)(x))).inputs[0].shape
        (None, None, 6)
    """
    known = {type(layer).__name__: type(layer) for layer in model._flatten_layers()}
    build = keras.Sequential if isinstance(model, keras.Sequential) else keras.Model
    try:
        # Its own code, in memory already: a Lambda is no more dangerous here than before.
        with SafeModeScope(safe_mode=False), keras.device("cpu:0"):
            rebuilt = build.from_config(_opened(model.get_config()), custom_objects=known)
            rebuilt.set_weights(model.get_weights())
    except Exception as error:  # whatever a layer raises when it meets a length that it needs to know
        raise ExportError(f"model {model.name!r} cannot be built for any length: {reason(error)}") from error
    return rebuilt


def _opened(config: Any) -> Any:
    """The config with every input layer open in batch and time, and every layer stateless."""
    if isinstance(config, list):
        return [_opened(item) for item in config]
    if not isinstance(config, dict):
        return config
    opened = {key: _opened(value) for key, value in config.items() if key not in ("build_config", "build_input_shape")}
    if opened.get("class_name") == "InputLayer":
        inner = opened["config"]
        _, *shape = inner["batch_shape"]
        has_time = len(shape) > 1 or inner["dtype"] != "float32"
        inner["batch_shape"] = [None, *([None, *shape[1:]] if has_time else shape)]
    if isinstance(opened.get("stateful"), bool):
        opened["stateful"] = False
    return opened
