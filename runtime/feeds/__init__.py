"""edgeseq.runtime.feeds: from a wire to the model, and from the model to a wire.

``run(model, feed, sink)`` is ``edgeseq run`` as a function. Feeds and sinks are addresses, such as
``SCHEME:PATH?option=value``; each scheme is one small module, imported when it is first named, over the library that it
stands on. ``docs/feeds.md`` has a recipe for each.
"""

from edgeseq.runtime.feeds.address import Address
from edgeseq.runtime.feeds.frame import Feed, Frame, Sink
from edgeseq.runtime.feeds.registry import SCHEMES, open_feed, open_sink, register
from edgeseq.runtime.feeds.report import RunReport
from edgeseq.runtime.feeds.runner import Run, RunSettings, run

__all__ = [
    "SCHEMES",
    "Address",
    "Feed",
    "Frame",
    "Run",
    "RunReport",
    "RunSettings",
    "Sink",
    "open_feed",
    "open_sink",
    "register",
    "run",
]
