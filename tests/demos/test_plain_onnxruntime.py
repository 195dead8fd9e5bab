"""The demo that streams by the file's metadata alone: against the offline file, and without edgeseq."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnxruntime as ort
import pytest

from demos.plain_onnxruntime import PlainStream
from edgeseq import runtime as rt
from edgeseq.export import export_model
from tests.export.stream_files import GRAPHS, stream_file

KINDS = [kind for kind in GRAPHS if kind != "channels first"]


def in_chunks(stream: PlainStream, inputs: dict[str, Any], seed: int) -> dict[str, Any]:
    n = len(next(iter(inputs.values())))
    cuts = [0, *sorted(np.random.default_rng(seed).integers(0, n + 1, size=6)), n]
    parts = [stream.push({name: x[start:stop] for name, x in inputs.items()}) for start, stop in pairwise(cuts)]
    parts.append(stream.flush())
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [7, 8, 41])
def test_it_gives_the_rows_of_the_offline_file(tmp_path: Path, kind: str, n: int) -> None:
    path, offline = stream_file(tmp_path, kind)
    x = np.random.default_rng(n).normal(size=(n, 4)).astype(np.float32)
    expected = ort.InferenceSession(offline).run(None, {"input": x[None]})[0][0]
    for seed in range(3):
        got = in_chunks(PlainStream(str(path)), {"input": x}, seed)["output"]
        np.testing.assert_allclose(got if expected.ndim == 2 else got[-1], expected, atol=1e-5)
    steps = PlainStream(str(path))
    rows = [steps.push({"input": sample[None]})["output"] for sample in x]
    rows.append(steps.flush()["output"])
    np.testing.assert_allclose(np.concatenate(rows), got, atol=1e-5)


def test_several_outputs_of_different_hops_and_recurrence_behind_lookahead(tmp_path: Path, randomise: Any) -> None:
    inputs = keras.Input((None, 3), name="x")
    h = keras.layers.Conv1D(4, 5, padding="same", activation="tanh")(inputs)
    model = keras.Model(
        inputs,
        {
            "slow": keras.layers.Conv1D(2, 3, strides=3, padding="causal")(inputs),
            "late": keras.layers.GRU(3, return_sequences=True)(h),
            "fast": keras.layers.UpSampling1D(2)(h),
            "once": keras.layers.GlobalAveragePooling1D()(h),
        },
    )
    report = export_model(randomise(model), tmp_path, name="m")
    assert report.stream is not None, report.not_streamable
    x = np.random.default_rng(0).normal(size=(23, 3)).astype(np.float32)
    expected = rt.load_offline(report.offline).run(x)
    stream = PlainStream(str(report.stream))
    assert stream.about["cuts"]
    assert stream.about["granule"] == 3
    got = in_chunks(stream, {stream.inputs[0]["name"]: x}, 0)
    for name, y in expected.items():
        np.testing.assert_allclose(got[name] if y.ndim == 2 else got[name][-1], y, atol=1e-5)


def test_a_stream_of_nothing() -> None:
    assert PlainStream("tests/data/tiny.stream.onnx").flush()["output"].shape == (0, 2)


def test_it_imports_nothing_of_edgeseq(tmp_path: Path) -> None:
    source = Path("demos/plain_onnxruntime.py")
    assert not re.search(r"^\s*(from|import)\s+edgeseq", source.read_text(encoding="utf-8"), re.MULTILINE)
    script = (
        "import runpy, sys; sys.modules['edgeseq'] = None; sys.argv = ['it', sys.argv[2]]; "
        f"runpy.run_path({str(source.absolute())!r}, run_name='__main__')"
    )
    command = [sys.executable, "-c", script, "--", str(Path("tests/data/tiny.stream.onnx").absolute())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 21
