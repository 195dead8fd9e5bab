"""What steps and short chunks cost in each form of a model: `python -m demos.step_forms`.

Models with random weights, since only their shapes matter. All forms run in one process, in turns, on one thread;
figures are medians over all turns. The window is what one would run without a stream: the offline model on a receptive
field.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
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
TURNS, STEPS, WINDOWS, CHUNKS = 40, 100, 4, 10
LENGTHS = (1, 2, 3, 4, 6, 8, 16, 32)


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


def export(dilations: Sequence[int], folder: Path, *, name: str = "m") -> tuple[Path, Path]:
    """A model with random weights, as its step graph and its offline file."""
    model = tcn_tagger(N_FEATURES, N_LABELS, nb_filters=N_FILTERS, dilations=tuple(dilations))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(size=weight.shape) * 0.1)
    report = export_model(model, folder, name=name)
    assert report.stream is not None
    return report.stream, report.offline


def measure(stream: Path, offline_file: Path) -> dict[str, float]:
    """Median microseconds of a step on the fast form and on the step graph, and of the window."""
    fast, plain, offline = rt.load(stream), rt.load(stream, fast=False), rt.load_offline(offline_file)
    window = np.ones(((fast.warm_up or 0) + 1, N_FEATURES), np.float32)
    sample, a, b = window[0], fast.stream(), plain.stream()
    return medians(
        {
            "fast form": (lambda: a.step(sample), STEPS),
            "step graph": (lambda: b.step(sample), STEPS),
            "window": (lambda: offline.run(window), WINDOWS),
        }
    )


def measure_chunks(stream: Path) -> dict[int, float]:
    """By length: what a chunk costs on the step graph, over what it costs step by step on the fast form."""
    model, plain = rt.load(stream), rt.load(stream, fast=False)
    assert model._fast is not None
    model._fast.longest_by_steps = max(LENGTHS)  # what a user cannot ask for: there is one path for each length
    a, b, x = model.stream(), plain.stream(), np.ones((max(LENGTHS), N_FEATURES), np.float32)
    forms: dict[str, tuple[Callable[[], Any], int]] = {}
    for n in LENGTHS:
        forms[f"steps {n}"] = (partial(a.push, x[:n]), CHUNKS)
        forms[f"graph {n}"] = (partial(b.push, x[:n]), CHUNKS)
    us = medians(forms)
    return {n: us[f"graph {n}"] / us[f"steps {n}"] for n in LENGTHS}


def measure_dilations(streams: dict[str, Path]) -> dict[str, float]:
    """Median microseconds of a step on the fast form of each model, in turns."""
    opened = {name: rt.load(path).stream() for name, path in streams.items()}
    sample = np.ones(N_FEATURES, np.float32)
    return medians({name: (partial(stream.step, sample), STEPS) for name, stream in opened.items()})


def main() -> None:
    """Print the tables."""
    with tempfile.TemporaryDirectory() as folder:
        files = {name: export(d, Path(folder), name=f"m{i}") for i, (name, d) in enumerate(DILATIONS.items())}
        print(f"{'median µs of a step':34} {'fast form':>10} {'step graph':>11} {'window':>9}   ratios")
        for name, (stream, offline) in files.items():
            us = measure(stream, offline)
            fast, graph, window = us["fast form"], us["step graph"], us["window"]
            ratios = f"graph/fast {graph / fast:.2f}, window/fast {window / fast:.1f}"
            print(f"{name:34} {fast:10.1f} {graph:11.1f} {window:9.1f}   {ratios}")
        print("\nsteps on the fast form, in turns:")
        for name, each in measure_dilations({name: stream for name, (stream, _) in files.items()}).items():
            print(f"{name:34} {each:10.1f}")
        print(f"\n{'a chunk, step graph / by steps':34} " + " ".join(f"{n:5}" for n in LENGTHS))
        for name, (stream, _) in files.items():
            print(f"{name:34} " + " ".join(f"{ratio:5.2f}" for ratio in measure_chunks(stream).values()))
    print(environment())


if __name__ == "__main__":
    main()
