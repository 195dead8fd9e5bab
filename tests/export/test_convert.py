"""Conversion: the ports, what is left untouched, and the refusals. The families are in test_families.py."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import keras
import numpy as np
import onnxruntime as ort
import pytest
from keras import layers as L  # noqa: N812

from edgeseq import bilstm_tagger
from edgeseq.errors import ExportError, UnsupportedLayerError
from edgeseq.export.comparison import compare
from edgeseq.export.convert import Converted, to_onnx
from edgeseq.export.lowering.registry import lowered

Randomise = Callable[..., Any]


def chain(*stack: Any, channels: int = 4) -> Any:
    inputs = keras.Input((None, channels))
    x = inputs
    for layer in stack:
        x = layer(x)
    return keras.Model(inputs, x)


class Broken(L.Layer):  # type: ignore[misc]
    def call(self, x: Any) -> Any:
        raise IndexError("over the edge")

    def compute_output_spec(self, x: Any) -> Any:
        return keras.KerasTensor(x.shape)


def _lgamma(x: Any) -> Any:
    import tensorflow as tf

    return tf.math.lgamma(x)


def _inputs(batch: int, length: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(batch, length, 4)).astype(np.float32)


def _run(converted: Converted, feeds: dict[str, Any]) -> dict[str, Any]:
    data = converted.proto().SerializeToString()
    ort_session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [port.name for port in converted.ports.outputs]
    return dict(zip(names, ort_session.run(names, feeds), strict=True))


def _ports(converted: Converted) -> list[tuple[str | None, list[str]]]:
    graph = converted.model.graph
    return [(v.name, [str(n) for n in v.shape or []]) for v in (*graph.inputs, *graph.outputs)]


def test_ports_are_dynamic_and_named() -> None:
    assert _ports(to_onnx(chain(L.Conv1D(2, 3, strides=2), L.Dense(3)))) == [
        ("input", ["batch", "time", "4"]),
        ("output", ["batch", "output_time", "3"]),
    ]


def test_several_inputs_and_outputs_keep_the_names_that_the_user_gave(randomise: Randomise) -> None:
    signal, tokens = keras.Input((None, 4), name="signal"), keras.Input((None,), dtype="int64")
    site = keras.Input((3,), name="site")
    hidden = L.LSTM(3, return_sequences=True)(signal, initial_state=[site, site * 2])
    joined = L.Concatenate()([hidden, L.Embedding(7, 2)(tokens)])
    outputs = [L.Dense(2, name="exercise")(joined), L.Dense(1)(L.GlobalMaxPooling1D()(joined)), signal]
    model = randomise(keras.Model([signal, tokens, site], outputs))
    converted = to_onnx(model)
    assert _ports(converted) == [
        ("signal", ["batch", "signal_time", "4"]),
        ("input_1", ["batch", "input_1_time"]),
        ("site", ["batch", "3"]),
        ("exercise", ["batch", "exercise_time", "2"]),
        ("output_1", ["batch", "1"]),
        ("signal_output", ["batch", "signal_output_time", "4"]),
    ]
    for batch, length in ((1, 1), (2, 9)):
        rng = np.random.default_rng(batch)
        x, t = _inputs(batch, length), rng.integers(0, 7, (batch, length))
        s = rng.normal(size=(batch, 3)).astype(np.float32)
        got = _run(converted, {"signal": x, "input_1": t, "site": s})
        for expected, (name, y) in zip(model([x, t, s]), got.items(), strict=True):
            compare(expected.numpy(), y, name)


def test_dicts_of_inputs_and_outputs_give_the_names(randomise: Randomise) -> None:
    a, b = keras.Input((None, 4), name="acc"), keras.Input((None, 4), name="gyro")
    outputs = {"sum": a + L.Dense(4)(b), "difference": L.Dense(4)(a) - b}
    model = randomise(keras.Model({"gyro": b, "acc": a}, outputs))
    feeds = {"acc": _inputs(2, 5), "gyro": _inputs(2, 5, seed=1)}
    got = _run(to_onnx(model), feeds)
    assert sorted(got) == ["difference", "sum"]
    for name, expected in model(feeds).items():
        compare(expected.numpy(), got[name], name)


def test_one_tensor_given_twice_and_an_input_given_back() -> None:
    x = keras.Input((None, 4))
    y = keras.ops.tanh(x)
    got = _run(to_onnx(keras.Model(x, [y, y, x, x, keras.ops.tanh(x)])), {"input": _inputs(2, 3)})
    assert len(got) == 5
    for i, expected in enumerate([np.tanh(_inputs(2, 3))] * 2 + [_inputs(2, 3)] * 2 + [np.tanh(_inputs(2, 3))]):
        compare(expected, got[f"output_{i}"], f"output_{i}")


def test_two_outputs_of_equal_value_keep_their_names_through_the_clean_up(randomise: Randomise) -> None:
    x = keras.Input((None, 4))
    skip = L.Conv1D(3, 1)(x)
    sums = [L.Activation("relu")(L.Add()([skip, L.Conv1D(3, 2, padding="causal")(x)])) for _ in range(2)]
    model = randomise(keras.Model(x, [sums[0], sums[1], sums[0], keras.ops.relu(sums[1])]))
    got = _run(to_onnx(model), {"input": _inputs(2, 5)})
    for i, expected in enumerate(model(_inputs(2, 5))):
        compare(expected.numpy(), got[f"output_{i}"], f"output_{i}")


def test_an_input_without_influence_stays_a_port() -> None:
    a, b = keras.Input((None, 4), name="a"), keras.Input((None, 4), name="b")
    got = _run(to_onnx(keras.Model([a, b], b + 1)), {"a": _inputs(1, 3), "b": _inputs(1, 5)})
    compare(_inputs(1, 5) + 1, got["output"], "b + 1")


def test_a_fixed_length_stays_as_it_is() -> None:
    x = keras.Input((10, 4))
    converted = to_onnx(keras.Model(x, L.Dense(3)(L.Conv1D(2, 3)(x))))
    assert _ports(converted) == [("input", ["batch", "10", "4"]), ("output", ["batch", "8", "3"])]


def test_what_was_lowered_is_told_once_a_layer_with_the_reason() -> None:
    x = keras.Input((None, 4))
    conv = L.Conv1D(4, 3, padding="causal", name="twice")
    converted = to_onnx(keras.Model(x, conv(L.ReLU()(conv(x)))))
    assert [(note.layer, note.kind) for note in converted.lowered] == [("twice", "Conv1D")]
    assert "native Conv" in converted.lowered[0].why
    assert converted.n_nodes_before >= len(list(converted.model.graph))


def test_the_user_model_is_untouched(randomise: Randomise) -> None:
    model = randomise(bilstm_tagger(4, 3, units=4))
    x = _inputs(2, 9)
    before, calls = model(x).numpy(), {cls: cls.__dict__["call"] for cls in (L.LSTM, L.Bidirectional, L.Conv1D)}
    weights = [w.numpy() for w in model.weights]
    to_onnx(model)
    assert {cls: cls.__dict__["call"] for cls in calls} == calls
    assert np.array_equal(model(x).numpy(), before)
    assert all(np.array_equal(a, w.numpy()) for a, w in zip(weights, model.weights, strict=True))


def test_a_failed_conversion_restores_keras() -> None:
    call = L.LSTM.__dict__["call"]
    with pytest.raises(UnsupportedLayerError, match="no activation 'mish'"):
        to_onnx(chain(L.LSTM(3, activation="mish")))
    assert L.LSTM.__dict__["call"] is call


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: keras.Sequential([L.Dense(2)]), "no known input shape"),
        (lambda: chain(L.LSTM(3, dtype="mixed_float16"), L.Dense(2)), "expected compute dtype float32"),
        (lambda: chain(L.Dense(2, activation=_lgamma)), "Lgamma is no ONNX operator"),
        (lambda: keras.Sequential([keras.Input((None,)), L.Embedding(5, 2)]), 'tokens need keras.Input.*dtype="int32"'),
        (lambda: chain(L.Permute((2, 1))), "expected output .batch, time, K. or .batch, K."),
        (lambda: None, "expected a keras.Model, got NoneType"),
        (lambda: keras.Sequential([keras.Input((8,)), L.Dense(2)]), "expected an input .batch, time, channels."),
        (lambda: keras.Model(x := keras.Input((None, None)), keras.ops.mean(x, -1, keepdims=True)), "with known chan"),
        (lambda: keras.Model(x := keras.Input((None, 2), dtype="uint8"), L.Dense(2)(x)), "int32 or int64, got uint8"),
        (lambda: chain(lambda x: x > 0), "output 'output': expected float32, int32 or int64, got bool; cast it"),
        (lambda: chain(L.Lambda(lambda x: x > 0)), "output 'output': Keras says float32, it computes bool; cast it"),
        (lambda: chain(L.Dense(4, activation="glu")), r"Keras says \(None, None, 4\), it computes \(None, None, 2\)"),
        (lambda: chain(Broken(name="mine")), "layer 'mine': the conversion failed with .*: over the edge; give the"),
    ],
)
def test_refusals_say_what_and_why(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        to_onnx(build())


def test_python_inside_the_graph_is_refused() -> None:
    import tensorflow as tf

    class Calls(L.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return tf.ensure_shape(tf.numpy_function(lambda a: a, [x], tf.float32), x.shape)

    with pytest.raises(ExportError, match="calls Python from inside the graph"):
        to_onnx(chain(Calls(), L.Dense(2)))


def test_no_cudnn_operator_even_when_keras_sees_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    import tensorflow as tf

    # What Keras asks before it emits CudnnRNNV3; a machine with a GPU answers True.
    rnn = sys.modules["keras.src.backend.tensorflow.rnn"]  # the package has a function of this name
    monkeypatch.setattr(rnn, "cudnn_ok", lambda *_, **__: True)
    model = bilstm_tagger(4, 3, units=4)
    plain = tf.function(lambda x: model(x, training=False)).get_concrete_function(tf.TensorSpec((None, None, 4)))
    assert "CudnnRNNV3" in {op.type for op in plain.graph.get_operations()}
    assert {n.op_type for n in to_onnx(model).model.graph} >= {"LSTM", "MatMul"}


def test_a_model_in_another_thread_runs_as_keras_wrote_it() -> None:
    model = chain(L.LSTM(3, return_sequences=True), L.Conv1D(2, 2, padding="causal"))
    x = _inputs(2, 5)
    expected = model(x).numpy()
    with lowered(), ThreadPoolExecutor(1) as pool:
        np.testing.assert_allclose(pool.submit(lambda: model(x).numpy()).result(), expected, atol=1e-6)


def test_a_second_export_at_the_same_time_is_refused() -> None:
    with lowered(), pytest.raises(ExportError, match="another export runs in this process"):
        to_onnx(chain(L.Dense(2)))


def test_the_clean_up_tells_no_log(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger="onnx_ir"):
        to_onnx(chain(L.Conv1D(3, 2, padding="causal"), L.BatchNormalization(), L.Dense(2)))
    assert [record for record in caplog.records if record.name.startswith("onnx_ir")] == []
    assert logging.getLogger("onnx_ir").level == logging.NOTSET
