"""Snapshots of feeds: at any moment, and refused by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseq import runtime as rt
from edgeseq.errors import InputError, SnapshotError
from tests.runtime.feed_models import adds_up, messy, rows_fed, said, streaming

TINY = rt.load("tests/data/tiny.stream.onnx")


CLOCKS = [
    {"gap": "hold", "missing": "hold", "jump": "reset", "grace_s": 0.06},
    {"gap": "interpolate", "missing": "interpolate", "jump": "rebase", "grace_s": 0.02},
    {"gap": "reset", "missing": "interpolate", "jump": "raise", "grace_s": 0.06},
    {"gap": "interpolate", "missing": "hold", "jump": "reset", "resample": "linear", "sensor_hz": 40, "grace_s": 0.05},
    {"gap": "hold", "missing": "reject", "jump": "rebase", "resample": "nearest", "sensor_hz": 60, "grace_s": 0.05},
]
LABELS = (rt.ExponentialAverage(0.5), rt.Majority(3), rt.HoldRepeats(2), rt.HoldMargin(0.1))


@pytest.mark.parametrize("name", ["causal", "lookahead", "strided, ahead", "several rows", "mean", "ports"])
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 60), st.sampled_from(CLOCKS), st.data())
def test_snapshots_at_any_moment_change_nothing(
    name: str, seed: int, n: int, options: dict[str, Any], data: st.DataObject
) -> None:
    model = streaming(name)

    def make() -> rt.Feeder:
        return rt.Feeder(model, rt.SensorClock(rate_hz=50, **options), labels=LABELS if model.label_names else ())

    sent = messy(model, n, seed, 2)
    cuts = data.draw(st.sets(st.integers(0, len(sent)), max_size=3))
    undisturbed, disturbed, never = make(), make(), make()
    out, again = [], []
    errors: list[str] = []
    for i, sample in enumerate(sent):
        if i in cuts:
            fresh = make()
            for stream_id in disturbed.ids:
                snapshot = disturbed.snapshot(stream_id)
                fresh.restore(stream_id, snapshot)
                assert fresh.snapshot(stream_id) == snapshot == undisturbed.snapshot(stream_id)
            disturbed = fresh
        out += undisturbed.feed_many([sample], on_error=lambda _, error: errors.append(str(error)))
        again += disturbed.feed_many([sample], on_error=lambda _, error: errors.append(str(error)))
        adds_up(undisturbed)
    for stream_id in undisturbed.ids:
        out += undisturbed.flush(stream_id)
        again += disturbed.flush(stream_id)
    assert said(again) == said(out)
    assert len(errors) % 2 == 0
    plain = [p for sample in sent for p in never.feed_many([sample], on_error=lambda *_: None)]
    plain += [p for stream_id in never.ids for p in never.flush(stream_id)]
    facts = [
        [(p.stream_id, p.index, p.sample, p.time_s, p.warm_up, p.after_gap, p.label) for p in ps] for ps in (plain, out)
    ]
    assert facts[0] == facts[1]
    for p, q in zip(plain, out, strict=True):  # a snapshot may choose the form of the model that steps run on
        np.testing.assert_allclose(p.output, q.output, atol=1e-5)
    for stream_id in undisturbed.ids:
        rows_fed([p for p in out if p.stream_id == stream_id])
        assert undisturbed.counters_of(stream_id) == disturbed.counters_of(stream_id)


def test_a_snapshot_of_other_settings_or_another_model_is_refused() -> None:
    feeder = rt.Feeder(TINY, rt.SensorClock(rate_hz=50, gap="hold"))
    feeder.feed(rt.Sample("a", [1, 2, 3], sequence=0))
    snapshot = feeder.snapshot("a")
    with pytest.raises(InputError, match="not in use"):
        feeder.restore("a", snapshot)
    for other, match in (
        (rt.Feeder(TINY, rt.SensorClock(rate_hz=50, gap="interpolate")), "another clock or other labels"),
        (rt.Feeder(TINY, rt.SensorClock(rate_hz=50, gap="hold"), labels=[rt.Majority(3)]), "another clock or other"),
        (rt.Feeder(streaming("causal"), rt.SensorClock(rate_hz=50, gap="hold")), "not those of|of another model"),
    ):
        with pytest.raises(SnapshotError, match=match):
            other.restore("a", snapshot)
        assert "a" not in other
    fresh = rt.Feeder(TINY, rt.SensorClock(rate_hz=50, gap="hold"))
    with pytest.raises(SnapshotError, match="expected one of a feeder's stream"):
        fresh.restore("a", TINY.stream().snapshot())
    for broken in (snapshot[:-1], b"", bytes([*snapshot[:40], snapshot[40] ^ 1, *snapshot[41:]])):
        with pytest.raises(SnapshotError):
            fresh.restore("a", broken)
    fresh.restore("a", snapshot)
