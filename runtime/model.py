"""A streaming model: the immutable part that all streams of one file share.

Owns what the file says of itself and the ONNX Runtime session; refuses files that ask for more than this runtime does.
State lives in ``Stream``, never here.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from fractions import Fraction

from edgeseq.errors import ModelFileError
from edgeseq.model_file import Description, Port
from edgeseq.runtime.fast_check import FastFormError, open_fast_step
from edgeseq.runtime.fast_step import FastStep
from edgeseq.runtime.inputs import InputCheck
from edgeseq.runtime.model_source import Source, open_model
from edgeseq.runtime.stream import Stream


def load(path: str | os.PathLike[str], *, fast: bool = True) -> Model:
    """Open a step graph, ``NAME.stream.onnx``, and check it before it is run.

    Where the file holds a fast form, single steps run on it, after it gave what the step graph gives on random states;
    if it does not, or with ``fast=False``, everything runs on the step graph. ``Model.explain`` says which and why.

    Raises:
        ModelNotFoundError: there is no such file (also a ``FileNotFoundError``).
        ModelFileError: the file is damaged, was not written by edgeseq, is an offline model, or of a newer format.

    Example:
        >>> import numpy as np
        >>> model = load("tests/data/tiny.stream.onnx")
        >>> model.receptive_field, model.lookahead, model.hop
        ((6, 0), 0, Fraction(1, 1))
        >>> stream = model.stream("wrist-7")
        >>> stream.step(np.zeros(3, np.float32)).shape
        (2,)
    """
    source = open_model(path, "stream")
    if any(port.timing is None for port in source.description.outputs):
        raise ModelFileError(f"{os.fspath(path)!r}: its description lacks the timing of an output; export it again")
    if not fast:
        return Model(source, None, "the fast form was not asked for")
    try:
        return Model(source, open_fast_step(source), source.description.not_fast)
    except FastFormError as error:
        warnings.warn(f"{os.fspath(path)!r}: {error}; it runs on its step graph, slower", RuntimeWarning, stacklevel=2)
        return Model(source, None, str(error))


class Model:
    """A streaming model. Made by ``load``; safe to share between threads, since it never changes."""

    def __init__(self, source: Source, fast: FastStep | None, not_fast: str | None) -> None:
        self._description = description = source.description
        self._ort_session = source.ort_session
        self._fast = fast
        self._not_fast = not_fast
        self._checks = {port.name: InputCheck(port) for port in description.inputs}
        self._timings = [port.timing for port in description.outputs if port.timing is not None]

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
        """Samples (past, future) beside a row's own that influence it; None means all. The widest of all outputs'."""
        pasts, futures = zip(*(t.receptive_field for t in self._timings), strict=True)
        return _widest(pasts), _widest(futures)

    @property
    def lookahead(self) -> int:
        """How many samples after its own a prediction comes at the latest; of several outputs, the latest."""
        return max(t.lookahead for t in self._timings)

    @property
    def hop(self) -> Fraction:
        """Samples per prediction, of the first output."""
        return Fraction(*self._timings[0].hop)

    @property
    def warm_up(self) -> int | None:
        """How many first outputs still see the zero history; None for a model that never forgets it."""
        return self.receptive_field[0]

    @property
    def input(self) -> Port:
        """Name, dtype and shape of one sample: (C,), or () for a token; of the first input, if there are several."""
        return self._description.inputs[0]

    @property
    def output(self) -> Port:
        """Name, dtype and shape (K,) of one prediction; of the first output, if there are several."""
        return self._description.outputs[0]

    @property
    def feature_names(self) -> tuple[str, ...] | None:
        """Names of the C channels, if the export was given them."""
        return self.input.names

    @property
    def label_names(self) -> tuple[str, ...] | None:
        """Names of the K outputs, if the export was given them."""
        return self.output.names

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
        return Stream(self._description, self._ort_session, self._checks, name, fast=self._fast)

    def restore(self, snapshot: bytes | bytearray | memoryview, name: str = "stream") -> Stream:
        """A stream that continues where the one stood that the snapshot was taken from, bitwise.

        Raises:
            SnapshotError: the snapshot is truncated, damaged, newer, or of another model; no stream is made.

        Example:
            >>> import numpy as np
            >>> model = load("tests/data/tiny.stream.onnx")
            >>> stream = model.stream("wrist-7")
            >>> _ = stream.push(np.ones((100, 3), np.float32))
            >>> twin = model.restore(stream.snapshot(), "wrist-7")
            >>> x = np.zeros(3, np.float32)
            >>> bool((twin.step(x) == stream.step(x)).all())
            True
        """
        stream = self.stream(name)
        stream._restore(snapshot)
        return stream

    def explain(self) -> str:
        """Which form of the model runs, and why; and what it approximates, if it does.

        Example:
            >>> print(load("tests/data/tiny.stream.onnx").explain())
            single steps run on the fast form: 4 ring buffers hold the state; chunks run on the step graph
        """
        return "\n".join(filter(None, (self._explain_form(), self._explain_lookahead())))

    def _explain_lookahead(self) -> str:
        bounded = self._description.lookahead
        if bounded is None:
            return ""
        n_layers = len(bounded.layers)
        layers = "1 layer that runs" if n_layers == 1 else f"{n_layers} layers that run"
        return (
            f"an approximation of the offline model: {layers} backwards, in blocks of {bounded.chunk} steps, seeing "
            f"{bounded.steps} steps behind them; outputs come up to {self.lookahead} samples after their own"
        )

    def _explain_form(self) -> str:
        if self._fast is None:
            return f"everything runs on the step graph: {self._not_fast or 'the file holds no fast form'}"
        form = self._fast.form
        n_rings = sum(len(buffer.rings) for buffer in form.buffers)
        after = f", after {form.start} samples" if form.start else ""
        rings = f"{n_rings} ring buffers hold the state"
        return f"single steps run on the fast form{after}: {rings}; chunks run on the step graph"

    def __repr__(self) -> str:
        d = self._description
        ports = [port.shape for port in d.inputs], [port.shape for port in d.outputs]
        return f"Model({d.name!r}, {ports[0]} -> {ports[1]}, receptive_field={self.receptive_field})"


def _widest(reaches: Sequence[int | None]) -> int | None:
    return None if None in reaches else max(n for n in reaches if n is not None)
