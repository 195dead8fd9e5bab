"""Windows for training: pieces of one session with their labels, drawn again from the same seed."""

from __future__ import annotations

import numpy as np

from edgeseq.builders import tcn_tagger
from edgeseq.recipes import Recipe
from edgeseq.sessions import Augmentation, Sessions
from edgeseq.windows import Windows, tiles

RECIPE = Recipe(tcn_tagger, {}, learning_rate=0.1, window_steps=24, batch_size=8, steps_per_epoch=20)
MEAN, STD = np.array([1000.0, 0.0], np.float32), np.array([20.0, 1.0], np.float32)


def sessions() -> Sessions:
    """Two sessions whose first channel is 1000 + 40 · label."""
    rng = np.random.default_rng(0)
    labels = tuple((np.sin(np.arange(steps) / 7) > 0).astype(np.int32) for steps in (60, 83))
    signals = tuple(np.stack([on * 40.0 + 1000.0, rng.normal(size=len(on))], 1).astype(np.float32) for on in labels)
    return Sessions(signals, labels, (1, 2), ("level", "noise"), ("off", "on"), 20.0)


def windows(seed: int = 0, noise: float = 0.0) -> Windows:
    return Windows(sessions(), RECIPE, augmentation=Augmentation(noise=noise), mean=MEAN, std=STD, seed=seed)


def test_windows_are_standardised_pieces_with_their_labels() -> None:
    signal, labels = windows()[0]
    assert signal.shape == (8, 24, 2)
    assert labels.shape == (8, 24)
    assert (signal.dtype, labels.dtype) == (np.dtype("float32"), np.dtype("int32"))
    np.testing.assert_array_equal(signal[..., 0], labels * 2.0)


def test_windows_follow_the_seed_the_epoch_and_the_index() -> None:
    first, second = windows(noise=0.1), windows(noise=0.1)
    np.testing.assert_array_equal(first[3][0], second[3][0])
    assert not np.array_equal(first[3][0], first[4][0])
    assert not np.array_equal(first[3][0], windows(1, noise=0.1)[3][0])
    second.on_epoch_end()
    assert not np.array_equal(first[3][0], second[3][0])


def test_tiles_stand_side_by_side_and_leave_the_remainder() -> None:
    data = sessions()
    signal, labels = tiles(data, 25, MEAN, STD)
    assert signal.shape == (2 + 3, 25, 2)
    np.testing.assert_array_equal(labels[2:].ravel(), data.labels[1][:75])
    np.testing.assert_allclose(signal[:2].reshape(-1, 2), (data.signals[0][:50] - MEAN) / STD, rtol=1e-6)
