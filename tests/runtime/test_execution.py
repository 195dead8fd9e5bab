"""Execution providers and threads: what is asked for is what runs, or an error that lists what there is."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from edgeseq import runtime as rt
from edgeseq.errors import ConfigError
from edgeseq.runtime import model_source

TINY = "tests/data/tiny.stream.onnx"
CPU = "CPUExecutionProvider"
OTHERS = sorted(set(ort.get_available_providers()) - {CPU})


def run(model: rt.Model, x: Any) -> Any:
    stream = model.stream()
    parts = [stream.push(x[:20]), *[stream.step(row)[None] for row in x[20:40]], stream.push(x[40:42])]
    return np.concatenate([*parts, stream.push(x[42:]), stream.flush()])


def signal(length: int) -> Any:
    return np.random.default_rng(0).normal(size=(length, 3)).astype(np.float32)


def test_the_default_is_one_thread_of_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def options(execution: Any, made: Any = model_source._options) -> Any:
        seen.append(made(execution))
        return seen[-1]

    monkeypatch.setattr(model_source, "_options", options)
    model = rt.load(TINY)
    assert (model.providers, model.threads) == ((CPU,), 1)
    assert len(seen) == 2  # the step graph's, and the fast form's
    rt.load(TINY, threads=2)
    assert [each.intra_op_num_threads for each in seen] == [1, 1, 2, 2]
    assert {each.get_session_config_entry("session.intra_op.allow_spinning") for each in seen} == {"0"}


@pytest.mark.parametrize(
    "providers", [[CPU], [(CPU, {})], (CPU,), [(CPU, {"arena_extend_strategy": "kSameAsRequested"})]]
)
def test_the_cpu_by_name_is_the_default(providers: Any) -> None:
    model, x = rt.load(TINY, providers=providers), signal(600)
    assert model.explain() == rt.load(TINY).explain()
    np.testing.assert_array_equal(run(model, x), run(rt.load(TINY), x))


def test_two_threads_give_the_same_within_the_laws_tolerance() -> None:
    model, x = rt.load(TINY, threads=2), signal(600)
    assert model.threads == 2
    np.testing.assert_allclose(run(model, x), rt.load_offline("tests/data/tiny.onnx").run(x), atol=1e-5)


@pytest.mark.skipif(not OTHERS, reason="onnxruntime has no other execution provider here")
def test_another_provider_runs_on_the_step_graph() -> None:
    model, x = rt.load(TINY, providers=[OTHERS[0], CPU]), signal(600)
    assert model.providers == (OTHERS[0], CPU)
    assert model.explain().startswith("everything runs on the step graph: the fast form needs the CPU")
    np.testing.assert_allclose(run(model, x), rt.load_offline("tests/data/tiny.onnx").run(x), atol=1e-5)


class Copying:
    """A session as of another device: what is bound is copied when it is bound."""

    def __init__(self, ort_session: Any) -> None:
        self._ort_session = ort_session

    def get_providers(self) -> list[str]:
        return ["ElsewhereExecutionProvider", CPU]

    def run(self, *args: Any) -> Any:
        return self._ort_session.run(*args)


@pytest.mark.parametrize("name", ["tiny.stream.onnx", "format2.stream.onnx"])
def test_nothing_is_bound_on_another_device(name: str) -> None:
    model = rt.load(f"tests/data/{name}", fast=False)
    x = np.random.default_rng(1).normal(size=(600, *model.input.shape)).astype(np.float32)
    expected = run(model, x)
    model._ort_session = Copying(model._ort_session)
    np.testing.assert_allclose(run(model, x), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"providers": ["NoSuchProvider"]}, "'NoSuchProvider' is not in the installed onnxruntime; available are ["),
        ({"providers": [CPU, "CUDAExecutionProvider"]}, f"available are {ort.get_available_providers()}"),
        ({"providers": CPU}, f"expected a list of execution providers, got {CPU!r}"),
        ({"providers": []}, "expected a list of execution providers, got []"),
        ({"providers": [3]}, "expected a provider's name, or (name, options), got 3"),
        ({"providers": [(CPU, "fast")]}, "expected a provider's name, or (name, options), got"),
        ({"threads": 0}, "expected threads, a whole number of 1 or more, got 0"),
        ({"threads": True}, "got True"),
        ({"threads": 1.0}, "got 1.0"),
    ],
)
@pytest.mark.skipif("CUDAExecutionProvider" in OTHERS, reason="it is there")
def test_what_is_not_there_is_refused(given: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        rt.load(TINY, **given)


def test_a_provider_that_does_not_start_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ort, "get_available_providers", lambda: [CPU, "CUDAExecutionProvider"])
    with (
        pytest.warns(UserWarning, match="not in available provider names"),
        pytest.raises(ConfigError, match=r"\['CUDAExecutionProvider'\] could not be started, only \['CPUExec"),
    ):
        rt.load(TINY, providers=["CUDAExecutionProvider", CPU])


def test_a_broken_file_is_to_blame_whatever_the_provider(tmp_path: Any) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"\x08\x09")
    for providers in (None, [*OTHERS, CPU]):
        with pytest.raises(rt.ModelFileError):
            rt.load(tmp_path / "broken.onnx", providers=providers)
