"""Streamify a file: ours and foreign ones, what it says of itself, and that nothing appears that broke its contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgeseq import runtime as rt
from edgeseq.errors import ConfigError, ModelFileError, NotStreamableError, VerificationError
from edgeseq.export import streamify
from edgeseq.export.contract import clauses
from tests.export.stream_files import offline_file


def test_of_our_file_it_is_what_the_export_wrote(tmp_path: Path) -> None:
    out = tmp_path / "tiny.stream.onnx"
    report = streamify("tests/data/tiny.onnx", out)
    assert rt.load(out).description == rt.load("tests/data/tiny.stream.onnx").description == report.description
    assert report.stream == report.contract.stream == out
    assert report.n_nodes == len(onnx.load(out).graph.node)
    named = streamify("tests/data/tiny.onnx", out, name="other", label_names=["a", "b"], rate_hz=10).description
    assert (named.name, named.output.names, named.input.names, named.rate_hz) == (
        "other",
        ("a", "b"),
        ("x", "y", "z"),
        10,
    )


def test_a_foreign_file_says_what_the_graph_tells(tmp_path: Path) -> None:
    offline = offline_file(tmp_path, "valid")
    report = streamify(offline, tmp_path / "gait.stream.onnx")
    d = rt.load(report.stream).description
    assert (d.name, d.input.shape, d.output.shape, d.rate_hz) == ("gait", (4,), (2,), None)
    assert d.provenance["made_by"] == "other 1.0"
    assert d.offline is not None
    assert d.offline.file == "valid.onnx"
    assert report.contract.certificate.offline_sha256 == d.offline.graph_sha256
    assert onnx.load(offline).metadata_props == onnx.load(offline_file(tmp_path, "valid")).metadata_props


def test_what_it_writes_streams(tmp_path: Path) -> None:
    import onnxruntime as ort

    offline = offline_file(tmp_path, "strided")
    model = rt.load(streamify(offline, tmp_path / "s.stream.onnx").stream)
    x = np.random.default_rng(0).normal(size=(31, 4)).astype(np.float32)
    expected = ort.InferenceSession(offline).run(None, {"input": x[None]})[0][0]
    stream = model.stream()
    got = [stream.step(sample) for sample in x]
    rows = [y for y in got if y is not None]
    np.testing.assert_allclose(np.concatenate([np.stack(rows), stream.flush()]), expected, atol=1e-5)


def test_weights_beside_the_file(tmp_path: Path) -> None:
    offline = offline_file(tmp_path, "same")
    onnx.save(onnx.load(offline), offline, save_as_external_data=True, location="weights.bin", size_threshold=0)
    out = tmp_path / "elsewhere"
    out.mkdir()
    streamify(offline, out / "s.stream.onnx")
    assert [path.name for path in out.iterdir()] == ["s.stream.onnx"]


def test_nothing_appears_that_broke_its_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(pair: Any) -> Any:
        raise VerificationError("seen to break")

    offline = offline_file(tmp_path, "causal")
    out = tmp_path / "s.stream.onnx"
    out.write_text("what was there")
    monkeypatch.setitem(clauses.CLAUSES, "reset", broken)
    with pytest.raises(VerificationError, match="clause 'reset': seen to break"):
        streamify(offline, out)
    assert out.read_text() == "what was there"
    assert len(list(tmp_path.iterdir())) == 2


def test_what_is_refused(tmp_path: Path) -> None:
    offline, out = offline_file(tmp_path, "causal"), tmp_path / "s.stream.onnx"
    with pytest.raises(ConfigError, match="is the offline file itself"):
        streamify(offline, offline)
    with pytest.raises(ConfigError, match="expected a file in a folder that is there"):
        streamify(offline, tmp_path / "nowhere" / "s.onnx")
    with pytest.raises(ModelFileError, match="expected a model of kind 'offline'"):
        streamify("tests/data/tiny.stream.onnx", out)
    with pytest.raises(ConfigError, match="label_names: expected 2 different names"):
        streamify(offline, out, label_names=["one"])
    with pytest.raises(ConfigError, match="name: expected letters"):
        streamify(offline, out, name="a/b")
    with pytest.raises(ConfigError, match="rate_hz: expected samples per second above 0"):
        streamify(offline, out, rate_hz=-1)
    model = onnx.load(offline)
    model.graph.node[0].op_type = "Softmax"
    del model.graph.node[0].attribute[:]
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("axis", 1))
    onnx.save(model, tmp_path / "softmax.onnx")
    with pytest.raises(NotStreamableError, match="Softmax"):
        streamify(tmp_path / "softmax.onnx", out)
    assert not out.exists()


def test_ports_that_no_stream_can_have(tmp_path: Path) -> None:
    def save(kind: str, channels: str, batch: str = "batch") -> Path:
        text = f"""<ir_version: 8, opset_import: ["" : 18]>
        g ({kind}[{batch}, time, {channels}] input) => ({kind}[{batch}, time, {channels}] output)
        {{ output = Neg(input) }}"""
        onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
        return tmp_path / "m.onnx"

    with pytest.raises(NotStreamableError, match="port 'input' is FLOAT16; a stream takes and gives float32"):
        streamify(save("float16", "3"), tmp_path / "s.stream.onnx")
    with pytest.raises(NotStreamableError, match="the number of its channels is unknown"):
        streamify(save("float", "channels"), tmp_path / "s.stream.onnx")
    for batch in "12":
        with pytest.raises(
            NotStreamableError, match=f"takes batches of exactly {batch}, .*export the model with a dyn"
        ):
            streamify(save("float", "3", batch), tmp_path / "s.stream.onnx")


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("double", "t = Transpose<perm=[0,2,1]>(input) p = MaxPool<kernel_shape=[3], pads=[2,0]>(t) "
         "output = Transpose<perm=[0,2,1]>(p)"),
        ("double", "m = ReduceMax<keepdims=1>(input, ONE) output = Tanh(m)"),
        ("double", "output = Pad(input, PADS)"),
        ("int32", "s = ReduceSum<keepdims=1>(input, ONE) output = Neg(s)"),
    ],
)  # fmt: skip
def test_earlier_rows_of_another_type_are_refused_by_name(kind: str, body: str, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        g ({kind}[batch, time, 4] input) => ({kind}[batch, rows, 4] output) {{ {body} }}"""
    )
    for name, array in (("ONE", np.array([1])), ("PADS", np.array([0, 0, 0, 0, 2, 0]))):
        if name in body:
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(NotStreamableError, match=r"earlier rows of '\w+', of (DOUBLE|INT32), .*Cast to float32"):
        streamify(tmp_path / "m.onnx", tmp_path / "m.stream.onnx", 1)
    assert not (tmp_path / "m.stream.onnx").exists()
