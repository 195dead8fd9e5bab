"""What a feed counts: every sample that was sent is in one of five counts, whatever happens to it."""

from __future__ import annotations

from collections.abc import Iterator

from edgeseq.errors import ConfigError

HELP = {
    "received": "samples that were sent",
    "used": "samples that the model took",
    "late": "samples dropped, since they came after the grace",
    "duplicates": "samples dropped, since their place was taken",
    "rejected": "samples refused by an error, and incomplete ones with nothing to hold",
    "reordered": "samples that came after a later one, and were used in their place",
    "gaps": "runs of samples that did not come in time",
    "filled": "samples that were made up in gaps",
    "repaired": "samples with missing values that were filled in",
    "jumps": "jumps of the clock",
    "resets": "times that the model started anew, within a feed",
    "ticks": "samples that went into the model, those of gaps and of resampling included",
    "predictions": "predictions that came out",
}
"""The names of the counts, and what each counts."""

NAMES = tuple(HELP)


class Counters:
    """Named counts. received = used + late + duplicates + rejected + what still waits in the clock.

    Example:
        >>> counts = Counters(received=3, used=2, late=1)
        >>> print(counts)
        received 3, used 2, late 1
        >>> print((counts + counts).prometheus("edgeseq_feed"))
        # HELP edgeseq_feed_received_total samples that were sent
        # TYPE edgeseq_feed_received_total counter
        edgeseq_feed_received_total 6
        ...
    """

    __slots__ = NAMES

    received: int
    used: int
    late: int
    duplicates: int
    rejected: int
    reordered: int
    gaps: int
    filled: int
    repaired: int
    jumps: int
    resets: int
    ticks: int
    predictions: int

    def __init__(self, **counts: int) -> None:
        unknown = sorted(set(counts) - set(NAMES))
        if unknown:
            raise ConfigError(f"counters: expected names among {list(NAMES)}, got {unknown}")
        for name in NAMES:
            setattr(self, name, counts.get(name, 0))

    def copy(self) -> Counters:
        """The same counts, apart."""
        new = Counters.__new__(Counters)
        for name in NAMES:
            setattr(new, name, getattr(self, name))
        return new

    def add(self, other: Counters) -> None:
        """Add another's counts to these."""
        for name in NAMES:
            setattr(self, name, getattr(self, name) + getattr(other, name))

    def as_dict(self) -> dict[str, int]:
        """All counts by name."""
        return dict(self)

    def prometheus(self, prefix: str = "edgeseq_feed") -> str:
        """The counts in Prometheus' text format, each line ended."""
        lines = []
        for name, value in self:
            metric = f"{prefix}_{name}_total"
            lines += [f"# HELP {metric} {HELP[name]}", f"# TYPE {metric} counter", f"{metric} {value}"]
        return "\n".join(lines) + "\n"

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return ((name, getattr(self, name)) for name in NAMES)

    def __add__(self, other: Counters) -> Counters:
        total = self.copy()
        total.add(other)
        return total

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Counters) and dict(self) == dict(other)

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in self if value) or "nothing"

    def __repr__(self) -> str:
        return f"Counters({', '.join(f'{name}={value}' for name, value in self if value)})"
