"""edgeseq: from a trained Keras sequence model to exact real-time predictions on an edge device.

Importing this package imports nothing else: names below are loaded when they are first used, so that
``from edgeseq import runtime`` works on a device that has only numpy and onnxruntime.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeseq import export, runtime
    from edgeseq.budget_curve import budget
    from edgeseq.builders import bilstm_tagger, bilstm_text_tagger, tcn_classifier, tcn_tagger
    from edgeseq.tcn import TCN
    from edgeseq.time_distributed import TimeDistributed

__version__ = "0.1.0"

__all__ = [
    "TCN",
    "TimeDistributed",
    "__version__",
    "bilstm_tagger",
    "bilstm_text_tagger",
    "budget",
    "export",
    "runtime",
    "tcn_classifier",
    "tcn_tagger",
]

_HOME = {
    "budget": "edgeseq.budget_curve",
    "TCN": "edgeseq.tcn",
    "TimeDistributed": "edgeseq.time_distributed",
    "tcn_tagger": "edgeseq.builders",
    "tcn_classifier": "edgeseq.builders",
    "bilstm_tagger": "edgeseq.builders",
    "bilstm_text_tagger": "edgeseq.builders",
}


def __getattr__(name: str) -> Any:
    if name in {"export", "runtime"}:
        return import_module(f"edgeseq.{name}")
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'edgeseq' has no attribute {name!r}")
