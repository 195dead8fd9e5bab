"""ProvisionalAndFinal at once, and better ones later: two streams of one offline model, fed alike.

The one is bounded to no lookahead (``streamify(..., lookahead=0, chunk=1)``): it says of the newest sample what can be
said now. The other one's lookahead is longer, and what it says later is final. Owns which row belongs to which sample;
refuses two files of different models. Invariant: both streams have taken the same samples.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeseq.errors import ConfigError, SnapshotError, StreamEndedError
from edgeseq.model_file import Description, Timing
from edgeseq.runtime.inputs import Array
from edgeseq.runtime.model import Model
from edgeseq.runtime.snapshot import as_bytes
from edgeseq.runtime.stream import Stream

_LENGTH_BYTES = 8


@dataclass(frozen=True)
class Rows:
    """ProvisionalAndFinal (n, K), and for each the index of the sample (n,) that it belongs to; n may be 0.

    Example:
        >>> rows = Rows(samples=np.array([4, 5]), values=np.zeros((2, 3), np.float32))
        >>> len(rows), rows.values[list(rows.samples).index(5)].tolist()
        (2, [0.0, 0.0, 0.0])
    """

    samples: Array
    values: Array

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True)
class ProvisionalAndFinal:
    """What a call gives: provisional rows, which a final one of the same sample will replace, and final ones."""

    provisional: Rows
    final: Rows


class ProvisionalStream:
    """One sensor's stream with a provisional prediction for every sample, and a final one later.

    A provisional prediction is that of layers whose backward half sees the newest row alone: for one recurrent layer
    the offline model's last output on the samples so far, exactly. Of several layers each runs over what the one before
    said provisionally. A final one is the longer stream's, as if it ran alone.
    ``docs/lookahead.md`` has an example.
    """

    def __init__(self, now: Model, later: Model, name: str = "stream") -> None:
        """Open two streams.

        Args:
            now: of the provisional predictions; made with ``lookahead=0, chunk=1``.
            later: of the final ones, from the same offline model.
            name: appears in errors.

        Raises:
            ConfigError: the two are of different offline models, or under different promises, ``now`` is not sooner,
                or they have several outputs.
        """
        origins = [model.description.offline for model in (now, later)]
        hashes = [None if origin is None else origin.graph_sha256 for origin in origins]
        if hashes[0] != hashes[1] or now.description.inputs != later.description.inputs:
            raise ConfigError(
                f"{name!r}: expected two streams of one offline model, got {now.name!r} and {later.name!r}, of the "
                f"graphs {hashes}; streamify one file twice, once with lookahead=0"
            )
        if any(len(model.description.outputs) > 1 for model in (now, later)):
            raise ConfigError(f"{name!r}: expected models of one output, got several; open two streams yourself")
        if now.description.conditions != later.description.conditions:
            raise ConfigError(
                f"{name!r}: expected two streams under the same conditions, got {now.description.conditions} and "
                f"{later.description.conditions}, so one might end where the other may not; give streamify the same "
                "length_modulo"
            )
        if now.lookahead >= later.lookahead:
            raise ConfigError(
                f"{name!r}: expected provisional predictions sooner than final ones, got a lookahead of "
                f"{now.lookahead} and {later.lookahead} samples; give the model of the shorter one first"
            )
        self.name = name
        self._models = now, later
        self._now, self._later = (model.stream(name) for model in (now, later))

    @property
    def position(self) -> int:
        """Samples taken since the start or the last ``reset``."""
        return self._later.position

    def step(self, sample: Any) -> ProvisionalAndFinal:
        """Take one sample (C,); its provisional prediction comes at once, unless convolutions look ahead, too.

        Raises:
            ShapeError, DTypeError, NonFiniteError: the sample is not what the model takes; the state is unchanged.
            StreamEndedError: ``flush`` was called, or an interrupt came between the two streams.
        """
        return self._both("step", sample)

    def push(self, chunk: Any) -> ProvisionalAndFinal:
        """Take consecutive samples (T, C), T >= 0. Raises what ``step`` does."""
        return self._both("push", chunk)

    def flush(self) -> ProvisionalAndFinal:
        """End the sequence: what is still owed, all final predictions among it."""
        return self._both("flush")

    def reset(self) -> None:
        """Go back to the state of a new stream."""
        self._now.reset()
        self._later.reset()

    def snapshot(self) -> bytes:
        """The state as bytes, from which ``restore`` continues bitwise."""
        self._check_together()
        now = self._now.snapshot()
        return len(now).to_bytes(_LENGTH_BYTES, "little") + now + self._later.snapshot()

    def restore(self, snapshot: bytes | bytearray | memoryview) -> None:
        """Continue where the stream stood that the snapshot was taken from.

        Raises:
            SnapshotError: the snapshot is damaged, or of another model; the stream is as it was.
        """
        data = as_bytes(snapshot)
        size = int.from_bytes(data[:_LENGTH_BYTES], "little")
        parts = data[_LENGTH_BYTES : _LENGTH_BYTES + size], data[_LENGTH_BYTES + size :]
        now, later = (model.restore(part, self.name) for model, part in zip(self._models, parts, strict=True))
        if now.position != later.position:
            raise SnapshotError(
                f"snapshot: its two streams have taken {now.position} and {later.position} samples; it is not one that "
                "ProvisionalStream.snapshot made"
            )
        self._now, self._later = now, later

    def _both(self, call: str, *given: Any) -> ProvisionalAndFinal:
        self._check_together()
        # Both take the same inputs, so what the first one refuses changes neither.
        now, later = (model.description for model in self._models)
        provisional = _called(now, self._now, call, *given)
        return ProvisionalAndFinal(provisional, _called(later, self._later, call, *given))

    def _check_together(self) -> None:
        if self._now.position != self._later.position:
            raise StreamEndedError(
                f"{self._later}: an interrupt left its provisional stream at sample {self._now.position}; "
                "call reset(), or restore a snapshot"
            )

    def __repr__(self) -> str:
        return f"ProvisionalStream({self.name!r}, position={self.position})"


def _called(d: Description, stream: Stream, call: str, *given: Any) -> Rows:
    port = d.output
    assert port.timing is not None
    first = _rows_given(d, port.timing, stream.position)
    y = getattr(stream, call)(*given)
    values = np.zeros((0, *port.shape), port.dtype) if y is None else y if y.ndim > len(port.shape) else y[None]
    samples, rows = port.timing.hop
    return Rows((first + np.arange(len(values))) * samples // rows, values)


def _rows_given(d: Description, timing: Timing, position: int) -> int:
    """How many rows a stream has given for so many samples, before its end."""
    fed = (d.phase + position) // d.granule * d.granule
    return max(0, fed * timing.hop[1] // timing.hop[0] - timing.delay)
