"""The state that a stream carries, in bytes, against a formula written from the layers of the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from keras import layers as L  # noqa: N812

from edgeseq import TCN
from edgeseq.export.convert import to_onnx
from edgeseq.export.streaming.step_model import StepModel, streamify
from edgeseq.model_file import Description, Port
from tests.export.small_models import CHANNELS, chain, function
from tests.export.test_streamify import EVERY_STEP, NO_TIME, TO_CHANNELS, Array, parse, session, stream, weights

F32, F64, I64 = 4, 8, 8
POSITION = I64


def state_bytes(step: StepModel) -> int:
    port = Port("x", "float32", (CHANNELS,))
    return Description(kind="stream", name="m", inputs=(port,), outputs=(port,), state=step.state).state_bytes


def kinds(step: StepModel) -> list[str]:
    return [spec.input.split("_", 2)[2] for spec in step.state]


def conv_rows(*convs: tuple[int, int, int]) -> int:
    """Bytes of (kernel, dilation, channels in) each, of different inputs."""
    return sum((kernel - 1) * dilation * channels * F32 for kernel, dilation, channels in convs)


def _gated(x: Any, padding: str, skips: int) -> Any:
    total = []
    for i in range(skips):
        gate = [
            L.Conv1D(5, 3, padding=padding, dilation_rate=2**i, activation=activation)(x)
            for activation in ("tanh", "sigmoid")
        ]
        product = L.Multiply()(gate)
        total.append(L.Conv1D(6, 1)(product))
        x = L.Add()([x, L.Conv1D(CHANNELS, 1)(product)])
    return L.Add()(total)


def _tcn(padding: str, filters: int, dilations: tuple[int, ...], *, skip: bool = True) -> Any:
    layer = TCN(
        nb_filters=filters,
        kernel_size=3,
        dilations=dilations,
        padding=padding,
        use_skip_connections=skip,
        return_sequences=True,
    )
    return chain(layer, L.Dense(2))


def _tcn_convs(filters: int, dilations: tuple[int, ...]) -> int:
    first, *later = dilations
    return conv_rows((3, first, CHANNELS), (3, first, filters), *((3, d, filters) for d in later for _ in range(2)))


DILATIONS = (1, 2, 4, 8)

# name: (build, bytes)
KERAS: dict[str, tuple[Callable[[], Any], int]] = {
    # The last block's residual is not used with skip connections; of one input, conv and residual read one history.
    "causal TCN": (lambda: _tcn("causal", 5, DILATIONS), _tcn_convs(5, DILATIONS)),
    "causal TCN without skip connections": (
        lambda: _tcn("causal", 7, DILATIONS, skip=False),
        _tcn_convs(7, DILATIONS),
    ),
    # A block with dilation d is 2d late: so long is the residual's delay line, which the conv's history of 2d rows
    # serves, but in the first block, whose residual passes a convolution first. A skip waits for the next.
    "'same' TCN": (
        lambda: _tcn("same", 5, DILATIONS),
        _tcn_convs(5, DILATIONS) + 2 * DILATIONS[0] * 5 * F32 + sum(2 * d for d in DILATIONS[1:]) * 5 * F32 + POSITION,
    ),
    "'same' TCN without skip connections": (
        lambda: _tcn("same", 5, DILATIONS, skip=False),
        _tcn_convs(5, DILATIONS) + 2 * DILATIONS[0] * 5 * F32 + POSITION,
    ),
    # Tanh and sigmoid read one history, each block.
    "gated WaveNet": (
        lambda: function(lambda x: _gated(x, "causal", 4)),
        conv_rows(*((3, 2**i, CHANNELS) for i in range(4))),
    ),
    # The residual and both convolutions read one history; 2d rows for the convolutions, d for the residual.
    "gated WaveNet with lookahead": (
        lambda: function(lambda x: _gated(x, "same", 4)),
        conv_rows(*((3, 2**i, CHANNELS) for i in range(4))) + sum(2**i for i in range(1, 4)) * 6 * F32 + POSITION,
    ),
    "strided encoder": (
        lambda: chain(L.Conv1D(6, 5, strides=2, padding="causal"), L.Conv1D(3, 4, strides=2, padding="causal")),
        # A window of 5 at a stride of 2 sees 3 rows beside the two that are new.
        (5 - 2) * CHANNELS * F32 + (4 - 2) * 6 * F32 + POSITION,
    ),
    "LSTM and GRU": (
        lambda: chain(L.LSTM(5, return_sequences=True), L.GRU(3, return_sequences=True), L.SimpleRNN(7)),
        (5 + 5 + 3 + 7) * F32,
    ),
    "maximum": (lambda: chain(L.Conv1D(6, 3, padding="causal"), L.GlobalMaxPooling1D()), 2 * CHANNELS * F32 + 6 * F32),
    "mean": (
        lambda: chain(L.Conv1D(6, 3, padding="causal"), L.GlobalAveragePooling1D()),
        2 * CHANNELS * F32 + 6 * F64 + F64,  # sums, and their count
    ),
}


@pytest.mark.parametrize("name", KERAS)
def test_keras_models(name: str, randomise: Callable[..., Any]) -> None:
    build, expected = KERAS[name]
    step = streamify(to_onnx(randomise(build())).model)
    assert state_bytes(step) == expected, [(s.input, s.shape) for s in step.state]


def conv(out: str, source: str, weight: str, *, pads: tuple[int, int], dilation: int = 1) -> str:
    return f"{out} = Conv<pads=[{pads[0]},{pads[1]}], dilations=[{dilation}]>({source}, {weight})"


END = "output = Transpose<perm=[0,2,1]>"
W2, W3, W5 = weights(4, 4, 2), weights(4, 4, 3), weights(4, 4, 5)

# name: (body, constants, kinds of state, their rows)
GRAPHS: dict[str, tuple[str, dict[str, Array], dict[str, int]]] = {
    "histories of 2, 4 and 8 rows of one tensor": (
        f"{TO_CHANNELS} {conv('a', 't', 'W2', pads=(2, 0), dilation=2)} "
        f"{conv('b', 't', 'W5', pads=(8, 0), dilation=2)} {conv('c', 't', 'W3', pads=(4, 0), dilation=2)} "
        f"s = Sum(a, b, c) {END}(s)",
        {"W2": W2, "W3": W3, "W5": W5},
        {"conv_rows": 8},
    ),
    "a residual beside the convolution": (
        f"{TO_CHANNELS} {conv('c', 't', 'W5', pads=(2, 2))} s = Add(t, c) {END}(s)",
        {"W5": W5},
        {"conv_delay_rows": 4},
    ),
    "a residual beside two convolutions, longer than the first one's history": (
        f"{TO_CHANNELS} e = Exp(t) {conv('c', 'e', 'W3', pads=(1, 1))} {conv('d', 'c', 'W5', pads=(2, 2), dilation=1)} "
        f"s = Add(e, d) {END}(s)",
        {"W3": W3, "W5": W5},
        # The input, not its Exp, is blank outside the sequence; each convolution masks its own.
        {"position": 0, "conv_delay_rows": 3, "conv_rows": 4},
    ),
    "the delay line asked for before the convolution": (
        f"{TO_CHANNELS} e = Exp(t) {conv('c', 't', 'W5', pads=(2, 2))} s = Add(e, c) "
        f"{conv('d', 'e', 'W3', pads=(1, 1))} {conv('f', 's', 'W3b', pads=(1, 1))} g = Add(f, d) {END}(g)",
        {"W5": W5, "W3": W3, "W3b": W3.copy()},
        {"position": 0, "conv_rows": 4 + 2, "delay_conv_rows": 2, "delay_rows": 2},
    ),
    "pools of zeros and of lowest values, which cannot share": (
        f"{TO_CHANNELS} a = MaxPool<kernel_shape=[4], pads=[3,0]>(t) {conv('b', 't', 'W3', pads=(2, 0))} "
        f"s = Add(a, b) {END}(s)",
        {"W3": W3},
        {"maxpool_rows": 3, "conv_rows": 2},
    ),
    "branches of different delay": (
        f"{TO_CHANNELS} {conv('a', 't', 'W3', pads=(0, 2))} {conv('b', 't', 'W5', pads=(0, 4))} s = Mul(a, b) {END}(s)",
        {"W3": W3, "W5": W5},
        {"conv_rows": 4, "delay_rows": 2},
    ),
    "four branches summed, each waiting for the next only": (
        f"{TO_CHANNELS} {conv('a', 't', 'W3', pads=(0, 2))} {conv('b', 't', 'W5', pads=(0, 4))} "
        f"{conv('c', 't', 'W3b', pads=(0, 10), dilation=5)} n = Neg(t) s = Sum(c, a, n, b) {END}(s)",
        {"W3": W3, "W5": W5, "W3b": W3.copy()},
        {"conv_rows": 10, "delay_rows": 2 + 2 + 6},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GRAPHS)
def test_histories_are_shared_and_delay_lines_minimal(name: str) -> None:
    body, constants, rows = GRAPHS[name]
    offline = parse(body, EVERY_STEP, constants)
    step = streamify(offline)
    assert sorted(set(kinds(step))) == sorted(rows)
    expected = sum(rows.values()) * CHANNELS * F32 + POSITION * ("position" in rows)
    assert state_bytes(step) == expected, [(s.input, s.shape) for s in step.state]
    x = np.random.default_rng(0).normal(size=(2, 31, CHANNELS)).astype(np.float32)
    (whole,) = session(offline).run(None, {"input": x})
    for sizes in ([1] * 31, [31], [4, 1, 1, 9, 2, 14]):
        np.testing.assert_allclose(stream(step, x, sizes), whole, atol=1e-5)


def test_every_item_says_what_it_is_for() -> None:
    body = (
        "t = Transpose<perm=[1,0,2]>(input) y, h = LSTM<hidden_size=3>(t, W, R) s = Squeeze(y, ONE) "
        "u = Transpose<perm=[1,2,0]>(s) p = MaxPool<kernel_shape=[2], pads=[0,1]>(u) "
        "q = ReduceMean<keepdims=0>(p, TWO) output = Relu(q)"
    )
    constants = {"W": weights(1, 12, 4), "R": weights(1, 12, 3), "ONE": np.array([1]), "TWO": np.array([2])}
    step = streamify(parse(body, NO_TIME, constants))
    assert sorted(kinds(step)) == ["count", "lstm_c", "lstm_h", "maxpool_rows", "position", "sum"]


def deep(n_convs: int) -> ir.Model:
    """So many 'same' convolutions with residuals."""
    body, constants, h = [TO_CHANNELS], dict[str, Array](), "t"
    for i in range(n_convs):
        body.append(f"{conv(f'c{i}', h, f'W{i}', pads=(2, 2), dilation=2)} r{i} = Relu(c{i}) s{i} = Add(r{i}, {h})")
        constants[f"W{i}"] = weights(4, 4, 3)
        h = f"s{i}"
    return parse(" ".join([*body, f"{END}({h})"]), EVERY_STEP, constants)


def test_the_step_graph_grows_with_the_model_and_no_faster() -> None:
    nodes = {n: len(list(streamify(deep(n)).model.graph)) for n in (10, 20, 30)}
    assert nodes[30] - nodes[20] == nodes[20] - nodes[10] <= 10 * 10
