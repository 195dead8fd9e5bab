from __future__ import annotations

import dataclasses
import json
import re
import shutil
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from edgeseq import train as train_module
from edgeseq.builders import bilstm_tagger, tcn_tagger
from edgeseq.errors import ConfigError
from edgeseq.recipes import RECIPES, Recipe
from edgeseq.sessions import Augmentation, Sessions
from edgeseq.train import TrainReport, compiled, frame_accuracy, predict_labels, train_tagger

TRAINING: dict[str, Any] = {
    "learning_rate": 0.02,
    "window_steps": 24,
    "batch_size": 8,
    "steps_per_epoch": 20,
    "epochs": 2,
}
TINY = {
    "tcn": Recipe(tcn_tagger, {"nb_filters": 8, "kernel_size": 2, "dilations": (1, 2)}, **TRAINING),
    "bilstm": Recipe(bilstm_tagger, {"units": 4}, **TRAINING),
}


def square_waves(n_groups: int = 4, lengths: tuple[int, ...] = (60, 83)) -> Sessions:
    """Sessions whose label is the sign of their first channel; in raw units that need the standardisation."""
    rng = np.random.default_rng(0)
    signals, labels, groups = [], [], []
    for group in range(n_groups):
        for steps in lengths:
            on = np.sin(np.arange(steps) / 7 + rng.uniform(0, 6)) > 0
            signal = np.stack([on * 40.0 + 1000.0, rng.standard_normal(steps)], axis=1)
            signals.append(signal.astype(np.float32))
            labels.append(on.astype(np.int32))
            groups.append(group)
    return Sessions(tuple(signals), tuple(labels), tuple(groups), ("level", "noise"), ("off", "on"), 20.0)


def tiny_run(path: Path, architecture: str = "tcn", **options: Any) -> TrainReport:
    arguments: dict[str, Any] = {"held_out": [3], "recipe": TINY[architecture], "verbose": 0}
    return train_tagger(architecture, square_waves(), path, **(arguments | options))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainReport]:
    """A folder with a trained TCN in it, and its report; not to be written to."""
    folder = tmp_path_factory.mktemp("trained")
    return folder, tiny_run(folder / "m.keras")


def test_learns_what_is_easy_and_says_so(trained: tuple[Path, TrainReport]) -> None:
    folder, report = trained
    assert report.frame_accuracy > 0.9
    assert report.balanced_accuracy > 0.9
    assert report.majority_rate < 0.65
    model = keras.saving.load_model(folder / "m.keras")
    _, held_out = square_waves().split([3])
    assert frame_accuracy(model, held_out) == report.frame_accuracy
    assert [file.name for file in sorted(folder.iterdir())] == ["m.json", "m.keras"]


def test_a_bidirectional_model_learns_too(tmp_path: Path) -> None:
    assert tiny_run(tmp_path / "m.keras", "bilstm").frame_accuracy > 0.9


def test_the_json_describes_the_model(tmp_path: Path) -> None:
    report = tiny_run(tmp_path / "m.keras", seed=5, epochs=1, validation=[1])
    told = json.loads((tmp_path / "m.json").read_text())
    assert told == json.loads(json.dumps(dataclasses.asdict(report)))
    assert told["format_version"] == 1
    assert told["feature_names"] == ["level", "noise"]
    assert told["label_names"] == ["off", "on"]
    assert told["rate_hz"] == 20.0
    assert (told["seed"], told["epochs_run"], told["policy"]) == (5, 1, "float32")
    assert (told["train_groups"], told["validation_groups"], told["held_out_groups"]) == ([0, 2], [1], [3])
    assert told["hyperparameters"]["model"] == {"nb_filters": 8, "kernel_size": 2, "dilations": [1, 2]}
    assert told["hyperparameters"]["augmentation"]["noise"] == 0.05
    assert told["backend"] == keras.backend.backend()
    assert told["device"] in {"cpu", "gpu", "tpu", "mps"}


def test_same_seed_same_weights_whatever_the_held_out_signals_are(
    trained: tuple[Path, TrainReport], tmp_path: Path
) -> None:
    sessions = square_waves()
    nonsense = tuple(-x if group == 3 else x for x, group in zip(sessions.signals, sessions.groups, strict=True))
    other = dataclasses.replace(sessions, signals=nonsense)
    report = train_tagger("tcn", other, tmp_path / "m.keras", held_out=[3], recipe=TINY["tcn"], verbose=0)
    assert report.frame_accuracy < trained[1].frame_accuracy
    first, second = (keras.saving.load_model(path / "m.keras").get_weights() for path in (trained[0], tmp_path))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("architecture", ["tcn", "bilstm"])
