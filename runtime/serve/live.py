"""The live page's side of the server: one replay, shared by all viewers, and an update for each every 40 ms.

A viewer that does not read as fast misses updates, never the others: its queue is bounded, and when it has room again
it is told everything anew.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from edgeseq.errors import ConfigError, FrameError
from edgeseq.runtime.inputs import Array
from edgeseq.runtime.model import Model
from edgeseq.runtime.serve.counters import Counters
from edgeseq.runtime.serve.replay import Replay, Track
from edgeseq.runtime.serve.streams import as_json

TURN_S = 0.04
SHOWN = 3000
"""Samples that a viewer who comes late is shown."""

QUEUE = 50
"""Updates that wait for a viewer, 2 s of them."""

SPEEDS = (0.25, 0.5, 1.0, 2.0, 5.0, 10.0)
GUESSED_RATE_HZ = 50.0
_MOST_A_TURN = 256


class Viewer:
    """A bounded queue of updates."""

    def __init__(self) -> None:
        self._waiting: deque[str] = deque()
        self._there = asyncio.Event()
        self.missed = 0

    def put(self, update: str) -> bool:
        """Add an update, and return whether there was room; if not, all that waited is gone."""
        if len(self._waiting) >= QUEUE:
            self.missed += len(self._waiting) + 1
            self._waiting.clear()
            return False
        self._waiting.append(update)
        self._there.set()
        return True

    async def get(self) -> str:
        """The oldest update, once there is one."""
        while not self._waiting:
            self._there.clear()
            await self._there.wait()
        return self._waiting.popleft()


class Live:
    """Plays replays, and tells viewers."""

    def __init__(self, make: Callable[[], Replay], model: Model, counters: Counters) -> None:
        self._make, self._model, self._counters = make, model, counters
        self._replay = make()
        self._viewers: set[Viewer] = set()
        self._task: asyncio.Task[None] | None = None
        self._stopping = False
        self.speed = 1.0
        self.rate_hz = model.rate_hz or GUESSED_RATE_HZ

    def join(self) -> Viewer:
        """A new viewer, who is told everything so far."""
        viewer = Viewer()
        viewer.put(self._everything())
        self._viewers.add(viewer)
        return viewer

    def leave(self, viewer: Viewer) -> None:
        """A viewer is gone."""
        self._viewers.discard(viewer)

    def take(self, text: str) -> None:
        """What a viewer asks for: ``{"type": "start"}``, ``stop``, or ``speed`` with a value.

        Raises:
            FrameError: nothing right.
        """
        try:
            given = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise FrameError("not_json", f"live frame: expected JSON ({type(error).__name__})") from error
        kind = given.get("type") if isinstance(given, dict) else None
        if kind == "start":
            self.start()
        elif kind == "stop":
            self.stop()
        elif kind == "speed" and given.get("value") in SPEEDS and type(given["value"]) is not bool:
            self.speed = float(given["value"])
            self._tell(self._update(self._replay.position, self._lengths()))
        else:
            raise FrameError("unknown_type", f"live frame: expected start, stop, or speed with a value of {SPEEDS}")

    def start(self) -> None:
        """Play from the start, if it is not playing."""
        if self._task is None or self._task.done():
            self._replay = self._make()
            self._task = asyncio.get_running_loop().create_task(self._play(self._replay))
            self._tell(self._everything())

    def stop(self) -> None:
        """End the replay where it is; the offline model then sees what there was."""
        if self._task is not None and not self._task.done():
            self._stopping = True

    async def close(self) -> None:
        """End at once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    @property
    def is_playing(self) -> bool:
        """Whether a replay is under way."""
        return self._task is not None and not self._task.done() and not self._replay.has_ended

    async def _play(self, replay: Replay) -> None:
        self._stopping = False
        loop = asyncio.get_running_loop()
        before, due = loop.time(), 0.0
        while not self._stopping and replay.position < len(replay.recording.samples):
            await asyncio.sleep(TURN_S)
            now = loop.time()
            # A machine that cannot keep up plays slower, rather than ever more at a time.
            due = min(due + (now - before) * self.rate_hz * self.speed, _MOST_A_TURN)
            before, position, lengths = now, replay.position, self._lengths()
            due -= replay.advance(int(due))
            self._tell(self._update(position, lengths))
        offline = await asyncio.to_thread(replay.run_offline)
        lengths = self._lengths()
        replay.finish(offline)
        self._tell(self._update(replay.position, lengths))

    def _lengths(self) -> dict[str, int]:
        return {name: len(track.rows) for name, track in self._replay.tracks.items()}

    def _tell(self, update: str) -> None:
        for viewer in self._viewers:
            if not viewer.put(update):
                self._counters.add("dropped_updates_total", n=QUEUE + 1)
                viewer.put(self._everything())

    def _update(self, first: int, lengths: dict[str, int]) -> str:
        """What is new since the sample ``first`` and so many rows of each track."""
        tracks = {name: _told(track, lengths[name]) for name, track in self._replay.tracks.items()}
        return json.dumps({"type": "update", **self._state(first), "tracks": tracks})

    def _everything(self) -> str:
        """The model, the state, and the last samples."""
        replay, model = self._replay, self._model
        first = max(0, replay.position - SHOWN)
        tracks = {name: _told(track, _from_sample(track, first)) for name, track in replay.tracks.items()}
        start = {
            "type": "everything",
            "model": model.name,
            "channels": model.feature_names or [f"channel {i}" for i in range(model.input.shape[0])],
            "labels": model.label_names,
            "output_shape": model.output.shape,
            "rate_hz": self.rate_hz,
            "rate_is_known": model.rate_hz is not None,
            "recording": replay.recording.name,
            "length": len(replay.recording.samples),
            "lookahead": replay.lookaheads(),
            "speeds": SPEEDS,
        }
        return json.dumps({**start, **self._state(first), "tracks": tracks})

    def _state(self, first: int) -> dict[str, Any]:
        replay, latency = self._replay, self._replay.latency
        figures: dict[str, Any] = {}
        if latency.count:
            figures = {"count": latency.count, "p50_us": latency.p50_us, "p99_us": latency.p99_us}
            figures |= {"max_us": latency.max_us, "histogram": latency.histogram()}
        return {
            "state": "playing" if self.is_playing else "ended" if replay.has_ended else "ready",
            "speed": self.speed,
            "position": replay.position,
            "first": first,
            "samples": _rounded(replay.recording.samples[first : replay.position]),
            "latency": figures,
            "agreement": replay.agreement() if replay.has_ended else {},
        }


def _from_sample(track: Track, sample: int) -> int:
    return int(np.searchsorted(track.samples, sample))


def _told(track: Track, start: int) -> dict[str, Any]:
    rows = track.rows[start:]
    return {"samples": track.samples[start:], "rows": _rounded(np.stack(rows).reshape(len(rows), -1)) if rows else []}


def _rounded(array: Array) -> Any:
    """Six digits, as many as one sees."""
    return [[None if x is None else float(f"{x:.6g}") for x in row] for row in as_json(array)]


def no_live(reason: ConfigError) -> str:
    """The first frame to a viewer where the page cannot show the model."""
    return json.dumps({"type": "nothing", "reason": str(reason)})
