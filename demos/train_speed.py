"""How long a training step takes on the CPU and on the GPU: `python demos/train_speed.py [--architecture tcn]`.

Owns the measurement and its table. Each device is measured in a process of its own, and the CPU's process is started
with the GPU hidden, because a backend that has seen a GPU places its work there. The backend is KERAS_BACKEND:
tensorflow (the default), jax or torch.

Refuses to compare where there is nothing to compare: without a GPU it says so and shows the CPU alone.

Invariant: both processes train the same model from the same seed on the same windows; a step's time ends when its
loss has arrived in Python, so work that a GPU still has in its queue is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from edgeseq.bench.machine import processor
from edgeseq.errors import EdgeseqError

HIDE_GPU = {"CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
N_CHANNELS, N_LABELS = 6, 7


def measure(architecture: str, steps: int, *, gpu_only: bool) -> dict[str, Any]:
    """Train `steps` steps on the device that the backend chooses, and return their times.

    The windows are noise: the time of a step does not depend on what is in them. The first steps, in which the
    backend compiles, are left out.

    Returns:
        device, backend, versions; and step_ms, one time per step, unless `gpu_only` and there is no GPU.

    Example:
        >>> sorted(measure("tcn", 1, gpu_only=True))[:2]
        ['backend', 'device']
    """
    import keras
    import numpy as np

    from edgeseq.recipes import RECIPES
    from edgeseq.train import compiled, device_of, versions

    keras.utils.set_random_seed(0)
    recipe = RECIPES[architecture]
    model = compiled(recipe, N_CHANNELS, N_LABELS)
    result: dict[str, Any] = {
        "device": device_of(model.weights[0]),
        "backend": keras.backend.backend(),
        "versions": versions(),
        "samples_per_step": recipe.batch_size * recipe.window_steps,
    }
    if gpu_only and result["device"] != "gpu":
        return result
    rng = np.random.default_rng(0)
    x = rng.standard_normal((recipe.batch_size, recipe.window_steps, N_CHANNELS)).astype(np.float32)
    y = rng.integers(N_LABELS, size=x.shape[:2], dtype=np.int32)
    warmup = 3
    step_ms = []
    for _ in range(warmup + steps):
        started = time.perf_counter()
        model.train_on_batch(x, y)
        step_ms.append((time.perf_counter() - started) * 1e3)
    return result | {"step_ms": step_ms[warmup:]}


def measure_apart(architecture: str, steps: int, hidden: Mapping[str, str], *, gpu_only: bool) -> dict[str, Any]:
    """Run `measure` in a process of its own, with the environment `hidden` added.

    Raises:
        EdgeseqError: the process failed; the message ends with what it said.
    """
    command = [sys.executable, __file__, "--architecture", architecture, "--steps", str(steps), "--measure"]
    done = subprocess.run(
        [*command, "--gpu-only"] if gpu_only else command,
        env={**os.environ, **hidden},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise EdgeseqError(f"train_speed: the measuring process ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def table(architecture: str, results: Sequence[Mapping[str, Any]]) -> str:
    """Return the medians, and their ratio where there are two, as a table.

    Example:
        >>> cpu = {"device": "cpu", "backend": "jax", "versions": {"keras": "3"}, "samples_per_step": 100}
        >>> gpu = cpu | {"device": "gpu", "step_ms": [2.0, 1.0, 3.0]}
        >>> print("\\n".join(table("tcn", [cpu | {"step_ms": [8.0, 9.0, 7.0]}, gpu]).splitlines()[1:]))
        device  steps  median ms  min ms  max ms  samples/s
        cpu         3       8.00    7.00    9.00     12,500
        gpu         3       2.00    1.00    3.00     50,000
        gpu is 4.0 times as fast as cpu (medians)
    """
    first = results[0]
    versions = ", ".join(f"{name} {version}" for name, version in first["versions"].items())
    lines = [
        f"one training step of {architecture!r} on {machine()}; backend {first['backend']}; {versions}",
        "device  steps  median ms  min ms  max ms  samples/s",
    ]
    medians = [statistics.median(result["step_ms"]) for result in results]
    for result, median in zip(results, medians, strict=True):
        times, rate = result["step_ms"], result["samples_per_step"] / median * 1e3
        lines.append(
            f"{result['device']:<6}  {len(times):>5}  {median:>9.2f}  {min(times):>6.2f}  {max(times):>6.2f}"
            f"  {rate:>9,.0f}"
        )
    if len(results) == 2:
        lines.append(f"gpu is {medians[0] / medians[1]:.1f} times as fast as cpu (medians)")
    return "\n".join(lines)


def machine() -> str:
    """Return the processor, its cores and the GPU in words."""
    words = [f"{processor()} with {os.cpu_count()} cores"]
    try:
        names = subprocess.run(
            ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], capture_output=True, text=True, check=True
        ).stdout
        words += names.split("\n")[:1]
    except (OSError, subprocess.CalledProcessError):
        pass  # No NVIDIA driver; what the backend found is in the table.
    return ", ".join(words)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print; see the module docstring."""
    parser = argparse.ArgumentParser(description="Compare the time of a training step on the CPU and on the GPU.")
    parser.add_argument("--architecture", choices=("tcn", "bilstm"), default="tcn")
    parser.add_argument("--steps", type=int, default=30, help="steps that are timed on each device")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--gpu-only", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.steps < 1:
        parser.error(f"--steps: expected at least 1, got {options.steps}")
    if options.measure:
        print(json.dumps(measure(options.architecture, options.steps, gpu_only=options.gpu_only)))
        return
    cpu = measure_apart(options.architecture, options.steps, HIDE_GPU, gpu_only=False)
    gpu = measure_apart(options.architecture, options.steps, {}, gpu_only=True)
    found = gpu["device"] == "gpu"
    print(table(options.architecture, [cpu, gpu] if found else [cpu]))
    if not found:
        print(f"no GPU found: {gpu['backend']} sees the {gpu['device']} only")


if __name__ == "__main__":
    main()
