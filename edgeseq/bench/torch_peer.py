"""pytorch-tcn's TCN as a step graph: ONNX with a sample and all buffers as inputs, a row and all buffers as outputs."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edgeseq.bench.case import Array

_WEIGHT_SCALE = 0.1  # of random weights: activations stay near 1 through all layers
_OPSET = 17


def export(sizes: Mapping[str, Any], path: Path, n_steps: int) -> tuple[Array, Array]:
    """Write the step graph to ``path``; returns samples (T, C) and what the model gives offline on them, (T, K)."""
    import torch
    from pytorch_tcn import TCN

    torch.manual_seed(0)
    tcn = TCN(
        sizes["n_channels"],
        [sizes["nb_filters"]] * len(sizes["dilations"]),
        kernel_size=sizes["kernel_size"],
        dilations=list(sizes["dilations"]),
        dropout=0.0,
        use_norm=None,
        use_skip_connections=True,
        output_projection=sizes["n_labels"],
    ).eval()
    for parameter in tcn.parameters():
        torch.nn.init.normal_(parameter, 0, _WEIGHT_SCALE)
    x = torch.randn(1, sizes["n_channels"], n_steps)
    step = _step(tcn)
    buffers = [torch.zeros_like(pad.buffer) for pad in step.pads]
    taken = ["sample", *(f"buffer_{i}" for i in range(len(buffers)))]
    given = ["row", *(f"next_{i}" for i in range(len(buffers)))]
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, on tracing and on its age
        offline = torch.softmax(tcn(x), 1)[0].T.numpy()
        torch.onnx.export(
            step,
            (x[:, :, :1], *buffers),
            str(path),
            input_names=taken,
            output_names=given,
            opset_version=_OPSET,
            dynamo=False,
        )
    return np.ascontiguousarray(x[0].T.numpy()), offline


def _step(tcn: Any) -> Any:
    """A module of (1, C, 1) and the buffers to (1, K, 1) and the buffers after it."""
    import torch
    from pytorch_tcn.pad import TemporalPad1d

    class Step(torch.nn.Module):  # type: ignore[misc]  # torch need not be installed
        def __init__(self) -> None:
            super().__init__()
            self.tcn = tcn
            self.pads = [module for module in tcn.modules() if isinstance(module, TemporalPad1d)]

        def forward(self, sample: Any, *buffers: Any) -> Any:
            for pad, buffer in zip(self.pads, buffers, strict=True):
                pad.buffer = buffer
            row = torch.softmax(self.tcn(sample, inference=True), 1)
            return (row, *(pad.buffer for pad in self.pads))

    return Step()
