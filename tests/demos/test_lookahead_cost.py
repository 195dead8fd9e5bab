"""The cost of a bounded lookahead against a window that is run again."""

from __future__ import annotations

from pathlib import Path

import pytest

from demos import lookahead_cost


def test_all_ways_are_measured_and_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ((2, 4), (2, 1))
    lookahead_cost.write_models(tmp_path, sizes)
    us = lookahead_cost.measure(tmp_path, sizes, rounds=1)
    assert us.keys() == {"window", "2, 4", "2, 1"}
    assert min(us.values()) > 0
    monkeypatch.setattr(lookahead_cost, "write_models", lambda folder: None)
    monkeypatch.setattr(lookahead_cost, "measure", lambda folder: {"window": 500.0} | dict.fromkeys(WAYS, 20.0))
    lookahead_cost.main()
    printed = capsys.readouterr().out
    assert "a stream of lookahead 16, chunk 8: 20.0 µs, 1/25 of it" in printed
    assert "16, 8                       4.00          20.0" in printed


WAYS = [f"{nr}, {nc}" for nr, nc in lookahead_cost.SIZES]
