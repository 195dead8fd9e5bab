"""The ready-made models: shapes of any size, raw units, training, saving, and the same on JAX and torch."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import keras
import numpy as np
import numpy.typing as npt
import pytest

from edgeseq.builders import bilstm_tagger, bilstm_text_tagger, tcn_classifier, tcn_tagger
from edgeseq.errors import ConfigError

# predict() runs a compiled graph and model(x) single kernels: sums may be taken in another order.
TOLERANCE = 1e-5
CHANNELS, LABELS, VOCABULARY = 3, 4, 20
MEAN, STD = [1.0, -200.0, 1e5], [0.1, 50.0, 1e3]
SMALL: dict[str, Any] = {"nb_filters": 5, "dilations": (1, 2)}

TAGGERS: dict[str, Callable[[], Any]] = {
    "tcn": lambda: tcn_tagger(CHANNELS, LABELS, **SMALL),
    "tcn same": lambda: tcn_tagger(CHANNELS, LABELS, padding="same", use_layer_norm=True, **SMALL),
    "tcn normalised": lambda: tcn_tagger(CHANNELS, LABELS, mean=MEAN, std=STD, use_batch_norm=True, **SMALL),
    "bilstm": lambda: bilstm_tagger(CHANNELS, LABELS, units=5, mean=MEAN, std=STD),
    "bigru": lambda: bilstm_tagger(CHANNELS, LABELS, units=5, cell="gru", layers=2, merge_mode="sum"),
}
CLASSIFIERS: dict[str, Callable[[], Any]] = {
    pooling: lambda pooling=pooling: tcn_classifier(  # type: ignore[misc]  # mypy cannot type a lambda's default
        CHANNELS, LABELS, pooling=pooling, mean=MEAN, std=STD, **SMALL
    )
    for pooling in ("max", "average", "last")
}
TEXT_TAGGERS: dict[str, Callable[[], Any]] = {
    "text": lambda: bilstm_text_tagger(VOCABULARY, LABELS, embedding_dim=5, units=5),
    "text unmasked": lambda: bilstm_text_tagger(VOCABULARY, LABELS, cell="gru", mask_zero=False, units=5),
}
MODELS = {**TAGGERS, **CLASSIFIERS, **TEXT_TAGGERS}


@pytest.fixture(params=MODELS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def inputs(kind: str, batch: int, length: int, seed: int = 0) -> npt.NDArray[Any]:
    rng = np.random.default_rng(seed)
    if kind in TEXT_TAGGERS:
        return rng.integers(1, VOCABULARY, size=(batch, length)).astype(np.int32)
    return (np.array(MEAN) + np.array(STD) * rng.normal(size=(batch, length, CHANNELS))).astype(np.float32)


def run(model: Any, x: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    return np.asarray(keras.ops.convert_to_numpy(model(x)))


def randomise(model: Any) -> None:
    rng = np.random.default_rng(0)
    model.set_weights([w + rng.uniform(0, 0.3, size=w.shape) for w in model.get_weights()])


class TestModels:
    def test_any_batch_and_any_length(self, kind: str) -> None:
        model = MODELS[kind]()
        randomise(model)
        # One model through all of them: from the second length on, predict() runs a graph of unknown batch and time.
        for batch, length in [(2, 7), (3, 9), (1, 1)]:
            x = inputs(kind, batch, length)
            y = model.predict(x, verbose=0)
            assert y.shape == ((batch, LABELS) if kind in CLASSIFIERS else (batch, length, LABELS))
            np.testing.assert_allclose(y, run(model, x), rtol=0, atol=TOLERANCE)
            np.testing.assert_allclose(y.sum(axis=-1), 1.0, rtol=0, atol=TOLERANCE)

    def test_is_uncompiled_and_has_open_shapes(self, kind: str) -> None:
        model = MODELS[kind]()
        assert not model.compiled
        assert model.input_shape == ((None, None) if kind in TEXT_TAGGERS else (None, None, CHANNELS))
        assert model.output_shape == ((None, LABELS) if kind in CLASSIFIERS else (None, None, LABELS))

    @pytest.mark.parametrize("kind", ["tcn normalised", "max", "bigru", "text"])
    def test_learns(self, kind: str) -> None:
        model = MODELS[kind]()
        x = inputs(kind, 8, 6)
        raw = x if kind in TEXT_TAGGERS else x[..., 0] > MEAN[0]
        labels = raw[:, -1] % 2 if kind in CLASSIFIERS else raw % 2
        model.compile(keras.optimizers.Adam(0.02), "sparse_categorical_crossentropy", jit_compile=False)
        losses = [model.train_on_batch(x, labels) for _ in range(15)]
        assert losses[-1] < 0.8 * losses[0]

    def test_saved_model_is_the_same(self, kind: str, tmp_path: Path) -> None:
        model = MODELS[kind]()
        randomise(model)
        model.save(tmp_path / "model.keras")
        loaded = keras.saving.load_model(tmp_path / "model.keras")
        x = inputs(kind, 2, 6)
        np.testing.assert_array_equal(run(loaded, x), run(model, x))

    def test_layers_are_named_after_what_they_do(self) -> None:
        assert [layer.name for layer in MODELS["tcn normalised"]().layers] == [
            "samples",
            "normalization",
            "tcn",
            "labels",
        ]
        assert [layer.name for layer in MODELS["bigru"]().layers] == [
            "samples",
            "bidirectional_0",
            "dropout_0",
            "bidirectional_1",
            "dropout_1",
            "labels",
        ]


class TestNormalisation:
    def test_raw_units_give_what_normalised_input_gives(self) -> None:
        with_constants = tcn_tagger(CHANNELS, LABELS, mean=MEAN, std=STD, **SMALL)
        without = tcn_tagger(CHANNELS, LABELS, **SMALL)
        randomise(without)
        with_constants.set_weights(without.get_weights())
        x = inputs("tcn", 2, 9)
        normalised = ((x - np.array(MEAN)) / np.array(STD)).astype(np.float32)
        # The third channel is 1e5 with a spread of 1e3: float32 leaves 1e-5 of its normalised value.
        np.testing.assert_allclose(run(with_constants, x), run(without, normalised), rtol=0, atol=1e-4)

    @pytest.mark.parametrize("build", [tcn_tagger, tcn_classifier, bilstm_tagger])
    @pytest.mark.parametrize(
        ("mean", "std", "message"),
        [
            (MEAN, None, r"std: expected both mean and std, or neither, got None; pass std, \(n_channels,\)"),
            (None, STD, "mean: expected both mean and std, or neither, got None"),
            ([0.0], STD, r"mean: expected shape \(3,\), one number per channel, got \(1,\); compute it over"),
            (MEAN, 1.0, r"std: expected shape \(3,\), one number per channel, got \(\)"),
            ([0.0, float("nan"), 0.0], STD, r"mean: expected finite numbers, got \[0.0, nan, 0.0\]; remove NaN"),
            (MEAN, [1.0, float("inf"), 1.0], "std: expected finite numbers"),
            (MEAN, [1.0, 0.0, 1.0], r"std: expected numbers above 1e-07, got \[1.0, 0.0, 1.0\]; drop the channels"),
            (MEAN, [1.0, -1.0, 1.0], "std: expected numbers above"),
            (MEAN, [1.0, 1e-9, 1.0], "std: expected numbers above"),
            (["a", "b", "c"], STD, r"mean: expected 3 numbers, got \['a', 'b', 'c'\]"),
        ],
    )
    def test_bad_constants(self, build: Callable[..., Any], mean: Any, std: Any, message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            build(CHANNELS, LABELS, mean=mean, std=std)


class TestText:
    def test_padding_changes_nothing_before_it(self) -> None:
        model = MODELS["text"]()
        x = inputs("text", 2, 6)
        padded = np.pad(x, ((0, 0), (0, 3)))
        np.testing.assert_allclose(run(model, padded)[:, :6], run(model, x), rtol=0, atol=TOLERANCE)

    def test_padding_does_not_count_in_the_loss(self) -> None:
        model = MODELS["text"]()
        model.compile("sgd", "sparse_categorical_crossentropy", jit_compile=False)
        x = inputs("text", 2, 6)
        labels = x % LABELS
        padded_labels = np.pad(labels, ((0, 0), (0, 3)), constant_values=1)
        loss = model.evaluate(x, labels, verbose=0)
        padded_loss = model.evaluate(np.pad(x, ((0, 0), (0, 3))), padded_labels, verbose=0)
        assert padded_loss == pytest.approx(loss, abs=TOLERANCE)

    def test_id_zero_is_a_token_without_mask(self) -> None:
        model = MODELS["text unmasked"]()
        x = inputs("text", 2, 6)
        assert np.abs(run(model, np.pad(x, ((0, 0), (0, 3))))[:, :6] - run(model, x)).max() > TOLERANCE


class TestArguments:
    def test_tcn_arguments_arrive(self) -> None:
        arguments: dict[str, Any] = {
            "nb_filters": [3, 4],
            "kernel_size": 2,
            "nb_stacks": 2,
            "dilations": [1, 3],
            "padding": "same",
            "use_skip_connections": False,
            "dropout_rate": 0.3,
            "activation": "tanh",
            "use_batch_norm": False,
            "use_layer_norm": True,
        }
        for build in (tcn_tagger, tcn_classifier):
            config = build(CHANNELS, LABELS, **arguments).get_layer("tcn").get_config()
            assert {key: config[key] for key in arguments} == arguments

    @pytest.mark.parametrize("merge_mode", ["concat", "sum", "mul", "ave"])
    @pytest.mark.parametrize("cell", ["lstm", "gru"])
    def test_recurrent_arguments_arrive(self, cell: Any, merge_mode: Any) -> None:
        model = bilstm_tagger(CHANNELS, LABELS, units=5, cell=cell, merge_mode=merge_mode, dropout_rate=0.3)
        layer = model.get_layer("bidirectional_0")
        assert type(layer.forward_layer).__name__.lower() == cell
        assert layer.output.shape[-1] == (10 if merge_mode == "concat" else 5)
        assert model.get_layer("dropout_0").rate == 0.3

    def test_no_output_activation_gives_logits(self) -> None:
        model = tcn_tagger(CHANNELS, 1, output_activation=None, **SMALL)
        assert model.get_layer("labels").layer.activation is keras.activations.linear
        assert tcn_tagger(CHANNELS, 1, output_activation="sigmoid", **SMALL).output_shape == (None, None, 1)

    def test_last_pools_over_nothing(self) -> None:
        model = tcn_classifier(CHANNELS, LABELS, pooling="last", **SMALL)
        x = inputs("last", 2, 20)
        past, _ = model.get_layer("tcn").receptive_field
        np.testing.assert_allclose(run(model, x[:, -past - 1 :]), run(model, x), rtol=0, atol=TOLERANCE)

    @pytest.mark.parametrize(
        ("build", "message"),
        [
            (lambda: tcn_tagger(0, 2), "n_channels: expected an integer of at least 1, got 0"),
            (lambda: tcn_tagger(3, 0), "n_labels: expected an integer of at least 1, got 0"),
            (lambda: tcn_tagger(3, 1), "n_labels: expected at least 2 with softmax, got 1; .* use 'sigmoid'"),
            (lambda: bilstm_tagger(3, 2, units=0), "units: expected an integer of at least 1, got 0"),
            (lambda: bilstm_tagger(3, 2, layers=0), "layers: expected an integer of at least 1, got 0"),
            (lambda: bilstm_tagger(3, 2, dropout_rate=1.0), r"dropout_rate: expected a number in \[0, 1\), got 1.0"),
            (lambda: bilstm_text_tagger(0, 2), "vocabulary_size: expected an integer of at least 1, got 0"),
            (lambda: bilstm_text_tagger(9, 2, embedding_dim=0), "embedding_dim: expected an integer of at least 1"),
            (
                lambda: tcn_classifier(3, 2, pooling="last", padding="same"),
                "pooling: expected 'max' or 'average' with this padding, got 'last'; .* use padding='causal'",
            ),
        ],
    )
    def test_bad_numbers(self, build: Callable[[], Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            build()

    @pytest.mark.parametrize(
        ("build", "arguments", "message"),
        [
            (tcn_classifier, {"pooling": "min"}, "pooling: expected one of 'max', 'average', 'last', got 'min'"),
            (bilstm_tagger, {"cell": "rnn"}, "cell: expected one of 'lstm', 'gru', got 'rnn'; choose one of these"),
            (
                bilstm_tagger,
                {"merge_mode": None},
                "merge_mode: expected one of 'concat', 'sum', 'mul', 'ave', got None",
            ),
        ],
    )
    def test_bad_choices(self, build: Callable[..., Any], arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            build(CHANNELS, LABELS, **arguments)


TRAIN_SAVE_LOAD = """
import sys
import keras, numpy as np
from edgeseq.builders import bilstm_tagger, tcn_tagger

