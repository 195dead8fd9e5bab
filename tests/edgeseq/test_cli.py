"""The command line, in this process: what it prints, writes, and exits with."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgeseq import tcn_tagger
from edgeseq.__main__ import main


def run(*arguments: object) -> int | str | None:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return exit_.value.code


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "gesture.keras"
    tcn_tagger(3, 2, nb_filters=4, dilations=(1, 2)).save(path)
    names = {"feature_names": ["x", "y", "z"], "label_names": ["rest", "move"], "rate_hz": 50.0, "seed": 1}
    path.with_suffix(".json").write_text(json.dumps(names))
    return path


def test_export_reads_the_names_beside_the_model_and_info_prints_them(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not run("export", saved, "-o", saved.parent / "out")
    assert "gesture.stream.onnx" in capsys.readouterr().out.replace("\n", "")
    assert not run("info", saved.parent / "out" / "gesture.stream.onnx")
    printed = capsys.readouterr().out
    assert "rest, move" in printed
    assert "50 Hz" in printed
    assert "12 past, 0 future steps" in printed


def test_export_knows_our_layers_in_a_fresh_process(saved: Path) -> None:
    command = [sys.executable, "-m", "edgeseq", "export", str(saved), "-o", str(saved.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert saved.with_suffix(".stream.onnx").is_file()


def test_info_of_an_offline_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert not run("info", "tests/data/tiny.onnx")
    assert "offline" in capsys.readouterr().out


def test_our_errors_end_with_one_line_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgeseq", "info", str(tmp_path / "gone.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("edgeseq: no model file at")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("written", ["{", "{}", "[]"])
def test_a_broken_json_beside_the_model(saved: Path, written: str) -> None:
    saved.with_suffix(".json").write_text(written)
    assert "expected JSON with feature_names" in str(run("export", saved, "-o", saved.parent))


def test_a_missing_model_and_a_file_that_is_none(tmp_path: Path) -> None:
    assert "no Keras model at" in str(run("export", tmp_path / "gone.keras"))
    (tmp_path / "text.keras").write_text("hello")
    assert "Keras cannot load" in str(run("export", tmp_path / "text.keras"))


def test_train_writes_a_model_and_prints_its_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    from edgeseq.sessions import Sessions

    rng = np.random.default_rng(0)
    signals = tuple(rng.normal(size=(600, 2)).astype(np.float32) for _ in range(3))
    labels: Any = tuple((x[:, 0] > 0).astype(np.int32) for x in signals)
    Sessions(signals, labels, (1, 2, 3), ("a", "b"), ("low", "high"), rate_hz=10.0).save(tmp_path / "data.npz")
    out = tmp_path / "new" / "model.keras"
    data = tmp_path / "data.npz"
    assert not run("train", "tcn", "-o", out, "--data", data, "--held-out", 3, "--epochs", 1)
    assert out.is_file()
    assert json.loads(out.with_suffix(".json").read_text())["held_out_groups"] == [3]
    assert "frame accuracy" in capsys.readouterr().out
