"""The exception tree: one root, and the built-in classes that users already catch."""

from __future__ import annotations

import pytest

from edgeseq import errors


@pytest.mark.parametrize(
    ("ours", "builtin"),
    [
        (errors.ModelNotFoundError, FileNotFoundError),
        (errors.ShapeError, ValueError),
        (errors.DTypeError, TypeError),
        (errors.NonFiniteError, ValueError),
        (errors.ConfigError, ValueError),
        (errors.MissingDependencyError, ImportError),
    ],
)
def test_ours_is_also_the_builtin(ours: type[Exception], builtin: type[Exception]) -> None:
    assert issubclass(ours, builtin)


def test_every_error_has_the_root_and_stands_in_the_drawing() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type)]
    assert len(classes) > 10
    for each in classes:
        assert issubclass(each, errors.EdgeseqError)
        assert each.__name__ in (errors.__doc__ or "")
