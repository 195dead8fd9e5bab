from __future__ import annotations

import json
from pathlib import Path

import pytest

from demos import demo
from edgeseq.errors import VerificationError

# Keras hands h5py data sets to TensorFlow when it loads a model; numpy 2 finds h5py's __array__ too old.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")


def test_the_whole_way_in_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("seglearn")
    demo.main(["--out", str(tmp_path / "demo"), "--quick"])
    out = tmp_path / "demo"
    assert {file.name for file in out.iterdir()} == {
        "models", "report.html", "latency.png", "budget.png", "metrics.json"
    }  # fmt: skip
    assert {file.name for file in (out / "models").iterdir()} == {
        "tcn.keras", "tcn.json", "tcn.onnx", "tcn.stream.onnx", "bilstm.keras", "bilstm.json", "bilstm.onnx",
        "bilstm_5_5.stream.onnx",
    }  # fmt: skip
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["data"]["groups"] == [8, 9, 10]
    assert metrics["exactness"]["max_difference_step"] <= metrics["exactness"]["tolerance"]
    assert metrics["interleaved"]["max_difference_from_stream"]["keras"] <= metrics["exactness"]["tolerance"]
    assert metrics["models"]["tcn"]["file_bytes"].keys() == {"tcn.onnx", "tcn.stream.onnx"}
    curve = metrics["budget"]
    assert [(row["kind"], row["lookahead"]) for row in curve["rows"]] == [
        ("causal", 0), ("lookahead", 0), ("lookahead", 5), ("offline", None)
    ]  # fmt: skip
    assert curve["max_delay_samples"] == 50
    assert "<h2>What waiting buys</h2>" in (out / "report.html").read_text(encoding="utf-8")
    said = capsys.readouterr().out
    for words in ("training the bilstm", "exported and verified tcn.onnx and tcn.stream.onnx", "Streaming TCN"):
        assert words in said


def test_a_stream_that_is_not_exact_ends_the_demo(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object, **__: object) -> None:
        raise VerificationError("held-out session 0: off")

    monkeypatch.setattr(demo, "_run", fail)
    with pytest.raises(SystemExit, match="demo: held-out session 0: off"):
        demo.main(["--out", str(tmp_path)])
