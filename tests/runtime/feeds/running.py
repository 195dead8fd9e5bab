"""Shared by the tests of feeds: a model, samples of several sensors, and the real ``edgeseq run``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgeseq import runtime as rt

MODEL = Path(__file__).parents[2] / "data" / "tiny.stream.onnx"
CHANNELS = ("x", "y", "z")


def walk(n: int, ids: Sequence[str] = ("w0", "w1", "w2"), *, seed: int = 0) -> list[rt.Sample]:
    """``n`` samples of each of the sensors, in turns, numbered and at 50 Hz."""
    rng = np.random.default_rng(seed)
    return [
        rt.Sample(name, [float(v) for v in rng.normal(size=3).astype(np.float32)], i / 50, i)
        for i in range(n)
        for name in ids
    ]


def direct(samples: Iterable[rt.Sample], clock: rt.SensorClock | None = None) -> list[dict[str, Any]]:
    """What the core says, without any feed."""
    return [p.to_dict() for p in rt.predictions(rt.load(MODEL), samples, clock)]


def as_json(sample: rt.Sample) -> str:
    """A sample as a line."""
    facts = {"stream_id": sample.stream_id, "sequence": sample.sequence, "timestamp_s": sample.timestamp_s}
    return json.dumps({**facts, "values": sample.values})


def write_jsonl(path: Path, samples: Iterable[rt.Sample]) -> Path:
    path.write_text("".join(as_json(s) + "\n" for s in samples))
    return path


def write_csv(path: Path, samples: Iterable[rt.Sample]) -> Path:
    lines = ["stream_id,sequence,timestamp_s," + ",".join(CHANNELS)]
    lines += [f"{s.stream_id},{s.sequence},{s.timestamp_s},{','.join(map(repr, s.values))}" for s in samples]
    path.write_text("\n".join(lines) + "\n")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    """The predictions in a file of JSON lines; a line that is not whole is left out."""
    return [json.loads(line) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]


def by_stream(predictions: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Predictions in their order, apart by stream."""
    found: dict[str, list[dict[str, Any]]] = {}
    for prediction in predictions:
        found.setdefault(prediction["stream_id"], []).append(prediction)
    return found


def edgeseq_run(*arguments: object, **popen: Any) -> subprocess.Popen[bytes]:
    """A real process of ``edgeseq run`` on the tiny model."""
    command = [sys.executable, "-m", "edgeseq", "run", str(MODEL), *(str(a) for a in arguments)]
    root = str(Path(__file__).parents[3])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([root, os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(command, env=environment, **{"stderr": subprocess.PIPE, **popen})


def wait_until(condition: Any, timeout_s: float = 60.0) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.005)


def n_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0
