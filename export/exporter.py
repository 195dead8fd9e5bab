"""Exporting: a Keras model in, verified model files out.

``export_model`` writes ``NAME.onnx``, the offline model, and for a model that streams exactly ``NAME.stream.onnx``, its
step graph. Invariant: files appear in the output folder only after Keras, the offline file and the streamed file gave
the same outputs; a failed export leaves the folder as it was.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx_ir as ir

from edgeseq.errors import ConfigError, ExportError, ModelFileError, NotStreamableError, VerificationError
from edgeseq.export.any_length import for_any_length, length_kept_by
from edgeseq.export.convert import OPSET, Converted, to_onnx
from edgeseq.export.description import About, Names, describe_offline, describe_stream, file_stem
from edgeseq.export.fast.form import with_fast_form
from edgeseq.export.graph.vocabulary import limit_of
from edgeseq.export.lowering.native import LoweredLayer
from edgeseq.export.lowering.registry import one_export
from edgeseq.export.probes import vocabulary_size
from edgeseq.export.sequences import Inputs
from edgeseq.export.signature import signature
from edgeseq.export.stream_file import write_model, write_stream
from edgeseq.export.streaming.step_model import StepModel, streamify
from edgeseq.export.verification import Verification, verify_offline, verify_stream
from edgeseq.model_file import Port
from edgeseq.runtime import load_offline
from edgeseq.runtime.inputs import InputCheck

CheckInput = np.ndarray[Any, Any] | Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class ExportReport:
    """What ``export_model`` wrote and saw.

    ``stream`` is None for a model that has no exact step graph; ``not_streamable`` then says why. ``one_length`` says
    why the files take the model's own length alone, and is None where they take any. ``lowered`` lists the layers that
    were not traced as Keras wrote them. ``n_nodes_before`` counts what tf2onnx made, ``n_nodes`` what the clean-up left
    of it. ``loops`` names the Loop, Scan and If nodes in it: exact, but slow. ``took_s`` includes the verification.
    """

    offline: Path
    stream: Path | None
    not_streamable: str | None
    one_length: str | None
    verification: Verification
    lowered: tuple[LoweredLayer, ...]
    n_nodes_before: int
    n_nodes: int
    n_stream_nodes: int | None
    loops: tuple[str, ...]
    offline_bytes: int
    opset: int
    took_s: float


def export_model(
    keras_model: Any,
    out_dir: str | os.PathLike[str],
    *,
    name: str | None = None,
    feature_names: Names = None,
    label_names: Names = None,
    rate_hz: float | None = None,
    dynamic_time: bool | None = None,
    check_inputs: Sequence[CheckInput] = (),
) -> ExportReport:
    """Export a trained Keras model and verify the files before they appear.

    Shapes: the model takes (B, T, C) or tokens (B, T), and gives (B, T, K) or (B, K); several inputs and outputs are
    named by the keys of the dict that the model takes or gives, or by the names of its layers. A layer with
    ``stateful=True`` starts every sequence anew in the offline file; a stream carries its state.

    Args:
        keras_model: a built Keras 3 model, on the TensorFlow backend.
        out_dir: the folder for the files; made if it is missing.
        name: of the files; the model's own name by default.
        feature_names: of the C channels, kept in the files; for several inputs a mapping from port to names.
        label_names: of the K outputs, kept in the files; for several outputs a mapping from port to names.
        rate_hz: samples per second of the data that the model was trained on, kept in the files.
        dynamic_time: what to do with a model built for one length. None: export it for any length if nothing in it
            seems to depend on the length, else for its own. True: for any, unless the numbers show that it depends on
            the length; then raise. False: keep its length.
        check_inputs: sequences (T, C) of your own data, verified beside random ones; for several inputs mappings from
            port to array.

    Raises:
        ConfigError: an argument is not what it should be, a name or a number of names does not fit the model, Keras
            cannot run the model on one of ``check_inputs``, or ``out_dir`` cannot be written.
        InputError: one of ``check_inputs`` does not fit the model's input.
        ExportError: the model cannot be converted right, or not for any length or batch; or another export runs.
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
    start = perf_counter()
    stem = file_stem(str(getattr(keras_model, "name", "model")) if name is None else name)
    about = About(stem, feature_names, label_names, rate_hz)
    _check_arguments(check_inputs, dynamic_time, Path(out_dir))
    with one_export(), tempfile.TemporaryDirectory() as scratch:
        make = partial(_make, Path(scratch), about, check_inputs)
        made, one_length = _for_any_length(make, keras_model, dynamic_time=dynamic_time)
        written = _publish(made.files, Path(out_dir), about.name)
    graph = made.converted.model.graph
    return ExportReport(
        offline=written[0],
        stream=written[1] if made.step is not None else None,
        not_streamable=made.not_streamable,
        one_length=one_length,
        verification=made.verification,
        lowered=made.converted.lowered,
        n_nodes_before=made.converted.n_nodes_before,
        n_nodes=len(list(graph)),
        n_stream_nodes=None if made.step is None else len(list(made.step.model.graph)),
        loops=tuple(f"{node.name} ({node.op_type})" for node in graph if node.op_type in ("Loop", "Scan", "If")),
        offline_bytes=written[0].stat().st_size,
        opset=OPSET,
        took_s=perf_counter() - start,
    )


