"""What a run keeps in a folder, so that it goes on after it was killed: a checkpoint, and a journal since then.

The **checkpoint** is one file, replaced as a whole: the state of every stream, the position of the feed and the
position of the sink, all of one moment. The **journal** is what happened since: the samples of a feed that cannot be
read again, and how many predictions are out of a sink that cannot be rewound. What is in neither did not happen.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeseq.errors import ConfigError, SnapshotError
from edgeseq.runtime.sample import Sample
from edgeseq.runtime.snapshot import SnapshotStore, damaged, pack, short, unpack

RUN_VERSION = 1
_KEY = "run"


@dataclass(slots=True)
class RunState:
    """A run at one moment. ``generation`` is the number of the journal that begins here."""

    generation: int = 0
    feed: str = ""
    feed_position: Any = None
    sink: str = ""
    sink_position: Any = None
    counts: dict[str, int] = field(default_factory=dict)
    streams: dict[str, bytes] = field(default_factory=dict)


class Checkpoints:
    """The folder of one run; another process that opens it meanwhile is refused.

    Raises:
        ConfigError: the folder cannot be used, or another run uses it.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self._store = SnapshotStore(folder)
        self._folder = Path(folder)
        self._lock = open(self._folder / "lock", "w")  # noqa: SIM115  held until close()
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ConfigError(
                f"snapshots: another run uses {str(folder)!r}; end it, or give each run a folder of its own"
            ) from error
        self.journal: Journal | None = None

    def load(self) -> RunState | None:
        """The last checkpoint, None if there is none; its journal is open then.

        Raises:
            SnapshotError: it is damaged or newer.
        """
        if _KEY not in self._store.keys():  # noqa: SIM118  a method, of a folder
            return None
        state = unpack_run(self._store.load(_KEY))
        self.journal = Journal(self._journal_path(state.generation))
        return state

    def save(self, state: RunState) -> None:
        """Keep a checkpoint in the place of the last one, and begin a journal."""
        old, state.generation = self.journal, state.generation + 1
        path = self._journal_path(state.generation)
        path.unlink(missing_ok=True)  # of a process that was killed right here
        self._store.save(_KEY, pack_run(state))
        self.journal = Journal(path)
        if old is not None:
            old.remove()

    def close(self) -> None:
        """Let another run use the folder."""
        if self.journal is not None:
            self.journal.close()
        self._lock.close()

    def _journal_path(self, generation: int) -> Path:
        return self._folder / f"journal-{generation}.jsonl"


class Journal:
    """Lines of JSON: ``[stream_id, values, timestamp_s, sequence]``, a sample; a number, so many predictions are out.

    What is written survives the process, not a power cut: that goes back to the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.samples: list[Sample] = []
        """What was there when it was opened."""
        self.n_out = 0
        """How many predictions are out since the checkpoint."""
        whole = 0
        if path.is_file():
            *lines, _torn = path.read_bytes().split(b"\n")
            whole = sum(len(line) + 1 for line in lines)
            for line in lines:
                self._take(line)
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115  close() closes it
        self._file.truncate(whole)

    def _take(self, line: bytes) -> None:
        try:
            given = json.loads(line)
            if isinstance(given, int):
                self.n_out += given
            else:
                self.samples.append(Sample(*given))
        except (ValueError, TypeError) as error:
            raise SnapshotError(
                f"snapshots: damaged, the journal {str(self._path)!r} holds {short(line)}; remove it to go back to the "
                "checkpoint"
            ) from error

    def add(self, samples: list[Sample]) -> None:
        """Keep samples before they are used."""
        self._write("".join(_line(sample) for sample in samples))

    def out(self, n_predictions: int) -> None:
        """Keep that so many predictions are out."""
        self._write(f"{n_predictions}\n")

    def _write(self, text: str) -> None:
        view = memoryview(text.encode())
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError as error:
            raise ConfigError(f"snapshots: cannot write {str(self._path)!r}: {error.strerror}") from error

    def close(self) -> None:
        """Leave it for the next process."""
        self._file.close()

    def remove(self) -> None:
        """Forget it: there is a checkpoint after it."""
        self.close()
        with suppress(FileNotFoundError):
            self._path.unlink()


def pack_run(state: RunState) -> bytes:
    """A run as bytes, of the frame of ``runtime/snapshot.py``; ``unpack_run`` reads it.

    Example:
        >>> unpack_run(pack_run(RunState(3, streams={"pump-7": b"state"}))).streams
        {'pump-7': b'state'}
    """
    facts: dict[str, Any] = asdict(state)
    facts["streams"] = [[name, len(data)] for name, data in state.streams.items()]
    text = json.dumps(facts).encode()
    body = b"".join([len(text).to_bytes(8, "little"), text, *state.streams.values()])
    array = np.frombuffer(body + bytes(-len(body) % 4), "<i4")
    return pack({"run": RUN_VERSION, "n_bytes": len(body)}, [("body", array)])


def unpack_run(data: bytes) -> RunState:
    """What ``pack_run`` was given.

    Raises:
        SnapshotError: it is damaged, newer, or no snapshot of a run.
    """
    header, arrays = unpack(data)
    version = header.get("run")
    if type(version) is int and version > RUN_VERSION:
        raise SnapshotError(
            f"snapshot: of run format {short(version)}, this edgeseq reads {RUN_VERSION}; "
            "install the edgeseq that wrote it"
        )
    if version != RUN_VERSION:
        raise SnapshotError("snapshot: expected one of a run, got another; use Model.restore")
    try:
        body = arrays["body"].astype("<i4").tobytes()[: header["n_bytes"]]
        begin = 8 + int.from_bytes(body[:8], "little")
        facts: Mapping[str, Any] = json.loads(body[8:begin])
        streams = {}
        for name, size in facts["streams"]:
            streams[name] = body[begin : begin + size]
            begin += size
        if begin != len(body):
            raise ValueError("its streams are not as long as its bytes")
        return RunState(**{**facts, "streams": streams})
    except (KeyError, TypeError, ValueError) as error:
        raise damaged(f"its fields are not those of a run ({error})") from error


def _line(sample: Sample) -> str:
    facts = [sample.stream_id, sample.values, sample.timestamp_s, sample.sequence]
    try:
        return json.dumps(facts, default=_plain) + "\n"
    except RecursionError:  # it nests deeper than any values of a model, and will be refused
        return ""


def _plain(value: Any) -> Any:
    return value.tolist()
