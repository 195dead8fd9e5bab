"""Keras models with masks, streamed: every step equals Keras wherever the masked samples stand."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L  # noqa: N812

from edgeseq import runtime as rt
from edgeseq.export import export_model, streamify, verify
from edgeseq.export.convert import to_onnx
from edgeseq.export.streaming import step_model
from tests.export.small_models import Build, Unmasked, chain, function
from tests.export.test_families_stream import streamed
from tests.export.test_streamify import Array, session

pytestmark = pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask:UserWarning")

TOLERANCE = 1e-5
EVERY: dict[str, Any] = {"return_sequences": True}


def by_hand(x: Any, layer: Any) -> Any:
    """The input's mask, on what a convolution with lookahead makes of it."""
    mask = L.Masking().compute_mask(x)
    return layer(L.Conv1D(3, 5, padding="same", activation="relu")(x), mask=mask)


def every_output(x: Any) -> Any:
    return list(L.LSTM(5, return_sequences=True, return_state=True)(L.Masking()(x)))


def joined(x: Any) -> Any:
    x = L.Masking()(x)
    return L.SimpleRNN(4, **EVERY)(L.Concatenate()([L.LSTM(4, **EVERY)(x), L.GRU(3, **EVERY)(x)]))


def added(x: Any) -> Any:
    first, second = L.LSTM(4, **EVERY)(L.Masking()(x)), L.GRU(4, **EVERY)(L.Masking(0.5)(x))
    return L.LSTM(4, **EVERY)(L.Add()([first, second]))


def tokens_and_samples() -> Any:
    tokens, samples = keras.Input((None,), dtype="int32", name="tokens"), keras.Input((None, 4), name="samples")
    both = L.Concatenate()([L.Embedding(9, 3, mask_zero=True)(tokens), samples])
    return keras.Model([tokens, samples], L.GRU(5, **EVERY)(both))


MODELS: dict[str, Build] = {
    "three layers": lambda: chain(
        L.Masking(), L.LSTM(5, **EVERY), L.GRU(4, **EVERY), L.SimpleRNN(3, **EVERY), L.Dense(2)
    ),
    "sequences and states": lambda: function(every_output),
    "strided features": lambda: chain(L.Conv1D(3, 3, strides=2, activation="relu"), L.Masking(), L.LSTM(5, **EVERY)),
    "zeros at masked steps": lambda: chain(
        L.Masking(), L.GRU(5, zero_output_for_mask=True, **EVERY), L.LSTM(3, zero_output_for_mask=True)
    ),
    "masks joined": lambda: function(joined),
    "masks joined, one mask alone": tokens_and_samples,
    "mask of the input, behind lookahead": lambda: function(lambda x: by_hand(x, L.LSTM(5, **EVERY))),
    "lookahead before and behind": lambda: chain(
        L.Conv1D(2, 5, padding="same", activation="relu"),
        L.Masking(),
        L.GRU(5, **EVERY),
        Unmasked(),
        L.Conv1D(3, 3, padding="same"),
    ),
    "two values that mask": lambda: function(added),
    "last states": lambda: function(lambda x: L.Concatenate()(L.GRU(5, return_state=True)(L.Masking()(x)))),
    "states of stacked cells": lambda: function(
        lambda x: L.Concatenate()(
            keras.tree.flatten(L.RNN([L.LSTMCell(3), L.GRUCell(4)], return_state=True)(L.Masking()(x)))
        )
    ),
    "zeros behind lookahead": lambda: function(lambda x: by_hand(x, L.LSTM(5, zero_output_for_mask=True))),
    "pool behind lookahead": lambda: function(lambda x: by_hand(x, L.GlobalAveragePooling1D())),
    "pool": lambda: chain(L.Masking(), L.GRU(5, reset_after=False, **EVERY), L.GlobalAveragePooling1D(keepdims=True)),
    "repeated steps": lambda: chain(L.UpSampling1D(2), L.Masking(), L.SimpleRNN(5, activation="relu", **EVERY)),
}
SAMPLE = list(MODELS)[:8]


