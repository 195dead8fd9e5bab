"""A model built for one length, built again for any.

Most Keras models are built with a fixed length, ``keras.Input((100, 6))``, though nothing in them depends on it.
``for_any_length`` builds such a model anew from its own config with the length left open and copies the weights, which
is what its author would have to do by hand. Whether the two are the same model at the old length is for the exporter's
verification to say; ``length_kept_by`` names what was computed from the old length, where that can be seen. The user's
model is not changed, and the global random seeds are not used up.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import numpy as np
from keras.src.backend.common import global_state  # no public name
from keras.src.saving.serialization_lib import SafeModeScope  # no public name

from edgeseq.errors import ExportError
from edgeseq.export.reasons import reason


def for_any_length(model: Any, *, keep_length: bool = False) -> Any:
    """Build ``model`` again for any batch, any length, and without state between batches.

    ``keep_length``: for any batch alone.

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
        with SafeModeScope(safe_mode=False), keras.device("cpu:0"), _seeds_kept():
            rebuilt = build.from_config(_opened(model.get_config(), keep_length), custom_objects=known)
            _raise_what_sequential_hides(rebuilt)
            rebuilt.set_weights(model.get_weights())
        for layer in rebuilt._flatten_layers():
            if hasattr(layer, "finalize_state"):  # Normalization computes with copies of the weights that it adapted
                layer.finalize_state()
    except Exception as error:  # whatever a layer raises when it meets a length that it needs to know
        what = "batch" if keep_length else "length"
        raise ExportError(f"model {model.name!r} cannot be built for any {what}: {reason(error)}") from error
    return rebuilt


def _raise_what_sequential_hides(rebuilt: Any) -> None:
    """A Sequential that cannot be built stays as it is, without a word; its layers, called, say why."""
    if isinstance(rebuilt, keras.Sequential) and rebuilt._functional is None:
        first = rebuilt._layers[0]
        x = keras.Input(batch_shape=first.batch_shape, dtype=first.dtype)
        for layer in rebuilt.layers:
            x = layer(x)


@contextmanager
def _seeds_kept() -> Iterator[None]:
    """New layers draw seeds of the global generators: Python's, and Keras' where it has one."""
    python_state, key = random.getstate(), "global_seed_generator"
    generator = global_state.get_global_attribute(key)
    kept = None if generator is None else np.array(keras.ops.convert_to_numpy(generator.state))
    try:
        yield
    finally:
        random.setstate(python_state)
        global_state.set_global_attribute(key, generator)
        if generator is not None:
            generator.state.assign(kept)


def _opened(config: Any, keep_length: bool) -> Any:
    """The config with every input layer open in batch and, unless it is kept, time, and every layer stateless."""
    if isinstance(config, list):
        return [_opened(item, keep_length) for item in config]
    if not isinstance(config, dict):
        return config
    skipped = ("build_config", "build_input_shape")
    opened = {key: _opened(value, keep_length) for key, value in config.items() if key not in skipped}
    if opened.get("class_name") == "InputLayer":
        inner = opened["config"]
        _, *shape = inner["batch_shape"]
        has_time = len(shape) > 1 or inner["dtype"] != "float32"
        inner["batch_shape"] = [None, *([None, *shape[1:]] if has_time and not keep_length else shape)]
    if isinstance(opened.get("stateful"), bool):
        opened["stateful"] = False
    return opened


def length_kept_by(model: Any, rebuilt: Any) -> str | None:
    """What in the model seems to be computed from the length that it was built for; None if nothing is seen.

    Seen are operations outside layers that index or cut time beyond its first or last step, or that hold a number made
    of a length (n, n - 1, n // 2, 1 / n, above 2); and layers whose size is a length. A length may also be its kernel
    sizes' or channels' by chance, so this is a reason to keep the length, not to refuse the model.

    Example:
        >>> x = keras.Input((20, 3))
        >>> model = keras.Model(x, keras.ops.sum(x, axis=1) / x.shape[1])
        >>> length_kept_by(model, for_any_length(model))
        'operation TrueDivide holds 20, which may be computed from the length'
    """
    lengths = _lengths(model, rebuilt)
    for layer in rebuilt._flatten_layers():
        if (number := _length_of_layer(layer, lengths)) is not None:
            return f"layer {layer.name!r} ({type(layer).__name__}) holds {number:g}, a length of the model"
        for operation in getattr(layer, "operations", ()):
            if isinstance(operation, keras.layers.Layer):
                continue
            for node in operation._inbound_nodes:
                if (number := _length_of_operation(operation, node.arguments, lengths)) is not None:
                    return (
                        f"operation {type(operation).__name__} holds {number:g}, which may be computed from the length"
                    )
    return None


