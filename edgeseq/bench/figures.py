"""What is measured once, each figure in a process of its own: start, memory, idle processor, the tail of latencies."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from statistics import median

import numpy as np

from edgeseq import runtime as rt
from edgeseq.bench.case import Figure, Sizes, Target, Value
from edgeseq.bench.inputs import batches, samples
from edgeseq.bench.machine import resident_bytes
from edgeseq.bench.process import command

_DIFFERENT = 256
_WARM_STEPS = 2_000
_IDLE_STREAMS = 100
_MIB = 2**20
_POOL_BYTES = 2**30  # the most that a pool's states may take: then it has fewer streams


def _cold_start(target: Target, sizes: Sizes) -> list[Value]:
    runs: list[dict[str, float]] = []
    for _ in range(sizes.cold_runs + 1):  # the first fills the disk cache
        started = [target.stream, str(time.monotonic_ns())]
        line = command(sys.executable, "edgeseq.bench.cold_start", *started)
        done = subprocess.run(line, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(
                f"a fresh process failed: {(done.stderr.strip().splitlines() or ['(it said nothing)'])[-1]}"
            )
        runs.append(json.loads(done.stdout))
    medians = {stage: median(run[stage] for run in runs[1:]) for stage in runs[0]}
    rss = medians.pop("rss_bytes")
    values = [Value(stage, ms, "ms") for stage, ms in medians.items()]
    return [*values, Value("memory after the first prediction", rss / _MIB, "MiB")]


def _tail(target: Target, sizes: Sizes) -> list[Value]:
    took = np.array(_stepped(rt.load(target.stream), sizes.tail_steps)[_WARM_STEPS:]) / 1e3
    p50, p99, p999 = np.percentile(took, (50, 99, 99.9))
    return [
        Value("p50", float(p50), "µs"),
        Value("p99", float(p99), "µs"),
        Value("p99.9", float(p999), "µs"),
        Value("p99 / p50", float(p99 / p50), "x"),
    ]


def _stepped(model: rt.Model, n_steps: int) -> list[int]:
    """What each step took, in nanoseconds, after ``_WARM_STEPS`` more."""
    step, given = model.stream().step, samples(model.description.inputs, _DIFFERENT)
    took = []
    for i in range(n_steps + _WARM_STEPS):
        sample = given[i % _DIFFERENT]
        start = time.perf_counter_ns()
        step(sample)
        took.append(time.perf_counter_ns() - start)
    return took


def _growth(target: Target, sizes: Sizes) -> list[Value]:
    model = rt.load(target.stream)
    stream, given = model.stream(), samples(model.description.inputs, _DIFFERENT)
    for i in range(_WARM_STEPS):
        stream.step(given[i % _DIFFERENT])
    before = resident_bytes()
    for i in range(sizes.growth_steps):
        stream.step(given[i % _DIFFERENT])
    return [Value(f"growth over {sizes.growth_steps:,} steps", (resident_bytes() - before) / _MIB, "MiB")]


def _idle(target: Target, sizes: Sizes) -> list[Value]:
    model = rt.load(target.stream)
    streams = [model.stream(f"stream-{i}") for i in range(_IDLE_STREAMS)]
    for sample in samples(model.description.inputs, 16):
        for stream in streams:
            stream.step(sample)
    start, busy = time.perf_counter(), time.process_time()
    time.sleep(sizes.idle_s)
    share = (time.process_time() - busy) / (time.perf_counter() - start)
    return [Value(f"processor with {len(streams)} open streams", 100 * share, "%")]


def _pool_memory(target: Target, sizes: Sizes) -> list[Value]:
    model = rt.load(target.stream)
    n = max(1, min(sizes.pool_streams, _POOL_BYTES // max(1, model.state_bytes)))
    before = resident_bytes()
    pool = model.pool(n)
    ids = [f"stream-{i}" for i in range(n)]
    for name in ids:
        pool.open(name)
    part = min(n, 512)
    for start in range(0, n, part):
        some = ids[start : start + part]
        pool.step(some, batches(model.description.inputs, 1, len(some))[0])
    each = (resident_bytes() - before) / n
    return [
        Value(f"memory of each of {n:,} streams", each / 1024, "KiB"),
        Value("of it, beside the state", (each - model.state_bytes) / 1024, "KiB"),
        Value("memory / state", each / max(1, model.state_bytes), "x"),
    ]


_ROWS = (
    Figure("cold_start", "fresh process, until the first prediction", _cold_start),
    Figure("tail", "latency of Stream.step on its own", _tail),
    Figure("growth", "memory of a stream that goes on", _growth),
    Figure("idle", "open streams that wait", _idle),
    Figure("pool_memory", "memory of a pool", _pool_memory),
)
FIGURES = {figure.key: figure for figure in _ROWS}
