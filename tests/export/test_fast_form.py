"""The fast form: which models have one, what is in it, and that it is the step graph."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from keras import layers as L  # noqa: N812
from tcn import TCN as KerasTCN  # noqa: N811

from edgeseq import TCN
from edgeseq import runtime as rt
from edgeseq.export import export_model
from edgeseq.runtime import fast_step
from tests.export.small_models import Build, chain, tokens

Randomise = Callable[..., Any]
C = 4


def _wavenet() -> Any:
    inputs = keras.Input((None, C))
    x, skips = L.Conv1D(6, 1)(inputs), []
    for dilation in (1, 2, 4):
        tanh = L.Conv1D(6, 2, dilation_rate=dilation, padding="causal", activation="tanh")(x)
        gate = L.Conv1D(6, 2, dilation_rate=dilation, padding="causal", activation="sigmoid")(x)
        gated = L.Multiply()([tanh, gate])
        skips.append(L.Conv1D(5, 1)(gated))
        x = L.Add()([x, L.Conv1D(6, 1)(gated)])
    y = L.Conv1D(5, 1, activation="relu")(L.Activation("relu")(L.Add()(skips)))
    return keras.Model(inputs, L.Dense(3, activation="softmax")(y))


def _glu() -> Any:
    inputs = keras.Input((None, C))
    x = inputs
    for dilation in (1, 3):
        x = L.LayerNormalization()(x + L.Conv1D(2 * C, 3, dilation_rate=dilation, padding="causal")(x)[..., :C])
    return keras.Model(inputs, L.Dense(2)(x))


def _keras_tcn(**options: Any) -> Any:
    return chain(KerasTCN(5, kernel_size=3, dilations=(1, 2), **options), L.Dense(3), channels=C)


FAST: dict[str, Build] = {
    "our TCN": lambda: chain(TCN(5, 3, dilations=(1, 2), return_sequences=True)),
    "kernel 1": lambda: chain(L.Conv1D(3, 1), L.Conv1D(3, 2, padding="causal")),
    "same": lambda: chain(TCN(5, 3, dilations=(1, 2), padding="same", return_sequences=True)),
    "even same": lambda: chain(L.Conv1D(5, 4, padding="same", activation="relu"), L.Conv1D(5, 2, padding="same")),
    "valid": lambda: chain(L.Conv1D(5, 3, activation="tanh"), L.Conv1D(2, 2, dilation_rate=2)),
    "last step": lambda: chain(TCN(5, 3, dilations=(1, 2))),
    "running maximum": lambda: chain(L.Conv1D(5, 3, padding="causal"), L.GlobalMaxPooling1D(), L.Dense(2)),
    "running mean": lambda: chain(L.Conv1D(5, 3, padding="causal"), L.GlobalAveragePooling1D(), L.Dense(2)),
    "running mean behind lookahead": lambda: chain(L.Conv1D(5, 3, padding="same"), L.GlobalAveragePooling1D()),
    "cropped and padded again": lambda: chain(
        L.Conv1D(4, 3), L.ZeroPadding1D((2, 0)), L.Conv1D(2, 3, padding="causal")
    ),
    "padded in front of a mean": lambda: chain(L.Conv1D(4, 3), L.ZeroPadding1D((2, 0)), L.GlobalAveragePooling1D()),
    "padded behind a pool": lambda: chain(
        L.MaxPooling1D(5, 1), L.ZeroPadding1D((4, 0)), L.Conv1D(4, 3, padding="causal")
    ),
    "padded in front of lookahead": lambda: chain(
        L.Conv1D(4, 7), L.ZeroPadding1D((6, 0)), L.Conv1D(4, 5, padding="same")
    ),
    "WaveNet": _wavenet,
    "gated": _glu,
    "depthwise": lambda: chain(L.DepthwiseConv1D(3, padding="same", depth_multiplier=2)),
    "separable": lambda: chain(L.SeparableConv1D(5, 3, padding="same", dilation_rate=2)),
    "grouped": lambda: chain(L.Conv1D(6, 3, groups=2, padding="causal", dilation_rate=2)),
    "reshaped": lambda: chain(L.Dense(6), L.Reshape((-1, 3, 2)), L.Permute((1, 3, 2)), L.Reshape((-1, 6)), L.Dense(2)),
    "pools": lambda: chain(L.MaxPooling1D(3, 1), L.AveragePooling1D(2, 1)),
    "tokens": lambda: tokens(L.Embedding(9, 4), L.Conv1D(5, 3, padding="causal"), L.Dense(2)),
    "both ways": lambda: chain(L.Bidirectional(TCN(3, 2, dilations=(1, 2), return_sequences=True))),
}
_OPTIONS = itertools.product(
    ["causal", "same"], [True, False], [True, False], ["none", "batch", "layer"], ["relu", "tanh"]
)
for padding, skip, sequences, norm, activation in _OPTIONS:
    if padding == "same" and not sequences:
        continue  # it gives the middle of the sequence
    options: dict[str, Any] = {"padding": padding, "use_skip_connections": skip, "return_sequences": sequences}
    if norm != "none":
        options[f"use_{norm}_norm"] = True
    name = f"keras-tcn {padding} {'skip ' if skip else ''}{'sequences ' if sequences else ''}{norm} {activation}"
    FAST[name] = lambda options=options, activation=activation: _keras_tcn(activation=activation, **options)  # type: ignore[misc]
OFTEN = [case for case in FAST if not case.startswith("keras-tcn")] + [
    "keras-tcn causal skip sequences batch relu",
    "keras-tcn same sequences layer tanh",
    "keras-tcn causal skip none relu",
]


def _equal_on_both_forms(build: Build, randomise: Randomise, folder: Path) -> None:
    report = export_model(randomise(build()), folder, name="m")
    assert report.stream is not None, report.not_streamable
    model, plain = rt.load(report.stream), rt.load(report.stream, fast=False)
    assert model.explain().startswith("single steps"), model.explain()
    rng = np.random.default_rng(1)
    n = (model.warm_up or 0) + model.lookahead + 30
    port = model.input
    x = rng.integers(0, 9, n) if port.dtype != "float32" else rng.normal(size=(n, *port.shape))
    x = x.astype(port.dtype)
    a, b = model.stream(), plain.stream()
    rows_a, rows_b = [a.step(sample) for sample in x], [b.step(sample) for sample in x]
    assert [y is None for y in rows_a] == [y is None for y in rows_b]
    fast = np.concatenate([np.stack([y for y in rows_a if y is not None]), a.flush()])
    slow = np.concatenate([np.stack([y for y in rows_b if y is not None]), b.flush()])
    np.testing.assert_allclose(fast, slow, atol=2e-6, rtol=1e-5)
    whole = rt.load_offline(report.offline).run(x)
    np.testing.assert_allclose(fast[-1] if whole.ndim == 1 else fast, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", OFTEN)
def test_the_fast_form_is_the_step_graph(case: str, randomise: Randomise, tmp_path: Path) -> None:
    _equal_on_both_forms(FAST[case], randomise, tmp_path)


@pytest.mark.extended
@pytest.mark.parametrize("case", [case for case in FAST if case not in OFTEN])
def test_every_option_of_keras_tcn_has_a_fast_form(case: str, randomise: Randomise, tmp_path: Path) -> None:
    _equal_on_both_forms(FAST[case], randomise, tmp_path)


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (lambda: chain(L.LSTM(3, return_sequences=True)), "works on a state, as in a recurrent layer"),
        (lambda: chain(L.Conv1D(3, 2, strides=2)), "its outputs do not come one a sample"),
        (lambda: chain(L.MaxPooling1D(40, 1)), "a pool over 40 rows"),
        (lambda: chain(L.UpSampling1D(2)), "its outputs do not come one a sample"),
        (lambda: chain(L.AveragePooling1D(3, 1, padding="same")), "counts with the edges of the sequence"),
    ],
)
def test_what_has_none_says_why_and_streams(build: Build, reason: str, randomise: Randomise, tmp_path: Path) -> None:
    report = export_model(randomise(build()), tmp_path, name="m")
    assert report.stream is not None
    model = rt.load(report.stream)
    assert reason in model.explain(), model.explain()
    assert model.description.not_fast is not None
    assert model.stream().push(np.ones((49, C), np.float32)).shape[1:] == model.output.shape


@pytest.mark.parametrize("layer", [L.DepthwiseConv1D(2, padding="same"), L.Conv1D(4, 2, groups=2, padding="causal")])
def test_an_infinite_channel_does_not_reach_other_groups(layer: Any, randomise: Randomise, tmp_path: Path) -> None:
    model = randomise(chain(L.Activation("exponential"), layer, L.Activation("tanh")))
    report = export_model(model, tmp_path, name="m")
    assert report.stream is not None
    x = np.zeros((12, C), np.float32)
    x[7, 3] = 100  # finite, but not its exponential
    stream = rt.load(report.stream).stream()
    rows = [stream.step(row) for row in x]
    streamed = np.concatenate([np.stack([row for row in rows if row is not None]), stream.flush()])
    whole = rt.load_offline(report.offline).run(x)
    assert np.isfinite(whole[:, 0]).all()
    np.testing.assert_allclose(streamed, whole, atol=1e-6)


@pytest.mark.parametrize("name", ["fast_ring_3", "fast_slots_4_0", "fast_rows_4", "fast_value_0", "FastStep"])
def test_ports_may_have_any_name(name: str, randomise: Randomise, tmp_path: Path) -> None:
    x = keras.Input((None, C), name=name)
    outputs = {name: L.Conv1D(3, 2, padding="causal")(x), "other": L.Conv1D(2, 3, padding="causal")(x)}
    report = export_model(randomise(keras.Model(x, outputs)), tmp_path, name="m")
    assert report.stream is not None
    assert rt.load(report.stream).explain().startswith("single steps")


def test_a_fast_form_that_the_runtime_refuses_is_left_out(
    randomise: Randomise, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = randomise(chain(L.Conv1D(3, 2, padding="causal")))
    with monkeypatch.context() as patch:
        patch.setattr(fast_step.Rings, "step", lambda *_: None)
        path = export_model(model, tmp_path, name="m").stream
    assert path is not None
    assert len(onnx.load(path).functions) == 0
    assert "differs from its step graph" in rt.load(path).explain()
    onnx.checker.check_model(onnx.load(path), full_check=True)


def _run_nodes(path: Path) -> Counter[str]:
    (function,) = onnx.load(path).functions
    return Counter(node.op_type for node in function.node)


def test_a_step_does_the_same_work_at_every_dilation(randomise: Randomise, tmp_path: Path) -> None:
    seen = []
    for dilation in (1, 512):
        stack = [L.Conv1D(8, 3, padding="causal", dilation_rate=dilation, activation="relu") for _ in range(4)]
        path = export_model(randomise(chain(*stack)), tmp_path, name=f"d{dilation}").stream
        assert path is not None
        form = rt.load(path).description.fast
        assert form is not None
        seen.append(
            (_run_nodes(path), [(len(b.rings), [len(read.taps) for read in b.reads], b.width) for b in form.buffers])
        )
        slots = sum(ring.size for buffer in form.buffers for ring in buffer.rings)
        assert slots == 4 * 2 * dilation  # (k - 1) · dilation for each layer, and not one more
    assert seen[0] == seen[1]


def test_the_past_of_all_layers_is_one_product(randomise: Randomise, tmp_path: Path) -> None:
    stack = [L.Conv1D(C, 3, padding="causal", dilation_rate=2**i) for i in range(6)]
    path = export_model(randomise(chain(*stack)), tmp_path, name="m").stream
    assert path is not None
    nodes = _run_nodes(path)
    assert (nodes["Gather"], nodes["MatMul"], nodes["Gemm"]) == (1, 1, 6)


def test_the_weights_stand_in_the_file_once(randomise: Randomise, tmp_path: Path) -> None:
    stack = [L.Conv1D(64, 3, padding="causal") for _ in range(4)]
    report = export_model(randomise(chain(*stack)), tmp_path, name="m")
    assert report.stream is not None
    assert report.stream.stat().st_size < report.offline.stat().st_size + 20_000


def test_plain_onnx_tools_accept_the_file(randomise: Randomise, tmp_path: Path) -> None:
    path = export_model(randomise(chain(L.Conv1D(3, 2, padding="causal"))), tmp_path, name="m").stream
    assert path is not None
    onnx.checker.check_model(onnx.load(path), full_check=True)


@settings(max_examples=10, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(st.data())
def test_drawn_stacks(randomise: Randomise, tmp_path_factory: Any, data: Any) -> None:
    _drawn(randomise, tmp_path_factory, data)


@pytest.mark.extended
@settings(max_examples=150, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
@given(st.data())
def test_many_drawn_stacks(randomise: Randomise, tmp_path_factory: Any, data: Any) -> None:
    _drawn(randomise, tmp_path_factory, data)


def _drawn(randomise: Randomise, tmp_path_factory: Any, data: Any) -> None:
    def draw(choices: list[Any]) -> Any:
        return data.draw(st.sampled_from(choices))

    inputs = keras.Input((None, C))
    x = inputs
    for _ in range(data.draw(st.integers(1, 5))):
        options = {"padding": draw(["causal", "same"]), "dilation_rate": draw([1, 1, 2, 5])}
        conv = L.Conv1D(C, draw([1, 2, 3, 4]), activation=draw([None, "relu", "tanh", "gelu"]), **options)
        kind = draw(["conv", "residual", "gate", "norm", "pool", "concat", "depthwise", "pad", "crop"])
        if kind == "conv":
            x = conv(x)
        elif kind == "residual":
            x = L.Add()([x, conv(x)])
        elif kind == "gate":
            x = L.Multiply()([conv(x), L.Conv1D(C, 2, padding="causal", activation="sigmoid")(x)])
        elif kind == "norm":
            x = draw([L.LayerNormalization, L.BatchNormalization])()(x)
        elif kind == "pool":
            x = L.MaxPooling1D(draw([2, 3]), 1, padding="same")(x)
        elif kind == "concat":
            x = L.Dense(C)(L.Concatenate()([x, conv(x)]))
        elif kind == "pad":
            x = L.ZeroPadding1D((draw([0, 2]), draw([0, 1])))(x)
        elif kind == "crop":
            x = L.Cropping1D((draw([0, 1, 3]), draw([0, 1])))(x)
        else:
            x = L.DepthwiseConv1D(draw([2, 3]), padding="same")(x)
    head = draw(["none", "dense", "max", "mean"])
    if head in ("max", "mean"):
        x = (L.GlobalMaxPooling1D if head == "max" else L.GlobalAveragePooling1D)()(x)
    x = x if head == "none" else L.Dense(2)(x)
    _equal_on_both_forms(lambda: keras.Model(inputs, x), randomise, tmp_path_factory.mktemp("drawn"))
