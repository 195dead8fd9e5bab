"""Training of taggers on labelled sessions: from `Sessions` to a `.keras` file and a `.json` that describes it.

Owns the training loop and the score on held-out groups; recipes and windows have modules of their own. It
uses Keras alone, so the same code trains on TensorFlow, JAX and torch, on a GPU where the backend sees one.

Refuses architectures without a recipe, sessions that are shorter than a training window, and a split that would let
a group be trained on, validated on, or scored on at once.

Invariants: the held-out groups are looked at once, after training, for the score. The saved model is float32 and takes
raw sensor units, whatever precision it was trained in. No model file stands beside the description of another.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import time
import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import keras
import numpy as np

import edgeseq
from edgeseq.errors import ConfigError
from edgeseq.recipes import RECIPES, Recipe
from edgeseq.sessions import Augmentation, Labels, Sessions, Signal
from edgeseq.windows import Windows, tiles

__all__ = [
    "TrainReport",
    "compiled",
    "device_of",
    "frame_accuracy",
    "predict_labels",
    "train_tagger",
    "versions",
]

REPORT_FORMAT_VERSION = 1


@dataclass(frozen=True)
class TrainReport:
    """What was trained, on what, and how well it labels groups that it never saw. `OUT.json` holds these fields.

    Units: rates and accuracies are fractions from 0 to 1; `rate_hz` in samples per second; `train_s` is the wall time
    of training and `train_cpu_s` the processor time of this process, both without the final score.

    `majority_rate` is what always giving the most frequent label of the held-out groups would score;
    `balanced_accuracy` is the mean of the recalls of their labels; `policy` is the Keras dtype policy of the training;
    `device` is where the weights were.
    """

    format_version: int
    architecture: str
    hyperparameters: Mapping[str, Any]
    seed: int
    policy: str
    feature_names: tuple[str, ...]
    label_names: tuple[str, ...]
    rate_hz: float
    train_groups: tuple[int, ...]
    validation_groups: tuple[int, ...]
    held_out_groups: tuple[int, ...]
    majority_rate: float
    parameters: int
    backend: str
    versions: Mapping[str, str]
    frame_accuracy: float
    balanced_accuracy: float
    validation_accuracy: float
    epochs_run: int
    train_s: float
    train_cpu_s: float
    device: str


def train_tagger(
    architecture: str,
    sessions: Sessions,
    out_path: str | os.PathLike[str],
    *,
    held_out: Collection[int],
    epochs: int | None = None,
    seed: int = 0,
    mixed_precision: bool = False,
    recipe: Recipe | None = None,
    augmentation: Augmentation | None = None,
    validation: Collection[int] | None = None,
    verbose: int = 1,
) -> TrainReport:
    """Train a tagger on all groups but `held_out`, score it on those, and write `OUT.keras` and `OUT.json`.

    The same seed on the same machine and backend gives the same model. It is set for Python, numpy and the backend.

    Args:
        architecture: "tcn" or "bilstm".
        sessions: labelled recordings of at least three groups.
        out_path: where the model goes, `OUT.keras`; written at once, when training is done.
        held_out: groups that are only scored.
        epochs: most epochs, instead of the recipe's.
        seed: of the weights, the windows and the dropout.
        mixed_precision: compute in float16 on a GPU, in bfloat16 elsewhere. The saved model is float32 all the same.
        recipe: instead of `RECIPES[architecture]`.
        augmentation: random changes of the windows; None is a little noise.
        validation: training groups that decide, by early stopping, which epoch is kept; None is the last one.
        verbose: 1 a progress bar per epoch, 2 a line per epoch, 0 nothing.

    Raises:
        ConfigError: arguments that do not fit together or to the sessions.

    Example:
        >>> import tempfile
        >>> from edgeseq import tcn_tagger
        >>> x = np.sign(np.sin(np.arange(120) / 9))[:, None].astype(np.float32)
        >>> sessions = Sessions(
        ...     (x,) * 3, ((x[:, 0] > 0).astype(np.int32),) * 3, (1, 2, 3), ("x",), ("low", "high"), rate_hz=10.0)
        >>> recipe = Recipe(
        ...     tcn_tagger, {"nb_filters": 4, "dilations": (1, 2)}, 0.03, window_steps=32, steps_per_epoch=10, epochs=2)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = train_tagger("tcn", sessions, f"{folder}/sign.keras", held_out=[3], recipe=recipe, verbose=0)
        >>> report.frame_accuracy > 0.9, report.majority_rate < 0.6
        (True, True)
    """
    recipe = _checked_recipe(architecture, recipe, epochs)
    augmentation = Augmentation() if augmentation is None else augmentation
    augmentation.check(len(sessions.feature_names))
    out_path = _checked_path(out_path)
    seen, unseen = sessions.split(held_out)
    train, valid = seen.split([max(seen.groups)] if validation is None else validation)
    _check_lengths(seen, recipe.window_steps)

    keras.utils.set_random_seed(seed)
    policy = _mixed_policy() if mixed_precision else "float32"
    model, outcome = _fit(recipe, (train, valid), augmentation, seed=seed, policy=policy, verbose=verbose)
    accuracy, balanced = _scores(model, unseen)
    report = TrainReport(
        format_version=REPORT_FORMAT_VERSION,
        architecture=architecture,
        hyperparameters=_hyperparameters(recipe, augmentation),
        seed=seed,
        policy=policy,
        feature_names=sessions.feature_names,
        label_names=sessions.label_names,
        rate_hz=sessions.rate_hz,
        train_groups=tuple(sorted(set(train.groups))),
        validation_groups=tuple(sorted(set(valid.groups))),
        held_out_groups=tuple(sorted(set(unseen.groups))),
        majority_rate=unseen.majority_rate,
        parameters=int(model.count_params()),
        backend=keras.backend.backend(),
        versions=versions(),
        frame_accuracy=accuracy,
        balanced_accuracy=balanced,
        **outcome,
    )
    _write(model, report, out_path)
    return report


def frame_accuracy(model: Any, sessions: Sessions) -> float:
    """Return the fraction of the steps that `model` labels right, each session run whole and on its own.

    Nothing is padded or cut: padding would change the outputs of a bidirectional model.

    Args:
        model: (B, T, C) in the units of the sessions -> (B, T, K).
        sessions: what to score on.

    Raises:
        ConfigError: the outputs are not one score per label for every step.

    Example:
        >>> x = np.array([[0.0], [1.0], [1.0]], np.float32)
        >>> sessions = Sessions((x,), (np.array([0, 1, 0], np.int32),), (1,), ("x",), ("low", "high"), 1.0)
        >>> layer = keras.layers.Dense(2)
        >>> model = keras.Sequential([keras.Input((None, 1)), layer])
        >>> layer.set_weights([np.array([[0.0, 1.0]]), np.array([0.5, 0.0])])
        >>> round(frame_accuracy(model, sessions), 3)
        0.667
    """
    return _scores(model, sessions)[0]


def predict_labels(model: Any, signal: Signal, n_labels: int) -> Labels:
    """Return the most probable label of every step of one signal.

    Shapes:
        (T, C) float32 -> (T,) int32

    Raises:
        ConfigError: the outputs are not of shape (1, T, n_labels).
    """
    outputs = keras.ops.convert_to_numpy(model.predict_on_batch(signal[None]))
    if outputs.shape != (1, len(signal), n_labels):
        # TimeDistributed maps over the batch size once batch and time are unknown (Keras 3.15 on TensorFlow).
        raise ConfigError(
            f"model {model.name!r}: expected outputs (1, {len(signal)}, {n_labels}), one score per label for every "
            f"step, got {outputs.shape}; let the recurrent layers return sequences, and use "
            "edgeseq.TimeDistributed in place of Keras' own"
        )
    return np.asarray(outputs[0].argmax(axis=-1), np.int32)


def compiled(recipe: Recipe, n_channels: int, n_labels: int) -> Any:
    """Build a model of logits under the current dtype policy, for standardised windows, ready for `fit`.

    The model to save is another: with softmax, and with the standardisation inside. The two have the same weights.

    Example:
        >>> compiled(RECIPES["tcn"], n_channels=6, n_labels=7).output_shape
        (None, None, 7)
    """
    model = recipe.build(n_channels, n_labels, output_activation=None, **recipe.arguments)
    steps = recipe.epochs * recipe.steps_per_epoch
    warmup = max(1, steps // 20)
    rate = keras.optimizers.schedules.CosineDecay(
        recipe.learning_rate / 50, max(1, steps - warmup), 0.02, warmup_target=recipe.learning_rate, warmup_steps=warmup
    )
    model.compile(
        keras.optimizers.Adam(rate, clipnorm=1.0),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    return model


def _fit(
    recipe: Recipe,
    parts: tuple[Sessions, Sessions],
    augmentation: Augmentation,
    *,
    seed: int,
    policy: str,
    verbose: int,
) -> tuple[Any, dict[str, Any]]:
    """Train under `policy`; return the float32 model for raw signals, and the outcome for the report."""
    train, valid = parts
    shape = len(train.feature_names), len(train.label_names)
    mean, std = train.channel_statistics()
    with _dtype_policy(policy):
        learner = compiled(recipe, *shape)
    stop = keras.callbacks.EarlyStopping(
        monitor="val_accuracy", mode="max", patience=recipe.patience, restore_best_weights=True
    )
    started, cpu_started = time.perf_counter(), time.process_time()
    history = learner.fit(
        Windows(train, recipe, augmentation=augmentation, mean=mean, std=std, seed=seed),
        validation_data=tiles(valid, recipe.window_steps, mean, std),
        validation_batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        callbacks=[stop],
        verbose=verbose,
    ).history["val_accuracy"]
    outcome = {
        "train_s": round(time.perf_counter() - started, 2),
        "train_cpu_s": round(time.process_time() - cpu_started, 2),
        "epochs_run": len(history),
        "validation_accuracy": float(max(history)),
        "device": device_of(learner.weights[0]),
    }
    with _dtype_policy("float32"):
        model = recipe.build(*shape, mean=mean, std=std, **recipe.arguments)
    model.set_weights(learner.get_weights())
    return model, outcome


def _scores(model: Any, sessions: Sessions) -> tuple[float, float]:
    """Return the accuracy over all steps, and the mean of the labels' recalls."""
    n_labels = len(sessions.label_names)
    truth = np.concatenate(sessions.labels)
    guess = np.concatenate([predict_labels(model, signal, n_labels) for signal in sessions.signals])
    recalls = [np.mean(guess[truth == label] == label) for label in np.unique(truth)]
    return float(np.mean(truth == guess)), float(np.mean(recalls))


