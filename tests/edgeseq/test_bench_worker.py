"""The worker's protocol, in this process and over pipes."""

from __future__ import annotations

import io
import json
import shutil
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeseq.bench.case import Sizes, Target
from edgeseq.bench.cases import OURS
from edgeseq.bench.peers import PEERS
from edgeseq.bench.process import Worker
from edgeseq.bench.worker import serve
from edgeseq.errors import ConfigError
from edgeseq.runtime import load, load_offline
from tests.export.stream_files import stream_file

TINY = Target("tests/data/tiny.stream.onnx", "tests/data/tiny.onnx")


def answers(*requests: dict[str, Any]) -> list[dict[str, Any]]:
    out = io.StringIO()
    serve([json.dumps(request) for request in requests], out)
    return [json.loads(line) for line in out.getvalue().splitlines()]


def prepare(key: str, target: Target = TINY) -> dict[str, Any]:
    return {"do": "prepare", "case": key, "target": asdict(target)}


def check(folder: Path, *, wrong: bool = False) -> Target:
    """The tiny model with the samples of a check."""
    window = (load(TINY.stream).warm_up or 0) + 1
    x = np.random.default_rng(0).normal(size=(window + 20, 3)).astype(np.float32)
    assert TINY.offline is not None
    y = load_offline(TINY.offline).run(x)
    np.savez(folder / "check.npz", x=x, y=y + 0.01 * wrong, window=window)
    return Target(TINY.stream, TINY.offline, str(folder / "check.npz"))


@pytest.mark.parametrize("key", OURS)
def test_every_row_of_ours_runs(key: str) -> None:
    ready, ran, again = answers(prepare(key), {"do": "run", "calls": 3}, {"do": "run", "calls": 1})
    assert ready["samples_per_call"] == {"chunk_8": 8, "chunk_32": 32, "chunk_512": 512, "sequence": 2000}.get(
        key, int(key.split("_")[1]) if key.startswith("pool") else 1
    )
    assert len(ran["ns"]) == 3
    assert len(again["ns"]) == 1
    assert min(*ran["ns"], *again["ns"]) > 0
    assert ran["cpu_ns"] >= 0


@pytest.mark.parametrize("kind", ["same", "strided", "maximum", "lstm", "channels first"])
def test_steps_and_chunks_of_other_models_run(kind: str, tmp_path: Path) -> None:
    stream, _ = stream_file(tmp_path, kind)
    target = Target(str(stream))
    granule = load(stream).description.granule
    expected = {"step": granule, "bare": granule, "graph": granule, "chunk_8": 8, "pool_64_apart": 64 * granule}
    for key, samples_per_call in expected.items():
        ready, ran = answers(prepare(key, target), {"do": "run", "calls": 5})
        assert ready["samples_per_call"] == samples_per_call
        assert len(ran["ns"]) == 5, ran


def test_the_bare_call_is_the_one_that_steps_make() -> None:
    prepared = OURS["bare"].prepare(TINY)
    session = prepared.call.args[0]  # type: ignore[attr-defined]  # a partial
    assert {port.name for port in session.get_inputs()} > {"input"}  # the states, too
    assert len(prepared.arguments) == 1


def test_what_does_not_apply_is_left_out_with_the_reason(tmp_path: Path) -> None:
    stream, _ = stream_file(tmp_path, "maximum")
    for key, target, why in (
        ("window", Target(str(stream)), "no offline file"),
        ("keras", TINY, "it needs tiny.keras beside the model: save the Keras model there"),
        ("litert", TINY, "it needs tiny.tflite"),
        ("pytorch_tcn", TINY, "it needs tiny.sizes.json"),
        ("ort_window", TINY, "a causal model of one input and one output"),
    ):
        (answer,) = answers(prepare(key, target))
        assert why in answer["left_out"]


def test_a_recurrent_model_has_no_window(tmp_path: Path) -> None:
    stream, offline = stream_file(tmp_path, "lstm")
    (answer,) = answers(prepare("window", Target(str(stream), str(offline))))
    assert "has no bound" in answer["left_out"]


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("tract", "ai_edge_litert", "torch"):
        monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(sys.modules, "ai_edge_litert.interpreter", None)
    shutil.copy(TINY.stream, tmp_path)
    (tmp_path / "tiny.tflite").touch()
    (tmp_path / "tiny.sizes.json").write_text("{}")
    target = replace(check(tmp_path), stream=str(tmp_path / "tiny.stream.onnx"))
    for key, package in (("tract", "tract"), ("litert", "ai_edge_litert"), ("pytorch_tcn", "torch")):
        (answer,) = answers(prepare(key, target))
        assert answer["absent"].startswith(package)


def test_a_peer_is_checked_before_it_is_timed(tmp_path: Path) -> None:
    ready, ran = answers(prepare("ort_window", check(tmp_path)), {"do": "run", "calls": 2})
    assert ready["difference"] < 1e-5
    assert ready["where"].startswith("onnxruntime ")
    assert len(ran["ns"]) == 2
    wrong, refused = answers(prepare("ort_window", check(tmp_path, wrong=True)), {"do": "run", "calls": 2})
    assert "its outputs differ by" in wrong["left_out"]
    assert refused == {"failed": "LeftOutError: nothing was prepared"}


def test_mistakes_are_answers() -> None:
    nowhere = Target("nowhere.stream.onnx")
    (answer,) = answers(prepare("step", nowhere))
    assert answer["failed"].startswith("ModelNotFoundError: no model file at 'nowhere.stream.onnx'")
    sizes = asdict(Sizes(cold_runs=1))
    (answer,) = answers({"do": "measure", "figure": "cold_start", "target": asdict(nowhere), "sizes": sizes})
    assert "a fresh process failed: edgeseq.errors.ModelNotFoundError: no model file" in answer["failed"]


def test_a_process_answers_ends_and_tells_why_it_died() -> None:
    with Worker(sys.executable) as worker:
        assert worker.ask(**prepare("graph"))["samples_per_call"] == 1
        assert len(worker.ask(do="run", calls=4)["ns"]) == 4
        died = worker.ask(do="no such thing")
        assert "ended with status 1: KeyError: 'no such thing'" in died["failed"]
        assert "ended with status 1" in worker.ask(do="run", calls=1)["failed"]


def test_a_step_of_a_strided_model_is_all_that_wait_for_one_call(tmp_path: Path) -> None:
    stream, _ = stream_file(tmp_path, "strided")
    prepared = OURS["step"].prepare(Target(str(stream)))
    granule = load(stream).description.granule
    assert granule > 1
    assert {len(group) for group in prepared.arguments} == {granule}
    assert prepared.call(prepared.arguments[0]) is None


def test_what_is_no_interpreter_cannot_be_run() -> None:
    with pytest.raises(ConfigError, match=r"cannot run '.*tiny.onnx': .*; give the path of an interpreter"):
        Worker("tests/data/tiny.onnx")


def test_keys_are_those_of_the_cases() -> None:
    assert not OURS.keys() & PEERS.keys()
    assert all(key == case.key for key, case in (OURS | PEERS).items())
