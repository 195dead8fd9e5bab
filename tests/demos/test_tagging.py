"""The tagging demo in short: tiny trainings on a few files, and the budget of what comes out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from demos import tagging
from demos.tokens import IGNORED, LABELS, TaggedSource
from edgeseq import runtime
from edgeseq.errors import ConfigError


def sources(n: int) -> list[TaggedSource]:
    token = np.zeros(3, np.int32)
    return [TaggedSource(f"{i}", token, token) for i in range(n)]


@pytest.mark.parametrize(("n", "held_out"), [(2, 1), (10, 2), (11, 2)])
def test_no_file_is_on_both_sides_of_the_split(n: int, held_out: int) -> None:
    training, held = tagging.split(sources(n))
    assert len(held) == held_out
    assert sorted([s.name for s in training] + [s.name for s in held]) == sorted(s.name for s in sources(n))


def test_the_way_in_short(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held_out = tagging.train_and_export(tmp_path, print, n_files=6, steps=12)
    assert len(held_out) == 1
    curve = tagging.waiting(tmp_path, held_out, print, lookaheads=(0, 1), chunks=(1,), max_samples=2000)
    printed = capsys.readouterr().out
    assert "5 files of the standard library to train on, 1 held out" in printed
    assert str(curve) in printed
    assert [row.name for row in curve.rows][1:3] == ["lookahead 0, chunk 1", "lookahead 1, chunk 1"]
    assert curve.n_counted < curve.n_samples <= 2000
    assert json.loads((tmp_path / "budget.json").read_text(encoding="utf-8"))["rows"][0]["kind"] == "causal"
    assert (tmp_path / "budget.png").read_bytes()[:4] == b"\x89PNG"
    # The accuracy of the demo's own counting is that of the budget's offline row, on the whole of the file.
    source = held_out[0]
    names = source.labels != IGNORED
    offline = runtime.load_offline(tmp_path / "bilstm.onnx")
    right = (offline.run(source.tokens).argmax(-1) == source.labels)[names]
    assert tagging.accuracy(tmp_path / "bilstm.onnx", held_out) == right.mean()
    assert offline.label_names == LABELS


def test_a_mistake_ends_the_demo_with_its_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: object) -> None:
        raise ConfigError("no such thing")

    monkeypatch.setattr(tagging, "train_and_export", fail)
    with pytest.raises(SystemExit, match="tagging: no such thing"):
        tagging.main(["--out", str(tmp_path)])


@pytest.mark.extended
def test_one_later_token_buys_nearly_everything(tmp_path: Path) -> None:
    held_out = tagging.train_and_export(tmp_path, print, n_files=150, steps=250)
    curve = tagging.waiting(tmp_path, held_out, print, lookaheads=(0, 1, 2, 4, 8, 16), chunks=(1,))
    ahead = [row for row in curve.rows if row.kind == "lookahead"]
    accuracy, agreement = (np.array([getattr(row, name) for row in ahead]) for name in ("accuracy", "agreement"))
    assert accuracy[1] > accuracy[0] + 0.1
    assert accuracy[1] > accuracy[-1] - 0.03
    assert (np.diff(agreement) > -0.005).all()
