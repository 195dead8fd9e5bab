"""``edgeseq serve``: a model behind a WebSocket, with a live page, metrics and single windows over HTTP.

The protocol is sans-I/O: ``frames`` reads and writes frames, ``connection`` answers them, ``inference`` answers single
windows, ``replay`` steps a recording. ``app`` and ``server`` are the shell around them, and the only modules that need
aiohttp, which the extra ``edgeseq[serve]`` brings.
"""

from edgeseq.runtime.serve.limits import Limits

__all__ = ["Limits"]
