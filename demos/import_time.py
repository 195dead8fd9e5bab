"""How long ``import edgeseq.runtime`` takes, and whose share it is.

``python -m demos.import_time`` starts fresh processes under ``-X importtime`` and prints medians in milliseconds: our
own modules beside those of numpy and onnxruntime, and all that they import.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
from collections import defaultdict

RUNS = 7


def shares(report: str) -> dict[str, float]:
    """Milliseconds by package from the report of ``-X importtime``.

    Example:
        >>> shares("import time:  self | cum | package\\nimport time: 1500 | 2000 | edgeseq.runtime\\n"
        ...        "import time:  700 |  700 | numpy\\n")
        {'edgeseq': 1.5, 'numpy': 0.7}
    """
    own: dict[str, float] = defaultdict(float)
    for line in report.splitlines():
        if line.startswith("import time:") and line.count("|") == 2 and "package" not in line:
            self_us, _, module = line.removeprefix("import time:").split("|")
            own[module.strip().split(".")[0]] += int(self_us) / 1000
    return dict(own)


def measure() -> dict[str, float]:
    """Medians over fresh processes: edgeseq, numpy, onnxruntime, and everything else, in milliseconds."""
    command = [sys.executable, "-X", "importtime", "-c", "import edgeseq.runtime"]
    runs = [
        shares(subprocess.run(command, capture_output=True, text=True, check=True).stderr) for _ in range(RUNS + 1)
    ][1:]  # the first fills the disk cache
    named = ("edgeseq", "numpy", "onnxruntime")
    medians = {name: statistics.median(run[name] for run in runs) for name in named}
    medians["the rest"] = statistics.median(sum(t for name, t in run.items() if name not in named) for run in runs)
    return medians


if __name__ == "__main__":
    for package, median_ms in measure().items():
        print(f"{package:12} {median_ms:8.1f} ms")
