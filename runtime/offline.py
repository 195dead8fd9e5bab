"""An offline model: the whole sequence in, all predictions out. For bidirectional models, and as the reference."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from edgeseq.errors import InputError, ShapeError
from edgeseq.model_file import Description
from edgeseq.runtime.inputs import Array, InputCheck, by_port
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
    source = open_model(path, "offline")
    return OfflineModel(source.description, source.ort_session)


class OfflineModel:
    """Made by ``load_offline``. It has no state, so one may be shared between threads."""

    def __init__(self, description: Description, ort_session: Any) -> None:
        self._description = description
        self._ort_session = ort_session
        self._checks = {port.name: InputCheck(port) for port in description.inputs}

    @property
    def description(self) -> Description:
        """Everything that the file says of itself."""
        return self._description

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Names of the K outputs, if the export was given them; of the first output, if there are several."""
        return self._description.outputs[0].names

    def run(self, sequence: Array | Mapping[str, Array]) -> Any:
        """Predict for a whole sequence.

        A model of several inputs takes a mapping from their names to arrays, and one of several outputs returns one.

        Shapes: (T, C), or tokens (T,), to (T, K); to (K,) for an output with one value a sequence, which needs T >= 1.

        Raises:
            ShapeError, DTypeError, NonFiniteError: the sequence is not what the model takes.
        """
        d = self._description
        where = f"model {d.name!r}"
        feeds = self._feeds(sequence, where)
        steps = min((len(feeds[port.name]) for port in d.inputs if port.has_time), default=1)
        if steps < max(port.timing.shortest if port.timing else 1 for port in d.outputs):
            outputs = self._of_nothing(where, steps)
        else:
            try:
                outputs = self._ort_session.run(
                    [port.name for port in d.outputs], {name: x[None] for name, x in feeds.items()}
                )
            except Exception as error:
                raise InputError(f"{where}: ONNX Runtime rejected the input: {str(error).splitlines()[0]}") from error
            outputs = [y[0] for y in outputs]
        return outputs[0] if len(outputs) == 1 else dict(zip((port.name for port in d.outputs), outputs, strict=True))

    def _feeds(self, sequence: Array | Mapping[str, Array], where: str) -> dict[str, Array]:
        given = by_port(self._checks, sequence, where)
        return {name: self._checks[name].sequence(x, at) for name, x, at in given}

    def _of_nothing(self, where: str, steps: int) -> list[Array]:
        # ONNX Runtime is undefined where no window fits, and ends the process for some operators.
        outputs = self._description.outputs
        timings = [port.timing for port in outputs if port.timing is not None]
        shortest = max((timing.shortest for timing in timings), default=1)
        rows = any(timing.count_rows(steps) for timing in timings)
        if rows or not all(port.has_time and port.length is None for port in outputs):
            raise ShapeError(f"{where}: expected at least {shortest} samples, got {steps}; fewer have no prediction")
        return [np.zeros((0, *port.shape), port.dtype) for port in outputs]

    def __repr__(self) -> str:
        return f"OfflineModel({self._description.name!r})"
