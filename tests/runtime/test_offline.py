"""The offline model: whole sequences, strictly."""

from __future__ import annotations

import numpy as np
import pytest

from edgeseq import runtime as rt
from edgeseq.errors import DTypeError, NonFiniteError, ShapeError

MODEL = rt.load_offline("tests/data/tiny.onnx")


@pytest.mark.parametrize("length", [0, 1, 2, 77])
def test_one_prediction_a_sample(length: int) -> None:
    assert MODEL.run(np.zeros((length, 3), np.float32)).shape == (length, 2)
    assert MODEL.label_names == ("rest", "move")
    assert "tiny" in repr(MODEL)


def test_wrong_sequences() -> None:
    with pytest.raises(DTypeError, match="model 'tiny': expected float32"):
        MODEL.run(np.zeros((4, 3)))
    with pytest.raises(ShapeError, match="drop the batch axis"):
        MODEL.run(np.zeros((1, 4, 3), np.float32))
    with pytest.raises(NonFiniteError, match="row 2"):
        MODEL.run(np.array([[0, 0, 0]] * 2 + [[0, np.nan, 0]], np.float32))
