"""The bench goes round its rows, counts right, and leaves out what it must, with the reason."""

from __future__ import annotations

import json
import math
import shutil
import sys
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import pytest

from edgeseq.bench import runner
from edgeseq.bench.case import Sizes
from edgeseq.bench.cases import OURS
from edgeseq.bench.figures import FIGURES
from edgeseq.bench.peers import PEERS
from edgeseq.bench.report import Report
from edgeseq.bench.runner import Plan, measure, write_json
from edgeseq.errors import ConfigError, ModelFileError, ModelNotFoundError

TINY = Path("tests/data/tiny.stream.onnx")
SHORT = Sizes(rounds=3, block_ms=0.5, tail_steps=100, growth_steps=100, idle_s=0.05, cold_runs=1, pool_streams=20)


class Scripted:
    """Stands for ``Worker``: a row's calls take ``SLOW`` microseconds; ``PRESENT`` is where peers are."""

    SLOW: ClassVar = {"step": 10, "bare": 5, "graph": 20, "chunk_8": 40, "tract": 30}
    PRESENT: ClassVar[set[str]] = set()
    log: ClassVar[list[tuple[str, dict[str, Any]]]] = []
    dies_after: ClassVar[dict[str, int]] = {}

    def __init__(self, python: str) -> None:
        self.python, self.case, self.runs = python, "", 0

    def __enter__(self) -> Scripted:
        return self

    def __exit__(self, *_: object) -> None:
        self.log.append((self.case, {"do": "end"}))

    def close(self) -> None:
        """End it early."""

    def ask(self, **request: Any) -> dict[str, Any]:
        self.case = request.get("case", self.case)
        self.log.append((self.case, request))
        if request["do"] == "measure":
            return {"left_out": "not here"}
        if request["do"] == "prepare":
            if self.case in PEERS and self.python not in self.PRESENT:
                return {"absent": self.case}
            per_call = 8 if self.case == "chunk_8" else 1
            return {"samples_per_call": per_call, "difference": None, "where": f"{self.case} 1.0"}
        self.runs += 1
        if self.runs > self.dies_after.get(self.case, 10**9):
            return {"failed": "its process ended with status -9: (it said nothing)"}
        ns = 1000 * self.SLOW[self.case]
        return {"ns": [ns] * request["calls"], "cpu_ns": 3 * ns * request["calls"]}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> type[Scripted]:
    monkeypatch.setattr(runner, "Worker", Scripted)
    monkeypatch.setattr(Scripted, "log", [])
    monkeypatch.setattr(Scripted, "PRESENT", set())
    monkeypatch.setattr(Scripted, "dies_after", {})
    return Scripted


ONLY = ("step", "bare", "graph", "chunk_8")


def test_rows_take_turns_in_equal_blocks(scripted: type[Scripted]) -> None:
    report = measure(Plan([TINY], ONLY, sizes=SHORT))
    ran = [(case, request["calls"]) for case, request in scripted.log if request["do"] == "run"]
    assert ran[: len(ONLY)] == [(case, 5) for case in ONLY]  # the calibration
    calls = {case: int(SHORT.block_ms * 1000 / scripted.SLOW[case]) for case in ONLY}
    rounds = [ran[len(ONLY) * (i + 1) : len(ONLY) * (i + 2)] for i in range(SHORT.rounds)]
    assert all(dict(each) == calls for each in rounds)
    assert [each[0][0] for each in rounds] == ["step", "bare", "graph"]  # another one begins each round
    assert len(ran) == len(ONLY) * (SHORT.rounds + 1)
    assert {row.key: row.calls for row in report.timed} == {case: 3 * n for case, n in calls.items()}


def test_figures_of_rows_are_right(scripted: type[Scripted]) -> None:
    report = measure(Plan([TINY], ONLY, sizes=SHORT))
    rows = {row.key: row for row in report.timed}
    assert [row.ratio for row in report.timed] == [1.0, 0.5, 2.0, 0.5]
    assert [row.cpu_ratio for row in report.timed] == [1.0, 0.5, 2.0, 0.5]
    assert rows["chunk_8"].us_per_sample == 5.0
    assert rows["chunk_8"].cpu_us_per_sample == 15.0
    assert rows["chunk_8"].samples_per_s == 200_000
    assert rows["graph"].p99_over_p50 == 1.0
    assert {(row.key, row.unit): row.value for row in report.figures} == {
        ("overhead", "µs"): 5.0,
        ("overhead", "%"): 100.0,
    }


def test_every_worker_is_ended(scripted: type[Scripted]) -> None:
    measure(Plan([TINY], ONLY, ["all"], sizes=SHORT))
    ended = Counter(case for case, request in scripted.log if request["do"] == "end")
    assert ended == dict.fromkeys([*ONLY, *PEERS], 1)


def test_several_models_are_compared_with_the_first_row_of_all(scripted: type[Scripted], tmp_path: Path) -> None:
    other = shutil.copy(TINY, tmp_path / "other.stream.onnx")
    report = measure(Plan([TINY, Path(other)], ["graph", "bare"], sizes=SHORT))
    assert [(row.model, row.key, row.ratio) for row in report.timed] == [
        ("tiny", "bare", 1.0),
        ("tiny", "graph", 4.0),
        ("other", "bare", 1.0),
        ("other", "graph", 4.0),
    ]
    assert not report.figures  # no overhead without the step itself


