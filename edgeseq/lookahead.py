"""How a stream file approximates layers that run backwards, which a bounded lookahead alone lets stream.

A part of the model file, shared by the exporter and the runtime; ``docs/lookahead.md`` defines the algorithm. Needs the
standard library alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class LookaheadLayer:
    """One recurrent layer that runs backwards, or both ways, in blocks.

    ``node`` names its output in the offline graph, after clean-up. Its input comes ``delay`` rows late, so that its
    blocks end at the rows that are -``delay`` modulo the block. ``reversed_input``: the graph reverses time before it.
    """

    node: str
    delay: int
    reversed_input: bool = False


@dataclass(frozen=True)
class Lookahead:
    """How recurrent layers that run backwards are approximated.

    Whenever ``chunk`` more rows of its input have come, the backward half of each layer runs from the newest of them,
    with a zero state, back over ``chunk + steps`` rows, and gives the oldest ``chunk`` of these.

    Example:
        >>> Lookahead(16, 8, (LookaheadLayer("a", 0), LookaheadLayer("b", 16))).total
        39
    """

    steps: int
    chunk: int
    layers: tuple[LookaheadLayer, ...]

    @property
    def total(self) -> int:
        """Rows of delay of the last layer's slowest output."""
        return max(layer.delay for layer in self.layers) + self.steps + self.chunk - 1


def read_lookahead(raw: Mapping[str, Any]) -> Lookahead:
    """From the JSON object of the file.

    Raises:
        KeyError, TypeError: a field is missing or unknown.
    """
    return Lookahead(**{**raw, "layers": tuple(LookaheadLayer(**layer) for layer in raw["layers"])})


def check_lookahead(given: Lookahead, expect: Callable[..., None]) -> None:
    """Report each field of the wrong kind to ``expect``."""
    right = _is_count(given.steps) and _is_count(given.chunk) and given.chunk >= 1
    expect("lookahead", "steps >= 0 and chunk >= 1", (given.steps, given.chunk), right=right)
    expect("lookahead", "one layer at least", given.layers, right=bool(given.layers))
    for each in given.layers:
        right = isinstance(each.node, str) and _is_count(each.delay) and isinstance(each.reversed_input, bool)
        expect("lookahead", "layers of a name, a delay, and true or false", each, right=right)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0
