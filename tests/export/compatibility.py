"""The compatibility table: every family of the catalogue, exported by edgeseq and by Keras' own ``model.export``.

``python -m tests.export.compatibility`` runs both exporters on the same models with the same random weights, lets the
judge of the family tests compare them with Keras, and writes the summary into docs/export.md and the whole list into
docs/compatibility.md. A worker process that an exporter ends is an error of that exporter.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

EXPORTERS = ("edgeseq", "Keras")
SUMMARY, WHOLE = Path("docs/export.md"), Path("docs/compatibility.md")
BEGIN, END = "<!-- compatibility: make compatibility -->", "<!-- end of compatibility -->"

# Both exporters are held to this share of the output's scale; the tests hold edgeseq to 1e-5.
TOLERANCE = 1e-4

Row = dict[str, Any]  # {"family": ..., "edgeseq": a Verdict's fields, "Keras": ...}


def _work(names: list[str]) -> None:
    """Judge these families, a line of JSON for each exporter as soon as it is known."""
    from tests.conftest import random_weights
    from tests.export.families import FAMILIES

    for name in names:
        for exporter in EXPORTERS:
            print(json.dumps({"family": name, "exporter": exporter, "begins": True}), flush=True)
            family = FAMILIES[name]
            verdict = _verdict(exporter, random_weights(family.build()), family)
            print(json.dumps({"family": name, "exporter": exporter, "verdict": verdict}), flush=True)


def _verdict(exporter: str, model: Any, family: Any) -> Row:
    import warnings

    from edgeseq.export import export_model
    from edgeseq.export.reasons import reason
    from tests.export.judging import Verdict, judge

    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder) / "model.onnx"
        try:
            if exporter == "edgeseq":
                export_model(model, folder, name="model")
            else:
                with contextlib.redirect_stdout(sys.stderr):
                    _call(model)
                    model.export(str(path), format="onnx", verbose=False)
        except Exception as error:
            return asdict(Verdict("error", f"{type(error).__name__}: {reason(error)[:90]}"))
        return asdict(judge(model, path, padded=family.padded, min_length=family.min_length, tolerance=TOLERANCE))


def _call(model: Any) -> None:
    """Keras exports only models that have been called."""
    from edgeseq.export.oracle import keras_outputs
    from edgeseq.export.signature import signature
    from tests.export.judging import sequences

    keras_outputs(model, sequences(signature(model), 20))


def _results(names: list[str]) -> Iterator[Row]:
    """What a worker process says of these families; one that dies is replaced."""
    todo = list(names)
    while todo:
        command = [sys.executable, "-m", "tests.export.compatibility", "--worker", json.dumps(todo)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as worker:
            assert worker.stdout is not None
            begun: Row = {}
            for line in worker.stdout:
                told = json.loads(line)
                begun = told if "begins" in told else {}
                if "verdict" in told:
                    yield told
                    if told["exporter"] == EXPORTERS[-1]:
                        todo.remove(told["family"])
        if todo and worker.returncode == 0:
            raise RuntimeError(f"a worker ended before {todo[0]!r}")
        if todo:
            if not begun:
                raise RuntimeError(f"a worker failed before it began with {todo[0]!r}; run --worker to see why")
            died = {"kind": "error", "detail": f"the process died ({worker.returncode})", "n_nodes": None}
            for exporter in EXPORTERS[EXPORTERS.index(begun["exporter"]) :]:
                yield {"family": todo[0], "exporter": exporter, "verdict": died}
            todo.pop(0)


def main() -> None:
    """Write both tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        _work(json.loads(arguments.worker))
        return
    from tests.export.families import FAMILIES

    names = list(FAMILIES)
    rows: dict[str, Row] = {name: {} for name in names}

    def collect(part: list[str]) -> None:
        for told in _results(part):
            rows[told["family"]][told["exporter"]] = told["verdict"]
            done = sum(len(row) == len(EXPORTERS) for row in rows.values())
            print(f"\r{done} of {len(names)}  {told['family'][:80]:80}", end="", flush=True)

    with ThreadPoolExecutor(arguments.jobs) as pool:
        list(pool.map(collect, [names[i :: arguments.jobs] for i in range(arguments.jobs)]))
    print()
    groups = {name: family.group for name, family in FAMILIES.items()}
    text = SUMMARY.read_text(encoding="utf-8")
    before, after = text.split(BEGIN)[0], text.split(END)[1]
    SUMMARY.write_text(f"{before}{BEGIN}\n\n{_summary(rows, groups)}\n\n{END}{after}", encoding="utf-8")
    WHOLE.write_text(_whole(rows, groups), encoding="utf-8")


def _versions() -> str:
    packages = ("keras", "tensorflow", "tf2onnx", "onnx", "onnxruntime", "keras-tcn")
    return ", ".join(f"{package} {version(package)}" for package in packages)


def _summary(rows: dict[str, Row], groups: dict[str, str]) -> str:
    lines = [
        "| family | models | edgeseq: right | Keras: right | by a loop | wrong | error | nodes, Keras : edgeseq |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for group in [*dict.fromkeys(groups.values()), None]:
        members = [row for name, row in rows.items() if group in (groups[name], None)]
        ours, theirs = (Counter(row[exporter]["kind"] for row in members) for exporter in EXPORTERS)
        both = [row for row in members if all(row[e]["kind"] in ("right", "detour") for e in EXPORTERS)]
        nodes = [sum(row[exporter]["n_nodes"] for row in both) for exporter in EXPORTERS]
        ratio = f"{nodes[1] / nodes[0]:.1f} : 1" if both else "–"
        counts = (theirs["right"], theirs["detour"], theirs["wrong"], theirs["error"])
        cells = [group or "**all**", len(members), ours["right"], *counts, ratio]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join([*lines, "", f"Measured with {_versions()}."])


def _whole(rows: dict[str, Row], groups: dict[str, str]) -> str:
    lines = [
        "# Compatibility",
        "",
        "Every family that the tests hold the exporter to, with random weights and biases, on lengths 1, 2, 7, 77 and",
        "300 and batches 1, 2 and 5. `wrong`: shapes or values differ from Keras by more than 1e-4 of the output's",
        "scale. `loop`: right, but by a Loop, Scan, If or SpaceToBatch emulation. In brackets the number of nodes.",
        f"Written by `make compatibility` with {_versions()}. A summary is in [export.md](export.md).",
    ]
    for group in dict.fromkeys(groups.values()):
        lines += [
            "",
            f"## {group.capitalize() if group.islower() else group}",
            "",
            "| model | edgeseq | Keras |",
            "|---|---|---|",
        ]
        lines += [
            f"| {name} | {_cell(row['edgeseq'])} | {_cell(row['Keras'])} |"
            for name, row in rows.items()
            if groups[name] == group
        ]
    return "\n".join([*lines, ""])


def _cell(verdict: Row) -> str:
    detail = re.sub(r"[|<>\n]", " ", re.sub(r"\bat 0x\w+|__?\d+", "", verdict["detail"]))
    nodes = f" ({verdict['n_nodes']})" if verdict["n_nodes"] is not None else ""
    kind = "loop" if verdict["kind"] == "detour" else verdict["kind"]
    return f"{kind}{nodes}" if kind == "right" else f"**{kind}**{nodes}: {detail}"


if __name__ == "__main__":
    main()
