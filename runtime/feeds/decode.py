"""From the bytes of a frame to a sample: JSON, CSV, InfluxDB's line protocol and raw numbers, one class each.

A frame that holds no sample is a ``FrameError``, whose ``kind`` is the name that it is counted under. Numbers are left
as they came: whether they fit the model is the feeder's matter.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from edgeseq.errors import ConfigError, FrameError
from edgeseq.runtime.sample import Sample

KINDS = {
    "too_long": "longer than a frame may be",
    "not_utf8": "not UTF-8",
    "not_json": "not JSON",
    "not_csv": "not one line of CSV, or not as many columns as the header has",
    "not_influx": "not InfluxDB's line protocol",
    "not_a_sample": "JSON, but not an object or a list",
    "bad_field": "a field of a sample of the wrong type",
    "bad_number": "no number where one is due",
    "wrong_size": "not as many bytes as a sample has",
}
"""The names under which frames that hold no sample are counted."""

_LONGEST_ID = 1000

FACTS = ("stream_id", "timestamp_s", "sequence")
"""What a sample carries beside its values."""


class Decoder(Protocol):
    """Makes a sample of the bytes of a frame."""

    needs_header: bool

    def header(self, line: bytes, /) -> None:
        """Take the first line, of a format that has a header.

        Raises:
            FrameError: it is none.
        """

    def sample(self, data: bytes, where: str, stream_id: str, /) -> Sample | None:
        """The sample, None of an empty frame; ``stream_id`` is for a frame that does not say its own.

        Raises:
            FrameError: there is none in it.
        """


class JsonDecoder:
    """``{"stream_id": "pump-7", "sequence": 812, "timestamp_s": 12.5, "values": [0.1, 0.2]}``, or less.

    Only the values are needed: a list, or names of channels and numbers, under ``values`` or beside the others. A bare
    list is the values alone.

    Example:
        >>> decoder = JsonDecoder()
        >>> decoder.sample(b'{"x": 1, "y": 2.5, "sequence": 3}', "line 1", "wrist-7")
        Sample(stream_id='wrist-7', values={'x': 1, 'y': 2.5}, timestamp_s=None, sequence=3)
        >>> decoder.sample(b'{"x": 1', "line 2", "wrist-7")
        Traceback (most recent call last):
        edgeseq.errors.FrameError: line 2: expected JSON, got b'{"x": 1' (...
    """

    needs_header = False

    def header(self, _line: bytes, /) -> None:
        """There is none."""

    def sample(self, data: bytes, where: str, stream_id: str, /) -> Sample | None:
        """The sample in one JSON text."""
        if not data.strip():
            return None
        try:
            given = json.loads(_text(data, where).removeprefix("\ufeff"))  # of bytes, json would guess the encoding
        except (ValueError, RecursionError) as error:
            raise FrameError("not_json", f"{where}: expected JSON, got {_short(data)} ({error})") from error
        if isinstance(given, list):
            return Sample(stream_id, given)
        if not isinstance(given, dict):
            raise FrameError("not_a_sample", f"{where}: expected an object or a list of numbers, got {_short(data)}")
        values = given["values"] if "values" in given else {k: v for k, v in given.items() if k not in FACTS}
        return _sample(given, values, where, stream_id)


class CsvDecoder:
    """Lines under a header. ``stream_id``, ``timestamp_s`` and ``sequence`` are what they say, other columns channels.

    Args:
        columns: the header, where the lines have none.
        named: give the values by the names of their columns; else, for a model that does not name its channels, as a
            list in the order of the columns.

    Example:
        >>> decoder = CsvDecoder()
        >>> decoder.header(b"sequence,x,y")
        >>> decoder.sample(b"7,0.5,", "line 2", "wrist-7")
        Sample(stream_id='wrist-7', values={'x': 0.5, 'y': None}, timestamp_s=None, sequence=7)
    """

    def __init__(self, columns: Sequence[str] | None = None, *, named: bool = True) -> None:
        self.needs_header = columns is None
        self._named = named
        self._columns: list[str] = []
        if columns is not None:
            self._take(list(columns), "columns")

    def header(self, line: bytes, /) -> None:
        """Take the names of the columns."""
        self._take(_cells(line.removeprefix(b"\xef\xbb\xbf"), "the header"), "the header")

    def _take(self, columns: list[str], where: str) -> None:
        columns = [name.strip() for name in columns]
        if len(set(columns)) < len(columns) or not set(columns) - set(FACTS) or "" in columns:
            raise FrameError("not_csv", f"{where}: expected names of columns, each once, got {columns}")
        self._columns = columns

    def sample(self, data: bytes, where: str, stream_id: str, /) -> Sample | None:
        """The sample in one line."""
        if not data.strip():
            return None
        cells = _cells(data, where)
        if len(cells) != len(self._columns):
            raise FrameError(
                "not_csv", f"{where}: expected {len(self._columns)} columns, got {len(cells)} in {_short(data)}"
            )
        row = dict(zip(self._columns, cells, strict=True))
        facts: dict[str, Any] = {}
        for name in FACTS:
            if text := row.pop(name, "").strip():
                facts[name] = text if name == "stream_id" else _number(text, name, where)
        if isinstance(number := facts.get("sequence"), float) and number.is_integer():  # as spreadsheets write them
            facts["sequence"] = int(number)
        values = {name: _number(cell, name, where) if cell.strip() else None for name, cell in row.items()}
        if self._named:
            return _sample(facts, values, where, stream_id)
        numbers = list(values.values())
        return _sample(facts, numbers, where, stream_id)


class InfluxDecoder:
    """InfluxDB's line protocol, as Telegraf speaks it: ``imu,stream_id=wrist-7 x=0.1,y=0.2,sequence=7i 1500000000``.

    Fields are channels, but ``sequence``; the tag ``stream_id`` names the sensor, else the measurement does. The
    timestamp is in nanoseconds.

    Example:
        >>> InfluxDecoder().sample(b"imu,stream_id=wrist-7 x=0.1,y=2i,sequence=7i 1500000000", "line 1", "")
        Sample(stream_id='wrist-7', values={'x': 0.1, 'y': 2}, timestamp_s=1.5, sequence=7)

    Source: https://docs.influxdata.com/influxdb/v2/reference/syntax/line-protocol/
    """

    needs_header = False

    def header(self, _line: bytes, /) -> None:
        """There is none."""

    def sample(self, data: bytes, where: str, stream_id: str, /) -> Sample | None:
        """The sample in one line."""
        text = _text(data, where).strip()
        if not text or text.startswith("#"):
            return None
        parts = _split(text, " ")
        if len(parts) not in (2, 3):
            raise FrameError("not_influx", f"{where}: expected MEASUREMENT,TAGS FIELDS TIME, got {_short(data)}")
        measurement, *tags = _split(parts[0], ",")
        named = _pairs(tags, where)
        facts: dict[str, Any] = {"stream_id": named.get("stream_id", _plain(measurement) or stream_id)}
        fields: dict[str, Any] = {
            n: _influx_number(x, n, where) for n, x in _pairs(_split(parts[1], ","), where).items()
        }
        if "sequence" in fields:
            facts["sequence"] = fields.pop("sequence")
        if len(parts) == 3:
            nanoseconds = _number(parts[2], "the timestamp", where)
            facts["timestamp_s"] = nanoseconds / 1e9
        return _sample(facts, fields, where, stream_id)


class RawDecoder:
    """The numbers alone, little-endian, of one dtype: what a microcontroller sends with one write.

    Example:
        >>> RawDecoder("<f4").sample(np.array([1, 2], "<f4").tobytes(), "frame 1", "wrist-7")
        Sample(stream_id='wrist-7', values=[1.0, 2.0], timestamp_s=None, sequence=None)
    """

    needs_header = False

    def __init__(self, dtype: str) -> None:
        self._dtype = np.dtype(dtype)

    def header(self, _line: bytes, /) -> None:
        """There is none."""

    def sample(self, data: bytes, where: str, stream_id: str, /) -> Sample | None:
        """The sample in the bytes."""
        if not data or len(data) % self._dtype.itemsize:
            raise FrameError(
                "wrong_size", f"{where}: expected numbers of {self._dtype.itemsize} bytes, got {len(data)} bytes"
            )
        return Sample(stream_id, np.frombuffer(data, self._dtype).tolist())


DECODERS: dict[str, Callable[[Sequence[str] | None, bool], Decoder]] = {
    "jsonl": lambda _columns, _named: JsonDecoder(),
    "csv": lambda columns, named: CsvDecoder(columns, named=named),
    "influx": lambda _columns, _named: InfluxDecoder(),
    "f4": lambda _columns, _named: RawDecoder("<f4"),
    "f8": lambda _columns, _named: RawDecoder("<f8"),
    "i2": lambda _columns, _named: RawDecoder("<i2"),
    "i4": lambda _columns, _named: RawDecoder("<i4"),
}
"""(columns, named) -> a decoder, by the name of its format."""


def decoder(format_name: str, columns: str | None = None, *, named: bool = True) -> Decoder:
    """The decoder of a format.

    Raises:
        ConfigError: there is no such format.
    """
    if format_name not in DECODERS:
        raise ConfigError(f"feed: expected a format among {sorted(DECODERS)}, got {format_name!r}")
    try:
        return DECODERS[format_name](None if columns is None else columns.split(","), named)
    except FrameError as error:
        raise ConfigError(f"feed: {error}") from error


def _sample(facts: Mapping[str, Any], values: Any, where: str, stream_id: str) -> Sample:
    """A sample, once its facts are of the types that they must be."""
    given_id = facts.get("stream_id")
    if given_id is not None and not _is_id(given_id):
        raise FrameError(
            "bad_field",
            f"{where}: expected stream_id as text of 1 to {_LONGEST_ID} characters, got {_short(given_id)}",
        )
    sequence = facts.get("sequence")
    if sequence is not None and (type(sequence) is not int or not abs(sequence) < 2**62):
        raise FrameError("bad_field", f"{where}: expected sequence as a whole number, got {_short(sequence)}")
    time_s = facts.get("timestamp_s")
    if time_s is not None:
        try:
            time_s = float(time_s) if type(time_s) in (int, float) else math.nan
        except OverflowError:
            time_s = math.nan
        if not math.isfinite(time_s):
            raise FrameError(
                "bad_field", f"{where}: expected timestamp_s in seconds, got {_short(facts['timestamp_s'])}"
            )
    return Sample(given_id or stream_id, values, time_s, sequence)


def _is_id(given: object) -> bool:
    if not isinstance(given, str) or not 1 <= len(given) <= _LONGEST_ID:
        return False
    try:
        given.encode()  # JSON can name half a character, which no sink can write
    except UnicodeEncodeError:
        return False
    return True


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise FrameError("not_utf8", f"{where}: expected UTF-8, got {_short(data)}") from error


def _cells(data: bytes, where: str) -> list[str]:
    text = _text(data, where)
    try:
        rows = list(csv.reader([text], strict=True))
    except csv.Error as error:
        raise FrameError("not_csv", f"{where}: expected one line of CSV, got {_short(data)} ({error})") from error
    return rows[0] if rows else []


def _number(text: str, name: str, where: str) -> int | float:
    try:
        if "_" in text:  # Python takes 1_000 for a number
            raise ValueError(text)
        try:
            return int(text)
        except ValueError:
            return float(text)
    except ValueError as error:
        raise FrameError("bad_number", f"{where}: expected a number as {name}, got {_short(text)}") from error


def _influx_number(text: str, name: str, where: str) -> int | float:
    return _number(text[:-1] if text[-1:] in ("i", "u") else text, name, where)


def _pairs(parts: Sequence[str], where: str) -> dict[str, str]:
    found = {}
    for part in parts:
        key, *rest = _split(part, "=")
        if not key or len(rest) != 1:
            raise FrameError("not_influx", f"{where}: expected NAME=VALUE, got {_short(part)}")
        found[_plain(key)] = _plain(rest[0])
    return found


def _split(text: str, at: str) -> list[str]:
    """Split where the character is neither behind a backslash nor in quotes."""
    parts, begin, i, quoted = [], 0, 0, False
    while i < len(text):
        if text[i] == "\\":
            i += 1
        elif text[i] == '"':
            quoted = not quoted
        elif text[i] == at and not quoted:
            parts.append(text[begin:i])
            begin = i + 1
        i += 1
    return [*parts, text[begin:]]


def _plain(text: str) -> str:
    for escaped in ("\\ ", "\\,", "\\="):
        text = text.replace(escaped, escaped[1])
    return text


def _short(value: object) -> str:
    text = repr(value[:60] if isinstance(value, (bytes, str)) else value)
    return text if len(text) <= 80 else text[:77] + "..."
