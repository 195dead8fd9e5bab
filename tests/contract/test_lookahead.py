"""The law with lookahead, strides, repetition and both edges: streams against Keras, for drawn models and chunkings."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from keras import layers as L  # noqa: N812

from edgeseq import TCN
from edgeseq import runtime as rt
from edgeseq.export import export_model
from edgeseq.export.oracle import keras_outputs

CHANNELS = 3
ATOL = 1e-5
Draw = Callable[[st.SearchStrategy[Any]], Any]


def _conv(draw: Draw, x: Any) -> Any:
    padding = draw(st.sampled_from(["causal", "same", "valid"]))
    stride = draw(st.sampled_from([1, 1, 2])) if padding != "same" else 1
    dilation = draw(st.integers(1, 3)) if stride == 1 else 1
    options = {"padding": padding, "strides": stride, "dilation_rate": dilation}
    return L.Conv1D(4, draw(st.integers(1, 4)), activation=draw(st.sampled_from(["relu", "tanh"])), **options)(x)


def _tcn(draw: Draw, x: Any) -> Any:
    return TCN(4, 3, dilations=(1, 2), padding=draw(st.sampled_from(["causal", "same"])), return_sequences=True)(x)


def _residual(draw: Draw, x: Any) -> Any:
    return L.Concatenate()([x, L.Conv1D(2, draw(st.integers(2, 5)), padding="same")(x)])


def _both_ways(draw: Draw, x: Any) -> Any:
    return L.Bidirectional(TCN(3, 2, dilations=(1, 2), return_sequences=True))(x)


def _pool(draw: Draw, x: Any) -> Any:
    layer = draw(st.sampled_from([L.MaxPooling1D, L.AveragePooling1D]))
    same = draw(st.booleans())
    size = draw(st.integers(1, 3))
    return layer(size, strides=1 if same else draw(st.integers(1, 3)), padding="same" if same else "valid")(x)


def _resize(draw: Draw, x: Any) -> Any:
    return draw(st.sampled_from([L.UpSampling1D(2), L.ZeroPadding1D((2, 1)), L.Cropping1D((1, 2))]))(x)


def _recurrent(draw: Draw, x: Any) -> Any:
    return draw(st.sampled_from([L.LSTM, L.GRU, L.SimpleRNN]))(3, return_sequences=True)(x)


BLOCKS = [_conv, _conv, _conv, _tcn, _residual, _both_ways, _pool, _resize, _recurrent]
HEADS: list[Callable[[Any], Any]] = [
    lambda x: L.Dense(2)(x),
    lambda x: L.Dense(2)(x),
    lambda x: L.Dense(2)(L.GlobalMaxPooling1D()(x)),
    lambda x: L.Dense(2)(L.GlobalAveragePooling1D()(x)),
]


def _build(draw: Draw) -> Any:
    inputs = keras.Input((None, CHANNELS))
    x = L.Normalization(mean=[1.0, 0.0, -1.0], variance=[1.0, 2.0, 4.0])(inputs)
    for block in draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=4)):
        x = block(draw, x)
    return keras.Model(inputs, draw(st.sampled_from(HEADS))(x))


def stream_all(stream: rt.Stream, x: Any, sizes: list[int]) -> Any:
    """Every row that the stream gives: chunks of these sizes, one sample as a step, and flush."""
    rows, start = [], 0
    for size in sizes:
        chunk = x[start : start + size]
        y = stream.step(chunk[0]) if size == 1 else stream.push(chunk)
        if y is not None:
            rows.append(y[None] if y.ndim == 1 else y)
        start += size
    return np.concatenate([*rows, stream.flush()])


def check(model: Any, sizes: list[int], seed: int, folder: Path) -> None:
    report = export_model(model, folder, name="m")
    assert report.stream is not None, report.not_streamable
    x = np.random.default_rng(seed).normal(size=(sum(sizes), CHANNELS)).astype(np.float32)
    streaming = rt.load(report.stream)
    stream = streaming.stream()
    for _ in range(2):  # a stream that was reset is a new one
        got = stream_all(stream, x, sizes)
        stream.reset()
        expected = keras_outputs(model, [x[None]])
        if isinstance(expected, Exception):  # too short for Keras
            return
        timing = streaming.output.timing
        assert timing is not None
        if timing.law == "prefix":
            got = got[-1]
        else:
            assert len(got) == timing.count_rows(len(x))
        scale = max(1.0, float(np.abs(expected[0]).max()))
        np.testing.assert_allclose(got, expected[0][0], atol=ATOL * scale)


chunkings = st.lists(st.sampled_from([0, 1, 1, 2, 5, 17]), min_size=1, max_size=9).filter(sum)
SLOW: dict[str, Any] = {
    "deadline": None,
    "phases": [Phase.explicit, Phase.reuse, Phase.generate],
    "suppress_health_check": list(HealthCheck),
}


@settings(max_examples=25, derandomize=True, **SLOW)
@given(data=st.data(), sizes=chunkings, seed=st.integers(0, 99))
def test_drawn_models(
    randomise: Callable[..., Any], tmp_path: Path, data: st.DataObject, sizes: list[int], seed: int
) -> None:
    check(randomise(_build(data.draw), seed), sizes, seed, tmp_path)


@pytest.mark.extended
@settings(max_examples=200, **SLOW)
@given(data=st.data(), sizes=chunkings, seed=st.integers(0, 99))
def test_many_drawn_models(
    randomise: Callable[..., Any], tmp_path: Path, data: st.DataObject, sizes: list[int], seed: int
) -> None:
    check(randomise(_build(data.draw), seed), sizes, seed, tmp_path)


def _export(tmp_path: Path, randomise: Callable[..., Any], stack: Callable[[Any], Any]) -> rt.Model:
    inputs = keras.Input((None, CHANNELS))
    report = export_model(randomise(keras.Model(inputs, stack(inputs))), tmp_path, name="m")
    assert report.stream is not None, report.not_streamable
    return rt.load(report.stream)


def test_what_the_file_says_of_lookahead_and_hop(tmp_path: Path, randomise: Callable[..., Any]) -> None:
    same = _export(tmp_path, randomise, lambda x: L.Conv1D(2, 5, padding="same")(L.Conv1D(4, 3, padding="same")(x)))
    assert (same.lookahead, same.receptive_field) == (3, (3, 3))
    assert same.hop == 1
    stream = same.stream()
    given = [stream.step(sample) for sample in np.zeros((6, CHANNELS), np.float32)]
    assert [y is None for y in given] == [True] * 3 + [False] * 3
    assert stream.flush().shape == (3, 2)
    causal = _export(tmp_path, randomise, lambda x: L.Conv1D(2, 3, strides=4, padding="causal")(x))
    assert causal.hop == 4
    assert causal.lookahead == 0  # as soon as the sample is there, not when its four are full
    stream = causal.stream()
    due = [stream.step(sample) is not None for sample in np.zeros((9, CHANNELS), np.float32)]
    assert due == [True, False, False, False, True, False, False, False, True]
    faster = _export(tmp_path, randomise, lambda x: L.UpSampling1D(3)(x))
    assert faster.hop == Fraction(1, 3)
    assert faster.stream().step(np.zeros(CHANNELS, np.float32)).shape == (3, CHANNELS)


def test_no_drift_with_lookahead_over_ten_thousand_steps(tmp_path: Path, randomise: Callable[..., Any]) -> None:
    model = _export(
        tmp_path,
        randomise,
        lambda x: L.GRU(4, return_sequences=True)(
            TCN(4, 3, padding="same", dilations=(1, 4), return_sequences=True)(x)
        ),
    )
    x = np.random.default_rng(0).normal(size=(10_000, CHANNELS)).astype(np.float32)
    got = stream_all(model.stream(), x, [1] * 3000 + [700] * 10)
    np.testing.assert_allclose(got, rt.load_offline(tmp_path / "m.onnx").run(x), atol=ATOL)
