"""What a bounded lookahead costs, against running a window again: ``python -m demos.lookahead_cost``.

One bidirectional LSTM of 64 units, with random weights, since cost does not depend on them. A stream with a lookahead
of 16 samples, in blocks of 8, takes turns with the offline model on the newest 253 samples, once for every sample, and
with streams of other lookaheads and blocks. Prints microseconds of processor time a sample, their ratios, and beside
them the rows of the recurrent layer for a sample, 2 + lookahead / chunk (docs/lookahead.md).
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

from demos.replay import Signal, Stopwatch
from edgeseq import runtime

WINDOW, CHANNELS, LABELS, UNITS = 253, 6, 5, 64
SIZES = ((16, 8), (0, 8), (32, 8), (64, 8), (16, 1), (16, 2), (16, 4), (16, 16), (16, 32))
"""(lookahead, chunk); the first is compared with the window."""

_SAMPLES_A_ROUND = 32


def write_models(folder: Path, sizes: tuple[tuple[int, int], ...] = SIZES) -> Path:
    """Write an offline bidirectional LSTM with random weights, and a stream file for each size, into a folder."""
    import keras

    import edgeseq
    from edgeseq.export import export_model, streamify

    keras.utils.set_random_seed(0)
    model = edgeseq.bilstm_tagger(CHANNELS, LABELS, units=UNITS)
    offline = export_model(model, folder, name="bilstm").offline
    for lookahead, chunk in sizes:
        streamify(offline, stream_file(folder, lookahead, chunk), lookahead=lookahead, chunk=chunk)
    return offline


def stream_file(folder: Path, lookahead: int, chunk: int) -> Path:
    """Where `write_models` puts the stream of that size."""
    return folder / f"bilstm_{lookahead}_{chunk}.stream.onnx"


def measure(folder: Path, sizes: tuple[tuple[int, int], ...] = SIZES, *, rounds: int = 30) -> dict[str, float]:
    """Processor time of a sample in microseconds, by ``"window"`` and ``"lookahead, chunk"``; all take turns.

    A round is 32 samples of each way; the medians of the rounds' means are returned, the first round left out.
    """
    offline = runtime.load_offline(folder / "bilstm.onnx")
    signal: Signal = np.random.default_rng(0).normal(size=(WINDOW + _SAMPLES_A_ROUND, CHANNELS)).astype(np.float32)
    samples = signal[WINDOW:]
    streams = {f"{nr}, {nc}": runtime.load(stream_file(folder, nr, nc)).stream() for nr, nc in sizes}
    watches = {name: Stopwatch() for name in ("window", *streams)}

    def run_windows(signal: Signal) -> None:
        for end in range(WINDOW + 1, len(signal) + 1):
            offline.run(signal[end - WINDOW : end])

    def run_steps(stream: runtime.Stream) -> None:
        for sample in samples:
            stream.step(sample)

    for stream in streams.values():
        stream.push(signal[:WINDOW])
    for _ in range(rounds + 1):
        watches["window"](run_windows, signal)
        for name, stream in streams.items():
            run_steps(stream)  # not measured: how long it takes depends on what ran before it
            watches[name](run_steps, stream)
    return {name: float(np.median(watch.cpu_s[1:])) * 1e6 / _SAMPLES_A_ROUND for name, watch in watches.items()}


def main() -> None:
    """Measure and print; see the module docstring."""
    with tempfile.TemporaryDirectory() as folder:
        write_models(Path(folder))
        us = measure(Path(folder))
    lookahead, chunk = SIZES[0]
    window, stream = us["window"], us[f"{lookahead}, {chunk}"]
    print(f"the newest {WINDOW} samples again at every sample: {window:.0f} µs a sample")
    print(f"a stream of lookahead {lookahead}, chunk {chunk}: {stream:.1f} µs, 1/{window / stream:.0f} of it")
    print(f"\n{'lookahead, chunk':18}{'rows a sample':>14}{'µs a sample':>14}")
    for nr, nc in SIZES:
        print(f"{f'{nr}, {nc}':18}{2 + nr / nc:14.2f}{us[f'{nr}, {nc}']:14.1f}")


if __name__ == "__main__":
    main()
