"""Whether an ONNX file computes what a Keras model does: the one judge of the family tests and of the table.

It runs any file whose ports are in the model's order, ours or another exporter's, on lengths and batches that no
exporter has seen, and once on large values.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime as ort

from edgeseq.errors import VerificationError
from edgeseq.export.comparison import TOLERANCE, compare
from edgeseq.export.oracle import keras_outputs
from edgeseq.export.reasons import reason
from edgeseq.export.signature import Signature, signature

LENGTHS, BATCHES = (1, 2, 7, 77, 300), (1, 2, 5)
LARGE, LARGE_LENGTH = 30.0, 7  # sensors without normalisation; where the ends of activations show
VOCABULARY = 11

# What a detour looks like: a loop, or the SpaceToBatch with which TensorFlow emulates a dilation.
DETOURS = {"Loop", "Scan", "If", "ReverseSequence", "SpaceToBatch", "SpaceToDepth"}

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Verdict:
    """``detour``: right, but by a loop or an emulation; ``detail`` says what is wrong."""

    kind: Literal["right", "detour", "wrong", "error"]
    detail: str = ""
    n_nodes: int | None = None


def judge(
    model: Any, path: Path, *, padded: bool = False, min_length: int = 1, tolerance: float = TOLERANCE
) -> Verdict:
    """Compare on batches of 1, 2 and 5 and on every length, or on the one that the model takes, and on large values."""
    operators = _operators(onnx.load(path).graph)
    n_nodes = len(operators)
    try:
        ort_session = ort.InferenceSession(path, _silent(), providers=["CPUExecutionProvider"])
    except Exception as error:  # ORT's exception classes have no public common base
        return Verdict("error", f"ONNX Runtime cannot open it: {_told(error)}", n_nodes)
    if (n := len(ort_session.get_inputs())) != len(model.inputs):
        return Verdict("wrong", f"it has {n} inputs, the model {len(model.inputs)}", n_nodes)
    try:
        for inputs, expected, batch in _cases(model, padded=padded, min_length=min_length):
            feeds = {port.name: x[:batch] for port, x in zip(ort_session.get_inputs(), inputs, strict=True)}
            where = f"{', '.join(str(x[:batch].shape) for x in inputs)}"
            for y, got in zip(expected, _run(ort_session, feeds, where), strict=True):
                compare(y[:batch], got, where, tolerance=tolerance)
    except VerificationError as error:
        return Verdict("wrong", str(error).removesuffix("; nothing was written"), n_nodes)
    if detours := DETOURS.intersection(operators):
        return Verdict("detour", ", ".join(sorted(detours)), n_nodes)
    return Verdict("right", "", n_nodes)


def _cases(model: Any, *, padded: bool, min_length: int) -> Iterator[tuple[list[Array], list[Array], int]]:
    ports = signature(model)
    for length in LENGTHS if ports.any_length else (0,):
        if length < min_length and ports.any_length:
            continue
        inputs = sequences(ports, length, padded=padded)
        expected = keras_outputs(model, inputs)
        assert not isinstance(expected, Exception), f"Keras at {length} steps: {expected}"
        for batch in BATCHES if ports.batch is None else (ports.batch,):
            yield inputs, expected, batch
    if not padded:
        inputs = [x * LARGE if x.dtype == np.float32 else x for x in sequences(ports, LARGE_LENGTH)]
        expected = keras_outputs(model, inputs)
        if not isinstance(expected, Exception):  # where Keras is not finite, a file need not be
            yield inputs, expected, ports.batch or max(BATCHES)


def sequences(ports: Signature, length: int, *, padded: bool = False) -> list[Array]:
    """Five sequences, or the batch that the model takes, of each input; if padded, with zeros at the end and inside."""
    rng, batch = np.random.default_rng(length), ports.batch or max(BATCHES)
    inputs = []
    for port in ports.inputs:
        shape = (batch, *(length if n is None else n for n in port.array_shape))
        if port.dtype == "float32":
            x = rng.normal(size=shape).astype(np.float32)
        else:
            x = rng.integers(1, VOCABULARY, size=shape).astype(port.dtype)
        if padded:
            for row, steps in enumerate((length, 1, length // 2, length - 1, length // 3)):
                x[row, max(steps, 1) :] = 0
            x[3, 1::3] = 0
            x[4, : x.shape[1] // 4] = 0
        inputs.append(x)
    return inputs


def _run(ort_session: Any, feeds: dict[str, Array], where: str) -> list[Array]:
    try:
        return ort_session.run(None, feeds)  # type: ignore[no-any-return]
    except Exception as error:
        raise VerificationError(f"{where}: ONNX Runtime fails: {_told(error)}") from error


def _told(error: Exception) -> str:
    """The telling part of what ONNX Runtime says, without the path of the file."""
    told = re.sub(r"^\[ONNXRuntimeError\] : \d+ : \w+ : |Load model from \S+ failed:", "", reason(error))
    return told.removeprefix("Non-zero status code returned while running ")[:80].strip()


def _operators(graph: Any) -> list[str]:
    """Of the graph and of its subgraphs."""
    found = []
    for node in graph.node:
        found.append(node.op_type)
        for attribute in node.attribute:
            found += _operators(attribute.g)
    return found


def _silent() -> Any:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return options
