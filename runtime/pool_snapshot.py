"""Snapshots of a pool: of one stream, in the bytes of ``Stream.snapshot``, and of all, in the same frame.

Of a pool, the streams stand in the order of their ids, so that equal states give equal bytes, whatever happened before
and whichever places the streams have. ``docs/snapshots.md`` has the fields.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgeseq.errors import SnapshotError
from edgeseq.model_file import NEVER, Description
from edgeseq.runtime.inputs import Array
from edgeseq.runtime.snapshot import check_graph, check_layout, counters, damaged, pack, short, unpack

_FIELDS = {"graph_sha256", "streams"}
_IDS, _COUNTS = "ids", ("position", "fed", "ended")


def pack_stream(d: Description, record: Any, waiting: Sequence[Array], states: Sequence[Array]) -> bytes:
    """A stream's snapshot."""
    counts = {"position": int(record["position"]), "fed": int(record["fed"]), "ended": bool(record["ended"])}
    names = (*(f"waiting {port.name}" for port in d.inputs), *(s.input for s in d.state))
    return pack({"graph_sha256": d.graph_sha256, **counts}, list(zip(names, (*waiting, *states), strict=True)))


def unpack_stream(
    data: bytes | bytearray | memoryview, d: Description
) -> tuple[Mapping[str, Any], list[Array], list[Array]]:
    """The record of a stream's snapshot, the samples that wait, and the states.

    Raises:
        SnapshotError: it is truncated, damaged, newer, of another model, or of a pool.
    """
    header, arrays = unpack(data)
    if "streams" in header:
        raise SnapshotError("snapshot: of a pool, expected one of a stream; use Model.restore_pool")
    check_graph(header, d)
    check_layout(header, arrays, d)
    return header, [arrays[f"waiting {port.name}"] for port in d.inputs], [arrays[s.input] for s in d.state]


@dataclass(frozen=True)
class PoolState:
    """Streams in the order of their ids: counts (n,), samples that wait, one stream's after another's, and states."""

    ids: list[str]
    counts: Mapping[str, Array]
    waiting: list[Array]
    states: list[Array]


def pack_pool(d: Description, state: PoolState) -> bytes:
    """A pool's snapshot."""
    ids = np.frombuffer(json.dumps(state.ids, separators=(",", ":")).encode(), np.uint8)
    arrays: list[tuple[str, Array]] = [(_IDS, ids), *((name, state.counts[name].astype(np.int64)) for name in _COUNTS)]
    names = (*(f"waiting {port.name}" for port in d.inputs), *(s.input for s in d.state))
    arrays += list(zip(names, (*state.waiting, *state.states), strict=True))
    return pack({"graph_sha256": d.graph_sha256, "streams": len(state.ids)}, arrays)


def unpack_pool(data: bytes | bytearray | memoryview, d: Description) -> PoolState:
    """What ``pack_pool`` was given.

    Raises:
        SnapshotError: it is truncated, damaged, newer, of another model, or of a single stream.
    """
    header, arrays = unpack(data)
    if "streams" not in header:
        raise SnapshotError("snapshot: of a stream, expected one of a pool; use Model.restore, or Pool.open")
    check_graph(header, d)
    n = header["streams"]
    _expect("its fields", sorted(_FIELDS), sorted(header), right=set(header) == _FIELDS)
    _expect("its field 'streams'", "a number of 0 or more", n, right=type(n) is int and n >= 0)
    counts = {name: _array(arrays, name, "int64", (n,)) for name in _COUNTS}
    ids = _ids(arrays, n)
    n_waiting = d.phase + counts["position"] - counts["fed"]
    _check_counts(d, counts, n_waiting)
    total = int(n_waiting.sum())
    waiting = [_array(arrays, f"waiting {port.name}", port.dtype, (total, *port.shape)) for port in d.inputs]
    states = [_array(arrays, s.input, s.dtype, (n, *s.shape)) for s in d.state]
    for name in counters(d):
        right = bool((arrays[name][:, 0] == counts["fed"]).all())
        _expect(f"its array {name!r}", "as many samples as were fed", "others", right=right)
    known = {_IDS, *_COUNTS, *(f"waiting {port.name}" for port in d.inputs), *(s.input for s in d.state)}
    _expect("its arrays", "the model's", sorted(set(arrays) - known), right=set(arrays) == known)
    return PoolState(ids, counts, waiting, states)


def _check_counts(d: Description, counts: Mapping[str, Array], n_waiting: Array) -> None:
    for name in ("position", "fed"):
        right = bool(((counts[name] >= 0) & (counts[name] <= NEVER)).all())
        _expect(f"its array {name!r}", "numbers from 0 to 2^40", "others", right=right)
    right = bool(((counts["ended"] == 0) | (counts["ended"] == 1)).all())
    _expect("its array 'ended'", "0 or 1", "others", right=right)
    right = bool((counts["fed"] % d.granule == 0).all())
    _expect("its array 'fed'", f"multiples of {d.granule}", "others", right=right)
    right = bool(((n_waiting >= 0) & (n_waiting < d.granule)).all())
    _expect("its counts", f"from 0 to {d.granule - 1} samples that wait", "others", right=right)


def _ids(arrays: Mapping[str, Array], n: int) -> list[str]:
    raw = arrays.get(_IDS)
    _expect("its array 'ids'", "uint8 (bytes,)", raw, right=raw is not None and raw.ndim == 1 and raw.dtype == np.uint8)
    assert raw is not None
    try:
        ids = json.loads(raw.tobytes().decode())
    except (ValueError, RecursionError) as error:
        raise damaged(f"its array 'ids': expected JSON, got {short(raw.tobytes())} ({error})") from error
    right = isinstance(ids, list) and len(ids) == n and all(isinstance(each, str) for each in ids)
    _expect("its array 'ids'", f"a list of {n} texts", ids, right=right and ids == sorted(set(ids)))
    return list(ids)


def _array(arrays: Mapping[str, Array], name: str, dtype: str, shape: tuple[int, ...]) -> Array:
    array = arrays.get(name)
    got = None if array is None else (array.dtype.name, array.shape)
    _expect(f"its array {name!r}", (dtype, shape), got, right=got == (dtype, shape))
    assert array is not None
    return array


def _expect(what: str, expected: object, got: object, *, right: bool) -> None:
    if not right:
        raise damaged(f"{what}: expected {expected}, got {short(got)}")
