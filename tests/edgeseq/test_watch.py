from __future__ import annotations

import sys
from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseq.errors import ConfigError, MissingDependencyError
from edgeseq.watch import (
    AUGMENTATION,
    FEATURE_UNITS,
    HELD_OUT_SUBJECTS,
    Recording,
    Recordings,
    alternating_order,
    load_recordings,
    splice,
)

RATE_HZ = 10.0


def bouts_of(labels: Any) -> list[int]:
    """Lengths of the runs of equal labels."""
    changes = np.flatnonzero(np.diff(labels)) + 1
    return np.diff([0, *changes, len(labels)]).tolist()  # type: ignore[no-any-return]


@st.composite
def recordings(draw: st.DrawFn) -> Recordings:
    """Recordings whose samples are all different: a running number, and the recording it is from."""
    items: list[Recording] = []
    start = 0
    for _ in range(draw(st.integers(1, 8))):
        steps = draw(st.integers(1, 120))
        signal = np.stack([np.arange(start, start + steps), np.full(steps, len(items))], axis=1).astype(np.float32)
        start += steps
        items.append(Recording(signal, draw(st.integers(0, 2)), draw(st.integers(1, 2)), draw(st.integers(0, 1))))
    return Recordings(tuple(items), ("count", "recording"), ("a", "b", "c"), RATE_HZ)


@given(recordings(), st.integers(0, 2**32), st.integers(1, 15), st.integers(0, 20))
@settings(deadline=None)
def test_splice_keeps_every_sample_with_its_label(given_: Recordings, seed: int, shortest: int, more: int) -> None:
    sessions = splice(given_, seed=seed, bout_s=(shortest / RATE_HZ, (2 * shortest + more) / RATE_HZ))
    pairs = {(item.subject, item.side) for item in given_.items}
    assert sessions.groups == tuple(subject for subject, _ in sorted(pairs))
    for pair, signal, labels in zip(sorted(pairs), sessions.signals, sessions.labels, strict=True):
        items = [item for item in given_.items if (item.subject, item.side) == pair]
        expected = np.concatenate([item.signal for item in items])
        np.testing.assert_array_equal(signal[signal[:, 0].argsort()], expected)
        truth = np.array([item.label for item in given_.items])
        np.testing.assert_array_equal(labels, truth[signal[:, 1].astype(int)])


@given(recordings(), st.integers(0, 2**32))
@settings(deadline=None)
def test_no_bout_is_shorter_than_the_range_or_its_recording(given_: Recordings, seed: int) -> None:
    shortest, longest = 10, 25
    sessions = splice(given_, seed=seed, bout_s=(shortest / RATE_HZ, longest / RATE_HZ))
    count = np.concatenate([signal[:, 0] for signal in sessions.signals])
    of = np.concatenate([signal[:, 1] for signal in sessions.signals]).astype(int)
    whole = np.array([len(item.signal) for item in given_.items])
    # A piece is a run of consecutive samples of one recording; neighbouring pieces may happen to be consecutive.
    cuts = np.flatnonzero((np.diff(count) != 1) | (np.diff(of) != 0)) + 1
    for piece in np.split(of, cuts):
        assert len(piece) >= min(shortest, whole[piece[0]])


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(0, 2**32))
def test_order_is_a_permutation_with_the_fewest_equal_neighbours(labels: list[int], seed: int) -> None:
    order = alternating_order(labels, np.random.default_rng(seed))
    assert sorted(order) == list(range(len(labels)))
    equal = sum(labels[a] == labels[b] for a, b in pairwise(order))
    most = max(Counter(labels).values(), default=0)
    assert equal == max(0, 2 * most - len(labels) - 1)


def test_orders_differ_between_seeds() -> None:
    labels = [0, 1, 2] * 5
    orders = {tuple(alternating_order(labels, np.random.default_rng(seed))) for seed in range(5)}
    assert len(orders) == 5


@pytest.mark.parametrize("bout_s", [(0.0, 1.0), (1.0, 1.9), (2.0, 1.0)])
def test_splice_refuses_a_range_that_cannot_be_cut(bout_s: tuple[float, float]) -> None:
    one = Recordings((Recording(np.zeros((50, 1), np.float32), 0, 1, 0),), ("x",), ("a",), RATE_HZ)
    with pytest.raises(ConfigError, match="at least twice the shortest"):
        splice(one, seed=0, bout_s=bout_s)


def test_splice_refuses_no_recordings() -> None:
    with pytest.raises(ConfigError, match="at least one"):
        splice(Recordings((), ("x",), ("a",), RATE_HZ), seed=0)


def test_the_watch_recordings_are_what_the_docstring_says() -> None:
    loaded = load_recordings()
    assert len(loaded.items) == 140
    assert {item.subject for item in loaded.items} == set(range(1, 11))
    assert set(HELD_OUT_SUBJECTS) < set(range(1, 11))
    assert Counter((item.subject, item.side, item.label) for item in loaded.items).most_common(1)[0][1] == 1
    lengths = [len(item.signal) for item in loaded.items]
    assert (min(lengths), max(lengths)) == (947, 2618)
    assert len(FEATURE_UNITS) == len(loaded.feature_names) == 6
    AUGMENTATION.check(len(loaded.feature_names))


def test_watch_sessions_change_label_at_every_bout_and_follow_the_seed() -> None:
    loaded = load_recordings()
    sessions = splice(loaded, seed=3)
    assert len(sessions) == 20
    for labels in sessions.labels:
        assert set(labels.tolist()) == set(range(7))
        assert 6 * 50 <= min(bouts_of(labels)) <= max(bouts_of(labels)) <= 15 * 50
    again, other = splice(loaded, seed=3), splice(loaded, seed=4)
    assert all(np.array_equal(a, b) for a, b in zip(sessions.signals, again.signals, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(sessions.labels, other.labels, strict=True))


def test_gravity_has_the_stated_unit() -> None:
    # At rest an accelerometer in g reads a length of about 1; exercises move it around that.
    lengths = [np.median(np.linalg.norm(item.signal[:, :3], axis=1)) for item in load_recordings().items]
    assert 0.9 < np.median(lengths) < 1.15


@pytest.mark.parametrize("package", ["seglearn.datasets", "seglearn"])
def test_names_the_fix_when_the_extra_is_missing(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "seglearn.datasets", None)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r'pip install "edgeseq\[demos\]"'):
        load_recordings()
