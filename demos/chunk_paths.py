"""What a short chunk costs on the step graph, over what it costs step by step: `python -m demos.chunk_paths`.

A user cannot ask for either: `Stream.push` takes the cheaper one by the chunk's length (docs/runtime.md). The lengths
at which they are equal are what the runtime's choice was made from. Both run in one process, in turns, on one thread.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from edgeseq import runtime as rt
from edgeseq.bench.machine import environment
from edgeseq.bench.reference import REFERENCES, build

MODELS = ("T1", "D1", "D512")
TURNS, CHUNKS = 40, 10
LENGTHS = (1, 2, 3, 4, 6, 8, 16, 32)


def medians(forms: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of a call of each form, called ``CHUNKS`` times in each of its turns."""
    seen: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(TURNS):
        for name, call in forms.items():
            for _ in range(CHUNKS):
                start = perf_counter()
                call()
                seen[name].append(perf_counter() - start)
    return {name: float(np.median(times)) for name, times in seen.items()}


def measure(stream: Path) -> dict[int, float]:
    """By length: what a chunk costs on the step graph, over what it costs step by step on the fast form."""
    model, plain = rt.load(stream), rt.load(stream, fast=False)
    assert model._fast is not None
    model._fast.longest_by_steps = max(LENGTHS)  # what a user cannot ask for: there is one path for each length
    a, b = model.stream(), plain.stream()
    x = np.ones((max(LENGTHS), *model.input.shape), np.float32)
    forms: dict[str, Callable[[], Any]] = {}
    for n in LENGTHS:
        forms[f"steps {n}"] = partial(a.push, x[:n])
        forms[f"graph {n}"] = partial(b.push, x[:n])
    took = medians(forms)
    return {n: took[f"graph {n}"] / took[f"steps {n}"] for n in LENGTHS}


def main() -> None:
    """Print the table."""
    print(f"{'step graph / by steps':24} " + " ".join(f"{n:5}" for n in LENGTHS))
    with tempfile.TemporaryDirectory() as folder:
        for name in MODELS:
            stream = build(REFERENCES[name], Path(folder), name)
            print(f"{name:24} " + " ".join(f"{ratio:5.2f}" for ratio in measure(stream).values()))
    print(environment())


if __name__ == "__main__":
    main()
