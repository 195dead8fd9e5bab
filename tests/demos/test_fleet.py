"""The fleet demo, small: every prediction arrives, and a latency is printed."""

from __future__ import annotations

import sys

import pytest

from demos import fleet
from tests.runtime.feeds.brokers import MOSQUITTO


@pytest.mark.skipif(not MOSQUITTO, reason="mosquitto is not installed (Debian: apt-get install mosquitto)")
def test_every_prediction_of_the_fleet_arrives(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["fleet", "--sensors", "3", "--seconds", "1"])
    fleet.main()
    told = capsys.readouterr().out
    assert "3 sensors at 50 Hz: 150 of 150 predictions" in told
    assert "p99" in told
