"""The command ``edgeseq bench``."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from edgeseq.errors import ConfigError, EdgeseqError, MissingDependencyError


def bench(
    models: Annotated[Sequence[Path], Parameter(consume_multiple=True)] = (),
    /,
    *,
    reference: Annotated[Sequence[str], Parameter(consume_multiple=True)] = (),
    only: Annotated[Sequence[str], Parameter(consume_multiple=True)] = (),
    against: Annotated[Sequence[str], Parameter(consume_multiple=True)] = (),
    peer_python: Annotated[Sequence[Path], Parameter(consume_multiple=True)] = (),
    json: Path | None = None,
    quick: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Measure what a model costs on this machine: steps, chunks, pools, start, memory; in turns with other ways.

    Args:
        models: stream files, NAME.stream.onnx; several are measured in one run, and compared with the first.
        reference: or reference architectures, built here with random weights: T1, T2, D1, D512.
        only: keys of the rows and figures to measure, such as step bare cold_start.
        against: other ways to stream to measure in the same run: keras, ort_window, litert, pytorch_tcn, tract, or all.
        peer_python: interpreters in whose environments to look for what is missing in this one.
        json: write the figures to this file instead of printing tables.
        quick: a few seconds' run.
    """
    from edgeseq.bench.case import QUICK, Sizes
    from edgeseq.bench.report import print_report
    from edgeseq.bench.runner import Plan, measure, write_json

    console = Console()
    if json is not None and (json.is_dir() or not json.parent.is_dir()):
        raise ConfigError(f"--json: expected a file in a folder that exists, got {str(json)!r}; make its folder first")
    named = _keys(reference)
    asked = [*models, *map(Path, named)]
    plan = Plan(asked, _keys(only) or None, _keys(against), peer_python, QUICK if quick else Sizes())
    with ExitStack() as stack:
        status = stack.enter_context(Console(stderr=True).status("starting"))
        built = _built(named, stack, status.update)
        report = measure(replace(plan, models=[*models, *built]), status.update)
    if json is None:
        print_report(report, console)
    else:
        write_json(report, json)
        console.print(f"wrote {json}")
    if failed := [row for row in report.left_out if row.failed]:
        raise EdgeseqError(f"rows that failed: {len(failed)}, the first of them {failed[0].what!r}, {failed[0].why}")


def _keys(given: Sequence[str]) -> list[str]:
    """``a b`` and ``a,b`` are the same."""
    return [key for keys in given for key in keys.split(",")]


def _built(names: Sequence[str], stack: ExitStack, say: Callable[[str], None]) -> list[Path]:
    """The stream files of reference architectures, in a folder that goes with ``stack``."""
    if not names:
        return []
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ["KERAS_BACKEND"] = "tensorflow"  # what tf2onnx converts
    from edgeseq.bench.reference import build, reference

    wanted = {name: reference(name) for name in names}
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    try:
        files = []
        for name, sizes in wanted.items():
            say(f"building {name} and exporting it")
            files.append(build(sizes, folder, name))
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f'--reference builds a model with {error.name!r}; install it with pip install "edgeseq[train,bench]"'
        ) from error
    return files
