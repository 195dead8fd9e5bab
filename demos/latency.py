"""What each way of labelling a sensor stream costs, and how late its labels are.

    python -m demos.latency runs/demo/models -o runs/demo

Owns the figures of the comparison and ``metrics.json``. `demos.methods` replays the methods, `demos.felt_latency` has
the formulas, `demos.report` shows the result. Refuses two models that were held out from different groups.

Invariant: nothing in the metrics was typed in: every figure was measured or counted in the run that wrote them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import edgeseq
from demos import felt_latency as felt
from demos.methods import SEED, Method, Models, Say, Settings, load_models, replay_all
from demos.replay import Stopwatch, paced
from edgeseq.bench.machine import PACKAGES, environment
from edgeseq.errors import ConfigError, EdgeseqError
from edgeseq.sessions import Sessions

SPLICE_SEED = 0
_QUANTILES = {"p1": 0.01, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p99": 0.99, "p99_9": 0.999}


def summary(method: Method, sessions: Sessions) -> dict[str, Any]:
    """The figures of one method, for metrics.json; None stands for what too few values can tell.

    Units: in the names. Rates and shares are fractions from 0 to 1.
    """
    rate_hz, replays = sessions.rate_hz, method.replays
    found = np.concatenate(
        [
            felt.felt_latencies(truth, replay.labels, replay.emitted_at_s(rate_hz), rate_hz=rate_hz)
            for truth, replay in zip(sessions.labels, replays, strict=True)
        ]
    )
    seen = found[~np.isnan(found)]
    future = np.concatenate([replay.future_samples for replay in replays])
    utilisation = sum(float(replay.compute_s.sum()) for replay in replays) / sessions.duration_s
    right = [replay.labels == truth for replay, truth in zip(replays, sessions.labels, strict=True)]
    return {
        "key": method.key,
        "name": method.name,
        "how": method.how,
        "calls_measured": len(method.measured_s),
        "calls_in_replay": sum(len(replay.ends) for replay in replays),
        "samples_per_call": float(np.median(method.yields)),
        "compute_per_call_us": _quantiles(method.measured_s * 1e6),
        "compute_per_sample_us": _quantiles(method.measured_s / method.yields * 1e6),
        "future_samples": {"median": float(np.median(future)), "max": int(future.max())},
        "felt_latency_s": {"median": felt.quantile(seen, 0.5), "p90": felt.quantile(seen, 0.9)},
        "changes": len(found),
        "changes_missed": len(found) - len(seen),
        "changes_missed_share": (len(found) - len(seen)) / max(1, len(found)),
        "flips_per_hour": felt.flips_per_hour([replay.labels for replay in replays], rate_hz=rate_hz),
        "frame_accuracy": float(np.concatenate(right).mean()),
        "cpu_s_per_hour": sum(float(replay.cpu_s.sum()) for replay in replays) / sessions.duration_s * 3600,
        "utilisation": utilisation,
        "keeps_up": utilisation < 1,
        "falls_behind_s_per_s": max(0.0, utilisation - 1),
    }


def _quantiles(values: felt.Floats) -> dict[str, float | None]:
    return {name: felt.quantile(values, q) for name, q in _QUANTILES.items()}


def ratios(watches: Mapping[str, Stopwatch]) -> dict[str, Any]:
    """What took turns in figures: the median of each way, and how many times the compute of a step that is.

    Example:
        >>> ratios({"step": Stopwatch([2000]), "window": Stopwatch([9000])})["times_the_step"]
        {'window': 4.5}
    """
    medians = {name: float(np.median(watch.wall_ns)) / 1e3 for name, watch in watches.items()}
    return {
        "calls": {name: len(watch.wall_ns) for name, watch in watches.items()},
        "median_us": medians,
        "times_the_step": {name: us / medians["step"] for name, us in medians.items() if name != "step"},
    }


def at_real_pace(models: Models, sessions: Sessions, settings: Settings) -> dict[str, Any]:
    """`ratios` of the step and the window with the processor idle in between, two calls in a sample's time."""
    gap_s = 0.5 / sessions.rate_hz
    signal, calls = sessions.signals[0], settings.paced_calls
    watches = paced(models.stream, models.tcn.run, signal, window=models.window, calls=calls, gap_s=gap_s)
    return ratios(watches) | {"idle_s": gap_s}