def given(model: Any, length: int) -> list[Array]:
    """Eight sequences for each input, with samples that mask at the start, inside, at the end, throughout, ..."""
    rng = np.random.default_rng(length)
    inputs = []
    for port in model.inputs:
        shape = (8, length, *port.shape[2:])
        floats = keras.backend.standardize_dtype(port.dtype) == "float32"
        x = rng.normal(size=shape).astype(np.float32) if floats else rng.integers(1, 9, size=shape).astype(np.int32)
        x[1, : length // 2] = 0
        x[2, length // 2 :] = 0
        x[3, length // 3 : length // 2] = 0
        x[4] = -0.0 if floats else 0
        x[5, ::2] = 0
        x[6, rng.random(length) < 0.5] = 0
        x[7, rng.random(length) < 0.3] = 0.5 if floats else 0
        inputs.append(x)
    return inputs


def _names() -> Iterator[Any]:
    for name in MODELS:
        yield pytest.param(name, marks=() if name in SAMPLE else pytest.mark.extended)


@pytest.mark.parametrize("name", list(_names()))
def test_equals_keras(name: str, randomise: Callable[..., Any]) -> None:
    model = randomise(MODELS[name]())
    offline = to_onnx(model).model
    step = step_model.streamify(offline)
    ort_session, offline_session = session(step.model), session(offline)
    names = [str(value.name) for value in offline.graph.inputs]
    for length in (5, 34):
        inputs = dict(zip(names, given(model, length), strict=True))
        expected = [
            np.asarray(y) for y in _listed(model(list(inputs.values()) if len(inputs) > 1 else inputs[names[0]]))
        ]
        for y, whole in zip(offline_session.run(None, inputs), expected, strict=True):
            np.testing.assert_allclose(y, whole, atol=TOLERANCE)
        for sizes in ([1] * length, [3, 1, 7, 2, length], [length]):
            for rows, whole, timing in zip(
                streamed(step, ort_session, inputs, sizes), expected, step.timings, strict=True
            ):
                last = rows if timing.law == "equal" else rows[:, -1].reshape(whole.shape)
                np.testing.assert_allclose(last, whole, atol=TOLERANCE, err_msg=f"{name}, {sizes}")


def _listed(outputs: Any) -> list[Any]:
    return list(outputs) if isinstance(outputs, list | tuple) else [outputs]


@pytest.mark.parametrize("name", ["zeros at masked steps", "mask of the input, behind lookahead"])
def test_files(name: str, tmp_path: Path, randomise: Callable[..., Any]) -> None:
    """The exported stream keeps its contract; so does the one that is made of the written offline file."""
    model = randomise(MODELS[name]())
    report = export_model(model, tmp_path, name="masked")
    assert report.stream is not None, report.not_streamable
    assert verify(report.stream, report.offline).worst <= TOLERANCE
    again = streamify(report.offline, tmp_path / "again.stream.onnx")
    assert again.description.outputs == rt.load(report.stream).description.outputs
    (x,) = given(model, 34)
    opened = rt.load(tmp_path / "again.stream.onnx")
    for one, whole in zip(x, np.asarray(model(x)), strict=True):
        stream = opened.stream("a")
        rows = [y for sample in one[:9] if (y := stream.step(sample)) is not None]
        rows += [*stream.push(one[9:]), *stream.flush()]
        got = np.stack(rows) if whole.ndim == 2 else rows[-1]
        np.testing.assert_allclose(got, whole, atol=TOLERANCE)


def test_a_sequence_without_a_valid_step_keeps_its_initial_state(randomise: Callable[..., Any]) -> None:
    def call(x: Any) -> Any:
        first = L.Dense(4)(x[:, 0])
        return list(L.GRU(4, return_state=True)(x, initial_state=first, mask=L.Masking().compute_mask(x)))

    model = randomise(function(call))
    (x,) = given(model, 12)
    output, state = session(to_onnx(model).model).run(None, {"input": x})
    for y, expected in zip([output, state], model(x), strict=True):
        np.testing.assert_allclose(y, expected, atol=TOLERANCE)
    assert np.abs(state[4]).max() > 0
