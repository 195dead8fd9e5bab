"""The fast step in the runtime: switching between forms, errors, and what happens to a wrong one."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as L  # noqa: N812

from edgeseq import TCN
from edgeseq import runtime as rt
from edgeseq.export import export_model
from edgeseq.fast_form import FastForm, Ring
from edgeseq.runtime import fast_step
from tests.export.small_models import chain
from tests.runtime.test_model import rewrite

TINY = Path("tests/data/tiny.stream.onnx")
MODEL, PLAIN = rt.load(TINY), rt.load(TINY, fast=False)
FORM = MODEL.description.fast
assert FORM is not None


def _samples(n: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(n, 3)).astype(np.float32)


def _state(stream: rt.Stream) -> list[Any]:
    return [array.copy() for array in stream._states()]


def test_explain_says_which_form_runs_and_why() -> None:
    assert MODEL.explain().startswith(
        "single steps, and chunks of up to 2 samples, run on the fast form: 4 ring buffers"
    )
    assert PLAIN.explain() == "everything runs on the step graph: the fast form was not asked for"
    old = rt.load("tests/data/format2.stream.onnx")
    assert old.explain() == "everything runs on the step graph: the file holds no fast form"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from(["step", "step", "push", "empty", "look", "reset"]), min_size=1, max_size=40))
def test_steps_chunks_and_resets_may_alternate(calls: list[str]) -> None:
    a, b = MODEL.stream(), PLAIN.stream()
    for i, call in enumerate(calls):
        x = _samples(5, i)
        if call == "look":
            for ours, theirs in zip(_state(a), _state(b), strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-6)
        elif call == "reset":
            a.reset()
            b.reset()
        elif call == "step":
            np.testing.assert_allclose(a.step(x[0]), b.step(x[0]), atol=1e-6)
        else:
            chunk = x if call == "push" else x[:0]
            np.testing.assert_allclose(a.push(chunk), b.push(chunk), atol=1e-6)


def test_reset_is_a_new_stream_bitwise() -> None:
    used, new = MODEL.stream(), MODEL.stream()
    for x in _samples(20, 1):
        used.step(x * 100)
    used.reset()
    for x in _samples(20, 2):
        np.testing.assert_array_equal(used.step(x), new.step(x))


def test_streams_do_not_share_rings() -> None:
    alone, a, b = MODEL.stream(), MODEL.stream(), MODEL.stream()
    for x in _samples(20):
        np.testing.assert_array_equal(alone.step(x), a.step(x))
        b.step(x * 50)


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_failed_step_changes_nothing(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, untouched = MODEL.stream(), MODEL.stream()
    data = _samples(12)
    for i, x in enumerate(data):
        if i in (0, 4, 5, 8, 11):

            def fail(self: Any, fed: int, run: Any = fast_step.Rings.step) -> None:
                if when == "after":
                    run(self, fed)
                raise RuntimeError("pulled the plug")

            with monkeypatch.context() as patch:
                patch.setattr(fast_step.Rings, "step", fail)
                with pytest.raises(rt.InputError, match="pulled the plug"):
                    stream.step(x * 7)
        np.testing.assert_array_equal(stream.step(x), untouched.step(x))


def _with_form(path: Path, **changes: Any) -> Path:
    assert FORM is not None
    return rewrite(path, TINY, fast=replace(FORM, **changes))


def _swapped_rings(form: FastForm) -> dict[str, Any]:
    *before, last = form.buffers
    a, b, *rest = last.rings
    rings = (Ring(b.state, b.axis, 0, b.size), Ring(a.state, a.axis, b.size, a.size), *rest)
    reads = tuple(replace(read, taps=tuple((ring, 0) for ring, _ in read.taps)) for read in last.reads)
    return {"buffers": (*before, replace(last, rings=rings, reads=reads))}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda form: {"function": "Nothing"}, "names the function 'Nothing', which it lacks"),
        (_swapped_rings, "differs from its step graph by"),
    ],
)
def test_a_wrong_fast_form_is_not_used(tmp_path: Path, change: Any, reason: str) -> None:
    path = _with_form(tmp_path / "wrong.onnx", **change(FORM))
    with pytest.warns(RuntimeWarning, match=f"{reason}.*it runs on its step graph, slower"):
        model = rt.load(path)
    assert reason in model.explain()
    x = _samples(9)
    got = model.stream()
    np.testing.assert_array_equal(np.stack([got.step(row) for row in x]), _steps(PLAIN, x))


def _steps(model: rt.Model, x: Any) -> Any:
    stream = model.stream()
    return np.stack([stream.step(row) for row in x])


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_fast_form_that_gives_no_numbers_is_not_used(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    def step(self: Any, _fed: int) -> None:
        self._arrays[MODEL.output.name][...] = value

    monkeypatch.setattr(fast_step.Rings, "step", step)
    with pytest.warns(RuntimeWarning, match="differs from its step graph"):
        assert "differs" in rt.load(TINY).explain()


def test_an_interrupted_reset_has_happened_or_not() -> None:
    data = _samples(12)
    expected = {}
    for done in (False, True):
        stream = MODEL.stream()
        for x in data[:9]:
            stream.step(x)
        if done:
            stream.reset()
        expected[stream.step(data[9]).tobytes()] = done
    for line in range(40):
        stream = MODEL.stream()
        for x in data[:9]:
            stream.step(x)
        with contextlib.suppress(KeyboardInterrupt):
            _interrupted_at(stream.reset, line)
        assert stream.step(data[9]).tobytes() in expected, line


def _interrupted_at(call: Any, line: int) -> None:
    seen = 0

    def trace(_frame: Any, event: str, _arg: Any) -> Any:
        nonlocal seen
        if event == "call":  # where Python looks for signals
            seen += 1
            if seen > line:
                raise KeyboardInterrupt
        return trace

    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(None)


def test_single_steps_run_on_rings_and_long_chunks_on_the_step_graph() -> None:
    stream, x = MODEL.stream(), _samples(1000)
    in_rings = []
    for take in (1, 1, 1000, 1, 0, 1):
        stream.push(x[:take]) if take != 1 else stream.step(x[0])
        in_rings.append(stream._in_rings)
    assert in_rings == [True, True, False, True, True, True]


def test_a_changed_function_is_a_changed_graph(tmp_path: Path) -> None:
    proto = onnx.load(TINY)
    next(node for node in proto.functions[0].node if node.op_type == "Relu").op_type = "Tanh"
    onnx.save(proto, tmp_path / "changed.onnx")
    with pytest.raises(rt.ModelFileError, match="the file was changed after its export"):
        rt.load(tmp_path / "changed.onnx")


def test_slots_without_a_table_are_those_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fast_step, "_LONGEST_TABLE", 0)
    computed = rt.load(TINY)
    x = _samples(30)
    np.testing.assert_array_equal(_steps(computed, x), _steps(MODEL, x))


MIXED = {
    "TCN": lambda: chain(TCN(5, 3, dilations=(1, 2), return_sequences=True)),
    "same": lambda: chain(TCN(5, 3, dilations=(1, 2), padding="same", return_sequences=True)),
    "pools": lambda: chain(L.MaxPooling1D(3, 1), L.Conv1D(3, 2), L.GlobalAveragePooling1D()),
    "grouped": lambda: chain(L.Conv1D(4, 3, groups=2), L.DepthwiseConv1D(2)),
}


@pytest.mark.parametrize("stack", MIXED)
def test_one_call_serves_streams_at_different_positions(stack: str, randomise: Any, tmp_path: Path) -> None:
    path = export_model(randomise(MIXED[stack]()), tmp_path, name="m").stream
    assert path is not None
    model, n, rng = rt.load(path), 3, np.random.default_rng(0)
    d, form = model.description, model.description.fast
    assert form is not None
    steps = [form.start + offset for offset in (0, 3, 11)]  # that each stream took
    data = rng.normal(size=(n, 30, 4)).astype(np.float32)
    alone = [model.stream() for _ in range(n)]
    for stream, count, x in zip(alone, steps, data, strict=True):
        for row in x[:count]:
            stream.step(row)
    states = {s.input: np.concatenate(arrays) for s, *arrays in zip(d.state, *map(_state, alone), strict=True)}
    feeds: dict[str, Any] = {d.input.name: np.stack([x[count] for x, count in zip(data, steps, strict=True)])}
    feeds |= {name: states[name] for name in form.states}
    for buffer in form.buffers:
        slots = sum(ring.size for ring in buffer.rings)
        array = np.empty((slots, n, buffer.width), np.float32)
        for ring in buffer.rings:
            rows = np.moveaxis(states[ring.state], 1 + ring.axis, 0)
            for b, count in enumerate(steps):  # as if the ring had been begun at position 0
                array[ring.first : ring.first + ring.size, b] = np.roll(rows[:, b], count, axis=0)
        feeds[buffer.array] = array.reshape(-1, buffer.width)
        for read in buffer.reads:
            whole = [(buffer.rings[ring], row) for ring, row in read.taps]
            groups = [whole[i : i + read.taps_each] for i in range(0, len(whole), read.taps_each)]
            feeds[read.slots] = np.array(
                [
                    (ring.first + (row + count) % ring.size) * n + b
                    for group in groups
                    for b, count in enumerate(steps)
                    for ring, row in group
                ]
            )
    session = ort.InferenceSession(
        fast_step.fast_graph(path.read_bytes(), d, form, n), providers=["CPUExecutionProvider"]
    )
    (y,) = session.run([d.output.name], feeds)
    expected = np.stack([s.step(x[count]) for s, x, count in zip(alone, data, steps, strict=True)])
    np.testing.assert_allclose(y, expected, atol=1e-6)
