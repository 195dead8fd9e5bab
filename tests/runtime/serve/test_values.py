from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from edgeseq.errors import DTypeError, EdgeseqError, InputError, ShapeError
from edgeseq.model_file import Port
from edgeseq.runtime.serve.values import arrays_of

X = Port("x", "float32", (2,))
TOKENS = Port("tokens", "int32", ())


@pytest.mark.parametrize(
    ("port", "rows", "given", "error"),
    [
        (X, False, [1, 2, 3], ShapeError),
        (X, False, [], ShapeError),
        (X, False, [[1, 2]], ShapeError),
        (X, False, [1, "2"], DTypeError),
        (X, False, [1, None], DTypeError),
        (X, False, [1, True], DTypeError),
        (X, False, [1, {}], DTypeError),
        (X, False, 3, ShapeError),
        (X, False, None, DTypeError),
        (X, False, {"x": [1, 2]}, DTypeError),
        (X, True, [[1, 2], [3]], ShapeError),
        (X, True, [1, 2], ShapeError),
        (X, True, [[1, 2], 3], ShapeError),
        (X, True, [[[1, 2]]], ShapeError),
        (X, True, [[1, True]], DTypeError),
        (X, False, [1, 10**400], InputError),
        (TOKENS, False, 1.0, DTypeError),
        (TOKENS, False, [1], ShapeError),
        (TOKENS, False, [[[[1]]]], ShapeError),
        (TOKENS, False, 2**40, InputError),
        (TOKENS, True, [1, 2.0], DTypeError),
        (TOKENS, True, 3, ShapeError),
    ],
)
def test_what_is_no_such_numbers_is_refused(port: Port, rows: bool, given: Any, error: type[EdgeseqError]) -> None:
    with pytest.raises(error, match=r"^frame: expected"):
        arrays_of([port], given, "frame", rows=rows)


def test_numbers_take_the_models_dtype() -> None:
    np.testing.assert_array_equal(arrays_of([X], [1, 2.5], "frame", rows=False), np.array([1, 2.5], np.float32))
    chunk = arrays_of([X], [[1, 2], [3, 4]], "frame", rows=True)
    assert (chunk.dtype, chunk.shape) == (np.float32, (2, 2))
    assert arrays_of([TOKENS], 3, "frame", rows=False).shape == ()
    assert arrays_of([TOKENS], [3, 4], "frame", rows=True).dtype == np.int32


@pytest.mark.parametrize("port", [X, TOKENS])
def test_an_empty_chunk_is_one(port: Port) -> None:
    assert arrays_of([port], [], "frame", rows=True).shape == (0, *port.shape)


def test_several_inputs_are_named() -> None:
    given = arrays_of([X, TOKENS], {"x": [1, 2], "tokens": 3}, "frame", rows=False)
    assert [given[name].tolist() for name in ("x", "tokens")] == [[1, 2], 3]
    for wrong in ([1, 2], {"x": [1, 2]}, {"x": [1, 2], "tokens": 3, "y": 1}):
        with pytest.raises(InputError, match="name each once"):
            arrays_of([X, TOKENS], wrong, "frame", rows=False)
