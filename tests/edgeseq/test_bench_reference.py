"""The reference architectures: the same model in ours and in what peers take."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeseq.bench.case import LeftOutError, Sizes, Target
from edgeseq.bench.peers import PEERS, _BoundStep
from edgeseq.bench.reference import REFERENCES, Reference, build, reference
from edgeseq.bench.runner import Plan, measure
from edgeseq.errors import ConfigError
from edgeseq.runtime import load, load_offline

SMALL = Reference(8, (1, 2, 4), n_channels=3, n_labels=2)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(SMALL, tmp_path_factory.mktemp("reference"), "small")


@pytest.fixture(scope="module")
def target(built: Path) -> Target:
    """With the samples of a check, as the runner writes them."""
    offline = built.with_name("small.onnx")
    window = (load(built).warm_up or 0) + 1
    x = np.random.default_rng(1).normal(size=(window + 30, 3)).astype(np.float32)
    np.savez(built.with_name("check.npz"), x=x, y=load_offline(offline).run(x), window=window)
    return Target(str(built), str(offline), str(built.with_name("check.npz")))


def interpreter() -> types.ModuleType:
    """TensorFlow's own interpreter of the same files, under the name of the package that has replaced it."""
    import tensorflow as tf

    module = types.ModuleType("ai_edge_litert.interpreter")
    module.Interpreter = tf.lite.Interpreter  # type: ignore[attr-defined]
    return module


@pytest.mark.filterwarnings("ignore:.*tf.lite.Interpreter is deprecated")
def test_the_litert_step_gives_the_models_outputs(target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ai_edge_litert", types.ModuleType("ai_edge_litert"))
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", interpreter())
    prepared = PEERS["litert"].prepare(target)
    assert prepared.difference is not None
    assert prepared.difference < 1e-5
    assert prepared.call(prepared.arguments[0]).shape == (2,)


def test_the_sizes_are_written_for_peers(built: Path) -> None:
    sizes = json.loads(built.with_name("small.sizes.json").read_text())
    assert sizes == {"nb_filters": 8, "dilations": [1, 2, 4], "n_channels": 3, "n_labels": 2, "kernel_size": 3}


def test_a_reference_runs_beside_keras_and_its_window(built: Path) -> None:
    report = measure(Plan([built], ["step"], ["keras", "ort_window"], sizes=Sizes(2, 0.5)))
    assert [row.key for row in report.timed] == ["step", "keras", "ort_window"], report.left_out
    assert all(row.difference is None or row.difference < 1e-5 for row in report.timed)
    assert "keras 3" in report.timed[1].where


def test_t1_and_t2_are_those_of_the_figures() -> None:
    t1, t2 = reference("T1"), reference("T2")
    assert (t1.nb_filters, t1.dilations[-1], t2.nb_filters, t2.dilations[-1]) == (64, 32, 24, 64)
    assert {each.n_channels for each in REFERENCES.values()} == {6}
    with pytest.raises(ConfigError, match="expected one of T1, T2, D1, D512, got 'T3'"):
        reference("T3")


class Tract(types.ModuleType):
    """As much of tract as an error, and a pulse that is late, need."""

    class TractError(Exception):
        """What tract raises."""

    def __init__(self, delay: int | None) -> None:
        super().__init__("tract")
        self.delay = delay

    def onnx(self) -> Any:
        return self

    def load(self, path: str) -> Any:
        assert path.endswith("small.onnx")
        return self

    def into_model(self) -> Any:
        if self.delay is None:
            raise self.TractError("no pulse for Loop\nat a place")
        return self

    def input_fact(self, index: int) -> Any:
        return types.SimpleNamespace(dims=lambda: ["batch", "time", "3"][index:])

    def transform(self, spec: object) -> None:
        assert spec in {("batch", 1), (1, "time")}

    def property(self, name: str) -> Any:
        assert name == "pulse.delay"
        return types.SimpleNamespace(to_numpy=lambda: np.array([self.delay]))

    def into_runnable(self) -> Any:
        return types.SimpleNamespace(spawn_state=lambda: None)


@pytest.mark.parametrize(("delay", "why"), [(None, "tract cannot pulse it: no pulse for Loop"), (3, "3 samples late")])
def test_a_pulse_that_is_not_ours_is_left_out(
    delay: int | None, why: str, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    transform = types.ModuleType("tract.transform")
    transform.SetSymbols = lambda sizes: next(iter(sizes.items()))  # type: ignore[attr-defined]
    transform.Pulse = lambda n, symbol: (n, symbol)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tract", Tract(delay))
    monkeypatch.setitem(sys.modules, "tract.transform", transform)
    with pytest.raises(LeftOutError, match=why):
        PEERS["tract"].prepare(target)


def test_bound_steps_carry_their_buffers() -> None:
    import onnx
    import onnxruntime as ort

    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        g (float[1,2,1] sample, float[1,2,1] total) => (float[1,2,1] row, float[1,2,1] next) {
            row = Add(sample, total) next = Identity(row) }"""
    )
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    step = _BoundStep(ort, session, 2)
    x = np.random.default_rng(0).normal(size=(9, 2)).astype(np.float32)
    assert np.allclose(np.stack([step(sample) for sample in x]), np.cumsum(x, 0), atol=1e-5)