@dataclass(frozen=True)
class _Made:
    """Verified files in a scratch folder."""

    converted: Converted
    step: StepModel | None
    not_streamable: str | None
    files: list[Path]
    verification: Verification


def _for_any_length(
    make: Callable[..., _Made], keras_model: Any, *, dynamic_time: bool | None
) -> tuple[_Made, str | None]:
    """Make the files for any batch and length if that can be; and the reason why they take one length, if they do."""
    ports = signature(keras_model)
    if ports.any_length and ports.batch is None:
        return make(keras_model), None
    if dynamic_time is False and not ports.any_length:
        return _for_any_batch(make, keras_model), "dynamic_time=False"
    try:
        rebuilt = for_any_length(keras_model)
        if dynamic_time is None and not ports.any_length and (kept := _length_kept(keras_model, rebuilt)):
            raise ExportError(f"{kept}; if any length is right, export it with dynamic_time=True")
        return make(rebuilt, built_as=keras_model), None
    except VerificationError:  # the rebuilt model is not in its own file: no other length would make that right
        raise
    except ExportError as error:
        if dynamic_time and not ports.any_length:
            raise ExportError(
                f"model {keras_model.name!r} depends on its length: {error}; export it with dynamic_time=False, for "
                "that length alone"
            ) from error
        return _for_any_batch(make, keras_model), None if ports.any_length else str(error)


def _for_any_batch(make: Callable[..., _Made], keras_model: Any) -> _Made:
    """Make the files for the model's own length: of the model itself, or, if its batch is fixed, built again."""
    batch = signature(keras_model).batch
    if batch is None:
        return make(keras_model)
    try:
        return make(for_any_length(keras_model, keep_length=True), built_as=keras_model)
    except VerificationError:
        raise
    except ExportError as error:
        raise ExportError(
            f"model {keras_model.name!r} is built for a batch of {batch}, and the file must take any: {error}; build "
            "it with a batch of None, keras.Input(shape) without batch_size"
        ) from error


def _length_kept(keras_model: Any, rebuilt: Any) -> str | None:
    """Why the rebuilt model seems to be another one than the model at other lengths; None if it does not."""
    if (seen := length_kept_by(keras_model, rebuilt)) is not None:
        return seen
    for was, now in zip(signature(keras_model).outputs, signature(rebuilt).outputs, strict=True):
        kinds = {(port.dtype, port.shape, port.has_time) for port in (was, now)}
        if len(kinds) > 1 or now.length not in (None, was.length):
            return f"output {was.name!r} is {was.array_shape}, also where the inputs' length is open"
    return None


