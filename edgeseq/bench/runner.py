"""The bench itself: goes round the workers of all rows in blocks, then measures what is measured once.

Invariant: rows that are compared were measured in turns in one run. A row that does not apply, or whose package is
missing, is left out with the reason; it is never filled in.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from edgeseq import runtime as rt
from edgeseq.bench.case import Case, Figure, Sizes, Target
from edgeseq.bench.cases import OURS
from edgeseq.bench.figures import FIGURES
from edgeseq.bench.inputs import sequence
from edgeseq.bench.machine import environment
from edgeseq.bench.peers import PEERS
from edgeseq.bench.process import Worker
from edgeseq.bench.report import Block, FigureRow, LeftOut, Report, TimedRow, timed_row
from edgeseq.errors import ConfigError, InputError, ModelFileError
from edgeseq.model_file import Description
from edgeseq.runtime.model_source import describe, open_model

Say = Callable[[str], None]

_CALIBRATION_CALLS = 5
_MOST_CALLS = 5_000  # in a block: their times travel as text
_CHECK_MORE, _LONGEST_CHECK = 64, 1_200


@dataclass(frozen=True)
class Plan:
    """What to measure: models' files, the keys of our rows and figures (None is all), and those of peers."""

    models: Sequence[Path]
    only: Sequence[str] | None = None
    against: Sequence[str] = ()
    peer_pythons: Sequence[Path] = ()
    sizes: Sizes = field(default_factory=Sizes)

    def __post_init__(self) -> None:
        if not self.models:
            raise ConfigError("bench: expected a model file or a reference, got neither; give NAME.stream.onnx")
        _known("only", self.only or (), [*OURS, *FIGURES])
        _known("against", self.against, ["all", *PEERS])
        for python in self.peer_pythons:
            if not python.is_file():
                raise ConfigError(f"peer python: no such file as {str(python)!r}; give the path of an interpreter")

    @property
    def rows(self) -> list[Case]:
        """The rows of each model, ours first."""
        peers = list(PEERS) if "all" in self.against else list(dict.fromkeys(self.against))
        ours = [case for key, case in OURS.items() if self.only is None or key in self.only]
        return [*ours, *(PEERS[key] for key in peers)]

    @property
    def figures(self) -> list[Figure]:
        """The figures of each model."""
        return [figure for key, figure in FIGURES.items() if self.only is None or key in self.only]


def _known(what: str, given: Sequence[str], expected: Sequence[str]) -> None:
    if unknown := [key for key in given if key not in expected]:
        raise ConfigError(f"{what}: expected some of {', '.join(expected)}; got {', '.join(unknown)}")


def measure(plan: Plan, say: Say = lambda _: None) -> Report:
    """Measure every row and figure of the plan; ``say`` is told what goes on.

    Raises:
        ModelNotFoundError, ModelFileError: a model cannot be opened as a stream; before anything is measured.
    """
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        targets = [_target(path, folder / f"{i}.npz", plan) for i, path in enumerate(plan.models)]
        about = [_about(target) for target in targets]
        rows = _Rows(plan, say)
        rows.prepare(targets, stack)
        timed = rows.measure()
    figures = rows.overheads()
    for target in targets:
        for figure in plan.figures:
            figures += rows.figure(target, figure)
    return Report(environment(), about, asdict(plan.sizes), timed, figures, rows.left_out)


def _target(path: Path, check: Path, plan: Plan) -> Target:
    d = open_model(path, "stream").description
    target = Target(str(path))
    offline = target.beside(".onnx") if d.offline is None else path.with_name(d.offline.file)
    try:
        whole = d.offline is not None and describe(offline).graph_sha256 == d.offline.graph_sha256
    except ModelFileError:
        whole = False
    target = Target(str(path), str(offline) if whole else None)
    if plan.against and _write_check(target, d, check):
        target = Target(target.stream, target.offline, str(check))
    return target


def _write_check(target: Target, d: Description, check: Path) -> bool:
    """Samples and the offline model's outputs, for models whose peers can be compared with them."""
    timing = d.outputs[0].timing
    if target.offline is None or timing is None or len(d.inputs) > 1 or len(d.outputs) > 1:
        return False
    past, future = timing.receptive_field
    if past is None or future != 0 or timing.hop != (1, 1) or timing.law != "equal" or d.inputs[0].dtype != "float32":
        return False
    x = sequence(d.inputs, min(past + 1 + _CHECK_MORE, max(_LONGEST_CHECK, past + 1 + 8)))
    try:
        y = rt.load_offline(target.offline).run(x)
    except InputError:  # a model of one length
        return False
    np.savez(check, x=x, y=y, window=past + 1)
    return True


