"""The command line: a thin shell over the Python functions of the same names.

Heavy packages are imported by the command that needs them, so that ``edgeseq inspect`` works where only the runtime is
installed.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter
from rich.console import Console

import edgeseq
from edgeseq.bench.command import bench
from edgeseq.cli_keras import import_from_here, load_keras, names_beside, needs, quiet_tensorflow
from edgeseq.cli_rows import (
    certificate_row,
    condition_rows,
    contract_rows,
    lowered_rows,
    print_table,
    shape,
    timing_rows,
)

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
    quiet_tensorflow()
    with needs("train", "demos"):
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
    print_table(
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
    quiet_tensorflow()
    os.environ["KERAS_BACKEND"] = "tensorflow"  # what tf2onnx converts; the model may come from any backend
    with needs("train"):
        from edgeseq.export import export_model
    keras_tcn = ["tcn"] if find_spec("tcn") else []
    for module in ("edgeseq.builders", *keras_tcn):  # they register the layers that a file may hold
        import_module(module)
    import_from_here(imports)
    names = names_beside(model)
    report = export_model(load_keras(model), out, name=name or model.stem, dynamic_time=dynamic_time, **names)
    seen = report.verification
    differences = ", ".join(f"{name} {value:.1e}" for name, value in seen.by_output.items())
    rows = {
        "offline": f"{report.offline}, {report.offline_bytes / 1e3:,.0f} kB, opset {report.opset}",
        "nodes": f"{report.n_nodes_before} as converted, {report.n_nodes} in the file",
        "differs from Keras by": f"{differences} of the output's scale, at most {seen.tolerance:.0e} allowed "
        f"({seen.n_sequences} sequences)",
        "export and verification": f"{report.took_s:.1f} s",
        **lowered_rows(report.lowered),
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
    print_table(report.offline.stem, rows)


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
    with needs("train"):
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
    rows = {"stream": f"{report.stream} ({report.n_nodes} nodes)", **condition_rows(report.description.conditions)}
    for port in report.description.outputs:
        rows |= {f"output {port.name}": f"{port.dtype} {shape(port)}", **timing_rows(port.timing)}
    print_table(report.description.name, rows | contract_rows(report.contract) | {"took": f"{report.took_s:.1f} s"})


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
    with needs("train"):
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
    rows = contract_rows(report)
    rows["certificate"] = f"written into {stream}" if write else "not written"
    print_table(f"{stream.name} keeps its contract with {report.offline}", rows | {"took": f"{report.took_s:.1f} s"})


@app.command
def budget(
    model: Path,
    *,
    data: str,
    groups: Annotated[Sequence[int] | None, Parameter(consume_multiple=True, negative="")] = None,
    lookaheads: Annotated[Sequence[int], Parameter(consume_multiple=True, negative="")] = (0, 1, 2, 4, 8, 16, 32),
    chunks: Annotated[Sequence[int], Parameter(consume_multiple=True, negative="")] = (1, 8),
    causal: Path | None = None,
    target: str | None = None,
    max_delay: str | None = None,
    max_samples: int | None = None,
    as_json: Annotated[Path | None, Parameter(name="--json")] = None,
    plot: Path | None = None,
) -> None:
    """Measure what every step of delay buys for a bidirectional model, on your own data.

    Exit status 1 if a target or a longest delay was given and nothing meets it.

    Args:
        model: an offline file of edgeseq, NAME.onnx, with bidirectional layers.
        data: "watch", the held-out smartwatch recordings of seglearn, or an .npz or .csv file; see docs/budget.md.
        groups: of the data (subjects), only these.
        lookaheads: steps that each bidirectional layer looks ahead.
        chunks: sizes of the blocks in which outputs come.
        causal: a stream file of a model that streams exactly, to compare.
        target: what is to be reached: accuracy=0.9, agreement=0.99 or max_difference=0.01.
        max_delay: the longest delay that is allowed: 200ms, 0.2s, or a number of samples.
        max_samples: compare at most so many samples, from the start of the data.
        as_json: write everything that was measured to this file.
        plot: draw the curve to this .png or .svg file.
    """
    from edgeseq.budget_curve.command import run_budget

    arguments = {"groups": groups, "lookaheads": lookaheads, "chunks": chunks, "causal": causal, "target": target}
    with needs("train"):
        curve = run_budget(model, data, max_delay, as_json, plot, **arguments, max_samples=max_samples)
    if curve.nearest is not None:
        sys.exit(1)


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
            rows[f"{what} {port.name}"] = f"{port.dtype} {shape(port)}"
            if port.names:
                rows[f"  {channels}"] = ", ".join(port.names)
            if port.timing is not None:
                rows |= timing_rows(port.timing)
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
    rows |= condition_rows(d.conditions)
    if d.kind == "stream":
        metadata = open_model(model, "stream").ort_session.get_modelmeta().custom_metadata_map
        rows["certificate"] = certificate_row(metadata, d.graph_sha256)
    rows["made with"] = ", ".join(f"{package} {version}" for package, version in d.provenance.items()) or "(not told)"
    rows["graph"] = f"{d.graph_sha256[:12]}, {model.stat().st_size / 1e3:,.0f} kB"
    print_table(d.name, rows)


@app.command
def run(
    model: Path,
    *,
    from_: Annotated[str, Parameter(name="--from", allow_leading_hyphen=True)],
    to: Annotated[str, Parameter(allow_leading_hyphen=True)] = "-",
    snapshot_dir: Path | None = None,
    snapshot_every_s: float = 5.0,
    budget_us: float | None = None,
    metrics: str | None = None,
    queue: int = 1024,
    when_full: Literal["wait", "drop_oldest"] = "wait",
    rate_hz: float | None = None,
    gap: Literal["raise", "hold", "interpolate", "reset"] | None = None,
    missing: Literal["reject", "hold", "interpolate"] | None = None,
    jump: Literal["raise", "reset", "rebase"] | None = None,
    grace_s: float | None = None,
    jump_s: float | None = None,
    sensor_hz: float | None = None,
    resample: Literal["linear", "nearest"] | None = None,
    order_by: Literal["sequence", "timestamp", "arrival"] | None = None,
    sequence_modulus: int | None = None,
) -> None:
    """Predict what comes from a feed, into a sink, until the feed ends or SIGTERM comes; docs/feeds.md has recipes.

    Args:
        model: NAME.stream.onnx.
        from_: where samples come from: csv:PATH, jsonl:PATH, influx:PATH, "-" for standard input, mqtt://HOST/TOPIC,
            ws://HOST:PORT, ws+listen://HOST:PORT or serial:DEVICE.
        to: where predictions go: jsonl:PATH, csv:PATH, "-" for standard output, mqtt://, ws:// or ws+listen://.
        snapshot_dir: the folder that lets the run go on where it was, also after kill -9.
        snapshot_every_s: how often the state is kept there.
        budget_us: what a step of the model may take; longer ones are counted.
        metrics: HOST:PORT, or :PORT on this machine alone, where Prometheus reads /metrics.
        queue: how many lines or messages may wait.
        when_full: read no more, or drop the oldest.
        rate_hz: samples per second that the model takes, if its file does not say.
        gap: what stands in for samples that did not come; "raise" refuses those after a gap.
        missing: what stands in for missing values; "reject" refuses the sample.
        jump: what a sample does whose place is far off.
        grace_s: how long a late sample is waited for.
        jump_s: the longest gap that is filled.
        sensor_hz: the sensor's rate, if it is not the model's.
        resample: from the sensor's rate to the model's.
        order_by: what says a sample's place.
        sequence_modulus: where sequence numbers start again at 0.
    """
    from edgeseq.runtime import load
    from edgeseq.runtime.feeds.command import make_clock, run_until_stopped, tell
    from edgeseq.runtime.feeds.runner import RunSettings

    loaded = load(model)
    policies: dict[str, object] = {"gap": gap, "missing": missing, "jump": jump, "grace_s": grace_s, "jump_s": jump_s}
    policies |= {"sensor_hz": sensor_hz, "resample": resample, "order_by": order_by}
    clock = make_clock(loaded, rate_hz, **policies, sequence_modulus=sequence_modulus)
    settings = RunSettings(
        clock=clock,
        snapshot_dir=snapshot_dir,
        snapshot_every_s=snapshot_every_s,
        budget_us=budget_us,
        queue=queue,
        when_full=when_full,
        on_error=tell,
    )
    report = run_until_stopped(loaded, from_, to, settings, metrics=metrics)
    Console(stderr=True).print(f"edgeseq run: {report}; {report.samples}", highlight=False)
