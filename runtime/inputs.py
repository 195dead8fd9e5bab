"""What a model accepts: strict checks of samples and chunks.

A sample is (C,), a chunk (T, C); for a model of tokens a sample is a scalar and a chunk (T,). A sequence, the whole
input of an offline model, is like a chunk, but some models take one length only, or an input without time. The dtype
is the model's own. Nothing is cast, padded or repaired: anything else is a named error that says where, expected, got
and fix. Non-finite values are refused because ONNX Runtime's CPU LSTM turns NaN into finite, plausible numbers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeseq.errors import DTypeError, InputError, NonFiniteError, ShapeError
from edgeseq.model_file import Conditions, Port

Array = np.ndarray[Any, np.dtype[Any]]


def by_port(checks: Mapping[str, InputCheck], given: Any, where: object) -> list[tuple[str, Any, object]]:
    """(name, value, where it came from) of every input of a model; a model of several takes a mapping.

    Raises:
        DTypeError: it is no mapping.
        InputError: it does not name each input once.
    """
    if len(checks) == 1:
        return [(name, given, where) for name in checks]
    if not isinstance(given, Mapping):
        raise DTypeError(
            f"{where}: expected a mapping with the inputs {list(checks)}, got {type(given).__name__}; "
            "pass a dict of arrays"
        )
    if set(given) != set(checks):
        raise InputError(f"{where}: expected the inputs {list(checks)}, got {list(given)}; name each once")
    return [(name, given[name], f"{where}, input {name!r}") for name in checks]


def check_length(conditions: Conditions, n_samples: int, where: object) -> None:
    """Check that a sequence may end after so many samples.

    Raises:
        InputError: the model was streamed by a promise of the length, and so many samples break it.
    """
    if not conditions.allow(n_samples):
        modulus, remainder = conditions.length_modulo or (1, 0)
        raise InputError(
            f"{where}: expected {remainder} samples modulo {modulus} at flush(), which the model was streamed by "
            f"(length_modulo), got {n_samples}; push as many as are missing, or reset()"
        )


def rejected(where: object, error: Exception, n_waiting: int) -> InputError:
    """The error for an input that ONNX Runtime cannot run, behind so many samples that waited for a whole granule."""
    text = (str(error).splitlines() or [type(error).__name__])[0]
    waited = f"; it may be one of the {n_waiting} samples that waited before it: reset()" if n_waiting else ""
    return InputError(f"{where}: ONNX Runtime rejected the input: {text}{waited}")


class InputCheck:
    """Checks the inputs of one model.

    Example:
        >>> check = InputCheck(Port("input", "float32", (3,)))
        >>> check.sample(np.zeros(3), "stream 'pump-7', sample 812")
        Traceback (most recent call last):
        edgeseq.errors.DTypeError: stream 'pump-7', sample 812: expected float32 (3,), got float64 (3,); cast with \
