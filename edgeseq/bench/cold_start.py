"""A fresh process up to its first prediction, stage by stage: ``edgeseq.bench.cold_start MODEL STARTED_NS``.

Prints one JSON object of milliseconds. What is ours is told apart from what NumPy, ONNX Runtime and the interpreter
take. Nothing is imported above ``main`` but the standard library's lightest.
"""

from __future__ import annotations

import sys
import time
from typing import Any


def main() -> None:
    """Measure, and print."""
    model_file, started_ns = sys.argv[1], int(sys.argv[2])
    stages: dict[str, float] = {}
    at = started_ns

    def done(stage: str) -> None:
        nonlocal at
        now = time.monotonic_ns()  # of one clock for all processes
        stages[stage] = (now - at) / 1e6
        at = now

    done("Python starts")
    import numpy  # noqa: F401

    done("import numpy")
    import onnxruntime as ort

    sessions = _time_sessions(ort)
    done("import onnxruntime")
    from edgeseq import runtime as rt

    done("import edgeseq.runtime")
    model = rt.load(model_file)
    done("load")
    from edgeseq.bench.inputs import samples

    sample = samples(model.description.inputs, 1)[0]
    at = time.monotonic_ns()
    model.stream().step(sample)
    done("open a stream, first step")
    stages["total"] = sum(stages.values())
    stages["of it, ONNX Runtime's sessions"] = sessions[0] / 1e6
    ours = stages["import edgeseq.runtime"] + stages["load"] - stages["of it, ONNX Runtime's sessions"]
    stages["of it, ours"] = ours + stages["open a stream, first step"]
    _tell(stages)


def _time_sessions(ort: Any) -> list[int]:
    """Nanoseconds that ONNX Runtime spends on opening sessions from now on, in a list of one."""
    spent, real = [0], ort.InferenceSession.__init__

    def timed(self: Any, *arguments: Any, **options: Any) -> None:
        start = time.monotonic_ns()
        real(self, *arguments, **options)
        spent[0] += time.monotonic_ns() - start

    ort.InferenceSession.__init__ = timed
    return spent


def _tell(stages: dict[str, float]) -> None:
    import json

    from edgeseq.bench.machine import resident_bytes

    print(json.dumps(stages | {"rss_bytes": resident_bytes()}))
