"""edgeseq.export: from a trained Keras model to verified model files.

``export_model`` writes the offline model and, where the model streams exactly, its step graph.
"""

from edgeseq.export.exporter import ExportReport, export_model
from edgeseq.export.lowering import register_lowering

__all__ = ["ExportReport", "export_model", "register_lowering"]