def timeline(methods: Sequence[Method], sessions: Sessions, *, span_s: float = 40.0) -> dict[str, Any] | None:
    """What a person would have seen around two typical changes of label, or None for data without two such changes.

    The two neighbouring changes are those whose felt latencies under the first method are nearest to its median: a
    typical moment, not a flattering one. Bands are [start_s, end_s, label], -1 for nothing shown yet, on the clock of
    the session.
    """
    at = _typical_pair(methods[0], sessions, span_s)
    if at is None:
        return None
    number, first, second = at
    rate_hz, truth, signal = sessions.rate_hz, sessions.labels[number], sessions.signals[number]
    span = min(len(truth), round(span_s * rate_hz))
    start = int(np.clip((first + second - span) // 2, 0, len(truth) - span))
    part = slice(start, start + span)
    moments_s = np.arange(start, start + span) / rate_hz
    shown = {
        m.key: felt.shown_at(m.replays[number].labels, m.replays[number].emitted_at_s(rate_hz), moments_s)
        for m in methods
    }

    def bands(labels: Any) -> list[list[float]]:
        return [[(start + a) / rate_hz, (start + b) / rate_hz, label] for a, b, label in felt.runs(labels)]

    names = sessions.feature_names[:3]
    channels = {name: [round(float(value), 3) for value in signal[part, i]] for i, name in enumerate(names)}
    return {
        "session": number,
        "group": sessions.groups[number],
        "session_s": len(truth) / rate_hz,
        "start_s": start / rate_hz,
        "end_s": (start + span) / rate_hz,
        "changes_s": [first / rate_hz, second / rate_hz],
        "channels": channels,
        "truth": bands(truth[part]),
        "shown": {key: bands(labels) for key, labels in shown.items()},
    }


def _typical_pair(method: Method, sessions: Sessions, span_s: float) -> tuple[int, int, int] | None:
    """The session and the samples of the two neighbouring changes whose felt latencies are nearest to the median."""
    rate_hz, found = sessions.rate_hz, []
    for number, (truth, replay) in enumerate(zip(sessions.labels, method.replays, strict=True)):
        latencies = felt.felt_latencies(truth, replay.labels, replay.emitted_at_s(rate_hz), rate_hz=rate_hz)
        points = felt.change_points(truth)
        found += [(number, int(c), float(s)) for c, s in zip(points, latencies, strict=True)]
    median = felt.quantile(np.array([s for *_, s in found if not np.isnan(s)]), 0.5)
    pairs = [
        (abs(s - median) + abs(t - median), i, c, d)
        for (i, c, s), (j, d, t) in pairwise(found)
        if median is not None and i == j and d - c < 0.6 * span_s * rate_hz and not np.isnan(s + t)
    ]
    return min(pairs)[1:] if pairs else None


def compare(models: Models, sessions: Sessions, settings: Settings, say: Say = print) -> dict[str, Any]:
    """Run the whole comparison; returns the part of metrics.json that needs no model folder.

    Raises:
        ConfigError: a session is shorter than a window and its rounds, or the TCN's receptive field has no bound.
        VerificationError: the stream differs from its offline model, or from the same window run another way.
    """
    methods, taking_turns, exact = replay_all(models, sessions, settings, say)
    labels = sessions.labels
    return {
        "data": {
            "sessions": len(sessions),
            "groups": sorted(set(sessions.groups)),
            "hours": sessions.duration_s / 3600,
            "rate_hz": sessions.rate_hz,
            "feature_names": list(sessions.feature_names),
            "label_names": list(sessions.label_names),
            "majority_rate": sessions.majority_rate,
            "changes": sum(len(felt.change_points(truth)) for truth in labels),
            "changes_per_hour": felt.flips_per_hour(labels, rate_hz=sessions.rate_hz),
        },
        "settings": {"hold_s": felt.HOLD_S, "window_s": settings.window_s, "hops": list(settings.hops)},
        "receptive_field": list(models.stream.receptive_field),
        "exactness": exact,
        "interleaved": ratios(taking_turns.watches) | {"max_difference_from_stream": dict(taking_turns.differences)},
        "at_real_pace": at_real_pace(models, sessions, settings),
        "methods": [summary(method, sessions) for method in methods],
        "timeline": timeline(methods, sessions),
    }


def describe_models(folder: Path) -> dict[str, Any]:
    """What the folder holds: the training's own report of each model, less its data, and the sizes of the files."""
    kept = ("parameters", "hyperparameters", "seed", "train_groups", "epochs_run", "frame_accuracy", "train_s")
    models = {}
    for name in ("tcn", "bilstm"):
        report = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
        sizes = {file.name: file.stat().st_size for file in sorted(folder.glob(f"{name}.*onnx"))}
        models[name] = {key: report[key] for key in kept} | {"file_bytes": sizes}
    return models


def waiting(folder: Path, held_out: Sessions, settings: Settings, say: Say) -> dict[str, Any]:
    """What every step of delay buys for the BiLSTM, as `edgeseq.budget` measures it."""
    curve = edgeseq.budget(
        folder / "bilstm.onnx",
        held_out,
        lookaheads=settings.budget_lookaheads,
        chunks=settings.budget_chunks,
        causal=folder / "tcn.stream.onnx",
        max_delay_s=settings.max_delay_s,
    )
    say(f"measured what waiting buys the BiLSTM; {curve.verdict}")
    return curve.to_dict()


def run(folder: Path, out: Path, settings: Settings, held_out: Sessions, say: Say = print) -> dict[str, Any]:
    """Compare the models of a folder and write metrics.json, report.html and pictures; returns the metrics."""
    from demos.report import write_report

    metrics = (
        environment((*PACKAGES, "keras", "tensorflow"))
        | {"seeds": {"splice": SPLICE_SEED, "comparison": SEED}, "models": describe_models(folder)}
        | compare(load_models(folder, settings), held_out, settings, say)
        | {"budget": waiting(folder, held_out, settings, say)}
    )
    out.mkdir(parents=True, exist_ok=True)
    (out / "metrics.json").write_text(json.dumps(metrics, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    write_report(metrics, out)
    return metrics


def held_out_groups(folder: Path) -> list[int]:
    """The groups that neither model of the folder was trained or validated on.

    Raises:
        ConfigError: a model has no description beside it, or the two were held out from different groups.
    """
    groups = {}
    for name in ("tcn", "bilstm"):
        file = folder / f"{name}.json"
        if not file.is_file():
            raise ConfigError(
                f"no {str(file)!r}, expected what edgeseq train wrote beside the model; run demos.demo first"
            )
        groups[name] = json.loads(file.read_text(encoding="utf-8"))["held_out_groups"]
    if groups["tcn"] != groups["bilstm"]:
        raise ConfigError(
            f"models in {str(folder)!r}: expected the same held-out groups, got {groups['tcn']} for the tcn and "
            f"{groups['bilstm']} for the bilstm; train both with the same ones"
        )
    return list(groups["tcn"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare the models in a folder; see the module docstring."""
    from edgeseq.watch import load_recordings, splice

    parser = argparse.ArgumentParser(prog="python -m demos.latency", description="Compare what labels cost, and when.")
    parser.add_argument("models", type=Path, help="the folder with tcn.* and bilstm.*, as demos.demo writes it")
    parser.add_argument("-o", "--out", type=Path, default=Path("runs/demo"), help="where metrics and report go")
    parser.add_argument("--rounds", type=int, default=Settings.rounds, help="interleaved rounds in each session")
    options = parser.parse_args(arguments)
    if options.rounds < 1:
        parser.error(f"--rounds: expected at least 1, got {options.rounds}")
    try:
        _, held_out = splice(load_recordings(), seed=SPLICE_SEED).split(held_out_groups(options.models))
        metrics = run(options.models, options.out, Settings(rounds=options.rounds), held_out)
    except EdgeseqError as error:
        raise SystemExit(f"latency: {error}") from error
    for name, times in metrics["interleaved"]["times_the_step"].items():
        print(f"{name}: {times:,.1f} times the compute of a streaming step (medians of one interleaved run)")
    print(options.out / "report.html")


if __name__ == "__main__":
    main()
