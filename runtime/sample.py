"""What a sensor sends: a record, and how its values become the arrays that a model takes.

Owns the only place where what came over a wire turns into numbers. Numpy arrays must be of the model's own dtype, as
everywhere; lists and single numbers, as JSON has them, have no dtype to be wrong. A missing value is NaN or None.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeseq.errors import DTypeError, InputError, NonFiniteError, ShapeError
from edgeseq.model_file import Port
from edgeseq.runtime.inputs import Array, InputCheck, by_port

Values = tuple[Array, ...]
"""One array for each input of the model."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of one sensor, as it arrived.

    ``values`` are those of a model of one input, or a mapping from the names of several inputs to theirs: an array (C,)
    of the model's dtype, a list of C numbers, a token, or a mapping from the names of channels to numbers. NaN, None
    and a channel that a mapping leaves out are missing values; so is None for one of several inputs as a whole.
    ``timestamp_s`` is in seconds since any moment; ``sequence`` counts the sensor's samples.

    Example:
        >>> print(Sample("pump-7", [0.1, None, 9.8], timestamp_s=12.5, sequence=812))
        stream 'pump-7', sequence number 812, timestamp 12.5 s
    """

    stream_id: str
    values: Any
    timestamp_s: float | None = None
    sequence: int | None = None

    def __str__(self) -> str:
        number = "" if self.sequence is None else f", sequence number {self.sequence}"
        return f"stream {self.stream_id!r}{number}" + (
            "" if self.timestamp_s is None else f", timestamp {self.timestamp_s} s"
        )


class SampleReader:
    """Turns the values of samples into arrays of their own, and finds what is missing in them.

    Example:
        >>> reader = SampleReader([Port("x", "float32", (3,), names=("a", "b", "c"))], may_miss=True)
        >>> values, missing = reader.read(Sample("pump-7", {"a": 1, "c": 3}))
        >>> values, missing
        ((array([1., 0., 3.], dtype=float32),), (array([False,  True, False]),))
    """

    def __init__(self, ports: Sequence[Port], *, may_miss: bool) -> None:
        self._ports = {port.name: port for port in ports}
        self._checks = {port.name: InputCheck(port) for port in ports}
        self._may_miss = may_miss

    def read(self, sample: Sample) -> tuple[Values, Values | None]:
        """The sample's arrays, one for each input, and where values are missing in them, None if nowhere.

        Missing values are 0 in the arrays. Without ``may_miss``, they are an error.

        Raises:
            ShapeError, DTypeError, NonFiniteError, InputError: the values are not what the model takes.
        """
        found = [self._port(name, x, where) for name, x, where in by_port(self._checks, sample.values, sample)]
        values = tuple(x for x, _ in found)
        if all(missing is None for _, missing in found):
            return values, None
        return values, tuple(np.zeros(x.shape, np.bool_) if missing is None else missing for x, missing in found)

    def _port(self, name: str, given: Any, where: object) -> tuple[Array, Array | None]:
        port, check = self._ports[name], self._checks[name]
        x = given
        if not isinstance(given, (np.ndarray, np.generic)):
            x = _array(port, given, where, whole_may_miss=self._may_miss and len(self._ports) > 1)
        if self._may_miss and isinstance(x, np.ndarray) and x.dtype.kind == "f" and (missing := np.isnan(x)).any():
            x = np.where(missing, x.dtype.type(0), x)
            return check.sample(x, where).copy(), missing
        try:
            return check.sample(x, where).copy(), None
        except NonFiniteError as error:
            raise NonFiniteError(f"{error}, or choose what the clock does with missing values") from None


def _array(port: Port, given: Any, where: object, *, whole_may_miss: bool) -> Any:
    """What JSON can hold, as an array of the port's dtype."""
    expected = f"{port.dtype} {port.shape}"
    if isinstance(given, Mapping):
        given = _by_channel(port, given, where)
    if given is None and whole_may_miss and len(port.shape) == 1:  # one of several sensors was silent
        given = [None] * port.shape[0]
    if not isinstance(given, (list, tuple)) and port.shape != ():
        raise DTypeError(f"{where}: expected {expected} or a list of numbers, got {type(given).__name__}")
    numbers = list(given) if isinstance(given, (list, tuple)) else [given]
    kinds = (int, float) if port.dtype.startswith("float") else (int,)
    for i, x in enumerate(numbers):
        if isinstance(x, bool) or not (isinstance(x, kinds) or (x is None and float in kinds)):
            raise DTypeError(
                f"{where}: expected {expected}, got {type(x).__name__} at {i}; give numbers"
                + (", or None for a missing value" if float in kinds else "")
            )
    if (len(numbers),) != (port.shape or (1,)) or (port.shape == () and isinstance(given, (list, tuple))):
        raise ShapeError(f"{where}: expected {expected}, got {len(numbers)} numbers; give one for each channel")
    try:
        with np.errstate(over="ignore"):  # what is too large for the dtype is infinite, which is refused by that name
            array = np.array([np.nan if x is None else x for x in numbers], port.dtype)
    except OverflowError as error:
        raise InputError(f"{where}: expected {expected}, got a number that it cannot hold ({error})") from error
    return array.reshape(port.shape)


def _by_channel(port: Port, given: Mapping[Any, Any], where: object) -> list[Any]:
    if port.names is None or port.shape != (len(port.names),):
        raise DTypeError(f"{where}: the model does not name its channels, so give a list of numbers, not a mapping")
    unknown = [name for name in given if name not in port.names]
    if unknown:
        raise InputError(
            f"{where}: expected the channels {list(port.names)}, got {unknown}; leave out what is no channel"
        )
    return [given.get(name) for name in port.names]
