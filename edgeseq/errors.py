"""Every exception that edgeseq raises for a user's mistake or a broken file.

    EdgeseqError
    ├── ModelFileError          a model file that is not what it says it is
    │   └── ModelNotFoundError      (also a FileNotFoundError)
    ├── InputError              a sample or chunk that the model cannot take; the state is unchanged
    │   ├── ShapeError              (also a ValueError)
    │   ├── DTypeError              (also a TypeError)
    │   ├── NonFiniteError          (also a ValueError)
    │   ├── FrameError              a line or message of a feed that holds no sample; the feed goes on
    │   ├── GapError                samples are missing, and the clock is to raise; start anew, then feed it again
    │   └── ClockJumpError          a timestamp or sequence number far from the last, and the clock is to raise
    ├── StreamEndedError        a stream used after flush() without reset()
    ├── StreamBusyError         a stream or pool used while a call of it is under way, which goes on undisturbed
    ├── StreamNotOpenError      (also a LookupError) an id under which a pool has no stream; nothing was changed
    │   └── StreamExpiredError      its stream was idle for too long, and was closed
    ├── StreamExistsError       an id that was opened while a stream of a pool has it
    ├── PoolFullError           a pool that has as many streams as it may have
    ├── SnapshotError           a snapshot that is damaged, newer, or of another model; nothing was loaded
    ├── FeedError               a feed or sink that cannot be opened, read or written any more
    ├── ConfigError             (also a ValueError) arguments that do not fit together
    ├── MissingDependencyError  (also an ImportError) an extra that is not installed
    └── ExportError             a Keras model that cannot be exported right
        ├── UnsupportedLayerError   no exact ONNX form is known
        ├── NotStreamableError      the offline model is right, but it has no exact step graph
        └── VerificationError       two forms of the model disagree; nothing was written

A message says what, where, expected, got, fix. This module imports nothing, so that the runtime, the exporter
and the training side share one tree.
"""


class EdgeseqError(Exception):
    """Root of every exception that edgeseq raises on purpose."""


class ModelFileError(EdgeseqError):
    """A model file that is damaged, foreign, or of a format that this version cannot read."""


class ModelNotFoundError(ModelFileError, FileNotFoundError):
    """The model file does not exist."""


class InputError(EdgeseqError):
    """A sample or chunk that the model cannot take. The stream's state is unchanged."""


class ShapeError(InputError, ValueError):
    """An input of the wrong shape."""


class DTypeError(InputError, TypeError):
    """An input of the wrong dtype. edgeseq never casts silently."""


class NonFiniteError(InputError, ValueError):
    """An input that holds NaN or infinity."""


class FrameError(InputError):
    """A line or message of a feed that holds no sample; ``kind`` is the name that it is counted under."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class GapError(InputError):
    """Samples before this one are missing, and the sensor clock was told to raise. The sample was not taken."""


class ClockJumpError(InputError):
    """A timestamp or sequence number far from the last, and the sensor clock was told to raise. It was not taken."""


class StreamEndedError(EdgeseqError):
    """A stream that was used after ``flush()`` and before ``reset()``."""


class StreamBusyError(EdgeseqError):
    """A stream or a pool that was used from two threads at once. The call that was under way goes on undisturbed."""


class StreamNotOpenError(EdgeseqError, LookupError):
    """An id under which a pool has no stream. Nothing was changed."""


class StreamExpiredError(StreamNotOpenError):
    """An id whose stream was idle for too long, so that ``Pool.expire`` closed it. Open it again for a fresh state."""


class StreamExistsError(EdgeseqError):
    """An id that was opened while a stream of the pool has it."""


class PoolFullError(EdgeseqError):
    """A pool that has as many streams as it may have."""


class SnapshotError(EdgeseqError):
    """A snapshot that is truncated, damaged, newer than this edgeseq, or of another model. Nothing was loaded."""


class FeedError(EdgeseqError):
    """A feed or sink that cannot be opened, or can no longer be read or written."""


class ConfigError(EdgeseqError, ValueError):
    """Arguments that do not fit together, or a value out of its range."""


class MissingDependencyError(EdgeseqError, ImportError):
    """A package of an optional extra is not installed."""


class ExportError(EdgeseqError):
    """A Keras model that cannot be exported right."""


class UnsupportedLayerError(ExportError):
    """A layer, or an option of one, for which no exact ONNX form is known."""


class NotStreamableError(ExportError):
    """A graph that has no exact step graph; the message names the node and the reason."""


class VerificationError(ExportError):
    """Two forms of one model disagree. Nothing was written."""
