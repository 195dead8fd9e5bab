"""Single windows by the Open Inference Protocol, version 2, as JSON. No I/O.

A window is fed to a fresh stream and flushed, so by the law its outputs are the offline model's; windows of a batch
after each other. Refuses tensors of other names, types or shapes, and the binary extension.

Source: https://github.com/kserve/open-inference-protocol, specification/protocol/inference_rest.md
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import edgeseq
from edgeseq.errors import DTypeError, InputError, ShapeError
from edgeseq.model_file import Port
from edgeseq.runtime.inputs import Array
from edgeseq.runtime.model import Model
from edgeseq.runtime.serve.streams import as_json

DATATYPES = {
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "int32": "INT32",
    "int64": "INT64",
    "bool": "BOOL",
}
"""The protocol's names of dtypes."""

VERSION = "1"
"""Every model has one version."""


class Inference:
    """What the protocol asks of one model.

    Example:
        >>> from edgeseq import runtime as rt
        >>> inference = Inference(rt.load("tests/data/tiny.stream.onnx"), max_samples=4096)
        >>> window = {"name": "input", "datatype": "FP32", "shape": [1, 4, 3], "data": [0.0] * 12}
        >>> answer = inference.infer({"id": "1", "inputs": [window]})
        >>> answer["id"], answer["outputs"][0]["shape"]
        ('1', [1, 4, 2])
    """

    def __init__(self, model: Model, max_samples: int) -> None:
        self._model, self._max_samples = model, max_samples

    def server(self) -> dict[str, Any]:
        """The answer to ``GET /v2``."""
        return {"name": "edgeseq", "version": edgeseq.__version__, "extensions": []}

    def metadata(self) -> dict[str, Any]:
        """The answer to ``GET /v2/models/NAME``; -1 is any size."""
        d = self._model.description
        return {
            "name": self._model.name,
            "versions": [VERSION],
            "platform": "onnxruntime_onnx",
            "inputs": [_told(port, has_time=True) for port in d.inputs],
            "outputs": [_told(port, has_time=_by_row(port)) for port in d.outputs],
        }

    def infer(self, request: Any) -> dict[str, Any]:
        """The answer to ``POST /v2/models/NAME/infer``.

        Shapes: inputs (B, T, C), outputs (B, T', K), or (B, K) where the model gives one value for a sequence.

        Raises:
            InputError, ShapeError, DTypeError, NonFiniteError: the request is not what the model takes.
        """
        if not isinstance(request, dict) or not isinstance(request.get("inputs"), list):
            raise InputError("infer: expected a JSON object with a list of inputs")
        given = {each.get("name"): each for each in request["inputs"] if isinstance(each, dict)}
        ports = {port.name: port for port in self._model.description.inputs}
        if set(given) != set(ports) or len(request["inputs"]) != len(ports):
            raise InputError(f"infer: expected the inputs {list(ports)}, each once, got {[*map(str, given)]}")
        wanted = self._wanted(request)
        windows = {name: _tensor(port, given[name]) for name, port in ports.items()}
        sizes = {x.shape[:2] for x in windows.values()}
        if len(sizes) > 1:
            raise ShapeError(f"infer: expected as many windows and samples of each input, got {sorted(sizes)}")
        n_windows, n_samples = sizes.pop()
        if n_windows < 1 or n_samples < 1 or n_windows * n_samples > self._max_samples:
            raise ShapeError(
                f"infer: expected 1 to {self._max_samples} samples in all windows, got {n_windows} of {n_samples}"
            )
        of_each = [self._run({name: x[i] for name, x in windows.items()}) for i in range(n_windows)]
        answer = {"model_name": self._model.name, "model_version": VERSION}
        if isinstance(request.get("id"), str):
            answer["id"] = request["id"]
        return answer | {"outputs": [_output(port, [y[port.name] for y in of_each]) for port in wanted]}

    def _wanted(self, request: Mapping[str, Any]) -> list[Port]:
        """The outputs that are asked for, all by default."""
        ports = {port.name: port for port in self._model.description.outputs}
        asked = request.get("outputs") or [{"name": name} for name in ports]
        if not isinstance(asked, list) or not all(isinstance(each, dict) for each in asked):
            raise InputError("infer: expected outputs, a list of JSON objects")
        names = [each.get("name") for each in asked]
        if not all(isinstance(name, str) and name in ports for name in names):
            raise InputError(f"infer: expected outputs of {list(ports)}, got {str(names)[:80]}")
        if any(isinstance(each.get("parameters"), dict) and each["parameters"].get("binary_data") for each in asked):
            raise InputError("infer: expected outputs as JSON, got a wish for binary_data; ask for binary_data=False")
        return [ports[name] for name in names]

    def _run(self, window: Mapping[str, Array]) -> dict[str, Array]:
        """All rows of one window, {output: (T', K) or (K,)}."""
        stream = self._model.stream("window")
        one = len(window) == 1
        pushed = stream.push(next(iter(window.values())) if one else window)
        owed = stream.flush()
        outputs = self._model.description.outputs
        if len(outputs) == 1:
            pushed, owed = {outputs[0].name: pushed}, {outputs[0].name: owed}
        rows = {port.name: np.concatenate([pushed[port.name], owed[port.name]]) for port in outputs}
        for port in outputs:
            if not _by_row(port):
                if not len(rows[port.name]):
                    raise ShapeError(f"infer: the window is too short for output {port.name!r}; send more samples")
                rows[port.name] = rows[port.name][-1]
        return rows


