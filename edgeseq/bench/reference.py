"""The reference architectures, built with random weights in ours and in what each peer takes.

NAME.keras, NAME.onnx and NAME.stream.onnx, NAME.tflite (the same weights, state in LiteRT's variables), and
NAME.sizes.json for peers that build the architecture from their own layers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgeseq.bench.case import Array
from edgeseq.errors import ConfigError

_WEIGHT_SCALE = 0.1  # activations stay near 1 through all layers


@dataclass(frozen=True)
class Reference:
    """A causal TCN: blocks of two convolutions with skip connections, and a dense head with a softmax."""

    nb_filters: int
    dilations: tuple[int, ...]
    n_channels: int = 6
    n_labels: int = 5
    kernel_size: int = 3


REFERENCES: Mapping[str, Reference] = {
    "T1": Reference(64, (1, 2, 4, 8, 16, 32)),
    "T2": Reference(24, (1, 2, 4, 8, 16, 32, 64)),
    "D1": Reference(64, (1,) * 6),
    "D512": Reference(64, (512,) * 6),
}


def reference(name: str) -> Reference:
    """The reference of this name.

    Raises:
        ConfigError: there is none.
    """
    if name not in REFERENCES:
        raise ConfigError(f"--reference: expected one of {', '.join(REFERENCES)}, got {name!r}")
    return REFERENCES[name]


def build(sizes: Reference, folder: Path, name: str) -> Path:
    """Write the files of a reference; returns the stream file."""
    from edgeseq import tcn_tagger
    from edgeseq.export import export_model

    model = tcn_tagger(
        sizes.n_channels,
        sizes.n_labels,
        nb_filters=sizes.nb_filters,
        kernel_size=sizes.kernel_size,
        dilations=sizes.dilations,
    )
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape) * _WEIGHT_SCALE)
    report = export_model(model, folder, name=name)
    assert report.stream is not None
    (folder / f"{name}.sizes.json").write_text(json.dumps(asdict(sizes)), encoding="utf-8")
    model.save(folder / f"{name}.keras")
    (folder / f"{name}.tflite").write_bytes(tflite(model, sizes))
    return report.stream


def tflite(model: Any, sizes: Reference) -> bytes:
    """A step of the model for LiteRT, (1, 1, C) -> (1, 1, K), whose history is in variables."""
    import tensorflow as tf

    step = _Step(model, sizes)
    spec = tf.TensorSpec((1, 1, sizes.n_channels), tf.float32)
    function = tf.function(step.step, input_signature=[spec]).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], step.module)
    converter.experimental_enable_resource_variables = True
    converted: bytes = converter.convert()
    return converted


class _Step:
    """The model's own weights in plain TensorFlow: a convolution over what a variable holds and the new row."""

    def __init__(self, model: Any, sizes: Reference) -> None:
        import tensorflow as tf

        self._tf, self.module = tf, tf.Module()
        tcn = next(layer for layer in model.layers if hasattr(layer, "residual_blocks"))
        self._head = [np.asarray(weight) for weight in model.layers[-1].weights]
        self._blocks, history, width = [], [], sizes.n_channels
        for block, dilation in zip(tcn.residual_blocks, sizes.dilations, strict=True):
            convs = [layer for layer in block.branch_layers if layer.name.startswith("conv_")]
            match = None if block.matching_conv is None else _weights(block.matching_conv)
            rows = []
            for channels in (width, sizes.nb_filters):
                past = tf.zeros((1, (sizes.kernel_size - 1) * dilation, channels))
                rows.append(tf.Variable(past, trainable=False))
            history += rows
            self._blocks.append((dilation, list(zip(rows, map(_weights, convs), strict=True)), match))
            width = sizes.nb_filters
        self.module.history = history

    def step(self, x: Any) -> Any:
        """(1, 1, C) -> (1, 1, K)."""
        tf, branches = self._tf, []
        for dilation, convs, match in self._blocks:
            branch = x
            for past, (kernel, bias) in convs:
                rows = tf.concat([past, branch], 1)
                past.assign(rows[:, 1:])
                branch = tf.nn.relu(tf.nn.conv1d(rows, kernel, 1, "VALID", dilations=dilation) + bias)
            branches.append(branch)
            shortcut = x if match is None else tf.nn.conv1d(x, match[0], 1, "VALID") + match[1]
            x = tf.nn.relu(shortcut + branch)
        kernel, bias = self._head
        return tf.nn.softmax(tf.matmul(tf.add_n(branches), kernel) + bias)


def _weights(conv: Any) -> tuple[Array, Array]:
    kernel, bias = (np.asarray(weight) for weight in conv.weights)
    return kernel, bias
