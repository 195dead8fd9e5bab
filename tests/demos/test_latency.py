from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from demos import latency, methods
from demos.felt_latency import change_points
from demos.methods import Models, Settings
from demos.replay import (
    BLOCK,
    Replay,
    Stopwatch,
    Way,
    interleave,
    paced,
    replay_blocks,
    replay_stream,
    replay_window,
)
from edgeseq import runtime
from edgeseq.errors import ConfigError, VerificationError
from edgeseq.export import streamify
from edgeseq.runtime.model_source import Source
from edgeseq.sessions import Sessions

SETTINGS = Settings(window_s=0.4, hops=(4, 7), lookaheads=((2, 3), (5, 1)), rounds=3, paced_calls=5)
RATE_HZ = 50.0


def sessions(lengths: tuple[int, ...] = (210, 333)) -> Sessions:
    rng = np.random.default_rng(0)
    labels = [np.arange(length) // 60 % 2 for length in lengths]
    signals = [3 * y[:, None] - 1.5 + rng.standard_normal((len(y), 3)) for y in labels]
    return Sessions(
        tuple(x.astype(np.float32) for x in signals),
        tuple(y.astype(np.int32) for y in labels),
        tuple(range(len(lengths))),
        ("x", "y", "z"),
        ("rest", "move"),
        RATE_HZ,
    )


def tiny_models(ahead: Sequence[runtime.Model] = ()) -> Models:
    offline = runtime.load_offline("tests/data/tiny.onnx")
    return Models(runtime.load("tests/data/tiny.stream.onnx"), offline, offline, offline.run, ahead)


@pytest.fixture(scope="module")
def ahead(tmp_path_factory: pytest.TempPathFactory) -> list[runtime.Model]:
    folder = tmp_path_factory.mktemp("ahead")
    for lookahead, chunk in SETTINGS.lookaheads:
        path = folder / f"{lookahead}_{chunk}.stream.onnx"
        streamify("tests/data/tiny_bilstm.onnx", path, lookahead=lookahead, chunk=chunk)
    return [runtime.load(folder / f"{lookahead}_{chunk}.stream.onnx") for lookahead, chunk in SETTINGS.lookaheads]


@pytest.fixture(scope="module")
def metrics(ahead: list[runtime.Model]) -> dict[str, Any]:
    said: list[str] = []
    result = latency.compare(tiny_models(ahead), sessions(), SETTINGS, said.append)
    assert len(said) == 2 + len(SETTINGS.hops) + len(SETTINGS.lookaheads)
    return result


def test_every_method_is_there_and_its_figures_hang_together(metrics: dict[str, Any]) -> None:
    assert [m["key"] for m in metrics["methods"]] == [
        "stream", "window", "keras", "bilstm_4", "bilstm_7", "ahead_2_3", "ahead_5_1", "bilstm_offline"
    ]  # fmt: skip
    changes = sum(len(change_points(labels)) for labels in sessions().labels)
    for m in metrics["methods"]:
        assert m["changes"] == changes == metrics["data"]["changes"]
        assert 0 <= m["frame_accuracy"] <= 1
        assert m["changes_missed_share"] == m["changes_missed"] / changes
        assert m["keeps_up"] == (m["utilisation"] < 1)
        assert m["falls_behind_s_per_s"] == max(0, m["utilisation"] - 1)
        assert m["cpu_s_per_hour"] > 0
    assert json.loads(json.dumps(metrics, allow_nan=False)) == json.loads(json.dumps(metrics))


def test_future_and_yield_are_those_of_the_method(metrics: dict[str, Any]) -> None:
    by_key = {m["key"]: m for m in metrics["methods"]}
    for key in ("stream", "window", "keras"):
        assert by_key[key]["future_samples"] == {"median": 0.0, "max": 0}
        assert by_key[key]["calls_in_replay"] == 543
    assert by_key["bilstm_7"]["future_samples"] == {"median": 3.0, "max": 6}
    assert by_key["bilstm_7"]["calls_in_replay"] == 30 + 48
    assert by_key["ahead_2_3"]["future_samples"] == {"median": 3.0, "max": 4}
    assert by_key["ahead_2_3"]["name"] == "BiLSTM stream, 0.08 s late"
    assert by_key["ahead_2_3"]["calls_in_replay"] == 71 + 112
    assert by_key["ahead_5_1"]["future_samples"] == {"median": 5.0, "max": 5}
    assert by_key["ahead_5_1"]["calls_measured"] == 543
    assert by_key["bilstm_offline"]["future_samples"]["max"] == 332
    assert by_key["bilstm_offline"]["compute_per_call_us"]["p99"] is None


def test_the_offline_run_is_felt_at_the_end_of_the_session() -> None:
    ends = [len(x) / RATE_HZ for x in sessions().signals]
    offline = tiny_models().bilstm
    for signal, end in zip(sessions().signals, ends, strict=True):
        replay = replay_window(offline.run, signal, window=len(signal), hop=len(signal))
        np.testing.assert_array_equal(replay.labels, offline.run(signal).argmax(-1))
        emitted = replay.emitted_at_s(RATE_HZ)
        assert (emitted == emitted[0]).all()
        assert emitted[0] == pytest.approx(end - 1 / RATE_HZ + replay.compute_s[0])


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 11, 210])
def test_blocks_label_each_sample_once_when_their_last_sample_is_there(ahead: list[runtime.Model], length: int) -> None:
    signal = sessions().signals[0][:length]
    for model, (lookahead, chunk) in zip(ahead, SETTINGS.lookaheads, strict=True):
        replay = replay_blocks(model, signal)
        stream = model.stream()
        np.testing.assert_array_equal(
            replay.labels, np.concatenate([stream.push(signal), stream.flush()]).argmax(axis=-1)
        )
        assert len(replay.compute_s) == length // chunk + 1
        assert replay.samples_per_call.sum() == length
        waits = [min(i + lookahead + (-i - lookahead - 1) % chunk, length - 1) - i for i in range(length)]
        assert replay.future_samples.tolist() == waits
        emitted_s = replay.emitted_at_s(RATE_HZ) - np.array(waits) / RATE_HZ
        assert (emitted_s > np.arange(length) / RATE_HZ).all()


