"""How much a client may ask for."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from edgeseq.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Bounds of a server; what exceeds one is refused and counted.

    Attributes:
        frame_bytes: of one WebSocket message, or of the body of one HTTP request.
        samples: of one frame, since a frame is computed at one go while others wait.
        window_samples: of all windows of one HTTP request together, which a thread computes.
        streams: that one connection may have open.
        all_streams: that all connections together may have open, kept ones included.
        kept: streams that may be without a connection, or asked to outlive theirs.
        connections: at a time, viewers of the page included.
        slow_s: seconds that a client may leave an answer unread before its connection is ended.
        idle_s: seconds after which a kept stream without a connection is closed.

    Raises:
        ConfigError: a number is out of its range.

    Example:
        >>> Limits(streams=0)
        Traceback (most recent call last):
        edgeseq.errors.ConfigError: serve: expected streams, a number of 1 or more, got 0
    """

    frame_bytes: int = 2**20
    samples: int = 1024
    window_samples: int = 16_384
    streams: int = 1024
    all_streams: int = 4096
    kept: int = 1024
    connections: int = 256
    slow_s: float = 10.0
    idle_s: float = 3600.0

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name.endswith("_s"):
                if not (isinstance(value, int | float) and 0 < value < math.inf):
                    raise ConfigError(f"serve: expected {field.name}, seconds above 0, got {value!r}")
            elif type(value) is not int or value < 1:
                raise ConfigError(f"serve: expected {field.name}, a number of 1 or more, got {value!r}")
