"""Provisional predictions and final ones: which comes when, what each is, and that the two streams stay together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeseq import runtime as rt
from edgeseq.errors import ConfigError, InputError, NonFiniteError, SnapshotError, StreamEndedError
from edgeseq.export import streamify
from tests.export.latency_controlled import Stack, stack, write
from tests.runtime.seams import write as write_seam

RNG = np.random.default_rng(0)
X = RNG.normal(size=(23, 3)).astype(np.float32)
CHUNK, STEPS = 3, 5


def models(folder: Path, model: Stack) -> tuple[rt.Model, rt.Model]:
    path = write(folder / "m.onnx", model)
    streamify(path, folder / "now.stream.onnx", 1, lookahead=0)
    streamify(path, folder / "later.stream.onnx", 1, lookahead=STEPS, chunk=CHUNK)
    return rt.load(folder / "now.stream.onnx"), rt.load(folder / "later.stream.onnx")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[rt.Model, rt.Model]:
    return models(tmp_path_factory.mktemp("pair"), MODEL)


MODEL = stack("LSTM", seed=5)


def test_a_provisional_row_is_the_offline_model_on_the_samples_so_far(pair: tuple[rt.Model, rt.Model]) -> None:
    stream = rt.ProvisionalStream(*pair)
    final = MODEL.latency_controlled(X, chunk=CHUNK, steps=STEPS)
    seen: list[int] = []
    for t, sample in enumerate(X):
        given = stream.step(sample)
        assert given.provisional.samples.tolist() == [t]
        np.testing.assert_allclose(given.provisional.values[0], MODEL.offline(X[: t + 1])[-1], atol=1e-5)
        np.testing.assert_allclose(given.final.values, final[given.final.samples], atol=1e-5)
        assert all(t - index >= STEPS for index in given.final.samples)
        seen += given.final.samples.tolist()
    owed = stream.flush()
    assert len(owed.provisional) == 0
    np.testing.assert_allclose(owed.final.values, final[owed.final.samples], atol=1e-5)
    assert seen + owed.final.samples.tolist() == list(range(len(X)))


def test_chunks_give_the_same_rows_with_the_same_indices(pair: tuple[rt.Model, rt.Model]) -> None:
    stream = rt.ProvisionalStream(*pair)
    parts = [stream.push(X[a:b]) for a, b in ((0, 1), (1, 1), (1, 9), (9, 23))] + [stream.flush(), stream.flush()]
    for which, expected in (
        ("provisional", MODEL.latency_controlled(X, chunk=1, steps=0)),
        ("final", MODEL.latency_controlled(X, chunk=CHUNK, steps=STEPS)),
    ):
        rows = [getattr(part, which) for part in parts]
        assert np.concatenate([part.samples for part in rows]).tolist() == list(range(len(X)))
        np.testing.assert_allclose(np.concatenate([part.values for part in rows]), expected, atol=1e-5)


def test_of_several_layers_each_runs_over_provisional_rows(tmp_path: Path) -> None:
    model = stack("GRU", n_layers=2, merge="sum")
    stream = rt.ProvisionalStream(*models(tmp_path, model))
    expected = model.latency_controlled(X, chunk=1, steps=0)
    np.testing.assert_allclose(stream.push(X).provisional.values, expected, atol=1e-5)


def test_strides_and_lookahead_of_convolutions_keep_the_indices(tmp_path: Path) -> None:
    import keras

    from edgeseq.export import export_model

    x = source = keras.Input((None, 3))
    for layer in (
        keras.layers.Conv1D(4, 3, strides=2),
        keras.layers.Bidirectional(keras.layers.LSTM(3, return_sequences=True)),
    ):
        x = layer(x)
    offline = export_model(keras.Model(source, x), tmp_path, name="m").offline
    made = []
    for name, steps, chunk in (("now", 0, 1), ("later", 2, 2)):
        streamify(offline, tmp_path / f"{name}.stream.onnx", lookahead=steps, chunk=chunk)
        made.append(rt.load(tmp_path / f"{name}.stream.onnx"))
    stream = rt.ProvisionalStream(made[0], made[1])
    given_rows = [stream.step(sample) for sample in X] + [stream.flush()]
    for which in ("provisional", "final"):
        samples = np.concatenate([getattr(given, which).samples for given in given_rows])
        assert samples.tolist() == list(range(0, 22, 2)), which


def test_reset_snapshot_and_restore(pair: tuple[rt.Model, rt.Model]) -> None:
    stream = rt.ProvisionalStream(*pair)
    stream.push(X)
    stream.flush()
    stream.reset()
    assert stream.position == 0
    stream.push(X[:10])
    twin = rt.ProvisionalStream(*pair)
    twin.restore(stream.snapshot())
    a, b = stream.push(X[10:]), twin.push(X[10:])
    for one, other in ((a.provisional, b.provisional), (a.final, b.final)):
        np.testing.assert_array_equal(one.samples, other.samples)
        np.testing.assert_array_equal(one.values, other.values)
    assert repr(twin) == "ProvisionalStream('stream', position=23)"


def test_a_snapshot_that_is_none(pair: tuple[rt.Model, rt.Model]) -> None:
    stream = rt.ProvisionalStream(*pair)
    stream.push(X[:4])
    whole = stream.snapshot()
    for data in (b"", whole[:20], whole[:-1], whole[8:], b"\xff" * 8 + whole[8:]):
        with pytest.raises(SnapshotError):
            stream.restore(data)
        assert stream.position == 4
    nothing: list[Any] = [None, "text", 5, [1, 2]]
    for data in nothing:
        with pytest.raises(SnapshotError, match="expected bytes"):
            stream.restore(data)
    other = rt.ProvisionalStream(*pair)
    other.push(X[:5])
    size = int.from_bytes(whole[:8], "little")
    with pytest.raises(SnapshotError, match="have taken 4 and 5 samples"):
        stream.restore(whole[: 8 + size] + other.snapshot()[8 + size :])


def test_a_bad_sample_loses_nothing_and_an_end_is_an_end(pair: tuple[rt.Model, rt.Model]) -> None:
    stream = rt.ProvisionalStream(*pair)
    stream.push(X[:4])
    with pytest.raises(NonFiniteError):
        stream.step(np.full(3, np.nan, np.float32))
    assert stream.step(X[4]).provisional.samples.tolist() == [4]
    stream.flush()
    with pytest.raises(StreamEndedError):
        stream.step(X[5])


def test_an_interrupt_between_the_two_is_told(pair: tuple[rt.Model, rt.Model], monkeypatch: pytest.MonkeyPatch) -> None:
    stream = rt.ProvisionalStream(*pair)
    stream.push(X[:4])
    snapshot = stream.snapshot()

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(stream._later, "step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            stream.step(X[4])
    for call in (lambda: stream.step(X[4]), stream.flush, stream.snapshot):
        with pytest.raises(StreamEndedError, match="an interrupt left its provisional stream at sample 5"):
            call()
    stream.restore(snapshot)
    assert stream.step(X[4]).provisional.samples.tolist() == [4]


def test_models_that_are_no_pair(pair: tuple[rt.Model, rt.Model], tmp_path: Path) -> None:
    now, later = pair
    with pytest.raises(ConfigError, match="provisional predictions sooner than final ones, got a lookahead of 7 and 0"):
        rt.ProvisionalStream(later, now)
    other = models(tmp_path, stack("GRU"))
    with pytest.raises(ConfigError, match="two streams of one offline model"):
        rt.ProvisionalStream(now, other[1])


def test_models_under_different_promises_are_no_pair(tmp_path: Path) -> None:
    """One might end, and take no more samples, where the other refuses to."""
    write_seam("both ways, by a promise", tmp_path)
    for name, promise in (("now", (4, 1)), ("now.twin", (2, 1))):
        out = tmp_path / f"{name}.stream.onnx"
        streamify(tmp_path / "m.onnx", out, 1, lookahead=0, length_modulo=promise)
    later = rt.load(tmp_path / "m.stream.onnx")
    with pytest.raises(ConfigError, match="under the same conditions"):
        rt.ProvisionalStream(rt.load(tmp_path / "now.stream.onnx"), later)
    stream = rt.ProvisionalStream(rt.load(tmp_path / "now.twin.stream.onnx"), later)
    x = RNG.normal(size=(9, 4)).astype(np.float32)
    stream.push(x[:8])
    with pytest.raises(InputError, match="expected 1 samples modulo 2"):
        stream.flush()
    rows = [stream.step(x[8]), stream.flush()]
    assert [row.final.samples.tolist()[-1:] for row in rows][1] == [8]
