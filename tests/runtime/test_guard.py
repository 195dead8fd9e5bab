"""One call at a time: other threads are refused, and whatever ends a call frees the guard."""

from __future__ import annotations

import dis
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from types import FrameType
from typing import Any

import numpy as np
import pytest

from edgeseq import runtime as rt
from edgeseq.runtime.guard import Guard

MODEL, PLAIN = rt.load("tests/data/tiny.stream.onnx"), rt.load("tests/data/tiny.stream.onnx", fast=False)
CALLS: dict[str, Callable[[rt.Stream], Any]] = {
    "step": lambda stream: stream.step(np.ones(3, np.float32)),
    "push": lambda stream: stream.push(np.ones((40, 3), np.float32)),
    "flush": lambda stream: stream.flush(),
    "reset": lambda stream: stream.reset(),
    "snapshot": lambda stream: stream.snapshot(),
}


def samples(length: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(length, 3)).astype(np.float32)


@contextmanager
def under_way(stream: rt.Stream, inside: tuple[Any, str], call: Callable[[], Any]) -> Iterator[list[Any]]:
    """A call of this stream, in another thread, that is held at a method on its way; what it returned, at the end."""
    entered, let_go = threading.Event(), threading.Event()
    owner, name = inside
    method, given = getattr(owner, name), []

    def held(*args: Any) -> Any:
        entered.set()
        assert let_go.wait(20)
        return method(*args)

    setattr(owner, name, held)
    thread = threading.Thread(target=lambda: given.append(call()))
    thread.start()
    try:
        assert entered.wait(20)
        yield given
    finally:
        let_go.set()
        thread.join(20)
        setattr(owner, name, method)
    assert len(given) == 1


@pytest.mark.parametrize("other", CALLS)
@pytest.mark.parametrize(
    ("model", "first", "size"), [(MODEL, "step", 1), (MODEL, "push", 2), (PLAIN, "step", 1), (PLAIN, "push", 40)]
)
def test_a_stream_in_use_refuses_every_other_thread(model: rt.Model, first: str, size: int, other: str) -> None:
    x = samples(60)
    stream, alone = model.stream("pump-7"), model.stream()
    for sample in x[:2]:
        np.testing.assert_array_equal(stream.step(sample), alone.step(sample))
    given = x[2] if first == "step" else x[2 : 2 + size]
    inside = (stream._rings, "_run") if model is MODEL else (stream._graph, "step" if first == "step" else "chunk")
    with under_way(stream, inside, lambda: getattr(stream, first)(given)) as returned:
        for _ in range(3):
            with pytest.raises(rt.StreamBusyError, match=r"stream 'pump-7', sample 2: .*put a lock around it"):
                CALLS[other](stream)
    np.testing.assert_array_equal(returned[0], getattr(alone, first)(given))
    assert stream.snapshot() == alone.snapshot()
    for sample in x[42:]:
        np.testing.assert_array_equal(stream.step(sample), alone.step(sample))
    assert stream.latency.count == alone.latency.count


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, SystemExit])
def test_whatever_ends_a_call_frees_the_stream(error: type[BaseException], monkeypatch: pytest.MonkeyPatch) -> None:
    stream, alone = MODEL.stream(), MODEL.stream()
    for sample in samples(12):
        with monkeypatch.context() as patch:

            def fail(*_: Any, **__: Any) -> Any:
                raise error

            patch.setattr(stream, "_call_once", fail)
            patch.setattr(stream, "_advance", fail)
            for call in ("step", "push"):
                with pytest.raises(error):
                    CALLS[call](stream)
        np.testing.assert_array_equal(stream.step(sample), alone.step(sample))


def test_a_refused_call_does_not_free_the_guard() -> None:
    guard = Guard()

    def nested() -> None:
        for _ in range(3):
            with pytest.raises(rt.StreamBusyError):
                guard.run("me", abs, -1)

    guard.run("me", nested)
    assert guard.run("me", abs, -1) == 1


def test_an_interrupt_at_any_moment_frees_the_guard() -> None:
    # Python delivers signals where a function begins, and behind each call.
    code = list(dis.get_instructions(Guard.run))
    moments = [
        following.offset
        for before, following in pairwise(code)
        if before.opname in {"RESUME", "CALL", "CALL_FUNCTION_EX", "CALL_KW"}
    ]
    assert len(moments) > 4
    interrupted = 0
    for moment in moments:

        def trace(frame: FrameType, event: str, _: Any, moment: int = moment) -> Any:
            if frame.f_code is not Guard.run.__code__:
                return None
            frame.f_trace_opcodes = True
            if event == "opcode" and frame.f_lasti == moment:
                raise KeyboardInterrupt
            return trace

        guard = Guard()
        sys.settrace(trace)
        try:
            guard.run("me", abs, -1)
        except KeyboardInterrupt:
            interrupted += 1
        finally:
            sys.settrace(None)
        assert guard.run("me", abs, -1) == 1
    assert interrupted > 3


@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timers here")
@pytest.mark.parametrize("model", [MODEL, PLAIN], ids=["fast", "plain"])
def test_a_call_that_a_signal_interrupts_has_happened_or_not(
    model: rt.Model,
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    rng, x = np.random.default_rng(0), samples(600)
    stream, alone = model.stream(), model.stream()
    seen = {True: 0, False: 0}
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for i in range(400):
            size, start = int(rng.choice([1, 1, 2, 40])), i
            call = ("step", x[start]) if size == 1 else ("push", x[start : start + size])
            position = stream.position
            delay_s = float(rng.uniform(5e-6, 120e-6))
            try:
                signal.setitimer(signal.ITIMER_REAL, delay_s)
                getattr(stream, call[0])(call[1])
                time.sleep(0.05)  # the signal comes here at the latest
            except KeyboardInterrupt:
                pass
            happened = stream.position > position
            seen[happened] += 1
            if happened:
                getattr(alone, call[0])(call[1])
            assert stream.position == alone.position
            assert stream.snapshot() == alone.snapshot()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert min(seen.values()) > 0, seen


@pytest.mark.parametrize("model", [MODEL, PLAIN], ids=["fast", "plain"])
def test_two_threads_on_streams_of_one_model_give_what_one_gives(model: rt.Model) -> None:
    signals = [samples(3000, seed) for seed in range(2)]

    def run(x: Any) -> Any:
        stream = model.stream()
        parts = [stream.push(x[:100]), *[stream.step(sample)[None] for sample in x[100:2900]], stream.push(x[2900:])]
        return np.concatenate(parts), stream.snapshot()

    expected = [run(x) for x in signals]
    got: dict[int, Any] = {}
    threads = [threading.Thread(target=lambda i=i, x=x: got.update({i: run(x)})) for i, x in enumerate(signals)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    for i, (outputs, snapshot) in enumerate(expected):
        np.testing.assert_array_equal(got[i][0], outputs)
        assert got[i][1] == snapshot
