"""What a server counts, as Prometheus text."""

from __future__ import annotations

from collections import Counter

METRICS = {
    "connections_total": ("counter", "Connections that were opened, by kind."),
    "connections": ("gauge", "Connections that are open, by kind."),
    "streams": ("gauge", "Streams that are open."),
    "frames_total": ("counter", "Frames that were answered, by type of request."),
    "samples_total": ("counter", "Samples that streams took."),
    "rows_total": ("counter", "Predictions that were given."),
    "errors_total": ("counter", "Requests that were refused, by the error's name."),
    "malformed_total": ("counter", "Malformed frames, by what is wrong with them."),
    "refused_total": ("counter", "Connections and HTTP requests that were refused, by reason."),
    "slow_clients_total": ("counter", "Connections that were ended since the client did not read."),
    "dropped_updates_total": ("counter", "Updates of the live page that a slow viewer missed."),
    "expired_streams_total": ("counter", "Kept streams that were closed since nobody came back."),
}
"""Every metric, after ``edgeseq_serve_``, with its type and help."""


class Counters:
    """Numbers by metric and label.

    Example:
        >>> counters = Counters()
        >>> counters.add("errors_total", "ShapeError")
        >>> counters["errors_total", "ShapeError"], counters["errors_total", "DTypeError"]
        (1, 0)
        >>> print(*[line for line in counters.prometheus().splitlines() if "errors" in line], sep="\\n")
        # HELP edgeseq_serve_errors_total Requests that were refused, by the error's name.
        # TYPE edgeseq_serve_errors_total counter
        edgeseq_serve_errors_total{kind="ShapeError"} 1
    """

    def __init__(self) -> None:
        self._numbers: Counter[tuple[str, str]] = Counter()

    def add(self, metric: str, kind: str = "", n: int = 1) -> None:
        """Count; ``kind`` is of our own choice, never a client's text, so there are few."""
        assert metric in METRICS
        self._numbers[metric, kind] += n

    def total(self, metric: str) -> int:
        """The sum over all kinds."""
        return sum(n for (name, _), n in self._numbers.items() if name == metric)

    def __getitem__(self, key: tuple[str, str]) -> int:
        return self._numbers[key]

    def prometheus(self) -> str:
        """All of it as text."""
        lines = []
        for name, (type_, told) in METRICS.items():
            lines += [f"# HELP edgeseq_serve_{name} {told}", f"# TYPE edgeseq_serve_{name} {type_}"]
            found = sorted((label, n) for (metric, label), n in self._numbers.items() if metric == name)
            lines += [f"edgeseq_serve_{name}{_label(kind)} {n}" for kind, n in found or [("", 0)]]
        return "\n".join(lines) + "\n"


def _label(kind: str) -> str:
    return f'{{kind="{kind}"}}' if kind else ""
