"""The whole way on real data: ``python -m demos.demo --out runs/demo``, some four minutes on two cores.

Owns the order of the steps: smartwatch recordings, two trainings, two exports, the check that the streamed TCN equals
its offline model on sessions of unseen subjects, the latency comparison, the report. `demos.latency` compares. Refuses
to report on a stream that is not exact.

Invariant: the held-out subjects are the same in the training, in the check and in the comparison.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Keras and TensorFlow are imported where they are used, so that this stands before them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from rich import box
from rich.console import Console
from rich.table import Table

from demos import latency
from demos.figures import number
from demos.methods import Say, Settings, load_keras
from edgeseq.errors import EdgeseqError
from edgeseq.sessions import Sessions

QUICK = Settings(
    window_s=2.0,
    hops=(25,),
    lookaheads=((5, 5),),
    rounds=2,
    paced_calls=10,
    budget_lookaheads=(0, 5),
    budget_chunks=(5,),
)
_QUICK_SAMPLES = 1200
_QUICK_SIZES: dict[str, dict[str, Any]] = {"tcn": {"nb_filters": 8, "dilations": (1, 2, 4)}, "bilstm": {"units": 8}}
_TRAIN_SEED = 0


def load_sessions(*, quick: bool) -> Sessions:
    """The smartwatch recordings spliced into sessions; the first 24 s of each for a quick run."""
    from edgeseq.watch import load_recordings, splice

    sessions = splice(load_recordings(), seed=latency.SPLICE_SEED)
    if not quick:
        return sessions
    return dataclasses.replace(
        sessions,
        signals=tuple(signal[:_QUICK_SAMPLES] for signal in sessions.signals),
        labels=tuple(labels[:_QUICK_SAMPLES] for labels in sessions.labels),
    )


def train_and_export(architecture: str, sessions: Sessions, folder: Path, say: Say, *, quick: bool) -> None:
    """Train a tagger and export it: ARCHITECTURE.keras, .json, .onnx, and .stream.onnx where it streams."""
    from edgeseq.export import export_model
    from edgeseq.recipes import RECIPES
    from edgeseq.train import train_tagger
    from edgeseq.watch import AUGMENTATION, HELD_OUT_SUBJECTS

    recipe = RECIPES[architecture]
    if quick:
        small = {**recipe.arguments, **_QUICK_SIZES[architecture]}
        recipe = dataclasses.replace(recipe, arguments=small, window_steps=128, steps_per_epoch=5, epochs=1)
    say(f"training the {architecture} on all subjects but {', '.join(map(str, HELD_OUT_SUBJECTS))}")
    path = folder / f"{architecture}.keras"
    report = train_tagger(
        architecture,
        sessions,
        path,
        held_out=HELD_OUT_SUBJECTS,
        seed=_TRAIN_SEED,
        recipe=recipe,
        augmentation=AUGMENTATION,
        verbose=0 if quick else 2,
    )
    say(f"frame accuracy on unseen subjects {report.frame_accuracy:.3f} (majority class {report.majority_rate:.3f})")
    exported = export_model(
        load_keras(path),
        folder,
        name=architecture,
        feature_names=sessions.feature_names,
        label_names=sessions.label_names,
        rate_hz=sessions.rate_hz,
    )
    files = [file.name for file in (exported.offline, exported.stream) if file is not None]
    say(f"exported and verified {' and '.join(files)}")


def print_summary(metrics: dict[str, Any], console: Console) -> None:
    """Print the comparison as a table, and how many times a streaming step each way of running its window takes."""
    table = Table(title="unseen subjects, labels as a person sees them", title_justify="left", box=box.SIMPLE_HEAD)
    table.add_column("method", no_wrap=True)
    for heading in (
        "frames\nright, %",
        "felt latency\nmedian, s",
        "a sample\nmedian, µs",
        "CPU-s\nan hour",
        "keeps\nup",
    ):
        table.add_column(heading, justify="right")
    for method in metrics["methods"]:
        figures = (
            100 * method["frame_accuracy"],
            method["felt_latency_s"]["median"],
            method["compute_per_sample_us"]["p50"],
            method["cpu_s_per_hour"],
        )
        table.add_row(method["name"], *map(number, figures), "yes" if method["keeps_up"] else "no")
    console.print(table)
    times = metrics["interleaved"]["times_the_step"]
    console.print(
        f"the same label from the same window takes {number(times['window'])} times the compute of a streaming step in "
        f"ONNX Runtime, and {number(times['keras'])} times in Keras predict (medians of one interleaved run)"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the demo; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m demos.demo", description="Train, export, stream and compare.")
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="the folder to write to")
    parser.add_argument(
        "--quick", action="store_true", help="short data and tiny models: a test of the way, not a result"
    )
    options = parser.parse_args(arguments)
    console, started = Console(highlight=False), time.perf_counter()

    def say(words: str) -> None:
        console.print(f"[{time.perf_counter() - started:4.0f} s] {words}", markup=False)

    try:
        metrics = _run(options.out, say, quick=options.quick)
    except EdgeseqError as error:
        raise SystemExit(f"demo: {error}") from error
    console.print()
    print_summary(metrics, console)
    for name in ("report.html", "latency.png", "budget.png", "metrics.json", "models"):
        console.print(str(options.out / name), soft_wrap=True)


def _run(out: Path, say: Say, *, quick: bool) -> dict[str, Any]:
    from edgeseq.watch import HELD_OUT_SUBJECTS

    models = out / "models"
    models.mkdir(parents=True, exist_ok=True)
    sessions = load_sessions(quick=quick)
    subjects = len(set(sessions.groups))
    say(f"loaded {sessions.duration_s / 60:.0f} minutes of {subjects} subjects at {sessions.rate_hz:g} Hz")
    for architecture in ("tcn", "bilstm"):
        train_and_export(architecture, sessions, models, say, quick=quick)
    _, held_out = sessions.split(HELD_OUT_SUBJECTS)
    say(f"replaying {held_out.duration_s / 60:.0f} minutes of unseen subjects")
    metrics = latency.run(models, out, QUICK if quick else Settings(), held_out, say)
    say("wrote the report")
    return metrics


if __name__ == "__main__":
    main()
