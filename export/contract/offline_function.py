"""The offline model of a contract check, as a function of one sequence: one of our files, a foreign one, or a callable.

Inputs are (T, C), outputs (R, K), or (K,) behind a pool over time, whatever the layout of the offline model: a foreign
file may be channels first, or time first. Where an input has batch and time is told by the user, or by the stream file,
or the file leaves one axis open; the time axis of an output is the one that grows with the sequence. Of a batch of one,
an axis of 1 that is too many is the batch, or the time of one step that a pool has kept.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edgeseq.errors import ConfigError, ModelFileError, ModelNotFoundError, VerificationError
from edgeseq.export.reasons import reason
from edgeseq.export.sequences import Array, Inputs
from edgeseq.export.streaming.time_axis import TimeAxes, by_input
from edgeseq.model_file import METADATA_KEY, Description, Port, graph_sha256
from edgeseq.runtime.model_source import open_model

OfflineModel = str | os.PathLike[str] | Callable[[Any], Any]


@dataclass(frozen=True)
class OfflineFunction:
    """``run`` gives the outputs for one sequence; ``input_axes`` are (batch, time) of the model's own inputs."""

    name: str
    graph_sha256: str | None
    call: Callable[[Inputs], list[Array]]
    outputs: tuple[Port, ...]
    input_axes: tuple[tuple[int, int], ...]
    output_axes: dict[str, int] = field(default_factory=dict)  # found while it is run
    longest_layer: Callable[[Inputs], int] | None = None  # of a bounded lookahead: the most rows that a layer has

    def run(self, inputs: Inputs) -> Inputs:
        """Shapes: (T, C) for each input to (R, K), or (K,), for each output.

        Raises:
            VerificationError: the model cannot run the sequence, or gives outputs of other ranks.
        """
        where = f"offline model {self.name!r} on {len(inputs[0])} samples"
        given = self._give(inputs, where)
        return [self._by_rows(port, y, where) for port, y in zip(self.outputs, given, strict=True)]

    def _give(self, inputs: Inputs, where: str) -> list[Array]:
        moved = [np.moveaxis(x[None], (0, 1), axes) for x, axes in zip(inputs, self.input_axes, strict=True)]
        try:
            given = self.call([np.ascontiguousarray(x) for x in moved])
        except Exception as error:  # whatever the callable, or ONNX Runtime, raises
            raise VerificationError(f"{where}: it cannot run them: {reason(error)}") from error
        if len(given) != len(self.outputs):
            raise VerificationError(f"{where}: expected {len(self.outputs)} outputs, got {len(given)}")
        return given

    def _by_rows(self, port: Port, y: Array, where: str) -> Array:
        pooled = port.timing is not None and not port.timing.by_row
        ranks = [len(port.shape) + n for n in ((1, 2) if pooled else (2,))]  # a pool may keep its axis
        if y.ndim not in ranks:
            raise VerificationError(
                f"{where}, output {port.name!r}: expected {' or '.join(map(str, ranks))} axes, got shape {y.shape}"
            )
        rows: Array = y[None] if pooled else np.moveaxis(y, self.output_axes.get(port.name, 1), 0)
        if [n for n in rows.shape[1:] if n != 1] != [n for n in port.shape if n != 1]:
            raise VerificationError(
                f"{where}, output {port.name!r}: expected a batch of 1 and values {port.shape}, got shape {y.shape}"
            )
        rows = rows.reshape(len(rows), *port.shape)
        return rows[0] if pooled else rows

    def find_output_axes(self, shorter: Inputs, longer: Inputs) -> None:
        """Learn the time axes of the outputs: those that two sequences of different numbers of rows tell apart."""
        ran = [self._give(xs, f"offline model {self.name!r} on {len(xs[0])} samples") for xs in (shorter, longer)]
        for port, few, many in zip(self.outputs, *ran, strict=True):
            assert port.timing is not None
            counts = [port.timing.count_rows(len(xs[0])) for xs in (shorter, longer)]
            grown = [axis for axis in range(few.ndim) if few.shape[axis] != many.shape[axis]]
            if port.timing.by_row and few.ndim == len(port.shape) + 2 and counts[0] != counts[1]:
                if len(grown) != 1:
                    raise VerificationError(
                        f"offline model {self.name!r}, output {port.name!r}: of {len(shorter[0])} samples it is "
                        f"{few.shape}, of {len(longer[0])} {many.shape}; expected one axis to have {counts[0]} and "
                        f"then {counts[1]} rows"
                    )
                self.output_axes[port.name] = grown[0]


