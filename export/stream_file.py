"""From any offline ONNX file to a stream file: derive the step graph, describe it, verify it, write it.

Owns what ``streamify`` does around the analysis: reading our files and foreign ones, and the description of either.
Invariant: the stream file appears only after it kept its contract with the offline file; a failure leaves what was
there as it was.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any, get_args

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from edgeseq.errors import ConfigError, EdgeseqError, ExportError, NotStreamableError
from edgeseq.export.certify import replace_file
from edgeseq.export.contract.check import CheckInput, ContractReport, verify
from edgeseq.export.contract.offline_function import open_graph
from edgeseq.export.description import Names, checked_rate, describe_stream, file_stem, named
from edgeseq.export.fast.form import DOMAIN, with_fast_form
from edgeseq.export.graph.vocabulary import limit_of
from edgeseq.export.reasons import reason
from edgeseq.export.streaming.step_model import Options, StepModel
from edgeseq.export.streaming.step_model import streamify as derive
from edgeseq.export.streaming.time_axis import TimeAxes
from edgeseq.model_file import METADATA_KEY, NEVER, Conditions, Description, DTypeName, Port, graph_sha256
from edgeseq.runtime.fast_check import FastFormError, open_fast_step
from edgeseq.runtime.model_source import open_model


@dataclass(frozen=True)
class StreamReport:
    """What ``streamify`` wrote and saw; ``n_nodes`` are those of the step graph, ``took_s`` includes the check."""

    stream: Path
    description: Description
    n_nodes: int
    contract: ContractReport
    took_s: float


def streamify(
    path_in: str | os.PathLike[str],
    path_out: str | os.PathLike[str],
    time_axis: TimeAxes = None,
    *,
    name: str | None = None,
    feature_names: Names = None,
    label_names: Names = None,
    rate_hz: float | None = None,
    vocabulary: int | None = None,
    check_inputs: Sequence[CheckInput] = (),
    pooling_window: int | None = None,
    length_modulo: tuple[int, int] | None = None,
    lookahead: int | None = None,
    chunk: int = 1,
) -> StreamReport:
    """Derive the step graph of an offline ONNX file, ours or another exporter's, and write it as a stream file.

    Shapes: the offline model takes (B, T, C), tokens (B, T), or, of another exporter, (B, C, T) or (T, B, C); the
    stream's samples are (C,), its chunks (T, C) in any case.

    Args:
        path_in: the offline file.
        path_out: the stream file to write, ``NAME.stream.onnx``.
        time_axis: of the offline inputs, or by an input's name, where it cannot be found.
        name: of the model; by default what the offline file says, or the name of ``path_out``.
        feature_names: as for ``export_model``; by default what the offline file says.
        label_names: the same.
        rate_hz: the same.
        vocabulary: of a model of tokens, how many there are; found in the graph where it can be.
        check_inputs: sequences (T, C) of your own data, verified beside random ones.
        pooling_window: pool over the last so many rows of features alone: another model than the offline one.
        length_modulo: (modulus, remainder) of the length of every sequence, a promise; a stream that was fed another
            number of samples refuses to flush.
        lookahead: of a model with recurrent layers that run backwards: how many later steps each of them sees at
            least. An approximation of the offline model, which docs/lookahead.md defines.
        chunk: with ``lookahead``: so many steps are released at a time.

    Raises:
        NotStreamableError: the graph has no exact step graph; the message names the node, the reason and a way out.
        VerificationError: the step graph breaks a clause of the contract; nothing was written.
        ModelNotFoundError, ModelFileError: ``path_in`` is missing, damaged, or a step graph.
        ConfigError: an argument is not what it should be, or ``path_out`` cannot be written.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = streamify("tests/data/tiny.onnx", f"{folder}/tiny.stream.onnx")
        ...     report.description.name, report.description.output.names, report.contract.worst < 1e-5
        ('tiny', ('rest', 'move'), True)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     out = f"{folder}/both_ways.stream.onnx"
        ...     report = streamify("tests/data/tiny_bilstm.onnx", out, lookahead=16, chunk=8)
        ...     report.description.output.timing.lookahead, report.description.output.timing.law
        (23, 'lookahead')
    """
    start = perf_counter()
    source, target = Path(path_in), Path(path_out)
    _check_target(source, target)
    data, _ = open_graph(source)
    model = ir.load(source)
    described = model.metadata_props.get(METADATA_KEY)
    ir.external_data.load_to_model(model)
    options = Options(pooling_window, length_modulo, lookahead, chunk)
    axis = 1 if time_axis is None and described is not None else time_axis
    step = with_fast_form(_derive(model, source, axis, options))
    stem = target.name.removesuffix(".onnx").removesuffix(".stream")
    offline = _foreign(model, step, stem, data) if described is None else Description.from_json(described)
    offline = replace(
        offline,
        name=offline.name if name is None and described is not None else file_stem(stem if name is None else name),
        inputs=offline.inputs if feature_names is None else named("feature_names", offline.inputs, feature_names),
        outputs=offline.outputs if label_names is None else named("label_names", offline.outputs, label_names),
        rate_hz=offline.rate_hz if rate_hz is None else checked_rate(rate_hz),
    )
    timed = zip(offline.outputs, step.timings, strict=True)
    offline = replace(offline, outputs=tuple(replace(port, timing=timing) for port, timing in timed))
    description = describe_stream(offline, step, source.name)
    description = replace(
        description, conditions=Conditions(length_modulo=length_modulo, pooling_window=pooling_window)
    )
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch) / target.name
        description = write_stream(made, step.model, description)
        contract = verify(
            made,
            source,
            vocabulary=vocabulary,
            check_inputs=check_inputs,
            pooling_window=pooling_window,
            length_modulo=length_modulo,
        )
        replace_file(target, made.read_bytes())
    return StreamReport(
        stream=target,
        description=description,
        n_nodes=len(list(step.model.graph)),
        contract=replace(contract, stream=target),
        took_s=perf_counter() - start,
    )


def write_model(path: Path, model: ir.Model, description: Description) -> Description:
    """Write the model with its description in its metadata; returns the description with the graph's hash."""
    model.metadata_props.clear()
    digest = graph_sha256(ir.to_proto(model).SerializeToString(deterministic=True))
    final = replace(description, graph_sha256=digest)
    model.metadata_props[METADATA_KEY] = final.to_json()
    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    return final


