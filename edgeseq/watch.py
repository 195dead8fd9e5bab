"""The smartwatch recordings that the demos train on, and the sessions spliced from them.

Owns `load_recordings`, `splice`, the held-out subjects and the augmentation that fits this sensor. A recording holds
one exercise and has one label; a session joins pieces of many, so that every time step has a label and the labels
change, as they do on a wrist.

Refuses a range of bout lengths into which not every recording can be cut, and a splice of no recordings.

Invariant: splicing loses, repeats and changes no sample. The sessions of a subject hold the samples of that subject's
recordings, in order within each bout.

Source: Burns et al., "Shoulder physiotherapy exercise recognition: machine learning the inertial signals from a
smartwatch", 2018, https://arxiv.org/abs/1802.01489. The seglearn package ships part of the data: 10 subjects,
7 exercises, both sides. The README of https://github.com/dmbee/SPAR-dataset states the units.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from edgeseq.errors import ConfigError, MissingDependencyError
from edgeseq.sessions import Augmentation, Sessions, Signal

__all__ = [
    "AUGMENTATION",
    "FEATURE_UNITS",
    "HELD_OUT_SUBJECTS",
    "RATE_HZ",
    "Recording",
    "Recordings",
    "alternating_order",
    "load_recordings",
    "splice",
]

RATE_HZ = 50.0
FEATURE_UNITS = ("g", "g", "g", "rad/s", "rad/s", "rad/s")

# Chosen before any model was trained; they are only ever scored, never tuned on.
HELD_OUT_SUBJECTS = (8, 9, 10)

# Accelerometer and gyroscope share one frame. Between the sides its x axis turns round: in every exercise with a
# hanging arm the mean of ax is near +1 g on the left and near -1 g on the right, and those of ay and az agree.
# Mirroring the body flips x: the x of the acceleration, an ordinary vector, and the y and z of the turn rate, an axial
# one. A left arm becomes the right arm of another person.
AUGMENTATION = Augmentation(
    noise=0.05, scale=0.1, triads=((0, 1, 2), (3, 4, 5)), rotation_deg=15.0, mirror=(-1, 1, 1, 1, -1, -1)
)


@dataclass(frozen=True, eq=False)
class Recording:
    """One exercise of one subject on one side: signal (T, C) float32 at `RATE_HZ`, and its one label."""

    signal: Signal
    label: int
    subject: int
    side: int


@dataclass(frozen=True, eq=False)
class Recordings:
    """Recordings that share their channels and their label names."""

    items: tuple[Recording, ...]
    feature_names: tuple[str, ...]
    label_names: tuple[str, ...]
    rate_hz: float


def load_recordings() -> Recordings:
    """Load the 140 recordings: 10 subjects (1 to 10), 7 shoulder exercises, 2 sides (1 right, 0 left), 81 minutes.

    Shapes:
        every signal (T, 6), cast from float64 to float32, T from 947 to 2618: ax, ay, az, wx, wy, wz.

    Units:
        ax, ay, az in g; wx, wy, wz in rad/s; 50 samples per second.

    Raises:
        MissingDependencyError: seglearn, or the pandas that it needs, is not installed.

    Example:
        >>> recordings = load_recordings()
        >>> len(recordings.items), recordings.feature_names, recordings.label_names
        (140, ('ax', 'ay', 'az', 'wx', 'wy', 'wz'), ('PEN', 'ABD', 'FEL', 'IR', 'ER', 'TRAP', 'ROW'))
    """
    try:
        from seglearn.datasets import load_watch
    except ImportError as error:
        raise MissingDependencyError(
            f"the smartwatch recordings: expected the packages seglearn and pandas, got: {error}; "
            'run pip install "edgeseq[demos]"'
        ) from error
    data = load_watch()
    columns = zip(data["X"], data["y"], data["subject"], data["side"], strict=True)
    return Recordings(
        tuple(Recording(x.astype(np.float32), int(y), int(subject), int(side)) for x, y, subject, side in columns),
        tuple(data["X_labels"]),
        tuple(data["y_labels"]),
        RATE_HZ,
    )


def splice(recordings: Recordings, *, seed: int, bout_s: tuple[float, float] = (6.0, 15.0)) -> Sessions:
    """Cut recordings into bouts and join the bouts of each subject and side, in random order, into one session.

    One wrist wears one watch, so a session never mixes the sides of a subject. Neighbouring bouts differ in label
    wherever the counts allow it. The group of a session is its subject, so a split keeps both sides together. The
    joins are abrupt: a real change of exercise has a pause that these recordings do not hold.

    Shapes:
        one session per (subject, side), in ascending order; (T_i, C) with T_i the sum of its recordings' lengths.

    Args:
        recordings: what to splice; at least one.
        seed: the same seed gives the same sessions.
        bout_s: shortest and longest bout, in seconds. A recording is cut at random lengths in this range; a remainder
            too long for one bout is cut in half. A recording shorter than the shortest bout is one bout as it is.

    Raises:
        ConfigError: no recordings, or a range of bouts into which not every length can be cut.

    Example:
        >>> sessions = splice(load_recordings(), seed=0)
        >>> len(sessions), sorted(set(sessions.groups)), round(sessions.duration_s / 60)
        (20, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 81)
    """
    shortest, longest = (round(seconds * recordings.rate_hz) for seconds in bout_s)
    if shortest < 1 or 2 * shortest > longest:
        raise ConfigError(
            f"splice: expected bout_s = (shortest, longest) in seconds, the shortest at least one sample and the "
            f"longest at least twice the shortest, so that every length can be cut, got {bout_s}; "
            "give for example (6.0, 15.0)"
        )
    rng = np.random.default_rng(seed)
    bouts_of: defaultdict[tuple[int, int], list[tuple[int, Signal]]] = defaultdict(list)
    for recording in recordings.items:
        lengths = _bout_lengths(len(recording.signal), shortest, longest, rng)
        pieces = np.split(recording.signal, np.cumsum(lengths)[:-1])
        bouts_of[recording.subject, recording.side] += [(recording.label, piece) for piece in pieces]

    signals, labels, groups = [], [], []
    for (subject, _), bouts in sorted(bouts_of.items(), key=lambda item: item[0]):
        ordered = [bouts[i] for i in alternating_order([label for label, _ in bouts], rng)]
        signals.append(np.concatenate([piece for _, piece in ordered]))
        labels.append(np.concatenate([np.full(len(piece), label, np.int32) for label, piece in ordered]))
        groups.append(subject)
    return Sessions(
        tuple(signals),
        tuple(labels),
        tuple(groups),
        recordings.feature_names,
        recordings.label_names,
        recordings.rate_hz,
    )


def _bout_lengths(total: int, shortest: int, longest: int, rng: np.random.Generator) -> list[int]:
    """Return random lengths in [shortest, longest] that add up to `total`; one shorter length if `total` is."""
    lengths = []
    # What is left after a bout must still hold a shortest bout.
    while total >= longest + shortest:
        lengths.append(int(rng.integers(shortest, longest + 1)))
        total -= lengths[-1]
    if total > longest:
        lengths.append(total // 2)
        total -= lengths[-1]
    return [*lengths, total]


def alternating_order(labels: Sequence[int], rng: np.random.Generator) -> list[int]:
    """Return a random order of the positions of `labels` with as few equal neighbours as the counts allow.

    Example:
        >>> order = alternating_order([0, 0, 0, 1, 1], np.random.default_rng(0))
        >>> [[0, 0, 0, 1, 1][i] for i in order]
        [0, 1, 0, 1, 0]
    """
    waiting = [int(i) for i in rng.permutation(len(labels))]
    order: list[int] = []
    while waiting:
        last = labels[order[-1]] if order else None
        counts = Counter(labels[i] for i in waiting)
        # A label that fills more than half of the remaining places would end up beside itself if it waited.
        pressing = {label for label, count in counts.items() if count > len(waiting) // 2}
        candidates = [i for i in waiting if labels[i] != last] or waiting
        chosen = next((i for i in candidates if labels[i] in pressing), candidates[0])
        order.append(chosen)
        waiting.remove(chosen)
    return order
