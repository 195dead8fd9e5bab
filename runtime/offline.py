"""An offline model: the whole sequence in, all predictions out. For bidirectional models, and as the reference."""

from __future__ import annotations

import os
from typing import Any

import numpy as np

from edgeseq.errors import InputError, ShapeError
from edgeseq.model_file import Description
from edgeseq.runtime.inputs import Array, InputCheck
from edgeseq.runtime.model_source import open_model


def load_offline(path: str | os.PathLike[str]) -> OfflineModel:
    """Open an offline model, ``NAME.onnx``.

    Raises:
        ModelNotFoundError: there is no such file (also a ``FileNotFoundError``).
        ModelFileError: the file is damaged, was not written by edgeseq, is a step graph, or of a newer format.

    Example:
        >>> offline = load_offline("tests/data/tiny.onnx")
        >>> offline.run(np.zeros((10, 3), np.float32)).shape
        (10, 2)
    """
    return OfflineModel(*open_model(path, "offline"))


class OfflineModel:
    """Made by ``load_offline``. It has no state, so one may be shared between threads."""

    def __init__(self, description: Description, ort_session: Any) -> None:
        self._description = description
        self._ort_session = ort_session
        self._check = InputCheck(description.input, has_steps=False)

    @property
    def description(self) -> Description:
        """Everything that the file says of itself."""
        return self._description

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Names of the K outputs, if the export was given them."""
        return self._description.label_names

    def run(self, sequence: Array) -> Array:
        """Predict for a whole sequence.

        Shapes: (T, C), or tokens (T,), to (T, K); to (K,) for a model with one output a sequence, which needs T >= 1.

        Raises:
            ShapeError, DTypeError, NonFiniteError: the sequence is not what the model takes.
        """
        d = self._description
        where = f"model {d.name!r}"
        self._check.chunk(sequence, where)
        if len(sequence) == 0:
            if not d.per_step:
                raise ShapeError(f"{where}: expected at least one sample, got none; a pool over nothing has no value")
            return np.zeros((0, *d.output.shape), d.output.dtype)
        try:
            (y,) = self._ort_session.run([d.output.name], {d.input.name: sequence[None]})
        except Exception as error:
            raise InputError(f"{where}: ONNX Runtime rejected the input: {str(error).splitlines()[0]}") from error
        return y[0]  # type: ignore[no-any-return]

    def __repr__(self) -> str:
        return f"OfflineModel({self._description.name!r})"
