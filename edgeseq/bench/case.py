"""What a row of the bench is: a case that a worker prepares and calls, or a figure that it measures once.

Nothing is imported here but numpy, since a worker of a peer may run where edgeseq's own dependencies are missing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

EQUAL = 1e-4
"""Largest difference of a peer, in units of the largest output: float32 sums in other orders stay far below."""


class LeftOutError(Exception):
    """This row does not apply to this model; the message says why."""


@dataclass(frozen=True)
class Target:
    """The files of one model. ``check`` is an .npz of ``x`` (T, C) and of ``y`` (T, K), what the offline model gives.

    Example:
        >>> Target("runs/gesture.stream.onnx").beside(".keras")
        PosixPath('runs/gesture.keras')
    """

    stream: str
    offline: str | None = None
    check: str | None = None

    @property
    def name(self) -> str:
        """The file's name without its endings."""
        return Path(self.stream).name.removesuffix(".onnx").removesuffix(".stream")

    def beside(self, suffix: str) -> Path:
        """The file of the same name and another ending."""
        return Path(self.stream).with_name(self.name + suffix)

    def need(self, suffix: str, hint: str) -> Path:
        """The file of the same name and another ending; ``hint`` says where it comes from.

        Raises:
            LeftOutError: there is none.
        """
        path = self.beside(suffix)
        if not path.is_file():
            raise LeftOutError(f"it needs {path.name} beside the model: {hint}")
        return path


@dataclass(frozen=True)
class Prepared:
    """What a worker calls: ``call(argument)`` for each argument in turn, again and again.

    ``difference`` is how far a peer's outputs were from what they should be, over the samples of its check, in units of
    the largest output. ``keeps`` lives as long as the calls.
    """

    call: Callable[[Any], Any]
    arguments: Sequence[Any]
    samples_per_call: int = 1
    difference: float | None = None
    keeps: object = None


@dataclass(frozen=True)
class Case:
    """A row of the interleaved run; ``package`` is what it runs on."""

    key: str
    what: str
    prepare: Callable[[Target], Prepared]
    package: str = "edgeseq"


@dataclass(frozen=True)
class Sizes:
    """How much is measured. A block of a row takes about ``block_ms``, at least one call."""

    rounds: int = 40
    block_ms: float = 20.0
    tail_steps: int = 100_000
    growth_steps: int = 200_000
    idle_s: float = 5.0
    cold_runs: int = 7
    pool_streams: int = 10_000


QUICK = Sizes(4, 4.0, 2_000, 5_000, 0.5, 1, 500)
"""For a few seconds' run: the figures show that all works, and no more."""


@dataclass(frozen=True)
class Value:
    """One figure with its unit."""

    name: str
    value: float
    unit: str


@dataclass(frozen=True)
class Figure:
    """Something that is measured once, in a process of its own, after the interleaved run."""

    key: str
    what: str
    measure: Callable[[Target, Sizes], list[Value]]


def difference(expected: Array, got: Array) -> float:
    """The largest difference in units of the largest expected value.

    Example:
        >>> difference(np.array([1.0, 2.0]), np.array([1.0, 1.5]))
        0.25
    """
    if expected.shape != got.shape:
        raise LeftOutError(f"it gives outputs of shape {got.shape}, and the offline model {expected.shape}")
    scale = max(float(np.abs(expected).max()), 1e-6)
    return float(np.abs(expected.astype(np.float64) - got).max()) / scale


def equal(expected: Array, got: Array) -> float:
    """``difference``, which must be small.

    Raises:
        LeftOutError: it is above ``EQUAL``, or not finite: what gives other outputs is not timed.
    """
    apart = difference(expected, got)
    if not apart <= EQUAL:
        raise LeftOutError(f"its outputs differ by {apart:.1e} of the largest output from what they should be")
    return apart
