"""Windows of sessions for training: random and augmented ones to learn from, side by side ones to validate on.

Invariant: every window lies within one session and is full, so no step needs a mask.
"""

from __future__ import annotations

import keras
import numpy as np
from numpy.typing import NDArray

from edgeseq.recipes import Recipe
from edgeseq.sessions import Augmentation, Labels, Sessions, Signal

__all__ = ["Windows", "tiles"]


class Windows(keras.utils.PyDataset):  # type: ignore[misc]  # Keras ships no types
    """Random windows of sessions, standardised per channel; window, place and augmentation follow from the seed.

    Shapes:
        a batch is (B, T, C) float32 and (B, T) int32. Every window is full, so no step needs a mask.
    """

    def __init__(
        self, sessions: Sessions, recipe: Recipe, *, augmentation: Augmentation, mean: Signal, std: Signal, seed: int
    ) -> None:
        super().__init__()
        self._sessions, self._recipe, self._augmentation = sessions, recipe, augmentation
        self._mean, self._std = mean, std
        self._seed, self._epoch = seed, 0
        places = np.array([len(signal) - recipe.window_steps + 1 for signal in sessions.signals])
        self._chances = places / places.sum()

    def __len__(self) -> int:
        return self._recipe.steps_per_epoch

    def __getitem__(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        rng = np.random.default_rng([self._seed, self._epoch, index])
        windows = [self._window(rng) for _ in range(self._recipe.batch_size)]
        return np.stack([signal for signal, _ in windows]), np.stack([labels for _, labels in windows])

    def on_epoch_end(self) -> None:
        """Draw other windows in the next epoch."""
        self._epoch += 1

    def _window(self, rng: np.random.Generator) -> tuple[Signal, Labels]:
        session = rng.choice(len(self._chances), p=self._chances)
        signal, labels = self._sessions.signals[session], self._sessions.labels[session]
        start = rng.integers(len(signal) - self._recipe.window_steps + 1)
        window = slice(start, start + self._recipe.window_steps)
        changed = self._augmentation.apply(signal[window], self._std, rng)
        return (changed - self._mean) / self._std, labels[window]


def tiles(sessions: Sessions, steps: int, mean: Signal, std: Signal) -> tuple[Signal, Labels]:
    """Cut sessions into standardised windows side by side, (N, steps, C) and (N, steps); a remainder is left out."""
    signals, labels = [], []
    for signal, label in zip(sessions.signals, sessions.labels, strict=True):
        count = len(signal) // steps
        signals.append(signal[: count * steps].reshape(count, steps, -1))
        labels.append(label[: count * steps].reshape(count, steps))
    return (np.concatenate(signals) - mean) / std, np.concatenate(labels)
