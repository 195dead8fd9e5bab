"""Snapshots: the state of a stream as bytes, and a folder that keeps them.

A snapshot is a header and raw arrays, checksummed, bound to the model's graph; ``docs/snapshots.md`` has every byte. It
holds no clock, no name and no pickle: equal states give equal bytes. The arrays are the states of the step graph, which
are the same whichever form of the model runs.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import reprlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote, unquote

import numpy as np

from edgeseq.errors import ConfigError, SnapshotError
from edgeseq.model_file import NEVER, Description, DTypeName
from edgeseq.runtime.inputs import Array

FORMAT_VERSION = 1
_MAGIC = b"edgeseq\x00"
_LENGTH_BYTES, _DIGEST_BYTES = 4, 32
_BEGIN = len(_MAGIC) + _LENGTH_BYTES  # of the header
HEADER_FIELDS = {"graph_sha256", "position", "fed", "ended"}
"""Of the header of a stream's snapshot, beside the fields of the format, ``format_version`` and ``arrays``."""
# A header has about 90 bytes for each state. numpy, of every version, takes arrays of 32 sizes.
_LONGEST_HEADER, _MOST_SIZES, _MOST_ELEMENTS = 2**20, 32, 2**40
_DTYPES = (*get_args(DTypeName), "uint8")  # the last for the ids of a pool's streams
_COUNTER = "_position"  # the end of the name of a state that counts samples, int64 (1,)
_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = 80
_SUFFIX, _LONGEST_NAME = ".snapshot", 255


def pack(header: dict[str, Any], arrays: Sequence[tuple[str, Array]]) -> bytes:
    """A header, whose values JSON can hold, and named arrays, as bytes.

    Raises:
        SnapshotError: the header is longer than ``unpack`` reads.

    Example:
        >>> data = pack({"position": 3}, [("h", np.ones((1, 2), np.float32))])
        >>> header, arrays = unpack(data)
        >>> header["position"], arrays["h"].tolist()
        (3, [[1.0, 1.0]])
    """
    listed = [{"name": name, "dtype": array.dtype.name, "shape": list(array.shape)} for name, array in arrays]
    whole = {**header, "format_version": FORMAT_VERSION, "arrays": listed}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()
    if len(text) > _LONGEST_HEADER:
        raise SnapshotError(
            f"snapshot: expected a header of up to {_LONGEST_HEADER} bytes, got {len(text)}; "
            "the model has too many states"
        )
    raw = [array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes() for _, array in arrays]  # in C order
    body = b"".join([_MAGIC, len(text).to_bytes(_LENGTH_BYTES, "little"), text, *raw])
    return body + hashlib.sha256(body).digest()


def unpack(data: bytes | bytearray | memoryview) -> tuple[dict[str, Any], dict[str, Array]]:
    """What ``pack`` was given, the arrays as copies of their own.

    Nothing is given out before the checksum fits, and every field that is used here is what it should be.

    Raises:
        SnapshotError: this is no snapshot, or one that is truncated, damaged, or of a newer format.
    """
    data = as_bytes(data)
    if not data.startswith(_MAGIC[: len(data)]) or not data:
        raise SnapshotError(f"snapshot: expected bytes that begin with {_MAGIC!r}, got {data[:8]!r}")
    if len(data) < _BEGIN + _DIGEST_BYTES:
        raise _truncated(data)
    intact = hashlib.sha256(data[:-_DIGEST_BYTES]).digest() == data[-_DIGEST_BYTES:]
    try:  # also where the checksum does not fit: a header that can be read says whether bytes are missing
        header, parts, position = _read_header(data, intact=intact)
    except _HeaderError as error:
        if intact:
            raise damaged(str(error)) from error
    if not intact:
        raise damaged("its checksum does not fit its bytes")
    arrays = {}
    for part in parts:
        raw = np.frombuffer(data, np.dtype(part.dtype).newbyteorder("<"), math.prod(part.shape), position)
        arrays[part.name] = raw.astype(part.dtype).reshape(part.shape)
        position += part.n_bytes
    return header, arrays


