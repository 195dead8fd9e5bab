"""Bounded lookahead of what Keras and PyTorch export: convolutions around the layers, tokens, strides, and what stays
refused. ``streamify`` itself holds every file to the reference that is made of the offline file's own nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from keras import layers as L  # noqa: N812

from edgeseq import TimeDistributed, bilstm_text_tagger
from edgeseq import runtime as rt
from edgeseq.errors import NotStreamableError
from edgeseq.export import StreamReport, export_model, streamify

TORCH = Path("tests/data/torch")
SEQ: dict[str, Any] = {"return_sequences": True}


def chain(*layers: Any) -> Any:
    x = source = keras.Input((None, 4))
    for layer in layers:
        x = layer(x)
    return keras.Model(source, x)


def residual() -> Any:
    """Blocks with a skip around them, and a second output that needs no lookahead but a convolution's."""
    source = keras.Input((None, 4))
    x = conv = L.Conv1D(6, 3, padding="same")(source)
    for _ in range(2):
        x = L.Add()([x, L.Bidirectional(L.LSTM(3, **SEQ))(x)])
    return keras.Model(source, [TimeDistributed(L.Dense(2))(x), L.Dense(2)(conv)])


def both(cell: Any, units: int = 4, **given: Any) -> Any:
    return L.Bidirectional(cell(units, **SEQ), **given)


# The model, and the samples by which the slowest output of lookahead=5, chunk=3 comes late.
MODELS: dict[str, tuple[Callable[[], Any], int]] = {
    "same convolutions around": (
        lambda: chain(
            *(L.Conv1D(5, 5, padding="same"), both(L.LSTM), L.Conv1D(5, 3, padding="same", dilation_rate=2)),
            *(both(L.GRU), TimeDistributed(L.Dense(2))),
        ),
        2 + 5 + 2 + 5 + 2,
    ),
    "causal convolutions around": (
        lambda: chain(L.Conv1D(5, 4, padding="causal"), both(L.LSTM), L.Conv1D(2, 3, padding="causal")),
        5 + 2,
    ),
    "forward layers beside": (
        lambda: chain(L.Conv1D(5, 4, padding="same"), L.LSTM(4, **SEQ), both(L.SimpleRNN), L.GRU(4, **SEQ), L.Dense(2)),
        2 + 5 + 2,
    ),
    "activations of each half": (
        lambda: chain(
            both(L.LSTM, backward_layer=L.LSTM(4, activation="leaky_relu", go_backwards=True, **SEQ)), L.Dense(2)
        ),
        5 + 2,
    ),
    "a layer of another kind each way": (
        lambda: chain(both(L.LSTM, 3, backward_layer=L.GRU(3, go_backwards=True, **SEQ)), L.Dense(2)),
        5 + 2,
    ),
    "tokens": (lambda: bilstm_text_tagger(11, 2, units=4, mask_zero=False), 5 + 2),
    "residual": (residual, 1 + 5 + 5 + 2),
}


def bounded(offline: Path, folder: Path, **given: Any) -> StreamReport:
    return streamify(offline, folder / "m.stream.onnx", **{"lookahead": 5, "chunk": 3, **given})


EXTENDED = {"causal convolutions around", "activations of each half", "forward layers beside"}


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.extended] * (n in EXTENDED)) for n in MODELS])
def test_keras(name: str, tmp_path: Path, randomise: Any) -> None:
    make, late = MODELS[name]
    model = make()
    randomise(model)
    report = bounded(export_model(model, tmp_path, name="m").offline, tmp_path)
    timings = [port.timing for port in report.description.outputs]
    assert max(t.lookahead for t in timings if t is not None) == late
    assert timings[0] is not None
    assert timings[0].law == "lookahead"
    assert report.description.cuts == ()  # rows from before the sequence never wait for a whole block
    assert not {"Loop", "Scan"} & {node.op_type for node in onnx.load(report.stream).graph.node}
    assert report.contract.worst < 1e-5


def test_an_output_that_needs_no_bound_stays_exact(tmp_path: Path, randomise: Any) -> None:
    model = residual()
    randomise(model)
    report = bounded(export_model(model, tmp_path, name="m").offline, tmp_path)
    assert [p.timing.law for p in report.description.outputs if p.timing is not None] == ["lookahead", "equal"]


def test_strides_before_and_after(tmp_path: Path, randomise: Any) -> None:
    """Blocks and lookahead are steps of the layer: behind a stride of 2 twice as many samples."""
    model = chain(L.Conv1D(5, 3, strides=2), both(L.LSTM), L.MaxPooling1D(2), L.Dense(2))
    randomise(model)
    report = bounded(export_model(model, tmp_path, name="m").offline, tmp_path, chunk=2)
    assert (report.description.granule, report.description.lookahead is not None) == (4, True)
    assert report.contract.worst < 1e-5


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
def test_torch(exporter: str, tmp_path: Path) -> None:
    offline = TORCH / f"bidirectional.{exporter}.onnx"
    report = bounded(offline, tmp_path, lookahead=40, time_axis=1)
    ort_session = ort.InferenceSession(offline)
    x = np.random.default_rng(0).normal(size=(31, report.description.input.shape[0])).astype(np.float32)
    (expected,) = ort_session.run(None, {ort_session.get_inputs()[0].name: x[None]})
    stream = rt.load(report.stream).stream()
    np.testing.assert_allclose(np.concatenate([stream.push(x), stream.flush()]), expected[0], atol=1e-5)


def _refused() -> Iterator[Any]:
    last = "the last state of its backward half"
    yield pytest.param(lambda: chain(L.Bidirectional(L.LSTM(3)), L.Dense(2)), last, id="last state")
    pools = "pools over time, or takes the last step, behind a recurrent layer that runs backwards"
    yield pytest.param(lambda: chain(both(L.GRU), L.GlobalMaxPooling1D(), L.Dense(2)), pools, id="pool")
    yield pytest.param(
        lambda: chain(L.LSTM(3, go_backwards=True, **SEQ), L.Dense(2)), "runs backwards", id="in reversed order"
    )


@pytest.mark.parametrize(("make", "reason"), list(_refused()))
def test_what_stays_refused(make: Callable[[], Any], reason: str, tmp_path: Path, randomise: Any) -> None:
    model = make()
    randomise(model)
    offline = export_model(model, tmp_path, name="m").offline
    with pytest.raises(NotStreamableError, match=reason):
        bounded(offline, tmp_path)
    assert not (tmp_path / "m.stream.onnx").exists()
