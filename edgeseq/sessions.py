"""Labelled recordings: signals with one label per time step, and the group that each belongs to.

Owns `Sessions`, its file format, the split by group, and `Augmentation`, the random changes of a window that leave
its labels true. numpy only: no Keras, no data source.

Refuses signals, labels and groups that do not fit together, values that are not finite, and any split that cuts
through a group: windows of one person on both sides of a split measure memory, not skill.

Invariant: every step of every session has exactly one label, and `0 <= label < len(label_names)`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeseq.errors import ConfigError

__all__ = ["Augmentation", "Sessions"]

Signal = NDArray[np.float32]
Labels = NDArray[np.int32]

_FILE_KEYS = ("signals", "labels", "lengths", "groups", "feature_names", "label_names", "rate_hz")


@dataclass(frozen=True, eq=False)
class Sessions:
    """Recordings of one sensor set, each with a label per time step and the group it belongs to.

    Shapes:
        signals[i] (T_i, C) float32; labels[i] (T_i,) int32; T_i may differ between sessions.

    Units:
        signals in the sensors' own units, the same in every session; `rate_hz` in samples per second.

    Args:
        signals: one array per session.
        labels: one array per session; a value is an index into `label_names`.
        groups: one number per session, for example its subject. A split never cuts through a group.
        feature_names: the names of the C channels, in order.
        label_names: the names of the K labels, in order.
        rate_hz: sampling rate, the same in every session.

    Raises:
        ConfigError: the parts do not fit together; the message names the session.

    Example:
        >>> import numpy as np
        >>> walk, rest = np.ones((50, 2), np.float32), np.zeros((30, 2), np.float32)
        >>> sessions = Sessions(
        ...     signals=(walk, rest), labels=(np.ones(50, np.int32), np.zeros(30, np.int32)), groups=(1, 2),
        ...     feature_names=("x", "y"), label_names=("rest", "walk"), rate_hz=10.0)
        >>> sessions.duration_s, sessions.majority_rate
        (8.0, 0.625)
        >>> train, held_out = sessions.split([2])
        >>> train.groups, held_out.groups
        ((1,), (2,))
    """

    signals: tuple[Signal, ...]
    labels: tuple[Labels, ...]
    groups: tuple[int, ...]
    feature_names: tuple[str, ...]
    label_names: tuple[str, ...]
    rate_hz: float

    def __post_init__(self) -> None:
        # Lists are as good as tuples to a caller; a frozen value holds tuples.
        for name in ("signals", "labels", "feature_names", "label_names"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "groups", _as_groups(self.groups))
        object.__setattr__(self, "rate_hz", float(self.rate_hz))
        self._check_lists()
        for i, (signal, labels) in enumerate(zip(self.signals, self.labels, strict=True)):
            _check_session(f"session {i}", signal, labels, (len(self.feature_names), len(self.label_names)))

    def _check_lists(self) -> None:
        counts = len(self.signals), len(self.labels), len(self.groups)
        if len(set(counts)) != 1 or counts[0] == 0:
            raise ConfigError(
                f"sessions: expected as many signals as labels and groups, at least one, got {counts[0]} signals, "
                f"{counts[1]} labels, {counts[2]} groups; give one of each per session"
            )
        for what, names in (("feature_names", self.feature_names), ("label_names", self.label_names)):
            if not names or len(set(names)) != len(names) or not all(isinstance(name, str) and name for name in names):
                raise ConfigError(
                    f"sessions: expected {what} to be different, non-empty strings, at least one, got {names!r}; "
                    "name every channel and every label once"
                )
        if not (np.isfinite(self.rate_hz) and self.rate_hz > 0):
            raise ConfigError(
                f"sessions: expected rate_hz > 0, got {self.rate_hz}; give the sampling rate in samples per second"
            )

    def __len__(self) -> int:
        return len(self.signals)

    @property
    def duration_s(self) -> float:
        """Total length of all sessions, in seconds."""
        return sum(len(signal) for signal in self.signals) / self.rate_hz

    @property
    def majority_rate(self) -> float:
        """Accuracy of always answering the most frequent label of these sessions: what a model must beat."""
        counts = np.bincount(np.concatenate(self.labels), minlength=len(self.label_names))
        return float(counts.max() / counts.sum())

    def channel_statistics(self) -> tuple[Signal, Signal]:
        """Return the mean and the standard deviation of each channel over all steps.

        Shapes:
            two of (C,) float32, in the signals' units. A constant channel gets a deviation of 1, so that dividing by
            it is safe.

        Example:
            >>> import numpy as np
            >>> x = np.array([[0.0, 5.0], [2.0, 5.0]], np.float32)
            >>> sessions = Sessions((x,), (np.zeros(2, np.int32),), (1,), ("a", "b"), ("on",), 1.0)
            >>> mean, std = sessions.channel_statistics()
            >>> mean.tolist(), std.tolist()
            ([1.0, 5.0], [1.0, 1.0])
        """
        steps = np.concatenate(self.signals).astype(np.float64)
        std = steps.std(axis=0)
        return steps.mean(axis=0).astype(np.float32), np.where(std > 0, std, 1.0).astype(np.float32)

    def split(self, held_out_groups: Collection[int]) -> tuple[Sessions, Sessions]:
        """Split by group into (train, held out). No group is on both sides.

        Raises:
            ConfigError: a group that no session has, or a side that would be empty.
        """
        held_out = set(_as_groups(held_out_groups))
        known = set(self.groups)
        if not held_out or not held_out < known:
            raise ConfigError(
                f"split: expected some, not all, of the groups {sorted(known)} to be held out, "
                f"got {sorted(held_out)}; hold out groups that exist and leave at least one to train on"
            )
        return self._only(known - held_out), self._only(held_out)

    def _only(self, groups: set[int]) -> Sessions:
        kept = [i for i, group in enumerate(self.groups) if group in groups]
        return Sessions(
            tuple(self.signals[i] for i in kept),
            tuple(self.labels[i] for i in kept),
            tuple(self.groups[i] for i in kept),
            self.feature_names,
            self.label_names,
            self.rate_hz,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one `.npz` without pickle; `load` reads it back equal.

        Bring your own data by writing the same keys with `numpy.savez`, sessions laid end to end, N steps in all:

        ============= ======================= =================================================
        key           array                   meaning
        ============= ======================= =================================================
        signals       (N, C) float32          all sessions, one after the other
        labels        (N,) int32              an index into label_names for every step
        lengths       (S,) int64              steps of each session; their sum is N
        groups        (S,) int64              the subject (or device, or site) of each session
        feature_names (C,) str                names of the channels
        label_names   (K,) str                names of the labels
        rate_hz       () float64              samples per second
        ============= ======================= =================================================

        Raises:
            ConfigError: `path` does not end in `.npz`.
        """
        if Path(path).suffix != ".npz":
            raise ConfigError(f"sessions: expected a path that ends in .npz, got {os.fspath(path)!r}; add the suffix")
        np.savez_compressed(
            path,
            signals=np.concatenate(self.signals),
            labels=np.concatenate(self.labels),
            lengths=np.array([len(signal) for signal in self.signals], np.int64),
            groups=np.array(self.groups, np.int64),
            feature_names=np.array(self.feature_names),
            label_names=np.array(self.label_names),
            rate_hz=np.float64(self.rate_hz),
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Sessions:
        """Read a file that `save` wrote, or one of your own with the same keys.

        Raises:
            ConfigError: keys are missing, `lengths` does not add up, or the parts do not fit together.
            FileNotFoundError: there is no such file.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = {key: file[key] for key in _FILE_KEYS}
        except (KeyError, ValueError) as error:
            raise ConfigError(
                f"sessions file {os.fspath(path)!r}: expected an .npz without pickled objects and with the keys "
                f"{', '.join(_FILE_KEYS)}, got: {error}; see Sessions.save for the format"
            ) from error
        lengths, steps = arrays["lengths"], len(arrays["signals"])
        if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 1).any() or lengths.sum() != steps:
            raise ConfigError(
                f"sessions file {os.fspath(path)!r}: expected lengths to be integers of at least 1 that add up to the "
                f"{steps} steps of signals, got {lengths.tolist()}; write the number of steps of each session"
            )
        if len(arrays["labels"]) != steps:
            raise ConfigError(
                f"sessions file {os.fspath(path)!r}: expected a label for each of the {steps} steps of signals, "
                f"got {len(arrays['labels'])}; write one label per step"
            )
        cuts = np.cumsum(lengths)[:-1]
        return cls(
            tuple(np.split(arrays["signals"], cuts)),
            tuple(np.split(arrays["labels"], cuts)),
            arrays["groups"].tolist(),
            tuple(map(str, arrays["feature_names"])),
            tuple(map(str, arrays["label_names"])),
            float(arrays["rate_hz"]),
        )


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a window that leave its labels true: what another person, or another day, might look like.

    Each window draws its own changes, and all its steps share them; only the noise differs from step to step.

    Args:
        noise: white noise on every channel, in standard deviations of that channel.
        scale: spread of one random gain per triad, and per channel outside of them, as the deviation of its logarithm;
            0.1 is about 10 %. It multiplies raw values, so it is for channels whose zero means that nothing happens.
        triads: channels that are the x, y, z of one vector in one shared sensor frame, such as an accelerometer and a
            gyroscope: ((0, 1, 2), (3, 4, 5)).
        rotation_deg: spread of the angle by which the sensor frame, and so every triad, is turned around a random
            axis: a sensor is never worn twice in the same way.
        mirror: a sign per channel that turns a recording into its mirror image, applied to half of the windows; None
            for data without such a symmetry.

    Raises:
        ConfigError: a negative spread, a mirror of values other than 1 and -1, or a rotation without triads.

    Example:
        >>> import numpy as np
        >>> window = np.ones((4, 3), np.float32)
        >>> turned = Augmentation(noise=0, triads=((0, 1, 2),), rotation_deg=20).apply(
        ...     window, np.ones(3, np.float32), np.random.default_rng(0))
        >>> bool(np.allclose(np.linalg.norm(turned, axis=1), 3**0.5)), bool(np.allclose(turned, window))
        (True, False)

    Source: Um et al., "Data augmentation of wearable sensor data for Parkinson's disease monitoring using
    convolutional neural networks", 2017, https://arxiv.org/abs/1706.00527 (rotation, scaling, jittering).
    """

    noise: float = 0.05
    scale: float = 0.0
    triads: tuple[tuple[int, int, int], ...] = ()
    rotation_deg: float = 0.0
    mirror: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("noise", "scale", "rotation_deg"):
            value = getattr(self, name)
            if not (np.isfinite(value) and value >= 0):
                raise ConfigError(f"augmentation: expected {name} >= 0, got {value}; give 0 to turn it off")
        if self.rotation_deg and not self.triads:
            raise ConfigError(
                f"augmentation: rotation_deg={self.rotation_deg} expected triads, got none; name the x, y, z channels "
                "of each vector, for example triads=((0, 1, 2), (3, 4, 5))"
            )
        if self.mirror is not None and not set(self.mirror) <= {1, -1}:
            raise ConfigError(f"augmentation: expected mirror of 1 and -1, got {self.mirror}; give a sign per channel")

    def check(self, n_channels: int) -> None:
        """Raise `ConfigError` unless the channels that it names exist in signals of `n_channels` channels."""
        used = [channel for triad in self.triads for channel in triad]
        if len(set(used)) != len(used) or not set(used) <= set(range(n_channels)):
            raise ConfigError(
                f"augmentation: expected triads of different channels below {n_channels}, got {self.triads}; "
                "give each channel at most once"
            )
        if self.mirror is not None and len(self.mirror) != n_channels:
            raise ConfigError(
                f"augmentation: expected {n_channels} signs in mirror, one per channel, got {len(self.mirror)}; "
                "give 1 for a channel that the mirror leaves as it is"
            )

    def apply(self, window: Signal, std: Signal, rng: np.random.Generator) -> Signal:
        """Return a copy of a window with another frame, other gains and noise.

        Shapes:
            (T, C), (C,) -> (T, C) float32, in the units of the window. `std` is the deviation of each channel.
        """
        n_channels = window.shape[1]
        gain = np.exp(self.scale * rng.standard_normal(n_channels))
        mix = np.eye(n_channels)
        rotation = _rotation(np.deg2rad(self.rotation_deg) * rng.standard_normal(), rng)
        for triad in self.triads:
            mix[np.ix_(triad, triad)] = rotation
            gain[list(triad)] = gain[triad[0]]
        if self.mirror is not None and rng.random() < 0.5:
            gain = gain * np.array(self.mirror)
        changed: NDArray[np.float64] = (window * gain) @ mix.T
        if self.noise:
            changed += self.noise * std * rng.standard_normal(window.shape)
        return np.asarray(changed, np.float32)


def _rotation(angle_rad: float, rng: np.random.Generator) -> NDArray[np.float64]:
    """Return the (3, 3) rotation by an angle around a random axis (Rodrigues' formula)."""
    x, y, z = (axis := rng.standard_normal(3)) / np.linalg.norm(axis)
    cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.array(np.eye(3) + np.sin(angle_rad) * cross + (1 - np.cos(angle_rad)) * cross @ cross)


def _as_groups(groups: Any) -> tuple[int, ...]:
    if not all(isinstance(group, int | np.integer) and not isinstance(group, bool) for group in groups):
        raise ConfigError(
            f"sessions: expected groups to be integers, got {list(groups)!r}; number the subjects, for example 1, 2, 3"
        )
    return tuple(int(group) for group in groups)


def _check_session(where: str, signal: Any, labels: Any, counts: Sequence[int]) -> None:
    n_channels, n_labels = counts
    if not isinstance(signal, np.ndarray) or signal.dtype != np.float32 or signal.ndim != 2:
        raise ConfigError(
            f"{where}, signal: expected float32 of shape (T, {n_channels}), got {_what(signal)}; "
            "cast with x.astype(np.float32)"
        )
    if len(signal) == 0 or signal.shape[1] != n_channels:
        raise ConfigError(
            f"{where}, signal: expected shape (T, {n_channels}) with T >= 1, one column per feature name, "
            f"got {signal.shape}; time is the first axis"
        )
    if not np.isfinite(signal).all():
        step, channel = np.argwhere(~np.isfinite(signal))[0]
        raise ConfigError(
            f"{where}, signal: expected finite values, got {signal[step, channel]} at step {step}, channel {channel}; "
            "cut the recording there or fill the gap yourself"
        )
    if not isinstance(labels, np.ndarray) or labels.dtype != np.int32 or labels.shape != (len(signal),):
        raise ConfigError(
            f"{where}, labels: expected int32 of shape ({len(signal)},), one per time step, got {_what(labels)}; "
            "cast with y.astype(np.int32)"
        )
    if labels.min() < 0 or labels.max() >= n_labels:
        raise ConfigError(
            f"{where}, labels: expected values from 0 to {n_labels - 1}, one per label name, "
            f"got {labels.min()} to {labels.max()}; give a name to every label"
        )


def _what(value: object) -> str:
    return f"{value.dtype} {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
