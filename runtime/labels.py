"""Steadier labels: smoothing and hysteresis of what a model says, each with the delay that it adds. Off by default.

A rule is immutable and shared; its memory is one float64 vector for each output of a stream, so that snapshots hold it.
Rules stand in a row: each takes the scores and the label that the one before gave. Only ``label`` and ``score`` of a
prediction change; ``output`` stays what the model gave. When the model starts anew, so do the rules.

``delay`` is how many predictions later a label comes that changes at once and stays: for scores of one 1 and zeros.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from edgeseq.errors import ConfigError
from edgeseq.runtime.inputs import Array


class LabelRule(Protocol):
    """What a rule does; ``Majority`` and the others are some."""

    @property
    def delay(self) -> int:
        """Predictions by which a clean change of the label comes later."""

    def start(self, n_labels: int, /) -> Array:
        """The memory before the first prediction, float64 (n,)."""

    def apply(self, memory: Array, scores: Array, label: int, /) -> tuple[Array, int]:
        """The scores (K,) and the label after this rule. ``memory`` is changed."""


@dataclass(frozen=True)
class Majority:
    """The label that most of the last ``n`` predictions had; of several, the one that stands. Scores are their shares.

    Example:
        >>> rule = Majority(3)
        >>> memory = rule.start(2)
        >>> [rule.apply(memory, np.eye(2)[label], label)[1] for label in (0, 0, 1, 0, 1, 1)]
        [0, 0, 0, 0, 1, 1]
        >>> rule.delay
        1
    """

    n: int

    def __post_init__(self) -> None:
        _whole("n", self.n)

    @property
    def delay(self) -> int:
        """n // 2."""
        return self.n // 2

    def start(self, _n_labels: int, /) -> Array:
        """The last n labels, the oldest first, -1 for none, and the label that stands."""
        return np.full(self.n + 1, -1.0)

    def apply(self, memory: Array, scores: Array, label: int, /) -> tuple[Array, int]:
        """Votes of the last n."""
        memory[:-2] = memory[1:-1]
        memory[-2] = label
        votes = np.bincount(memory[:-1][memory[:-1] >= 0].astype(int), minlength=len(scores)).astype(float)
        label = _best(votes, int(memory[-1]))
        memory[-1] = label
        return votes / votes.sum(), label


@dataclass(frozen=True)
class ExponentialAverage:
    """Scores averaged over time: ``alpha`` times the new ones and 1 - alpha times the average before.

    Example:
        >>> rule = ExponentialAverage(0.25)
        >>> memory = rule.start(2)
        >>> [rule.apply(memory, np.eye(2)[label], label)[1] for label in (0, 1, 1, 1)]
        [0, 0, 0, 1]
        >>> rule.delay
        2
    """

    alpha: float

    def __post_init__(self) -> None:
        if not (isinstance(self.alpha, (int, float)) and 0 < self.alpha <= 1):
            raise ConfigError(f"labels: expected alpha, above 0 and up to 1, got {self.alpha!r}")

    @property
    def delay(self) -> int:
        """How many predictions it takes until the new label's average is above one half, less one."""
        n = 1
        while (1 - self.alpha) ** n >= 0.5 - 1e-12:  # of a tie, the label with the smaller number wins
            n += 1
        return n - 1

    def start(self, n_labels: int, /) -> Array:
        """The average, and how many predictions are in it, up to 1."""
        return np.zeros(n_labels + 1)

    def apply(self, memory: Array, scores: Array, _label: int, /) -> tuple[Array, int]:
        """The average, and its largest."""
        average = memory[:-1]
        weight = self.alpha if memory[-1] else 1.0
        average += weight * (scores - average)
        memory[-1] = 1
        return average.copy(), int(np.argmax(average))


@dataclass(frozen=True)
class HoldMargin:
    """The label stands until another one's score is larger by more than ``margin``.

    Example:
        >>> rule = HoldMargin(0.2)
        >>> memory = rule.start(2)
        >>> [rule.apply(memory, np.array([1 - p, p]), int(p > 0.5))[1] for p in (0.3, 0.55, 0.65, 0.45)]
        [0, 0, 1, 1]
    """

    margin: float

    def __post_init__(self) -> None:
        if not (isinstance(self.margin, (int, float)) and 0 <= self.margin < math.inf):
            raise ConfigError(f"labels: expected margin, a number of 0 or more, got {self.margin!r}")

    @property
    def delay(self) -> int:
        """0: a change that beats the margin shows at once; one that does not, never."""
        return 0

    def start(self, _n_labels: int, /) -> Array:
        """The label that stands, -1 for none."""
        return np.full(1, -1.0)

    def apply(self, memory: Array, scores: Array, label: int, /) -> tuple[Array, int]:
        """The new label, if it beats the one that stands."""
        stands = int(memory[0])
        if stands < 0 or scores[label] - scores[stands] > self.margin:
            memory[0] = stands = label
        return scores, stands


@dataclass(frozen=True)
class HoldRepeats:
    """The label stands until another one came ``n`` times in a row.

    Example:
        >>> rule = HoldRepeats(2)
        >>> memory = rule.start(2)
        >>> [rule.apply(memory, np.eye(2)[label], label)[1] for label in (0, 1, 0, 1, 1)]
        [0, 0, 0, 0, 1]
    """

    n: int

    def __post_init__(self) -> None:
        _whole("n", self.n)

    @property
    def delay(self) -> int:
        """n - 1."""
        return self.n - 1

    def start(self, _n_labels: int, /) -> Array:
        """The label that stands, the one that came last, -1 for none, and how often in a row."""
        return np.array([-1.0, -1.0, 0.0])

    def apply(self, memory: Array, scores: Array, label: int, /) -> tuple[Array, int]:
        """The new label, if it came often enough, or first."""
        memory[2] = min(self.n, memory[2] + 1) if memory[1] == label else 1
        memory[1] = label
        if memory[0] < 0 or memory[2] >= self.n:
            memory[0] = label
        return scores, int(memory[0])


def smooth(rules: tuple[LabelRule, ...], memories: list[Array], output: Array) -> tuple[int, float]:
    """The label and its score after all rules, for one row (K,). The memories are changed.

    Where a rule holds a label that the scores do not favour, the score is that of the label that is held.
    """
    label = int(output.argmax())
    if not rules:
        return label, float(output[label])
    scores = output.astype(np.float64)
    for rule, memory in zip(rules, memories, strict=True):
        scores, label = rule.apply(memory, scores, label)
    return label, float(scores[label])


def delay(rules: tuple[LabelRule, ...]) -> int:
    """Predictions by which a clean change of the label comes later, at the most: the sum of the rules' own.

    Times the model's ``hop``, that is samples; the model's lookahead comes on top.
    """
    return sum(rule.delay for rule in rules)


def _best(votes: Array, stands: int) -> int:
    if stands >= 0 and votes[stands] == votes.max():
        return stands
    return int(np.argmax(votes))


def _whole(name: str, value: object) -> None:
    if not (type(value) is int and value >= 1):
        raise ConfigError(f"labels: expected {name}, a whole number of 1 or more, got {value!r}")
