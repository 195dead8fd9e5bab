"""The command line: a thin shell over the Python functions of the same names.

Heavy packages are imported by the command that needs them, so that ``edgeseq inspect`` works where only the runtime is
installed.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter
from rich.console import Console
from rich.table import Table

import edgeseq
from edgeseq.bench.command import bench
from edgeseq.certificate import certificate_of
from edgeseq.errors import ConfigError, ExportError, MissingDependencyError
from edgeseq.model_file import Conditions

app = App(name="edgeseq", version=edgeseq.__version__, help="Keras sequence models to real-time predictions.")
app.command(bench)
# Imported when it is asked for, since it needs the runtime.
app.command(
    "edgeseq.runtime.serve.command:serve",
    help="Serve a model: a WebSocket for streams, a live page, /metrics, and single windows over HTTP.",
)


@app.command
def train(
    architecture: Literal["tcn", "bilstm"],
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    data: str = "watch",
    held_out: Annotated[Sequence[int], Parameter(consume_multiple=True)] = (8, 9, 10),
    epochs: int | None = None,
    seed: int = 0,
    mixed_precision: bool = False,
) -> None:
    """Train a tagger on labelled sessions and write OUT.keras and OUT.json.

    Args:
        architecture: "tcn" streams; "bilstm" sees the future and runs offline.
        out: the model file to write, ending in .keras.
        data: "watch", the smartwatch recordings of seglearn, or an .npz file written by Sessions.save.
        held_out: groups (subjects) that are only scored.
        epochs: most epochs, instead of the recipe's.
        seed: of the splices, the weights and the windows.
        mixed_precision: compute in 16 bits; the saved model is float32 all the same.
    """
    _quiet_tensorflow()
    with _needs("train", "demos"):
        from edgeseq.sessions import Sessions
        from edgeseq.train import train_tagger
        from edgeseq.watch import AUGMENTATION, load_recordings, splice
    out.parent.mkdir(parents=True, exist_ok=True)
    watch = data == "watch"
    sessions = splice(load_recordings(), seed=seed) if watch else Sessions.load(data)
    report = train_tagger(
        architecture,
        sessions,
        out,
        held_out=held_out,
        epochs=epochs,
        seed=seed,
        mixed_precision=mixed_precision,
        augmentation=AUGMENTATION if watch else None,
    )
    _table(
        f"{out}",
        {
            "frame accuracy, held-out groups": f"{report.frame_accuracy:.3f}",
            "majority-class rate there": f"{report.majority_rate:.3f}",
            "epochs": str(report.epochs_run),
            "training": f"{report.train_s:.0f} s on {report.device} ({report.backend})",
        },
    )


@app.command
def export(
    model: Path,
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])] = Path(),
    name: str | None = None,
    dynamic_time: bool | None = None,
    imports: Annotated[Sequence[str], Parameter(name="--import", consume_multiple=True)] = (),
) -> None:
    """Export MODEL.keras to NAME.onnx and, where it streams exactly, NAME.stream.onnx.

    Names of features and labels and the sample rate come from MODEL.json beside it, as `edgeseq train` writes it.

    Args:
        model: a model saved by Keras 3, .keras or .h5.
        out: the folder for the files.
        name: of the files; the model file's own name by default.
        dynamic_time: insist that a model built for one length works for any, or (--no-dynamic-time) keep its length.
        imports: modules, installed or in the current folder, that register layers of your own with
            keras.saving.register_keras_serializable.
    """
    _quiet_tensorflow()
    os.environ["KERAS_BACKEND"] = "tensorflow"  # what tf2onnx converts; the model may come from any backend
    with _needs("train"):
        from edgeseq.export import export_model
    keras_tcn = ["tcn"] if find_spec("tcn") else []
    for module in ("edgeseq.builders", *keras_tcn):  # they register the layers that a file may hold
        import_module(module)
    _import_from_here(imports)
    names = _names_beside(model)
    report = export_model(_load_keras(model), out, name=name or model.stem, dynamic_time=dynamic_time, **names)
    seen = report.verification
    differences = ", ".join(f"{name} {value:.1e}" for name, value in seen.by_output.items())
    rows = {
        "offline": f"{report.offline}, {report.offline_bytes / 1e3:,.0f} kB, opset {report.opset}",
        "nodes": f"{report.n_nodes_before} as converted, {report.n_nodes} in the file",
        "differs from Keras by": f"{differences} of the output's scale, at most {seen.tolerance:.0e} allowed "
        f"({seen.n_sequences} sequences)",
        "export and verification": f"{report.took_s:.1f} s",
        **_lowered_rows(report.lowered),
    }
    if report.one_length is not None:
        rows["one length only"] = report.one_length
    if report.loops:
        rows["exact, but slow"] = ", ".join(report.loops)
    if report.stream is None:
        rows["no step graph"] = str(report.not_streamable)
    else:
        rows["stream"] = f"{report.stream} ({report.n_stream_nodes} nodes)"
        rows["offline and stream differ by"] = f"{seen.stream:.1e} of the output's scale"
    _table(report.offline.stem, rows)


def _lowered_rows(lowered: Sequence[Any]) -> dict[str, str]:
    """One row for each kind of layer and reason: how many, and why."""
    counted = Counter((each.kind, each.why) for each in lowered)
    return {f"lowered {n} {kind}": why for (kind, why), n in counted.items()}


@app.command
def streamify(
    model: Path,
    *,
    out: Annotated[Path, Parameter(name=["--out", "-o"])],
    time_axis: int | None = None,
    name: str | None = None,
    features: Annotated[Sequence[str], Parameter(consume_multiple=True)] = (),
    labels: Annotated[Sequence[str], Parameter(consume_multiple=True)] = (),
    rate_hz: float | None = None,
    vocabulary: int | None = None,
    pooling_window: int | None = None,
    length_modulo: tuple[int, int] | None = None,
    lookahead: int | None = None,
    chunk: int = 1,
) -> None:
    """Derive the step graph of any offline ONNX file, hold it to its contract, and write it to OUT.

    What is not given, an offline file of edgeseq's own says.

    Args:
        model: an offline ONNX file, of edgeseq or of another exporter.
        out: the stream file to write, NAME.stream.onnx.
        time_axis: of the model's inputs, where it cannot be found: 1 for (batch, time, channels), 2 for channels
            first, 0 for (time, batch, channels).
        name: of the model; the name of OUT by default.
        features: names of the channels of the input.
        labels: names of the channels of the output.
        rate_hz: samples per second of the data that the model was trained on.
        vocabulary: of a model of tokens, how many there are, where the graph does not tell.
        pooling_window: pool over the last so many rows of features alone: another model than the offline one.
        length_modulo: modulus and remainder of the length of every sequence, a promise by which "same" padding with a
            stride streams: 2 1 for odd ones.
        lookahead: let layers that run backwards see so many later steps: an approximation of the offline model.
        chunk: with --lookahead, how many steps are released at a time; more cost less, and come later.
    """
    with _needs("train"):
        from edgeseq.export.stream_file import streamify as streamify_file
    report = streamify_file(
        model,
        out,
        time_axis,
        name=name,
        feature_names=features or None,
        label_names=labels or None,
        rate_hz=rate_hz,
        vocabulary=vocabulary,
        pooling_window=pooling_window,
        length_modulo=length_modulo,
        lookahead=lookahead,
        chunk=chunk,
    )
    rows = {"stream": f"{report.stream} ({report.n_nodes} nodes)", **_condition_rows(report.description.conditions)}
    for port in report.description.outputs:
        rows |= {f"output {port.name}": f"{port.dtype} {_shape(port)}", **_timing_rows(port.timing)}
    _table(report.description.name, rows | _contract_rows(report.contract) | {"took": f"{report.took_s:.1f} s"})


@app.command
def verify(
    stream: Path,
    offline: Path,
    *,
    time_axis: int | None = None,
    vocabulary: int | None = None,
    pooling_window: int | None = None,
    length_modulo: tuple[int, int] | None = None,
    write: bool = True,
) -> None:
    """Hold STREAM to its contract with OFFLINE, and write the certificate into STREAM.

    Args:
        stream: a stream file of edgeseq.
        offline: the offline model that it equals, a file of edgeseq or of another exporter.
        time_axis: of the offline model's inputs, where it is not the one in STREAM.
        vocabulary: of a model of tokens, how many there are, where the graph does not tell.
        pooling_window: with which STREAM was made, where it does not say so itself.
        length_modulo: modulus and remainder with which STREAM was made, where it does not say so itself.
        write: write the certificate; with --no-write the file stays as it is.
    """
    with _needs("train"):
        from edgeseq.export.contract.check import verify as verify_files
    report = verify_files(
        stream,
        offline,
        time_axis=time_axis,
        vocabulary=vocabulary,
        pooling_window=pooling_window,
        length_modulo=length_modulo,
        write=write,
    )
    rows = _contract_rows(report)
    rows["certificate"] = f"written into {stream}" if write else "not written"
    _table(f"{stream.name} keeps its contract with {report.offline}", rows | {"took": f"{report.took_s:.1f} s"})


def _contract_rows(report: Any) -> dict[str, str]:
    rows = {f"clause {name}": told for name, told in report.certificate.clauses.items()}
    return rows | {f"note {i}": note for i, note in enumerate(report.notes, start=1)}


@app.command
def inspect(
    model: Path,
    *,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> None:
    """Print what a model file says of itself, after checking that it is intact.

    Args:
        model: NAME.onnx or NAME.stream.onnx.
        as_json: print the description as JSON, as docs/model-file.md explains it.
    """
    from edgeseq.runtime.model_source import describe, open_model

    d = describe(model)
    if as_json:
        print(json.dumps(json.loads(d.to_json()), indent=2))
        return
    rows: dict[str, str] = {"kind": d.kind}
    for what, channels, ports in (("input", "features", d.inputs), ("output", "labels", d.outputs)):
        for port in ports:
            rows[f"{what} {port.name}"] = f"{port.dtype} {_shape(port)}"
            if port.names:
                rows[f"  {channels}"] = ", ".join(port.names)
            if port.timing is not None:
                rows |= _timing_rows(port.timing)
    rows["sample rate"] = f"{d.rate_hz:g} Hz" if d.rate_hz else "(not given)"
    if d.kind == "stream":
        rows["state"] = f"{len(d.state)} arrays, {d.state_bytes:,} bytes a stream"
        rows["fast form"] = "yes" if d.fast is not None else f"none: {d.not_fast or 'the file is older than it'}"
    if d.offline is not None:
        what = "equals" if d.lookahead is None else "approximates"
        rows[what] = f"{d.offline.file} ({d.offline.graph_sha256[:12]})"
    if d.lookahead is not None:
        bounded, n_layers = d.lookahead, len(d.lookahead.layers)
        rows["bounded lookahead"] = (
            f"{bounded.steps} steps in each layer that runs backwards ({n_layers}), released {bounded.chunk} at a time"
        )
    rows |= _condition_rows(d.conditions)
    if d.kind == "stream":
        metadata = open_model(model, "stream").ort_session.get_modelmeta().custom_metadata_map
        rows["certificate"] = _certificate_row(metadata, d.graph_sha256)
    rows["made with"] = ", ".join(f"{package} {version}" for package, version in d.provenance.items()) or "(not told)"
    rows["graph"] = f"{d.graph_sha256[:12]}, {model.stat().st_size / 1e3:,.0f} kB"
    _table(d.name, rows)


def _condition_rows(conditions: Conditions) -> dict[str, str]:
    rows = {}
    if conditions.length_modulo is not None:
        modulus, remainder = conditions.length_modulo
        rows["if the length is"] = f"{remainder} samples modulo {modulus}, by your promise"
    if conditions.pooling_window is not None:
        rows["pools over"] = f"the last {conditions.pooling_window} rows; the offline model over all"
    return rows


def _certificate_row(metadata: Mapping[str, str], graph_sha256: str) -> str:
    certificate = certificate_of(metadata)
    if certificate is None:
        return "no certificate; edgeseq verify writes one"
    if (why := certificate.mismatch(metadata, graph_sha256)) is not None:
        return f"does not belong to this file: {why}; verify it again"
    made_with = ", ".join(f"{package} {version}" for package, version in certificate.versions.items())
    return f"{len(certificate.clauses)} clauses held against {certificate.offline} ({made_with})"


def _timing_rows(timing: Any) -> dict[str, str]:
    past, future = ("all" if n is None else str(n) for n in timing.receptive_field)
    samples, given = timing.hop
    return {
        "  receptive field": f"{past} past, {future} future samples",
        "  lookahead": f"{timing.lookahead} samples",
        "  hop": f"{samples} samples" if given == 1 else f"{samples} samples for {given} rows",
        "  law": timing.law,
    }


def _shape(port: Any) -> str:
    sizes = ["time" if n is None else str(n) for n in port.array_shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


def _load_keras(path: Path) -> Any:
    import keras

    if not path.is_file():
        raise ExportError(f"no Keras model at {str(path)!r}; check the path")
    try:
        return keras.saving.load_model(path, compile=False)
    except (TypeError, ValueError, OSError) as error:  # OSError: h5py on a damaged file
        told = (str(error).splitlines() or [type(error).__name__])[0]
        if "safe_mode=False" in str(error):
            raise ExportError(
                f"{str(path)!r} holds a Lambda layer with a Python function, which Keras does not load from a file "
                "unless it is told that the file can be trusted; if it can, export from Python: "
                f"edgeseq.export.export_model(keras.saving.load_model({str(path)!r}, safe_mode=False), FOLDER)"
            ) from error
        fix = (
            "check that the file is whole, and a model saved by Keras 3"
            if isinstance(error, OSError)
            else "if it holds layers of your own, name their module with --import"
        )
        raise ExportError(f"Keras cannot load {str(path)!r}: {told}; {fix}") from error


def _import_from_here(modules: Sequence[str]) -> None:
    """Import modules that are installed or lie in the current folder, where ``python -m`` would find them, too."""
    here = os.getcwd()
    if modules and here not in sys.path:
        sys.path.insert(0, here)
    for module in modules:
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            missing = "" if error.name == module else f" (it needs {error.name!r})"
            raise ConfigError(
                f"--import {module}: no such module in {here!r} or among the installed ones{missing}; give the name "
                "that Python imports it by, without .py"
            ) from error


def _names_beside(model: Path) -> dict[str, Any]:
    beside = model.with_suffix(".json")
    if not beside.is_file():
        return {}
    try:
        written = json.loads(beside.read_text(encoding="utf-8"))
        return {key: written[key] for key in ("feature_names", "label_names", "rate_hz")}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{str(beside)!r}: expected JSON with feature_names, label_names and rate_hz ({error!r}); "
            "mend it, or move it away to export without names"
        ) from error


class _needs:  # noqa: N801  reads as a statement: with _needs("train")
    """Turns a missing package into the extra that brings it."""

    def __init__(self, *extras: str) -> None:
        self._extras = ",".join(extras)

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, ModuleNotFoundError):
            raise MissingDependencyError(
                f'this command needs the package {error.name!r}; install it with pip install "edgeseq[{self._extras}]"'
            ) from error


def _quiet_tensorflow() -> None:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")


def _table(title: str, rows: dict[str, str]) -> None:
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, value)
    Console().print(table)
