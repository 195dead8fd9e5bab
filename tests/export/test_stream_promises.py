"""What is asked or promised of a stream file beside the offline model: a window for its pools, its lengths."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnxruntime as ort
import pytest

from edgeseq import runtime as rt
from edgeseq.errors import ConfigError, InputError, NotStreamableError, VerificationError
from edgeseq.export import streamify, verify
from edgeseq.export.convert import to_onnx
from edgeseq.export.streaming.step_model import streamify as derive
from edgeseq.model_file import Conditions, Description
from tests.export.stream_files import offline_file, same_with_a_stride
from tests.export.test_streamify import session, stream


@pytest.mark.parametrize("remainder", [0, 1])
def test_same_padding_with_a_stride_by_a_promise(remainder: int, tmp_path: Path) -> None:
    offline, out = same_with_a_stride(tmp_path), tmp_path / "m.stream.onnx"
    with pytest.raises(NotStreamableError, match="its padding depends on the length"):
        streamify(offline, out)
    assert streamify(offline, out, length_modulo=(2, remainder)).contract.worst < 1e-5
    assert verify(out, offline, write=False).worst < 1e-5  # the file says what it was made with
    assert rt.load(out).description.conditions == Conditions(length_modulo=(2, remainder))
    with pytest.raises(VerificationError):
        verify(out, offline, length_modulo=(2, 1 - remainder), write=False)
    x = np.random.default_rng(0).normal(size=(20 + remainder, 4)).astype(np.float32)
    pump = rt.load(out).stream("pump")
    early = pump.push(x[:-1])
    with pytest.raises(InputError, match=f"'pump'.*expected {remainder} samples modulo 2 at flush.*push as many as"):
        pump.flush()
    rows = np.concatenate([early, pump.push(x[-1:]), pump.flush()])
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
    assert verify(out, offline, write=False).notes == report.contract.notes  # the file says what it was made with
    assert rt.load(out).description.conditions == Conditions(pooling_window=window)
    ort_session = ort.InferenceSession(offline)
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    for n in (1, 5, 7, 8, 30):
        running = rt.load(out).stream()
        last = np.concatenate([running.push(x[:n]), running.flush()])[-1]
        expected = ort_session.run(None, {"input": x[None, :n]})[0][0]
        if n <= window:
            np.testing.assert_allclose(last, expected, atol=1e-5)
        elif kind == "mean":  # a maximum may well be among the last rows
            assert np.abs(last - expected).max() > 1e-3
    if window < 30:  # a window that is said to be larger than it is
        with pytest.raises(VerificationError, match="clause '"):
            verify(out, offline, pooling_window=3 * window)


WRONG: list[Any] = [(2, 2), (0, 0), (2, -1), (2,), (2, 0, 1), 2, "ab", (2.0, 0), (2, False), (10**9, 0)]


def test_what_is_no_option(tmp_path: Path) -> None:
    offline, out = offline_file(tmp_path, "causal"), tmp_path / "m.stream.onnx"
    for options, told in (
        ({"pooling_window": 4}, "has no pool over time"),
        ({"pooling_window": 0}, "expected a number of rows"),
        ({"pooling_window": 10**9}, "expected a number of rows from 1 to 100000, or None, got 1000000000"),
        *(({"length_modulo": wrong}, "expected .modulus, remainder.") for wrong in WRONG),
    ):
        with pytest.raises(ConfigError, match=told):
            streamify(offline, out, **options)
    assert not out.exists()


@pytest.mark.filterwarnings("ignore:.*")
@pytest.mark.parametrize("kind", ["Conv1D", "MaxPooling1D", "AveragePooling1D"])
@pytest.mark.parametrize(("strides", "modulus"), [((5,), 5), ((2, 5), 10)])
def test_padding_computed_from_the_length_by_a_promise(
    kind: str, strides: tuple[int, ...], modulus: int, randomise: Callable[..., Any]
) -> None:
    L = keras.layers
    layers = [
        L.Conv1D(3, 3, strides=stride, padding="same")
        if kind == "Conv1D"
        else getattr(L, kind)(3, strides=stride, padding="same")
        for stride in strides
    ]
    model = randomise(keras.Sequential([keras.Input((None, 4)), *layers, L.Dense(2)]))
    offline = to_onnx(model).model
    ort_session = session(offline)
    with pytest.raises(NotStreamableError, match=r"its padding depends on the length|asks for the length"):
        derive(offline)
    for remainder in range(modulus):
        step = derive(offline, length_modulo=(modulus, remainder))
        for n in (3 * modulus + remainder, 7 * modulus + remainder):
            x = np.random.default_rng(n).normal(size=(2, n, 4)).astype(np.float32)
            (expected,) = ort_session.run(None, {str(offline.graph.inputs[0].name): x})
            for sizes in ([1] * n, [3, 1, 7, 2], [n]):
                got = stream(step, x, sizes)
                assert got.shape == expected.shape
                np.testing.assert_allclose(got, expected, atol=1e-5)
    with pytest.raises(NotStreamableError, match=r"too little|asks for the length"):
        derive(offline, length_modulo=(3, 1))


def test_a_padding_that_most_lengths_do_not_need_is_no_constant(randomise: Callable[..., Any]) -> None:
    layers = keras.layers.Conv1D(3, 3, strides=50, padding="same"), keras.layers.Dense(2)
    offline = to_onnx(randomise(keras.Sequential([keras.Input((None, 4)), *layers]))).model
    with pytest.raises(NotStreamableError, match="asks for the length"):
        derive(offline)


def test_files_without_conditions_have_no_such_field(tmp_path: Path) -> None:
    offline, out = offline_file(tmp_path, "causal"), tmp_path / "m.stream.onnx"
    description = streamify(offline, out).description
    assert description.conditions == Conditions()
    assert "conditions" not in description.to_json()
    assert Description.from_json(description.to_json()) == description
