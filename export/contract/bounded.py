"""What a stream with bounded lookahead is to equal: the offline graph, with its backward halves run in blocks.

The reference is made of the offline file's own nodes. Everything between two recurrent layers that run backwards is
run by ONNX Runtime over the whole sequence; such a layer over each block by itself, its rows cut out of the sequence by
numpy. Nothing of the step graph is used but the list of those layers, which is in the file. The clause
``approximation`` says where it is the offline model, and how far it is from it elsewhere.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from edgeseq.errors import ConfigError
from edgeseq.export.contract.clauses import Seen
from edgeseq.export.contract.offline_function import OfflineFunction, OfflineModel
from edgeseq.export.contract.pair import LONGEST, STEP, Case, Pair
from edgeseq.export.sequences import Array, Inputs
from edgeseq.export.streaming.time_axis import Axes, cleaned
from edgeseq.lookahead import Lookahead, LookaheadLayer
from edgeseq.model_file import Description

_BLOCKS_A_CALL = 256


def bounded_function(offline: OfflineModel, whole: OfflineFunction, stream: Description) -> OfflineFunction:
    """The reference for a stream with bounded lookahead; ``whole`` is its offline model.

    Raises:
        ConfigError: the offline model is no file, or not the one that the stream was made from.
    """
    if callable(offline) and not isinstance(offline, (str, os.PathLike)):
        raise ConfigError(
            "a stream with bounded lookahead equals the offline model only where it sees the whole sequence, and its "
            "reference is made of the offline file's own nodes; give the offline file"
        )
    assert stream.lookahead is not None
    model = ir.load(offline)
    ir.external_data.load_to_model(model)
    names = [port.name for port in stream.inputs]
    reading = {name: Axes(*axes) for name, axes in zip(names, whole.input_axes, strict=True)}
    graph = ir.to_proto(cleaned(model, reading, stream.conditions.length_modulo))
    reference = _Reference(graph, names, [port.name for port in stream.outputs], stream.lookahead)
    return replace(whole, call=reference.run, input_axes=((0, 1),) * len(names), longest_layer=reference.longest_layer)


class _Reference:
    """The offline graph, cut at its layers that run backwards; inputs are (1, T, C)."""

    def __init__(
        self, model: onnx.ModelProto, inputs: Sequence[str], outputs: Sequence[str], lookahead: Lookahead
    ) -> None:
        nodes = {name: node for node in model.graph.node for name in node.output}
        if unknown := [layer.node for layer in lookahead.layers if layer.node not in nodes]:
            raise ConfigError(f"the offline model has no layers {unknown}; give the file that the stream was made from")
        self._inputs, self._outputs = list(inputs), list(outputs)
        known = list(inputs)
        self._stages: list[tuple[LookaheadLayer, Any, _Blocks]] = []
        for layer in lookahead.layers:
            node = nodes[layer.node]
            wanted = [node.input[0], *_mask_of(node, nodes)]
            before = _session(_part(model, known, wanted))
            self._stages.append((layer, before, _Blocks(model, node, layer, lookahead)))
            known.append(layer.node)
        self._after = _session(_part(model, known, self._outputs))

    def run(self, inputs: Inputs) -> list[Array]:
        """The outputs, as the offline model gives them."""
        return _run(self._after, self._through_layers(inputs))

    def longest_layer(self, inputs: Inputs) -> int:
        """The most rows that one of the layers has for these sequences (T, C)."""
        values = self._through_layers([x[None] for x in inputs])
        return max(len(values[layer.node]) for layer, *_ in self._stages)

    def _through_layers(self, inputs: Inputs) -> dict[str, Array]:
        values: dict[str, Array] = dict(zip(self._inputs, inputs, strict=True))
        for layer, before, blocks in self._stages:
            x, *mask = _run(before, values)
            values[layer.node] = blocks.run(x, mask[0] if mask else np.ones((1, len(x)), bool))
        return values


class _Blocks:
    """One recurrent node: the forward direction over the whole sequence, the backward one over each block."""

    def __init__(
        self, model: onnx.ModelProto, node: onnx.NodeProto, layer: LookaheadLayer, lookahead: Lookahead
    ) -> None:
        self._layer, self._lookahead = layer, lookahead
        alone = onnx.NodeProto()
        alone.CopyFrom(node)
        if len(alone.input) > 4:
            alone.input[4] = ""  # rows that do not count are not given to it
        self._ort_session = _session(_part(model, [node.input[0]], [node.output[0]], nodes=[alone]))
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        named = attributes.get("direction", b"forward").decode()
        directions = [named == "reverse"] if named != "bidirectional" else [False, True]
        self._backward = [i for i, reverse in enumerate(directions) if reverse != layer.reversed_input]

    def run(self, x: Array, mask: Array) -> Array:
        """(T, 1, C) to (T, D, 1, U).

        ``mask`` (1, T) says which steps are valid. With one the exporter's graph has moved those to the front of ``x``,
        and takes Y back to their places; where they stand in time, the mask says.
        """
        turned = self._layer.reversed_input
        times = np.flatnonzero(mask[0, ::-1] if turned else mask[0])
        if not len(times):
            return np.zeros((len(x), *self._one(x[:1]).shape[1:]), np.float32)
        rows = x[: len(times)][::-1] if turned else x[: len(times)]  # in the order of time
        y = self._one(rows)
        by_length: dict[int, list[tuple[int, int]]] = defaultdict(list)
        for begin, newest in self._begins(mask.shape[1]):
            start, stop, seen = np.searchsorted(times, [begin, begin + self._lookahead.chunk, newest])
            if stop > start:
                by_length[seen - start].append((start, stop))
        for length, blocks in by_length.items():
            for i in range(0, len(blocks), _BLOCKS_A_CALL):
                some = blocks[i : i + _BLOCKS_A_CALL]
                of_blocks = self._one(np.concatenate([rows[start : start + length] for start, _ in some], axis=1))
                for b, (start, stop) in enumerate(some):
                    y[start:stop, self._backward, 0] = of_blocks[: stop - start, self._backward, b]
        whole = np.zeros((len(x), *y.shape[1:]), np.float32)
        whole[: len(times)] = y[::-1] if turned else y
        return whole

    def _begins(self, n_rows: int) -> list[tuple[int, int]]:
        """(first row of the block, first row behind its window), both as if the sequence had no ends."""
        chunk, steps = self._lookahead.chunk, self._lookahead.steps
        newest = range(chunk - self._layer.delay, n_rows + steps + chunk, chunk)
        return [(n - steps - chunk, n) for n in newest if n - steps > 0 and n - steps - chunk < n_rows]

    def _one(self, rows: Array) -> Array:
        """The node over rows in the order of time, its result in that order, too."""
        turned = self._layer.reversed_input
        (y,) = self._ort_session.run(None, {self._ort_session.get_inputs()[0].name: rows[::-1] if turned else rows})
        return np.array(y[::-1] if turned else y)


def _mask_of(node: onnx.NodeProto, makers: Mapping[str, onnx.NodeProto]) -> list[str]:
    """The mask whose valid steps the exporter moved to the front of the node's input, if there is one."""
    if len(node.input) < 5 or not node.input[4]:
        return []
    name = node.input[4]
    for op_type in ("ReduceSum", "Cast"):
        maker = makers.get(name)
        if maker is None or maker.op_type != op_type:
            raise ConfigError(f"layer {node.output[0]!r} of the offline model has a mask that edgeseq did not write")
        name = maker.input[0]
    return [name]


