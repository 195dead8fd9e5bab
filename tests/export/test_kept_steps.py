"""Outputs that keep a time axis of one step, (B, 1, K): a stream gives rows (K,) of them, under the prefix law."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest
from keras import layers as L  # noqa: N812

from demos.plain_onnxruntime import PlainStream
from edgeseq import runtime as rt
from edgeseq.export import export_model, streamify, verify
from tests.export.stream_files import CONV, TO

TOLERANCE = 1e-5

HEADS: dict[str, Any] = {
    "maximum": lambda h: L.GlobalMaxPooling1D(keepdims=True)(h),
    "mean": lambda h: L.Dense(3)(L.GlobalAveragePooling1D(keepdims=True)(h)),
    "last step": lambda h: h[:, -1:, :],
}


@pytest.mark.parametrize("padding", ["causal", "same"])
def test_from_keras(padding: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)  # with it a channel of "mean" and one of "last step" end near zero in most sequences
    for head, build in HEADS.items():
        x = keras.Input((None, 4))
        model = keras.Model(x, build(L.Conv1D(5, 3, padding=padding, activation="relu")(x)))
        for weight in model.weights:
            weight.assign(rng.normal(size=weight.shape) * 0.5)
        report = export_model(model, tmp_path, name="m")
        assert report.stream is not None, head
        assert verify(report.stream, report.offline).worst < TOLERANCE
        assert verify(report.stream, model, write=False).worst < TOLERANCE
        again = streamify(report.offline, tmp_path / "again.stream.onnx").description
        assert again == rt.load(report.stream).description
        k = model.output_shape[-1]
        assert (again.output.array_shape, again.output.timing.law) == ((None, k), "prefix")  # type: ignore[union-attr]
        data = rng.normal(size=(17, 4)).astype(np.float32)
        rows = np.concatenate([(s := rt.load(report.stream).stream()).push(data), s.flush()])
        whole = rt.load_offline(report.offline).run(data)
        assert (rows.shape, whole.shape) == ((17, k), (1, k))
        np.testing.assert_allclose(rows[-1], whole[0], atol=TOLERANCE)
        if padding == "causal":
            for t in range(1, 17):
                np.testing.assert_allclose(
                    rows[t - 1], rt.load_offline(report.offline).run(data[:t])[0], atol=TOLERANCE
                )
        plain = PlainStream(str(report.stream))
        by_hand = np.concatenate([plain.push({"input": data})["output"], plain.flush()["output"]])
        np.testing.assert_array_equal(by_hand, rows)


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        ("output = GlobalAveragePool(c)", "float[batch, 2, one]"),
        ("m = ReduceMax<keepdims=1>(c, AXES) output = Transpose<perm=[2,0,1]>(m)", "float[one, batch, 2]"),
    ],
)
def test_from_another_exporter(body: str, kept: str, tmp_path: Path) -> None:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        g (float[batch, time, 4] input) => ({kept} output) {{ {TO} c = Conv<pads=[2,0]>(t, V, D) {body} }}"""
    )
    for name, array in {**CONV, "AXES": np.array([2])}.items():
        if name in ("V", "D") or name in body:
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, tmp_path / "m.onnx")
    report = streamify(tmp_path / "m.onnx", tmp_path / "m.stream.onnx")
    assert report.description.output.array_shape == (None, 2)
    assert verify(report.stream, tmp_path / "m.onnx").clauses["prefix"].text.endswith("prefixes")