def _checked_recipe(architecture: str, recipe: Recipe | None, epochs: int | None) -> Recipe:
    if architecture not in RECIPES:
        raise ConfigError(
            f"train: expected architecture to be one of {', '.join(RECIPES)}, got {architecture!r}; "
            "for another model pass the nearest of these and a recipe with your own builder"
        )
    recipe = recipe or RECIPES[architecture]
    if epochs is not None:
        recipe = dataclasses.replace(recipe, epochs=epochs)
    if recipe.epochs < 1:
        raise ConfigError(f"train: expected epochs >= 1, got {recipe.epochs}; one epoch is the least that trains")
    return recipe


def _checked_path(out_path: str | os.PathLike[str]) -> Path:
    path = Path(out_path)
    if path.suffix != ".keras" or not path.parent.is_dir():
        raise ConfigError(
            f"train: expected out_path to end in .keras, in a folder that exists, got {str(path)!r}; "
            "add the suffix or make the folder"
        )
    return path


def _check_lengths(sessions: Sessions, window_steps: int) -> None:
    for i, signal in enumerate(sessions.signals):
        if len(signal) < window_steps:
            raise ConfigError(
                f"train: expected sessions of at least one window of {window_steps} samples, got {len(signal)} in "
                f"session {i} of the training groups; pass a recipe of smaller window_steps, or leave the session out"
            )