def offline_function(offline: OfflineModel, stream: Description, time_axis: TimeAxes) -> OfflineFunction:
    """The offline model that ``stream`` is to equal.

    Raises:
        ModelNotFoundError, ModelFileError: there is no such file, or it is damaged, or not an offline model.
        ConfigError: its ports are not those of the stream, or ``time_axis`` is needed, or wrong.
    """
    told = by_input([port.name for port in stream.inputs], time_axis)
    if callable(offline) and not isinstance(offline, (str, os.PathLike)):
        name = str(getattr(offline, "name", None) or getattr(offline, "__name__", None) or type(offline).__name__)
        axes = tuple(_told(port, len(port.shape) + 2, told.get(port.name, 1)) for port in stream.inputs)
        return OfflineFunction(name, None, lambda inputs: _called(offline, stream, inputs), stream.outputs, axes)
    path = Path(offline)
    data, ort_session = open_graph(path)
    expected, found = [port.name for port in stream.inputs], [port.name for port in ort_session.get_inputs()]
    outputs, given = [port.name for port in stream.outputs], [port.name for port in ort_session.get_outputs()]
    if sorted(expected) != sorted(found) or not set(outputs) <= set(given):
        raise ConfigError(
            f"{str(path)!r} has the inputs {found} and the outputs {given}, the stream {expected} and {outputs}; "
            "give the offline model that the stream was made from"
        )
    shapes = {port.name: port.shape for port in ort_session.get_inputs()}
    written = {} if stream.offline is None else stream.offline.axes
    axes = tuple(
        _axes(port, shapes[port.name], told.get(port.name), written.get(port.name, (0, 1))) for port in stream.inputs
    )

    def call(inputs: Inputs) -> list[Array]:
        return ort_session.run(outputs, dict(zip(expected, inputs, strict=True)))  # type: ignore[no-any-return]

    return OfflineFunction(path.name, graph_sha256(data), call, stream.outputs, axes)


def open_graph(path: Path) -> tuple[bytes, Any]:
    """The bytes of an offline file, ours or foreign, and its ONNX Runtime session.

    Raises:
        ModelNotFoundError, ModelFileError: there is no such file; it is damaged, or a step graph.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"no model file at {str(path)!r}; check the path") from error
    except OSError as error:
        raise ModelFileError(f"cannot read {str(path)!r}: {error.strerror}") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4  # errors are raised, and need not be printed, too
    try:
        ort_session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ORT's exception classes have no public common base
        raise ModelFileError(f"{str(path)!r}: ONNX Runtime cannot open it: {reason(error)}") from error
    if METADATA_KEY in ort_session.get_modelmeta().custom_metadata_map:
        open_model(path, "offline")  # it says what it is: then that must be so
    return data, ort_session


def _called(function: Callable[[Any], Any], stream: Description, inputs: Inputs) -> list[Array]:
    given = dict(zip((port.name for port in stream.inputs), inputs, strict=True))
    answer = function(given if len(inputs) > 1 else inputs[0])
    if isinstance(answer, Mapping):
        answer = [answer[port.name] for port in stream.outputs]
    elif not isinstance(answer, (list, tuple)):
        answer = [answer]
    return [np.asarray(y) for y in answer]


def _axes(port: Port, shape: Sequence[int | str | None], told: int | None, written: tuple[int, int]) -> tuple[int, int]:
    """Which axes of an input are batch and time: the user's, those in the stream file, or others where it fits."""
    rank = len(port.shape) + 2
    if len(shape) != rank:
        raise ConfigError(f"input {port.name!r} of the offline model: expected {rank} axes, got {list(shape)}")
    if told is not None:
        return _told(port, rank, told)
    for axes in (written, *((0, axis) for axis in range(1, rank))):
        if max(axes) < rank and _fits(port, shape, axes):
            return axes
    raise ConfigError(
        f"input {port.name!r} of the offline model is {list(shape)}: a sample {port.shape} and time do not fit "
        "into it; give the offline model that the stream was made from"
    )


def _told(port: Port, rank: int, axis: int) -> tuple[int, int]:
    """Batch and time where the user says the axis of time: the batch is the first of the others."""
    if not -rank <= axis < rank:
        raise ConfigError(f"time_axis: expected an axis of the {rank} of input {port.name!r}, got {axis}")
    return (0 if axis % rank else 1, axis % rank)


def _fits(port: Port, shape: Sequence[int | str | None], axes: tuple[int, int]) -> bool:
    beside = [size for axis, size in enumerate(shape) if axis not in axes]
    sizes_fit = all(not isinstance(got, int) or got == n for got, n in zip(beside, port.shape, strict=True))
    return sizes_fit and not isinstance(shape[axes[1]], int)
