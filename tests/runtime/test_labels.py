"""Steadier labels: each rule against a slow one, and the delay that it states."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseq import runtime as rt
from edgeseq.errors import ConfigError
from edgeseq.runtime.labels import LabelRule, delay, smooth
from tests.runtime.test_clock import NoModel

Array = np.ndarray[Any, Any]


def run(rules: tuple[LabelRule, ...], outputs: Array) -> list[tuple[int, float]]:
    memories = [rule.start(outputs.shape[1]) for rule in rules]
    return [smooth(rules, memories, row) for row in outputs]


def majority(labels: list[int], n: int) -> list[int]:
    stands, given = -1, []
    for t in range(len(labels)):
        votes = Counter(labels[max(0, t - n + 1) : t + 1])
        most = max(votes.values())
        if stands < 0 or votes[stands] < most:
            stands = min(label for label in votes if votes[label] == most)
        given.append(stands)
    return given


def repeats(labels: list[int], n: int) -> list[int]:
    stands, given = labels[0] if labels else -1, []
    for t in range(len(labels)):
        if t + 1 >= n and len(set(labels[t + 1 - n : t + 1])) == 1:
            stands = labels[t]
        given.append(stands)
    return given


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 40), st.integers(2, 4), st.integers(1, 7))
def test_votes_and_repeats_equal_slow_ones(seed: int, n: int, n_labels: int, window: int) -> None:
    outputs = np.random.default_rng(seed).random((n, n_labels)).astype(np.float32)
    labels = outputs.argmax(1).tolist()
    assert [label for label, _ in run((rt.Majority(window),), outputs)] == majority(labels, window)
    assert [label for label, _ in run((rt.HoldRepeats(window),), outputs)] == repeats(labels, window)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(0.01, 1), st.floats(0, 0.5))
def test_averages_and_margins_equal_slow_ones(seed: int, n: int, alpha: float, margin: float) -> None:
    outputs = np.random.default_rng(seed).random((n, 3)).astype(np.float32)
    average, expected = outputs[0].astype(np.float64), []
    for t, row in enumerate(outputs):
        average = average if t == 0 else alpha * row + (1 - alpha) * average
        expected.append(average.max())
    got = run((rt.ExponentialAverage(alpha),), outputs)
    np.testing.assert_allclose([score for _, score in got], expected, rtol=1e-6)
    stands = -1
    for row, (label, score) in zip(outputs.astype(np.float64), run((rt.HoldMargin(margin),), outputs), strict=True):
        if stands < 0 or row.max() - row[stands] > margin:
            stands = int(row.argmax())
        assert (label, score) == (stands, row[stands])


@pytest.mark.parametrize(
    "rule",
    [
        *(rt.Majority(n) for n in (1, 2, 3, 4, 5, 8)),
        *(rt.ExponentialAverage(a) for a in (1.0, 0.6, 0.5, 0.3, 0.25, 0.1, 0.02)),
        *(rt.HoldRepeats(n) for n in (1, 2, 5)),
        *(rt.HoldMargin(m) for m in (0.0, 0.3, 0.9)),
    ],
    ids=str,
)
@pytest.mark.parametrize("change", [(0, 1), (1, 0)])
def test_a_clean_change_comes_as_much_later_as_the_rule_states(rule: LabelRule, change: tuple[int, int]) -> None:
    before, after = change
    long = 400
    outputs = np.eye(2)[[before] * long + [after] * long]
    labels = [label for label, _ in run((rule,), outputs)]
    assert labels.index(after) - long in (rule.delay, rule.delay - (before > after))  # of a tie, label 0 wins
    assert labels[long + rule.delay :] == [after] * (long - rule.delay)


def test_rules_stand_in_a_row_and_their_delays_add() -> None:
    rules = (rt.Majority(5), rt.HoldRepeats(3))
    outputs = np.eye(2)[[0] * 50 + [1] * 50]
    assert [label for label, _ in run(rules, outputs)].index(1) - 50 == delay(rules) == 4


def test_smoothing_is_off_by_default_starts_anew_and_leaves_the_output() -> None:
    model = rt.load("tests/data/tiny.stream.onnx")
    rows = np.random.default_rng(3).random((60, 2)).astype(np.float32)
    plain = rt.Feeder(model, pool=NoModel([*rows, *rows]))
    steady = rt.Feeder(model, pool=NoModel([*rows, *rows]), labels=[rt.HoldRepeats(4)])
    raw = rows.argmax(1).tolist()
    for _ in range(2):
        for i, row in enumerate(rows):
            ((p,), (q,)) = (feeder.feed(rt.Sample("a", [1, 2, 3])) for feeder in (plain, steady))
            assert (p.label, p.score) == (("rest", "move")[raw[i]], row.max())
            held = repeats(raw, 4)[i]
            assert (q.label, q.score) == (("rest", "move")[held], row[held])
            assert q.output.tolist() == row.tolist() == p.output.tolist()
        plain.flush("a")
        steady.flush("a")


@pytest.mark.parametrize(
    "make",
    [
        lambda: rt.Majority(0),
        lambda: rt.Majority(2.0),  # type: ignore[arg-type]
        lambda: rt.HoldRepeats(-1),
        lambda: rt.ExponentialAverage(0),
        lambda: rt.ExponentialAverage(1.5),
        lambda: rt.ExponentialAverage(float("nan")),
        lambda: rt.HoldMargin(-0.1),
        lambda: rt.HoldMargin(float("inf")),
    ],
)
def test_values_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(ConfigError, match="labels: expected"):
        make()