def check_graph(header: Mapping[str, Any], d: Description) -> None:
    """Check that what ``unpack`` gave is of this model.

    Raises:
        SnapshotError: it is of another one.
    """
    if header.get("graph_sha256") != d.graph_sha256:
        raise SnapshotError(
            f"snapshot: of another model, expected the graph {d.graph_sha256!r}, got "
            f"{short(header.get('graph_sha256'))}; restore it with the file that it was taken from"
        )


def check_layout(header: Mapping[str, Any], arrays: Mapping[str, Array], d: Description) -> None:
    """Check that what ``unpack`` gave is the state of a stream of this model, to the last size.

    Raises:
        SnapshotError: a field or an array is missing, too much, or not what a stream of this model can have.
    """
    _check("its fields", sorted(HEADER_FIELDS), sorted(header), right=set(header) == HEADER_FIELDS)
    position, fed, ended = header["position"], header["fed"], header["ended"]
    for what, value in (("position", position), ("fed", fed)):
        _check(f"its field {what!r}", "a whole number from 0 to 2^40", value, right=_is_count(value, NEVER))
    _check("its field 'ended'", "true or false", ended, right=type(ended) is bool)
    right = fed % d.granule == 0 and fed <= d.phase + position
    _check("its field 'fed'", f"a multiple of {d.granule}, up to {d.phase + position}", fed, right=right)
    n_waiting = d.phase + position - fed
    _check("its fields", f"less than {d.granule} samples that wait", n_waiting, right=n_waiting < d.granule)
    layout = {f"waiting {port.name}": (port.dtype, (n_waiting, *port.shape)) for port in d.inputs}
    layout |= {state.input: (state.dtype, (1, *state.shape)) for state in d.state}
    missing, unknown = sorted(set(layout) - set(arrays)), sorted(set(arrays) - set(layout))
    _check("its arrays", "the model's", {"missing": missing, "unknown": unknown}, right=not missing and not unknown)
    for name, (dtype, shape) in layout.items():
        array = arrays[name]
        right = array.dtype.name == dtype and array.shape == shape
        _check(f"its array {name!r}", (dtype, shape), (array.dtype.name, array.shape), right=right)
    for name in counters(d):
        counted = int(arrays[name][0, 0])
        _check(f"its array {name!r}", f"as many samples as were fed, {fed}", counted, right=counted == fed)


def counters(d: Description) -> list[str]:
    """The states that count the samples that were fed."""
    return [s.input for s in d.state if s.input.endswith(_COUNTER) and (s.dtype, s.shape) == ("int64", (1,))]


def damaged(what: str) -> SnapshotError:
    """The error for a snapshot that does not say what it should."""
    return SnapshotError(f"snapshot: damaged, {what}; restore an older one")


def _check(what: str, expected: object, got: object, *, right: bool) -> None:
    if not right:
        raise damaged(f"{what}: expected {expected}, got {short(got)}")


def short(value: object) -> str:
    """``repr``, cut: whoever wrote the snapshot chose how long and how deep a value is."""
    return _REPR.repr(value)


def as_bytes(data: object) -> bytes:
    """``data``, if it is bytes.

    Raises:
        SnapshotError: it is something else, or cannot be read.
    """
    if not isinstance(data, (bytes, bytearray, memoryview)):
        raise SnapshotError(
            f"snapshot: expected bytes, got {type(data).__name__}; pass what Stream.snapshot or SnapshotStore.load gave"
        )
    try:
        return bytes(data)
    except ValueError as error:  # a memoryview that was released
        raise SnapshotError(f"snapshot: expected bytes, got a memoryview that cannot be read ({error})") from error


class _HeaderError(Exception):
    """What is wrong with a header."""


@dataclass(frozen=True)
class _Part:
    """One array of the snapshot, as the header lists it."""

    name: str
    dtype: DTypeName
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * int(np.dtype(self.dtype).itemsize)


