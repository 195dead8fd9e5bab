"""Recurrent layers under a mask: the rule against a loop in numpy, and what is not recognised is refused."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgeseq.errors import NotStreamableError
from edgeseq.export.streaming.step_model import StepModel, streamify
from tests.export.masked_graphs import COUNTED, LAST, MASK, UNITS, ZEROS, constants, layer, loop, samples
from tests.export.test_streamify import EVERY_STEP, NO_TIME, Array, parse, session, stream

KINDS = ["LSTM", "GRU", "RNN"]
TOLERANCE = 1e-6
LENGTHS = (1, 2, 3, 25)


def offline(kind: str, body: str, output: str = EVERY_STEP) -> ir.Model:
    return parse(body, output, constants(kind, body))


def chunkings(length: int) -> list[list[int]]:
    return [[1] * length, [3, 1, 7, 2, length], [length]]


def check(model: ir.Model, x: Array, expected: Array) -> StepModel:
    """The offline graph, and its stream in every chunking, of eight sequences and of one, give what is expected."""
    step = streamify(model)
    np.testing.assert_allclose(session(model).run(None, {"input": x})[0], expected, atol=TOLERANCE)
    for sizes in chunkings(x.shape[1]):
        np.testing.assert_allclose(stream(step, x, sizes), expected, atol=TOLERANCE, err_msg=str(sizes))
        np.testing.assert_allclose(stream(step, x[7:], sizes), expected[7:], atol=TOLERANCE, err_msg="one sequence")
    return step


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_step(kind: str, zeros: bool) -> None:
    body = MASK + COUNTED + layer(kind, spread=ZEROS if zeros else LAST)
    for length in LENGTHS:
        x, mask = samples(length)
        step = check(offline(kind, body), x, loop(kind, constants(kind, body), x, mask, zeros=zeros)[0])
    assert [s.shape for s in step.state] == [(UNITS,)] * (2 if kind == "LSTM" else 1)


@pytest.mark.parametrize(("kind", "which"), [*((kind, "h") for kind in KINDS), ("LSTM", "c")])
def test_last_states(kind: str, which: str) -> None:
    body = MASK + COUNTED + layer(kind, result="unread") + f"output = Squeeze({which}, ZERO)"
    model, step = offline(kind, body, NO_TIME), streamify(offline(kind, body, NO_TIME))
    for length in LENGTHS:
        x, mask = samples(length)
        prefixes = [loop(kind, constants(kind, body), x[:, : n + 1], mask[:, : n + 1])[1] for n in range(length)]
        expected = np.stack([states["hc".index(which)] for states in prefixes], axis=1)
        np.testing.assert_allclose(session(model).run(None, {"input": x})[0], expected[:, -1], atol=TOLERANCE)
        for sizes in chunkings(length):
            np.testing.assert_allclose(stream(step, x, sizes), expected, atol=TOLERANCE)


@pytest.mark.parametrize("kind", KINDS)
def test_masked_samples_leave_the_state_to_the_last_bit(kind: str) -> None:
    step = streamify(offline(kind, MASK + COUNTED + layer(kind)))
    rng = np.random.default_rng(1)
    state = {s.input: rng.normal(size=(2, *s.shape)).astype(np.float32) for s in step.state}
    for n_masked in (1, 5):
        x = np.full((2, n_masked, 4), -1e30, np.float32)
        x[1, n_masked // 2, 0] = 1.0  # the other sequence goes on
        y, *after = session(step.model).run(None, {"input": x, **state})
        for was, now in zip(state.values(), after, strict=True):
            assert np.array_equal(was[0], now[0])
            assert not np.array_equal(was[1], now[1])
        assert all(np.array_equal(row, state[step.state[0].input][0]) for row in y[0])


@pytest.mark.parametrize("output", ["", "output = Squeeze(c, ZERO)"], ids=["every step", "the last c"])
def test_nan_at_masked_steps_goes_nowhere(output: str) -> None:
    spoilt = "w = Unsqueeze(m, TWO) spoilt = Where(w, input, NAN) "
    body = MASK + spoilt + COUNTED + layer("LSTM", "spoilt", "unread" if output else "output") + output
    x, mask = samples(25)
    rows, (_, c) = loop("LSTM", constants("LSTM", body), x, mask)
    step = streamify(offline("LSTM", body, NO_TIME if output else EVERY_STEP))
    for sizes in chunkings(25):
        got = stream(step, x, sizes)
        np.testing.assert_allclose(got[:, -1], c if output else rows[:, -1], atol=TOLERANCE)
        assert np.isfinite(got).all()


def test_stacked_cells_hold_their_states() -> None:
    second = "y2, h2 = RNN<hidden_size=3>(q, W2, R2, B2, count) q2 = Squeeze(y2, ONE) "
    body = MASK + COUNTED + layer("GRU").replace("u = Transpose<perm=[1, 0, 2]>(q)", f"{second}{TURN}(q2)")
    known = constants("GRU", body)
    upper = constants("RNN", "W R B")
    upper["W"] = upper["W"][..., :UNITS]
    model = parse(body, EVERY_STEP, known | {f"{name}2": value for name, value in upper.items()})
    x, mask = samples(25)
    lower = loop("GRU", known, x, mask)[0]
    check(model, x, loop("RNN", upper, lower, mask)[0])


TURN = "u = Transpose<perm=[1, 0, 2]>"
CONV = "t0 = Transpose<perm=[0, 2, 1]>(input) c0 = Conv<pads=[2, 2]>(t0, K, D) seen = Transpose<perm=[0, 2, 1]>(c0) "
KERNEL = {
    "K": np.random.default_rng(3).normal(size=(4, 4, 5)).astype(np.float32) * np.float32(0.3),
    "D": np.random.default_rng(4).normal(size=4).astype(np.float32),
}


@pytest.mark.parametrize("zeros", [False, True])
@pytest.mark.parametrize("mask_of", ["input", "seen"])
def test_behind_lookahead(mask_of: str, zeros: bool) -> None:
    """The mask waits for what it masks; rows from before the sequence and behind it change no state."""
    spread = ZEROS if zeros else LAST
    body = CONV + MASK.replace("input", mask_of) + COUNTED + layer("GRU", "seen", spread=spread)
    model = parse(body, EVERY_STEP, constants("GRU", body) | KERNEL)
    features = parse(CONV.replace("seen =", "output ="), EVERY_STEP, KERNEL)
    for length in LENGTHS:
        x, mask = samples(length)
        (seen,) = session(features).run(None, {"input": x})
        mask = mask if mask_of == "input" else seen.max(axis=2) > 0
        step = check(model, x, loop("GRU", constants("GRU", body), seen, mask, zeros=zeros)[0])
    assert [timing.lookahead for timing in step.timings] == [2]


def test_zeros_where_the_last_step_is_masked() -> None:
    """Of a mask (B, 1) of the last step and an output (B, U)."""
    body = MASK + COUNTED + layer("LSTM", result="unread")
    body += "last = Slice(m, MINUS1, END, ONE) z = Squeeze(h, ZERO) output = Where(last, z, NONE)"
    model = offline("LSTM", body, NO_TIME)
    x, mask = samples(25)
    expected = loop("LSTM", constants("LSTM", body), x, mask, zeros=True)[0]
    for sizes in chunkings(25):
        np.testing.assert_allclose(stream(streamify(model), x, sizes), expected, atol=TOLERANCE)


@pytest.mark.parametrize(
    "like",
    [
        "n = Shape(input) f = Expand(NONE, n) ",
        "n = Shape(input) f = ConstantOfShape(n) ",
        "n = Shape(input) n32 = Cast<to=6>(n) n64 = Cast<to=7>(n32) f = Expand(NONE, n64) ",
    ],
)
def test_tensors_full_of_one_number(like: str) -> None:
    model = offline("RNN", like + "r = ReduceMax<keepdims=1>(input, TWO) output = Add(r, f)", EVERY_STEP)
    x, _ = samples(9)
    for sizes in chunkings(9):
        rows = stream(streamify(model), x, sizes)
        assert np.array_equal(rows, np.repeat(x.max(axis=2, keepdims=True), 4, axis=2))


WHOLE = MASK + COUNTED + layer("LSTM")
POOLED = "pool = ReduceMax<keepdims=0>(input, ONE) s = Slice(pool, ONE, END, ONE) H = Unsqueeze(s, ZERO) "
OTHER = "m2 = Less(r, LEAST) ones2 = Cast<to=6>(m2) count2 = ReduceSum<keepdims=0>(ones2, ONE) "

# What looks like a mask and is none that is known: body, text of the refusal.
UNKNOWN = {
    "compact steps are an output": (MASK + COUNTED + "output = GatherND<batch_dims=1>(input, o)", "Shape|TopK"),
    "something else between": (
        WHOLE.replace(" t = Transpose<perm=[1, 0, 2]>(front)", " s = Relu(front) t = Transpose<perm=[1, 0, 2]>(s)"),
        "Shape|TopK",
    ),
    "another mask counted": (WHOLE.replace("v, order", OTHER + "v, order").replace("B, count)", "B, count2)"), "Shape"),
    "the steps that do not count first": (WHOLE.replace("TopK<axis=1>", "TopK<axis=1, largest=0>"), "Shape|TopK"),
    "sums of the steps before": (WHOLE.replace("CumSum(", "CumSum<exclusive=1>("), "CumSum|Shape"),
    "zeros by another mask": (
        (MASK + COUNTED + layer("LSTM", spread=ZEROS))
        .replace("v, order", OTHER + "v, order")
        .replace("Where(m,", "Where(m2,"),
        "CumSum|Shape",
    ),
    "sums from the end": (WHOLE.replace("CumSum(", "CumSum<reverse=1>("), "CumSum|Shape"),
    "sums of another mask": (
        WHOLE.replace("v, order", OTHER + "v, order").replace("CumSum(ones,", "CumSum(ones2,"),
        "CumSum|Shape",
    ),
    "backwards": (
        WHOLE.replace("LSTM<", 'LSTM<direction="reverse", '),
        r"\(LSTM\): its backward half starts at the end of the sequence; train a causal model, or run offline",
    ),
    "an initial state": (
        (POOLED + WHOLE).replace("B, count)", "B, count, H, H)"),
        r"\(MaskedLSTM\): it has an initial state; export without initial_state",
    ),
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_is_refused(name: str) -> None:
    body, text = UNKNOWN[name]
    with pytest.raises(NotStreamableError, match=text):
        streamify(offline("LSTM", body))


def test_layers_under_one_mask_share_its_nodes() -> None:
    body = MASK + COUNTED + layer("RNN", result="first") + layer("RNN", "first", spread="", n="2")
    known = constants("RNN", body)
    narrow = known["W"][..., :UNITS]
    x, mask = samples(25)
    first = loop("RNN", known, x, mask)[0]
    step = check(parse(body, EVERY_STEP, known | {"W2": narrow}), x, loop("RNN", known | {"W": narrow}, first, mask)[0])
    types = [node.op_type for node in step.model.graph]
    assert types.count("TopK") == types.count("CumSum") == 1
    assert types.count("RNN") == 2
