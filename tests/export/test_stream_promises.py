"""What is asked or promised of a stream file beside the offline model: a window for its pools, its lengths."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from edgeseq import runtime as rt
from edgeseq.errors import ConfigError, NotStreamableError, VerificationError
from edgeseq.export import streamify, verify
from tests.export.stream_files import CONV, TO, offline_file


def same_with_a_stride(folder: Path) -> Path:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        g (float[batch, time, 4] input) => (float[batch, rows, 2] output)
        {{ {TO} c = Conv<auto_pad="SAME_UPPER", strides=[2]>(t, V, D) output = Transpose<perm=[0,2,1]>(c) }}"""
    )
    model.graph.initializer.extend(onnx.numpy_helper.from_array(CONV[name], name) for name in ("V", "D"))
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"


@pytest.mark.parametrize("remainder", [0, 1])
def test_same_padding_with_a_stride_by_a_promise(remainder: int, tmp_path: Path) -> None:
    offline, out = same_with_a_stride(tmp_path), tmp_path / "m.stream.onnx"
    with pytest.raises(NotStreamableError, match="its padding depends on the length"):
        streamify(offline, out)
    assert streamify(offline, out, length_modulo=(2, remainder)).contract.worst < 1e-5
    assert verify(out, offline, length_modulo=(2, remainder), write=False).worst < 1e-5
    with pytest.raises(VerificationError):
        verify(out, offline, length_modulo=(2, 1 - remainder), write=False)
    x = np.random.default_rng(0).normal(size=(20 + remainder, 4)).astype(np.float32)
    stream = rt.load(out).stream()
    rows = np.concatenate([stream.push(x), stream.flush()])
    np.testing.assert_allclose(rows, ort.InferenceSession(offline).run(None, {"input": x[None]})[0][0], atol=1e-5)
    with pytest.raises(ConfigError, match="are not what length_modulo"):
        streamify(offline, out, length_modulo=(2, remainder), check_inputs=[x[1:]])


@pytest.mark.parametrize("kind", ["maximum", "mean"])
@pytest.mark.parametrize("window", [1, 7, 400])
def test_a_window_equals_the_offline_model_until_it_is_full(kind: str, window: int, tmp_path: Path) -> None:
    offline, out = offline_file(tmp_path, kind), tmp_path / "m.stream.onnx"
    report = streamify(offline, out, pooling_window=window)
    assert report.description.output.timing.law == "window"  # type: ignore[union-attr]
    assert any("while no more than the window's had come" in note for note in report.contract.notes)
    assert any("were not compared; give the pooling_window" in note for note in verify(out, offline, write=False).notes)
    ort_session = ort.InferenceSession(offline)
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    for n in (1, 5, 7, 8, 30):
        stream = rt.load(out).stream()
        last = np.concatenate([stream.push(x[:n]), stream.flush()])[-1]
        expected = ort_session.run(None, {"input": x[None, :n]})[0][0]
        if n <= window:
            np.testing.assert_allclose(last, expected, atol=1e-5)
        elif kind == "mean":  # a maximum may well be among the last rows
            assert np.abs(last - expected).max() > 1e-3
    if window < 30:  # a window that is said to be larger than it is
        with pytest.raises(VerificationError, match="clause '"):
            verify(out, offline, pooling_window=3 * window)


def test_what_is_no_option(tmp_path: Path) -> None:
    offline, out = offline_file(tmp_path, "causal"), tmp_path / "m.stream.onnx"
    for options, told in (
        ({"pooling_window": 4}, "has no pool over time"),
        ({"pooling_window": 0}, "expected a number of rows"),
        ({"length_modulo": (2, 2)}, "expected .modulus, remainder."),
    ):
        with pytest.raises(ConfigError, match=told):
            streamify(offline, out, **options)
    assert not out.exists()
