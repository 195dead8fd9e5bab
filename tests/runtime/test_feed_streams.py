"""Many streams at once, on a pool or on streams of their own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseq import runtime as rt
from edgeseq.errors import InputError, ShapeError
from edgeseq.runtime.feed_streams import ModelStreams
from tests.runtime.feed_models import adds_up, files, messy, said, streaming
from tests.runtime.test_feeder import tiny_samples

TINY = rt.load("tests/data/tiny.stream.onnx")


class TogetherStreams(ModelStreams):
    """As a pool: all of a call's streams move, or none."""

    def step(self, samples: Any) -> dict[str, Any]:
        before = {stream_id: self.snapshot(stream_id) for stream_id in samples}
        try:
            return {key: ModelStreams.step(self, {key: x})[key] for key, x in samples.items()}
        except InputError:
            for stream_id, snapshot in before.items():
                self.open(stream_id, snapshot=snapshot)
            raise


@pytest.mark.parametrize("name", ["tokens", "ports", "lookahead"])
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 60))
def test_many_at_once_on_a_pool_give_what_each_alone_gives(name: str, seed: int, n: int) -> None:
    model = rt.load(files(name)[0], fast=False)  # one form, whenever a snapshot is taken
    clock = rt.SensorClock(rate_hz=50, gap="hold", missing="reject", jump="reset", grace_s=0.06)
    sent = messy(model, n, seed, 4)
    if name == "tokens":
        sent = [replace(s, values=99) if i % 7 == 3 else s for i, s in enumerate(sent)]
    alone, together = rt.Feeder(model, clock), rt.Feeder(model, clock, pool=TogetherStreams(model))
    refused: list[list[str]] = [[], []]
    out = [p for s in sent for p in alone.feed_many([s], on_error=lambda s, _: refused[0].append(s.stream_id))]
    out_many = together.feed_many(sent, on_error=lambda s, _: refused[1].append(s.stream_id))
    for stream_id in alone.ids:
        for feeder, taken, errors in ((alone, out, refused[0]), (together, out_many, refused[1])):
            try:
                taken.extend(feeder.flush(stream_id))
            except InputError:  # a token that waited
                errors.append(stream_id)
                taken.extend(feeder.drain(stream_id))
    for stream_id in alone.ids:
        one, many = ([p for p in each if p.stream_id == stream_id] for each in (out, out_many))
        assert said(many) == said(one)
    assert sorted(refused[0]) == sorted(refused[1])
    assert alone.counters == together.counters
    adds_up(together)


def test_an_error_among_many_leaves_what_came_before_for_the_next_call() -> None:
    x = tiny_samples(4)
    feeder = rt.Feeder(TINY)
    sent = [rt.Sample("a", x[0]), rt.Sample("b", x[1]), rt.Sample("a", [1]), rt.Sample("b", x[2])]
    with pytest.raises(ShapeError):
        feeder.feed_many(sent)
    assert [(p.stream_id, p.index) for p in feeder.feed_many([rt.Sample("a", x[3])])] == [("a", 0), ("a", 1)]
    assert [p.index for p in feeder.drain("b")] == [0]
    assert feeder.counters.received == 4


@pytest.mark.parametrize("name", ["tokens", "ports", "lookahead", "strided, ahead", "several rows", "mean"])
def test_on_a_pool_a_feed_is_what_it_is_on_streams(name: str) -> None:
    model = streaming(name)
    clock = rt.SensorClock(rate_hz=50, gap="hold", missing="reject", jump="reset", grace_s=0.06)
    sent = messy(model, 120, 0, 6)
    alone, first, second = (rt.Feeder(model, clock, pool=p) for p in (None, model.pool(100), model.pool(100)))
    out = [p for s in sent for p in alone.feed_many([s], on_error=lambda *_: None)]
    pooled = first.feed_many(sent[:60], on_error=lambda *_: None)
    for stream_id in first.ids:
        second.restore(stream_id, first.snapshot(stream_id))
    pooled += second.feed_many(sent[60:], on_error=lambda *_: None)
    for stream_id in alone.ids:
        out += alone.flush(stream_id)
        pooled += second.flush(stream_id)
        ours, theirs = ([p for p in each if p.stream_id == stream_id] for each in (out, pooled))
        facts = [[(p.output_name, p.index, p.sample, p.time_s, p.after_gap) for p in each] for each in (ours, theirs)]
        assert facts[0] == facts[1]
        for p, q in zip(ours, theirs, strict=True):  # a pool may multiply in another order
            np.testing.assert_allclose(p.output, q.output, atol=1e-5)
        second.close(stream_id)
    assert second.counters.used == alone.counters.used
