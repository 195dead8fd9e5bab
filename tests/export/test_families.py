"""Every family of the catalogue equals Keras, at several lengths and batch sizes, in a graph without detours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from keras import layers as L  # noqa: N812

from edgeseq.errors import UnsupportedLayerError
from edgeseq.export.comparison import compare
from edgeseq.export.convert import to_onnx
from edgeseq.export.exporter import export_model
from edgeseq.export.oracle import keras_outputs
from edgeseq.export.signature import signature
from tests.export.families import FAMILIES, chain, time_distributed
from tests.export.judging import judge, sequences
from tests.export.small_models import CHANNELS, function

Randomise = Callable[..., Any]
Array = np.ndarray[Any, Any]

pytestmark = [
    # Layers that warn of a mask that they lose, and a softmax over the one step of a sequence of one.
    pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask:UserWarning"),
    pytest.mark.filterwarnings("ignore:You are using a softmax over axis:UserWarning"),
]


def _parameters() -> list[Any]:
    marks = {name: pytest.mark.extended if family.extended else () for name, family in FAMILIES.items()}
    return [pytest.param(name, marks=mark) for name, mark in marks.items()]


def _session(model: ir.Model) -> Any:
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])


def _operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in ir.traversal.RecursiveGraphIterator(model.graph)]


WHOLE_MODELS = ("several inputs and outputs", "built for one length", "stateful")


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.group in WHOLE_MODELS])
def test_the_written_file_equals_keras(name: str, randomise: Randomise, tmp_path: Path) -> None:
    # By the way that users take, on which a model built for one length is built again for any.
    model = randomise(FAMILIES[name].build())
    report = export_model(model, tmp_path, name="whole")
    verdict = judge(model, report.offline)
    assert verdict.kind == "right", verdict
    of_one_length = name.startswith(("Flatten", "Permute"))
    assert (report.one_length is not None) == of_one_length, report.one_length
    if not of_one_length and not signature(model).any_length:
        (port,) = ort.InferenceSession(report.offline).get_inputs()
        assert not {int, type(None)}.intersection(map(type, port.shape[:2])), port.shape  # names: of any size


@pytest.mark.parametrize("name", _parameters())
def test_equals_keras(name: str, randomise: Randomise, tmp_path: Path) -> None:
    family = FAMILIES[name]
    model = randomise(family.build())
    path = tmp_path / "model.onnx"
    onnx.save(to_onnx(model).proto(), path)
    verdict = judge(model, path, padded=family.padded, min_length=family.min_length)
    assert verdict.kind == "right", verdict


def test_the_catalogue_is_broad() -> None:
    assert len(FAMILIES) > 450
    assert sum(family.extended for family in FAMILIES.values()) < len(FAMILIES) / 2


BUDGETS: dict[str, int] = {
    "keras-tcn TCN, default": 40,
    "edgeseq TCN": 17,
    "edgeseq TCN, padding='same'": 17,
    "Bidirectional(LSTM), merge_mode='concat'": 8,
    "Bidirectional(GRU), merge_mode='concat'": 8,
    "bilstm_tagger, cell='gru'": 10,
    "bilstm_text_tagger": 21,
    "Masking, LSTM": 22,
    "Conv1D(filters=6, groups=2, kernel_size=3, padding='same', strides=1, dilation_rate=2)": 5,
    "DepthwiseConv1D(depth_multiplier=3, kernel_size=3, padding='same', strides=1, dilation_rate=2)": 5,
    "SeparableConv1D(filters=6, depth_multiplier=2, kernel_size=3, padding='same', strides=1, dilation_rate=2)": 6,
    "Conv1DTranspose(filters=3, kernel_size=3, padding='same', strides=2)": 5,
    "MaxPooling1D(pool_size=2, strides=None, padding='valid')": 5,
    "AveragePooling1D(pool_size=3, strides=1, padding='same')": 5,
    "UpSampling1D(2)": 6,
    "ZeroPadding1D, then Conv1D 'valid'": 3,
    "BatchNormalization": 4,
    "GroupNormalization": 11,
    "Reshape": 3,
}


@pytest.mark.parametrize("name", BUDGETS)
def test_node_budget(name: str, randomise: Randomise) -> None:
    operators = _operators(to_onnx(randomise(FAMILIES[name].build())).model)
    assert len(operators) <= BUDGETS[name], operators


def test_layers_that_act_in_training_only_are_reported(randomise: Randomise) -> None:
    model = chain(L.Dropout(0.5), L.GaussianNoise(0.1, name="noise"), L.Dense(2))
    told = {(layer.kind, layer.why) for layer in to_onnx(randomise(model)).lowered}
    assert {("Dropout", "acts in training only"), ("GaussianNoise", "acts in training only")} <= told


class _ThirdCell(L.Layer):  # type: ignore[misc]
    """A cell that a user wrote."""

    state_size = 3

    def call(self, inputs: Any, states: Any) -> Any:
        return states[0] + inputs[:, :3], [states[0] + inputs[:, :3]]


class _AlwaysTraining(L.Wrapper):  # type: ignore[misc]
    """What Monte Carlo dropout does."""

    def call(self, inputs: Any) -> Any:
        return self.layer(inputs, training=True)


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "dropout at inference": (lambda: chain(_AlwaysTraining(L.Dropout(0.5))), "called with training=True"),
    "batch statistics at inference": (
        lambda: chain(_AlwaysTraining(L.BatchNormalization())),
        "called with training=True also at inference",
    ),
    "recurrent dropout at inference": (
        lambda: chain(_AlwaysTraining(L.LSTM(3, dropout=0.5))),
        "called with training=True",
    ),
    "recurrent dropout at inference, both ways": (
        lambda: chain(_AlwaysTraining(L.Bidirectional(L.LSTM(3, recurrent_dropout=0.5)))),
        "called with training=True",
    ),
    "an activation that ONNX does not name": (
        lambda: chain(L.GRU(3, recurrent_activation="gelu")),
        "no activation 'gelu'; use one of elu, hard_sigmoid",
    ),
    "a cell of the user's own": (lambda: chain(L.RNN(_ThirdCell())), "no recurrent operator for the cell _ThirdCell"),
    "a stack with such a cell": (
        lambda: chain(L.RNN([L.LSTMCell(3), _ThirdCell()])),
        "no recurrent operator for the cell _ThirdCell",
    ),
    "adaptive pooling": (lambda: chain(L.AdaptiveMaxPooling1D(3)), "windows that depend on the length"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_a_reason(case: str) -> None:
    build, message = REFUSED[case]
    with pytest.raises(UnsupportedLayerError, match=message):
        to_onnx(build())


@pytest.mark.parametrize("layer", ["Conv1D", "MaxPooling1D", "AveragePooling1D", "SeparableConv1D"])
@pytest.mark.parametrize(("size", "stride"), [(1, 4), (2, 3), (2, 5), (3, 2)])
def test_same_padding_at_every_length(layer: str, size: int, stride: int, randomise: Randomise) -> None:
    # ONNX Runtime takes some lengths for negative padding where the stride is above the size.
    own = (3,) if "Conv" in layer else ()
    model = randomise(chain(getattr(L, layer)(*own, size, strides=stride, padding="same")))
    ort_session = _session(to_onnx(model).model)
    for length in range(1, 13):
        x = sequences(signature(model), length)[0]
        compare(np.asarray(model(x)), ort_session.run(None, {"input": x})[0], f"{length} steps")


@pytest.mark.parametrize("wrap", [lambda layer: layer, L.Bidirectional], ids=["lone", "both directions"])
def test_a_stateful_layer_starts_every_sequence_anew(wrap: Callable[[Any], Any], randomise: Randomise) -> None:
    inputs = keras.Input(batch_shape=(2, None, CHANNELS))
    model = randomise(keras.Model(inputs, wrap(L.LSTM(3, stateful=True, return_sequences=True))(inputs)))
    ort_session = _session(to_onnx(model).model)
    for length in (7, 1, 77):
        x = sequences(signature(model), length)[0][:2]
        model(x)  # leaves a state behind
        expected = keras_outputs(model, [x])
        assert not isinstance(expected, Exception)
        compare(expected[0], ort_session.run(None, {"input": x})[0], f"{length} steps")


def test_an_infinite_value_of_the_side_not_chosen_stays_out(randomise: Randomise) -> None:
    # tf2onnx writes a choice as a sum of products with 0 and 1, and 0 times infinity is not a number.
    model = function(lambda x: keras.ops.where(x > 0, x, keras.ops.exp(x * -100.0)))
    x = np.array([[[1.0, 2.0, 3.0, 4.0], [-0.1, 0.5, -0.2, 9.0]]], np.float32)
    (got,) = _session(to_onnx(model).model).run(None, {"input": x})
    assert np.isfinite(got).all()
    compare(np.asarray(model(x)), got, "a choice")


def test_time_distributed_keeps_the_batch_and_the_time_apart(randomise: Randomise) -> None:
    model = randomise(chain(time_distributed()))
    x = np.random.default_rng(0).normal(size=(2, 77, CHANNELS)).astype(np.float32)
    (got,) = _session(to_onnx(model).model).run(None, {"input": x})
    assert got.shape == (2, 77, 3)


def _agree(model: Any, *inputs: Array) -> None:
    """ONNX Runtime gives what Keras gives, in the same type."""
    ort_session = _session(to_onnx(model).model)
    for x in inputs:
        expected = np.asarray(model(x))
        (got,) = ort_session.run(None, {ort_session.get_inputs()[0].name: x})
        assert got.dtype == expected.dtype
        compare(expected, got, f"input {x.shape}")


def _windows(seed: int = 0) -> Array:
    """(2, 5, 4, 3), with inner steps left out at the end, in between, and throughout."""
    x = np.random.default_rng(seed).normal(size=(2, 5, 4, 3)).astype(np.float32)
    x[0, 0, 2:] = x[0, 1, 1] = x[0, 3] = x[1, 2, :3] = x[1, 4] = 0
    return x


INNER: dict[str, Callable[[], Any]] = {
    "LSTM": lambda: L.LSTM(3),
    "Bidirectional": lambda: L.Bidirectional(L.GRU(3, return_sequences=True)),
    "pooling": L.GlobalAveragePooling1D,
    "Sequential": lambda: keras.Sequential([L.LSTM(3, return_sequences=True), L.GRU(2), L.Dense(2)]),
    "TimeDistributed": lambda: L.TimeDistributed(L.Dense(2)),
}


@pytest.mark.parametrize("inner", INNER)
def test_time_distributed_hands_the_mask_of_each_step_on(inner: str, randomise: Randomise) -> None:
    inputs = keras.Input((None, 4, 3))
    x = _windows()
    if inner == "pooling":  # of which Keras gives no number without a valid step
        x[..., 0, :] = 1.0
    _agree(randomise(keras.Model(inputs, L.TimeDistributed(INNER[inner]())(L.Masking()(inputs)))), x)


def test_time_distributed_over_words_of_padded_sentences(randomise: Randomise) -> None:
    inputs = keras.Input((None, 12), dtype="int32")
    embedded = L.Embedding(11, 4, mask_zero=True)(inputs)
    model = randomise(keras.Model(inputs, L.GRU(2)(L.TimeDistributed(L.LSTM(3))(embedded)[:, :, :])))
    x = np.random.default_rng(0).integers(0, 11, size=(3, 5, 12)).astype(np.int32)
    x[0, :, 4:] = x[1, 2] = 0
    _agree(model, x)


@pytest.mark.parametrize("inner", [L.BatchNormalization, lambda: keras.Sequential([L.Dense(4), L.Dense(2)])])
def test_time_distributed_with_a_mask_of_its_own_steps(inner: Callable[[], Any], randomise: Randomise) -> None:
    x = np.random.default_rng(0).normal(size=(3, 5, CHANNELS)).astype(np.float32)
    x[0, 2:] = x[1, 1] = 0
    _agree(randomise(chain(L.Masking(), L.TimeDistributed(inner()))), x)


@pytest.mark.parametrize("inner", [L.Softmax, lambda: keras.Sequential([L.Dense(4), L.Softmax(name="softmax")])])
def test_a_softmax_under_a_mask_of_steps_is_refused(inner: Callable[[], Any]) -> None:
    # Keras aligns the mask's batch with the channels: it fails, or with as many sequences as channels mixes them.
    with pytest.raises(UnsupportedLayerError, match=r"layer '\w+': a softmax takes a mask with the axes of its input"):
        to_onnx(chain(L.Masking(), L.TimeDistributed(inner())))


def _over_axis_one(x: Any) -> Any:
    return keras.ops.softmax(x, axis=1)


@pytest.mark.parametrize("inner", [lambda: L.Activation(_over_axis_one), lambda: L.Dense(3, activation=_over_axis_one)])
def test_time_distributed_over_a_function_of_axis_one(inner: Callable[[], Any], randomise: Randomise) -> None:
    inputs = keras.Input((5, CHANNELS))  # of one length, where Keras itself is right
    x = np.random.default_rng(0).normal(size=(2, 5, CHANNELS)).astype(np.float32)
    _agree(randomise(keras.Model(inputs, L.TimeDistributed(inner())(inputs))), x)


INTEGERS: dict[str, Callable[[], Any]] = {
    "Dense": lambda: L.Dense(3),
    "LSTM": lambda: L.LSTM(3),
    "Bidirectional": lambda: L.Bidirectional(L.GRU(3)),
    "Masking and LSTM": lambda: keras.Sequential([L.Masking(), L.LSTM(3)]),
    "BatchNormalization": L.BatchNormalization,
    "LayerNormalization": L.LayerNormalization,
    "GroupNormalization": lambda: L.GroupNormalization(2),
    "ZeroPadding1D": lambda: L.ZeroPadding1D(1),
    "UpSampling1D": lambda: L.UpSampling1D(2),
    "Reshape": lambda: L.Reshape((-1, 2)),
    "TimeDistributed(Embedding)": lambda: L.TimeDistributed(L.Embedding(9, 3)),
    "TimeDistributed(Reshape)": lambda: L.TimeDistributed(L.Reshape((2, 2))),
    "TimeDistributed(Dense)": lambda: L.TimeDistributed(L.Dense(3)),
}


@pytest.mark.parametrize("layer", INTEGERS)
def test_integers(layer: str, randomise: Randomise) -> None:
    inputs = keras.Input((None, CHANNELS), dtype="int32")
    y = INTEGERS[layer]()(inputs)  # of which Keras says float32, also where it keeps the integers
    model = randomise(keras.Model(inputs, keras.ops.cast(y, "float32") * 0.5))
    _agree(model, np.random.default_rng(0).integers(1, 9, size=(2, 7, CHANNELS)).astype(np.int32))


def test_integers_repeated(randomise: Randomise) -> None:
    inputs = keras.Input((None, CHANNELS), dtype="int32")
    model = keras.Model(inputs, keras.ops.cast(L.RepeatVector(3)(keras.ops.max(inputs, axis=1)), "float32") * 0.5)
    _agree(model, np.random.default_rng(0).integers(1, 9, size=(2, 7, CHANNELS)).astype(np.int32))


def test_integers_are_not_pooled() -> None:
    inputs = keras.Input((None, CHANNELS), dtype="int32")
    with pytest.raises(UnsupportedLayerError, match=r"'pool': expected float32, got int32.*keras.ops.cast"):
        to_onnx(keras.Model(inputs, L.MaxPooling1D(2, name="pool")(inputs)))


def test_tokens_that_the_model_computes(randomise: Randomise) -> None:
    inputs = keras.Input((None, 1))
    model = randomise(keras.Model(inputs, L.Embedding(11, 3)(keras.ops.floor(inputs[:, :, 0]))))
    _agree(model, np.random.default_rng(0).uniform(0, 10.9, size=(2, 7, 1)).astype(np.float32))