def _part(
    model: onnx.ModelProto,
    given: Sequence[str],
    wanted: Sequence[str],
    *,
    nodes: Sequence[onnx.NodeProto] | None = None,
) -> onnx.ModelProto:
    """The part of a graph, or of ``nodes`` with its constants, that computes ``wanted`` from ``given``."""
    known = list(model.graph.node if nodes is None else nodes)
    makers = {name: node for node in known for name in node.output}
    needed, queue = {*wanted}, [name for name in wanted if name not in given]
    while queue:
        node = makers.get(queue.pop())
        more = [] if node is None else [name for name in node.input if name and name not in needed]
        needed.update(more)
        queue += [name for name in more if name not in given]
    kept = [node for node in known if any(n in needed and n not in given for n in node.output)]
    typed = {value.name: value for value in (*model.graph.value_info, *model.graph.input, *model.graph.output)}

    def port(name: str) -> onnx.ValueInfoProto:
        return typed.get(name) or onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None)

    graph = onnx.helper.make_graph(
        kept,
        "part",
        [port(name) for name in given if name in needed],
        [port(name) for name in wanted],
        [constant for constant in model.graph.initializer if constant.name in needed],
    )
    return onnx.helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)


def _session(model: onnx.ModelProto) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _run(ort_session: Any, values: Mapping[str, Array]) -> list[Array]:
    feeds = {port.name: values[port.name] for port in ort_session.get_inputs()}
    return ort_session.run(None, feeds)  # type: ignore[no-any-return]


def approximation(pair: Pair) -> Seen:
    """Where the lookahead reaches the end of the sequence, the rows are the offline model's; elsewhere, how far."""
    lookahead, longest_layer = pair.description.lookahead, pair.offline.longest_layer
    assert lookahead is not None
    assert longest_layer is not None
    finest = max(1, *(timing.hop[1] // timing.hop[0] for timing in pair.timings))
    most = min(LONGEST, max(1, lookahead.steps // finest))
    lengths = sorted({n for n in (1, most // 2, most - 1, most) if n >= pair.shortest and pair.allowed(n) == n})
    # Padding gives a layer more rows than there are samples; the first of them sees so many steps behind it.
    lengths = [n for n in lengths if longest_layer(pair.draw(n)) <= lookahead.steps + 1]
    worst = 0.0
    for n in lengths:
        inputs = pair.draw(n)
        case = Case(inputs, pair.whole.run(inputs), pair.full.tolerances)
        for way, sizes in (("in single steps", [STEP] * n), ("in one chunk", [n])):
            where = f"{way}, all within the lookahead of {lookahead.steps} steps"
            worst = max(worst, pair.compare(case, pair.streamed(pair.model.stream("contract"), inputs, sizes), where))
    whole = pair.whole.run(pair.full.inputs)
    assert pair.full.expected is not None
    far = max(
        float(np.abs(y - z).max(initial=0.0) / s.max())
        for y, z, s in zip(whole, pair.full.expected, pair.scales, strict=True)
    )
    notes = (
        f"held to the offline model with its backward halves run in blocks of {lookahead.chunk} steps, which see "
        f"{lookahead.steps} steps behind them, and not to the offline model itself",
        f"on {pair.longest} random samples rows are up to {far:.1e} of the output's scale from the offline model's",
    )
    if not lengths:
        return Seen("no sequence is short enough for the lookahead to reach its end", notes=notes)
    return Seen(f"the offline model's rows on sequences of {', '.join(map(str, lengths))} samples", worst, notes)


BOUNDED_CLAUSES = {"approximation": approximation}
"""The clauses of a stream with bounded lookahead, beside all others."""