def _read_header(data: bytes, *, intact: bool) -> tuple[dict[str, Any], list[_Part], int]:
    """The header without ``format_version`` and ``arrays``; the arrays that it lists; and where they begin.

    ``intact`` is whether the checksum fits: of a damaged snapshot, the version is not believed.

    Raises:
        SnapshotError: the snapshot is longer or shorter than its header says, or of a newer format.
        _HeaderError: the header is not what it should be.
    """
    size = int.from_bytes(data[len(_MAGIC) : _BEGIN], "little")
    if size > _LONGEST_HEADER:
        raise _HeaderError(f"expected a header of up to {_LONGEST_HEADER} bytes, got {size}")
    if len(data) < _BEGIN + size + _DIGEST_BYTES:
        raise _truncated(data)
    try:
        header = json.loads(data[_BEGIN : _BEGIN + size].decode())
    except (ValueError, RecursionError, OverflowError) as error:
        raise _HeaderError(f"its header cannot be read ({error})") from error
    if not isinstance(header, dict):
        raise _HeaderError(f"expected a JSON object as its header, got {short(header)}")
    version = header.pop("format_version", None)
    if intact:
        _check_version(version)
    listed = header.pop("arrays", None)
    if not isinstance(listed, list):
        raise _HeaderError(f"its field 'arrays': expected a list, got {short(listed)}")
    parts = [_part(each) for each in listed]
    if len({part.name for part in parts}) < len(parts):
        raise _HeaderError(f"its arrays: expected each name once, got {short([part.name for part in parts])}")
    expected = _BEGIN + size + sum(part.n_bytes for part in parts) + _DIGEST_BYTES
    if len(data) != expected:
        fault = "truncated" if len(data) < expected else "damaged"
        raise SnapshotError(f"snapshot: {fault}, expected {expected} bytes, got {len(data)}; restore an older one")
    return header, parts, _BEGIN + size


def _check_version(version: Any) -> None:
    if type(version) is not int or version < 1:
        raise _HeaderError(f"its field 'format_version': expected 1 to {FORMAT_VERSION}, got {short(version)}")
    if version > FORMAT_VERSION:
        raise SnapshotError(
            f"snapshot: of format {short(version)}, this edgeseq reads {FORMAT_VERSION}; "
            "install the edgeseq that wrote it"
        )


def _part(listed: Any) -> _Part:
    if not isinstance(listed, dict) or set(listed) != {"name", "dtype", "shape"}:
        raise _HeaderError(f"its arrays: expected objects of name, dtype and shape, got {short(listed)}")
    name, dtype, shape = listed["name"], listed["dtype"], listed["shape"]
    if not isinstance(name, str):
        raise _HeaderError(f"its arrays: expected a text as a name, got {short(name)}")
    if dtype not in _DTYPES:
        raise _HeaderError(f"its array {short(name)}: expected one of {_DTYPES}, got {short(dtype)}")
    # No size is larger than the longest array, also beside a size of 0.
    if (
        not isinstance(shape, list)
        or len(shape) > _MOST_SIZES
        or not all(_is_count(n, _MOST_ELEMENTS) for n in shape)
        or math.prod(max(1, n) for n in shape) > _MOST_ELEMENTS
    ):
        expected = f"up to {_MOST_SIZES} sizes of 0 or more, up to {_MOST_ELEMENTS} elements"
        raise _HeaderError(f"its array {short(name)}: expected {expected}, got {short(shape)}")
    return _Part(name, dtype, tuple(shape))


def _is_count(value: object, most: int) -> bool:
    return type(value) is int and 0 <= value <= most


def _truncated(data: bytes) -> SnapshotError:
    return SnapshotError(f"snapshot: truncated, {len(data)} bytes; restore an older one")


