"""edgeseq.runtime: exact streaming of an exported model on onnxruntime and numpy alone.

    >>> from edgeseq import runtime as rt
    >>> rt.load("nowhere.stream.onnx")
    Traceback (most recent call last):
    edgeseq.errors.ModelNotFoundError: no model file at 'nowhere.stream.onnx'; check the path, or make one with ...

``load`` opens a step graph (``NAME.stream.onnx``), ``load_offline`` an offline one (``NAME.onnx``). A ``Model`` is
immutable and may be shared; a ``Stream`` is one sensor's state, a ``Pool`` holds those of many. A ``Feeder`` takes what
sensors send, late, twice or with gaps, and gives ``Prediction`` records. Nothing here imports Keras, TensorFlow, onnx
or tf2onnx.
"""

from typing import TYPE_CHECKING

from edgeseq.errors import (
    ClockJumpError,
    DTypeError,
    EdgeseqError,
    GapError,
    InputError,
    ModelFileError,
    ModelNotFoundError,
    NonFiniteError,
    PoolFullError,
    ShapeError,
    SnapshotError,
    StreamBusyError,
    StreamEndedError,
    StreamExistsError,
    StreamExpiredError,
    StreamNotOpenError,
)
from edgeseq.runtime.clock import SensorClock
from edgeseq.runtime.clock_counters import Counters
from edgeseq.runtime.feeder import Feeder, predictions
from edgeseq.runtime.labels import ExponentialAverage, HoldMargin, HoldRepeats, LabelRule, Majority
from edgeseq.runtime.latency import Latency, prometheus_text
from edgeseq.runtime.model import Model, load
from edgeseq.runtime.offline import OfflineModel, load_offline
from edgeseq.runtime.pool import Pool
from edgeseq.runtime.prediction import Prediction
from edgeseq.runtime.provisional import ProvisionalAndFinal, ProvisionalStream, Rows
from edgeseq.runtime.sample import Sample
from edgeseq.runtime.snapshot import SnapshotStore
from edgeseq.runtime.stream import Stream

if TYPE_CHECKING:
    from edgeseq.runtime.feeds.runner import run
else:

    def __getattr__(name: str) -> object:
        """Import ``run`` when it is first used: it brings asyncio, which the core does without."""
        if name == "run":
            from edgeseq.runtime.feeds.runner import run

            return run
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "ClockJumpError",
    "Counters",
    "DTypeError",
    "EdgeseqError",
    "ExponentialAverage",
    "Feeder",
    "GapError",
    "HoldMargin",
    "HoldRepeats",
    "InputError",
    "LabelRule",
    "Latency",
    "Majority",
    "Model",
    "ModelFileError",
    "ModelNotFoundError",
    "NonFiniteError",
    "OfflineModel",
    "Pool",
    "PoolFullError",
    "Prediction",
    "ProvisionalAndFinal",
    "ProvisionalStream",
    "Rows",
    "Sample",
    "SensorClock",
    "ShapeError",
    "SnapshotError",
    "SnapshotStore",
    "Stream",
    "StreamBusyError",
    "StreamEndedError",
    "StreamExistsError",
    "StreamExpiredError",
    "StreamNotOpenError",
    "load",
    "load_offline",
    "predictions",
    "prometheus_text",
    "run",
]
