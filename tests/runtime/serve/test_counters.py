from __future__ import annotations

import re

from edgeseq.runtime.serve.counters import METRICS, Counters


def test_every_metric_is_there_from_the_start() -> None:
    text = Counters().prometheus()
    for name, (kind, _) in METRICS.items():
        assert f"# TYPE edgeseq_serve_{name} {kind}\nedgeseq_serve_{name} 0\n" in text


def test_kinds_are_labels() -> None:
    counters = Counters()
    for kind, n in (("ws", 2), ("live", 1), ("ws", -1)):
        counters.add("connections", kind, n)
    assert counters.total("connections") == 2
    assert re.findall(r"edgeseq_serve_connections\{(.*)\} (\d+)", counters.prometheus()) == [
        ('kind="live"', "1"),
        ('kind="ws"', "1"),
    ]
