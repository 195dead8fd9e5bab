"""Writes tests/data/tiny.onnx and tiny.stream.onnx, and tiny_bilstm.onnx, of the newest format.

Files of older formats stay beside them (format1.onnx and its step graph), since they must load for ever.
"""

from __future__ import annotations

import numpy as np

from edgeseq import bilstm_tagger, tcn_tagger
from edgeseq.export import export_model

if __name__ == "__main__":
    model = tcn_tagger(3, 2, nb_filters=4, kernel_size=2, dilations=(1, 2), mean=[1, 2, 3], std=[1, 2, 3])
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape) * 0.5)
    export_model(
        model,
        "tests/data",
        name="tiny",
        feature_names=["x", "y", "z"],
        label_names=["rest", "move"],
        rate_hz=50,
    )
    both_ways = bilstm_tagger(3, 2, units=4, mean=[1, 2, 3], std=[1, 2, 3])
    for weight in both_ways.weights:
        weight.assign(rng.normal(size=weight.shape) * 0.5)
    export_model(both_ways, "tests/data", name="tiny_bilstm", label_names=["rest", "move"], rate_hz=50)
