"""The command line, in this process: what it prints, writes, and exits with."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from edgeseq import tcn_tagger
from edgeseq.__main__ import main
from edgeseq.model_file import Description
from edgeseq.runtime import load, load_offline
from tests.export.stream_files import offline_file, rewrite, same_with_a_stride


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


def test_export_reads_the_names_beside_the_model_and_inspect_prints_them(
    saved: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not run("export", saved, "-o", saved.parent / "out")
    assert "gesture.stream.onnx" in capsys.readouterr().out.replace("\n", "")
    assert not run("inspect", saved.parent / "out" / "gesture.stream.onnx")
    printed = capsys.readouterr().out
    assert "rest, move" in printed
    assert "50 Hz" in printed
    assert "12 past, 0 future samples" in printed


def test_export_knows_our_layers_in_a_fresh_process(saved: Path) -> None:
    command = [sys.executable, "-m", "edgeseq", "export", str(saved), "-o", str(saved.parent)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert saved.with_suffix(".stream.onnx").is_file()


def test_the_report_says_what_was_done(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not run("export", saved, "-o", saved.parent / "out")
    printed = " ".join(capsys.readouterr().out.split())
    assert re.search(r"nodes \d+ as converted, \d+ in the file", printed)
    assert re.search(r"differs from Keras by output \d\.\de-\d\d of the output's scale", printed)
    assert re.search(r"lowered 5 Conv1D native Conv", printed)
    assert re.search(r"kB, opset 18", printed)


def test_export_of_h5_files_of_one_length_and_of_keras_tcn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tcn import TCN as KerasTCN  # noqa: N811

    for name, length, layer in (
        ("lstm.h5", 30, keras.layers.Bidirectional(keras.layers.LSTM(3, return_sequences=True))),
        ("tcn.keras", None, KerasTCN(3, 2, dilations=(1, 2), return_sequences=True, use_batch_norm=True)),
        ("tcn.h5", None, KerasTCN(3, 2, dilations=(1, 2), return_sequences=True)),
    ):
        inputs = keras.Input((length, 3))
        model = keras.Model(inputs, keras.layers.TimeDistributed(keras.layers.Dense(2))(layer(inputs)))
        model.save(tmp_path / name)
        assert not run("export", tmp_path / name, "-o", tmp_path, "--name", name.replace(".", "_"))
        x = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
        offline = load_offline(tmp_path / f"{name.replace('.', '_')}.onnx")
        np.testing.assert_allclose(offline.run(x), model(x[None])[0], atol=1e-5)
        assert offline.description.input.length is None
    capsys.readouterr()
    assert not run("export", tmp_path / "lstm.h5", "-o", tmp_path, "--name", "kept", "--no-dynamic-time")
    assert "dynamic_time=False" in capsys.readouterr().out
    assert load_offline(tmp_path / "kept.onnx").description.input.length == 30


def test_inspect_as_json_is_the_description(capsys: pytest.CaptureFixture[str]) -> None:
    assert not run("inspect", "tests/data/tiny.stream.onnx", "--json")
    d = Description.from_json(capsys.readouterr().out)
    assert d == load("tests/data/tiny.stream.onnx").description


def test_inspect_of_a_stream_names_what_it_equals_and_is_made_with(capsys: pytest.CaptureFixture[str]) -> None:
    assert not run("inspect", "tests/data/tiny.stream.onnx")
    printed = " ".join(capsys.readouterr().out.split())
    for part in ("input input float32 (time, 3)", "features x, y, z", "state 4 arrays, 92 bytes", "equals tiny.onnx ("):
        assert part in printed
    assert "tf2onnx 1.17" in printed
    assert "fast form yes" in printed
    assert not run("inspect", "tests/data/format2.stream.onnx")
    assert "fast form none: the file is older than it" in " ".join(capsys.readouterr().out.split())


def test_a_bounded_lookahead_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, offline = tmp_path / "both.stream.onnx", "tests/data/tiny_bilstm.onnx"
    assert "give streamify(..., lookahead=N_r, chunk=N_c)" in str(run("streamify", offline, "-o", out))
    assert not run("streamify", offline, "-o", out, "--lookahead", "5", "--chunk", "3")
    printed = " ".join(capsys.readouterr().out.split())
    assert "lookahead 7 samples" in printed
    assert "clause approximation the offline model's rows on sequences of 1, 2, 4, 5 samples" in printed
    assert not run("inspect", out)
    printed = " ".join(capsys.readouterr().out.split())
    for part in ("approximates tiny_bilstm.onnx (", "law lookahead", "5 steps in each layer that runs backwards (1)"):
        assert part in printed
    assert not run("verify", out, offline)
    explained = load(out).explain()
    assert explained.endswith(
        "in blocks of 3 steps, seeing 5 steps behind them; outputs come up to 7 samples after their own"
    )


def test_inspect_of_an_offline_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert not run("inspect", "tests/data/tiny.onnx")
    assert "offline" in capsys.readouterr().out


def test_our_errors_end_with_one_line_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "edgeseq", "inspect", str(tmp_path / "gone.onnx")]
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


def test_a_damaged_h5_file(tmp_path: Path) -> None:
    (tmp_path / "damaged.h5").write_bytes(b"no HDF5")
    said = str(run("export", tmp_path / "damaged.h5"))
    assert "Keras cannot load" in said
    assert "check that the file is whole" in said


def test_a_module_to_import_that_is_not_there(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    said = str(run("export", saved, "-o", saved.parent, "--import", "nosuch"))
    assert said.startswith("edgeseq: --import nosuch: no such module in")


def test_a_module_to_import_that_needs_another(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.chdir(saved.parent)
    (saved.parent / "needy.py").write_text("import nosuch_either")
    assert "needs 'nosuch_either'" in str(run("export", saved, "-o", saved.parent, "--import", "needy"))


LAYERS = """
import keras