def write_stream(path: Path, model: ir.Model, description: Description) -> Description:
    """``write_model`` for a step graph: without its fast form, if the runtime would not use it."""
    final = write_model(path, model, description)
    try:
        open_fast_step(open_model(path, "stream"))
    except FastFormError as error:
        model.functions.clear()
        del model.opset_imports[DOMAIN]
        final = write_model(path, model, replace(description, fast=None, not_fast=str(error)))
    return final


def _check_target(source: Path, target: Path) -> None:
    if target.suffix != ".onnx":
        raise ConfigError(f"path_out: expected a file NAME.stream.onnx, got {str(target)!r}")
    if target.is_dir() or not target.absolute().parent.is_dir():
        raise ConfigError(f"path_out: expected a file in a folder that is there, got {str(target)!r}")
    if target.exists() and source.exists() and target.samefile(source):
        raise ConfigError(f"path_out: {str(target)!r} is the offline file itself; write the stream beside it")


def _derive(model: ir.Model, source: Path, time_axis: TimeAxes, options: Options) -> StepModel:
    try:
        return derive(model, time_axis, **asdict(options))
    except EdgeseqError:
        raise
    except Exception as error:  # of onnx, onnx-ir, or a rule on a graph that no rule was written for
        raise ExportError(
            f"{str(source)!r}: its graph cannot be simplified: {reason(error)}; check it with onnx.checker, or write "
            "it with another opset"
        ) from error


def _foreign(model: ir.Model, step: StepModel, name: str, data: bytes) -> Description:
    """What can be said of an offline file that says nothing of itself."""
    graph, n_inputs, n_outputs = step.model.graph, len(model.graph.inputs), len(model.graph.outputs)
    _learn_channels(step, graph.inputs[:n_inputs], graph.outputs[:n_outputs])
    made_by = {"made_by": " ".join(filter(None, (model.producer_name, model.producer_version)))}
    return Description(
        kind="offline",
        name=name,
        inputs=tuple(_port(value) for value in graph.inputs[:n_inputs]),
        outputs=tuple(_port(value) for value in graph.outputs[:n_outputs]),
        provenance={
            "opset": str(model.opset_imports.get("", "")),
            **{key: value for key, value in made_by.items() if value},
            **{package: version(package) for package in ("edgeseq", "onnx", "onnx-ir")},
        },
        graph_sha256=graph_sha256(data),
    )


def _learn_channels(step: StepModel, inputs: Sequence[ir.Value], outputs: Sequence[ir.Value]) -> None:
    """Give outputs whose number of channels nobody knows the sizes that a call gives them."""
    if all(isinstance(n, int) for value in outputs for n in list(value.shape or ())[2:]):
        return
    ort_session = ort.InferenceSession(ir.to_proto(step.model).SerializeToString(), providers=["CPUExecutionProvider"])
    feeds = {p.name: np.zeros((1, step.granule, *p.shape), p.dtype) for p in map(_port, inputs)}
    feeds |= {s.input: np.full((1, *s.shape), s.initial, s.dtype) for s in step.state}
    if step.end is not None:
        feeds[step.end] = np.full(1, NEVER)
    for value, y in zip(outputs, ort_session.run([str(v.name) for v in outputs], feeds), strict=True):
        value.shape = ir.Shape([*list(value.shape or ("batch", f"{value.name}_rows"))[:2], *y.shape[2:]])


def _port(value: ir.Value) -> Port:
    """A port of the step graph, (batch, rows, ...)."""
    known: dict[Any, DTypeName] = {ir.DataType.from_numpy(np.dtype(d)): d for d in get_args(DTypeName)}
    if value.dtype not in known:
        raise NotStreamableError(
            f"port {value.name!r} is {value.dtype}; a stream takes and gives {', '.join(get_args(DTypeName))}: "
            "put a Cast at that end of the model"
        )
    sizes = list(value.shape or ())[2:]
    if not all(isinstance(n, int) for n in sizes) or value.shape is None:
        raise NotStreamableError(
            f"port {value.name!r} is {value.shape}: the number of its channels is unknown; write it into the offline "
            "model (export it with that axis fixed)"
        )
    if isinstance(value.shape[0], int):
        raise NotStreamableError(
            f"port {value.name!r} takes batches of exactly {value.shape[0]}, and a stream file takes any: export the "
            "model with a dynamic batch (dynamic_shapes, dynamic_axes)"
        )
    shape = tuple(n for n in sizes if isinstance(n, int))
    return Port(str(value.name), known[value.dtype], shape, vocabulary=limit_of(value))
