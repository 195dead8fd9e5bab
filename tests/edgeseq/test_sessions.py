from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeseq.errors import ConfigError
from edgeseq.sessions import Augmentation, Sessions

RNG = np.random.default_rng(0)


def signal(steps: int, channels: int = 2) -> np.ndarray[Any, np.dtype[np.float32]]:
    return RNG.standard_normal((steps, channels)).astype(np.float32)


def valid() -> dict[str, Any]:
    return {
        "signals": (signal(5), signal(3), signal(4)),
        "labels": tuple(np.array(labels, np.int32) for labels in ([0, 0, 1, 1, 2], [2, 2, 2], [1, 0, 2, 2])),
        "groups": (4, 7, 4),
        "feature_names": ("x", "y"),
        "label_names": ("a", "b", "c"),
        "rate_hz": 10.0,
    }


def test_knows_its_length_and_majority() -> None:
    sessions = Sessions(**valid())
    assert len(sessions) == 3
    assert sessions.duration_s == pytest.approx(1.2)
    assert sessions.majority_rate == pytest.approx(6 / 12)


def test_lists_become_tuples() -> None:
    parts = valid()
    lists: dict[str, Any] = {name: list(value) if isinstance(value, tuple) else value for name, value in parts.items()}
    sessions = Sessions(**lists)
    assert isinstance(sessions.signals, tuple)
    assert sessions.groups == (4, 7, 4)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"groups": (1, 2)}, "3 signals, 3 labels, 2 groups"),
        ({"signals": (), "labels": (), "groups": ()}, "at least one"),
        ({"groups": (1.5, 2, 3)}, "groups to be integers"),
        ({"rate_hz": 0.0}, "rate_hz > 0"),
        ({"rate_hz": float("nan")}, "rate_hz > 0"),
        ({"label_names": ("a", "a", "c")}, "label_names to be different"),
        ({"feature_names": ("x", "")}, "non-empty"),
        ({"feature_names": ("x", "y", "z")}, "one column per feature name"),
        ({"label_names": ("a", "b")}, "got 0 to 2"),
    ],
)
def test_refuses_parts_that_do_not_fit(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Sessions(**(valid() | change))


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.zeros((3, 2)), "session 1, signal: expected float32.*got float64"),
        (np.zeros(3, np.float32), r"got float32 \(3,\)"),
        (np.zeros((0, 2), np.float32), "T >= 1"),
        ([[0.0, 1.0]], "got list"),
        (np.array([[0, 1], [2, np.inf], [3, 4]], np.float32), "got inf at step 1, channel 1"),
    ],
)
def test_refuses_a_bad_signal_and_names_it(bad: Any, words: str) -> None:
    parts = valid()
    parts["signals"] = (parts["signals"][0], bad, parts["signals"][2])
    with pytest.raises(ConfigError, match=words):
        Sessions(**parts)


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        (np.zeros(3, np.int64), "session 1, labels: expected int32.*got int64"),
        (np.zeros(2, np.int32), r"of shape \(3,\)"),
        (np.array([0, -1, 0], np.int32), "got -1 to 0"),
    ],
)
def test_refuses_bad_labels_and_names_the_session(bad: Any, words: str) -> None:
    parts = valid()
    parts["labels"] = (parts["labels"][0], bad, parts["labels"][2])
    with pytest.raises(ConfigError, match=words):
        Sessions(**parts)


def test_split_keeps_a_group_on_one_side() -> None:
    train, held_out = Sessions(**valid()).split([4])
    assert (train.groups, held_out.groups) == ((7,), (4, 4))
    assert len(train.signals[0]) == 3


@pytest.mark.parametrize("held_out", [[], [5], [4, 7], [4, 5]])
def test_split_refuses_unknown_groups_and_empty_sides(held_out: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"some, not all, of the groups \[4, 7\]"):
        Sessions(**valid()).split(held_out)


def test_statistics_are_those_of_all_steps_together() -> None:
    parts = valid()
    mean, std = Sessions(**parts).channel_statistics()
    steps = np.concatenate(parts["signals"])
    np.testing.assert_allclose(mean, steps.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(std, steps.std(axis=0), rtol=1e-5)


def test_save_and_load_are_inverse(tmp_path: Path) -> None:
    sessions = Sessions(**valid())
    sessions.save(tmp_path / "s.npz")
    loaded = Sessions.load(tmp_path / "s.npz")
    for field in dataclasses.fields(Sessions):
        before, after = getattr(sessions, field.name), getattr(loaded, field.name)
        if field.name in {"signals", "labels"}:
            assert all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(before, after, strict=True))
        else:
            assert before == after


