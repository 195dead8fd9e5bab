"""Snapshots: they continue bitwise, refuse what is not theirs, and survive a crash while they are written."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as L  # noqa: N812

from edgeseq import runtime as rt
from edgeseq.errors import ConfigError
from edgeseq.export import export_model
from edgeseq.runtime import fast_step
from edgeseq.runtime.snapshot import pack, unpack
from tests.export.small_models import chain
from tests.runtime.signed_snapshots import changed

TINY = rt.load("tests/data/tiny.stream.onnx")


def _samples(n: int, channels: int = 3, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(n, channels)).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["step", "push", "snapshot"]), max_size=25),
    st.lists(st.sampled_from(["step", "push", "snapshot"]), max_size=10),
)
def test_a_restored_stream_continues_bitwise(before: list[str], after: list[str]) -> None:
    original = TINY.stream("a")
    _run(original, before)
    data = original.snapshot()
    twin = TINY.restore(data, "b")
    assert twin.snapshot() == data == original.snapshot()
    for ours, theirs in zip(_run(original, after), _run(twin, after), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert twin.snapshot() == original.snapshot()
    assert twin.position == original.position


def _run(stream: rt.Stream, calls: list[str]) -> list[Any]:
    outputs = []
    for i, call in enumerate(calls):
        x = _samples(5, seed=i)
        if call == "snapshot":
            stream.snapshot()
        else:
            outputs.append(stream.step(x[0]) if call == "step" else stream.push(x))
    return outputs


STACKS = {
    "strides": lambda: chain(L.Conv1D(3, 3, strides=2), L.Conv1D(3, 4, strides=3)),
    "lookahead": lambda: chain(L.Conv1D(3, 5, padding="same"), L.LSTM(3, return_sequences=True)),
    "running mean": lambda: chain(L.Conv1D(3, 3, padding="causal"), L.GlobalAveragePooling1D()),
}


@pytest.mark.parametrize("stack", STACKS)
def test_every_kind_of_state_survives(stack: str, randomise: Any, tmp_path: Path) -> None:
    path = export_model(randomise(STACKS[stack]()), tmp_path, name="m").stream
    assert path is not None
    model = rt.load(path)
    for n in range(0, 17):
        stream, x = model.stream(), _samples(40, 4)
        for row in x[:n]:
            stream.step(row)
        twin = model.restore(stream.snapshot())
        for row in x[n:]:
            np.testing.assert_equal(twin.step(row), stream.step(row))
        np.testing.assert_array_equal(twin.flush(), stream.flush())
        ended = model.restore(stream.snapshot())
        with pytest.raises(rt.StreamEndedError):
            ended.step(x[0])


def test_equal_states_give_equal_bytes_whatever_the_names() -> None:
    a, b = TINY.stream("a"), TINY.stream("b")
    for x in _samples(9):
        a.step(x)
        b.step(x)
    assert a.snapshot() == b.snapshot()
    b.step(_samples(1)[0])
    assert a.snapshot() != b.snapshot()


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_damaged_snapshot_is_refused_and_nothing_is_loaded(data: Any) -> None:
    stream = TINY.stream()
    stream.push(_samples(11))
    whole = stream.snapshot()
    if data.draw(st.booleans()):
        broken = whole[: data.draw(st.integers(0, len(whole) - 1))]
    else:
        at = data.draw(st.integers(0, len(whole) - 1))
        broken = whole[:at] + bytes([whole[at] ^ data.draw(st.integers(1, 255))]) + whole[at + 1 :]
    with pytest.raises(rt.SnapshotError, match="snapshot: "):
        TINY.restore(broken)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda whole: b"", "expected bytes that begin with"),
        (lambda whole: b"PK\x03\x04" + whole, "expected bytes that begin with"),
        (lambda whole: whole[:-40], "truncated, expected"),
        (lambda whole: whole[:10], "truncated, 10 bytes"),
        (lambda whole: whole + b"0", "damaged, expected"),
        (lambda whole: whole[:-50] + b"\xff" + whole[-49:], "damaged, its checksum"),
        (lambda whole: changed(whole, format_version=2), "of format 2, this edgeseq reads 1"),
        (
            lambda whole: changed(whole, position="x"),
            "damaged, its field 'position': expected a whole number .* got 'x'",
        ),
        (lambda whole: changed(whole, arrays=[]), "damaged, expected"),
        (lambda whole: changed(whole, graph_sha256="0" * 64), "of another model, expected the graph"),
    ],
)
def test_refusals_say_which(broken: Any, message: str) -> None:
    with pytest.raises(rt.SnapshotError, match=message):
        TINY.restore(broken(TINY.stream().snapshot()))


def test_a_snapshot_between_steps_leaves_the_rings_where_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    stream, x = TINY.stream(), _samples(40)
    assert "ring buffers" in TINY.explain()
    loads: list[int] = []
    load = fast_step.Rings.load

    def counted(rings: fast_step.Rings, *given: Any) -> None:
        loads.append(1)
        load(rings, *given)

    monkeypatch.setattr(fast_step.Rings, "load", counted)
    twins = []
    for row in x:
        twins.append(TINY.restore(stream.snapshot()))
        stream.step(row)
    assert len(loads) == 1
    for n, twin in enumerate(twins):
        for row in x[n:]:
            twin.step(row)
        assert twin.snapshot() == stream.snapshot()


def test_the_bytes_are_what_the_document_says() -> None:
    data = pack({"a": 1}, [("x", np.array([[1, 2]], np.int64)), ("y", np.array(0.5, np.float32))])
    size = int.from_bytes(data[8:12], "little")
    header = json.loads(data[12 : 12 + size])
    assert data[:8] == b"edgeseq\x00"
    assert header["arrays"][0] == {"name": "x", "dtype": "int64", "shape": [1, 2]}
    assert data[12 + size :][:16] == np.array([1, 2], "<i8").tobytes()
    assert data[-32:] == hashlib.sha256(data[:-32]).digest()
    assert unpack(data)[1]["y"] == 0.5


def test_the_store_keeps_any_key(tmp_path: Path) -> None:
    store = rt.SnapshotStore(tmp_path / "deep" / "folder")
    keys = ["a", "pump/7", "..", "ü ~", ".hidden", "a.snapshot", "A%2F"]
    for key in keys:
        store.save(key, key.encode())
    assert store.keys() == sorted(keys)
    assert [store.load(key) for key in keys] == [key.encode() for key in keys]
    store.save("a", b"newer")
    store.remove("pump/7")
    store.remove("never there")
    assert store.load("a") == b"newer"
    assert len(list((tmp_path / "deep" / "folder").iterdir())) == len(keys) - 1
    with pytest.raises(rt.SnapshotError, match="none of 'pump/7'"):
        store.load("pump/7")


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("", "at least one letter"),
        ("x" * 247, "takes up to 255 bytes, got 256 bytes"),
        ("ü" * 50, "takes up to 255 bytes, got 309 bytes"),
        ("\ud800", "that UTF-8 can hold"),
        (None, "expected a text as the key, got NoneType"),
        (b"a", "expected a text as the key, got bytes"),
        (Path("a"), "expected a text as the key, got PosixPath"),
    ],
)
def test_keys_that_cannot_be_kept_are_refused_everywhere(key: Any, message: str, tmp_path: Path) -> None:
    store = rt.SnapshotStore(tmp_path)
    for call in (store.load, store.remove, lambda key: store.save(key, b"")):
        with pytest.raises(ConfigError, match=message):
            call(key)
    assert list(tmp_path.iterdir()) == []
    store.save("x" * 246, b"the longest")
    assert store.keys() == ["x" * 246]


def test_files_that_are_no_snapshots_of_the_store_are_not_listed(tmp_path: Path) -> None:
    store = rt.SnapshotStore(tmp_path)
    store.save("a b", b"")
    for name in ("a b.snapshot", "a%2fb.snapshot", "%FF.snapshot", ".snapshot", ".x.new", "a.snapshot.snapshot", "b"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / os.fsdecode(b"\xff.snapshot")).write_bytes(b"")
    (tmp_path / "folder.snapshot").mkdir()
    assert store.keys() == ["a b"]
    with pytest.raises(rt.SnapshotError, match=r"cannot read .*folder"):
        store.load("folder")
    with pytest.raises(ConfigError, match=r"cannot remove .*folder"):
        store.remove("folder")
    with pytest.raises(ConfigError, match=r"cannot write .*folder"):
        store.save("folder", b"")
    with pytest.raises(ConfigError, match="expected bytes to keep under 'c', got NoneType"):
        store.save("c", None)  # type: ignore[arg-type]
    assert store.keys() == ["a b"]
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".new") and path.name != ".x.new"]


def test_a_folder_that_went_away_is_a_named_error(tmp_path: Path) -> None:
    store = rt.SnapshotStore(tmp_path / "folder")
    (tmp_path / "folder").rmdir()
    with pytest.raises(ConfigError, match="cannot list"):
        store.keys()
    with pytest.raises(ConfigError, match="cannot remove"):
        store.remove("a")
    with pytest.raises(ConfigError, match="cannot write"):
        store.save("a", b"")
    with pytest.raises(rt.SnapshotError, match="none of 'a'"):
        store.load("a")


def test_only_the_owner_may_read_what_is_kept(tmp_path: Path) -> None:
    store = rt.SnapshotStore(tmp_path)
    store.save("a", b"")
    (path,) = tmp_path.iterdir()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_crash_while_writing_keeps_the_old_one(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = rt.SnapshotStore(tmp_path)
    store.save("a", b"old")

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, call, crash)
        with pytest.raises(KeyboardInterrupt):
            store.save("a", b"new")
    assert store.load("a") == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.snapshot"]


def test_a_write_reaches_the_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []

    def noted(name: str, function: Any) -> Any:
        def call(*args: Any) -> Any:
            seen.append(name)
            return function(*args)

        return call

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    rt.SnapshotStore(tmp_path).save("a", b"1")
    assert seen == ["fsync", "replace", "fsync"]


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "deeper"):
        with pytest.raises(ConfigError, match=r"cannot use .*file.* as a folder"):
            rt.SnapshotStore(folder)
    for wrong in (str(tmp_path) + "\0", None):
        with pytest.raises(ConfigError, match="as a folder"):
            rt.SnapshotStore(wrong)  # type: ignore[arg-type]