def _hyperparameters(recipe: Recipe, augmentation: Augmentation) -> dict[str, Any]:
    settings = {name: value for name, value in vars(recipe).items() if name not in {"build", "arguments"}}
    return {"model": dict(recipe.arguments), **settings, "augmentation": dataclasses.asdict(augmentation)}


def _mixed_policy() -> str:
    """float16 where the backend placed a weight on a GPU; elsewhere bfloat16, which CPUs and TPUs compute in."""
    weight = keras.Variable(np.zeros(1, np.float32))
    return "mixed_float16" if device_of(weight) == "gpu" else "mixed_bfloat16"


@contextmanager
def _dtype_policy(name: str) -> Iterator[None]:
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def device_of(variable: Any) -> str:
    """Return where the backend keeps a Keras variable: "gpu", "tpu", "mps" or "cpu".

    Example:
        >>> device_of(keras.Variable(np.zeros(1, np.float32))) in {"cpu", "gpu", "tpu", "mps"}
        True
    """
    # TensorFlow and torch name it /job:.../device:GPU:0 and cuda:0, JAX cuda:0 or TFRT_CPU_0.
    name = str(variable.value.device).lower().replace("cuda", "gpu")
    return next(kind for kind in ("gpu", "tpu", "mps", "cpu") if kind in name)


def versions() -> dict[str, str]:
    """Return the versions of what computed: edgeseq, Keras, its backend, numpy and Python.

    Example:
        >>> sorted({"edgeseq", "keras", "numpy", "python", keras.backend.backend()} - set(versions()))
        []
    """
    packages = (edgeseq, keras, np, import_module(keras.backend.backend()))
    return {package.__name__: package.__version__ for package in packages} | {"python": platform.python_version()}


def _write(model: Any, report: TrainReport, path: Path) -> None:
    """Replace the model and its description, each as a whole; a model never stands beside another's description."""
    text = json.dumps(dataclasses.asdict(report), indent=2) + "\n"
    described = path.with_suffix(".json")
    new_model, new_text = (file.with_name(f".new-{os.getpid()}-{file.name}") for file in (path, described))
    try:
        with warnings.catch_warnings():
            # Keras saves through h5py, and TensorFlow's variables through an __array__ that numpy 2 finds too old.
            warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning)
            model.save(new_model)
        new_text.write_text(text, encoding="utf-8")
        described.unlink(missing_ok=True)
        os.replace(new_model, path)
        os.replace(new_text, described)
    finally:
        new_model.unlink(missing_ok=True)
        new_text.unlink(missing_ok=True)