backend, folder = sys.argv[1:]
assert keras.backend.backend() == backend
rng = np.random.default_rng(0)
for build, arguments in [
    (tcn_tagger, dict(nb_filters=5, kernel_size=2, dilations=(1, 2), padding="same", use_batch_norm=True)),
    (tcn_tagger, dict(nb_filters=5, dilations=(1, 2), use_layer_norm=True)),
    (bilstm_tagger, dict(units=5)),
    (bilstm_tagger, dict(units=5, cell="gru")),
]:
    model = build(3, 4, mean=[1.0, 2.0, 3.0], std=[1.0, 2.0, 3.0], **arguments)
    model.compile("adam", "sparse_categorical_crossentropy")
    before = model.get_weights()
    for length in (9, 6):
        x = rng.normal(size=(2, length, 3)).astype("float32")
        loss = model.train_on_batch(x, rng.integers(4, size=(2, length)))
        assert np.isfinite(loss)
    assert all(np.any(a != b) for a, b in zip(before, model.get_weights()))
    model.save(f"{folder}/model.keras")
    loaded = keras.saving.load_model(f"{folder}/model.keras")
    np.testing.assert_array_equal(model.predict(x, verbose=0), loaded.predict(x, verbose=0))
print("trained, saved and loaded on", backend)
"""


@pytest.mark.extended
@pytest.mark.parametrize("backend", ["jax", "torch"])
def test_other_keras_backends(backend: str, tmp_path: Path) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed in {sys.prefix}; it is no dependency of edgeseq")
    result = subprocess.run(
        [sys.executable, "-c", TRAIN_SAVE_LOAD, backend, str(tmp_path)],
        env={**os.environ, "KERAS_BACKEND": backend},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert f"trained, saved and loaded on {backend}" in result.stdout
