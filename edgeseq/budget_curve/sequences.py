"""Sequences of samples or tokens, with labels or without, as the budget measures them.

Owns `Sequences` and how it is made: from arrays, `Sessions`, ``.npz`` and ``.csv`` files. Refuses what does not fit the
model: channels, dtypes, names in another order, labels that the model cannot give.

Invariant: the inputs are what the model takes; a label is -1, which does not count, or a channel of its output.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgeseq.errors import ConfigError
from edgeseq.model_file import Port
from edgeseq.runtime.inputs import InputCheck
from edgeseq.sessions import Sessions

__all__ = ["IGNORED", "Sequences", "as_sequences"]

Array = NDArray[Any]

IGNORED = -1
"""The label of a sample that does not count."""

_LABEL_COLUMN, _SESSION_COLUMN = "label", "session"


@dataclass(frozen=True, eq=False)
class Sequences:
    """Inputs (T_i, C), or tokens (T_i,), and labels (T_i,) or None; ``rate_hz`` where the data tell it."""

    inputs: tuple[Array, ...]
    labels: tuple[Array, ...] | None = None
    rate_hz: float | None = None

    @property
    def n_samples(self) -> int:
        """Samples of all sequences together."""
        return sum(map(len, self.inputs))

    @property
    def majority_rate(self) -> float | None:
        """Accuracy of always answering the most frequent label that counts; None without labels."""
        if self.labels is None:
            return None
        labels = np.concatenate(self.labels)
        counts = np.bincount(labels[labels != IGNORED])
        return float(counts.max() / counts.sum())

    def counted(self, number: int) -> Array:
        """Which samples of a sequence count, (T,) bool: those with a label, or all where there are no labels."""
        if self.labels is None:
            return np.ones(len(self.inputs[number]), bool)
        counted: Array = self.labels[number] != IGNORED
        return counted


def as_sequences(
    data: Any, taken: Port, given: Port, *, groups: Collection[int] | None = None, most: int | None = None
) -> Sequences:
    """Whatever a user has, as sequences for a model that takes ``taken`` and gives ``given``.

    Args:
        data: `Sessions`; the path of an ``.npz`` or a ``.csv`` file; one array; or a sequence of arrays, or of pairs of
            an array and its labels.
        taken: the model's input.
        given: its output, (K,).
        groups: of sessions, only these.
        most: use at most so many samples, from the start; the last sequence is cut.

    Raises:
        ConfigError: the data cannot be read, or do not belong to this model.
        ShapeError, DTypeError, NonFiniteError: a sequence is not what the model takes.

    Example:
        >>> taken, given = Port("x", "float32", (2,)), Port("y", "float32", (3,))
        >>> sequences = as_sequences([(np.zeros((4, 2), np.float32), [0, 0, 2, -1])], taken, given)
        >>> sequences.n_samples, sequences.counted(0).sum()
        (4, np.int64(3))
    """
    if isinstance(data, str | os.PathLike):
        data = _read(Path(data), taken, given)
    if isinstance(data, Sessions):
        data = _File(data.signals, data.labels, data.groups, data.feature_names, data.label_names, data.rate_hz)
    if isinstance(data, _File):
        data.check_names(taken, given)
        inputs, labels, rate_hz = data.chosen(groups)
    elif groups is not None:
        raise ConfigError(
            f"groups {sorted(groups)}: expected sessions, which have groups, got {type(data).__name__}; pass only the "
            "sequences that are meant"
        )
    else:
        (inputs, labels), rate_hz = _parts(data, taken), None
    return _checked(inputs, labels, rate_hz, taken=taken, n_labels=given.shape[0], most=most)


@dataclass(frozen=True, eq=False)
class _File:
    """What a file holds, before it is held to a model; what it does not say is None."""

    inputs: Sequence[Array]
    labels: Sequence[Array] | None = None
    groups: Sequence[int] | None = None
    feature_names: Sequence[str] | None = None
    label_names: Sequence[str] | None = None
    rate_hz: float | None = None

    def check_names(self, taken: Port, given: Port) -> None:
        """Raise `ConfigError` where the data and the model both name their channels, and not alike."""
        for what, own, models in (
            ("feature_names", self.feature_names, taken.names),
            ("label_names", self.label_names, given.names),
        ):
            if own is not None and models is not None and tuple(own) != tuple(models):
                raise ConfigError(
                    f"data: expected the {what} {list(models)} of the model, in this order, got {list(own)}; the data "
                    "are of another model, or their columns are in another order"
                )

    def chosen(self, groups: Collection[int] | None) -> tuple[Sequence[Array], Sequence[Array] | None, float | None]:
        """Inputs, labels and rate of some groups, or of all."""
        if groups is None:
            return self.inputs, self.labels, self.rate_hz
        known = [] if self.groups is None else sorted(set(self.groups))
        if not set(groups) <= set(known) or not groups:
            raise ConfigError(f"groups: expected some of {known}, which the data have, got {sorted(groups)}")
        kept = [i for i, group in enumerate(self.groups or ()) if group in groups]
        labels = None if self.labels is None else [self.labels[i] for i in kept]
        return [self.inputs[i] for i in kept], labels, self.rate_hz


def _parts(data: Any, taken: Port) -> tuple[list[Array], list[Array] | None]:
    """Arrays and labels of what was given as arrays or pairs."""
    if isinstance(data, np.ndarray) and data.ndim == len(taken.shape) + 1:
        return [data], None
    if not isinstance(data, Iterable):
        raise ConfigError(f"data: expected sessions, a path, an array or a list of arrays, got {type(data).__name__}")
    if isinstance(data, tuple) and len(data) == 2:
        raise ConfigError(
            "data: expected a list, got a tuple of two, which could be two sequences or one and its labels; give "
            "[first, second] or [(sequence, labels)]"
        )
    items = list(data)
    pairs = [isinstance(item, tuple) for item in items]
    if not any(pairs):
        return items, None
    if not all(len(item) == 2 if pair else False for item, pair in zip(items, pairs, strict=True)):
        raise ConfigError(
            "data: expected arrays, or pairs of an array and its labels, got a mixture; label every sequence, with "
            f"{IGNORED} for samples that do not count"
        )
    return [item[0] for item in items], [np.asarray(item[1]) for item in items]


def _checked(
    inputs: Sequence[Array],
    labels: Sequence[Array] | None,
    rate_hz: float | None,
    *,
    taken: Port,
    n_labels: int,
    most: int | None,
) -> Sequences:
    if labels is not None and n_labels == 1:
        raise ConfigError(
            "data: expected no labels for a model of one output, since accuracy is that of the most likely of several; "
            "leave them out, and ask for a max_difference"
        )
    if most is not None and most < 1:
        raise ConfigError(f"max_samples: expected at least 1, got {most}")
    check = InputCheck(taken)
    kept, kept_labels, left = [], [], most
    for number, given in enumerate(inputs):
        where = f"data, sequence {number}"
        x = check.chunk(given, where)
        y = None if labels is None else _checked_labels(labels[number], len(x), n_labels, where)
        x = x if left is None else x[:left]
        left = None if left is None else left - len(x)
        if len(x):
            kept.append(x)
            kept_labels.append(np.empty(0) if y is None else y[: len(x)])
    if not kept:
        raise ConfigError("data: expected at least one sample, got none; check the file, or the groups")
    if labels is not None and all((y == IGNORED).all() for y in kept_labels):
        raise ConfigError(f"data: expected labels that count, got {IGNORED} alone; leave the labels out")
    return Sequences(tuple(kept), None if labels is None else tuple(kept_labels), rate_hz)


def _checked_labels(given: Any, length: int, n_labels: int, where: str) -> Array:
    labels = np.asarray(given)
    if labels.dtype.kind not in "iu" or labels.shape != (length,):
        raise ConfigError(
            f"{where}: expected an integer label for each of the {length} samples, got {labels.dtype} {labels.shape}; "
            f"give {IGNORED} for samples that do not count"
        )
    labels = labels.astype(np.int64)
    wrong = (labels < IGNORED) | (labels >= n_labels)
    if wrong.any():
        at = int(wrong.argmax())
        raise ConfigError(
            f"{where}, sample {at}: expected a label from 0 to {n_labels - 1}, the channels of the model's output, or "
            f"{IGNORED}, got {labels[at]}; number the labels as in the training"
        )
    return labels


def _read(path: Path, taken: Port, given: Port) -> _File:
    if not path.is_file():
        raise ConfigError(f"data: no file {str(path)!r}; check the path")
    if path.suffix == ".npz":
        return _read_npz(path, taken)
    if path.suffix == ".csv":
        return _read_csv(path, taken, given)
    raise ConfigError(f"data: expected an .npz or a .csv file, got {path.name!r}; docs/budget.md says what they hold")


def _read_npz(path: Path, taken: Port) -> _File:
    """The keys of `Sessions.save`; all but ``signals`` may be missing."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        signals = arrays["signals"].astype(taken.dtype, casting="same_kind")
    except (KeyError, ValueError, TypeError, OSError) as error:
        raise ConfigError(
            f"data {str(path)!r}: expected an .npz without pickled objects, with the key signals of {taken.dtype}, "
            f"got: {error}; see edgeseq.sessions.Sessions.save"
        ) from error
    lengths = arrays.get("lengths", np.array([len(signals)]))
    if lengths.ndim != 1 or lengths.dtype.kind not in "iu" or (lengths < 0).any() or lengths.sum() != len(signals):
        raise ConfigError(
            f"data {str(path)!r}: expected lengths that add up to the {len(signals)} steps of signals, got "
            f"{lengths.tolist()}; write the number of steps of each session"
        )
    cuts = np.cumsum(lengths)[:-1]
    labels = arrays.get("labels")
    if labels is not None and len(labels) != len(signals):
        raise ConfigError(
            f"data {str(path)!r}: expected a label for each of the {len(signals)} steps, got {len(labels)}; give "
            f"{IGNORED} for steps that do not count"
        )
    return _File(
        np.split(signals, cuts),
        None if labels is None else np.split(labels, cuts),
        arrays["groups"].tolist() if "groups" in arrays else None,
        [str(name) for name in arrays["feature_names"]] if "feature_names" in arrays else None,
        [str(name) for name in arrays["label_names"]] if "label_names" in arrays else None,
        float(arrays["rate_hz"]) if "rate_hz" in arrays else None,
    )


