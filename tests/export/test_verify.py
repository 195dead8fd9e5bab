"""The comparison that guards every export."""

from __future__ import annotations

import numpy as np
import pytest

from edgeseq.errors import VerificationError
from edgeseq.export.verify import TOLERANCE, compare


def test_the_first_wrong_step_is_named_not_the_first_wrong_element() -> None:
    expected = np.zeros((2, 5, 3))
    got = expected.copy()
    got[0, 4, 0] = got[1, 2, 1] = 0.5
    with pytest.raises(VerificationError, match=r"a and b: first difference at step \(1, 2, 1\): expected 0, got 0.5"):
        compare(expected, got, "a and b")


def test_the_tolerance_is_of_the_output_scale() -> None:
    expected = np.array([[1000.0], [1.0]])
    assert compare(expected, expected + 5e-3, "x") == pytest.approx(5e-6)
    with pytest.raises(VerificationError):
        compare(expected / 1000, expected / 1000 + 2 * TOLERANCE, "x")


def test_nan_is_a_difference() -> None:
    with pytest.raises(VerificationError, match="got nan"):
        compare(np.zeros((1, 2)), np.array([[0.0, np.nan]]), "x")


def test_shapes_must_agree() -> None:
    with pytest.raises(VerificationError, match=r"expected output shape \(2, 77, 2\), got \(2, 2, 2\)"):
        compare(np.zeros((2, 77, 2)), np.zeros((2, 2, 2)), "x")


def test_padded_steps_are_not_compared() -> None:
    expected, got = np.zeros((1, 3, 2)), np.zeros((1, 3, 2))
    got[0, 2] = 9
    assert compare(expected, got, "x", valid=np.array([[True, True, False]])) == 0