@keras.saving.register_keras_serializable()
class Thrice(keras.layers.Layer):
    def call(self, x):
        return x * 3.0
"""


def test_layers_of_a_module_in_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "mylayers.py").write_text(LAYERS)
    make = "import keras, mylayers; x = keras.Input((None, 3)); keras.Model(x, mylayers.Thrice()(x)).save('mine.keras')"
    subprocess.run([sys.executable, "-c", make], cwd=tmp_path, check=True, capture_output=True)
    start = "from edgeseq.__main__ import main; main(['export', 'mine.keras', '--import', 'mylayers'])"
    # As the installed command runs: without the current folder on the path.
    command = [sys.executable, "-P", "-c", start]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "mine.onnx").is_file()


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
@pytest.mark.filterwarnings("ignore:You are saving your model as an HDF5 file")
def test_a_lambda_of_python_is_sent_to_python(tmp_path: Path, suffix: str) -> None:
    inputs = keras.Input((None, 3))
    path = tmp_path / f"model{suffix}"
    keras.Model(inputs, keras.layers.Lambda(lambda x: x * 2.0)(inputs)).save(path)
    said = str(run("export", path))
    assert "export from Python" in said
    assert "safe_mode=False" in said
    assert "--import" not in said


def test_train_writes_a_model_and_prints_its_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
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


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    stream, offline = tmp_path / "tiny.stream.onnx", tmp_path / "tiny.onnx"
    for path in (stream, offline):
        path.write_bytes((Path("tests/data") / path.name).read_bytes())
    return stream, offline


def test_verify_writes_the_certificate_that_inspect_shows(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    stream, offline = pair

    def certificate() -> str:
        assert not run("inspect", stream)
        return " ".join(capsys.readouterr().out.split("certificate", 1)[1].split("made with", 1)[0].split())

    before = stream.read_bytes()
    assert certificate() == "no certificate; edgeseq verify writes one"
    assert not run("verify", stream, offline, "--no-write")
    printed = " ".join(capsys.readouterr().out.split())
    assert "tiny.stream.onnx keeps its contract with tiny.onnx" in printed
    assert "clause receptive field" in printed
    assert "not written" in printed
    assert stream.read_bytes() == before
    assert not run("verify", stream, offline)
    capsys.readouterr()
    assert re.match(r"\d+ clauses held against tiny.onnx \(edgeseq 0.1.0, onnxruntime", certificate())
    rewrite(stream, description=lambda raw: raw.update(rate_hz=51.0), keep_certificate=True)
    assert certificate().startswith("does not belong to this file: its description is another one than was verified")


def test_verify_of_another_model_ends_with_the_clause(pair: tuple[Path, Path]) -> None:
    stream, _ = pair
    rewrite(stream, description=lambda raw: raw["state"][0].update(initial=3.0))
    said = str(run("verify", stream, "tests/data/tiny.onnx"))
    assert said.startswith("edgeseq: tiny.stream.onnx, clause 'steps': output 'output', ")


def test_streamify_of_our_file_is_what_the_export_wrote(
    pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    stream, offline = pair
    assert not run("streamify", offline, "-o", offline.parent / "again.stream.onnx")
    assert "clause batch" in capsys.readouterr().out
    assert load(offline.parent / "again.stream.onnx").description == load(stream).description


def test_streamify_of_a_foreign_file_with_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "gait.stream.onnx"
    foreign = offline_file(tmp_path, "same")
    labels, features = ["--labels", "rest", "move"], ["--features", "a", "b", "c", "d"]
    assert not run("streamify", foreign, "-o", out, *features, *labels, "--rate-hz", 20)
    assert "3 past, 3 future samples" in capsys.readouterr().out
    d = load(out).description
    assert (d.name, d.rate_hz, d.output.names) == ("gait", 20.0, ("rest", "move"))
    assert "no model file at" in str(run("streamify", tmp_path / "gone.onnx", "-o", out))
    assert "expected a file NAME.stream.onnx" in str(run("streamify", foreign, "-o", tmp_path / "gait"))


def test_streamify_and_verify_with_a_window(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offline, out = offline_file(tmp_path, "mean"), tmp_path / "gait.stream.onnx"
    assert not run("streamify", offline, "-o", out, "--pooling-window", 5)
    assert "window" in capsys.readouterr().out
    assert load(out).description.outputs[0].timing.law == "window"  # type: ignore[union-attr]
    assert not run("verify", out, offline)
    assert "clause 'steps'" in str(run("verify", out, offline, "--pooling-window", 50))
    assert not run("inspect", out)
    assert "the last 5 rows" in capsys.readouterr().out


def test_streamify_and_verify_by_a_promise_of_the_length(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offline, out = same_with_a_stride(tmp_path), tmp_path / "gait.stream.onnx"
    assert "its padding depends on the length" in str(run("streamify", offline, "-o", out))
    assert not run("streamify", offline, "-o", out, "--length-modulo", 2, 1)
    assert "1 samples modulo 2, by your promise" in capsys.readouterr().out
    assert not run("verify", out, offline)
    assert run("verify", out, offline, "--length-modulo", 2, 0)
    assert not run("inspect", out)
    assert "1 samples modulo 2, by your promise" in capsys.readouterr().out