def _read_csv(path: Path, taken: Port, given: Port) -> _File:
    """A header, then one sample a row: the model's features by name, else in order; ``label`` and ``session``."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file)
        header = next(reader, [])
        rows = [(reader.line_num, row) for row in reader if row]
    columns = _columns(path, header, taken)
    inputs, labels = [], []
    session = header.index(_SESSION_COLUMN) if _SESSION_COLUMN in header else None
    label = header.index(_LABEL_COLUMN) if _LABEL_COLUMN in header else None
    for line, row in rows:
        if len(row) != len(header):
            raise ConfigError(f"{path.name}, line {line}: expected {len(header)} columns, got {len(row)}")
    for _, part in groupby(rows, key=lambda row: None if session is None else row[1][session]):
        lines = list(part)
        values = [[_number(row[i], taken, path, line) for i in columns] for line, row in lines]
        x = np.array(values, taken.dtype)
        inputs.append(x if taken.shape else x[:, 0])
        if label is not None:
            labels.append(np.array([_label(row[label], given, path, line) for line, row in lines], np.int64))
    return _File(inputs, None if label is None else labels)


def _columns(path: Path, header: Sequence[str], taken: Port) -> list[int]:
    """Where the channels stand in a row: by their names if the header has them all, else in its order."""
    if taken.names is not None and set(taken.names) <= set(header):
        return [header.index(name) for name in taken.names]
    columns = [i for i, name in enumerate(header) if name not in {_LABEL_COLUMN, _SESSION_COLUMN}]
    n_channels = taken.shape[0] if taken.shape else 1
    if len(columns) != n_channels:
        wanted = f"the columns {list(taken.names)}" if taken.names else f"{n_channels} columns"
        raise ConfigError(
            f"{path.name}: expected {wanted}, and {_LABEL_COLUMN!r} and {_SESSION_COLUMN!r} if there are any, got "
            f"{list(header)}; give a header, and leave out what the model does not take"
        )
    return columns


def _number(text: str, taken: Port, path: Path, line: int) -> float:
    try:
        return float(text) if taken.dtype.startswith("float") else int(text)
    except ValueError as error:
        raise ConfigError(f"{path.name}, line {line}: expected a number, {taken.dtype}, got {text!r}") from error


def _label(text: str, given: Port, path: Path, line: int) -> int:
    """A label's number: by its name, by its number, or `IGNORED` for nothing."""
    if not text:
        return IGNORED
    if given.names is not None and text in given.names:
        return given.names.index(text)
    try:
        return int(text)
    except ValueError as error:
        known = f"one of {list(given.names)}" if given.names else "a number"
        raise ConfigError(f"{path.name}, line {line}: expected a label, {known}, or nothing, got {text!r}") from error
