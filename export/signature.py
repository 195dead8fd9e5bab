"""What a Keras model takes and gives: the ports of its exported file.

Owns the naming of ports and the decision which axis is time. Refuses inputs that are no sequences, channels of unknown
number, and dtypes that a file does not hold. Invariant: one port for each of the model's tensors, in the model's order.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import keras

from edgeseq.errors import ExportError
from edgeseq.model_file import Port

INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True)
class Signature:
    """The ports of a model, and the batch size that it was built for (None for any)."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    batch: int | None

    @property
    def any_length(self) -> bool:
        """Whether the model takes sequences of any length."""
        return all(port.length is None for port in self.inputs)


def signature(model: Any) -> Signature:
    """Read the ports of a built Keras model.

    Shapes: inputs (B, T, ...) float32 or integers, tokens (B, T), or (B, C) float32 without time; outputs (B, T, ...),
    or (B, ...) without time.

    Raises:
        ExportError: the model is no Keras model with known inputs, or a port cannot be in a file.

    Example:
        >>> x = keras.Input((None, 6))
        >>> [port.array_shape for port in signature(keras.Model(x, keras.layers.Dense(7)(x))).outputs]
        [(None, 7)]
    """
    if not isinstance(model, keras.Model):
        raise ExportError(
            f"expected a keras.Model, got {type(model).__name__}; wrap a layer as keras.Model(inputs, outputs)"
        )
    if not getattr(model, "inputs", None) or not getattr(model, "outputs", None):
        raise ExportError(
            f"model {model.name!r} has no known input shape; wrap it: x = keras.Input((None, n_channels)); "
            "keras.Model(x, model(x))"
        )
    inputs = _input_ports(model)
    return Signature(inputs, _output_ports(model, inputs), model.inputs[0].shape[0])


def _input_ports(model: Any) -> tuple[Port, ...]:
    names = _names(structure(model)[0], [_given_name(t.name, "InputLayer") for t in model.inputs], INPUT)
    ports = tuple(_input_port(model, name, tensor) for name, tensor in zip(names, model.inputs, strict=True))
    if not any(port.has_time for port in ports):
        raise ExportError(
            f"model {model.name!r}: expected an input (batch, time, channels) float32, or tokens (batch, time) of "
            f"int32 or int64, got {[tuple(t.shape) for t in model.inputs]}; a model without time needs no edgeseq"
        )
    return ports


def _input_port(model: Any, name: str, tensor: Any) -> Port:
    shape, dtype = tuple(tensor.shape), keras.backend.standardize_dtype(tensor.dtype)
    if dtype not in ("float32", "int32", "int64"):
        raise ExportError(
            f"model {model.name!r}, input {name!r}: expected float32, int32 or int64, got {dtype}; "
            f'build it with keras.Input({shape[1:]}, dtype="float32"), and cast inside the model'
        )
    has_time = len(shape) >= 3 or (len(shape) == 2 and (dtype != "float32" or shape[1] is None))
    if dtype == "float32" and len(shape) == 2 and _goes_into_embedding(tensor):
        raise ExportError(
            f"model {model.name!r}, input {name!r}: expected tokens (batch, time) of int32 or int64, got {dtype}; "
            'tokens need keras.Input((None,), dtype="int32")'
        )
    rest = shape[2:] if has_time else shape[1:]
    if None in rest:
        raise ExportError(
            f"model {model.name!r}, input {name!r}: expected (batch, time, channels) with known channels, got {shape}; "
            "build it with keras.Input((None, n_channels))"
        )
    return Port(name, dtype, rest, has_time=has_time, length=shape[1] if has_time else None)


def _goes_into_embedding(tensor: Any) -> bool:
    readers = tensor._keras_history.operation._outbound_nodes
    return any(isinstance(node.operation, keras.layers.Embedding) for node in readers)


def _output_ports(model: Any, inputs: Sequence[Port]) -> tuple[Port, ...]:
    makers = [tensor._keras_history.operation for tensor in model.outputs]
    names = _names(structure(model)[1], [_given_name(op.name, type(op).__name__) for op in makers], OUTPUT)
    fixed = any(port.length is not None for port in inputs)
    ports = []
    for name, tensor in zip(names, model.outputs, strict=True):
        shape, dtype = tuple(tensor.shape), keras.backend.standardize_dtype(tensor.dtype)
        # Where any length may come in, time is the axis of unknown size; else the axis that has it by convention.
        has_time = len(shape) >= 2 and (shape[1] is None or (fixed and len(shape) >= 3))
        rest = shape[2:] if has_time else shape[1:]
        if None in rest or not shape:
            raise ExportError(
                f"model {model.name!r}, output {name!r}: expected output (batch, time, K) or (batch, K) with known K, "
                f"got {shape}; end it in a Dense, or move time to axis 1"
            )
        if dtype not in ("float32", "int32", "int64"):
            raise ExportError(
                f"model {model.name!r}, output {name!r}: expected float32, int32 or int64, got {dtype}; cast it with "
                'keras.ops.cast(y, "float32")'
            )
        ports.append(Port(name, dtype, rest, has_time=has_time, length=shape[1] if has_time else None))
    taken = {port.name for port in inputs}
    return tuple(port if port.name not in taken else _renamed(port, {*taken, *names}) for port in ports)


def _renamed(port: Port, taken: set[str]) -> Port:
    candidates = (f"{port.name}_{OUTPUT}{f'_{i}' if i else ''}" for i in itertools.count())
    return replace(port, name=next(name for name in candidates if name not in taken))


def structure(model: Any) -> tuple[Any, Any]:
    """How the model's inputs and its outputs are arranged, as ``keras.tree`` sees it."""
    if isinstance(model, keras.Sequential):  # has .input only after it was called
        return model.inputs[0], model.outputs[0]
    return model.input, model.output


def _names(structure: Any, own: Sequence[str | None], kind: str) -> list[str]:
    """``input`` for the only one; else the keys of a dict, or the names the user gave, or the kind and a number."""
    if len(own) == 1:
        return [kind]
    if isinstance(structure, dict) and len(structure) == len(own):
        own = [str(path[-1]) for path, _ in keras.tree.flatten_with_path(structure)]  # in the order of the tensors
    chosen = [re.sub(r"[^\w.-]", "_", name) if name else f"{kind}_{i}" for i, name in enumerate(own)]
    return chosen if len(set(chosen)) == len(chosen) else [f"{kind}_{i}" for i in range(len(own))]


def _given_name(layer_name: str, layer_class: str) -> str | None:
    """The layer's name, unless Keras made it up from the class and a counter."""
    words = re.sub(r"(.)([A-Z][a-z]+)", r"\1_\2", layer_class)
    automatic = re.sub(r"([a-z])([A-Z])", r"\1_\2", words).lower()
    return None if re.fullmatch(rf"({automatic}|keras_tensor|input)(_\d+)?", layer_name) else layer_name
