"""A streaming model: the immutable part that all streams of one file share.

Owns what the file says of itself and the ONNX Runtime session; refuses files that ask for more than this runtime does.
State lives in ``Stream``, never here.
"""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

from edgeseq.errors import ModelFileError
from edgeseq.model_file import Description, Port
from edgeseq.runtime.fast_check import FastFormError, open_fast_step
from edgeseq.runtime.fast_step import FastStep
from edgeseq.runtime.inputs import InputCheck
from edgeseq.runtime.model_source import Provider, Source, check_execution, is_cpu, open_model
from edgeseq.runtime.pool import Pool
from edgeseq.runtime.stream import Stream


def load(
    path: str | os.PathLike[str], *, fast: bool = True, providers: Sequence[Provider] | None = None, threads: int = 1
) -> Model:
    """Open a step graph, ``NAME.stream.onnx``, and check it before it is run.

    Where the file holds a fast form, single steps run on it, after it gave what the step graph gives on random states;
    if it does not, or with ``fast=False``, everything runs on the step graph. ``Model.explain`` says which and why.

    ``providers`` are ONNX Runtime's execution providers, the preferred first, by name or as (name, options); None is
    the CPU, and the fast form needs it. ``threads`` work on one operator, and sleep between calls; small models are
    slower on two than on one. The last bits may depend on either: restore a snapshot with what it was taken with.

    Raises:
        ConfigError: a provider is unknown, not there, or fails to start; or ``threads`` is below 1.
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
    source = open_model(path, "stream", check_execution(providers, threads))
    if any(port.timing is None for port in source.description.outputs):
        raise ModelFileError(f"{os.fspath(path)!r}: its description lacks the timing of an output; export it again")
    if wrong := _wrong_calls(source.description):
        raise ModelFileError(f"{os.fspath(path)!r}: {wrong}; the file is damaged, export it again")
    if not fast:
        return Model(source, None, "the fast form was not asked for")
    if not is_cpu(source.ort_session):
        return Model(source, None, f"the fast form needs the CPU, not {source.ort_session.get_providers()}")
    try:
        return Model(source, open_fast_step(source), source.description.not_fast)
    except FastFormError as error:
        warnings.warn(f"{os.fspath(path)!r}: {error}; it runs on its step graph, slower", RuntimeWarning, stacklevel=2)
        return Model(source, None, str(error))


class Model:
    """A streaming model. Made by ``load``; safe to share between threads, since it never changes."""

    def __init__(self, source: Source, fast: FastStep | None, not_fast: str | None) -> None:
        self._source = source
        self._description = description = source.description
        self._ort_session = source.ort_session
        self._execution = source.execution
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
    def providers(self) -> tuple[str, ...]:
        """The execution providers that the model runs with, the preferred first, by ONNX Runtime's names."""
        return tuple(self._ort_session.get_providers())

    @property
    def threads(self) -> int:
        """How many threads work on one operator."""
        return self._execution.threads

    @property
    def state_bytes(self) -> int:
        """Bytes of state that one stream carries from step to step."""
        return self._description.state_bytes

    def stream(self, name: str = "stream", *, budget_us: float | None = None) -> Stream:
        """Open a new stream in the initial state. ``name`` appears in its errors.

        ``budget_us`` is what a call may take; ``Stream.latency`` counts the longer ones.

        Raises:
            ConfigError: ``budget_us`` is not a number above 0.
        """
        return Stream(self._description, self._ort_session, self._checks, name, fast=self._fast, budget_us=budget_us)

    def restore(
        self, snapshot: bytes | bytearray | memoryview, name: str = "stream", *, budget_us: float | None = None
    ) -> Stream:
        """A stream that continues where the one stood that the snapshot was taken from, bitwise.

        Its latencies begin anew: they are no part of a snapshot.

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
        stream = self.stream(name, budget_us=budget_us)
        stream._restore(snapshot)
        return stream

    def pool(
        self,
        capacity: int = 100_000,
        *,
        slab: int = 256,
        idle_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        shards: int = 1,
        budget_us: float | None = None,
    ) -> Pool:
        """Open a pool of up to ``capacity`` streams, whose memory grows and shrinks by ``slab`` streams.

        ``Pool.expire`` closes those that nobody used for ``idle_s`` by the ``clock``. Calls are dealt to ``shards``
        threads, and longer ones than ``budget_us`` are counted in ``Pool.latency``.

        Raises:
            ConfigError: a number is out of its range.

        Example:
            >>> import numpy as np
            >>> pool = load("tests/data/tiny.stream.onnx").pool(100_000)
            >>> pool.open("pump-7")
            >>> pool.step({"pump-7": np.zeros(3, np.float32)})["pump-7"].shape
            (2,)
        """
        return Pool(
            self._source,
            self._checks,
            None if self._fast else self._not_fast or "the file holds no fast form",
            capacity=capacity,
            slab=slab,
            idle_s=idle_s,
            clock=clock,
            shards=shards,
            budget_us=budget_us,
        )

    def restore_pool(self, snapshot: bytes | bytearray | memoryview, **options: Any) -> Pool:
        """A pool with the streams that ``Pool.snapshot`` was taken of; ``options`` are those of ``pool``.

        Raises:
            SnapshotError: the snapshot is truncated, damaged, newer, or of another model; no pool is made.
            PoolFullError: it has more streams than the new pool's ``capacity``.
        """
        pool = self.pool(**options)
        pool._restore(snapshot)
        return pool

    def explain(self) -> str:
        """Which form of the model runs, and why; and what it approximates, if it does.

        Example:
            >>> print(load("tests/data/tiny.stream.onnx").explain())
            single steps, and chunks of up to 2 samples, run on the fast form: 4 ring buffers hold the state; longer \
chunks run on the step graph
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
        steps = f"single steps, and chunks of up to {self._fast.longest_by_steps} samples, run on the fast form"
        return f"{steps}{after}: {rings}; longer chunks run on the step graph"

    def __repr__(self) -> str:
        d = self._description
        ports = [port.shape for port in d.inputs], [port.shape for port in d.outputs]
        return f"Model({d.name!r}, {ports[0]} -> {ports[1]}, receptive_field={self.receptive_field})"


def _wrong_calls(d: Description) -> str | None:
    """What of a stream's description does not go together, so that no call could follow it."""
    timings = [(port.name, port.timing) for port in d.outputs if port.timing is not None]
    bounded = [name for name, timing in timings if timing.law == "lookahead"]
    halved = [name for name, timing in timings if d.granule * timing.hop[1] % timing.hop[0]]
    if d.phase >= d.granule:
        return f"phase: expected less than the granule of {d.granule}, got {d.phase}"
    if any(cut % d.granule for cut in d.cuts):
        return f"cuts: expected multiples of the granule of {d.granule}, got {d.cuts}"
    if halved:
        return f"hop: expected whole rows for each {d.granule} samples, which outputs {halved} do not have"
    if bool(bounded) != (d.lookahead is not None):
        return f"lookahead: expected it where an output's law is 'lookahead', got {d.lookahead} and outputs {bounded}"
    return None


def _widest(reaches: Sequence[int | None]) -> int | None:
    return None if None in reaches else max(n for n in reaches if n is not None)