def own_file(path: Path, **change: Any) -> Path:
    arrays = {
        "signals": signal(8),
        "labels": np.zeros(8, np.int32),
        "lengths": np.array([5, 3]),
        "groups": np.array([1, 2]),
        "feature_names": np.array(["x", "y"]),
        "label_names": np.array(["a"]),
        "rate_hz": np.array(50.0),
    }
    np.savez(path, **{key: value for key, value in (arrays | change).items() if value is not None})
    return path


def test_loads_a_file_of_ones_own(tmp_path: Path) -> None:
    loaded = Sessions.load(own_file(tmp_path / "own.npz"))
    assert [len(x) for x in loaded.signals] == [5, 3]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"groups": None}, "groups"),
        ({"groups": np.array([{}, {}])}, "pickle"),
        ({"lengths": np.array([5, 4])}, r"add up to the 8 steps of signals, got \[5, 4\]"),
        ({"lengths": np.array([8, 0])}, "at least 1"),
        ({"lengths": np.array([5.0, 3.0])}, "integers"),
        ({"labels": np.zeros(7, np.int32)}, "a label for each of the 8 steps"),
        ({"signals": np.zeros((8, 2))}, "float32"),
    ],
)
def test_load_refuses_a_file_that_does_not_fit(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Sessions.load(own_file(tmp_path / "own.npz", **change))


def test_load_refuses_a_file_that_is_no_archive(tmp_path: Path) -> None:
    (tmp_path / "s.npz").write_text("not an archive")
    with pytest.raises(ConfigError, match=r"expected an \.npz"):
        Sessions.load(tmp_path / "s.npz")


def test_save_wants_the_suffix(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ends in \.npz"):
        Sessions(**valid()).save(tmp_path / "s")


ONES = np.ones(6, np.float32)
TRIADS = ((0, 1, 2), (3, 4, 5))


def test_without_changes_augmentation_is_the_identity() -> None:
    window = signal(9, 6)
    np.testing.assert_array_equal(Augmentation(noise=0).apply(window, ONES, RNG), window)


def test_rotation_keeps_lengths_and_turns_both_triads_alike() -> None:
    window = signal(9, 6)
    turned = Augmentation(noise=0, triads=TRIADS, rotation_deg=40).apply(window, ONES, RNG)
    for triad in TRIADS:
        before, after = window[:, triad], turned[:, triad]
        np.testing.assert_allclose(np.linalg.norm(after, axis=1), np.linalg.norm(before, axis=1), rtol=1e-5)
    # The angle between two vectors of one frame survives a turn of the frame.
    dots = [(part[:, :3] * part[:, 3:]).sum(axis=1) for part in (window, turned)]
    np.testing.assert_allclose(dots[1], dots[0], rtol=1e-4, atol=1e-5)


def test_scale_has_one_gain_per_triad() -> None:
    window = signal(9, 6)
    gain = Augmentation(noise=0, scale=0.5, triads=TRIADS).apply(window, ONES, RNG) / window
    np.testing.assert_allclose(gain, np.broadcast_to(gain[0, [0, 0, 0, 3, 3, 3]], gain.shape), rtol=1e-5)
    assert abs(gain[0, 0] - gain[0, 3]) > 1e-3


def test_mirror_changes_half_of_the_windows() -> None:
    mirror = (-1, 1, 1, 1, -1, -1)
    window = np.ones((2, 6), np.float32)
    augmentation = Augmentation(noise=0, mirror=mirror)
    results = [tuple(augmentation.apply(window, ONES, RNG)[0].tolist()) for _ in range(200)]
    assert set(results) == {mirror, (1,) * 6}
    assert 70 < results.count(mirror) < 130


def test_noise_is_in_deviations_of_the_channel() -> None:
    std = np.array([1.0, 100.0], np.float32)
    noise = Augmentation(noise=0.1).apply(np.zeros((20_000, 2), np.float32), std, RNG)
    np.testing.assert_allclose(noise.std(axis=0), [0.1, 10.0], rtol=0.05)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"noise": -0.1}, "noise >= 0"),
        ({"scale": float("nan")}, "scale >= 0"),
        ({"rotation_deg": 5.0}, "expected triads, got none"),
        ({"mirror": (1, 0)}, "mirror of 1 and -1"),
    ],
)
def test_augmentation_refuses_bad_arguments(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Augmentation(**arguments)


@pytest.mark.parametrize(
    ("augmentation", "words"),
    [
        (Augmentation(triads=((0, 1, 6),)), "channels below 6"),
        (Augmentation(triads=((0, 1, 2), (2, 3, 4))), "at most once"),
        (Augmentation(mirror=(1, -1)), "expected 6 signs in mirror"),
    ],
)
def test_augmentation_is_checked_against_the_channels(augmentation: Augmentation, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        augmentation.check(6)
