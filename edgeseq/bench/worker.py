"""The process of one row: it answers requests, one JSON object a line, until its standard input ends.

    {"do": "prepare", "case": KEY, "target": {...}}  ->  {"samples_per_call": n, "difference": d, "where": PACKAGE}
    {"do": "run", "calls": n}  ->  {"ns": [...], "cpu_ns": n}: what each of n calls took, and the process in all of them
    {"do": "measure", "figure": KEY, "target": {...}, "sizes": {...}}  ->  {"values": [...]}

Instead of an answer: {"absent": PACKAGE} for a package that is not installed, {"left_out": WHY} for a row that does not
apply to the model, {"failed": WHY} for anything else. What a library prints goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter_ns, process_time_ns
from typing import Any, TextIO

import edgeseq
from edgeseq.bench.case import LeftOutError, Prepared, Sizes, Target

LEAD_IN_NS = 1_000_000
"""Before each block, calls are made for so long without being counted: another process has had the caches."""

Answer = dict[str, Any]


def main() -> None:
    """Serve the parent at the other ends of standard input and output."""
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    serve(sys.stdin, channel)


def serve(requests: Iterable[str], answers: TextIO) -> None:
    """Answer each line of ``requests`` with a line.

    Example:
        >>> serve(['{"do": "run", "calls": 1}'], sys.stdout)
        {"failed": "LeftOutError: nothing was prepared"}
    """
    row = _Row()
    actions: dict[str, Callable[[Answer], Answer]] = {"prepare": row.prepare, "run": row.run, "measure": row.measure}
    for line in requests:
        request = json.loads(line)
        answers.write(json.dumps(_guarded(actions[request["do"]], request)) + "\n")
        answers.flush()


def _guarded(action: Callable[[Answer], Answer], request: Answer) -> Answer:
    try:
        return action(request)
    except ModuleNotFoundError as error:
        return {"absent": str(error.name)}
    except Exception as error:  # the parent decides what a failure means
        if isinstance(error, LeftOutError) and request["do"] != "run":
            return {"left_out": str(error)}
        told = (str(error).splitlines() or [""])[0]
        return {"failed": f"{type(error).__name__}: {told}"}


class _Row:
    def __init__(self) -> None:
        self._prepared: Prepared | None = None
        self._next = 0

    def prepare(self, request: Answer) -> Answer:
        from edgeseq.bench.registry import find

        case = find(request["case"])
        self._prepared = prepared = case.prepare(Target(**request["target"]))
        where = f"{case.package} {_version(case.package)}"
        return {"samples_per_call": prepared.samples_per_call, "difference": prepared.difference, "where": where}

    def run(self, request: Answer) -> Answer:
        if self._prepared is None:
            raise LeftOutError("nothing was prepared")
        call, arguments, n = self._prepared.call, self._prepared.arguments, len(self._prepared.arguments)
        stop = perf_counter_ns() + LEAD_IN_NS
        while True:
            call(arguments[self._next % n])
            self._next += 1
            if perf_counter_ns() >= stop:
                break
        took, busy = [], process_time_ns()
        for i in range(self._next, self._next + int(request["calls"])):
            argument = arguments[i % n]
            start = perf_counter_ns()
            call(argument)
            took.append(perf_counter_ns() - start)
        busy = process_time_ns() - busy
        self._next += len(took)
        return {"ns": took, "cpu_ns": busy}

    def measure(self, request: Answer) -> Answer:
        from edgeseq.bench.figures import FIGURES

        figure = FIGURES[request["figure"]]
        return {"values": [asdict(v) for v in figure.measure(Target(**request["target"]), Sizes(**request["sizes"]))]}


def _version(package: str) -> str:
    if package == "edgeseq":
        return edgeseq.__version__
    try:
        return version(package)
    except PackageNotFoundError:
        return "(version unknown)"


if __name__ == "__main__":
    main()