def test_mixed_precision_saves_float32_and_restores_the_policy(architecture: str, tmp_path: Path) -> None:
    before = keras.config.dtype_policy()
    report = tiny_run(tmp_path / "m.keras", architecture, mixed_precision=True)
    assert keras.config.dtype_policy() is before
    assert report.policy == ("mixed_float16" if report.device == "gpu" else "mixed_bfloat16")
    assert report.frame_accuracy > 0.9
    model = keras.saving.load_model(tmp_path / "m.keras")
    assert {weight.dtype for weight in model.weights} == {"float32"}
    assert all(layer.dtype_policy.name == "float32" for layer in model._flatten_layers())
    assert keras.backend.standardize_dtype(model(np.zeros((1, 3, 2), np.float32)).dtype) == "float32"


def test_the_saved_model_is_the_trained_one_with_standardisation_and_softmax(tmp_path: Path) -> None:
    recipe = TINY["tcn"]
    learner = compiled(recipe, 2, 2)
    mean, std = np.array([1000.0, 5.0], np.float32), np.array([20.0, 2.0], np.float32)
    model = recipe.build(2, 2, mean=mean, std=std, **recipe.arguments)
    model.set_weights(learner.get_weights())
    x = (np.random.default_rng(0).standard_normal((3, 9, 2)) * std + mean).astype(np.float32)
    logits = keras.ops.convert_to_numpy(learner((x - mean) / std))
    expected = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(x)), expected, atol=1e-5)


@pytest.mark.parametrize("architecture", sorted(RECIPES))
def test_fit_and_predict_see_outputs_of_one_row_per_step(architecture: str) -> None:
    """TimeDistributed(Dense) returned (B, B, K) in graphs of unknown batch and time; the recipes must not."""
    model = compiled(RECIPES[architecture], 2, 3)
    for batch, steps in ((2, 20), (3, 11), (5, 7)):
        x = np.random.default_rng(batch).standard_normal((batch, steps, 2)).astype(np.float32)
        got = keras.ops.convert_to_numpy(model.predict_on_batch(x))
        assert got.shape == (batch, steps, 3)
        head = model.layers[-1]
        features = keras.ops.convert_to_numpy(keras.Model(model.input, head.input)(x))
        kernel, bias = head.get_weights()
        np.testing.assert_allclose(got, features @ kernel + bias, atol=1e-4)


def test_frame_accuracy_runs_each_session_whole() -> None:
    sessions = square_waves(2)
    model = bilstm_tagger(2, 2, units=3)
    right = total = 0
    for signal, labels in zip(sessions.signals, sessions.labels, strict=True):
        guess = keras.ops.convert_to_numpy(model(signal[None]))[0].argmax(-1)
        right, total = right + int((guess == labels).sum()), total + len(labels)
    assert frame_accuracy(model, sessions) == pytest.approx(right / total)


def test_predict_labels_refuses_a_model_that_is_no_tagger() -> None:
    model = keras.Sequential([keras.Input((None, 2)), keras.layers.GlobalAveragePooling1D(), keras.layers.Dense(3)])
    with pytest.raises(ConfigError, match=r"expected outputs \(1, 5, 3\).*got \(1, 3\)"):
        predict_labels(model, np.zeros((5, 2), np.float32), 3)


def test_a_failed_save_leaves_the_old_pair_alone(
    trained: tuple[Path, TrainReport], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained[0], tmp_path, dirs_exist_ok=True)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def save(self: Any, path: Path) -> None:
        Path(path).write_bytes(b"half a file")
        raise OSError("disk full")

    monkeypatch.setattr(keras.Model, "save", save)
    with pytest.raises(OSError, match="disk full"):
        tiny_run(tmp_path / "m.keras", epochs=1, seed=1)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"architecture": "gpt"}, "one of tcn, bilstm, got 'gpt'"),
        ({"held_out": [9]}, "hold out groups that exist"),
        ({"validation": [3]}, "some, not all, of the groups"),
        ({"epochs": 0}, "epochs >= 1, got 0"),
        ({"recipe": dataclasses.replace(TINY["tcn"], window_steps=61)}, "window of 61 samples, got 60 in session 0"),
        ({"augmentation": Augmentation(mirror=(1,))}, "expected 2 signs"),
    ],
)
def test_refuses_arguments_that_do_not_fit(options: dict[str, Any], words: str, tmp_path: Path) -> None:
    arguments: dict[str, Any] = {"architecture": "tcn", "held_out": [3], "recipe": TINY["tcn"], "verbose": 0} | options
    with pytest.raises(ConfigError, match=words):
        train_tagger(sessions=square_waves(), out_path=tmp_path / "m.keras", **arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["m.h5", "missing/m.keras"])
def test_refuses_a_path_it_cannot_write(name: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="in a folder that exists"):
        tiny_run(tmp_path / name)


def test_names_no_backend_of_its_own() -> None:
    source = Path(train_module.__file__).read_text(encoding="utf-8")
    assert not re.search(r"^\s*(import|from) (tensorflow|jax|torch)", source, re.MULTILINE)
