"""A streaming model: the immutable part that all streams of one file share.

Owns what the file says of itself and the ONNX Runtime session; refuses files that ask for more than this runtime does.
State lives in ``Stream``, never here.
"""

from __future__ import annotations

import os
from typing import Any

from edgeseq.errors import ModelFileError
from edgeseq.model_file import Description, Port
from edgeseq.runtime.inputs import InputCheck
from edgeseq.runtime.model_source import open_model
from edgeseq.runtime.stream import Stream


def load(path: str | os.PathLike[str]) -> Model:
    """Open a step graph, ``NAME.stream.onnx``, and check it before it is run.

    Raises:
        ModelNotFoundError: there is no such file (also a ``FileNotFoundError``).
        ModelFileError: the file is damaged, was not written by edgeseq, is an offline model, or of a newer format.

    Example:
        >>> import numpy as np
        >>> model = load("tests/data/tiny.stream.onnx")
        >>> model.receptive_field, model.lookahead, model.hop
        ((6, 0), 0, 1)
        >>> stream = model.stream("wrist-7")
        >>> stream.step(np.zeros(3, np.float32)).shape
        (2,)
    """
    description, ort_session = open_model(path, "stream")
    if description.lookahead != 0 or description.hop != 1:
        raise ModelFileError(
            f"{os.fspath(path)!r}: lookahead {description.lookahead} and hop {description.hop}; "
            "this edgeseq streams models of lookahead 0 and hop 1, install a newer one"
        )
    if len(description.inputs) != 1 or len(description.outputs) != 1:
        raise ModelFileError(
            f"{os.fspath(path)!r}: {len(description.inputs)} inputs and {len(description.outputs)} outputs; "
            "this edgeseq streams models of one input and one output, install a newer one"
        )
    return Model(description, ort_session)


class Model:
    """A streaming model. Made by ``load``; safe to share between threads, since it never changes."""

    def __init__(self, description: Description, ort_session: Any) -> None:
        self._description = description
        self._ort_session = ort_session
        self._check = InputCheck(description.input)

    @property
    def description(self) -> Description:
        """Everything that the file says of itself."""
        return self._description

    @property
    def name(self) -> str:
        """The name under which the model was exported."""
        return self._description.name

    @property
    def receptive_field(self) -> tuple[int | None, int | None]:
        """Steps (past, future) beside the current one that influence one output; None means all."""
        return self._description.receptive_field

    @property
    def lookahead(self) -> int:
        """Future steps that an output needs."""
        return self._description.lookahead

    @property
    def hop(self) -> int:
        """Input steps per output."""
        return self._description.hop

    @property
    def warm_up(self) -> int | None:
        """How many first outputs still see the zero history; None for a model that never forgets it."""
        return self._description.receptive_field[0]

    @property
    def input(self) -> Port:
        """Name, dtype and shape of one sample: (C,), or () for a token."""
        return self._description.input

    @property
    def output(self) -> Port:
        """Name, dtype and shape (K,) of one prediction."""
        return self._description.output

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Names of the C channels, if the export was given them."""
        return self._description.input.names

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Names of the K outputs, if the export was given them."""
        return self._description.output.names

    @property
    def rate_hz(self) -> float | None:
        """Samples per second that the model was trained on, if the export was given it."""
        return self._description.rate_hz

    @property
    def state_bytes(self) -> int:
        """Bytes of state that one stream carries from step to step."""
        return self._description.state_bytes

    def stream(self, name: str = "stream") -> Stream:
        """Open a new stream in the initial state. ``name`` appears in its errors."""
        return Stream(self._description, self._ort_session, self._check, name)

    def __repr__(self) -> str:
        d = self._description
        return f"Model({d.name!r}, {d.input.shape} -> {d.output.shape}, receptive_field={d.receptive_field})"
