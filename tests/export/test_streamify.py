"""The step graph: what it computes, what it carries, and what is refused, by rule."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseq.errors import ConfigError, NotStreamableError
from edgeseq.export.streaming.step_model import StepModel, streamify
from edgeseq.model_file import NEVER

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)


EVERY_STEP, NO_TIME = "float[batch, time, size]", "float[batch, size]"
ONE_STEP = "float[batch, one, size]"


def parse(body: str, output: str, constants: dict[str, Array]) -> ir.Model:
    """A graph over ``input`` (batch, time, 4), with the given initializers."""
    model = ir.from_onnx_text(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        g (float[batch, time, 4] input) => ({output} output) {{ {body} }}"""
    )
    for name, array in constants.items():
        readers = [v for node in model.graph for v in node.inputs if v is not None and v.name == name]
        readers[0].const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(readers[0])
    passes.ShapeInferencePass()(model)
    return model


def session(model: ir.Model) -> Any:
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    return ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])


def stream(step: StepModel, x: Array, sizes: Sequence[int]) -> Array:
    """Run the step graph by its description with plain ``session.run``, in chunks of about these sizes, and flush."""
    ort_session = session(step.model)
    (timing,) = step.timings
    state = {s.input: np.full((len(x), *s.shape), s.initial, s.dtype) for s in step.state}
    source, names = str(step.model.graph.inputs[0].name), [step.model.graph.outputs[0].name]
    names += [s.output for s in step.state]
    length, owed = x.shape[1], timing.count_rows(x.shape[1]) + timing.delay
    total = max(-(-owed * timing.hop[0] // timing.hop[1]), step.phase + length)
    total += -total % step.granule
    fed = np.zeros((len(x), total, *x.shape[2:]), x.dtype)
    fed[:, step.phase : step.phase + length] = x
    wanted = {int(c) // step.granule * step.granule for c in np.cumsum([0, *sizes]) if c < total}
    cuts = wanted | set(step.cuts) | {total}
    places = sorted(c for c in cuts if 0 <= c <= total)
    outputs = []
    for start, stop in pairwise(places):
        given = {source: fed[:, start:stop], **state}
        if step.end is not None:
            given[step.end] = np.full(len(x), length if stop > step.phase + length else NEVER)
        y, *successors = ort_session.run(names, given)
        state = dict(zip(state, successors, strict=True))
        outputs.append(y)
    return np.concatenate(outputs, axis=1)[:, timing.delay : owed]


def weights(*shape: int) -> Array:
    return np.asarray(RNG.normal(size=shape) / np.sqrt(np.prod(shape[1:])), np.float32)


TO_CHANNELS = "t = Transpose<perm=[0,2,1]>(input)"
LSTM = {"W": weights(1, 12, 4), "R": weights(1, 12, 3), "B": weights(1, 24)}
# body, constants, output type, expected (law, past)
STREAMABLE: dict[str, tuple[str, dict[str, Array], str, tuple[str, int | None]]] = {
    "pointwise": (
        "a = Add(input, C) output = Tanh(a)",
        {"C": weights(1, 1, 4)},
        EVERY_STEP,
        ("equal", 0),
    ),
    "dense": ("output = MatMul(input, W)", {"W": weights(4, 3)}, EVERY_STEP, ("equal", 0)),
    "softmax": ("output = Softmax<axis=2>(input)", {}, EVERY_STEP, ("equal", 0)),
    "mean over channels": (
        "m = ReduceMean<keepdims=1>(input, AXES) output = Sub(input, m)",
        {"AXES": np.array([2])},
        EVERY_STEP,
        ("equal", 0),
    ),
    "slice of channels": (
        "output = Slice(input, A, B, C)",
        {"A": np.array([1]), "B": np.array([3]), "C": np.array([2])},
        EVERY_STEP,
        ("equal", 0),
    ),
    "concatenation of branches of different reach": (
        f"{TO_CHANNELS} c = Conv<pads=[6,0], dilations=[3]>(t, W) j = Concat<axis=1>(t, c) "
        "output = Transpose<perm=[0,2,1]>(j)",
        {"W": weights(3, 4, 3)},
        EVERY_STEP,
        ("equal", 6),
    ),
    "convolution": (
        f"{TO_CHANNELS} c = Conv<pads=[6,0], dilations=[3]>(t, W, B) output = Transpose<perm=[0,2,1]>(c)",
        {"W": weights(3, 4, 3), "B": weights(3)},
        EVERY_STEP,
        ("equal", 6),
    ),
    "grouped convolution and residual": (
        f"{TO_CHANNELS} c = Conv<pads=[1,0], group=2>(t, W, B) r = Add(c, t) d = Conv<pads=[4,0], dilations=[4]>(r, V) "
        "s = Sum(d, r, t) output = Transpose<perm=[0,2,1]>(s)",
        {"W": weights(4, 2, 2), "B": weights(4), "V": weights(4, 4, 2)},
        EVERY_STEP,
        ("equal", 5),
    ),
    "lstm": (
        "t = Transpose<perm=[1,0,2]>(input) y = LSTM<hidden_size=3>(t, W, R, B) s = Squeeze(y, AXES) "
        "output = Transpose<perm=[1,0,2]>(s)",
        {**LSTM, "AXES": np.array([1])},
        EVERY_STEP,
        ("equal", None),
    ),
    "lstm, last state, dense": (
        "t = Transpose<perm=[1,0,2]>(input) y, h = LSTM<hidden_size=3>(t, W, R, B) s = Squeeze(h, AXES) "
        "d = MatMul(s, V) output = Add(d, C)",
        {**LSTM, "AXES": np.array([0]), "V": weights(3, 2), "C": weights(2)},
        NO_TIME,
        ("prefix", None),
    ),
    "gru": (
        "t = Transpose<perm=[1,0,2]>(input) y = GRU<hidden_size=3, linear_before_reset=1>(t, W, R) "
        "s = Squeeze(y, AXES) output = Transpose<perm=[1,0,2]>(s)",
        {"W": weights(1, 9, 4), "R": weights(1, 9, 3), "AXES": np.array([1])},
        EVERY_STEP,
        ("equal", None),
    ),
    "last step": (
        "s = Slice(input, A, B, C) r = Squeeze(s, C) output = Softmax<axis=1>(r)",
        {"A": np.array([-1]), "B": np.array([2**31 - 1]), "C": np.array([1])},
        NO_TIME,
        ("prefix", 0),
    ),
    "maximum over time": (
        "m = ReduceMax<keepdims=0>(input, AXES) d = MatMul(m, W) output = Relu(d)",
        {"AXES": np.array([1]), "W": weights(4, 2)},
        NO_TIME,
        ("prefix", None),
    ),
    "lstm, last h and last c": (
        "t = Transpose<perm=[1,0,2]>(input) y, h, c = LSTM<hidden_size=3>(t, W, R, B) j = Concat<axis=2>(h, c) "
        "output = Squeeze(j, AXES)",
        {**LSTM, "AXES": np.array([0])},
        NO_TIME,
        ("prefix", None),
    ),
    "lstm, then the last c of another": (
        "t = Transpose<perm=[1,0,2]>(input) y = LSTM<hidden_size=3>(t, W, R, B) s = Squeeze(y, ONE) u = Tanh(s) "
        "p, q, c = LSTM<hidden_size=3>(u, V, R, B) output = Squeeze(c, AXES)",
        {**LSTM, "V": weights(1, 12, 3), "ONE": np.array([1]), "AXES": np.array([0])},
        NO_TIME,
        ("prefix", None),
    ),
    "running sum": ("output = CumSum(input, AXIS)", {"AXIS": np.array(1)}, EVERY_STEP, ("equal", None)),
    "running sum of the steps before": (
        f"{TO_CHANNELS} s = CumSum<exclusive=1>(t, AXIS) output = Transpose<perm=[0,2,1]>(s)",
        {"AXIS": np.array(-1)},
        EVERY_STEP,
        ("equal", None),
    ),
    "sum over channels so far": ("output = CumSum(input, AXIS)", {"AXIS": np.array(2)}, EVERY_STEP, ("equal", 0)),
    "norm over time": (
        "m = ReduceL2<keepdims=0>(input, AXES) output = Neg(m)",
        {"AXES": np.array([1])},
        NO_TIME,
        ("prefix", None),
    ),
    "absolute sum over time": (
        "output = ReduceL1<keepdims=0>(input, AXES)",
        {"AXES": np.array([1])},
        NO_TIME,
        ("prefix", None),
    ),
    "mean over time, channels first, kept then squeezed": (
        f"{TO_CHANNELS} m = ReduceMean<keepdims=1>(t, AXES) output = Squeeze(m, AXES)",
        {"AXES": np.array([2])},
        NO_TIME,
        ("prefix", None),
    ),
    "maximum over time, kept": (
        "m = ReduceMax<keepdims=1>(input, AXES) d = MatMul(m, W) output = Relu(d)",
        {"AXES": np.array([1]), "W": weights(4, 2)},
        ONE_STEP,
        ("prefix", None),
    ),
    "mean over time, channels first, kept": (
        f"{TO_CHANNELS} output = GlobalAveragePool(t)",
        {},
        ONE_STEP,
        ("prefix", None),
    ),
    "last step, kept": (
        f"{TO_CHANNELS} c = Conv<pads=[2,0]>(t, W, B) l = Slice(c, A, E, X) output = Transpose<perm=[0,2,1]>(l)",
        {
            **{"A": np.array([-1]), "E": np.array([2**31 - 1]), "X": np.array([2])},
            **{"W": weights(3, 4, 3), "B": weights(3)},
        },
        ONE_STEP,
        ("prefix", 2),
    ),
}


@pytest.mark.parametrize("case", STREAMABLE)
@pytest.mark.parametrize("sizes", [[1] * 23, [23], [5, 1, 9, 2, 6]], ids=["steps", "whole", "chunks"])
def test_step_graph_keeps_the_law(case: str, sizes: list[int]) -> None:
    body, constants, output, (law, past) = STREAMABLE[case]
    offline = parse(body, output, constants)
    step = streamify(offline)
    (timing,) = step.timings
    assert (timing.law, timing.receptive_field) == (law, (past, 0))
    x = RNG.normal(size=(3, 23, 4)).astype(np.float32)
    got, reference = stream(step, x, sizes), session(offline)
    if law == "equal":
        np.testing.assert_allclose(got, reference.run(None, {"input": x})[0], atol=2e-6, rtol=1e-6)
    else:
        for t in range(23):
            expected = reference.run(None, {"input": x[:, : t + 1]})[0].reshape(got[:, t].shape)  # a step that is kept
            np.testing.assert_allclose(got[:, t], expected, atol=2e-6, rtol=1e-6)


REFUSED: dict[str, tuple[str, dict[str, Array], str]] = {
    "length-dependent padding": (
        f'{TO_CHANNELS} c = Conv<auto_pad="SAME_UPPER", strides=[2]>(t, W) output = Transpose<perm=[0,2,1]>(c)',
        {"W": weights(4, 4, 3)},
        "its padding depends on the length",
    ),
    "product over time": (
        "m = ReduceProd<keepdims=1>(input, AXES) output = Relu(m)",
        {"AXES": np.array([1])},
        "only a maximum, minimum, sum and mean over time have a running form",
    ),
    "reversed time": (
        "output = Slice(input, A, B, C, D)",
        {"A": np.array([-1]), "B": np.array([-(2**31)]), "C": np.array([1]), "D": np.array([-1])},
        "runs backwards, so its first step needs the last sample",
    ),
    "reversed time beside time": (
        "r = Slice(input, A, B, C, D) output = Add(input, r)",
        {"A": np.array([-1]), "B": np.array([-(2**31)]), "C": np.array([1]), "D": np.array([-1])},
        "combines time with reversed time",
    ),
    "recurrence over reversed time": (
        "r = Slice(input, A, B, C, D) t = Transpose<perm=[1,0,2]>(r) y = LSTM<hidden_size=3>(t, W, R, V) "
        "s = Squeeze(y, C) output = Transpose<perm=[1,0,2]>(s)",
        {
            **{"A": np.array([-1]), "B": np.array([-(2**31)]), "C": np.array([1]), "D": np.array([-1])},
            **{"W": weights(1, 12, 4), "R": weights(1, 12, 3), "V": weights(1, 24)},
        },
        "backward half starts at the end",
    ),
    "branches of different rates": (
        f"{TO_CHANNELS} c = Conv<pads=[1,0], strides=[2]>(t, W) s = Add(c, t) output = Transpose<perm=[0,2,1]>(s)",
        {"W": weights(4, 4, 2)},
        "different numbers of steps for the same sequence",
    ),
    "the first three steps": (
        "output = Slice(input, A, B, C)",
        {"A": np.array([0]), "B": np.array([3]), "C": np.array([1])},
        "it cuts the sequence at a fixed place",
    ),
    "the last three steps": (
        "output = Slice(input, A, B, C)",
        {"A": np.array([-3]), "B": np.array([2**31 - 1]), "C": np.array([1])},
        "it cuts the sequence at a fixed place",
    ),
    "convolution over channels": (
        "c = Conv<pads=[1,0]>(input, W) output = Relu(c)",
        {"W": weights(4, 7, 2)},
        "only a 1-D convolution over time",
    ),
    "bidirectional": (
        't = Transpose<perm=[1,0,2]>(input) y = LSTM<hidden_size=3, direction="bidirectional">(t, W, R) '
        "p = Transpose<perm=[2,0,1,3]>(y) output = Reshape(p, SHAPE)",
        {"W": weights(2, 12, 4), "R": weights(2, 12, 3), "SHAPE": np.array([0, 0, 6])},
        "backward half starts at the end of the sequence",
    ),
    "softmax over time": ("output = Softmax<axis=1>(input)", {}, "Softmax over time needs the whole sequence"),
    "attention": (
        f"{TO_CHANNELS} s = MatMul(input, t) output = MatMul(s, input)",
        {},
        "attention over time cannot stream",
    ),
    "dense over time": (
        f"{TO_CHANNELS} d = MatMul(t, W) output = Transpose<perm=[0,2,1]>(d)",
        {"W": weights(7, 7)},
        "the product mixes time steps",
    ),
    "global context": (
        "m = ReduceMax<keepdims=1>(input, AXES) output = Mul(input, m)",
        {"AXES": np.array([1])},
        "early outputs depend on late samples",
    ),
    "mean over the batch": (
        "m = ReduceMean<keepdims=1>(input, AXES) output = Sub(input, m)",
        {"AXES": np.array([0])},
        "it mixes the sequences of a batch",
    ),
    "end to end": ("output = Concat<axis=1>(input, input)", {}, "it joins sequences end to end"),
    "average over pairs of channels": (
        "i = Unsqueeze(input, AXES) a = AveragePool<kernel_shape=[1,2]>(i) output = Squeeze(a, AXES)",
        {"AXES": np.array([1])},
        "only a 1-D pool over time",
    ),
    "maximum over time and channels in windows": (
        "i = Unsqueeze(input, AXES) a = MaxPool<kernel_shape=[2,2]>(i) output = Squeeze(a, AXES)",
        {"AXES": np.array([1])},
        "only a 1-D pool over time",
    ),
    "positional constant": ("output = Add(input, C)", {"C": weights(7, 4)}, "varies along time"),
    "length of the sequence": (
        "s = Shape(input) f = Cast<to=1>(s) m = ReduceMax<keepdims=1>(f) output = Add(input, m)",
        {},
        "asks for the length of the sequence",
    ),
    "sum from the end": (
        "output = CumSum<reverse=1>(input, AXIS)",
        {"AXIS": np.array(1)},
        "it sums from the end of the sequence",
    ),
    "instance normalisation": (
        f"{TO_CHANNELS} n = InstanceNormalization(t, S, B) output = Transpose<perm=[0,2,1]>(n)",
        {"S": weights(4), "B": weights(4)},
        "normalises over the whole sequence",
    ),
    "layer normalisation over time": (
        f"{TO_CHANNELS} n = LayerNormalization<axis=2>(t, S) output = Transpose<perm=[0,2,1]>(n)",
        {"S": weights(9)},
        "LayerNormalization over time needs the whole sequence",
    ),
    "custom domain": ("output = com.example.Blend(input)", {}, "Blend.*no streaming rule is known"),
    "steps mixed into channels": (
        "f = Reshape(input, SHAPE) output = Relu(f)",
        {"SHAPE": np.array([0, -1, 12])},
        "it rearranges time together with other axes",
    ),
    "sorted steps": ("v, output = TopK<axis=1>(input, K)", {"K": np.array([3])}, "it sorts the whole sequence"),
    "a sequence at its own pace": (
        "output = Scan<num_scan_inputs=1, scan_input_axes=[1], scan_output_axes=[1], body = "
        "g (float[batch, 4] a) => (float[batch, 4] b) { b = Neg(a) }>(input)",
        {},
        "it works on the whole sequence",
    ),
    "sequences reversed by their lengths": (
        "output = ReverseSequence<batch_axis=0, time_axis=1>(input, N)",
        {"N": np.array([3, 3])},
        "it reverses each sequence by its own length",
    ),
    "maximum over time and channels": (
        "m = ReduceMax<keepdims=1>(input, AXES) output = Neg(m)",
        {"AXES": np.array([1, 2])},
        "reduces time together with other axes",
    ),
    "dilation over reversed time with a stride": (
        f"{TO_CHANNELS} r = Slice(t, A, B, C, D) c = Conv<strides=[2]>(r, W) output = Transpose<perm=[0,2,1]>(c)",
        {
            **{"A": np.array([-1]), "B": np.array([-(2**31)]), "C": np.array([2]), "D": np.array([-1])},
            "W": weights(4, 4, 2),
        },
        "a stride over reversed time counts from the end",
    ),
    "padding by reflection": (
        'output = Pad<mode="reflect">(input, P)',
        {"P": np.array([0, 1, 0, 0, 0, 0])},
        "only a padding by constants",
    ),
    "unknown operator": ("output = Hardmax(input)", {}, "Hardmax.*no streaming rule is known"),
    "time at two axes": (
        f"{TO_CHANNELS} output = Add(input, t)",
        {},
        "its inputs have time at different axes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusal_names_the_reason(case: str) -> None:
    body, constants, message = REFUSED[case]
    with pytest.raises(NotStreamableError, match=message):
        streamify(parse(body, EVERY_STEP, constants))


def test_state_is_the_minimum_and_named() -> None:
    body, constants, output, _ = STREAMABLE["grouped convolution and residual"]
    step = streamify(parse(body, output, constants))
    assert [(s.input, s.output, s.shape, s.initial) for s in step.state] == [
        ("state_0_conv_rows", "next_0_conv_rows", (4, 1), 0.0),
        ("state_1_conv_rows", "next_1_conv_rows", (4, 4), 0.0),
    ]


@st.composite
def stacks(draw: st.DrawFn) -> tuple[str, dict[str, Array], int]:
    """A random causal graph of convolutions, residuals and pointwise operators, and its receptive field."""
    body, constants = [TO_CHANNELS], dict[str, Array]()
    reach = {"t": 0}
    for i in range(draw(st.integers(1, 5))):
        source = draw(st.sampled_from(sorted(reach)))
        kernel, dilation = draw(st.integers(1, 4)), draw(st.integers(1, 5))
        constants |= {f"W{i}": weights(4, 4, kernel), f"B{i}": weights(4)}
        body.append(f"c{i} = Conv<pads=[{(kernel - 1) * dilation},0], dilations=[{dilation}]>({source}, W{i}, B{i})")
        body.append(f"r{i} = {draw(st.sampled_from(['Relu', 'Tanh', 'Sigmoid', 'Neg']))}(c{i})")
        reach[f"r{i}"] = reach[source] + (kernel - 1) * dilation
        other = draw(st.sampled_from(sorted(reach)))
        body.append(f"s{i} = {draw(st.sampled_from(['Add', 'Mul', 'Max']))}(r{i}, {other})")
        reach[f"s{i}"] = max(reach[f"r{i}"], reach[other])
    last = list(reach)[-1]
    body.append(f"output = Transpose<perm=[0,2,1]>({last})")
    return " ".join(body), constants, reach[last]


@settings(max_examples=25, deadline=None)
@given(stacks(), st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 3))
def test_random_graphs_stream_exactly(graph: tuple[str, dict[str, Array], int], sizes: list[int], batch: int) -> None:
    check_random_graph(graph, sizes, batch)


@pytest.mark.extended
@settings(max_examples=200, deadline=None)
@given(stacks(), st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 3))
def test_many_random_graphs_stream_exactly(
    graph: tuple[str, dict[str, Array], int], sizes: list[int], batch: int
) -> None:
    check_random_graph(graph, sizes, batch)


def check_random_graph(graph: tuple[str, dict[str, Array], int], sizes: list[int], batch: int) -> None:
    body, constants, past = graph
    offline = parse(body, EVERY_STEP, constants)
    step = streamify(offline)
    assert step.timings[0].receptive_field == (past, 0)
    x = np.random.default_rng(sum(sizes)).normal(size=(batch, sum(sizes), 4)).astype(np.float32)
    expected = session(offline).run(None, {"input": x})[0]
    np.testing.assert_allclose(stream(step, x, sizes), expected, atol=1e-5, rtol=1e-5)


WINDOWS: dict[str, tuple[str, dict[str, Array], int]] = {  # body, constants, lookahead
    "maximum": ("m = ReduceMax<keepdims=0>(input, AXES) output = Neg(m)", {"AXES": np.array([1])}, 0),
    "mean": ("m = ReduceMean<keepdims=0>(input, AXES) output = Neg(m)", {"AXES": np.array([1])}, 0),
    "mean behind a convolution": (
        f"{TO_CHANNELS} c = Conv<pads=[3,0]>(t, W, B) m = GlobalAveragePool(c) output = Squeeze(m, AXES)",
        {"W": weights(4, 4, 4), "B": weights(4), "AXES": np.array([2])},
        0,
    ),
    "maximum behind lookahead": (
        f"{TO_CHANNELS} c = Conv<pads=[2,2]>(t, W, B) m = GlobalMaxPool(c) output = Squeeze(m, AXES)",
        {"W": weights(4, 4, 5), "B": weights(4), "AXES": np.array([2])},
        2,
    ),
    "mean behind lookahead, channels last": (
        f"{TO_CHANNELS} c = Conv<pads=[1,1]>(t, W, B) r = Transpose<perm=[0,2,1]>(c) "
        "output = ReduceMean<keepdims=0>(r, AXES)",
        {"W": weights(4, 4, 3), "B": weights(4), "AXES": np.array([1])},
        1,
    ),
}


@pytest.mark.parametrize("window", [1, 4, 50])
@pytest.mark.parametrize("case", WINDOWS)
def test_a_pool_over_the_last_rows_alone(case: str, window: int) -> None:
    body, constants, lookahead = WINDOWS[case]
    (node,) = (n for n in parse(body, NO_TIME, constants).graph if "Pool" in n.op_type or "Reduce" in n.op_type)
    (pooled,) = (v.name for v in node.inputs[:1] if v is not None)
    features = parse(f"{body} rows = Identity({pooled})", NO_TIME, constants)
    axis = 2 if "Pool" in node.op_type else 1
    rows = next(n for n in features.graph if n.outputs[0].name == "rows")
    features.graph.outputs[:] = [rows.outputs[0]]
    rows.outputs[0].type, rows.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape(["a", "b", "c"])
    step = streamify(parse(body, NO_TIME, constants), pooling_window=window)
    (timing,) = step.timings
    assert (timing.law, timing.lookahead) == ("window", lookahead)
    assert timing.receptive_field[0] is not None
    x = RNG.normal(size=(2, 23, 4)).astype(np.float32)
    h = session(features).run(None, {"input": x})[0]
    h = h if axis == 1 else h.transpose(0, 2, 1)
    pool = np.mean if "Mean" in body or "Average" in body else np.max
    expected = np.stack([pool(h[:, max(0, t + 1 - window) : t + 1], axis=1) for t in range(23)], axis=1)
    expected = expected if "Neg" not in body else -expected
    for sizes in ([1] * 23, [23], [5, 1, 9, 8]):
        np.testing.assert_allclose(stream(step, x, sizes), expected, atol=1e-5)


@pytest.mark.parametrize(("case", "window"), [("maximum", 0), ("maximum", 2.5), ("dense", 3)])
def test_a_window_that_is_none(case: str, window: Any) -> None:
    body, constants = WINDOWS[case][:2] if case in WINDOWS else STREAMABLE[case][:2]
    with pytest.raises(ConfigError, match="pooling_window: "):
        streamify(parse(body, NO_TIME if case in WINDOWS else EVERY_STEP, constants), pooling_window=window)


def test_a_window_of_a_sum_is_refused() -> None:
    offline = parse("output = ReduceSum<keepdims=0>(input, AXES)", NO_TIME, {"AXES": np.array([1])})
    with pytest.raises(NotStreamableError, match="only a maximum and a mean, forward, are taken over a window"):
        streamify(offline, pooling_window=3)


STRIDED = (
    f'{TO_CHANNELS} c = Conv<auto_pad="SAME_UPPER", strides=[2]>(t, W, B) r = Relu(c) '
    'p = MaxPool<auto_pad="SAME_LOWER", kernel_shape=[4], strides=[3]>(r) output = Transpose<perm=[0,2,1]>(p)'
)


@pytest.mark.parametrize("remainder", range(6))
@pytest.mark.parametrize("kernel", [2, 3, 5])
def test_same_padding_with_a_stride_by_promise(kernel: int, remainder: int) -> None:
    offline = parse(STRIDED, EVERY_STEP, {"W": weights(4, 4, kernel), "B": weights(4)})
    step, reference = streamify(offline, length_modulo=(6, remainder)), session(offline)
    for length in (6 + remainder, 18 + remainder, 30 + remainder):
        x = RNG.normal(size=(2, length, 4)).astype(np.float32)
        (expected,) = reference.run(None, {"input": x})
        for sizes in ([1] * length, [length], [5, 1, 8, length]):
            got = stream(step, x, sizes)
            assert got.shape == expected.shape
            np.testing.assert_allclose(got, expected, atol=2e-6)


def test_a_promise_that_is_too_little_or_none() -> None:
    offline = parse(STRIDED, EVERY_STEP, {"W": weights(4, 4, 3), "B": weights(4)})
    with pytest.raises(NotStreamableError, match="1 modulo 2 by your promise, too little; promise it modulo 6"):
        streamify(offline, length_modulo=(2, 1))
    with pytest.raises(ConfigError, match=r"length_modulo: expected \(modulus, remainder\)"):
        streamify(offline, length_modulo=(2, 2))


def test_thirty_convolutions_are_walked_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    walks = []
    module = sys.modules[StepModel.__module__]  # not by name: the package may have a function of that name
    real = module._Walk

    class Counted(real):  # type: ignore[misc, valid-type]
        def __init__(self, *arguments: Any) -> None:
            walks.append(self)
            super().__init__(*arguments)

    monkeypatch.setattr(module, "_Walk", Counted)
    layers = [f"c{i} = Conv<pads=[2,2], dilations=[2]>({f'c{i - 1}' if i else 't'}, W{i})" for i in range(30)]
    body = " ".join([TO_CHANNELS, *layers, "output = Transpose<perm=[0,2,1]>(c29)"])
    step = streamify(parse(body, EVERY_STEP, {f"W{i}": weights(4, 4, 3) for i in range(30)}))
    assert len(walks) == 4
    assert len(list(step.model.graph)) < 10 * 30
