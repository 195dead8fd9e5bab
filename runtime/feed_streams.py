"""The streams behind a feeder: those of a pool, or one of a model's own for each id, in the same words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from edgeseq.runtime.model import Model
from edgeseq.runtime.stream import Stream


class Streams(Protocol):
    """What a feeder asks of its streams; a ``Pool`` has it. A call that raises has changed nothing."""

    def open(self, stream_id: str, *, snapshot: bytes | None = None) -> None:
        """Add a stream, in the state of the snapshot if there is one."""

    def step(self, samples: Mapping[str, Any], /) -> Any:
        """Take one sample of each of these streams: {id: (C,)} -> {id: (K,), (n, K) or None}."""

    def flush(self, stream_id: str) -> Any:
        """End a sequence and return what is owed."""

    def reset(self, stream_id: str) -> None:
        """Start anew."""

    def close(self, stream_id: str) -> None:
        """Remove a stream."""

    def snapshot(self, stream_id: str) -> bytes:
        """A stream's state."""


class ModelStreams:
    """A ``Stream`` for each id."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._streams: dict[str, Stream] = {}

    def open(self, stream_id: str, *, snapshot: bytes | None = None) -> None:
        """Add a stream, in the state of the snapshot if there is one."""
        model = self._model
        self._streams[stream_id] = model.stream(stream_id) if snapshot is None else model.restore(snapshot, stream_id)

    def step(self, samples: Mapping[str, Any]) -> dict[str, Any]:
        """One step of the one stream that is named: of several, an error would leave some moved."""
        ((stream_id, sample),) = samples.items()
        return {stream_id: self._streams[stream_id].step(sample)}

    def flush(self, stream_id: str) -> Any:
        """End a sequence and return what is owed."""
        return self._streams[stream_id].flush()

    def reset(self, stream_id: str) -> None:
        """Start anew."""
        self._streams[stream_id].reset()

    def close(self, stream_id: str) -> None:
        """Remove a stream."""
        del self._streams[stream_id]

    def snapshot(self, stream_id: str) -> bytes:
        """A stream's state."""
        return self._streams[stream_id].snapshot()
