"""Exporting: a Keras model in, verified model files out.

``export_model`` writes ``NAME.onnx``, the offline model, and for a model that streams exactly ``NAME.stream.onnx``, its
step graph. Invariant: files appear in the output folder only after Keras, the offline file and the streamed file gave
the same outputs; a failed export leaves the folder as it was.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeseq.errors import ConfigError, NotStreamableError
from edgeseq.export.convert import to_onnx
from edgeseq.export.probes import vocabulary_size
from edgeseq.export.streamify import StepModel, streamify
from edgeseq.export.verify import Verification, verify_offline, verify_stream
from edgeseq.model_file import METADATA_KEY, Description, OfflineReference, Port, graph_sha256
from edgeseq.runtime.inputs import InputCheck


@dataclass(frozen=True)
class ExportReport:
    """What ``export_model`` wrote and saw.

    ``stream`` is None for a model that has no exact step graph; ``not_streamable`` then says why.
    """

    offline: Path
    stream: Path | None
    not_streamable: str | None
    verification: Verification
    n_nodes: int
    n_stream_nodes: int | None


def export_model(
    keras_model: Any,
    out_dir: str | os.PathLike[str],
    *,
    name: str | None = None,
    feature_names: Sequence[str] | None = None,
    label_names: Sequence[str] | None = None,
    rate_hz: float | None = None,
    check_inputs: Sequence[np.ndarray[Any, Any]] = (),
) -> ExportReport:
    """Export a trained Keras model and verify the files before they appear.

    Shapes: the model takes (B, T, C) or tokens (B, T), and gives (B, T, K) or (B, K).

    Args:
        keras_model: a built Keras 3 model, on the TensorFlow backend.
        out_dir: the folder for the files; made if it is missing.
        name: of the files; the model's own name by default.
        feature_names: of the C channels, kept in the files.
        label_names: of the K outputs, kept in the files.
        rate_hz: samples per second of the data that the model was trained on, kept in the files.
        check_inputs: sequences (T, C) of your own data, verified beside random ones.

    Raises:
        ConfigError: a name or a number of names does not fit the model.
        ExportError: the model cannot be converted right.
        VerificationError: two forms of the model differ; the message names the first step that does.

    Example:
        >>> import tempfile, keras
        >>> from edgeseq import tcn_tagger
        >>> model = tcn_tagger(3, 2, nb_filters=4, dilations=(1, 2))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = export_model(model, folder, name="gesture", label_names=["rest", "move"])
        ...     report.offline.name, report.stream.name
        ('gesture.onnx', 'gesture.stream.onnx')
    """
    offline = to_onnx(keras_model).model
    stem = _stem(name or keras_model.name)
    description = _describe(offline, stem, feature_names, label_names, rate_hz)
    own = _checked(check_inputs, description.input)
    step, why_not = _try_streamify(offline)
    if step is not None:
        description = replace(description, receptive_field=(step.past, 0))
    with tempfile.TemporaryDirectory() as scratch:
        files = [Path(scratch) / f"{stem}.onnx"]
        description = _write(files[0], offline, description)
        seen = verify_offline(keras_model, files[0], own)
        if step is not None:
            files.append(Path(scratch) / f"{stem}.stream.onnx")
            _write(files[1], step.model, _describe_stream(description, step, files[0].name))
            vocabulary = vocabulary_size(keras_model)
            seen = replace(seen, stream=verify_stream(files[0], files[1], own, vocabulary=vocabulary))
        written = _publish(files, Path(out_dir), stem)
    return ExportReport(
        offline=written[0],
        stream=written[1] if step is not None else None,
        not_streamable=why_not,
        verification=seen,
        n_nodes=len(list(offline.graph)),
        n_stream_nodes=None if step is None else len(list(step.model.graph)),
    )


def _publish(files: Sequence[Path], folder: Path, stem: str) -> list[Path]:
    """Put verified files into the folder, each as a whole; an older step graph of the name does not outlive it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        raise ConfigError(f"out_dir: expected a folder, got the file {str(folder)!r}") from error
    targets = [folder / file.name for file in files]
    for file, target in zip(files, targets, strict=True):
        new = target.with_name(f".{target.name}.new")
        new.write_bytes(file.read_bytes())
        os.replace(new, target)
    if len(files) == 1:
        (folder / f"{stem}.stream.onnx").unlink(missing_ok=True)
    return targets


