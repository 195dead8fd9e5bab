"""Comparing what two forms of a model give: scales, tolerances, and the first step that differs.

Every output channel has its own tolerance: 1e-5 of its scale (its largest value over all sequences, and at least three
hundredths of that of the output's largest channel), far above what float32 sums in another order differ by and far
below any mistake. Where a model is so ill-conditioned that moving every input by its last bit moves the channel by
more, no float32 program can be held to that: there it is four times that move, and never more than 1e-3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from edgeseq.errors import VerificationError
from edgeseq.model_file import Port

TOLERANCE = 1e-5
LOOSEST = 1e-3
_ROUNDINGS = 4
_FLOOR, _TINY = 3e-2, 1e-12  # of a channel's scale: of the largest channel's, since channels are sums of the same
_SEED = 20240229  # of which way each input is moved

Array = np.ndarray[Any, Any]


def nudged(x: Array, kept: Array | None = None) -> Array:
    """``x`` with every value moved by its last bit, up or down at random; tokens, zeros and padding as they are."""
    if x.dtype.kind != "f":
        return x
    towards = np.random.default_rng(_SEED).choice([-np.inf, np.inf], size=x.shape).astype(x.dtype)
    still = x == 0 if kept is None else (x == 0) | kept
    return np.where(still, x, np.nextafter(x, towards))


def channels(y: Array, port: Port) -> Array:
    """(..., K), K of 1 for an output without channels."""
    return y if port.shape else y[..., None]


def scale_of(ys: Sequence[Array], port: Port) -> Array:
    """Of each channel, (K,): its largest value in all of ``ys``, and at least 0.03 of the largest channel's."""
    largest = np.max([_largest(channels(y, port)) for y in ys], axis=0)
    scale: Array = np.maximum(largest, max(_FLOOR * float(np.max(largest, initial=0.0)), _TINY))
    return scale


def _largest(y: Array) -> Array:
    """Of each channel, (K,): its largest absolute value, 0 of nothing."""
    largest: Array = np.max(np.abs(y), axis=tuple(range(y.ndim - 1)), initial=0.0)
    return largest


def tolerance_of(y: Array, moved_y: Array, scale: Array) -> Array:
    """Of each channel, (K,), in units of its scale, from what nudged inputs give.

    What is no number tells nothing, and loosens nothing.
    """
    with np.errstate(invalid="ignore", over="ignore"):
        moved = np.nan_to_num(_largest(y - moved_y) / scale, nan=0.0, posinf=0.0)
    tolerance: Array = np.clip(_ROUNDINGS * moved, TOLERANCE, LOOSEST)
    return tolerance


def compare(
    expected: Array,
    got: Array,
    where: str,
    *,
    tolerance: float | Array = TOLERANCE,
    scale: Array | None = None,
    consequence: str = "nothing was written",
) -> float:
    """The largest difference in units of ``scale``, (K,): without it, the largest value of the channel, at least 1.

    Shapes: (..., K) both; ``tolerance`` a number or (K,). ``consequence`` ends the message.

    Raises:
        VerificationError: another shape, or a difference above ``tolerance``.

    Example:
        >>> compare(np.array([1.0, 2.0]), np.array([1.0, 2.5]), "a and b")
        Traceback (most recent call last):
        edgeseq.errors.VerificationError: a and b: first difference at step (1,): expected 2, got 2.5, off by 0.25 ...
    """
    if expected.shape != got.shape:
        raise VerificationError(f"{where}: expected output shape {expected.shape}, got {got.shape}; {consequence}")
    if expected.size == 0:
        return 0.0
    scale = np.maximum(1.0, _largest(expected)) if scale is None else scale
    difference = np.abs(expected.astype(np.float64) - got) / scale
    difference[np.isnan(difference)] = np.inf
    if (wrong := np.argwhere(difference > tolerance)).size:
        at = tuple(int(i) for i in wrong[np.argsort(wrong[:, -2 if wrong.shape[1] > 1 else 0], kind="stable")][0])
        allowed = np.broadcast_to(tolerance, expected.shape)[at]
        raise VerificationError(
            f"{where}: first difference at step {at}: expected {expected[at]:.7g}, got {got[at]:.7g}, "
            f"off by {difference[at]:.2g} of the output's scale (tolerance {allowed:.2g}); {consequence}"
        )
    return float(difference.max())
