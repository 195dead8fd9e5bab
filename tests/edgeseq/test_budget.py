"""What a budget measures, chooses and writes, on a tiny bidirectional model and a tiny causal one."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import edgeseq
from edgeseq import runtime
from edgeseq.__main__ import main
from edgeseq.budget_curve import BudgetCurve, Row
from edgeseq.budget_curve.curve import Target
from edgeseq.budget_curve.replay import StreamWatch, delays
from edgeseq.errors import ConfigError, InputError, ModelFileError
from edgeseq.sessions import Sessions

BILSTM, CAUSAL = "tests/data/tiny_bilstm.onnx", "tests/data/tiny.stream.onnx"
Array = np.ndarray[Any, Any]


def signals(*lengths: int) -> list[Array]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=(n, 3)).astype(np.float32) for n in lengths]


def labelled(*lengths: int, ignored: float = 0.0) -> list[tuple[Array, Array]]:
    """Signals with what the offline model says as the truth, and -1 for a share of it."""
    rng, offline = np.random.default_rng(1), runtime.load_offline(BILSTM)
    return [(x, np.where(rng.random(len(x)) < ignored, -1, offline.run(x).argmax(-1))) for x in signals(*lengths)]


@pytest.fixture(scope="module")
def curve() -> BudgetCurve:
    return edgeseq.budget(
        BILSTM, labelled(55, 37, 1), lookaheads=(0, 2, 60), chunks=(1, 8), causal=CAUSAL, target="agreement=0.999"
    )


def by_name(curve: BudgetCurve) -> dict[str, Row]:
    return {row.name: row for row in curve.rows}


def test_there_is_a_row_for_each_way(curve: BudgetCurve) -> None:
    assert [(row.kind, row.lookahead, row.chunk) for row in curve.rows] == [
        ("causal", 0, 1),
        *(("lookahead", nr, nc) for nc in (1, 8) for nr in (0, 2, 60)),
        ("offline", None, None),
    ]
    assert (curve.n_sequences, curve.n_samples, curve.n_counted, curve.rate_hz) == (3, 93, 93, 50.0)


def test_delays_are_those_of_lookahead_and_chunk(curve: BudgetCurve) -> None:
    for row in curve.rows:
        if row.lookahead is not None and row.chunk is not None:
            assert row.delay_samples == row.lookahead + row.chunk - 1
            assert row.mean_delay_samples == row.lookahead + (row.chunk - 1) / 2
            assert row.delay_ms == 20 * row.delay_samples
    offline = curve.rows[-1]
    assert offline.delay_samples == 54
    assert offline.mean_delay_samples == pytest.approx((55 * 54 + 37 * 36) / 2 / 93)


def test_a_lookahead_to_the_end_is_the_offline_model(curve: BudgetCurve) -> None:
    rows = by_name(curve)
    for name in ("lookahead 60, chunk 1", "lookahead 60, chunk 8", "offline, at the end"):
        assert rows[name].max_difference <= 1e-5
        assert rows[name].agreement == rows[name].accuracy == 1
    near = [rows[f"lookahead {n}, chunk 1"] for n in (0, 2, 60)]
    assert near[0].mean_difference > near[1].mean_difference > near[2].mean_difference
    assert near[0].max_difference > 0.01


def test_figures_are_those_of_the_streams_themselves(tmp_path: Path) -> None:
    from edgeseq.export import streamify

    data = labelled(60, 25, ignored=0.5)
    (row, causal, _) = sorted(
        edgeseq.budget(BILSTM, data, lookaheads=[2], chunks=[3], causal=CAUSAL).rows,
        key=lambda row: ["lookahead", "causal", "offline"].index(row.kind),
    )
    streamify(BILSTM, tmp_path / "m.stream.onnx", lookahead=2, chunk=3)
    for got, path in ((row, tmp_path / "m.stream.onnx"), (causal, Path(CAUSAL))):
        outputs, wanted, truth = [], [], []
        for x, labels in data:
            stream = runtime.load(path).stream()
            rows = [stream.step(sample) for sample in x]
            outputs += [y.reshape(-1, 2) for y in (*rows, stream.flush()) if y is not None]
            wanted.append(runtime.load_offline(BILSTM).run(x))
            truth.append(labels)
        counts = np.concatenate(truth) != -1
        y, offline, right = (np.concatenate(parts)[counts] for parts in (outputs, wanted, truth))
        assert got.accuracy == (y.argmax(-1) == right).mean()
        assert got.agreement == (y.argmax(-1) == offline.argmax(-1)).mean()
        assert got.max_difference == pytest.approx(np.abs(y - offline).max(), abs=1e-6)
        assert got.mean_difference == pytest.approx(np.abs(y - offline).mean(), abs=1e-6)
    assert 0 < counts.mean() < 1


def test_without_labels_there_is_no_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    curve = edgeseq.budget(BILSTM, signals(50)[0], lookaheads=[0], chunks=[1])
    assert curve.majority_rate is None
    assert {row.accuracy for row in curve.rows} == {None}
    assert curve.metric == "agreement"
    assert "share right" not in str(curve)
    with pytest.raises(ConfigError, match=r"target accuracy 0\.9: expected data with labels; label them, or ask"):
        edgeseq.budget(BILSTM, signals(50), target="accuracy=0.9")


def test_time_and_processor_time_are_measured_for_each_way(curve: BudgetCurve) -> None:
    for row in curve.rows:
        assert row.p50_us > 0
        assert row.cpu_us > 0
        assert row.cpu_s_per_hour == pytest.approx(row.cpu_us * 50 * 3600 / 1e6)
        if row.kind == "offline":
            assert row.p99_us is None  # sixteen calls do not tell
        else:
            assert row.p99_us is not None
            assert row.p99_us >= row.p50_us


def test_the_time_of_a_block_is_shared_by_its_samples(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from edgeseq.export import streamify

    streamify(BILSTM, tmp_path / "m.stream.onnx", lookahead=1, chunk=4)
    watch = StreamWatch(runtime.load(tmp_path / "m.stream.onnx"), signals(7)[0])
    block = [0, 100, 100, 200, 200, 300, 300, 8_000]  # a call each, start and end: the last one does the work
    clock = iter(block * 8)
    monkeypatch.setattr("time.perf_counter_ns", lambda: next(clock))
    watch.turn(8)
    assert watch.compute().p50_us == pytest.approx(2.0)


def test_delays_are_counted_sample_by_sample(tmp_path: Path) -> None:
    from edgeseq.export import streamify

    streamify(BILSTM, tmp_path / "m.stream.onnx", lookahead=3, chunk=4)
    found = delays(runtime.load(tmp_path / "m.stream.onnx"), signals(5)[0])
    assert found[:8].tolist() == [6, 5, 4, 3] * 2
    assert set(delays(runtime.load(CAUSAL), signals(5)[0]).tolist()) == {0}


def test_tokens_in_stacks_without_a_rate(tmp_path: Path, randomise: Any) -> None:
    from edgeseq.export import export_model

    model = edgeseq.bilstm_text_tagger(11, 3, embedding_dim=4, units=3, layers=2, mask_zero=False)
    export_model(randomise(model), tmp_path, name="tagger")
    rng = np.random.default_rng(0)
    data = [(rng.integers(0, 11, n).astype(np.int32), rng.integers(-1, 3, n)) for n in (20, 9)]
    curve = edgeseq.budget(tmp_path / "tagger.onnx", data, lookaheads=(3, 25), chunks=(2,), max_delay_samples=7)
    assert [row.delay_samples for row in curve.rows] == [7, 51, 19]
    assert curve.rows[1].max_difference <= 1e-5
    assert {row.delay_ms for row in curve.rows} == {row.cpu_s_per_hour for row in curve.rows} == {None}
    assert curve.best == curve.rows[0]
    assert "delay, samples" in str(curve)
    assert "CPU s" in str(curve)
    assert curve.verdict.startswith("the best within 7 samples: lookahead 3, chunk 2, with accuracy 0.")
    unknown = [data[0], (np.full(3, 99, np.int32), [0, 0, 0])]
    with pytest.raises(InputError, match=r"data, sequence 1: expected tokens from 0 to 10, got 99"):
        edgeseq.budget(tmp_path / "tagger.onnx", unknown)
    with pytest.raises(ConfigError, match=r"max_delay_s=0\.2: expected a model with a sample rate, got none; give max"):
        edgeseq.budget(tmp_path / "tagger.onnx", data, max_delay_s=0.2)


def test_the_target_is_met_by_the_smallest_delay_and_by_the_cheaper_of_equals(curve: BudgetCurve) -> None:
    assert curve.best is not None
    assert curve.best.agreement is not None
    assert curve.best.agreement >= 0.999
    rows = by_name(curve)
    two = replace(rows["lookahead 2, chunk 1"], agreement=1.0, p50_us=5.0)
    cheap = replace(rows["lookahead 0, chunk 8"], agreement=1.0, delay_samples=2, p50_us=2.0)
    late = replace(rows["lookahead 2, chunk 8"], agreement=1.0, delay_samples=3, p50_us=1.0)
    small = replace(curve, rows=(late, two, cheap, curve.rows[-1]))
    assert small.best == cheap
    assert small.nearest is None
    assert small.verdict.startswith("the smallest delay that reaches agreement 0.999: lookahead 0, chunk 8, with")
    assert replace(small, max_delay_samples=1).best is None
    assert replace(small, max_delay_samples=1).nearest == cheap
    assert "none comes within 20 ms; the nearest is lookahead 0, chunk 8" in replace(small, max_delay_samples=1).verdict


def test_where_none_meets_the_target_the_nearest_is_named(curve: BudgetCurve) -> None:
    none = replace(curve, target=Target("accuracy", 1.5))
    assert none.best is None
    assert none.nearest is not None
    assert none.nearest.accuracy == 1
    assert none.nearest.delay_samples == min(row.delay_samples for row in curve.rows if row.accuracy == 1)
    assert none.verdict.startswith(
        f"none reaches accuracy 1.5; the nearest is {none.nearest.name}, with accuracy 1.000"
    )
    assert none.verdict.endswith("; the offline model itself has accuracy 1.000")
    assert f"→ {none.nearest.name} " in str(none)


def test_differences_are_better_when_smaller(curve: BudgetCurve) -> None:
    near = replace(curve, target=Target.parse("max_difference=1e-5"))
    assert near.best == by_name(curve)["lookahead 60, chunk 1"]
    none = replace(curve, target=Target.parse("max_difference = -1"), max_delay_samples=50)
    assert none.nearest is not None
    in_time = [row for row in curve.rows if row.kind != "offline" and row.delay_samples <= 50]
    assert none.nearest.max_difference == min(row.max_difference for row in in_time)


def test_a_longest_delay_alone_finds_the_best_within_it(curve: BudgetCurve) -> None:
    within = replace(curve, target=None, max_delay_samples=9)
    assert within.best is not None
    assert within.best.accuracy == max(row.accuracy or 0 for row in curve.rows if row.delay_samples <= 9)
    asked = replace(curve, target=None, max_delay_samples=None)
    assert asked.best is asked.nearest is None
    assert asked.verdict == ""
    assert "→" not in str(asked)


@pytest.mark.parametrize(("seconds", "samples"), [(0.3, 15), (0.299, 14), (0.0, 0), (0.06, 3)])
def test_a_delay_in_seconds_is_one_in_samples(seconds: float, samples: int) -> None:
    curve = edgeseq.budget(BILSTM, signals(20), lookaheads=[0], chunks=[1], max_delay_s=seconds)
    assert curve.max_delay_samples == samples


def test_everything_is_in_the_json(curve: BudgetCurve) -> None:
    told = json.loads(curve.to_json())
    assert curve.best is not None
    assert told["best"]["name"] == curve.best.name
    assert [row["name"] for row in told["rows"]] == [row.name for row in curve.rows]
    assert told["rows"][1]["agreement"] == curve.rows[1].agreement
    assert BudgetCurve.from_dict(told) == curve
    assert BudgetCurve.from_dict(replace(curve, target=None).to_dict()) == replace(curve, target=None)
    assert (told["target"], told["verdict"]) == ({"metric": "agreement", "value": 0.999}, curve.verdict)


def test_the_table_is_aligned_and_marks_the_choice(curve: BudgetCurve) -> None:
    lines = str(curve).splitlines()
    assert len(lines) == 2 + len(curve.rows) + 1
    assert len({len(line) for line in lines[2:-1]}) == 1
    assert [line[2:].split("  ")[0] for line in lines if line.startswith("→")] == [
        curve.best.name if curve.best else ""
    ]


def test_progress_counts_to_the_end() -> None:
    said: list[tuple[int, int, str]] = []
    sizes: dict[str, Any] = {"lookaheads": np.arange(2), "chunks": (1, 1)}  # numpy's integers are as good
    curve = edgeseq.budget(BILSTM, signals(20), **sizes, causal=CAUSAL, progress=lambda *told: said.append(told))
    assert len(curve.rows) == 4
    assert [done for done, _, _ in said] == list(range(len(said)))
    assert {total for _, total, _ in said} == {len(said)}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"target": "speed=3"},
            r"target 'speed=3': expected accuracy=, agreement=, max_difference= or mean",
        ),
        ({"target": "accuracy"}, "target 'accuracy': expected"),
        ({"target": "accuracy=nan"}, "target 'accuracy=nan': expected"),
        ({"lookaheads": []}, r"lookaheads: expected integers of at least 0, one or more, got \[\]"),
        ({"lookaheads": [-1]}, "lookaheads: expected integers"),
        ({"chunks": [0]}, "chunks: expected integers of at least 1"),
        ({"chunks": [1.5]}, "chunks: expected integers of at least 1"),
        ({"max_delay_s": -1}, "expected a longest delay of at least 0, got -1"),
        ({"max_delay_s": float("nan")}, "expected a longest delay of at least 0, got nan"),
        ({"max_delay_s": 1, "max_delay_samples": 1}, "got both; give one"),
        ({"max_samples": 0}, "max_samples: expected at least 1, got 0"),
        ({"groups": [1]}, r"groups \[1\]: expected sessions, which have groups, got list"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        edgeseq.budget(BILSTM, labelled(20), **arguments)


def test_models_of_another_kind_are_refused(tmp_path: Path, randomise: Any) -> None:
    from edgeseq.export import export_model

    with pytest.raises(ConfigError, match=r"model 'tiny': expected bidirectional layers, got .*, 0 samples late"):
        edgeseq.budget("tests/data/tiny.onnx", signals(20))
    with pytest.raises(ModelFileError):
        edgeseq.budget(CAUSAL, signals(20))
    with pytest.raises(ModelFileError):
        edgeseq.budget(BILSTM, signals(20), causal="tests/data/tiny.onnx")
    export_model(randomise(edgeseq.tcn_tagger(3, 4, nb_filters=2, dilations=(1,))), tmp_path, name="other")
    with pytest.raises(ConfigError, match=r"causal model '.*other\.stream\.onnx': expected the output of 'tiny_bi"):
        edgeseq.budget(BILSTM, signals(20), causal=tmp_path / "other.stream.onnx", lookaheads=[0], chunks=[1])
    inputs = keras.Input((None, 3))
    classifier = keras.Model(inputs, keras.layers.LSTM(2)(inputs))
    export_model(randomise(classifier), tmp_path, name="classifier")
    with pytest.raises(ConfigError, match=r"one output \(T, K\)"):
        edgeseq.budget(tmp_path / "classifier.onnx", signals(20))


def test_a_model_of_one_output_has_differences_alone(tmp_path: Path, randomise: Any) -> None:
    from edgeseq.export import export_model

    model = randomise(edgeseq.bilstm_tagger(3, 1, units=2, output_activation="sigmoid"))
    path = export_model(model, tmp_path, name="one").offline
    sizes: dict[str, Any] = {"lookaheads": [0, 30], "chunks": [1]}
    curve = edgeseq.budget(path, signals(25), **sizes, target="max_difference=1e-4")
    assert {row.agreement for row in curve.rows} == {row.accuracy for row in curve.rows} == {None}
    assert curve.best is not None
    assert curve.best.lookahead == 30
    curve.save_plot(tmp_path / "one.png")
    with pytest.raises(ConfigError, match="no labels for a model of one output"):
        edgeseq.budget(path, labelled(25), **sizes)
    with pytest.raises(ConfigError, match=r"target agreement 0\.9: expected a model of several outputs"):
        edgeseq.budget(path, signals(25), **sizes, target="agreement=0.9")


def command(*arguments: object) -> int | str | None:
    with pytest.raises(SystemExit) as exit_:
        main(["budget", *map(str, arguments)])
    return exit_.value.code


def test_the_command_prints_the_table_and_writes_the_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, y = labelled(90)[0]
    ones = Sessions((x[:50], x[50:]), (y[:50].astype(np.int32), y[50:].astype(np.int32)), (1, 2), ("x", "y", "z"),
                    ("rest", "move"), 50.0)  # fmt: skip
    ones.save(tmp_path / "d.npz")
    asked = (BILSTM, "--data", tmp_path / "d.npz", "--lookaheads", 0, 50, "--chunks", 1, "--groups", 1)
    json_, png = tmp_path / "b.json", tmp_path / "b.png"
    assert not command(*asked, "--target", "accuracy=0.999", "--json", json_, "--plot", png, "--causal", CAUSAL)
    printed = capsys.readouterr().out
    assert "→ lookahead 50, chunk 1" in printed
    assert "the smallest delay that reaches accuracy 0.999: lookahead 50, chunk 1, with accuracy 1.000" in printed
    told = json.loads(json_.read_text(encoding="utf-8"))
    assert told["n_samples"] == 50
    assert png.read_bytes()[:4] == b"\x89PNG"
    assert command(*asked, "--target", "accuracy=0.999", "--max-delay", "200ms") == 1
    assert "none reaches accuracy 0.999 within 200 ms; the nearest is" in capsys.readouterr().out
    assert "expected a time such as 200ms" in str(command(*asked, "--max-delay", "soon"))
    assert "expected a path that ends in .png" in str(command(*asked, "--plot", tmp_path / "b.gif"))
    for option in ("--json", "--plot"):
        assert f"{option} '{tmp_path}/no/b.png': no folder" in str(command(*asked, option, tmp_path / "no" / "b.png"))
    monkeypatch.setattr("edgeseq.budget_curve.command.find_spec", lambda name: None)
    assert "--plot needs the package 'matplotlib'" in str(command(*asked, "--plot", png))
    assert "no file" in str(command(BILSTM, "--data", tmp_path / "no.csv"))
