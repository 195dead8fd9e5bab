"""Small offline files of another exporter, so to speak: graphs without a description, and the streams made of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgeseq.certificate import CERTIFICATE_KEY
from edgeseq.export import streamify
from edgeseq.model_file import METADATA_KEY, Description, graph_sha256

Array = np.ndarray[Any, Any]


def weights(*shape: int) -> Array:
    rng = np.random.default_rng(sum(shape))
    return np.asarray(rng.normal(size=shape) * (1.4 / np.sqrt(np.prod(shape[1:]))), np.float32)


CONV = {"W": weights(4, 4, 3), "B": weights(4), "V": weights(2, 4, 3), "D": weights(2)}
TO, BACK = "t = Transpose<perm=[0,2,1]>(input)", "output = Transpose<perm=[0,2,1]>(y)"
STEPS, ONCE = "float[batch, time, 2]", "float[batch, 2]"

POOLED = {**CONV, "AXES": np.array([2])}

# body, constants, type of the output; inputs are (batch, time, 4)
GRAPHS: dict[str, tuple[str, dict[str, Array], str]] = {
    "causal": (
        f"{TO} c = Conv<pads=[2,0]>(t, W, B) r = Tanh(c) y = Conv<pads=[4,0], dilations=[2]>(r, V, D) {BACK}",
        CONV,
        STEPS,
    ),
    "same": (
        f"{TO} c = Conv<pads=[1,1]>(t, W, B) r = Relu(c) y = Conv<pads=[2,2], dilations=[2]>(r, V, D) {BACK}",
        CONV,
        STEPS,
    ),
    "strided": (
        f"{TO} c = Conv<pads=[2,0], strides=[2]>(t, W, B) r = Tanh(c) y = Conv<pads=[1,1]>(r, V, D) {BACK}",
        CONV,
        STEPS,
    ),
    "valid": (f"{TO} c = Conv<strides=[2]>(t, W, B) y = Conv(c, V, D) {BACK}", CONV, "float[batch, rows, channels]"),
    "maximum": (f"{TO} c = Conv<pads=[2,0]>(t, V, D) output = ReduceMax<keepdims=0>(c, AXES)", POOLED, ONCE),
    "mean": (f"{TO} c = Conv<pads=[1,1]>(t, V, D) output = ReduceMean<keepdims=0>(c, AXES)", POOLED, ONCE),
    "lstm": (
        "q = Transpose<perm=[1,0,2]>(input) h, l, c = LSTM<hidden_size=2>(q, W, R, B) s = Squeeze(h, AXES) "
        "output = Transpose<perm=[1,0,2]>(s)",
        {"W": weights(1, 8, 4), "R": weights(1, 8, 2), "B": weights(1, 16), "AXES": np.array([1])},
        STEPS,
    ),
    "channels first": (
        "c = Conv<pads=[1,1]>(input, W, B) r = Relu(c) output = Conv<pads=[2,2], dilations=[2]>(r, V, D)",
        CONV,
        "float[batch, 2, time]",
    ),
}


def offline_file(folder: Path, kind: str) -> Path:
    """Write the graph as other exporters do: without a description."""
    body, constants, output = GRAPHS[kind]
    taken = "float[batch, 4, time]" if kind == "channels first" else "float[batch, time, 4]"
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18], producer_name: "other", producer_version: "1.0">
        g ({taken} input) => ({output} output) {{ {body} }}"""
    )
    used = {name for node in model.graph.node for name in node.input}
    for name, array in constants.items():
        if name in used:
            model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    path = folder / f"{kind.replace(' ', '_')}.onnx"
    onnx.save(model, path)
    return path


def stream_file(folder: Path, kind: str) -> tuple[Path, Path]:
    """The stream file of a graph, and its offline file."""
    offline = offline_file(folder, kind)
    stream = offline.with_suffix(".stream.onnx")
    streamify(offline, stream)
    return stream, offline


def rewrite(
    path: Path,
    *,
    graph: Callable[[onnx.GraphProto], object] = lambda graph: None,
    description: Callable[[dict[str, Any]], object] = lambda raw: None,
    keep_certificate: bool = False,
) -> None:
    """Change a file's graph and what it says of itself in place, and make its hash right: the lie is well formed."""
    model = onnx.load(path)
    graph(model.graph)
    about = {entry.key: entry.value for entry in model.metadata_props}
    if not keep_certificate:
        about.pop(CERTIFICATE_KEY, None)
    del model.metadata_props[:]
    raw = json.loads(about[METADATA_KEY])
    description(raw)
    raw["graph_sha256"] = graph_sha256(model.SerializeToString(deterministic=True))
    Description.from_json(json.dumps(raw))
    for key, value in {**about, METADATA_KEY: json.dumps(raw, sort_keys=True)}.items():
        model.metadata_props.add(key=key, value=value)
    path.write_bytes(model.SerializeToString(deterministic=True))


def same_with_a_stride(folder: Path) -> Path:
    model = onnx.parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        g (float[batch, time, 4] input) => (float[batch, rows, 2] output)
        {{ {TO} c = Conv<auto_pad="SAME_UPPER", strides=[2]>(t, V, D) output = Transpose<perm=[0,2,1]>(c) }}"""
    )
    model.graph.initializer.extend(onnx.numpy_helper.from_array(CONV[name], name) for name in ("V", "D"))
    onnx.save(model, folder / "m.onnx")
    return folder / "m.onnx"
