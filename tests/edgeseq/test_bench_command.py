"""``edgeseq bench``: what it prints, writes and exits with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgeseq.__main__ import main

TINY = "tests/data/tiny.stream.onnx"


def run(*arguments: object) -> int | str | None:
    with pytest.raises(SystemExit) as exit_:
        main([str(argument) for argument in arguments])
    return exit_.value.code


def test_prints_a_table_and_says_what_is_absent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert not run("bench", TINY, "--quick", "--only", "step,bare", "--against", "litert,ort_window")
    printed = " ".join(capsys.readouterr().out.split())
    assert "Stream.step beside its bare ONNX Runtime call" in printed
    assert "the sliding window in ONNX Runtime" in printed
    assert (
        "LiteRT, state in internal variables: it needs tiny.tflite beside the model: it cannot take a model of yours"
        in printed
    )
    assert "tiny: single steps" in printed


def test_writes_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "bench.json"
    assert not run("bench", TINY, "--quick", "--only", "step", "idle", "--json", file)
    report = json.loads(file.read_text(encoding="utf-8"))
    assert [row["key"] for row in report["timed"]] == ["step"]
    assert [row["key"] for row in report["figures"]] == ["idle"]
    assert "wrote" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["nowhere.stream.onnx"], "edgeseq: no model file at 'nowhere.stream.onnx'"),
        (["tests/data/tiny.onnx"], "expected a model of kind 'stream', got 'offline'"),
        ([], "expected a model file or a reference, got neither"),
        ([TINY, "--only", "speed"], "only: expected some of step"),
        ([TINY, "--against", "tf"], "against: expected some of all, keras"),
        ([TINY, "--reference", "T9"], "--reference: expected one of T1, T2"),
        (["--reference", "T1", "--only", "speed"], "only: expected some of step"),
        ([TINY, "--json", "tests"], "--json: expected a file in a folder that exists, got 'tests'"),
        (
            [TINY, "--json", "no/such/folder/b.json"],
            "--json: expected a file in a folder that exists, got 'no/such/folder/b.json'",
        ),
    ],
)
def test_mistakes_are_told_before_anything_is_measured(arguments: list[str], why: str) -> None:
    assert why in str(run("bench", *arguments))
