from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgeseq import runtime as rt
from edgeseq.errors import ConfigError
from edgeseq.runtime.serve.recording import Recording
from edgeseq.runtime.serve.replay import Replay
from tests.runtime.serve.serving import OFFLINE, TINY, noise

BILSTM = Path("tests/data/tiny_bilstm.onnx")


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_tracks_are_the_rows_of_their_models(steps: int) -> None:
    x = noise(40)
    replay = Replay(rt.load(TINY), Recording("noise", x), lookahead=rt.load(TINY), offline=rt.load_offline(OFFLINE))
    while replay.advance(steps):
        assert len(replay.tracks["causal"].rows) == replay.position
        assert not replay.tracks["offline"].rows
        assert replay.agreement() == {}
    assert replay.latency.count == 40
    replay.finish(replay.run_offline())
    expected = rt.load_offline(OFFLINE).run(x)
    for track in replay.tracks.values():
        assert track.samples == list(range(40))
        np.testing.assert_allclose(np.stack(track.rows), expected, atol=1e-5)
    for name in ("causal", "lookahead"):
        told = replay.agreement()[name]
        assert told["same_label"] == 1.0
        assert told["largest_difference"] < 1e-5


def test_a_replay_that_is_stopped_is_judged_by_what_there_was() -> None:
    x = noise(40)
    replay = Replay(rt.load(TINY), Recording("noise", x), offline=rt.load_offline(BILSTM))
    assert replay.advance(25) == 25
    replay.finish(replay.run_offline())
    expected = rt.load_offline(BILSTM).run(x[:25])
    np.testing.assert_array_equal(np.stack(replay.tracks["offline"].rows), expected)
    causal = np.stack(replay.tracks["causal"].rows)
    told = replay.agreement()["causal"]
    assert told["same_label"] == float((causal.argmax(1) == expected.argmax(1)).mean())
    assert told["largest_difference"] == float(np.abs(causal - expected).max())


def test_a_replay_that_never_began_ends() -> None:
    replay = Replay(rt.load(TINY), Recording("noise", noise(4)), offline=rt.load_offline(OFFLINE))
    replay.finish(replay.run_offline())
    assert replay.has_ended
    assert replay.agreement() == {}


def test_models_that_do_not_fit_together_are_refused() -> None:
    other = rt.load_offline(OFFLINE)
    (output,) = other.description.outputs
    other._description = replace(other.description, outputs=(replace(output, names=("move", "rest")),))
    with pytest.raises(ConfigError, match=r"--offline .* expected a model of the input"):
        Replay(rt.load(TINY), Recording("noise", noise(4)), offline=other)
