"""Which rows of the step graph belong to samples, and which are due."""

from __future__ import annotations

from typing import Any

import numpy as np

from edgeseq.model_file import Port, Timing
from edgeseq.runtime.inputs import Array


class OutputRows:
    """Which rows of the step graph belong to samples."""

    def __init__(self, port: Port, granule: int) -> None:
        assert port.timing is not None
        self.port = port
        self._timing: Timing = port.timing
        self._samples, self._rows = port.timing.hop
        self.rows_a_call = granule * self._rows // self._samples

    @property
    def is_plain(self) -> bool:
        """Whether every sample has its row at once."""
        return self._timing.hop == (1, 1) and self._timing.delay == 0

    def first(self, fed: Any) -> Any:
        """The number, in the sequence, of the row that comes next after ``fed`` samples; below 0, it is of none."""
        return fed * self._rows // self._samples - self._timing.delay

    def due(self, rows: Array, fed: int, n_samples: int | None = None) -> Array:
        """Of rows that came after ``fed`` samples: those of the sequence, which ends if ``n_samples`` is given."""
        first = self.first(fed)
        stop = len(rows) if n_samples is None else self._timing.count_rows(n_samples) - first
        return rows[max(0, -first) : max(0, stop)]

    def fed_for(self, n_samples: int) -> int:
        """How many samples, the phase and what follows the end included, give all rows of so many."""
        rows = self._timing.count_rows(n_samples) + self._timing.delay
        return -(-rows * self._samples // self._rows)

    def nothing(self) -> Array:
        """No rows."""
        return np.zeros((0, *self.port.shape), self.port.dtype)


def joined(rows: list[Array], output: OutputRows) -> Array:
    """The rows of consecutive calls."""
    if not rows:
        return output.nothing()
    return rows[0] if len(rows) == 1 else np.concatenate(rows)
