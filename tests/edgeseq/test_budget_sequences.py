"""How data become sequences for a budget: arrays, sessions, .npz and .csv files, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeseq.budget_curve.sequences import Sequences, as_sequences
from edgeseq.errors import ConfigError, DTypeError, NonFiniteError, ShapeError
from edgeseq.model_file import Port
from edgeseq.sessions import Sessions

SENSOR = Port("x", "float32", (2,), names=("a", "b"))
PLAIN = Port("x", "float32", (2,))
TOKENS = Port("x", "int32", ())
LABELS = Port("y", "float32", (3,), names=("rest", "move", "2"))
Array = np.ndarray[Any, Any]


def signal(n: int) -> Array:
    return np.arange(2 * n, dtype=np.float32).reshape(n, 2)


def same(got: Sequences, inputs: list[Array], labels: list[list[int]] | None) -> None:
    assert [x.tolist() for x in got.inputs] == [x.tolist() for x in inputs]
    assert (None if got.labels is None else [y.tolist() for y in got.labels]) == labels


def test_arrays_and_pairs() -> None:
    x, z = signal(4), signal(2)
    same(as_sequences(x, SENSOR, LABELS), [x], None)
    same(as_sequences([x, z], SENSOR, LABELS), [x, z], None)
    same(as_sequences(np.stack([x, x]), SENSOR, LABELS), [x, x], None)
    same(as_sequences([(x, [0, 1, 2, -1]), (z, np.array([1, 1], np.uint8))], SENSOR, LABELS), [x, z],
         [[0, 1, 2, -1], [1, 1]])  # fmt: skip
    tokens = np.array([3, 1, 2], np.int32)
    same(as_sequences(tokens, TOKENS, LABELS), [tokens], None)
    same(as_sequences([tokens[:0], tokens], TOKENS, LABELS), [tokens], None)


def test_what_counts_and_the_majority() -> None:
    data = as_sequences([(signal(5), [0, 0, -1, 2, 2]), (signal(2), [2, -1])], SENSOR, LABELS)
    assert data.n_samples == 7
    assert data.majority_rate == 3 / 5
    assert data.counted(0).tolist() == [True, True, False, True, True]
    assert as_sequences(signal(3), SENSOR, LABELS).counted(0).all()


def test_at_most_so_many_samples_from_the_start() -> None:
    data = [(signal(4), [0, 1, 2, 0]), (signal(3), [1, 1, 1]), (signal(2), [2, 2])]
    same(as_sequences(data, SENSOR, LABELS, most=6), [signal(4), signal(2)], [[0, 1, 2, 0], [1, 1]])
    same(as_sequences(data, SENSOR, LABELS, most=4), [signal(4)], [[0, 1, 2, 0]])
    same(as_sequences(data, SENSOR, LABELS, most=99), [x for x, _ in data], [list(y) for _, y in data])


def sessions() -> Sessions:
    labels = [np.array(y, np.int32) for y in ([0, 1, 2], [1, 1], [2])]
    return Sessions(
        tuple(map(signal, (3, 2, 1))), tuple(labels), (7, 8, 7), ("a", "b"), ("rest", "move", "2"), 20.0
    )  # fmt: skip


@pytest.mark.parametrize("as_file", [False, True])
def test_sessions_and_some_of_their_groups(as_file: bool, tmp_path: Path) -> None:
    data: Any = sessions()
    if as_file:
        data.save(tmp_path / "d.npz")
        data = tmp_path / "d.npz"
    everything = as_sequences(data, SENSOR, LABELS)
    same(everything, [signal(3), signal(2), signal(1)], [[0, 1, 2], [1, 1], [2]])
    assert everything.rate_hz == 20.0
    same(as_sequences(data, SENSOR, LABELS, groups=[7]), [signal(3), signal(1)], [[0, 1, 2], [2]])
    for groups in ([], [7, 9]):
        with pytest.raises(ConfigError, match=r"groups: expected some of \[7, 8\], which the data have, got"):
            as_sequences(data, SENSOR, LABELS, groups=groups)
    with pytest.raises(ConfigError, match=r"feature_names \['b', 'a'\] of the model, in this order, got \['a', 'b'\]"):
        as_sequences(data, Port("x", "float32", (2,), names=("b", "a")), LABELS)
    with pytest.raises(ConfigError, match="label_names"):
        as_sequences(data, SENSOR, Port("y", "float32", (3,), names=("move", "rest", "2")))
    as_sequences(data, PLAIN, Port("y", "float32", (3,)))


def test_an_npz_needs_signals_alone(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    np.savez(path, signals=signal(5).astype(np.float64))
    same(as_sequences(str(path), SENSOR, LABELS), [signal(5)], None)
    tokens = np.arange(4)
    np.savez(path, signals=tokens, labels=np.array([-1, 0, 1, 2]), lengths=np.array([1, 3]))
    same(as_sequences(path, TOKENS, LABELS), [tokens[:1], tokens[1:]], [[-1], [0, 1, 2]])


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"data": signal(2)}, "with the key signals of float32, got: 'signals"),
        ({"signals": np.array([object()])}, "without pickled objects"),
        ({"signals": np.array(["a"])}, "Cannot cast"),
        ({"signals": signal(4), "lengths": np.array([1, 2])}, r"lengths that add up to the 4 steps.*got \[1, 2\]"),
        ({"signals": signal(4), "lengths": np.array([5, -1])}, "lengths that add up"),
        ({"signals": signal(4), "labels": np.array([1])}, "a label for each of the 4 steps, got 1"),
    ],
)
def test_files_that_are_wrong_are_refused(arrays: dict[str, Array], words: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "d.npz", **arrays)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=words):
        as_sequences(tmp_path / "d.npz", SENSOR, LABELS)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "d.npz").write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match=r"expected an \.npz without pickled objects"):
        as_sequences(tmp_path / "d.npz", SENSOR, LABELS)
    (tmp_path / "d.txt").write_text("")
    with pytest.raises(ConfigError, match=r"expected an \.npz or a \.csv file, got 'd\.txt'"):
        as_sequences(tmp_path / "d.txt", SENSOR, LABELS)
    with pytest.raises(ConfigError, match="no file"):
        as_sequences(tmp_path / "no.npz", SENSOR, LABELS)


def test_a_csv_has_channels_labels_and_sessions_by_name(tmp_path: Path) -> None:
    path = tmp_path / "d.csv"
    path.write_text("session,b,label,a,time\nmon,2,rest,1,9\nmon,4,,3,9\ntue,6,2,5,9\nmon,8,-1,7,9\n\n")
    same(
        as_sequences(path, SENSOR, LABELS),
        [np.array([[1, 2], [3, 4]]), np.array([[5, 6]]), np.array([[7, 8]])],
        [[0, -1], [2], [-1]],
    )
    path.write_text("\ufeffa,b\n1,2.5\n3,4\n", encoding="utf-8")  # as spreadsheets write it
    same(as_sequences(path, SENSOR, LABELS), [np.array([[1, 2.5], [3, 4]])], None)
    path.write_text("token,label\n1,move\n3,rest\n")
    same(as_sequences(path, TOKENS, LABELS), [np.array([1, 3])], [[1, 0]])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b,c\n1,2,3\n", None),  # the model's channels are there by name
        (
            "p,q,r\n1,2,3\n",
            r"d\.csv: expected the columns \['a', 'b'\], and 'label' and 'session'.*got \['p', 'q', 'r'\]",
        ),
        ("", r"expected the columns \['a', 'b'\]"),
        ("a,b\n1,x\n", r"d\.csv, line 2: expected a number, float32, got 'x'"),
        ("a,b\n1,2\n1\n", r"d\.csv, line 3: expected 2 columns, got 1"),
        ("a,b,label\n1,2,walk\n", r"line 2: expected a label, one of \['rest', 'move', '2'\], or nothing, got 'walk'"),
        ("a,b,label\n1,2,3\n", r"sequence 0, sample 0: expected a label from 0 to 2.*got 3"),
        ("a,b,label\n1,2,\n", r"expected labels that count, got -1 alone"),
        ("a,b\n", "expected at least one sample, got none"),
    ],
)
def test_lines_that_are_wrong_are_named(text: str, words: str | None, tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text(text)
    if words is None:
        as_sequences(tmp_path / "d.csv", SENSOR, LABELS)
        return
    with pytest.raises(ConfigError, match=words):
        as_sequences(tmp_path / "d.csv", SENSOR, LABELS)


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ([signal(3).astype(np.float64)], DTypeError, "data, sequence 0: expected float32"),
        ([signal(3), signal(3)[:, :1]], ShapeError, "data, sequence 1: expected"),
        ([np.full((2, 2), np.nan, np.float32)], NonFiniteError, "data, sequence 0"),
        (
            [(signal(3), [0, 1])],
            ConfigError,
            r"sequence 0: expected an integer label for each of the 3 samples.*\(2,\)",
        ),
        ([(signal(2), [0.0, 1.0])], ConfigError, "expected an integer label"),
        ([(signal(2), [0, -2])], ConfigError, r"sequence 0, sample 1: expected a label from 0 to 2.*got -2"),
        ([(signal(2), [0, 1]), signal(2)], ConfigError, "got a mixture; label every sequence, with -1"),
        ([(signal(2),)], ConfigError, "got a mixture"),
        ([], ConfigError, "expected at least one sample"),
        (
            (signal(2), np.array([0, 1])),
            ConfigError,
            r"got a tuple of two.*give \[first, second\] or \[",
        ),
        (7, ConfigError, "expected sessions, a path, an array or a list of arrays, got int"),
    ],
)
def test_data_of_another_model_are_refused(data: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        as_sequences(data, SENSOR, LABELS)
