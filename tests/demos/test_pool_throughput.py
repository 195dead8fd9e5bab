"""The figures of pools have the fields that they should, and the pools that they are about work."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from demos import pool_throughput
from edgeseq import runtime as rt


def test_it_prints_a_table_and_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def tiny(_filters: int, _dilations: Sequence[int], _folder: Path, _name: str) -> rt.Model:
        return rt.load("tests/data/tiny.stream.onnx")

    monkeypatch.setattr(pool_throughput, "_model", tiny)
    pool_throughput.main(["--turns", "1", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert len(found["models"]) == 2
    for rows in found["models"].values():
        assert rows["lone stream"]["ratio"] == 1
        assert {"64, lock-step", "512, lock-step", "512, random"} < set(rows)
        assert all(row["us"] > 0 for row in rows.values())
    pool_throughput.main(["--turns", "1"])
    assert "512, lock-step, 2 shards" in capsys.readouterr().out
