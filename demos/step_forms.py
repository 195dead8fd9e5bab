"""What one step costs in each form of a model: `python -m demos.step_forms`.

Models with random weights, since only their shapes matter. All forms run in one process, in turns, on one thread;
figures are medians over all turns. The window is what one would run without a stream: the offline model on a receptive
field.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from demos.latency import environment
from edgeseq import runtime as rt
from edgeseq import tcn_tagger
from edgeseq.export import export_model

N_FEATURES, N_LABELS, N_FILTERS = 6, 5, 64
DILATIONS: dict[str, Sequence[int]] = {
    "T1: 64 filters, dilations 1 to 32": (1, 2, 4, 8, 16, 32),
    "six blocks of dilation 1": (1,) * 6,
    "six blocks of dilation 512": (512,) * 6,
}
TURNS, STEPS, WINDOWS = 40, 100, 4


def medians(forms: dict[str, tuple[Callable[[], Any], int]]) -> dict[str, float]:
    """Median microseconds of a call of each form, called so many times in each of its turns."""
    seen: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(TURNS):
        for name, (call, times) in forms.items():
            for _ in range(times):
                start = perf_counter()
                call()
                seen[name].append(perf_counter() - start)
    return {name: float(np.median(times)) * 1e6 for name, times in seen.items()}


def measure(dilations: Sequence[int], folder: Path, *, name: str = "m") -> dict[str, float]:
    """Median microseconds of a step on the fast form and on the step graph, and of the window."""
    model = tcn_tagger(N_FEATURES, N_LABELS, nb_filters=N_FILTERS, dilations=tuple(dilations))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape) * 0.1)
    report = export_model(model, folder, name=name)
    assert report.stream is not None
    fast, plain, offline = rt.load(report.stream), rt.load(report.stream, fast=False), rt.load_offline(report.offline)
    window = rng.normal(size=((fast.warm_up or 0) + 1, N_FEATURES)).astype(np.float32)
    sample, a, b = window[0], fast.stream(), plain.stream()
    return medians(
        {
            "fast form": (lambda: a.step(sample), STEPS),
            "step graph": (lambda: b.step(sample), STEPS),
            "window": (lambda: offline.run(window), WINDOWS),
        }
    )


def main() -> None:
    """Print the table."""
    print(f"{'median µs of a step':34} {'fast form':>10} {'step graph':>11} {'window':>9}   ratios")
    with tempfile.TemporaryDirectory() as folder:
        for i, (name, dilations) in enumerate(DILATIONS.items()):
            us = measure(dilations, Path(folder), name=f"m{i}")
            fast, graph, window = us["fast form"], us["step graph"], us["window"]
            ratios = f"graph/fast {graph / fast:.2f}, window/fast {window / fast:.1f}"
            print(f"{name:34} {fast:10.1f} {graph:11.1f} {window:9.1f}   {ratios}")
    print(environment())


if __name__ == "__main__":
    main()