def _checked(check_inputs: Sequence[np.ndarray[Any, Any]], port: Port) -> list[np.ndarray[Any, Any]]:
    check = InputCheck(port, has_steps=False)
    own = [check.chunk(x, f"check_inputs[{i}]") for i, x in enumerate(check_inputs)]
    for i, x in enumerate(own):
        if len(x) == 0:
            raise ConfigError(f"check_inputs[{i}]: expected at least one sample, got none; leave it out")
    return own


def _stem(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or name.endswith(".stream"):
        raise ConfigError(
            f"name: expected letters, digits, '_', '-' and '.', not ending in '.stream', got {name!r}; "
            "it becomes a file name"
        )
    return name


def _try_streamify(offline: ir.Model) -> tuple[StepModel | None, str | None]:
    try:
        return streamify(offline), None
    except NotStreamableError as error:
        return None, str(error)


def _describe(
    offline: ir.Model,
    name: str,
    feature_names: Sequence[str] | None,
    label_names: Sequence[str] | None,
    rate_hz: float | None,
) -> Description:
    source, output = _port(offline.graph.inputs[0], batch_axes=2), _port(offline.graph.outputs[0], batch_axes=-1)
    for what, names, size in (
        ("feature_names", feature_names, source.shape[0] if source.shape else 0),
        ("label_names", label_names, output.shape[0]),
    ):
        if names is None:
            continue
        if len(names) != size or len(set(names)) != size or not all(isinstance(n, str) for n in names):
            raise ConfigError(f"{what}: expected {size} different names, one for each, got {list(names)}")
    if rate_hz is not None and not (isinstance(rate_hz, (int, float)) and 0 < rate_hz < float("inf")):
        raise ConfigError(f"rate_hz: expected samples per second above 0, got {rate_hz}")
    return Description(
        kind="offline",
        name=name,
        input=source,
        output=output,
        per_step=len(offline.graph.outputs[0].shape or ()) == 3,
        receptive_field=(None, None),
        feature_names=None if feature_names is None else tuple(feature_names),
        label_names=None if label_names is None else tuple(label_names),
        rate_hz=None if rate_hz is None else float(rate_hz),
    )


def _port(value: ir.Value, batch_axes: int) -> Port:
    names = {ir.DataType.FLOAT: "float32", ir.DataType.INT32: "int32", ir.DataType.INT64: "int64"}
    if value.dtype not in names or value.shape is None:
        raise ConfigError(f"{value.name}: expected float32, int32 or int64, got {value.dtype}")
    sizes = list(value.shape)[batch_axes:]
    return Port(str(value.name), names[value.dtype], tuple(n for n in sizes if isinstance(n, int)))  # type: ignore[arg-type]


def _describe_stream(offline: Description, step: StepModel, offline_file: str) -> Description:
    return replace(
        offline,
        kind="stream",
        law=step.law,
        per_step=True,
        state=step.state,
        offline=OfflineReference(offline_file, offline.graph_sha256),
    )


def _write(path: Path, model: ir.Model, description: Description) -> Description:
    """Write the model with its description in its metadata; returns the description with the graph's hash."""
    model.metadata_props.clear()
    digest = graph_sha256(ir.to_proto(model).SerializeToString(deterministic=True))
    final = replace(description, graph_sha256=digest)
    model.metadata_props[METADATA_KEY] = final.to_json()
    path.write_bytes(ir.to_proto(model).SerializeToString(deterministic=True))
    return final