def _by_row(port: Port) -> bool:
    return port.timing is not None and port.timing.law != "prefix"


def _told(port: Port, *, has_time: bool) -> dict[str, Any]:
    shape = [-1, *([-1] if has_time else []), *port.shape]
    return {"name": port.name, "datatype": DATATYPES[port.dtype], "shape": shape}


def _output(port: Port, rows: list[Array]) -> dict[str, Any]:
    y = np.stack(rows)
    told = {"name": port.name, "shape": list(y.shape), "datatype": DATATYPES[port.dtype]}
    return {**told, "data": as_json(y.reshape(-1))}


def _tensor(port: Port, given: Mapping[str, Any]) -> Array:
    """An input of the request, (B, T, C); its data may be flat or nested."""
    where = f"infer, input {port.name!r}"
    shape, data = given.get("shape"), given.get("data")
    if given.get("datatype") != DATATYPES[port.dtype]:
        raise DTypeError(
            f"{where}: expected datatype {DATATYPES[port.dtype]!r}, got {str(given.get('datatype'))[:40]!r}"
        )
    if not isinstance(data, list):
        raise InputError(f"{where}: expected data, a list; binary data is not taken, so send binary_data=False")
    if not isinstance(shape, list) or not all(type(n) is int and n >= 0 for n in shape):
        raise ShapeError(f"{where}: expected a shape, (windows, samples, {', '.join(map(str, port.shape))})")
    if len(shape) != 2 + len(port.shape) or tuple(shape[2:]) != port.shape:
        raise ShapeError(f"{where}: expected the shape (windows, samples, *{port.shape}), got {tuple(shape)[:8]}")
    flat = list(_flat(data))
    kinds = {int, float} if port.dtype.startswith("float") else {int}
    if strange := {type(x) for x in flat} - kinds:
        raise DTypeError(f"{where}: expected numbers, got {', '.join(sorted(t.__name__ for t in strange))}")
    if len(flat) != np.prod(shape, dtype=object):
        raise ShapeError(f"{where}: expected as many numbers as {tuple(shape)} has, got {len(flat)}")
    try:
        with np.errstate(over="ignore"):  # what is too large becomes infinite, which the stream refuses by that name
            return np.array(flat, port.dtype).reshape(shape)
    except OverflowError as error:
        raise InputError(f"{where}: expected {port.dtype}, got a number that it cannot hold") from error


def _flat(data: list[Any]) -> list[Any]:
    """The leaves of nested lists, in order; without recursion, since a client chose the depth."""
    flat, waiting = [], [iter(data)]
    while waiting:
        for each in waiting[-1]:
            if isinstance(each, list):
                waiting.append(iter(each))
                break
            flat.append(each)
        else:
            waiting.pop()
    return flat
