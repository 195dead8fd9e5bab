"""What a run counts and measures, while it goes on and at its end, and its Prometheus text."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field

from edgeseq.errors import (
    ClockJumpError,
    DTypeError,
    EdgeseqError,
    FrameError,
    GapError,
    NonFiniteError,
    ShapeError,
)
from edgeseq.runtime.clock_counters import Counters
from edgeseq.runtime.latency import Latency, prometheus_text
from edgeseq.runtime.prediction import Prediction

_NAMES: dict[type[EdgeseqError], str] = {
    GapError: "gap",
    ClockJumpError: "clock_jump",
    ShapeError: "wrong_shape",
    DTypeError: "wrong_type",
    NonFiniteError: "not_finite",
}
COUNTS = {
    "frames": "lines or messages that were read",
    "dropped": "frames dropped, since the queue was full",
    "waits": "times that the feed waited, since the queue was full",
    "predictions": "predictions that are out",
}
"""The names of a run's own counts, and what each counts."""


def kind_of(error: EdgeseqError) -> str:
    """The name that a refused frame is counted under.

    Example:
        >>> kind_of(ShapeError("...")), kind_of(FrameError("not_json", "..."))
        ('wrong_shape', 'not_json')
    """
    return error.kind if isinstance(error, FrameError) else _NAMES.get(type(error), "bad_input")


@dataclass(slots=True, eq=False)
class RunReport:
    """What a run did.

    Attributes:
        frames, dropped, waits, predictions: as ``COUNTS`` says.
        errors: how many frames were refused, by the name of what was wrong.
        samples: the counts of the sensor clocks.
        streams: how many streams there are.
        step: how long the model's steps took.
        end_to_end: from when a frame was read to when its predictions were out.
        latest: the last prediction of each stream.
        changes: the last labels that followed another one of their stream.
        transport: what feed and sink count themselves.
        queued: how many frames wait.
        began_s: of ``time.monotonic``.
    """

    step: Latency = field(default_factory=Latency)
    end_to_end: Latency = field(default_factory=Latency)
    frames: int = 0
    dropped: int = 0
    waits: int = 0
    predictions: int = 0
    queued: int = 0
    streams: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    samples: Counters = field(default_factory=Counters)
    latest: dict[str, Prediction] = field(default_factory=dict)
    changes: deque[Prediction] = field(default_factory=lambda: deque(maxlen=10))
    transport: dict[str, int] = field(default_factory=dict)
    began_s: float = field(default_factory=time.monotonic)

    def saw(self, prediction: Prediction) -> None:
        """Note a prediction that came out."""
        before = self.latest.get(prediction.stream_id)
        self.latest[prediction.stream_id] = prediction
        if prediction.label is not None and (before is None or before.label != prediction.label):
            self.changes.append(prediction)
        self.predictions += 1

    def prometheus(self) -> str:
        """Everything in Prometheus' text format."""
        lines = []
        for name, told in COUNTS.items():
            lines += _counter(f"edgeseq_run_{name}_total", told, {"": getattr(self, name)})
        lines += _counter("edgeseq_run_frame_errors_total", "frames that were refused", self.errors, "kind")
        lines += _counter("edgeseq_run_transport_total", "what feed and sink count", self.transport, "event")
        for name, told, value in (
            ("queued", "frames that wait", self.queued),
            ("streams", "streams that there are", self.streams),
        ):
            lines += [f"# HELP edgeseq_run_{name} {told}", f"# TYPE edgeseq_run_{name} gauge"]
            lines.append(f"edgeseq_run_{name} {value}")
        text = "\n".join(lines) + "\n" + self.samples.prometheus() + prometheus_text([({}, self.step)])
        return text + prometheus_text([({}, self.end_to_end)], "edgeseq_end_to_end_seconds")

    def __str__(self) -> str:
        parts = [f"{name} {getattr(self, name)}" for name in COUNTS if getattr(self, name)]
        parts += [f"{name} {n}" for name, n in sorted(self.errors.items())]
        return ", ".join(parts) or "nothing"


def _counter(name: str, told: str, values: Mapping[str, int], label: str = "") -> list[str]:
    lines = [f"# HELP {name} {told}", f"# TYPE {name} counter"]
    return lines + [name + (f'{{{label}="{key}"}}' if label else "") + f" {n}" for key, n in sorted(values.items())]