def _make(
    scratch: Path, about: About, check_inputs: Sequence[CheckInput], keras_model: Any, *, built_as: Any = None
) -> _Made:
    """Convert, describe, write and verify; against the model as it was built, too, if this is another form of it."""
    converted = to_onnx(keras_model)
    vocabularies = {str(value.name): limit_of(value) for value in converted.model.graph.inputs}
    description = describe_offline(converted.ports, about, vocabularies)
    own = _checked(check_inputs, description.inputs)
    step, why_not = _try_streamify(converted.model)
    if step is not None:
        timed = zip(description.outputs, step.timings, strict=True)
        description = replace(description, outputs=tuple(replace(port, timing=timing) for port, timing in timed))
    files = [scratch / f"{about.name}.onnx"]
    description = write_model(files[0], converted.model, description)
    _check_opens(files[0])
    if built_as is None:
        seen = verify_offline(keras_model, files[0], own)
    else:
        seen = _verify_both(keras_model, built_as, files[0], own)
    if step is not None:
        files.append(scratch / f"{about.name}.stream.onnx")
        write_stream(files[1], step.model, describe_stream(description, step, files[0].name))
        vocabulary = vocabulary_size(keras_model, own)
        seen = replace(seen, stream=verify_stream(files[0], files[1], own, vocabulary=vocabulary))
    return _Made(converted, step, why_not, files, seen)


def _verify_both(rebuilt: Any, built_as: Any, path: Path, own: Sequence[Inputs]) -> Verification:
    """Compare the file with the rebuilt model, whose file it is, and then with the model as it was built."""
    length = max((port.length or 0 for port in signature(built_as).inputs), default=0)
    longer = (length + 1, 2 * length + 1) if signature(rebuilt).any_length else ()
    seen = verify_offline(rebuilt, path, own, must_run=longer)
    try:
        return seen | verify_offline(built_as, path)
    except VerificationError as error:  # right for the rebuilt model: so that one is not the model
        raise ExportError(str(error).removesuffix("; nothing was written")) from error


def _check_opens(path: Path) -> None:
    try:
        load_offline(path)
    except ModelFileError as error:
        raise ExportError(
            f"edgeseq.runtime cannot open the file that was made: {error}; nothing was written"
        ) from error


def _check_arguments(check_inputs: Any, dynamic_time: Any, out_dir: Path) -> None:
    if not isinstance(check_inputs, Sequence) or isinstance(check_inputs, (str, bytes)):
        raise ConfigError(
            f"check_inputs: expected a list of sequences, got {type(check_inputs).__name__}; put it into a list"
        )
    if dynamic_time is not None and not isinstance(dynamic_time, bool):
        raise ConfigError(f"dynamic_time: expected None, True or False, got {dynamic_time!r}")
    nearest = next(folder for folder in (out_dir, *out_dir.absolute().parents) if os.path.lexists(folder))
    if not nearest.is_dir():
        raise ConfigError(f"out_dir: expected a folder, got the file {str(nearest)!r}")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(f"out_dir: cannot write into {str(nearest)!r}; choose another folder")


def _publish(files: Sequence[Path], folder: Path, stem: str) -> list[Path]:
    """Put verified files into the folder, each as a whole; an older step graph of the name does not outlive it."""
    targets = [folder / file.name for file in files]
    news = [target.with_name(f".{target.name}.new") for target in targets]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, new in zip(files, news, strict=True):
            new.write_bytes(file.read_bytes())
        for new, target in zip(news, targets, strict=True):
            os.replace(new, target)
        if len(files) == 1:
            (folder / f"{stem}.stream.onnx").unlink(missing_ok=True)
    except OSError as error:
        for new in news:
            with suppress(OSError):
                new.unlink(missing_ok=True)
        raise ConfigError(f"out_dir: cannot write into {str(folder)!r}: {error.strerror}; choose another") from error
    return targets


def _checked(check_inputs: Sequence[CheckInput], ports: Sequence[Port]) -> list[Inputs]:
    own = []
    for i, given in enumerate(check_inputs):
        where = f"check_inputs[{i}]"
        by_port = given if isinstance(given, Mapping) else {ports[0].name: given}
        if set(by_port) != {port.name for port in ports}:
            raise ConfigError(f"{where}: expected the inputs {[p.name for p in ports]}, got {list(by_port)}; name each")
        own.append([InputCheck(port).sequence(by_port[port.name], f"{where}, {port.name}") for port in ports])
        if any(port.has_time and len(x) == 0 for port, x in zip(ports, own[-1], strict=True)):
            raise ConfigError(f"{where}: expected at least one sample, got none; leave it out")
    return own


def _try_streamify(offline: ir.Model) -> tuple[StepModel | None, str | None]:
    try:
        return with_fast_form(streamify(offline, time_axis=1)), None
    except NotStreamableError as error:
        return None, str(error)
