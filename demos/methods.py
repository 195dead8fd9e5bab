"""The methods under comparison, and their replay over the held-out sessions.

Owns what is compared: a streaming TCN, the same TCN on its window in ONNX Runtime and in Keras, and a BiLSTM, on a
sliding window, as a stream with a bounded lookahead, and over the whole session. `demos.replay` makes the calls,
`demos.latency` counts. Refuses a stream of the TCN that differs from its offline model, or from Keras on the same
window.

Invariant: every method of a comparison labels every sample of the same sessions.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from demos.felt_latency import Floats, Ints
from demos.replay import (
    BLOCK,
    Interleaved,
    Outputs,
    Predict,
    Replay,
    Signal,
    Way,
    interleave,
    replay_blocks,
    replay_stream,
    replay_window,
    resampled,
)
from edgeseq import runtime
from edgeseq.errors import ConfigError, VerificationError
from edgeseq.sessions import Sessions

TOLERANCE = 1e-5
"""Largest difference of two probabilities: float32 sums in another order differ by some 1e-6, a mistake by far more."""

SEED = 0
"""Of the chunks' cuts, and of the draws from measured calls."""

_PUSH_CUTS = 40

Say = Callable[[str], None]


@dataclass(frozen=True)
class Settings:
    """How the methods are run.

    Args:
        window_s: what a BiLSTM that is run again and again sees, in seconds.
        hops: samples between two of its runs.
        lookaheads: (lookahead, chunk) of the BiLSTM's streams, in samples.
        rounds: times that the stream's step and the TCN's window take turns in each session.
        paced_calls: calls of each of the two that are made at the sensor's real pace.
        budget_lookaheads: of the budget's curve, in samples.
        budget_chunks: the same.
        max_delay_s: the longest delay among which the curve's best point is marked.
    """

    window_s: float = 10.0
    hops: tuple[int, ...] = (5, 25, 50)
    lookaheads: tuple[tuple[int, int], ...] = ((5, 5), (25, 25), (75, 25))
    rounds: int = 40
    paced_calls: int = 250
    budget_lookaheads: tuple[int, ...] = (0, 5, 25, 50, 100)
    budget_chunks: tuple[int, ...] = (1, 25)
    max_delay_s: float = 1.0


@dataclass(frozen=True)
class Models:
    """The models under comparison; `keras_predict` is Keras' own `predict` on the model that `stream` came from.

    `ahead` are streams of the BiLSTM with a bounded lookahead.
    """

    stream: runtime.Model
    tcn: runtime.OfflineModel
    bilstm: runtime.OfflineModel
    keras_predict: Predict
    ahead: Sequence[runtime.Model] = ()

    @property
    def window(self) -> int:
        """The samples that the TCN needs for one label: its receptive field and the sample itself."""
        past, _ = self.stream.receptive_field
        if past is None:
            raise ConfigError(
                f"model {self.stream.name!r}: expected a finite receptive field, got one without bound; "
                "compare a TCN, a recurrent model has no window to run again"
            )
        return past + 1


def load_keras(path: Path) -> Any:
    """Load a model that `edgeseq.train.train_tagger` wrote."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    import edgeseq.builders  # noqa: F401  Keras finds their layers by registration

    with warnings.catch_warnings():
        # Keras loads through h5py, which hands TensorFlow an __array__ that numpy 2 finds too old.
        warnings.filterwarnings("ignore", "__array__ implementation doesn't accept a copy", DeprecationWarning)
        return keras.saving.load_model(path, compile=False)


def load_models(folder: Path, settings: Settings) -> Models:
    """Open tcn.stream.onnx, tcn.onnx, bilstm.onnx and tcn.keras, and write the BiLSTM's streams beside them."""
    from edgeseq.export import streamify

    ahead = []
    for lookahead, chunk in settings.lookaheads:
        path = folder / f"bilstm_{lookahead}_{chunk}.stream.onnx"
        streamify(folder / "bilstm.onnx", path, lookahead=lookahead, chunk=chunk)
        ahead.append(runtime.load(path))
    keras_model = load_keras(folder / "tcn.keras")

    def keras_predict(window: Signal) -> Outputs:
        outputs: Outputs = keras_model.predict(window[None], verbose=0)[0]
        return outputs

    return Models(
        runtime.load(folder / "tcn.stream.onnx"),
        runtime.load_offline(folder / "tcn.onnx"),
        runtime.load_offline(folder / "bilstm.onnx"),
        keras_predict,
        ahead,
    )


@dataclass(frozen=True, eq=False)
class Method:
    """One way of labelling, replayed over every session.

    `measured_s` holds the compute of each call that was really made, and `yields` the samples that came with each; for
    a method that was run on a sample of the data they are fewer than the calls in `replays`.
    """

    key: str
    name: str
    how: str
    replays: Sequence[Replay]
    measured_s: Floats
    yields: Ints


