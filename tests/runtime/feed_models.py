"""Small models for the tests of feeds, one for each way in which rows can come, and plain runs of them."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers as L  # noqa: N812

from edgeseq import TCN
from edgeseq import runtime as rt
from edgeseq.export import export_model
from edgeseq.runtime.sample import Values
from tests.conftest import random_weights
from tests.export.small_models import CHANNELS, chain, tokens

Array = np.ndarray[Any, Any]


def _two_ports() -> Any:
    a, b = keras.Input((None, CHANNELS), name="acc"), keras.Input((None, 2), name="gyro")
    joined = L.Concatenate()([L.Conv1D(3, 2, padding="causal")(a), b])
    late = L.Conv1D(2, 3, padding="same")(joined)
    return keras.Model([a, b], {"now": L.Dense(2)(joined), "late": late, "few": L.MaxPooling1D(2)(late)})


MODELS: dict[str, Callable[[], Any]] = {
    "causal": lambda: chain(TCN(5, 3, dilations=(1, 2), return_sequences=True), L.Dense(2, activation="softmax")),
    "lookahead": lambda: chain(TCN(5, 3, dilations=(1, 2), return_sequences=True, padding="same")),
    "strided": lambda: chain(L.Conv1D(4, 5, strides=3), L.MaxPooling1D(2), L.Dense(3)),
    "strided, ahead": lambda: chain(L.ZeroPadding1D((2, 2)), L.Conv1D(4, 5, strides=2), L.UpSampling1D(3)),
    "several rows": lambda: chain(L.Conv1D(4, 2, padding="causal"), L.UpSampling1D(3)),
    "LSTM": lambda: chain(L.LSTM(5, return_sequences=True), L.Dense(2)),
    "mean": lambda: chain(L.Conv1D(4, 3, padding="same"), L.GlobalAveragePooling1D()),
    "tokens": lambda: tokens(L.Embedding(11, 3), L.Conv1D(4, 3, padding="causal"), L.Dense(2, activation="softmax")),
    "ports": _two_ports,
}


NAMES = {"causal": ["rest", "move"], "lookahead": list("abcde"), "strided, ahead": list("abcd")}


@cache
def files(name: str) -> tuple[Path, Path]:
    """The step graph and the offline model of this name."""
    folder = Path(tempfile.mkdtemp())
    report = export_model(random_weights(MODELS[name](), 3), folder, name="m", rate_hz=50, label_names=NAMES.get(name))
    assert report.stream is not None, report
    return Path(report.stream), Path(report.offline)


@cache
def streaming(name: str) -> rt.Model:
    """The streaming model of this name."""
    return rt.load(files(name)[0])


def drawn(model: rt.Model, n: int, seed: int) -> list[Values]:
    """So many samples, as a clock gives them: one array for each input."""
    rng = np.random.default_rng(seed)
    made = [
        rng.normal(size=(n, *port.shape)).astype(port.dtype)
        if port.dtype.startswith("float")
        else rng.integers(0, 11, (n, *port.shape)).astype(port.dtype)
        for port in model.description.inputs
    ]
    return [tuple(np.array(x[i]) for x in made) for i in range(n)]


def given(model: rt.Model, values: Values) -> Any:
    """The values as ``step`` and ``Sample`` take them."""
    names = [port.name for port in model.description.inputs]
    return values[0] if len(values) == 1 else dict(zip(names, values, strict=True))


def rows_of(model: rt.Model, sequences: list[list[Values]]) -> dict[str, list[Array]]:
    """What plain streams give, one for each sequence: all rows of each output."""
    ports = model.description.outputs
    rows: dict[str, list[Array]] = {port.name: [] for port in ports}
    for sequence in sequences:
        stream = model.stream()
        for y in [*(stream.step(given(model, values)) for values in sequence), stream.flush()]:
            for port in ports:
                each = y if len(ports) == 1 else y[port.name]
                if each is not None:
                    rows[port.name] += list(each[None] if each.ndim == len(port.shape) else each)
    return rows


def rows_fed(predictions: list[rt.Prediction]) -> dict[str, list[Array]]:
    """The rows of each output; their numbers must have no gap."""
    rows: dict[str, list[Array]] = {}
    for p in predictions:
        mine = rows.setdefault(p.output_name, [])
        assert p.index == len(mine), (p, len(mine))
        mine.append(p.output)
    return rows


def assert_same_bits(got: dict[str, list[Array]], expected: dict[str, list[Array]]) -> None:
    """Equal to the last bit, in number and in value."""
    for name, rows in expected.items():
        mine = got.get(name, [])
        assert len(mine) == len(rows), (name, len(mine), len(rows))
        for a, b in zip(mine, rows, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.dtype == b.dtype


def adds_up(feeder: rt.Feeder) -> None:
    """Every sample that was sent is in one count."""
    c = feeder.counters
    waiting = sum(feeder.n_waiting(stream_id) for stream_id in feeder.ids)
    assert c.received == c.used + c.late + c.duplicates + c.rejected + waiting, (c, waiting)


def messy(model: rt.Model, n: int, seed: int, ids: int) -> list[rt.Sample]:
    """Samples of some streams, permuted, dropped, doubled, incomplete and wrong."""
    rng, sent = np.random.default_rng(seed), []
    values = drawn(model, n, seed)
    for k in np.argsort(np.arange(n) + rng.integers(0, 8, n), kind="stable").tolist():
        for _ in range(int(rng.choice([0, 1, 1, 1, 1, 2]))):
            x = [array.copy() for array in values[k]]
            if rng.random() < 0.2 and x[0].dtype.kind == "f":
                x[0][rng.integers(len(x[0]))] = rng.choice([np.nan, np.inf])
            place = (k // ids + 1000 * (rng.random() < 0.02)) / 50
            sent.append(rt.Sample(f"s{k % ids}", given(model, tuple(x)), place, int(place * 50 + 0.5)))
    return sent


def said(predictions: list[rt.Prediction]) -> list[Any]:
    return [p.to_dict() for p in predictions]
