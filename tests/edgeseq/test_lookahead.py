"""The part of a model file that says how layers that run backwards are approximated."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from edgeseq.lookahead import Lookahead, LookaheadLayer, read_lookahead


def test_it_is_read_as_it_was_written() -> None:
    given = Lookahead(16, 8, (LookaheadLayer("a", 0), LookaheadLayer("b", 16, reversed_input=True)))
    assert read_lookahead(json.loads(json.dumps(asdict(given)))) == given


@pytest.mark.parametrize(("delays", "total"), [([0], 12), ([0, 5], 17), ([2, 7, 12], 24)])
def test_the_delays_of_layers_add_up(delays: list[int], total: int) -> None:
    layers = tuple(LookaheadLayer(f"layer_{i}", delay) for i, delay in enumerate(delays))
    assert Lookahead(5, 8, layers).total == total


def test_what_is_missing_or_unknown_is_no_lookahead() -> None:
    with pytest.raises(KeyError):
        read_lookahead({"steps": 3, "chunk": 2})
    with pytest.raises(TypeError):
        read_lookahead({"steps": 3, "chunk": 2, "layers": [{"node": "a", "delay": 1, "more": 2}]})
