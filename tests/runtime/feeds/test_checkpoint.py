"""What a run keeps in its folder: checkpoints as a whole, journals with a torn end, and what is damaged."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgeseq import runtime as rt
from edgeseq.errors import ConfigError, SnapshotError
from edgeseq.runtime.feeds.checkpoint import Checkpoints, Journal, RunState, pack_run, unpack_run
from edgeseq.runtime.snapshot import pack


def test_a_run_state_survives_the_bytes() -> None:
    state = RunState(
        3, "csv:x", {"offset": 7}, "jsonl:y", 12, {"frames": 5, "not_json": 2}, {"a": b"", "ü/b": bytes(range(11))}
    )
    assert unpack_run(pack_run(state)) == state


def test_what_is_no_run_is_refused() -> None:
    good = pack_run(RunState(1, streams={"a": b"12345"}))
    for i in range(0, len(good), 7):
        wrong = bytearray(good)
        wrong[i] ^= 64
        with pytest.raises(SnapshotError):
            unpack_run(bytes(wrong))
        with pytest.raises(SnapshotError):
            unpack_run(good[:i])
    with pytest.raises(SnapshotError, match="install the edgeseq that wrote it"):
        unpack_run(pack({"run": 2}, []))
    with pytest.raises(SnapshotError, match="expected one of a run"):
        unpack_run(pack({"position": 2}, []))
    with pytest.raises(SnapshotError, match="damaged"):
        unpack_run(pack({"run": 1, "n_bytes": 4}, []))


def test_a_journal_begins_with_each_checkpoint_and_outlives_a_torn_line(tmp_path: Path) -> None:
    first = Checkpoints(tmp_path)
    assert first.load() is None
    first.save(RunState())
    assert first.journal is not None
    first.journal.add([rt.Sample("a", [1.5, None], 0.25, 3), rt.Sample("b", {"x": 1})])
    first.journal.out(4)
    first.journal.out(2)
    with pytest.raises(ConfigError, match="another run uses"):
        Checkpoints(tmp_path)
    first.close()
    path = tmp_path / "journal-1.jsonl"
    path.write_bytes(path.read_bytes() + b'["a", [1.5')
    second = Checkpoints(tmp_path)
    state = second.load()
    assert state is not None
    assert state.generation == 1
    assert second.journal is not None
    assert second.journal.samples == [rt.Sample("a", [1.5, None], 0.25, 3), rt.Sample("b", {"x": 1})]
    assert second.journal.n_out == 6
    second.journal.out(1)
    assert path.read_bytes().endswith(b"\n2\n1\n")
    second.save(state)
    assert not path.exists()
    assert second.journal.samples == []
    second.close()


def test_a_journal_that_was_changed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal").write_text('{"no": "sample"\n')
    with pytest.raises(SnapshotError, match="damaged, the journal"):
        Journal(tmp_path / "journal")