def check_exact(models: Models, sessions: Sessions, stepped: Sequence[Outputs]) -> dict[str, Any]:
    """Compare the stream with its offline model on whole sessions: sample by sample, and in chunks of random sizes.

    Shapes:
        stepped: the outputs (T_i, K) of `Stream.step` on each session.

    Raises:
        VerificationError: a difference above `TOLERANCE`.
    """
    rng = np.random.default_rng(SEED)
    stream = models.stream.stream("chunks")
    worst = {"step": 0.0, "chunks": 0.0}
    for number, (signal, steps) in enumerate(zip(sessions.signals, stepped, strict=True)):
        whole = models.tcn.run(signal)
        cuts = np.sort(rng.integers(0, len(signal) + 1, _PUSH_CUTS))
        stream.reset()
        pushed = np.concatenate([stream.push(chunk) for chunk in np.split(signal, cuts)])
        for way, got in (("step", steps), ("chunks", pushed)):
            difference = float(np.abs(got - whole).max())
            worst[way] = max(worst[way], difference)
            if not difference <= TOLERANCE:
                raise VerificationError(
                    f"held-out session {number}: expected the stream ({way}) to equal the offline model to "
                    f"{TOLERANCE:g}, got {difference:.3g}; do not use these models, and report it with both files"
                )
    samples = sum(map(len, sessions.signals))
    return {"tolerance": TOLERANCE, "samples": samples} | {f"max_difference_{way}": d for way, d in worst.items()}


def replay_all(
    models: Models, sessions: Sessions, settings: Settings, say: Say
) -> tuple[list[Method], Interleaved, dict[str, Any]]:
    """Replay every method over every session; returns the methods, the interleaved run, and the check of exactness."""
    replay_stream(models.stream, sessions.signals[0][:200])  # first calls reserve memory
    models.bilstm.run(sessions.signals[0])
    streamed = [replay_stream(models.stream, signal) for signal in sessions.signals]
    steps = [replay for replay, _ in streamed]
    exact = check_exact(models, sessions, [outputs for _, outputs in streamed])
    say(f"streamed {exact['samples']:,} samples, equal to the offline model to {exact['max_difference_step']:.1g}")
    taking_turns = interleave(
        models.stream,
        {"window": Way(models.tcn.run, BLOCK), "keras": Way(models.keras_predict, 1)},
        sessions.signals,
        window=models.window,
        rounds=settings.rounds,
    )
    for name, difference in taking_turns.differences.items():
        if not difference <= TOLERANCE:
            raise VerificationError(
                f"{name}: expected the outputs of the stream to {TOLERANCE:g}, got a difference of {difference:.3g}"
            )
    say("took turns with Keras predict and ONNX Runtime on the same window")
    methods = [_full("stream", "Streaming TCN", "Stream.step: one sample in, one label out", steps)]
    methods += _sampled(steps, taking_turns, models.window)
    methods += _bilstm(models, sessions, settings, say)
    return methods, taking_turns, exact


def _full(key: str, name: str, how: str, replays: Sequence[Replay]) -> Method:
    measured = np.concatenate([replay.compute_s for replay in replays])
    yields = np.concatenate([np.diff(replay.ends, prepend=0) for replay in replays])
    return Method(key, name, how, replays, measured[yields > 0], yields[yields > 0])


def _sampled(steps: Sequence[Replay], taking_turns: Interleaved, window: int) -> list[Method]:
    rng = np.random.default_rng(SEED)
    names = {
        "window": (
            "TCN window, ONNX Runtime",
            f"the offline file on the newest {window} samples, again at every sample",
        ),
        "keras": ("TCN window, Keras predict", f"model.predict on the newest {window} samples, again at every sample"),
    }
    methods = []
    for key, (name, how) in names.items():
        watch = taking_turns.watches[key]
        replays = [resampled(replay, watch, rng) for replay in steps]
        ones = np.ones(len(watch.wall_ns), np.int64)
        methods.append(Method(key, name, how, replays, watch.compute_s, ones))
    return methods


def _bilstm(models: Models, sessions: Sessions, settings: Settings, say: Say) -> list[Method]:
    window = round(settings.window_s * sessions.rate_hz)
    methods = []
    for hop in settings.hops:
        replays = [replay_window(models.bilstm.run, signal, window=window, hop=hop) for signal in sessions.signals]
        name = f"BiLSTM window, every {hop / sessions.rate_hz:g} s"
        how = f"the newest {settings.window_s:g} s again after every {hop} samples, which it labels"
        methods.append(_full(f"bilstm_{hop}", name, how, replays))
        say(f"ran the BiLSTM's window every {hop} samples")
    methods += [_ahead(model, sessions, say) for model in models.ahead]
    whole = [
        replay_window(models.bilstm.run, signal, window=len(signal), hop=len(signal)) for signal in sessions.signals
    ]
    return [*methods, _full("bilstm_offline", "BiLSTM, whole session", "one run when the session has ended", whole)]


def _ahead(model: runtime.Model, sessions: Sessions, say: Say) -> Method:
    bounded = model.description.lookahead
    assert bounded is not None
    late = f"{model.lookahead / sessions.rate_hz:.2g} s"
    replays = [replay_blocks(model, signal) for signal in sessions.signals]
    say(f"streamed the BiLSTM with a lookahead of {bounded.steps} samples, in blocks of {bounded.chunk}")
    how = (
        f"Stream.step with a lookahead of {bounded.steps} samples; labels come in blocks of {bounded.chunk}, "
        f"{late} late at most"
    )
    return _full(f"ahead_{bounded.steps}_{bounded.chunk}", f"BiLSTM stream, {late} late", how, replays)
