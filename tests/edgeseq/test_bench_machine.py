"""The machine and the versions that a figure depends on."""

from __future__ import annotations

import numpy as np

from edgeseq.bench.machine import PACKAGES, environment, resident_bytes


def test_the_environment_names_what_figures_depend_on() -> None:
    told = environment((*PACKAGES, "keras", "tensorflow"))
    assert set(told["versions"]) == {"python", "edgeseq", "numpy", "onnxruntime", "keras", "tensorflow"}
    assert told["machine"]["cores"] >= 1
    assert told["machine"]["cpu"]


def test_resident_memory_grows_with_what_is_touched() -> None:
    before = resident_bytes()
    block = np.ones(64 * 2**20, np.uint8)
    assert resident_bytes() - before > 32 * 2**20
    assert block[-1] == 1