def _about(target: Target) -> dict[str, Any]:
    model = rt.load(target.stream)
    return {
        "name": target.name,
        "graph_sha256": model.description.graph_sha256,
        "receptive_field": list(model.receptive_field),
        "lookahead": model.lookahead,
        "state_bytes": model.state_bytes,
        "runs_on": model.explain(),
    }


@dataclass
class _Running:
    """A row that is being measured: its worker, and its blocks."""

    target: Target
    case: Case
    worker: Worker
    answer: Mapping[str, Any]
    calls: int
    blocks: list[Block]


class _Rows:
    """The rows of all models, and what had to be left out."""

    def __init__(self, plan: Plan, say: Say) -> None:
        self._plan, self._say = plan, say
        self._running: list[_Running] = []
        self.left_out: list[LeftOut] = []

    def prepare(self, targets: Sequence[Target], stack: ExitStack) -> None:
        """Start a worker for each row, and find out how many calls fill a block."""
        for target in targets:
            for case in self._plan.rows:
                self._say(f"preparing {target.name}: {case.what}")
                if (running := self._start(target, case, stack)) is not None:
                    self._running.append(running)

    def _start(self, target: Target, case: Case, stack: ExitStack) -> _Running | None:
        pythons = [sys.executable]
        if case.key in PEERS:
            pythons += [str(python) for python in self._plan.peer_pythons]
        absent = []
        for python in pythons:
            worker = stack.enter_context(Worker(python))
            answer = worker.ask(do="prepare", case=case.key, target=asdict(target))
            if "absent" not in answer:
                break
            absent.append(answer["absent"])
            worker.close()
        if "samples_per_call" not in answer:
            self._leave_out(target, case.key, case.what, answer)
            return None
        took = worker.ask(do="run", calls=_CALIBRATION_CALLS)
        if "ns" not in took:
            self._leave_out(target, case.key, case.what, took)
            return None
        calls = self._plan.sizes.block_ms * 1e6 / max(1.0, float(np.median(took["ns"])))
        return _Running(target, case, worker, answer, min(_MOST_CALLS, max(1, math.floor(calls))), [])

    def measure(self) -> list[TimedRow]:
        """Go round all rows, block by block; each round starts with another row."""
        rounds = self._plan.sizes.rounds
        for i in range(rounds):
            self._say(f"measuring {len(self._running)} rows in turns: round {i + 1} of {rounds}")
            first = i % max(1, len(self._running))
            for running in [*self._running[first:], *self._running[:first]]:
                took = running.worker.ask(do="run", calls=running.calls)
                if "ns" in took:
                    n = int(running.answer["samples_per_call"])
                    running.blocks.append(Block(np.array(took["ns"], np.int64), took["cpu_ns"], n))
                else:
                    self._leave_out(running.target, running.case.key, running.case.what, took)
                    self._running.remove(running)
        if not self._running:
            return []
        base = self._running[0].blocks
        return [timed_row(r.target.name, r.case, r.answer, r.blocks, base) for r in self._running]

    def overheads(self) -> list[FigureRow]:
        """What a step takes beside the bare call in it, of each model that has both rows: medians over rounds."""
        medians = {(r.target, r.case.key): np.array([np.median(block.ns) for block in r.blocks]) for r in self._running}
        found, what = [], "Stream.step beside its bare ONNX Runtime call"
        for (target, key), bare in medians.items():
            if key == "bare" and (target, "step") in medians:
                more = medians[target, "step"] - bare
                name, us = target.name, float(np.median(more)) / 1e3
                found.append(FigureRow(name, "overhead", what, "checks, state, copies", us, "µs"))
                share = 100 * float(np.median(more / bare))
                found.append(FigureRow(name, "overhead", what, "of the bare call", share, "%"))
        return found

    def figure(self, target: Target, figure: Figure) -> list[FigureRow]:
        """Measure one figure in a process of its own."""
        self._say(f"{target.name}: {figure.what}")
        with Worker(sys.executable) as worker:
            answer = worker.ask(do="measure", figure=figure.key, target=asdict(target), sizes=asdict(self._plan.sizes))
        if "values" not in answer:
            self._leave_out(target, figure.key, figure.what, answer)
            return []
        return [FigureRow(target.name, figure.key, figure.what, **value) for value in answer["values"]]

    def _leave_out(self, target: Target, key: str, what: str, answer: Mapping[str, Any]) -> None:
        if "absent" in answer:
            why = f"absent: it needs {answer['absent']}; install edgeseq[bench], or name another --peer-python"
        else:
            why = str(answer.get("left_out") or f"failed: {answer['failed']}")
        self.left_out.append(LeftOut(target.name, key, what, why, failed="failed" in answer and key not in PEERS))


def write_json(report: Report, path: Path) -> None:
    """Write the report as JSON, as docs/performance.md explains it."""
    path.write_text(json.dumps(asdict(report), indent=1, allow_nan=False) + "\n", encoding="utf-8")
