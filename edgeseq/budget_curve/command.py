"""What ``edgeseq budget`` does around `budget`: reads its words, shows progress, and writes what was asked for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from edgeseq.budget_curve.curve import BudgetCurve
from edgeseq.budget_curve.run import budget
from edgeseq.errors import ConfigError, MissingDependencyError

__all__ = ["delay", "run_budget"]


def run_budget(
    model: Path, data: str, max_delay: str | None, json: Path | None, plot: Path | None, **arguments: Any
) -> BudgetCurve:
    """Measure, print the table, and write the files that were asked for; ``arguments`` are those of `budget`."""
    _check_targets(json, plot)
    given: Any = data
    if data == "watch":
        from edgeseq.watch import HELD_OUT_SUBJECTS, load_recordings, splice

        given = splice(load_recordings(), seed=0)
        arguments["groups"] = arguments["groups"] or HELD_OUT_SUBJECTS
    with _shown() as progress:
        curve = budget(model, given, **delay(max_delay), **arguments, progress=progress)
    Console(highlight=False, soft_wrap=True).print(str(curve), markup=False)
    if json is not None:
        json.write_text(curve.to_json() + "\n", encoding="utf-8")
    if plot is not None:
        curve.save_plot(plot)
    return curve


def _check_targets(json: Path | None, plot: Path | None) -> None:
    """Raise before minutes of measuring, if what comes out of them could not be written."""
    for option, path in (("--json", json), ("--plot", plot)):
        if path is not None and not path.parent.is_dir():
            raise ConfigError(f"{option} {str(path)!r}: no folder {str(path.parent)!r}; make it first")
    if plot is None:
        return
    if plot.suffix not in {".png", ".svg"}:
        raise ConfigError(f"--plot: expected a path that ends in .png or .svg, got {str(plot)!r}")
    if find_spec("matplotlib") is None:
        raise MissingDependencyError(
            "--plot needs the package 'matplotlib'; install it with pip install \"edgeseq[demos]\""
        )


def delay(text: str | None) -> dict[str, Any]:
    """The argument of `budget` that a delay in words is: in ms or s, or a number of samples.

    Example:
        >>> delay("200ms"), delay("0.2 s"), delay("5"), delay(None)
        ({'max_delay_s': 0.2}, {'max_delay_s': 0.2}, {'max_delay_samples': 5}, {})
    """
    if text is None:
        return {}
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(ms|s|samples?|)", text.strip())
    if found is None or (found[2] not in {"ms", "s"} and "." in found[1]):
        raise ConfigError(f"--max-delay {text!r}: expected a time such as 200ms or 0.2s, or a number of samples")
    if found[2] in {"ms", "s"}:
        return {"max_delay_s": float(found[1]) / (1000 if found[2] == "ms" else 1)}
    return {"max_delay_samples": int(found[1])}


@contextmanager
def _shown() -> Iterator[Any]:
    """Progress on the terminal, if stderr is one."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield None
        return
    with Progress(console=console, transient=True) as bar:
        task = bar.add_task("reading the data", total=None)
        yield lambda done, total, what: bar.update(task, completed=done, total=total, description=what)
