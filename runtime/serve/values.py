"""Numbers of JSON as arrays of a model's inputs.

JSON has no dtypes, so numbers take the model's own; nothing else is taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from edgeseq.errors import DTypeError, InputError, ShapeError
from edgeseq.model_file import Port
from edgeseq.runtime.inputs import Array


def arrays_of(inputs: Sequence[Port], given: Any, where: str, *, rows: bool) -> Any:
    """What a stream takes: an array, or a mapping of them for a model of several inputs.

    Shapes: one sample, (C,), or with ``rows`` a chunk, (T, C).

    Raises:
        InputError, ShapeError, DTypeError: it holds no such numbers. Whether they are finite is the stream's matter.

    Example:
        >>> arrays_of([Port("x", "float32", (2,))], [1, 2.5], "frame", rows=False)
        array([1. , 2.5], dtype=float32)
        >>> arrays_of([Port("x", "float32", (2,))], [1, True], "frame", rows=False)
        Traceback (most recent call last):
        edgeseq.errors.DTypeError: frame: expected numbers for float32 (2,), got bool; give JSON numbers
    """
    if len(inputs) == 1:
        return _array(inputs[0], given, where, rows)
    if not isinstance(given, Mapping) or set(given) != {port.name for port in inputs}:
        got = list(given) if isinstance(given, Mapping) else type(given).__name__
        raise InputError(f"{where}: expected values by input, {[p.name for p in inputs]}, got {got}; name each once")
    return {port.name: _array(port, given[port.name], f"{where}, input {port.name!r}", rows) for port in inputs}


def _array(port: Port, given: Any, where: str, rows: bool) -> Array:
    sizes = ("T", *port.shape) if rows else port.shape
    expected = f"{port.dtype} ({', '.join(map(str, sizes))}{',' if len(sizes) == 1 else ''})"
    kinds = {int, float} if port.dtype.startswith("float") else {int}
    if rows and given == []:
        return np.zeros((0, *port.shape), port.dtype)
    shape = _shape_of(given, len(sizes))
    strange = {type(x) for x in _leaves(given, len(sizes))} - kinds - {list}
    if strange:
        names = ", ".join(sorted(t.__name__ for t in strange))
        raise DTypeError(f"{where}: expected numbers for {expected}, got {names}; give JSON numbers")
    if shape is None or shape[len(shape) - len(port.shape) :] != port.shape:
        raise ShapeError(f"{where}: expected {expected}, got {_told(given, shape)}; give one number for each channel")
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which the stream refuses by that name
            return np.array(given, port.dtype).reshape(shape)
    except OverflowError as error:
        raise InputError(f"{where}: expected {expected}, got a number that it cannot hold") from error


def _shape_of(given: Any, depth: int) -> tuple[int, ...] | None:
    """The sizes of nested lists; None if they are ragged, or of another depth."""
    if depth == 0:
        return None if isinstance(given, list) else ()
    if not isinstance(given, list):
        return None
    inner = {_shape_of(each, depth - 1) for each in given}
    if len(inner) > 1 or None in inner:
        return None
    return (len(given), *(inner.pop() or ())) if inner else (0,)


def _leaves(given: Any, depth: int) -> Iterator[Any]:
    if not isinstance(given, list) or depth < 0:
        yield given
        return
    for each in given:
        yield from _leaves(each, depth - 1)


def _told(given: Any, shape: tuple[int, ...] | None) -> str:
    if shape is not None:
        return str(shape)
    return f"a ragged list of {len(given)}" if isinstance(given, list) else type(given).__name__
