"""Streams: the law, the edges, and that an error changes nothing."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from edgeseq import runtime as rt
from edgeseq.errors import InputError, StreamEndedError

Array = np.ndarray[Any, Any]
MODEL = rt.load("tests/data/tiny.stream.onnx")
OFFLINE = rt.load_offline("tests/data/tiny.onnx")
ATOL = 1e-5  # the project's promise for streamed against offline outputs


def signal(length: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(length, 3)).astype(np.float32)


def test_steps_equal_the_offline_model_from_the_first_sample() -> None:
    x = signal(40)
    stream = MODEL.stream()
    np.testing.assert_allclose(np.stack([stream.step(s) for s in x]), OFFLINE.run(x), atol=ATOL)
    assert stream.position == 40


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=10), st.integers(0, 99))
def test_any_chunking_equals_the_offline_model(sizes: list[int], seed: int) -> None:
    x = signal(sum(sizes), seed)
    stream = MODEL.stream()
    outputs = [stream.push(chunk) for chunk in np.split(x, np.cumsum(sizes)[:-1])]
    assert [len(y) for y in outputs] == sizes
    np.testing.assert_allclose(np.concatenate([*outputs, stream.flush()]), OFFLINE.run(x), atol=ATOL)


def test_a_chunk_longer_than_one_call_is_cut_and_joined() -> None:
    x = signal(1500)
    np.testing.assert_allclose(MODEL.stream().push(x), OFFLINE.run(x), atol=ATOL)


def test_nothing_due_is_an_empty_array() -> None:
    stream = MODEL.stream()
    assert stream.push(np.zeros((0, 3), np.float32)).shape == (0, 2)
    assert stream.flush().shape == stream.flush().shape == (0, 2)
    assert stream.flush().dtype == np.float32


def test_a_prediction_is_the_callers_own() -> None:
    stream, x = MODEL.stream(), signal(2)
    first = stream.step(x[0])
    kept = first.copy()
    stream.step(x[1])
    assert np.array_equal(first, kept)


def test_the_sample_buffer_may_be_reused_by_the_caller() -> None:
    x, buffer = signal(20), np.empty(3, np.float32)
    stream, outputs = MODEL.stream(), []
    for sample in x:
        buffer[:] = sample
        outputs.append(stream.step(buffer))
    np.testing.assert_allclose(np.stack(outputs), OFFLINE.run(x), atol=ATOL)


def test_reset_is_a_new_stream_bitwise() -> None:
    x = signal(15)
    stream = MODEL.stream()
    stream.push(signal(9, seed=1))
    stream.flush()
    stream.reset()
    assert stream.position == 0
    new = MODEL.stream()
    assert np.array_equal(np.stack([stream.step(s) for s in x]), np.stack([new.step(s) for s in x]))


def test_streams_of_one_model_do_not_touch() -> None:
    x, y = signal(12, 1), signal(12, 2)
    a, b = MODEL.stream("a"), MODEL.stream("b")
    pairs = [(a.step(s), b.step(t)) for s, t in zip(x, y, strict=True)]
    assert np.array_equal([p for p, _ in pairs], list(map(MODEL.stream().step, x)))
    assert np.array_equal([p for _, p in pairs], list(map(MODEL.stream().step, y)))


def test_streams_run_in_threads() -> None:
    results: dict[int, Array] = {}

    def work(seed: int) -> None:
        stream = MODEL.stream()
        results[seed] = np.stack([stream.step(s) for s in signal(300, seed)])

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, got in results.items():
        np.testing.assert_allclose(got, OFFLINE.run(signal(300, seed)), atol=ATOL)


def test_after_flush_a_stream_says_so() -> None:
    stream = MODEL.stream("pump-7")
    stream.step(signal(1)[0])
    stream.flush()
    with pytest.raises(
        StreamEndedError, match=r"stream 'pump-7', sample 1: the sequence was ended by flush\(\); call reset"
    ):
        stream.step(signal(1)[0])
    with pytest.raises(StreamEndedError):
        stream.push(signal(3))


def test_a_push_that_is_interrupted_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x, stream = signal(20), MODEL.stream()
    first = stream.push(x[:10])
    monkeypatch.setattr(stream, "_advance", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        stream.push(signal(7, seed=1))
    monkeypatch.undo()
    np.testing.assert_allclose(np.concatenate([first, stream.push(x[10:])]), OFFLINE.run(x), atol=ATOL)


def test_errors_name_the_stream_and_the_sample() -> None:
    stream = MODEL.stream("pump-7")
    stream.push(signal(812))
    with pytest.raises(InputError, match=r"stream 'pump-7', sample 812: expected float32 \(3,\), got float64 \(3,\)"):
        stream.step(np.zeros(3))


class Streaming(RuleBasedStateMachine):
    """Steps, chunks, bad input and resets in any order: always the offline model on what was accepted."""

    @initialize()
    def start(self) -> None:
        self.stream = MODEL.stream()
        self.taken: list[Array] = []
        self.given: list[Array] = []
        self.rng = np.random.default_rng(0)

    def samples(self, n: int) -> Array:
        return self.rng.normal(size=(n, 3)).astype(np.float32)

    @rule()
    def step(self) -> None:
        x = self.samples(1)
        self.given.append(self.stream.step(x[0])[None])
        self.taken.append(x)

    @rule(n=st.integers(0, 20))
    def push(self, n: int) -> None:
        x = self.samples(n)
        self.given.append(self.stream.push(x))
        self.taken.append(x)

    @rule(bad=st.sampled_from([np.zeros(3), np.zeros((2, 3)), np.zeros(5, np.float32), "x", np.full(3, np.nan, "f4")]))
    def bad_step(self, bad: Any) -> None:
        with pytest.raises(InputError):
            self.stream.step(bad)

    @rule(row=st.integers(0, 6))
    def bad_chunk(self, row: int) -> None:
        x = self.samples(7)
        x[row, 1] = np.inf
        with pytest.raises(InputError):
            self.stream.push(x)

    @rule()
    def reset(self) -> None:
        self.stream.reset()
        self.taken, self.given = [], []

    @invariant()
    def law(self) -> None:
        if getattr(self, "taken", None):
            x = np.concatenate(self.taken)
            np.testing.assert_allclose(np.concatenate(self.given), OFFLINE.run(x), atol=ATOL)
            assert self.stream.position == len(x)


Streaming.TestCase.settings = settings(max_examples=30, stateful_step_count=20, deadline=None)
TestStreaming = Streaming.TestCase


def test_calls_that_returned_are_timed() -> None:
    stream, x = MODEL.stream("a", budget_us=10**9), signal(9)
    for sample in x:
        stream.step(sample)
    stream.push(x)
    with pytest.raises(InputError):
        stream.step(x)
    with pytest.raises(InputError):
        stream.push(x[0])
    assert (stream.latency.count, stream.push_latency.count) == (9, 1)
    assert 0 < stream.latency.p50_us <= stream.latency.max_us
    assert stream.latency.deadline_misses == 0
    hurried = MODEL.stream("b", budget_us=0.001)
    hurried.step(x[0])
    hurried.push(x)
    assert hurried.latency.deadline_misses == hurried.push_latency.deadline_misses == 1


def test_latencies_are_no_part_of_the_state() -> None:
    stream, x = MODEL.stream(budget_us=1e-3), signal(9)
    new = stream.snapshot()
    for sample in x:
        stream.step(sample)
    assert MODEL.restore(stream.snapshot()).latency.count == 0
    stream.reset()
    assert stream.snapshot() == new
    assert stream.latency.count == stream.latency.deadline_misses == 9
