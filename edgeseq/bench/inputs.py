"""Samples of any model: random numbers for sensors; for tokens 0, which every vocabulary has."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeseq.bench.case import Array
from edgeseq.model_file import Port


def sequence(ports: Sequence[Port], n: int, seed: int = 0) -> Any:
    """(n, C) for a model of one input, else a dict of them.

    Example:
        >>> sequence([Port("input", "float32", (3,), has_time=True)], 10).shape
        (10, 3)
    """
    rng = np.random.default_rng(seed)
    arrays = {port.name: _random(rng, (n, *port.shape) if port.has_time else port.shape, port.dtype) for port in ports}
    return arrays if len(arrays) > 1 else next(iter(arrays.values()))


def samples(ports: Sequence[Port], n: int) -> list[Any]:
    """``n`` samples as ``Stream.step`` takes them."""
    whole = sequence(ports, n)
    if isinstance(whole, dict):
        return [{name: x[i] for name, x in whole.items()} for i in range(n)]
    return list(whole)


def batches(ports: Sequence[Port], n: int, n_streams: int) -> list[Any]:
    """``n`` samples of so many streams each, (B, C), as ``Pool.step`` takes them."""
    return [sequence(ports, n_streams, seed) for seed in range(n)]


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: str) -> Array:
    kind = np.dtype(dtype)
    return rng.normal(size=shape).astype(kind) if kind.kind == "f" else np.zeros(shape, kind)
