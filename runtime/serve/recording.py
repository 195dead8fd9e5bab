"""The recordings that the live page replays: a CSV file, or a signal that is made up for any model."""

from __future__ import annotations

import csv
import os
from dataclasses import dataclass

import numpy as np

from edgeseq.errors import ConfigError, NonFiniteError
from edgeseq.model_file import Port
from edgeseq.runtime.inputs import Array

LONGEST = 60_000
"""Samples of a replay, 20 minutes at 50 Hz: all of it, and all predictions, are held in memory."""

ASIDE = ("stream_id", "timestamp_s", "sequence")
"""Columns of a feed's CSV that are no channels."""

_BOUT_S = 2.5


@dataclass(frozen=True, eq=False)
class Recording:
    """Samples (T, C), in the order in which they were taken, with a name for the page."""

    name: str
    samples: Array


def check_port(port: Port, n_inputs: int) -> None:
    """The page shows models of one input of several channels of numbers.

    Raises:
        ConfigError: it is another one.
    """
    if n_inputs != 1 or len(port.shape) != 1 or not port.dtype.startswith("float"):
        raise ConfigError(
            f"the live page replays models of one input of shape (C,) of floats; this one has {n_inputs}, the first "
            f"of which is {port.dtype} {port.shape}"
        )


def read_csv(path: str | os.PathLike[str], port: Port) -> Recording:
    """A CSV file with a header. Channels are found by the model's names, else all columns are taken in their order.

    Raises:
        ConfigError: it is not readable as that.
        NonFiniteError: a value is NaN or infinite.
    """
    where = f"replay {os.fspath(path)!r}"
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file)
            header = next(lines, [])
            columns = _columns(where, header, port)
            rows = [_row(where, lines.line_num, cells, columns) for cells in lines if cells]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{where}: expected a CSV file in UTF-8 ({error})") from error
    if not 0 < len(rows) <= LONGEST:
        raise ConfigError(f"{where}: expected 1 to {LONGEST} samples, got {len(rows)}")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, which is refused by that name
        samples = np.array(rows, port.dtype)
    if not np.isfinite(samples).all():
        first = int(np.argmin(np.isfinite(samples).all(axis=1)))
        raise NonFiniteError(f"{where}: sample {first} holds NaN or infinity; leave it out or mend it")
    return Recording(os.path.basename(path), samples)


def _columns(where: str, header: list[str], port: Port) -> list[int]:
    header = [name.strip() for name in header]
    if port.names is not None and set(port.names) <= set(header):
        return [header.index(name) for name in port.names]
    columns = [i for i, name in enumerate(header) if name not in ASIDE]
    if len(columns) != port.shape[0]:
        wanted = f"the columns {list(port.names)}" if port.names else f"{port.shape[0]} columns of channels"
        raise ConfigError(f"{where}: expected {wanted} in the header, got {header}")
    return columns


def _row(where: str, line: int, cells: list[str], columns: list[int]) -> list[float]:
    try:
        return [float(cells[i]) for i in columns]
    except (ValueError, IndexError) as error:
        raise ConfigError(f"{where}, line {line}: expected a number in each channel ({error})") from error


def made_up(port: Port, rate_hz: float, seconds: float = 30.0) -> Recording:
    """Rest and motion in turns, with noise: not a sensor's signal, but one that any model takes. Always the same.

    Shapes: (seconds · rate, C)
    """
    rng = np.random.default_rng(7)
    n, n_channels = max(1, min(LONGEST, round(seconds * rate_hz))), port.shape[0]
    t = np.arange(n)[:, None] / rate_hz
    knots = np.arange(0, seconds + _BOUT_S, _BOUT_S)
    moves = np.interp(t, knots, rng.choice([0.0, 0.3, 1.0], size=len(knots)))
    waves = np.sin(2 * np.pi * (rng.uniform(0.4, 2.0, n_channels) * t + rng.uniform(0, 1, n_channels)))
    signal = moves * waves + rng.normal(scale=0.05, size=(n, n_channels))
    return Recording("made-up signal", signal.astype(port.dtype))
