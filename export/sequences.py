"""Random sequences on which two forms of a model are compared."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

SEED = 20240229

Array = np.ndarray[Any, Any]
Inputs = list[Array]
"""One array for each input of the model."""


def random(rng: np.random.Generator, shape: Sequence[int], dtype: str, vocabulary: int) -> Array:
    """Standard normal samples, or tokens from 1, since 0 may be padding."""
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    return rng.integers(min(1, vocabulary - 1), vocabulary, size=shape).astype(dtype)
