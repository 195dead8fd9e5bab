"""The snapshot of one stream of a feeder: its clock, its rows and counts, and the model's stream, in one frame.

The frame is that of ``runtime/snapshot.py``; ``docs/clock.md`` lists the fields. The model's stream is in it as the
bytes of its own snapshot, which guard themselves.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, cast

import numpy as np

from edgeseq.errors import SnapshotError
from edgeseq.model_file import Description
from edgeseq.runtime.clock import SensorClock
from edgeseq.runtime.clock_counters import NAMES, Counters
from edgeseq.runtime.clock_state import ClockState, Entry
from edgeseq.runtime.feed_rows import RowState
from edgeseq.runtime.inputs import Array
from edgeseq.runtime.labels import LabelRule
from edgeseq.runtime.sample import Values
from edgeseq.runtime.snapshot import damaged, pack, short, unpack

FEED_VERSION = 1
_PLAIN = (
    "order",
    "anchor",
    "anchor_slot",
    "newest",
    "newest_s",
    "next_slot",
    "started",
    "tail_s",
    "first_s",
    "n_ticks",
)
_NUMBERS = ("rows", "rows_before", "position", "samples_before", "times_first", "flagged_before", "flag_next")
_FILLS = ("", "reject", "hold", "interpolate", "raise", "reset")


def pack_feed(clock: SensorClock, rules: Sequence[LabelRule], state: ClockState, rows: RowState, inner: bytes) -> bytes:
    """One stream of a feeder as bytes; ``inner`` is the snapshot of the model's stream."""
    entries = [*(() if state.last is None else ((0, state.last),)), *((1, e) for e in state.pending)]
    entries += [(2, state.waiting[slot]) for slot in sorted(state.waiting)]
    header = {
        "feed": FEED_VERSION,
        "settings": _settings(clock, rules),
        "clock": {name: getattr(state, name) for name in _PLAIN},
        "seen": f"{state.seen:x}",
        "counts": state.counts.as_dict(),
        "numbers": {name: getattr(rows, name) for name in _NUMBERS},
        "model_bytes": len(inner),
    }
    model = np.frombuffer(inner + bytes(-len(inner) % 4), "<i4")
    times = np.array([np.nan if t is None else t for t in rows.times], np.float64)
    arrays: list[tuple[str, Array]] = [("model", model), ("times", times), ("flagged", _int64(rows.flagged))]
    arrays += [
        (f"label memory {i} {j}", memory) for i, each in enumerate(rows.memories) for j, memory in enumerate(each)
    ]
    return pack(header, [*arrays, *_entry_arrays(entries)])


def unpack_feed(
    data: bytes | bytearray | memoryview,
    clock: SensorClock,
    rules: Sequence[LabelRule],
    description: Description,
    rows: RowState,
) -> tuple[ClockState, RowState, bytes]:
    """What ``pack_feed`` was given; ``rows`` is the state of a new stream, which is changed.

    Raises:
        SnapshotError: it is damaged or newer, or was taken with another clock or other label rules.
    """
    header, arrays = unpack(data)
    version = header.get("feed")
    if version is None:
        raise SnapshotError("snapshot: expected one of a feeder's stream, got another; use Model.restore")
    if type(version) is int and version > FEED_VERSION:
        raise SnapshotError(
            f"snapshot: of feed format {short(version)}, this edgeseq reads {FEED_VERSION}; "
            "install the edgeseq that wrote it"
        )
    if header.get("settings") != _settings(clock, rules):
        raise SnapshotError(
            f"snapshot: of another clock or other labels, expected {_settings(clock, rules)}, "
            f"got {short(header.get('settings'))}; restore it with the settings that it was taken with"
        )
    try:
        inner = arrays["model"].astype("<i4").tobytes()[: _count(header["model_bytes"])]
        return _clock_state(header, arrays, description), _row_state(header, arrays, rows), inner
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise damaged(f"its fields and arrays are not those of a feed ({error})") from error


def _settings(clock: SensorClock, rules: Sequence[LabelRule]) -> dict[str, Any]:
    labels = [[type(rule).__name__, asdict(cast(Any, rule))] for rule in rules]
    return {"clock": clock.to_dict(), "labels": labels}


