"""Writes the graphs of tests/export/torch_models.py, by both exporters, and what torch computes.

Run `python -m tests.data.torch.make` where torch is (`pip install -e .[torch]`). For each family it writes
NAME.EXPORTER.onnx, without torch's records of the source lines, and NAME.npz: an input ``x``, and ``y_N`` for its first
N steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as passes

from tests.export import torch_models

HERE = Path(__file__).parent
LENGTHS = (13, 16, 29)


def main() -> None:
    """Write all files."""
    for name, family in torch_models.MODELS.items():
        module = torch_models.build(name)
        for exporter in torch_models.EXPORTERS:
            model = ir.from_proto(torch_models.export(name, module, exporter))
            passes.ClearMetadataAndDocStringPass()(model)
            model.metadata_props.clear()
            ir.save(model, HERE / f"{name}.{exporter}.onnx")
        x, time = torch_models.sample(name, LENGTHS[-1]), family.layout.index("T")
        arrays: dict[str, Any] = {"x": x}
        arrays |= {f"y_{n}": torch_models.run(module, x.take(range(n), axis=time)) for n in LENGTHS}
        np.savez_compressed(HERE / f"{name}.npz", **arrays)


if __name__ == "__main__":
    main()
