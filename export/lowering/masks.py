"""Masks with steps left out anywhere, for operators that only know how many steps of a sequence count.

An ONNX recurrent operator takes ``sequence_lens``, so it can leave steps out at the end alone, where it returns zeros.
``compact`` moves the valid steps to the front; ``spread`` takes the outputs back to the steps that they belong to and
gives the masked steps what Keras gives them. Invariant: a sequence with a masked step has at least one step of padding
behind its valid ones, so an index there stands for zeros.

Source: Keras, ``backend/tensorflow/rnn.py``: at a masked step the state is carried over and the output is zeros or the
previous one in the order of processing, zeros before the first valid one.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from edgeseq.export.lowering.native import Emitter, NativeOps


def lengths(mask: Any) -> Any:
    """How many steps of each sequence are valid: (B, T) to (B,)."""
    return tf.reduce_sum(_ones(mask), axis=1)


def compact(native: NativeOps, x: Any, mask: Any) -> Any:
    """(B, T, C) with the valid steps in front, in their order, and the masked ones behind them."""

    def emit(onnx: Emitter, names: list[str]) -> list[str]:
        sequence, ones = names
        every_step = onnx.op("Shape", ones, start=1, end=2)
        _, order = onnx.ops("TopK", 2, ones, every_step, axis=1)  # of equals, the earlier step comes first
        return [_take_steps(onnx, sequence, order)]

    return native.add([x, _ones(mask)], [x.shape], emit)[0]


def spread(native: NativeOps, y: Any, mask: Any, *, zeros: bool, backwards: bool = False) -> Any:
    """(B, T, U) of compact steps, each back at its place; a masked step has zeros, or the last output before it.

    ``backwards``: the steps were processed from the last one on, so "before" is later in time.
    """
    valid_before = tf.cumsum(_ones(mask), axis=1, exclusive=True)
    if zeros:
        place = tf.where(mask, valid_before, -1)
    else:  # no valid step yet: forward that is step -1, the last one; backward it is the first after the valid ones
        place = valid_before if backwards else tf.cumsum(_ones(mask), axis=1) - 1

    def emit(onnx: Emitter, names: list[str]) -> list[str]:
        return [_take_steps(onnx, *names)]

    return native.add([y, tf.cast(place, tf.int64)], [y.shape], emit)[0]


def zeros_unless_any(mask: Any, last: Any) -> Any:
    """The last output (B, U), zeros for a sequence that is masked throughout, whatever its initial state was."""
    return tf.where(tf.reduce_any(mask, axis=1, keepdims=True), last, 0.0)


def initial_unless_any(mask: Any, last: list[Any], initial: list[Any]) -> list[Any]:
    """The last states (B, U), the initial ones for a sequence that is masked throughout; ONNX Runtime gives zeros."""
    if mask is None or not initial:
        return last
    some = tf.reduce_any(mask, axis=1, keepdims=True)
    return [tf.where(some, each, given) for each, given in zip(last, initial, strict=False)]


def _ones(mask: Any) -> Any:
    return tf.cast(mask, tf.int32)


def _take_steps(onnx: Emitter, sequence: str, places: str) -> str:
    """Of (B, T, C) the steps (B, T): whole rows, where GatherElements would take an index for each number."""
    return onnx.op("GatherND", sequence, onnx.op("Unsqueeze", places, onnx.integers(-1)), batch_dims=1)
