"""edgeseq.runtime: exact streaming of an exported model on onnxruntime and numpy alone.

    >>> from edgeseq import runtime as rt
    >>> rt.load("nowhere.stream.onnx")
    Traceback (most recent call last):
    edgeseq.errors.ModelNotFoundError: no model file at 'nowhere.stream.onnx'; check the path, or make one with ...

``load`` opens a step graph (``NAME.stream.onnx``), ``load_offline`` an offline one (``NAME.onnx``). A ``Model`` is
immutable and may be shared; a ``Stream`` is one sensor's state. Nothing here imports Keras, TensorFlow, onnx or
tf2onnx.
"""

from edgeseq.errors import (
    DTypeError,
    EdgeseqError,
    InputError,
    ModelFileError,
    ModelNotFoundError,
    NonFiniteError,
    ShapeError,
    SnapshotError,
    StreamEndedError,
)
from edgeseq.runtime.model import Model, load
from edgeseq.runtime.offline import OfflineModel, load_offline
from edgeseq.runtime.provisional import Predictions, ProvisionalStream, Rows
from edgeseq.runtime.snapshot import SnapshotStore
from edgeseq.runtime.stream import Stream

__all__ = [
    "DTypeError",
    "EdgeseqError",
    "InputError",
    "Model",
    "ModelFileError",
    "ModelNotFoundError",
    "NonFiniteError",
    "OfflineModel",
    "Predictions",
    "ProvisionalStream",
    "Rows",
    "ShapeError",
    "SnapshotError",
    "SnapshotStore",
    "Stream",
    "StreamEndedError",
    "load",
    "load_offline",
]
