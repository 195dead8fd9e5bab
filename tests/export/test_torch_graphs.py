"""Graphs that PyTorch exported stream: both exporters, channels first, time first, and inner sizes that lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from edgeseq.errors import ConfigError, NotStreamableError
from edgeseq.export.streaming.step_model import streamify
from edgeseq.export.streaming.time_axis import Axes
from tests.export.test_streamify import session, stream

Array = np.ndarray[Any, Any]
DATA = Path("tests/data/torch")
LENGTHS = (13, 16, 29)
TOLERANCE = 1e-5  # the law's, of outputs of order one
BCT, BTC, TBC, PREFIX = Axes(0, 2), Axes(0, 1), Axes(1, 0), Axes(0, None)

# name: (axes of the input, axes of the output)
CHANNELS_FIRST = """tcn_causal tcn_chomp wavenet strided depthwise hand_padded shared_padding same max_pool average_pool
    branches glu split repeated norm_of_channels conv_lstm"""
POOLED = "last_step last_step_squeezed mean adaptive_average adaptive_max amax max"
STREAMABLE: dict[str, tuple[Axes, Axes]] = {
    **dict.fromkeys(CHANNELS_FIRST.split(), (BCT, BCT)),
    **dict.fromkeys(POOLED.split(), (BCT, PREFIX)),
    **dict.fromkeys(["lstm", "lstm_two_layers", "gru", "rnn", "embedding_lstm", "viewed"], (BTC, BTC)),
    **dict.fromkeys(["lstm_time_first", "gru_time_first"], (TBC, TBC)),
    **dict.fromkeys(["lstm_last_output", "lstm_last_hidden"], (BTC, PREFIX)),
    "gru_mean_time_first": (TBC, PREFIX),
}
# Steps that a row waits for, of those families that are not causal.
LOOKAHEAD = {"strided": 6, "same": 3, "max_pool": 4, "average_pool": 4, "branches": 1, "glu": 1, "repeated": 1}
REFUSED = {
    "bidirectional": "backward half starts at the end of the sequence",
    "attention": "attention over time cannot stream",
    "group_norm": "time together with other axes",
    "centred": "early outputs depend on late samples",
    "length": "asks for the length of the sequence",
}
# What torch 2.13's newer exporter froze at the example's length, whatever the sizes in the file say.
FROZEN = {
    "lstm_time_first": "does not run at other lengths.*Reshape",
    "gru_time_first": "does not run at other lengths.*Reshape",
    "gru_mean_time_first": "does not run at other lengths.*Reshape",
    "rnn": r"SplitToSequence.*unrolled loop.*dynamo=False",
}
AMBIGUOUS = ["viewed"]  # works on each step alone: nothing in the newer exporter's file says which axis is time
CASES = [(n, e) for n in STREAMABLE for e in ("dynamo", "torchscript") if e == "torchscript" or n not in FROZEN]


def load(name: str, exporter: str) -> ir.Model:
    return ir.load(DATA / f"{name}.{exporter}.onnx")


def batch_first(x: Array, axes: Axes) -> Array:
    """(batch, time, rest) of what the offline graph takes or gives."""
    leading = [axes.batch] if axes.time is None else [axes.batch, axes.time]
    return np.ascontiguousarray(np.moveaxis(x, leading, range(len(leading))))


@pytest.mark.parametrize(("name", "exporter"), CASES)
def test_keeps_the_law(name: str, exporter: str) -> None:
    ours, theirs = STREAMABLE[name]
    step = streamify(load(name, exporter), 1 if name in AMBIGUOUS else None)
    about = step.model.graph
    assert [step.axes[str(port.name)] for port in (about.inputs[0], about.outputs[0])] == [ours, theirs]
    assert step.timings[0].lookahead == LOOKAHEAD.get(name, 0)
    recorded = np.load(DATA / f"{name}.npz")
    x = batch_first(recorded["x"], ours)
    for n in LENGTHS:
        expected = batch_first(recorded[f"y_{n}"], theirs)
        for sizes in ([1] * n, [n], np.random.default_rng(n).integers(1, 7, n).tolist()):
            got = stream(step, x[:, :n], sizes)
            if theirs == PREFIX:
                got = got[:, -1]
            assert got.shape == expected.shape
            np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("name", sorted({name for name, _ in CASES}))
def test_offline_files_give_what_torch_gives(name: str) -> None:
    recorded = np.load(DATA / f"{name}.npz")
    axes = STREAMABLE[name][0]
    for exporter in (e for n, e in CASES if n == name):
        reference = session(load(name, exporter))
        for n in LENGTHS:
            x = np.ascontiguousarray(recorded["x"].take(range(n), axis=axes.time))
            (y,) = reference.run(None, {reference.get_inputs()[0].name: x})
            np.testing.assert_allclose(y, recorded[f"y_{n}"], atol=TOLERANCE)


@pytest.mark.parametrize("name", ["last_step", "mean", "amax", "lstm_last_hidden", "gru_mean_time_first"])
def test_each_row_of_a_prefix_law_is_the_output_so_far(name: str) -> None:
    ours, _ = STREAMABLE[name]
    step, recorded = streamify(load(name, "torchscript")), np.load(DATA / f"{name}.npz")
    got = stream(step, batch_first(recorded["x"], ours), [1, 5, 2, 9])
    for n in LENGTHS:
        np.testing.assert_allclose(got[:, n - 1], recorded[f"y_{n}"], atol=TOLERANCE, rtol=0)


def test_offline_graph_is_left_as_it_is() -> None:
    offline = load("conv_lstm", "torchscript")
    before = ir.to_proto(offline).SerializeToString(deterministic=True)
    streamify(offline)
    assert ir.to_proto(offline).SerializeToString(deterministic=True) == before


def test_takes_samples_over_time_whatever_the_layout() -> None:
    for name, channels in (("wavenet", [3]), ("lstm_time_first", [3]), ("embedding_lstm", [])):
        (x, *_) = streamify(load(name, "torchscript")).model.graph.inputs
        assert list(x.shape or ())[2:] == channels
        assert (str(x.shape[0]), str(x.shape[1])) == ("batch", "time")  # type: ignore[index]


def relabelled(name: str, *sizes: int | str) -> ir.Model:
    """The older exporter's graph with other sizes of its input in the file."""
    model = load(name, "torchscript")
    model.graph.inputs[0].shape = ir.Shape(sizes)
    return model


