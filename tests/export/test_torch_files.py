"""``streamify`` from one file to another, of every checked-in PyTorch graph that streams, whatever its layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeseq import runtime as rt
from edgeseq.certificate import certificate_of
from edgeseq.errors import ConfigError, VerificationError
from edgeseq.export import streamify, verify
from edgeseq.runtime.model_source import open_model
from tests.export.test_streamify import session
from tests.export.test_torch_graphs import (
    AMBIGUOUS,
    CASES,
    DATA,
    LENGTHS,
    PREFIX,
    STREAMABLE,
    TBC,
    TOLERANCE,
    batch_first,
    load,
)

Array = np.ndarray[Any, Any]


def streamed(name: str, exporter: str, folder: Path, **given: Any) -> tuple[Path, Path]:
    """The stream file of a graph, and the graph's own file."""
    offline, stream = DATA / f"{name}.{exporter}.onnx", folder / f"{name}.stream.onnx"
    streamify(offline, stream, 1 if name in AMBIGUOUS else None, **given)
    return stream, offline


@pytest.mark.parametrize(("name", "exporter"), CASES)
def test_file_to_file(name: str, exporter: str, tmp_path: Path) -> None:
    stream, _ = streamed(name, exporter, tmp_path)
    model = rt.load(stream)
    ours, theirs = STREAMABLE[name]
    d = model.description
    assert d.offline is not None
    assert d.offline.axes == {d.input.name: (ours.batch, ours.time)}
    metadata = open_model(stream, "stream").ort_session.get_modelmeta().custom_metadata_map
    certificate = certificate_of(metadata)
    assert certificate is not None
    assert certificate.mismatch(metadata, d.graph_sha256) is None
    recorded = np.load(DATA / f"{name}.npz")
    x = batch_first(recorded["x"], ours)
    for n in LENGTHS:
        expected = batch_first(recorded[f"y_{n}"], theirs)
        for b in range(len(x)):
            fed = model.stream()
            rows = np.concatenate([fed.push(x[b, : n // 2]), fed.push(x[b, n // 2 : n]), fed.flush()])
            got = rows[-1] if theirs == PREFIX else rows
            np.testing.assert_allclose(got, expected[b], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", ["wavenet", "gru_time_first", "gru_mean_time_first", "last_step", "lstm_last_hidden"])
def test_the_two_files_alone_are_enough_to_verify(name: str, tmp_path: Path) -> None:
    stream, offline = streamed(name, "torchscript", tmp_path)
    before = stream.read_bytes()
    assert verify(stream, offline).worst < TOLERANCE
    assert stream.read_bytes() == before
    time = STREAMABLE[name][0].time
    assert time is not None
    for axis in (time, time - 3, {"input": time}):  # said again
        assert verify(stream, offline, time_axis=axis, write=False).worst < TOLERANCE


def test_a_function_in_the_layout_of_the_file(tmp_path: Path) -> None:
    for name, axis in (("wavenet", 2), ("gru_mean_time_first", 0)):
        stream, _ = streamed(name, "torchscript", tmp_path)
        ort_session = session(load(name, "torchscript"))

        def function(x: Array, ort_session: Any = ort_session) -> Any:
            return ort_session.run(None, {"input": x})

        assert verify(stream, function, time_axis=axis, write=False).worst < TOLERANCE
        with pytest.raises(VerificationError):
            verify(stream, function, write=False)  # (1, T, C), if nothing is said


def test_time_axis_by_input(tmp_path: Path) -> None:
    offline = DATA / "lstm_time_first.torchscript.onnx"
    streamify(offline, tmp_path / "s.stream.onnx", {"input": 0})
    assert rt.load(tmp_path / "s.stream.onnx").description.offline.axes == {  # type: ignore[union-attr]
        "input": (TBC.batch, TBC.time)
    }
    for wrong, told in (
        ({"other": 0}, r"no input \['other'\]"),
        ("first", "expected a whole number"),
        ({"input": True}, "expected a whole number"),
    ):
        with pytest.raises(ConfigError, match=told):
            streamify(offline, tmp_path / "s.stream.onnx", wrong)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=told):
            verify(tmp_path / "s.stream.onnx", offline, time_axis=wrong)  # type: ignore[arg-type]


def test_a_wrong_layout_in_the_file_is_seen(tmp_path: Path) -> None:
    from tests.export.stream_files import rewrite

    stream, offline = streamed("gru_time_first", "torchscript", tmp_path)
    rewrite(stream, description=lambda raw: raw["offline"].update(axes={"input": [0, 1]}))
    with pytest.raises(VerificationError, match="clause 'steps'"):
        verify(stream, offline)


def test_inputs_of_different_layouts(tmp_path: Path) -> None:
    import onnx

    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        g (float[batch,4,time] a, float[time,batch,3] b) => (float[batch,2,time] y) {
            c = Conv<pads=[2,0]>(a, W) t = Transpose<perm=[1,2,0]>(b) e = Conv<pads=[1,1]>(t, V) y = Add(c, e) }"""
    )
    for name, size in (("W", (2, 4, 3)), ("V", (2, 3, 3))):
        weight = np.random.default_rng(0).normal(size=size).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(weight, name))
    onnx.save(model, tmp_path / "m.onnx")
    for axis in (None, {"a": 2, "b": 0}):
        report = streamify(tmp_path / "m.onnx", tmp_path / "s.stream.onnx", axis)
        origin = report.description.offline
        assert origin is not None
        assert origin.axes == {"a": (0, 2), "b": (1, 0)}
        assert verify(report.stream, tmp_path / "m.onnx").worst < TOLERANCE