def _lengths(model: Any, rebuilt: Any) -> set[int]:
    """The sizes of axis 1 in the model that are open in the rebuilt one."""
    return {
        old.shape[1]
        for was, now in zip(model._flatten_layers(), rebuilt._flatten_layers(), strict=True)
        for a, b in zip(_nodes(was), _nodes(now), strict=False)
        for old, new in zip(a.output_tensors, b.output_tensors, strict=True)
        if len(new.shape) > 1 and new.shape[1] is None and old.shape[1] is not None
    }


def _nodes(layer: Any) -> list[Any]:
    operations = [layer, *(each for each in getattr(layer, "operations", ()) if each is not layer)]
    return [node for operation in operations for node in operation._inbound_nodes]


def _length_of_layer(layer: Any, lengths: set[int]) -> float | None:
    sizes = [getattr(layer, name, None) for name in ("n", "pool_size", "target_shape")]
    whole = lengths if isinstance(layer, (keras.layers.RepeatVector, keras.layers.Reshape, *_POOLS)) else set()
    if (found := _first(sizes, lambda n: n > 1 and n in whole)) is not None:
        return found
    if isinstance(layer, keras.layers.Cropping1D):
        return _first(layer.cropping, lambda n: n > 2 and n in _made_of(lengths))
    return None


_POOLS = (keras.layers.AveragePooling1D, keras.layers.MaxPooling1D)


def _length_of_operation(operation: Any, arguments: Any, lengths: set[int]) -> float | None:
    made = _made_of(lengths)
    config = {key: value for key, value in operation.get_config().items() if key not in ("name", "axis", "dtype")}
    constants = [config, list(arguments.args[1:]), arguments.kwargs]
    of_time = _index_of_time(type(operation).__name__, operation, arguments)
    if of_time is None:
        return _first([*arguments.args[:1], *constants], lambda n: n in made)
    return _first(of_time, lambda n: abs(n) >= 2 or n in lengths)


def _index_of_time(kind: str, operation: Any, arguments: Any) -> list[Any] | None:
    """What an indexing operation takes of axis 1, if that is open; None if the operation does not index time."""
    given: list[Any] = [*arguments.args, *arguments.kwargs.values()]
    source, rest = given[0] if given else None, given[1:]
    shape: Any = getattr(source, "shape", ())
    if len(shape) < 2 or shape[1] is not None or not rest:
        return [] if kind == "GetItem" else None
    if kind == "Take" and operation.axis in (1, 1 - len(shape)):
        return rest
    if kind == "Slice":
        return [rest[0][1], operation.shape[1]]
    if kind != "GetItem":
        return None
    key = list(rest[0]) if isinstance(rest[0], (tuple, list)) else [rest[0]]
    if Ellipsis in key:
        at = key.index(Ellipsis)
        key[at : at + 1] = [slice(None)] * (len(shape) - len(key) + 1)
    time = key[1] if len(key) > 1 else None
    return [time.start, time.stop] if isinstance(time, slice) else [time]


def _made_of(lengths: set[int]) -> set[float]:
    numbers = {number for n in lengths for number in (n, n - 1, n // 2, 1 / n, float(np.float32(1 / n))) if n > 0}
    return {number for number in numbers if number > 2 or 0 < number < 0.5}


def _first(constants: Any, is_meant: Callable[[float], bool]) -> float | None:
    """The first number among nested constants that is meant; also in arrays of one value."""
    if isinstance(constants, dict):
        return _first(list(constants.values()), is_meant)
    if isinstance(constants, (list, tuple)):
        found = (_first(each, is_meant) for each in constants)
        return next((number for number in found if number is not None), None)
    if isinstance(constants, (str, bool, keras.KerasTensor)) or constants is None:
        return None
    if not np.isscalar(constants) and (not hasattr(constants, "shape") or np.prod(constants.shape) != 1):
        return None
    number = float(np.asarray(constants).reshape(()))
    return number if is_meant(number) else None