def test_names_of_sizes_may_lie() -> None:
    for name, sizes in (("lstm", ("time", "batch", 3)), ("lstm_time_first", ("batch", "time", 3))):
        assert streamify(relabelled(name, *sizes)).axes["input"] == STREAMABLE[name][0]


def test_asks_for_the_axis_where_more_than_one_may_be_time() -> None:
    offline = relabelled("viewed", "a", "b", 3)
    with pytest.raises(NotStreamableError, match=r"more than one axis may be time.*give time_axis=\{'input': 1\} or"):
        streamify(offline)
    assert streamify(offline, 1).axes["input"] == streamify(offline, {"input": -2}).axes["input"] == BTC
    assert streamify(relabelled("viewed", "batch", "steps", 3)).axes["input"] == BTC


def test_refuses_an_axis_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match="has no axis 3"):
        streamify(load("lstm", "torchscript"), 3)
    with pytest.raises(ConfigError, match=r"no input \['x'\]"):
        streamify(load("lstm", "torchscript"), {"x": 1})


def test_refuses_the_wrong_axis() -> None:
    with pytest.raises(NotStreamableError, match="does not run over the time axis"):
        streamify(load("lstm", "torchscript"), 0)
    with pytest.raises(NotStreamableError):
        streamify(load("tcn_causal", "torchscript"), 1)


def test_refuses_a_fixed_length() -> None:
    with pytest.raises(NotStreamableError, match=r"exactly 13 steps.*dynamic_axes"):
        streamify(relabelled("lstm", "batch", 13, 3))


@pytest.mark.parametrize("name", sorted(FROZEN))
def test_refuses_what_the_exporter_froze(name: str) -> None:
    with pytest.raises(NotStreamableError, match=FROZEN[name]):
        streamify(load(name, "dynamo"))


@pytest.mark.parametrize("exporter", ["dynamo", "torchscript"])
@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("time_axis", [None, "given"])
def test_refuses_what_needs_the_whole_sequence(name: str, exporter: str, time_axis: str | None) -> None:
    axis = None if time_axis is None else (1 if name in ("bidirectional", "attention") else 2)
    with pytest.raises(NotStreamableError, match=REFUSED[name]):
        streamify(load(name, exporter), axis)


# With torch at hand, which the project does not install: `pip install -e .[torch]`, then `make test-extended`.


@pytest.mark.extended
@pytest.mark.parametrize("opset", [13, 15, 17, 18, 20])
@pytest.mark.parametrize("name", [name for name in STREAMABLE if name not in AMBIGUOUS])
def test_streams_what_torch_exports_now(name: str, opset: int) -> None:
    pytest.importorskip("torch", reason="torch is not installed; the checked-in graphs were tested")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed; the checked-in graphs were tested")
    from tests.export import torch_models

    module, (ours, theirs) = torch_models.build(name), STREAMABLE[name]
    for exporter in ("dynamo", "torchscript"):
        if exporter == "dynamo" and (name in FROZEN or opset < 18):
            continue
        step = streamify(ir.from_proto(torch_models.export(name, module, exporter, opset)))
        assert step.axes[str(step.model.graph.inputs[0].name)] == ours
        for batch, length in ((1, 10), (3, 37)):
            x = torch_models.sample(name, length, batch, seed=length)
            expected = batch_first(torch_models.run(module, x), theirs)
            got = stream(step, batch_first(x, ours), [1, 1, 5, 3, 1, 8])
            got = got[:, -1] if theirs == PREFIX else got
            np.testing.assert_allclose(got, expected, atol=TOLERANCE, rtol=0)
