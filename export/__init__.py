"""edgeseq.export: from a trained Keras model to verified model files.

``export_model`` writes the offline model and, where the model streams exactly, its step graph. ``streamify`` makes a
stream file of any offline ONNX file, and ``verify`` holds one to its contract. Names are loaded when they are first
used: what starts from an ONNX file needs no Keras.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edgeseq.export.contract.check import ContractReport, verify
    from edgeseq.export.exporter import ExportReport, export_model
    from edgeseq.export.lowering.registry import register_lowering
    from edgeseq.export.stream_file import StreamReport, streamify

__all__ = [
    "ContractReport",
    "ExportReport",
    "StreamReport",
    "export_model",
    "register_lowering",
    "streamify",
    "verify",
]

_HOME = {
    "ContractReport": "edgeseq.export.contract.check",
    "verify": "edgeseq.export.contract.check",
    "ExportReport": "edgeseq.export.exporter",
    "export_model": "edgeseq.export.exporter",
    "register_lowering": "edgeseq.export.lowering.registry",
    "StreamReport": "edgeseq.export.stream_file",
    "streamify": "edgeseq.export.stream_file",
}


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'edgeseq.export' has no attribute {name!r}")