x.astype(np.float32)
    """

    def __init__(self, port: Port) -> None:
        self._port = port
        self._shape = self.shape = port.shape
        self._dtype = self.dtype = np.dtype(port.dtype)
        self._is_float = self._dtype.kind == "f"
        self._is_token = port.shape == () and self._dtype.kind == "i"
        if not self._is_float:
            self._last_token = np.iinfo(self._dtype).max if port.vocabulary is None else port.vocabulary - 1

    def sample(self, x: Any, where: object) -> Array:
        """Return ``x`` if it is one sample, (C,) or a scalar token; raise an ``InputError`` otherwise."""
        # What is right, as nearly always, is found to be so in one line; all else goes through every check below.
        if type(x) is np.ndarray and x.dtype == self._dtype and x.shape == self._shape and self._surely_finite(x):
            return x
        if self._is_token and type(x) is int:  # a Python int has no dtype to be wrong
            x = self._token(x, where)
        elif isinstance(x, np.generic):
            x = np.asarray(x)
        self._same_kind(x, self._shape, where, chunk_advice=True)
        self._values(x, where)
        return x  # type: ignore[no-any-return]

    def chunk(self, x: Any, where: object) -> Array:
        """Return ``x`` if it is a chunk, (T, C) or tokens (T,), with T >= 0; raise an ``InputError`` otherwise."""
        self._same_kind(x, (self._length(x), *self._shape), where, chunk_advice=True)
        self._values(x, where)
        return x  # type: ignore[no-any-return]

    def sequence(self, x: Any, where: object) -> Array:
        """Return ``x`` if it is the input of one sequence, (T, C), tokens (T,), or (C,) without time."""
        length = self._port.length if self._port.length is not None else self._length(x)
        self._same_kind(x, (length, *self._shape) if self._port.has_time else self._shape, where)
        self._values(x, where)
        return x  # type: ignore[no-any-return]

    def _length(self, x: Any) -> int | str:
        return x.shape[0] if isinstance(x, np.ndarray) and x.ndim == len(self._shape) + 1 else "T"

    def _token(self, x: int, where: object) -> Array:
        if not 0 <= x <= self._last_token:
            raise InputError(
                f"{where}: expected a token from 0 to {self._last_token}, got {x}; map it to the vocabulary first"
            )
        return np.array(x, self._dtype)

    def _same_kind(self, x: Any, shape: tuple[int | str, ...], where: object, *, chunk_advice: bool = False) -> None:
        if isinstance(x, (np.ma.MaskedArray, np.matrix)):  # their methods skip values, or change shapes
            raise DTypeError(
                f"{where}: expected a plain numpy array, got {type(x).__name__}; decide what its gaps are first"
            )
        if isinstance(x, np.ndarray) and x.dtype == self._dtype and x.shape == shape:
            return
        expected = f"{self._dtype.name} ({', '.join(map(str, shape))}{',' if len(shape) == 1 else ''})"
        if not isinstance(x, np.ndarray):
            raise DTypeError(
                f"{where}: expected a numpy array {expected}, got {type(x).__name__}; "
                f"convert with np.asarray(x, dtype=np.{self._dtype.name})"
            )
        same_name = x.dtype.name == self._dtype.name  # another byte order
        got = f"{x.dtype.str if same_name and x.dtype != self._dtype else x.dtype.name} {x.shape}"
        if x.dtype != self._dtype:
            raise DTypeError(f"{where}: expected {expected}, got {got}; cast with x.astype(np.{self._dtype.name})")
        advice = self._chunk_advice(x, len(shape)) if chunk_advice else None
        raise ShapeError(f"{where}: expected {expected}, got {got}; {advice or self._shape_advice(x, shape)}")

    def _values(self, x: Array, where: object) -> None:
        if not self._is_float:
            if x.size and x.min() < 0:
                raise InputError(
                    f"{where}: expected tokens of 0 or more, got {x.min()}; map them to the vocabulary first"
                )
            if x.size and x.max() > self._last_token:
                raise InputError(
                    f"{where}: expected tokens from 0 to {self._last_token}, got {x.max()}; map them to the vocabulary "
                    "first"
                )
            return
        if self._surely_finite(x) or np.isfinite(x).all():
            return
        at = tuple(int(i) for i in np.argwhere(~np.isfinite(x))[0])
        axes = ["row"] * (x.ndim - len(self._shape)) + ["channel"] * len(self._shape)
        place = ", ".join(f"{axis} {i}" for axis, i in zip(axes, at, strict=True)) or "the sample"
        raise NonFiniteError(
            f"{where}: expected finite values, got {x[at]} at {place}; repair or drop it before the model"
        )

    def _surely_finite(self, x: Array) -> bool:
        # One pass without temporaries: the sum of squares is finite unless a value is not, or is huge.
        return self._is_float and math.isfinite(np.vdot(x, x))

    def _chunk_advice(self, x: Array, expected_ndim: int) -> str | None:
        if expected_ndim == len(self._shape) and x.ndim == expected_ndim + 1:
            return "use push() for a chunk of samples"
        if expected_ndim == len(self._shape) + 1 and x.shape == self._shape:
            return "use step() for one sample"
        return None

    def _shape_advice(self, x: Array, shape: tuple[int | str, ...]) -> str:
        if x.ndim == len(shape) + 1 and x.shape[0] == 1:
            return "drop the batch axis with x[0]: it is one sequence"
        if self._port.length is not None and x.ndim == len(shape) and x.shape[1:] == shape[1:]:
            return f"the model takes sequences of exactly {self._port.length} steps"
        return "the last axis holds the model's channels" if self._shape else "tokens have one axis, time"