def _entry_arrays(entries: Sequence[tuple[int, Entry]]) -> list[tuple[str, Array]]:
    facts = [
        (
            where,
            e.slot,
            _FILLS.index(e.fill),
            e.real,
            e.repaired,
            e.flagged,
            e.missing is not None,
            e.time_s is not None,
        )
        for where, e in entries
    ]
    arrays = [("entries", np.array(facts, np.int64).reshape(-1, 8))]
    arrays += [("entry times", np.array([0.0 if e.time_s is None else e.time_s for _, e in entries], np.float64))]
    if entries:
        for i in range(len(entries[0][1].values)):
            arrays.append((f"entry values {i}", np.stack([e.values[i] for _, e in entries])))
            missing = [np.zeros(e.values[i].shape) if e.missing is None else e.missing[i] for _, e in entries]
            arrays.append((f"entry missing {i}", np.stack(missing).astype(np.int32)))
    return arrays


def _clock_state(header: Mapping[str, Any], arrays: Mapping[str, Array], d: Description) -> ClockState:
    plain = header["clock"]
    if set(plain) != set(_PLAIN) or set(header["counts"]) != set(NAMES):
        raise ValueError(f"expected the fields {_PLAIN} and {NAMES}")
    for name in ("anchor_slot", "newest", "next_slot", "n_ticks"):
        if plain[name] is not None and type(plain[name]) is not int:
            raise ValueError(f"{name} is no whole number")
    for name in ("anchor", "newest_s", "tail_s", "first_s"):
        if plain[name] is not None and not (type(plain[name]) in (int, float) and math.isfinite(plain[name])):
            raise ValueError(f"{name} is no number")
    if plain["started"] and plain["next_slot"] is None:
        raise ValueError("it has started nowhere")
    if plain["order"] not in (None, "sequence", "timestamp", "arrival") or type(plain["started"]) is not bool:
        raise ValueError("order or started is none of those")
    state = ClockState(**plain, counts=Counters(**{k: _count(v) for k, v in header["counts"].items()}))
    state.seen = int(header["seen"], 16)
    for where, entry in _entries(arrays, d):
        if where == 0:
            state.last = entry
        elif where == 1:
            state.pending.append(entry)
        else:
            state.waiting[entry.slot] = entry
    return state


def _entries(arrays: Mapping[str, Array], d: Description) -> list[tuple[int, Entry]]:
    facts, times = arrays["entries"], arrays["entry times"]
    n = len(times)
    if facts.shape != (n, 8) or facts.dtype != np.int64 or times.shape != (n,):
        raise ValueError("the entries are not alike in number")
    found = []
    if n:
        for i, port in enumerate(d.inputs):
            values, missing = arrays[f"entry values {i}"], arrays[f"entry missing {i}"]
            if values.dtype.name != port.dtype or values.shape != (n, *port.shape) or missing.shape != values.shape:
                raise ValueError(f"the entries are not of input {port.name!r}")
    for j, (where, slot, fill, real, repaired, flagged, has_missing, has_time) in enumerate(facts.tolist()):
        given: Values = tuple(arrays[f"entry values {i}"][j].copy() for i in range(len(d.inputs)))
        masks: Values = tuple(arrays[f"entry missing {i}"][j] != 0 for i in range(len(d.inputs)))
        time_s = float(times[j]) if has_time else None
        entry = Entry(
            *(slot, time_s, given, masks if has_missing else None, _FILLS[fill]),
            *(bool(real), bool(repaired), bool(flagged)),
        )
        found.append((where, entry))
    return found


def _row_state(header: Mapping[str, Any], arrays: Mapping[str, Array], rows: RowState) -> RowState:
    numbers = header["numbers"]
    if set(numbers) != set(_NUMBERS):
        raise ValueError(f"expected the fields {_NUMBERS}")
    for name in ("rows", "rows_before"):
        if len(numbers[name]) != len(rows.rows):
            raise ValueError("rows are not those of the model's outputs")
        setattr(rows, name, [_count(n) for n in numbers[name]])
    for name in ("position", "samples_before", "times_first"):
        setattr(rows, name, _count(numbers[name]))
    rows.flagged_before = _count(numbers["flagged_before"] + 1) - 1
    rows.flag_next = bool(numbers["flag_next"])
    rows.times = [None if np.isnan(t) else t for t in arrays["times"].astype(np.float64).tolist()]
    if rows.times_first + len(rows.times) != rows.position:
        raise ValueError("times are not as many as the samples whose rows are to come")
    rows.flagged = [_count(n) for n in arrays["flagged"].tolist()]
    for i, each in enumerate(rows.memories):
        for j, memory in enumerate(each):
            memory[...] = arrays[f"label memory {i} {j}"].reshape(memory.shape)
    return rows


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= 2**60:
        raise ValueError(f"expected a whole number of 0 or more, got {short(value)}")
    return value


def _int64(values: Sequence[int]) -> Array:
    return np.array(values, np.int64)
