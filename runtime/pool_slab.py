"""The states of a slab of streams as the step graph has them, for models without a fast form; samples that wait."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from edgeseq.model_file import Description
from edgeseq.runtime.inputs import Array


class Slab(Protocol):
    """The states of as many streams as it has places, in whatever layout; ``fed`` is how many samples each was fed."""

    def read(self, places: Array, fed: Array) -> list[Array]:
        """The states of the step graph, (n, ...) each."""

    def write(self, places: Array, fed: Array, states: Sequence[Array]) -> None:
        """Take over the states of the step graph."""

    @property
    def n_bytes(self) -> int:
        """The memory that it takes."""


class PlainSlab:
    """One array for each state, and one for the samples of each input that wait until they are a whole granule."""

    def __init__(self, d: Description, n_places: int) -> None:
        self._arrays = [np.zeros((n_places, *spec.shape), spec.dtype) for spec in d.state]
        self.waiting = [np.zeros((n_places, d.granule - 1, *port.shape), port.dtype) for port in d.inputs]

    def read(self, places: Array, fed: Array) -> list[Array]:  # noqa: ARG002 (of another layout, it matters)
        """The states of the step graph, (n, ...) each."""
        return [array[places] for array in self._arrays]

    def write(self, places: Array, fed: Array, states: Sequence[Array]) -> None:  # noqa: ARG002
        """Take over the states of the step graph."""
        for array, state in zip(self._arrays, states, strict=True):
            array[places] = state

    @property
    def n_bytes(self) -> int:
        """The memory that it takes."""
        return sum(array.nbytes for array in (*self._arrays, *self.waiting))
