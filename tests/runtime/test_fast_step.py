"""The fast step in the runtime: switching between forms, errors, and what happens to a wrong one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseq import runtime as rt
from edgeseq.fast_form import FastForm, Ring
from edgeseq.runtime import fast_step
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
    assert MODEL.explain().startswith("single steps run on the fast form: 4 ring buffers")
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
        if i in (0, 5, 11):

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


def _other_taps(form: FastForm) -> dict[str, Any]:
    *before, last = form.buffers
    taps = ((last.taps[0][0], last.rings[last.taps[0][0]].size - 1), *last.taps[1:])
    return {"buffers": (*before, replace(last, taps=taps))} if taps != last.taps else {}


def _swapped_rings(form: FastForm) -> dict[str, Any]:
    *before, last = form.buffers
    a, b, *rest = last.rings
    rings = (Ring(b.state, b.axis, 0, b.size), Ring(a.state, a.axis, b.size, a.size), *rest)
    return {"buffers": (*before, replace(last, rings=rings, taps=tuple((ring, 0) for ring, _ in last.taps)))}


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
