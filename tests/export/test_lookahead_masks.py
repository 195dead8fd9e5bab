"""Bounded lookahead under a mask: padding at the end, gaps, padding at the start, and everything masked.

``streamify`` holds each file, on sequences with gaps too, to the reference made of the offline file's own nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L  # noqa: N812

from edgeseq import TimeDistributed, bilstm_text_tagger
from edgeseq import runtime as rt
from edgeseq.export import export_model, streamify

SEQ: dict[str, Any] = {"return_sequences": True}
RNG = np.random.default_rng(0)
Array = np.ndarray[Any, Any]


def chain(*layers: Any) -> Any:
    x = source = keras.Input((None, 4))
    for layer in layers:
        x = layer(x)
    return keras.Model(source, x)


def two_layers() -> list[Any]:
    return [
        L.Bidirectional(L.LSTM(3, **SEQ)),
        L.Bidirectional(L.GRU(4, **SEQ), merge_mode="sum"),
        TimeDistributed(L.Dense(2)),
    ]


MODELS: dict[str, tuple[Callable[[], Any], int]] = {
    "two layers": (lambda: chain(L.Masking(), *two_layers()), 2),
    "product": (lambda: chain(L.Masking(), L.Bidirectional(L.SimpleRNN(3, **SEQ), merge_mode="mul")), 1),
    "forward layers beside": (
        lambda: chain(L.Masking(), L.LSTM(3, **SEQ), L.Bidirectional(L.LSTM(3, **SEQ)), L.GRU(3, **SEQ), L.Dense(2)),
        1,
    ),
    "a layer of another kind each way": (
        lambda: chain(
            L.Masking(), L.Bidirectional(L.LSTM(3, **SEQ), backward_layer=L.GRU(3, go_backwards=True, **SEQ))
        ),
        1,
    ),
    "tokens": (lambda: bilstm_text_tagger(11, 2, units=3, merge_mode="ave"), 1),
}

MASKS: dict[str, Callable[[Array], Array]] = {
    "at the end": lambda x: np.where(np.arange(len(x)) < 19, 1, 0),
    "gaps": lambda x: (np.random.default_rng(1).random(len(x)) < 0.6).astype(int),
    "at the start": lambda x: np.where(np.arange(len(x)) < 9, 0, 1),
    "everywhere": lambda x: np.zeros(len(x), int),
}


def run(model: rt.Model, x: Array, sizes: list[int]) -> Array:
    stream, parts, start = model.stream(), [], 0
    for size in [*sizes, len(x)]:
        parts.append(stream.push(x[start : start + size]))
        start = min(start + size, len(x))
    return np.concatenate([*parts, stream.flush()])


EXTENDED = {"product", "a layer of another kind each way"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.extended] * (n in EXTENDED)) for n in MODELS])
def test_a_lookahead_to_the_end_is_keras_whatever_is_masked(name: str, tmp_path: Path, randomise: Any) -> None:
    make, n_layers = MODELS[name]
    model = make()
    randomise(model)
    offline = export_model(model, tmp_path, name="m").offline
    report = streamify(offline, tmp_path / "m.stream.onnx", lookahead=4, chunk=3)
    assert (report.description.granule, rt.load(report.stream).lookahead) == (3, 4 * n_layers + 2)
    assert report.description.cuts == ()
    loaded = rt.load(streamify(offline, tmp_path / "whole.stream.onnx", lookahead=31, chunk=4).stream)
    drawn = RNG.integers(1, 11, 31) if name == "tokens" else RNG.normal(size=(31, 4))
    for what, mask in MASKS.items():
        x = (drawn * mask(drawn).reshape(-1, *[1] * (drawn.ndim - 1))).astype(loaded.input.dtype)
        expected = np.asarray(model(x[None]))[0]
        for sizes in ([], [1] * 31, [5, 1, 13]):
            np.testing.assert_allclose(run(loaded, x, sizes), expected, atol=1e-5, err_msg=f"{what}, {sizes}")


def test_padding_at_the_end_is_the_end(tmp_path: Path, randomise: Any) -> None:
    """With a lookahead that does not reach the end, too: as the model without a mask on what is not padding."""
    masked, plain = chain(L.Masking(), *two_layers()), chain(*two_layers())
    randomise(masked)
    plain.set_weights(masked.get_weights())
    models = []
    for name, model in (("masked", masked), ("plain", plain)):
        offline = export_model(model, tmp_path, name=name).offline
        models.append(rt.load(streamify(offline, tmp_path / f"{name}.stream.onnx", lookahead=4, chunk=3).stream))
    x = RNG.normal(size=(40, 4)).astype(np.float32)
    for n in (1, 6, 23, 40):
        padded = np.concatenate([x[:n], np.zeros((40 - n, 4), np.float32)])
        got = run(models[0], padded, [7, 2])
        np.testing.assert_allclose(got[:n], run(models[1], x[:n], [5]), atol=1e-5, err_msg=str(n))
        bias = np.broadcast_to(masked.layers[-1].get_weights()[1], (40 - n, 2))  # of masked steps the dense head sees 0
        np.testing.assert_allclose(got[n:], bias, atol=1e-5)
