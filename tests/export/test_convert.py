"""Conversion of every family of this release against Keras, and its refusals."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import keras
import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from keras import layers as L  # noqa: N812

from edgeseq import TCN, bilstm_tagger, bilstm_text_tagger, tcn_classifier, tcn_tagger
from edgeseq.errors import ExportError, UnsupportedLayerError
from edgeseq.export.convert import to_onnx
from edgeseq.export.lowering import lowered
from edgeseq.export.verify import compare

Randomise = Callable[..., Any]
SMALL: dict[str, Any] = {"nb_filters": 5, "kernel_size": 3, "dilations": (1, 2)}


def chain(*stack: Any, channels: int = 4) -> Any:
    inputs = keras.Input((None, channels))
    x = inputs
    for layer in stack:
        x = layer(x)
    return keras.Model(inputs, x)


def time_distributed(units: int = 3) -> Any:
    return L.TimeDistributed(L.Dense(units, activation="softmax"))


def _merge(name: str | None, cell: Any, *, sequences: bool) -> Any:
    return chain(L.Bidirectional(cell(6, return_sequences=sequences), merge_mode=name), L.Dense(2))


def _lgamma(x: Any) -> Any:
    import tensorflow as tf

    return tf.math.lgamma(x)


class Doubling(L.Layer):  # type: ignore[misc]  # a layer that a user wrote around a standard one
    def __init__(self) -> None:
        super().__init__()
        self.conv = L.Conv1D(4, 3, padding="causal", dilation_rate=2)

    def call(self, x: Any) -> Any:
        return self.conv(x) * 2.0


@keras.saving.register_keras_serializable()  # Bidirectional copies its layer
class Renamed(L.LSTM):  # type: ignore[misc]  # a subclass that computes what its base computes
    pass


class Halved(L.Dense):  # type: ignore[misc]  # a subclass that does not
    def call(self, inputs: Any, training: Any = None) -> Any:
        return super().call(inputs, training) / 2


def nested() -> Any:
    return chain(chain(L.Conv1D(4, 2, padding="causal")), L.Bidirectional(L.LSTM(3, return_sequences=True)))


def shared() -> Any:
    inputs = keras.Input((None, 4))
    conv = L.Conv1D(4, 3, padding="causal")
    return keras.Model(inputs, conv(L.Activation("tanh")(conv(inputs))))


def lora() -> Any:
    model = chain(L.Conv1D(4, 2, padding="causal"), L.Dense(3))
    for layer in model.layers[1:]:
        layer.enable_lora(2)
    return model


def higher_rank() -> Any:
    inputs = keras.Input((None, 4))
    y = L.Conv1D(4, 2, padding="causal")(inputs) * np.ones((1, 1, 1, 4), np.float32)
    return keras.Model(inputs, y[0])


FAMILIES: dict[str, Callable[[], Any]] = {
    "tcn_tagger": lambda: tcn_tagger(4, 3, mean=[1, 2, 3, 4], std=[1, 2, 3, 4], **SMALL),
    "tcn batch norm": lambda: chain(TCN(return_sequences=True, use_batch_norm=True, **SMALL), time_distributed()),
    "tcn layer norm": lambda: chain(TCN(return_sequences=True, use_layer_norm=True, **SMALL), time_distributed()),
    "tcn same": lambda: chain(TCN(return_sequences=True, padding="same", **SMALL), time_distributed()),
    "tcn same, middle step": lambda: chain(TCN(padding="same", **SMALL), L.Dense(2)),
    "tcn tanh": lambda: chain(TCN(return_sequences=True, activation="tanh", nb_stacks=2, **SMALL)),
    "tcn no skip": lambda: chain(TCN(return_sequences=True, use_skip_connections=False, **SMALL), L.Dense(2)),
    "tcn go_backwards": lambda: chain(TCN(return_sequences=True, go_backwards=True, **SMALL), L.Dense(2)),
    "classifier max": lambda: tcn_classifier(4, 3, pooling="max", **SMALL),
    "classifier average": lambda: tcn_classifier(4, 3, pooling="average", **SMALL),
    "classifier last": lambda: tcn_classifier(4, 3, pooling="last", **SMALL),
    "bilstm_tagger lstm": lambda: bilstm_tagger(4, 3, units=6, layers=2),
    "bilstm_tagger gru": lambda: bilstm_tagger(4, 3, units=6, cell="gru"),
    "text tagger": lambda: bilstm_text_tagger(11, 3, embedding_dim=4, units=6),
    "text tagger, no mask": lambda: bilstm_text_tagger(11, 3, embedding_dim=4, units=6, mask_zero=False),
    **{
        f"bidirectional {cell.__name__} {merge} {'sequences' if sequences else 'last'}": partial(
            _merge, merge, cell, sequences=sequences
        )
        for cell in (L.LSTM, L.GRU, L.SimpleRNN)
        for merge in ("concat", "sum", "ave", "mul")
        for sequences in (True, False)
    },
    "bidirectional of two kinds": lambda: chain(
        L.Bidirectional(
            L.LSTM(3, return_sequences=True), backward_layer=L.GRU(3, return_sequences=True, go_backwards=True)
        )
    ),
    "bidirectional, forward goes backwards": lambda: chain(
        L.Bidirectional(
            L.LSTM(3, return_sequences=True, go_backwards=True), backward_layer=L.LSTM(3, return_sequences=True)
        )
    ),
    "lstm": lambda: chain(L.LSTM(6, return_sequences=True, recurrent_activation="hard_sigmoid"), L.LSTM(3)),
    "lstm no bias": lambda: chain(L.LSTM(6, use_bias=False, activation="softsign")),
    "gru reset before": lambda: chain(L.GRU(6, reset_after=False, return_sequences=True, go_backwards=True)),
    "simple rnn": lambda: chain(L.SimpleRNN(6, activation="relu", return_sequences=True)),
    "conv valid, stride": lambda: chain(L.Conv1D(4, 3, strides=2), L.Conv1D(3, 2, strides=2, padding="same")),
    "conv grouped, dilated same": lambda: chain(L.Conv1D(6, 3, groups=2, dilation_rate=3, padding="same")),
    "conv even kernel same": lambda: chain(L.Conv1D(6, 4, padding="same", use_bias=False, activation="swish")),
    "batch norm first": lambda: chain(L.BatchNormalization(), L.Conv1D(3, 2, padding="causal"), L.BatchNormalization()),
    "time distributed model": lambda: chain(
        L.Reshape((-1, 2, 2)), L.TimeDistributed(L.Conv1D(3, 2, padding="causal")), L.TimeDistributed(L.Flatten())
    ),
    "nested": nested,
    "shared layer": shared,
    "subclasses": lambda: chain(L.Bidirectional(Renamed(3, return_sequences=True)), Halved(3)),
    "user-made layer": lambda: chain(Doubling(), time_distributed()),
    "activations that tf2onnx does not know": lambda: chain(
        L.Dense(3, activation="gelu"), L.Activation("celu"), L.Conv1D(3, 2, padding="causal", activation="gelu")
    ),
    "lora": lora,
    "constant of higher rank": higher_rank,
    "rescaling": lambda: chain(L.Rescaling(0.1, 2.0), L.Dropout(0.5), L.Dense(2)),
}


def _inputs(model: Any, batch: int, length: int, seed: int) -> np.ndarray[Any, Any]:
    rng = np.random.default_rng(seed)
    if model.inputs[0].dtype == "float32":
        return rng.normal(size=(batch, length, 4)).astype(np.float32)
    return rng.integers(1, 11, size=(batch, length)).astype(np.int32)


def _session(model: ir.Model) -> Any:
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_keras(family: str, randomise: Randomise) -> None:
    model = randomise(FAMILIES[family]())
    converted = to_onnx(model).model
    ort_session = _session(converted)
    for seed, (batch, length) in enumerate([(1, 4), (1, 31), (2, 2), (5, 7)]):
        x = _inputs(model, batch, max(length, 4), seed) if "valid" in family else _inputs(model, batch, length, seed)
        expected = np.asarray(model(x, training=False).numpy())
        compare(expected, ort_session.run(["output"], {"input": x})[0], f"{family} {x.shape}")
    operators = {node.op_type for node in converted.graph}
    assert not operators & {"Loop", "Scan", "If", "SpaceToBatch"}


def test_right_padded_tokens_equal_keras_at_valid_steps(randomise: Randomise) -> None:
    model = randomise(bilstm_text_tagger(11, 3, embedding_dim=4, units=6))
    x = np.array([[1, 2, 3, 4, 5, 6], [7, 8, 0, 0, 0, 0], [9, 0, 0, 0, 0, 0]], np.int32)
    (got,) = _session(to_onnx(model).model).run(["output"], {"input": x})
    compare(model(x, training=False).numpy(), got, "padded tokens", valid=x != 0)


@pytest.mark.parametrize(
    ("family", "budget"), [("tcn batch norm", 50), ("bilstm_tagger gru", 10), ("text tagger", 12), ("tcn same", 50)]
)
def test_node_budget(family: str, budget: int, randomise: Randomise) -> None:
    assert len(list(to_onnx(randomise(FAMILIES[family]())).model.graph)) <= budget


def test_default_keras_tcn_needs_thirty_odd_nodes(randomise: Randomise) -> None:
    model = to_onnx(randomise(chain(TCN(return_sequences=True, use_batch_norm=True)))).model
    assert len(list(model.graph)) <= 40


def test_ports_are_dynamic_and_named() -> None:
    graph = to_onnx(chain(TCN(return_sequences=True, **SMALL), time_distributed())).model.graph
    assert [(v.name, [str(n) for n in v.shape or []]) for v in (*graph.inputs, *graph.outputs)] == [
        ("input", ["batch", "time", "4"]),
        ("output", ["batch", "time", "3"]),
    ]


def test_the_user_model_is_untouched(randomise: Randomise) -> None:
    model = randomise(bilstm_tagger(4, 3, units=4))
    x = _inputs(model, 2, 9, 0)
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
        (
            lambda: keras.Model([a := keras.Input((None, 2)), b := keras.Input((None, 2))], a + b),
            "one input and one out",
        ),
        (lambda: keras.Sequential([L.Dense(2)]), "no known input shape"),
        (lambda: chain(L.LSTM(3, stateful=False, dtype="mixed_float16")), "expected compute dtype float32"),
        (lambda: chain(L.Dense(2, activation=_lgamma)), "Lgamma is no ONNX operator"),
        (lambda: keras.Sequential([keras.Input((50, 4)), L.Dense(2)]), "expected any length, got an input of 50 steps"),
        (lambda: keras.Sequential([keras.Input((None,)), L.Embedding(5, 2)]), 'tokens need keras.Input.*dtype="int32"'),
        (lambda: chain(L.Permute((2, 1))), "expected output .batch, time, K. or .batch, K."),
        (lambda: chain(L.Dense(1), L.Reshape((-1,))), "expected output"),
        (lambda: None, "expected a keras.Model, got NoneType"),
        (lambda: keras.Sequential([keras.Input((8, 8, 3)), L.Conv2D(2, 2)]), "expected input .batch, time, channels."),
    ],
)
def test_refusals_say_what_and_why(build: Callable[[], Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        to_onnx(build())


def test_stateful_layers_are_refused() -> None:
    inputs = keras.Input(batch_shape=(1, None, 2))
    with pytest.raises(UnsupportedLayerError, match="stateful=True"):
        to_onnx(keras.Model(inputs, L.LSTM(3, stateful=True)(inputs)))


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
    x = _inputs(model, 2, 5, 0)
    expected = model(x).numpy()
    with lowered(), ThreadPoolExecutor(1) as pool:
        np.testing.assert_allclose(pool.submit(lambda: model(x).numpy()).result(), expected, atol=1e-6)


def test_a_second_export_at_the_same_time_is_refused() -> None:
    with lowered(), pytest.raises(ExportError, match="another export runs in this process"):
        to_onnx(chain(L.Dense(2)))