class SnapshotStore:
    """A folder of snapshots, one file for each key, each written as a whole.

    A write is: a temporary file beside it, flushed to the disk (fsync), renamed over the old one, and the folder
    flushed. Whenever the power fails, the folder holds the old snapshot or the new one.

    Example:
        >>> import tempfile
        >>> from edgeseq import runtime as rt
        >>> stream = rt.load("tests/data/tiny.stream.onnx").stream("pump/7")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     store = SnapshotStore(folder)
        ...     store.save("pump/7", stream.snapshot())
        ...     store.keys(), len(store.load("pump/7")) == len(stream.snapshot())
        (['pump/7'], True)
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        """Open a folder, which is made if it is missing.

        Raises:
            ConfigError: it cannot be made, or is no folder.
        """
        try:
            self._folder = Path(folder)
            self._folder.mkdir(parents=True, exist_ok=True)
        except (OSError, TypeError, ValueError) as error:
            raise ConfigError(f"snapshots: cannot use {str(folder)!r} as a folder: {_reason(error)}") from error

    def save(self, key: str, snapshot: bytes | bytearray | memoryview) -> None:
        """Keep a snapshot under this key, in the place of an older one.

        Raises:
            ConfigError: the key is no text, empty, or too long for a file name; the snapshot is no bytes; or the folder
                cannot be written.
        """
        target = self._path(key)
        if not isinstance(snapshot, (bytes, bytearray, memoryview)):
            raise ConfigError(f"snapshots: expected bytes to keep under {key!r}, got {type(snapshot).__name__}")
        try:
            handle, name = tempfile.mkstemp(prefix=".", suffix=".new", dir=self._folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(snapshot)
                    file.flush()
                    os.fsync(file.fileno())
                os.replace(name, target)
            except BaseException:
                with suppress(OSError):
                    os.unlink(name)
                raise
            self._flush_folder()
        except OSError as error:
            raise ConfigError(f"snapshots: cannot write {str(target)!r}: {_reason(error)}") from error

    def load(self, key: str) -> bytes:
        """The snapshot under this key.

        Raises:
            SnapshotError: there is none, or it cannot be read.
            ConfigError: the key is one under which nothing can be kept.
        """
        path = self._path(key)
        try:
            return path.read_bytes()
        except FileNotFoundError as error:
            raise SnapshotError(f"snapshots: none of {key!r} in {str(self._folder)!r}: {_reason(error)}") from error
        except OSError as error:
            raise SnapshotError(f"snapshots: cannot read {str(path)!r}: {_reason(error)}") from error

    def remove(self, key: str) -> None:
        """Forget the snapshot under this key, if there is one.

        Raises:
            ConfigError: the key is one under which nothing can be kept, or the folder cannot be written.
        """
        path = self._path(key)
        try:
            path.unlink(missing_ok=True)
            self._flush_folder()
        except OSError as error:
            raise ConfigError(f"snapshots: cannot remove {str(path)!r}: {_reason(error)}") from error

    def keys(self) -> list[str]:
        """The keys under which there is a snapshot, sorted. Files that ``save`` cannot have made are left out.

        Raises:
            ConfigError: the folder cannot be read.
        """
        try:
            return sorted(self._keys())
        except OSError as error:
            raise ConfigError(f"snapshots: cannot list {str(self._folder)!r}: {_reason(error)}") from error

    def _keys(self) -> Iterator[str]:
        for path in self._folder.iterdir():
            key = unquote(path.name.removesuffix(_SUFFIX))
            with suppress(ConfigError):  # such a name is no key's
                if self._path(key).name == path.name and path.is_file():
                    yield key

    def _path(self, key: str) -> Path:
        if not isinstance(key, str):
            raise ConfigError(f"snapshots: expected a text as the key, got {type(key).__name__}")
        try:
            name = quote(key, safe="").replace(".", "%2E") + _SUFFIX
        except UnicodeEncodeError as error:
            raise ConfigError(f"snapshots: expected a key that UTF-8 can hold, got {key[:40]!r}") from error
        if not key:
            raise ConfigError("snapshots: expected a key of at least one letter, got ''")
        if len(name) > _LONGEST_NAME:
            raise ConfigError(
                f"snapshots: expected a key whose file name takes up to {_LONGEST_NAME} bytes, got {len(name)} bytes "
                f"for {key[:40]!r}; letters other than A-Z a-z 0-9 _ - ~ take three bytes or more each"
            )
        return self._folder / name

    def _flush_folder(self) -> None:
        if os.name != "posix":  # elsewhere a folder cannot be opened
            return
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