def test_a_window_labels_each_sample_once_from_what_had_arrived() -> None:
    offline, signal = tiny_models().bilstm, sessions().signals[0]
    replay = replay_window(offline.run, signal, window=20, hop=4)
    for i in (0, 3, 57, 209):
        end = min(len(signal), 4 * (i // 4 + 1))
        window = offline.run(signal[max(0, end - 20) : end])
        assert replay.labels[i] == window[i - end].argmax()
    assert replay.samples_per_call.sum() == len(signal)
    assert replay.future_samples.min() == 0


def test_emission_queues_behind_a_slow_call() -> None:
    replay = Replay(np.array([1, 2, 3]), np.array([2.5, 0.1, 0.1]), np.zeros(3), np.zeros(3, int))
    np.testing.assert_allclose(replay.emitted_at_s(1.0), [2.5, 2.6, 2.7])


def test_ways_take_turns_on_the_same_samples() -> None:
    models, data = tiny_models(), sessions()
    seen: list[np.ndarray[Any, Any]] = []

    def slow(window: Any) -> Any:
        seen.append(window)
        return models.tcn.run(window)

    ways = {"window": Way(models.tcn.run, BLOCK), "slow": Way(slow, 1)}
    result = interleave(models.stream, ways, data.signals, window=models.window, rounds=3)
    rounds = 3 * len(data)
    counts = {name: len(watch.wall_ns) for name, watch in result.watches.items()}
    assert counts == {"step": rounds * (BLOCK - 1), "window": rounds * (BLOCK - 1), "slow": rounds}
    assert max(result.differences.values()) <= methods.TOLERANCE
    assert {window.shape for window in seen} == {(models.window, 3)}


def test_a_session_too_short_for_the_rounds_is_refused() -> None:
    models, data = tiny_models(), sessions((20,))
    with pytest.raises(ConfigError, match=r"session 0: expected at least 25 samples.*got 20; ask for fewer rounds"):
        interleave(models.stream, {"w": Way(models.tcn.run, 1)}, data.signals, window=models.window, rounds=3)


def test_a_stream_that_is_not_exact_is_refused() -> None:
    models, data = tiny_models(), sessions()
    outputs = [replay_stream(models.stream, signal)[1] for signal in data.signals]
    assert methods.check_exact(models, data, outputs)["max_difference_step"] <= methods.TOLERANCE
    outputs[1][7, 0] += 1e-3
    with pytest.raises(VerificationError, match=r"held-out session 1: expected the stream \(step\).*got 0.001"):
        methods.check_exact(models, data, outputs)
    outputs[1][7, 0] = np.nan
    with pytest.raises(VerificationError, match="got nan"):
        methods.check_exact(models, data, outputs)


@pytest.mark.parametrize("wrong", [lambda y: 1 - y, lambda y: y * np.nan])
def test_a_keras_model_that_is_another_one_is_refused(wrong: Any) -> None:
    models = tiny_models()
    other = replace(models, keras_predict=lambda x: wrong(models.tcn.run(x)))
    with pytest.raises(VerificationError, match="keras: expected the outputs of the stream"):
        latency.compare(other, sessions(), SETTINGS, lambda words: None)


@pytest.mark.parametrize(
    ("tcn", "bilstm", "words"),
    [
        ([1], [1, 2], r"the same held-out groups, got \[1\] for the tcn and \[1, 2\] for the bilstm"),
        ([1], None, r"no '.*bilstm\.json'"),
    ],
)
def test_models_that_do_not_belong_together_are_refused(
    tcn: list[int], bilstm: list[int] | None, words: str, tmp_path: Path
) -> None:
    (tmp_path / "tcn.json").write_text(json.dumps({"held_out_groups": tcn}))
    if bilstm is not None:
        (tmp_path / "bilstm.json").write_text(json.dumps({"held_out_groups": bilstm}))
    with pytest.raises(ConfigError, match=words):
        latency.held_out_groups(tmp_path)
    pytest.importorskip("seglearn")
    with pytest.raises(SystemExit, match=words):
        latency.main([str(tmp_path), "-o", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()


def test_ratios_are_those_of_the_medians() -> None:
    result = latency.ratios({"step": Stopwatch([1000, 2000, 3000]), "window": Stopwatch([10_000, 30_000, 20_000])})
    assert result["times_the_step"] == {"window": 10.0}
    assert result["median_us"] == {"step": 2.0, "window": 20.0}
    assert result["calls"] == {"step": 3, "window": 3}


def test_the_real_pace_leaves_the_processor_idle_before_each_call(metrics: dict[str, Any]) -> None:
    pace = metrics["at_real_pace"]
    assert pace["idle_s"] == 0.01
    assert pace["calls"] == {"step": 5, "window": 5}
    models, data = tiny_models(), sessions((60,))
    started = time.perf_counter()
    paced(models.stream, models.tcn.run, data.signals[0], window=models.window, calls=4, gap_s=0.01)
    assert time.perf_counter() - started >= 8 * 0.01


def test_the_timeline_shows_what_had_been_emitted() -> None:
    data = sessions((600,))
    truth = data.labels[0]
    emitted_late = Replay(np.arange(1, 601), np.full(600, 1e-3), np.zeros(600), truth.astype(np.int64))
    offline = Replay(np.array([600]), np.array([0.5]), np.array([0.5]), truth.astype(np.int64))
    ones = np.ones(600, np.int64)
    shown = latency.timeline(
        [
            methods.Method("stream", "s", "", [emitted_late], np.full(600, 1e-3), ones),
            methods.Method("late", "o", "", [offline], np.array([0.5]), np.array([600])),
        ],
        data,
        span_s=3.0,
    )
    assert shown is not None
    assert shown["end_s"] - shown["start_s"] == pytest.approx(3.0)
    assert shown["changes_s"][1] - shown["changes_s"][0] == pytest.approx(1.2)
    assert shown["shown"]["late"] == [[shown["start_s"], shown["end_s"], -1]]
    assert [len(values) for values in shown["channels"].values()] == [150, 150, 150]
    changed = [band[0] for band in shown["truth"][1:]]
    seen = [band[0] for band in shown["shown"]["stream"][1:]]
    np.testing.assert_allclose(np.subtract(seen, changed), 1 / RATE_HZ)  # the next moment on the grid of samples


def test_no_timeline_without_two_changes_that_were_found() -> None:
    data = sessions((100,))
    replay, _ = replay_stream(tiny_models().stream, data.signals[0])
    method = methods.Method("stream", "s", "", [replay], replay.compute_s, replay.samples_per_call)
    assert latency.timeline([method], data) is None


def test_a_model_without_a_bound_has_no_window() -> None:
    models = tiny_models()
    d = models.stream.description
    assert d.output.timing is not None
    timing = replace(d.output.timing, receptive_field=(None, 0))
    endless = replace(d, outputs=(replace(d.output, timing=timing),))
    with pytest.raises(ConfigError, match="finite receptive field"):
        _ = replace(models, stream=runtime.Model(Source(b"", endless, None), None, None)).window
