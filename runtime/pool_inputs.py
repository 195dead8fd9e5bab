"""What ``Pool.step`` and ``Pool.push`` are given, checked as a whole; where it is wrong, the error names the stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from edgeseq.errors import DTypeError, InputError, ShapeError
from edgeseq.runtime.inputs import Array, InputCheck, by_port

Where = Callable[[int], str]
"""What to call stream number i in an error."""


def stacked_samples(checks: Mapping[str, InputCheck], values: Sequence[Any], where: Where) -> list[Array]:
    """One sample of each stream, as (n, C) of each input.

    Raises:
        InputError: a sample is not what the model takes.
    """
    if len(checks) == 1:
        ((name, check),) = checks.items()
        return [_stacked(check, values, where)]
    columns: dict[str, list[Any]] = {name: [] for name in checks}
    for i, value in enumerate(values):
        for name, x, _ in by_port(checks, value, where(i)):
            columns[name].append(x)
    return [
        _stacked(check, columns[name], lambda i, name=name: f"{where(i)}, input {name!r}")  # type: ignore[misc]
        for name, check in checks.items()
    ]


def _stacked(check: InputCheck, values: Sequence[Any], where: Where) -> Array:
    shape, dtype = check.shape, check.dtype
    if not values:
        return np.zeros((0, *shape), dtype)
    if all(type(x) is np.ndarray and x.dtype == dtype and x.shape == shape for x in values):
        x: Array = np.concatenate(values).reshape(-1, *shape) if len(shape) == 1 else np.array(values, dtype)
        if _is_right(check, x):
            return x
    return np.array([check.sample(x, where(i)) for i, x in enumerate(values)], dtype)


def whole_samples(checks: Mapping[str, InputCheck], samples: Any, n: int, where: Where) -> list[Array]:
    """An array of one sample of each of n streams, (n, C), of each input.

    Raises:
        InputError: a sample is not what the model takes.
    """
    arrays = []
    for name, x, what in by_port(checks, samples, f"pool, samples of {n} streams"):
        check = checks[name]
        if not (type(x) is np.ndarray and x.dtype == check.dtype and x.shape == (n, *check.shape)):
            expected = f"{check.dtype.name} {(n, *check.shape)}"
            if not isinstance(x, np.ndarray):
                raise DTypeError(f"{what}: expected a numpy array {expected}, got {type(x).__name__}; convert it")
            error = ShapeError if x.dtype == check.dtype else DTypeError
            raise error(f"{what}: expected {expected}, got {x.dtype} {x.shape}; give one row for each id")
        if not _is_right(check, x):
            for i, row in enumerate(x):
                check.sample(row, where(i) if len(checks) == 1 else f"{where(i)}, input {name!r}")
        arrays.append(x)
    return arrays


def _is_right(check: InputCheck, x: Array) -> bool:
    try:
        check.chunk(x, "")
    except InputError:
        return False
    return True


def checked_chunk(checks: Mapping[str, InputCheck], chunk: Any, where: str) -> list[Array]:
    """A chunk of one stream, (T, C) of each input.

    Raises:
        InputError: it is not what the model takes.
    """
    chunks = [checks[name].chunk(x, what) for name, x, what in by_port(checks, chunk, where)]
    if any(len(each) != len(chunks[0]) for each in chunks):
        lengths = dict(zip(checks, map(len, chunks), strict=True))
        raise InputError(f"{where}: expected as many samples of each input, got {lengths}; cut them alike")
    return chunks
