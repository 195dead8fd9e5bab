"""Each clean-up rule on a small graph: it fires, and the numbers stay."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseq.export.graph.cleanup import clean_up


def parse(body: str, **constants: np.ndarray[Any, Any]) -> ir.Model:
    model = ir.from_onnx_text(
        f"""<ir_version: 8, opset_import: ["" : 18]>
        g (float[batch, time, 3] input) => (float output) {{ {body} }}"""
    )
    model.graph.outputs[0].shape = None
    for name, array in constants.items():
        value = next(v for node in model.graph for v in node.inputs if v is not None and v.name == name)
        value.const_value = ir.tensor(array, name=name)
        model.graph.register_initializer(value)
    return model


def run(model: ir.Model, x: np.ndarray[Any, Any]) -> Any:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    data = ir.to_proto(model).SerializeToString()
    return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"]).run(None, {"input": x})[0]


def operators(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


RNG = np.random.default_rng(0)
ROW = RNG.normal(size=3).astype(np.float32)
KERNEL = RNG.normal(size=(4, 3, 2)).astype(np.float32)
BIAS = RNG.normal(size=4).astype(np.float32)
REVERSAL = "Slice({}, START, END, TIME, START)"
REVERSED = {"START": np.array([-1]), "END": np.array([np.iinfo(np.int64).min]), "TIME": np.array([1])}

CASES: dict[str, tuple[str, dict[str, Any], dict[str, int]]] = {
    "transposes cancel": (
        "a = Transpose<perm=[0,2,1]>(input) b = Transpose<perm=[0,2,1]>(a) output = Relu(b)",
        {},
        {"Relu": 1},
    ),
    "transposes merge": (
        "a = Transpose<perm=[1,0,2]>(input) b = Transpose<perm=[0,2,1]>(a) output = Relu(b)",
        {},
        {"Transpose": 1, "Relu": 1},
    ),
    "transposes sink below arithmetic with a constant": (
        "a = Transpose<perm=[0,2,1]>(input) b = Relu(a) c = Transpose<perm=[0,2,1]>(b) output = Add(c, ROW)",
        {"ROW": ROW},
        {"Relu": 1, "Add": 1},
    ),
    "a constant is turned with its transpose": (
        "a = Transpose<perm=[0,2,1]>(input) b = Mul(a, COLUMN) output = Transpose<perm=[0,2,1]>(b)",
        {"COLUMN": ROW[:, None]},
        {"Mul": 1},
    ),
    "relu of a sum of relus": (
        "a = Relu(input) b = Relu(a) c = Add(a, b) d = Relu(c) output = Sub(d, ROW)",
        {"ROW": ROW},
        {"Relu": 1, "Add": 1, "Sub": 1},
    ),
    "relu of a difference stays": (
        "a = Relu(input) b = Sub(a, ROW) c = Relu(b) output = Neg(c)",
        {"ROW": ROW},
        {"Relu": 2, "Sub": 1, "Neg": 1},
    ),
    "scale and shift fold into a convolution": (
        "t = Transpose<perm=[0,2,1]>(input) c = Conv<pads=[1,0]>(t, KERNEL, BIAS) m = Mul(c, FACTOR) "
        "a = Add(SHIFT, m) output = Neg(a)",
        {"KERNEL": KERNEL, "BIAS": BIAS, "FACTOR": BIAS[:, None] + 2, "SHIFT": np.array([0.5], np.float32)},
        {"Transpose": 1, "Conv": 1, "Neg": 1},
    ),
    "a convolution that others read is left": (
        "t = Transpose<perm=[0,2,1]>(input) c = Conv(t, KERNEL, BIAS) m = Mul(c, FACTOR) output = Sub(m, c)",
        {"KERNEL": KERNEL[:, :, :1], "BIAS": BIAS, "FACTOR": BIAS[:, None]},
        {"Transpose": 1, "Conv": 1, "Mul": 1, "Sub": 1},
    ),
    "chains of sums": (
        "a = Exp(input) b = Neg(input) c = Add(a, b) d = Add(c, input) output = Add(d, a)",
        {},
        {"Exp": 1, "Neg": 1, "Sum": 1},
    ),
    "transposes sink below a choice": (
        "a = Transpose<perm=[0,2,1]>(input) b = Neg(a) c = Less(a, b) d = Where(c, a, b) "
        "output = Transpose<perm=[0,2,1]>(d)",
        {},
        {"Neg": 1, "Less": 1, "Where": 1},
    ),
    "squeeze and unsqueeze cancel": (
        "a = Unsqueeze(input, AXES) b = Squeeze(a, AXES) output = Relu(b)",
        {"AXES": np.array([1, 3])},
        {"Relu": 1},
    ),
    "unsqueeze and squeeze cancel": (
        "t = ReduceMax<keepdims=1>(input, AXES) a = Squeeze(t, AXES) b = Unsqueeze(a, AXES) output = Relu(b)",
        {"AXES": np.array([1])},
        {"ReduceMax": 1, "Relu": 1},
    ),
    "squeeze of another axis stays": (
        "t = ReduceMax<keepdims=1>(input, AXES) a = Squeeze(t, AXES) b = Unsqueeze(a, LAST) output = Relu(b)",
        {"AXES": np.array([1]), "LAST": np.array([2])},
        {"ReduceMax": 1, "Squeeze": 1, "Unsqueeze": 1, "Relu": 1},
    ),
    "reshapes merge": (
        "a = Reshape(input, FLAT) b = Reshape(a, PAIRS) output = Relu(b)",
        {"FLAT": np.array([-1]), "PAIRS": np.array([-1, 3])},
        {"Reshape": 1, "Relu": 1},
    ),
    "reshapes merge over an axis that both keep": (
        "a = Reshape(input, LONG) b = Reshape(a, BACK) output = Relu(b)",
        {"LONG": np.array([0, 1, -1]), "BACK": np.array([0, -1, 3])},
        {"Reshape": 1, "Relu": 1},
    ),
    "a reshape that keeps an axis of the one before stays": (
        "a = Reshape(input, LONG) b = Reshape(a, BACK) output = Relu(b)",
        {"LONG": np.array([5, -1]), "BACK": np.array([0, 2, 3])},
        {"Reshape": 2, "Relu": 1},
    ),
    "reversals cancel": (
        f"a = {REVERSAL.format('input')} c = {REVERSAL.format('a')} output = Add(c, c)",
        REVERSED,
        {"Add": 1},
    ),
    "a reversal of another axis stays": (
        f"a = {REVERSAL.format('input')} output = Slice(a, START, END, OTHER, START)",
        {**REVERSED, "OTHER": np.array([2])},
        {"Slice": 2},
    ),
    "a reversal of all but the first stays": (
        f"a = {REVERSAL.format('input')} output = Slice(a, START, FIRST, TIME, START)",
        {**REVERSED, "FIRST": np.array([0])},
        {"Slice": 2},
    ),
    "padding folds into a convolution": (
        "p = Pad(input, PADS) t = Transpose<perm=[0,2,1]>(p) output = Conv<pads=[1,0]>(t, KERNEL, BIAS)",
        {"PADS": np.array([0, 2, 0, 0, 3, 0]), "KERNEL": KERNEL, "BIAS": BIAS},
        {"Transpose": 1, "Conv": 1},
    ),
    "padding of the channels stays": (
        "p = Pad(input, PADS) t = Transpose<perm=[0,2,1]>(p) output = Conv(t, KERNEL, BIAS)",
        {"PADS": np.array([0, 0, 0, 0, 3, 1]), "KERNEL": np.concatenate([KERNEL, KERNEL[:, :1]], axis=1), "BIAS": BIAS},
        {"Pad": 1, "Transpose": 1, "Conv": 1},
    ),
    "padding with another number stays": (
        "t = Transpose<perm=[0,2,1]>(input) p = Pad(t, PADS, ONE) output = Conv(p, KERNEL, BIAS)",
        {"PADS": np.array([0, 0, 2, 0, 0, 0]), "ONE": np.array(1, np.float32), "KERNEL": KERNEL, "BIAS": BIAS},
        {"Pad": 1, "Transpose": 1, "Conv": 1},
    ),
    "a scale before a padded convolution folds, a shift does not": (
        "s = Add(input, ROW) m = Mul(s, FACTOR) t = Transpose<perm=[0,2,1]>(m) "
        "output = Conv<pads=[1,1]>(t, KERNEL, BIAS)",
        {"ROW": ROW, "FACTOR": ROW + 2, "KERNEL": KERNEL, "BIAS": BIAS},
        {"Add": 1, "Transpose": 1, "Conv": 1},
    ),
    "a scale folds into a grouped convolution": (
        "m = Mul(FACTOR, input) t = Transpose<perm=[0,2,1]>(m) output = Conv<group=3>(t, KERNEL)",
        {"FACTOR": ROW + 2, "KERNEL": RNG.normal(size=(6, 1, 2)).astype(np.float32)},
        {"Transpose": 1, "Conv": 1},
    ),
    "a scale that others read stays": (
        "m = Mul(FACTOR, input) t = Transpose<perm=[0,2,1]>(m) c = Conv(t, SQUARE) output = Add(c, t)",
        {"FACTOR": ROW + 2, "SQUARE": RNG.normal(size=(3, 3, 1)).astype(np.float32)},
        {"Mul": 1, "Transpose": 1, "Conv": 1, "Add": 1},
    ),
    "a scale for each step stays": (
        "m = Mul(input, STEPS) t = Transpose<perm=[0,2,1]>(m) output = Conv(t, KERNEL)",
        {"STEPS": RNG.normal(size=(5, 1)).astype(np.float32), "KERNEL": KERNEL},
        {"Mul": 1, "Transpose": 1, "Conv": 1},
    ),
    "scales and shifts fold into a product": (
        "m = Mul(input, ROW) p = MatMul(m, MATRIX) a = Add(p, BIAS) s = Mul(a, FACTOR) output = Add(SHIFT, s)",
        {"ROW": ROW, "MATRIX": KERNEL[:, :, 0].T, "BIAS": BIAS, "FACTOR": BIAS + 2, "SHIFT": BIAS - 1},
        {"MatMul": 1, "Add": 1},
    ),
    "a scale of more axes than the product stays": (
        "p = MatMul(input, MATRIX) output = Mul(p, FACTOR)",
        {"MATRIX": KERNEL[:, :, 0].T, "FACTOR": (BIAS + 2)[None, None, None]},
        {"MatMul": 1, "Mul": 1},
    ),
    "one channel times three numbers is not scaled beforehand, before a product": (
        "n = ReduceMean<keepdims=1>(input, LAST) m = Mul(n, ROW) output = MatMul(m, MATRIX)",
        {"LAST": np.array([-1]), "ROW": ROW, "MATRIX": KERNEL[:, :, 0].T},
        {"ReduceMean": 1, "Mul": 1, "MatMul": 1},
    ),
    "one channel times three numbers is not scaled beforehand, before a convolution": (
        "n = ReduceMean<keepdims=1>(input, LAST) m = Mul(ROW, n) t = Transpose<perm=[0,2,1]>(m) "
        "output = Conv<pads=[1,0]>(t, KERNEL, BIAS)",
        {"LAST": np.array([-1]), "ROW": ROW, "KERNEL": KERNEL, "BIAS": BIAS},
        {"ReduceMean": 1, "Mul": 1, "Transpose": 1, "Conv": 1},
    ),
    "one channel times one number is scaled beforehand": (
        "n = ReduceMean<keepdims=1>(input, LAST) m = Mul(n, ONE) output = MatMul(m, MATRIX)",
        {"LAST": np.array([-1]), "ONE": ROW[:1], "MATRIX": KERNEL[:1, :, 0]},
        {"ReduceMean": 1, "MatMul": 1},
    ),
    "equal constants make equal expressions": (
        "a = Add(input, ROW) b = Add(input, SAME) output = Mul(a, b)",
        {"ROW": ROW, "SAME": ROW.copy()},
        {"Add": 1, "Mul": 1},
    ),
    "a sum that others read stays": (
        "a = Exp(input) c = Add(a, input) d = Add(c, a) output = Mul(d, c)",
        {},
        {"Exp": 1, "Add": 2, "Mul": 1},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_rule_fires_and_keeps_the_numbers(case: str) -> None:
    body, constants, expected = CASES[case]
    x = RNG.normal(size=(2, 5, 3)).astype(np.float32)
    before = run(parse(body, **constants), x)
    model = parse(body, **constants)
    clean_up(model)
    assert operators(model) == expected
    np.testing.assert_allclose(run(model, x), before, rtol=1e-5, atol=1e-6)


def test_integers_are_added_two_by_two() -> None:
    body = "i = Cast<to=6>(input) a = Add(i, i) b = Add(a, i) c = Add(b, a) output = Cast<to=1>(c)"
    x = RNG.normal(size=(2, 5, 3)).astype(np.float32) * 9
    model = parse(body)
    clean_up(model)
    assert "Sum" not in operators(model)  # which ONNX defines for floats alone
    np.testing.assert_array_equal(run(model, x), run(parse(body), x))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.sampled_from(["relu", "neg", "swap", "turn", "row", "self", "first"]), min_size=1, max_size=12))
def test_random_chains_keep_the_numbers(steps: list[str]) -> None:
    lines = {
        "relu": "Relu({0})",
        "neg": "Neg({0})",
        "swap": "Transpose<perm=[0,2,1]>({0})",
        "turn": "Transpose<perm=[1,2,0]>({0})",
        "row": "Add({0}, NUMBER)",
        "self": "Add({0}, {0})",
        "first": "Max({0}, {1})",
    }
    body, names = "", ["input"]
    for i, step in enumerate(steps):
        body += f" v{i} = " + lines[step].format(names[-1], names[max(0, i - 1)] if step == "first" else "")
        names.append(f"v{i}")
    body += f" output = Abs({names[-1]})"
    constants: dict[str, Any] = {"NUMBER": np.array([0.25], np.float32)} if "row" in steps else {}
    x = RNG.normal(size=(3, 3, 3)).astype(np.float32)  # a cube, so that every step fits every layout
    before = run(parse(body, **constants), x)
    model = parse(body, **constants)
    clean_up(model)
    np.testing.assert_allclose(run(model, x), before, rtol=1e-5, atol=1e-6)
