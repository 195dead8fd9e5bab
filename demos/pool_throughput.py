"""What a pool of streams gives against one lone stream: `python -m demos.pool_throughput [--json]`.

Models with random weights, since only their shapes matter. Pools and the lone stream run in one process, in turns;
figures are medians over all turns, and ratios of those, since clocks drift. ``lock-step`` means that all streams are at
one position, ``random`` that each is at its own; ``sparse``, that a call names one stream in a hundred.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from edgeseq import runtime as rt
from edgeseq import tcn_tagger
from edgeseq.bench.machine import environment
from edgeseq.export import export_model

N_FEATURES, N_LABELS = 6, 5
MODELS: dict[str, tuple[int, Sequence[int]]] = {
    "T1: 64 filters, dilations 1 to 32": (64, (1, 2, 4, 8, 16, 32)),
    "T2: 24 filters, dilations 1 to 64": (24, (1, 2, 4, 8, 16, 32, 64)),
}
TURNS, SAMPLES_A_TURN = 30, 2048
SPARSE = 100


def _model(filters: int, dilations: Sequence[int], folder: Path, name: str) -> rt.Model:
    keras_model = tcn_tagger(N_FEATURES, N_LABELS, nb_filters=filters, dilations=tuple(dilations))
    rng = np.random.default_rng(0)
    for weight in keras_model.weights:
        weight.assign(rng.normal(size=weight.shape) * 0.1)
    report = export_model(keras_model, folder, name=name)
    assert report.stream is not None
    return rt.load(report.stream)


def _samples(model: rt.Model, n: int) -> Any:
    return np.random.default_rng(1).normal(size=(n, *model.input.shape)).astype(np.float32)


def _lone(model: rt.Model) -> tuple[Callable[[], Any], int]:
    stream, sample = model.stream(), _samples(model, 1)[0]
    return lambda: stream.step(sample), 1


def _pool(model: rt.Model, n: int, *, shards: int = 1, random: bool = False) -> tuple[Callable[[], Any], int]:
    pool, ids, x = model.pool(n, shards=shards), [f"sensor-{i}" for i in range(n)], _samples(model, n)
    rng = np.random.default_rng(2)
    for stream_id in ids:
        pool.open(stream_id)
        if random:
            pool.push({stream_id: _samples(model, int(rng.integers(1, 200)))})
    return lambda: pool.step(ids, x), n


def _sparse(model: rt.Model, n: int) -> tuple[Callable[[], Any], int]:
    pool, ids, x = model.pool(n), [f"sensor-{i}" for i in range(n)], _samples(model, n // SPARSE)
    for stream_id in ids:
        pool.open(stream_id)
    rng = np.random.default_rng(3)
    named = [[ids[i] for i in rng.choice(n, n // SPARSE, replace=False)] for _ in range(20)]
    turn = iter(range(10**9))
    return lambda: pool.step(named[next(turn) % 20], x), n // SPARSE


def _mapping(model: rt.Model, n: int) -> tuple[Callable[[], Any], int]:
    pool, ids = model.pool(n), [f"sensor-{i}" for i in range(n)]
    samples = dict(zip(ids, _samples(model, n), strict=True))
    for stream_id in ids:
        pool.open(stream_id)
    return lambda: pool.step(samples), n


def measure(model: rt.Model, turns: int = TURNS) -> dict[str, dict[str, float]]:
    """Microseconds of a sample, and samples a second against the lone stream's, of every arrangement."""
    cases = {
        "lone stream": _lone(model),
        "64, lock-step": _pool(model, 64),
        "512, lock-step": _pool(model, 512),
        "512, lock-step, as a mapping": _mapping(model, 512),
        "512, random": _pool(model, 512, random=True),
        "512, lock-step, 2 shards": _pool(model, 512, shards=2),
        "40 of 4000, sparse": _sparse(model, 4000),
    }
    seen: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(turns + 1):
        for name, (call, n) in cases.items():
            times = max(2, SAMPLES_A_TURN // 4 // n)
            start = perf_counter()
            for _ in range(times):
                call()
            seen[name].append((perf_counter() - start) / times / n)
    us = {name: float(np.median(each[1:])) * 1e6 for name, each in seen.items()}  # the first is there to warm up
    return {name: {"us": each, "ratio": us["lone stream"] / each} for name, each in us.items()}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--turns", type=int, default=TURNS, help="how many turns all arrangements take")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        found = {
            name: measure(_model(*shape, Path(folder), f"m{i}"), given.turns)
            for i, (name, shape) in enumerate(MODELS.items())
        }
    if given.json:
        print(json.dumps({"environment": environment(), "models": found}))
        return
    for name, rows in found.items():
        print(f"{name:40} {'µs a sample':>12} {'times the samples of a lone stream':>36}")
        for what, row in rows.items():
            print(f"    {what:36} {row['us']:12.2f} {row['ratio']:36.1f}")
    print(environment())


if __name__ == "__main__":
    main()
