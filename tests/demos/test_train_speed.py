from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from demos import train_speed
from edgeseq.bench.machine import processor
from edgeseq.errors import EdgeseqError


def result(device: str, step_ms: list[float]) -> dict[str, Any]:
    return {
        "device": device,
        "backend": "jax",
        "versions": {"keras": "3"},
        "samples_per_step": 100,
        "step_ms": step_ms,
    }


def test_measures_the_cpu_in_a_process_that_sees_no_gpu() -> None:
    measured = train_speed.measure_apart("tcn", 2, train_speed.HIDE_GPU, gpu_only=False)
    assert measured["device"] == "cpu"
    assert len(measured["step_ms"]) == 2
    assert all(time > 0 for time in measured["step_ms"])


def test_table_gives_the_ratio_of_the_medians() -> None:
    text = train_speed.table("tcn", [result("cpu", [8.0, 9.0, 100.0]), result("gpu", [2.0, 3.0, 4.0])])
    assert "gpu is 3.0 times as fast as cpu" in text
    assert processor() in text


@pytest.mark.parametrize("gpu", [True, False])
def test_says_whether_there_is_a_gpu(
    gpu: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure_apart(architecture: str, steps: int, hidden: dict[str, str], *, gpu_only: bool) -> dict[str, Any]:
        assert bool(hidden) != gpu_only
        return result("gpu" if gpu and gpu_only else "cpu", [4.0] * steps)

    monkeypatch.setattr(train_speed, "measure_apart", measure_apart)
    train_speed.main(["--steps", "3"])
    out = capsys.readouterr().out
    assert ("no GPU found: jax sees the cpu only" in out) != gpu
    assert ("times as fast" in out) == gpu


def test_a_failed_process_is_reported_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any, **__: Any) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], 1, stdout="", stderr="no such backend")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(EdgeseqError, match="ended with 1:\nno such backend"):
        train_speed.measure_apart("tcn", 1, {}, gpu_only=False)


def test_the_last_line_of_a_measuring_process_is_json(monkeypatch: pytest.MonkeyPatch) -> None:
    said = "a progress bar\n" + json.dumps({"device": "cpu"}) + "\n"

    def run(command: list[str], *, env: dict[str, str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command[0] == sys.executable
        assert env["CUDA_VISIBLE_DEVICES"] == ""
        return subprocess.CompletedProcess([], 0, stdout=said, stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    assert train_speed.measure_apart("tcn", 1, train_speed.HIDE_GPU, gpu_only=False) == {"device": "cpu"}


def test_refuses_no_steps(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        train_speed.main(["--steps", "0"])
    assert "expected at least 1, got 0" in capsys.readouterr().err
