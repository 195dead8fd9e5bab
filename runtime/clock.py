"""The sensor clock: what a user chooses about gaps, late samples, missing values, rates and jumps. It never guesses.

A ``SensorClock`` is immutable and shared by all streams, as a ``Model`` is; the state of one stream is a
``ClockState``, which ``ClockEngine`` moves. Every default refuses: a gap, a missing value and a jump raise, nothing is
reordered and nothing is resampled. No I/O and no wall clock: time comes with the samples. ``docs/clock.md`` draws each
policy.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edgeseq.errors import ConfigError

Order = Literal["sequence", "timestamp", "arrival"]

GAP_POLICIES = ("raise", "hold", "interpolate", "reset")
MISSING_POLICIES = ("reject", "hold", "interpolate")
JUMP_POLICIES = ("raise", "reset", "rebase")
RESAMPLING = ("linear", "nearest")
ORDERS = ("sequence", "timestamp", "arrival")


@dataclass(frozen=True, kw_only=True)
class SensorClock:
    """How what arrives becomes the even sequence of samples that the model takes.

    A sample's place is its sequence number, or else its timestamp, or else its arrival; ``order_by`` says which, and
    without it, what the first sample of a stream carries. Timestamps may jitter: those within a quarter of a period of
    an even grid find their places, and slow drift is followed.

    Attributes:
        rate_hz: samples per second that the model takes.
        gap: what stands in for samples that did not come: "hold" repeats the last one, "interpolate" draws a line to
            the next one, "reset" ends the sequence and starts the model anew, "raise" refuses the sample after the gap.
        missing: what stands in for NaN, None and left-out channels: "reject" refuses the sample, "hold" repeats the
            channel's last value, "interpolate" waits for its next one and draws a line.
        jump: what a sample does whose place is more than ``jump_s`` off: "reset", "raise", or "rebase", which takes it
            as the next sample.
        grace_s: how long a sample is waited for once a later one came. Samples wait meanwhile; without a hole, none
            does, but for the first ``grace_s`` of a stream.
        jump_s: the longest gap that is filled, and the longest wait for a missing channel.
        sensor_hz: the sensor's rate, if it is not the model's; then ``resample`` is needed, and timestamps.
        resample: "linear" or "nearest", at the even times after the stream's first sample. None passes samples as they
            are.
        order_by: "sequence", "timestamp" or "arrival".
        sequence_modulus: where sequence numbers start again at 0, 65536 for 16 bits; None for never.

    Raises:
        ConfigError: a value out of its range, or settings that do not fit together.

    Example:
        >>> clock = SensorClock(rate_hz=50, gap="interpolate", grace_s=0.1)
        >>> clock.grace, clock.longest_gap
        (5, 250)
        >>> SensorClock(rate_hz=50, gap="guess")
        Traceback (most recent call last):
        edgeseq.errors.ConfigError: clock: expected gap, one of ('raise', 'hold', 'interpolate', 'reset'), got 'guess'
    """

    rate_hz: float
    gap: str = "raise"
    missing: str = "reject"
    jump: str = "raise"
    grace_s: float = 0.0
    jump_s: float = 5.0
    sensor_hz: float | None = None
    resample: str | None = None
    order_by: Order | None = None
    sequence_modulus: int | None = None

    def __post_init__(self) -> None:
        for name, choices in (("gap", GAP_POLICIES), ("missing", MISSING_POLICIES), ("jump", JUMP_POLICIES)):
            _one_of(name, getattr(self, name), choices)
        _one_of("resample", self.resample, (None, *RESAMPLING))
        _one_of("order_by", self.order_by, (None, *ORDERS))
        for name in ("rate_hz", "jump_s", "sensor_hz"):
            value = getattr(self, name)
            if not (_is_number(value) and value > 0) and not (name == "sensor_hz" and value is None):
                raise ConfigError(f"clock: expected {name}, a number above 0, got {value!r}")
        if not (_is_number(self.grace_s) and self.grace_s >= 0):
            raise ConfigError(f"clock: expected grace_s, seconds of 0 or more, got {self.grace_s!r}")
        if self.grace > self.longest_gap:
            raise ConfigError(
                f"clock: expected a grace_s of up to jump_s, {self.jump_s} s, got {self.grace_s} s; make jump_s longer"
            )
        if self.sensor_hz not in (None, self.rate_hz) and self.resample is None:
            raise ConfigError(
                f"clock: a sensor of {self.sensor_hz} Hz and a model of {self.rate_hz} Hz need resampling; "
                "choose resample='linear' or 'nearest'"
            )
        if self.resample is not None and self.order_by == "arrival":
            raise ConfigError("clock: resampling needs timestamps; order_by='arrival' leaves them out")
        modulus = self.sequence_modulus
        if modulus is not None and not (type(modulus) is int and modulus > 2 * (self.longest_gap + 1)):
            raise ConfigError(
                f"clock: expected a sequence_modulus, a whole number above {2 * (self.longest_gap + 1)}, twice what "
                f"jump_s allows, got {modulus!r}; make jump_s shorter"
            )

    @property
    def source_hz(self) -> float:
        """The sensor's rate."""
        return self.rate_hz if self.sensor_hz is None else self.sensor_hz

    @property
    def grace(self) -> int:
        """How many samples of the sensor a hole is waited for."""
        return _samples(self.grace_s, self.source_hz)

    @property
    def longest_gap(self) -> int:
        """How many samples of the sensor may be missing before it is a jump."""
        return max(1, _samples(self.jump_s, self.source_hz))

    @property
    def resampling_delay_s(self) -> float:
        """How much later than its own time a tick can come: one period of the sensor, of an even clock; else 0."""
        return 0.0 if self.resample is None else 1 / self.source_hz

    def to_dict(self) -> dict[str, Any]:
        """The settings by name."""
        return asdict(self)


def clock_for(name: str, rate_hz: float | None, clock: SensorClock | None) -> SensorClock:
    """The clock of a feed of this model, or one that refuses what is not even, at the model's rate.

    Raises:
        ConfigError: the model's rate is not the clock's, or nobody knows the rate.
    """
    if clock is None:
        if rate_hz is None:
            raise ConfigError(f"feeder: the model {name!r} does not say its rate; give clock=SensorClock(rate_hz=...)")
        return SensorClock(rate_hz=rate_hz)
    if rate_hz is not None and rate_hz != clock.rate_hz:
        raise ConfigError(
            f"feeder: the model {name!r} takes {rate_hz} Hz, the clock gives {clock.rate_hz} Hz; resample with "
            f"SensorClock(rate_hz={rate_hz}, sensor_hz={clock.rate_hz}, resample='linear')"
        )
    return clock


def _samples(seconds: float, rate_hz: float) -> int:
    return math.floor(seconds * rate_hz * (1 + 1e-12) + 1e-9)  # 0.1 s at 50 Hz are 5 samples, whatever rounding says


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _one_of(name: str, value: object, choices: Container[object]) -> None:
    if value not in choices:
        raise ConfigError(f"clock: expected {name}, one of {choices}, got {value!r}")