def test_an_absent_peer_is_said_to_be(scripted: type[Scripted]) -> None:
    report = measure(Plan([TINY], ["step"], ["tract"], sizes=SHORT))
    (row,) = report.left_out
    assert row.why == "absent: it needs tract; install edgeseq[bench], or name another --peer-python"
    assert not row.failed
    assert [row.key for row in report.timed] == ["step"]


def test_a_peer_is_looked_for_in_other_environments(scripted: type[Scripted], tmp_path: Path) -> None:
    pythons = [tmp_path / "without", tmp_path / "with"]
    for python in pythons:
        python.touch()
    scripted.PRESENT.add(str(pythons[1]))
    report = measure(Plan([TINY], ["step"], ["tract"], pythons, SHORT))
    assert [(row.key, row.ratio) for row in report.timed] == [("step", 1.0), ("tract", 3.0)]
    assert not report.left_out


def test_a_row_that_dies_leaves_the_others(scripted: type[Scripted]) -> None:
    scripted.dies_after["bare"] = 2
    report = measure(Plan([TINY], ONLY, sizes=SHORT))
    assert [row.key for row in report.timed] == ["step", "graph", "chunk_8"]
    (row,) = [row for row in report.left_out if row.failed]
    assert (row.key, row.why) == ("bare", "failed: its process ended with status -9: (it said nothing)")


def test_a_peer_that_dies_is_no_failure_of_ours(scripted: type[Scripted]) -> None:
    scripted.PRESENT.add(sys.executable)
    scripted.dies_after["tract"] = 0
    report = measure(Plan([TINY], ["step"], ["tract"], sizes=SHORT))
    assert [(row.key, row.failed) for row in report.left_out] == [("tract", False)]
    assert "failed: its process ended with status -9" in report.left_out[0].why


@pytest.mark.parametrize("row", ["step", "graph"])
def test_the_first_row_may_die_too(row: str, scripted: type[Scripted]) -> None:
    scripted.dies_after[row] = 3
    report = measure(Plan([TINY], ["step", "graph"], sizes=SHORT))
    assert [(row.key, row.ratio) for row in report.timed] == [("graph" if row == "step" else "step", 1.0)]


@pytest.fixture(scope="module")
def real() -> tuple[Report, list[str]]:
    said: list[str] = []
    return measure(Plan([TINY], against=["ort_window", "litert"], sizes=SHORT), said.append), said


def test_a_real_run_has_every_row_and_figure(real: tuple[Report, list[str]]) -> None:
    report, said = real
    assert not [row for row in report.left_out if row.failed]
    left_out = {row.key for row in report.left_out}
    assert left_out == {"litert"}
    assert {row.key for row in report.timed} == ({*OURS, "ort_window"}) - left_out
    assert {row.key for row in report.figures} == ({*FIGURES, "overhead"}) - left_out
    assert all(row.median_us > 0 and row.p99_over_p50 >= 1 for row in report.timed)
    assert report.timed[0].key == "step"
    assert report.timed[0].ratio == 1.0
    assert [row.difference is not None for row in report.timed] == [row.key == "ort_window" for row in report.timed]
    assert any("round 3 of 3" in line for line in said)


def test_the_stages_of_a_start_add_up(real: tuple[Report, list[str]]) -> None:
    start = {row.name: row.value for row in real[0].figures if row.key == "cold_start"}
    stages = ("Python starts", "import numpy", "import onnxruntime", "import edgeseq.runtime", "load")
    whole = sum(start[stage] for stage in stages) + start["open a stream, first step"]
    assert math.isclose(whole, start["total"], rel_tol=1e-6)
    assert 0 < start["of it, ours"] < start["total"]
    assert 0 < start["of it, ONNX Runtime's sessions"] < start["load"]
    assert 10 < start["memory after the first prediction"] < 1000


def test_the_json_holds_all_of_it(real: tuple[Report, list[str]], tmp_path: Path) -> None:
    write_json(real[0], tmp_path / "bench.json")
    read = json.loads((tmp_path / "bench.json").read_text(encoding="utf-8"))
    assert read["format_version"] == 1
    assert read.keys() == asdict(real[0]).keys()
    assert {"model", "key", "what", "where", "median_us", "p99_us", "p99_over_p50", "ratio"} <= read["timed"][0].keys()
    assert read["models"][0]["name"] == "tiny"
    assert {"python", "edgeseq", "numpy", "onnxruntime"} <= read["environment"]["versions"].keys()


def test_plans_that_cannot_be_are_refused(tmp_path: Path) -> None:
    for arguments, why in (
        (([],), "expected a model file or a reference"),
        (([TINY], ["stp"]), "only: expected some of step, bare, .* got stp"),
        (([TINY], None, ["tflow"]), "against: expected some of all, keras, .* got tflow"),
        (([TINY], None, [], [tmp_path / "python"]), "peer python: no such file as"),
    ):
        with pytest.raises(ConfigError, match=why):
            Plan(*arguments)


def test_files_that_are_no_streams_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no model file at"):
        measure(Plan([tmp_path / "nowhere.stream.onnx"]))
    with pytest.raises(ModelFileError, match=r"load_offline\(\)"):
        measure(Plan([Path("tests/data/tiny.onnx")]))


def test_another_models_offline_file_is_not_taken(scripted: type[Scripted], tmp_path: Path) -> None:
    shutil.copy(TINY, tmp_path)
    shutil.copy("tests/data/format1.onnx", tmp_path / "tiny.onnx")
    measure(Plan([tmp_path / TINY.name], ["step"], ["ort_window"], sizes=SHORT))
    targets = [request["target"] for _, request in scripted.log if "target" in request]
    assert {(target["offline"], target["check"]) for target in targets} == {(None, None)}
