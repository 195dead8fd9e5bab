"""Random sequences on which two forms of a model are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SEED = 20240229

Array = np.ndarray[Any, Any]
Inputs = list[Array]
"""One array for each input of the model."""


def with_gaps(inputs: Inputs) -> Inputs:
    """The sequences (T, ...) with runs of samples zero, in all of them at once, as masks leave them out.

    The first sample stays: what is left out from the start has no mean, for one.

    Example:
        >>> with_gaps([np.ones(12, np.int32)])
        [array([1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 1], dtype=int32)]
    """
    n = len(inputs[0])
    kept = np.repeat(np.random.default_rng(SEED).random(-(-n // 3)) < 0.6, 3)[:n]
    kept[:1] = True
    return [x * kept.reshape(-1, *[1] * (x.ndim - 1)).astype(x.dtype) for x in inputs]


def random(rng: np.random.Generator, shape: Sequence[int], dtype: str, vocabulary: int) -> Array:
    """Standard normal samples, or tokens from 1, since 0 may be padding."""
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(min(1, vocabulary - 1), vocabulary, size=shape).astype(dtype)
