"""Strict inputs: every wrong one is a named error that says what, where, expected, got and fix."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from edgeseq.errors import DTypeError, InputError, NonFiniteError, ShapeError
from edgeseq.model_file import Port
from edgeseq.runtime.inputs import InputCheck

SENSOR = InputCheck(Port("input", "float32", (3,)))
TOKENS = InputCheck(Port("input", "int32", ()))
GOOD = np.zeros(3, np.float32)
NAN, INF, HUGE = np.float32(np.nan), np.float32(np.inf), np.finfo(np.float32).max

WRONG_SAMPLES: list[tuple[InputCheck, Any, type[InputError], str]] = [
    (
        SENSOR,
        np.zeros(3),
        DTypeError,
        r"here: expected float32 \(3,\), got float64 \(3,\); cast with x.astype\(np.float32",
    ),
    (SENSOR, [0.0, 0.0, 0.0], DTypeError, r"expected a numpy array float32 \(3,\), got list; convert with np.asarray"),
    (SENSOR, None, DTypeError, "got NoneType"),
    (SENSOR, np.zeros(4, np.float32), ShapeError, r"expected float32 \(3,\), got float32 \(4,\); the last axis holds"),
    (SENSOR, np.zeros((1, 3), np.float32), ShapeError, r"use push\(\) for a chunk"),
    (SENSOR, np.zeros((), np.float32), ShapeError, r"got float32 \(\)"),
    (SENSOR, np.array([0, NAN, 0], np.float32), NonFiniteError, "expected finite values, got nan at channel 1; repair"),
    (SENSOR, np.array([0, 0, -INF], np.float32), NonFiniteError, "got -inf at channel 2"),
    (SENSOR, np.zeros(3, ">f4"), DTypeError, r"expected float32 \(3,\), got >f4 \(3,\); cast with x.astype"),
    (SENSOR, np.ma.masked_invalid(np.array([0, NAN, 0], np.float32)), DTypeError, "plain .*got MaskedArray"),
    (TOKENS, 3.0, DTypeError, "expected a numpy array int32"),
    (TOKENS, True, DTypeError, "got bool"),
    (TOKENS, np.int64(3), DTypeError, r"expected int32 \(\), got int64 \(\)"),
    (TOKENS, np.zeros(1, np.int32), ShapeError, r"use push\(\)"),
    (TOKENS, -1, InputError, "expected a token from 0 to 2147483647, got -1"),
    (TOKENS, 2**31, InputError, "got 2147483648"),
    (TOKENS, np.int32(-2), InputError, "expected tokens of 0 or more, got -2"),
]

WRONG_CHUNKS: list[tuple[InputCheck, Any, type[InputError], str]] = [
    (SENSOR, np.zeros((5, 3)), DTypeError, r"expected float32 \(5, 3\), got float64 \(5, 3\)"),
    (SENSOR, GOOD, ShapeError, r"expected float32 \(T, 3\), got float32 \(3,\); use step\(\) for one sample"),
    (SENSOR, np.zeros((1, 5, 3), np.float32), ShapeError, r"drop the batch axis with x\[0\]"),
    (SENSOR, np.zeros((5, 2), np.float32), ShapeError, r"expected float32 \(5, 3\), got float32 \(5, 2\)"),
    (SENSOR, np.array([[0, 0, 0], [0, INF, 0]], np.float32), NonFiniteError, "got inf at row 1, channel 1"),
    (TOKENS, np.array([1, -4], np.int32), InputError, "got -4; map them to the vocabulary first"),
    (TOKENS, [1, 2], DTypeError, "got list"),
]


@pytest.mark.parametrize(("check", "x", "error", "message"), WRONG_SAMPLES)
def test_wrong_samples(check: InputCheck, x: Any, error: type[InputError], message: str) -> None:
    with pytest.raises(error, match=message):
        check.sample(x, "here")


@pytest.mark.parametrize(("check", "x", "error", "message"), WRONG_CHUNKS)
def test_wrong_chunks(check: InputCheck, x: Any, error: type[InputError], message: str) -> None:
    with pytest.raises(error, match=message):
        check.chunk(x, "here")


WRONG_SEQUENCES: list[tuple[Port, Any, type[InputError], str]] = [
    (Port("x", "float32", (3,)), GOOD, ShapeError, "the last axis holds the model's channels"),
    (
        Port("x", "float32", (3,), length=9),
        np.zeros((8, 3), np.float32),
        ShapeError,
        r"expected float32 \(9, 3\), got float32 \(8, 3\); the model takes sequences of exactly 9 steps",
    ),
    (Port("x", "float32", (3,), has_time=False), np.zeros((8, 3), np.float32), ShapeError, r"expected float32 \(3,\)"),
    (
        Port("x", "float32", (3,), has_time=False),
        np.array([0, NAN, 0], np.float32),
        NonFiniteError,
        "nan at channel 1;",
    ),
    (Port("x", "float32", ()), np.array([0, NAN], np.float32), NonFiniteError, "nan at row 1;"),
    (Port("x", "float32", (2, 2)), np.zeros((1, 2, 2)), DTypeError, r"expected float32 \(1, 2, 2\), got float64"),
]


@pytest.mark.parametrize(("port", "x", "error", "message"), WRONG_SEQUENCES)
def test_wrong_sequences(port: Port, x: Any, error: type[InputError], message: str) -> None:
    with pytest.raises(error, match=message):
        InputCheck(port).sequence(x, "here")


def test_right_sequences() -> None:
    assert InputCheck(Port("x", "float32", (3,), length=9)).sequence(np.zeros((9, 3), np.float32), "").shape == (9, 3)
    assert InputCheck(Port("x", "float32", (3,), has_time=False)).sequence(GOOD, "") is GOOD


@pytest.mark.parametrize("token", [0, 7, 2**31 - 1, np.int32(7), np.array(7, np.int32)])
def test_right_tokens(token: Any) -> None:
    assert TOKENS.sample(token, "here") == token


def test_empty_chunks_are_right() -> None:
    assert SENSOR.chunk(np.zeros((0, 3), np.float32), "here").shape == (0, 3)
    assert TOKENS.chunk(np.zeros(0, np.int32), "here").shape == (0,)


@given(hnp.arrays(np.float32, (7, 3), elements=st.sampled_from([0, 1, -2.5, HUGE, -HUGE, NAN, INF, -INF])))
def test_finite_is_decided_as_numpy_does_even_where_squares_overflow(x: Any) -> None:
    if np.isfinite(x).all():
        assert SENSOR.chunk(x, "here") is x
    else:
        with pytest.raises(NonFiniteError):
            SENSOR.chunk(x, "here")


def test_strided_views_are_accepted() -> None:
    wide = np.zeros((10, 6), np.float32)
    assert SENSOR.chunk(wide[::2, ::2], "here").shape == (5, 3)
    assert SENSOR.sample(wide[0, ::2], "here").shape == (3,)
