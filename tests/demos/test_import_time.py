"""The import-time command reads what Python reports."""

from __future__ import annotations

from demos.import_time import shares


def test_self_times_are_summed_by_package() -> None:
    report = """import time: self [us] | cumulative | imported package
import time:       100 |        100 |   numpy._core
import time:       250 |        350 | numpy
import time:      3000 |       3350 | edgeseq.runtime.model
something else | that | is not a report
"""
    assert shares(report) == {"numpy": 0.35, "edgeseq": 3.0}
