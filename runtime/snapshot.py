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
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from edgeseq.errors import ConfigError, SnapshotError
from edgeseq.runtime.inputs import Array

FORMAT_VERSION = 1
_MAGIC = b"edgeseq\x00"
_LENGTH_BYTES, _DIGEST_BYTES = 4, 32
_SUFFIX = ".snapshot"


def pack(header: dict[str, Any], arrays: Sequence[tuple[str, Array]]) -> bytes:
    """A header, whose values JSON can hold, and named arrays, as bytes.

    Example:
        >>> data = pack({"position": 3}, [("h", np.ones((1, 2), np.float32))])
        >>> header, arrays = unpack(data)
        >>> header["position"], arrays["h"].tolist()
        (3, [[1.0, 1.0]])
    """
    listed = [{"name": name, "dtype": array.dtype.name, "shape": list(array.shape)} for name, array in arrays]
    whole = {**header, "format_version": FORMAT_VERSION, "arrays": listed}
    text = json.dumps(whole, sort_keys=True, separators=(",", ":")).encode()
    raw = [array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes() for _, array in arrays]  # in C order
    body = b"".join([_MAGIC, len(text).to_bytes(_LENGTH_BYTES, "little"), text, *raw])
    return body + hashlib.sha256(body).digest()


def unpack(data: bytes) -> tuple[dict[str, Any], dict[str, Array]]:
    """What ``pack`` was given, the arrays as copies of their own.

    Raises:
        SnapshotError: the bytes are no snapshot, truncated, damaged, or of a newer format.
    """
    begin = len(_MAGIC) + _LENGTH_BYTES
    if not data.startswith(_MAGIC[: len(data)]) or not data:
        raise SnapshotError(f"snapshot: expected bytes that begin with {_MAGIC!r}, got {bytes(data[:8])!r}")
    size = int.from_bytes(data[len(_MAGIC) : begin], "little")
    if len(data) < begin + size + _DIGEST_BYTES:
        raise SnapshotError(f"snapshot: truncated, {len(data)} bytes; restore an older one")
    header = _header(data[begin : begin + size])
    expected = begin + size + sum(_n_bytes(each) for each in header["arrays"]) + _DIGEST_BYTES
    if len(data) != expected:
        fault = "truncated" if len(data) < expected else "damaged"
        raise SnapshotError(f"snapshot: {fault}, expected {expected} bytes, got {len(data)}; restore an older one")
    if hashlib.sha256(data[:-_DIGEST_BYTES]).digest() != data[-_DIGEST_BYTES:]:
        raise SnapshotError("snapshot: damaged, its checksum does not fit its bytes; restore an older one")
    arrays, position = {}, begin + size
    for each in header["arrays"]:
        dtype = np.dtype(each["dtype"])
        raw = np.frombuffer(data, dtype.newbyteorder("<"), math.prod(each["shape"]), position)
        arrays[each["name"]] = raw.astype(dtype).reshape(each["shape"])
        position += _n_bytes(each)
    return header, arrays


def _header(text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text)
        version = header["format_version"]
        if type(version) is int and version > FORMAT_VERSION:
            raise SnapshotError(
                f"snapshot: of format {version}, this edgeseq reads {FORMAT_VERSION}; install the edgeseq that wrote it"
            )
        for each in header["arrays"]:
            _n_bytes(each)
    except (ValueError, KeyError, TypeError) as error:
        raise damaged(error) from error
    return dict(header)


def damaged(error: Exception) -> SnapshotError:
    """The error for a snapshot that is whole, but does not say what it should."""
    return SnapshotError(f"snapshot: damaged, its header cannot be read ({error!r}); restore an older one")


def _n_bytes(array: dict[str, Any]) -> int:
    return int(math.prod(int(n) for n in array["shape"]) * np.dtype(array["dtype"]).itemsize)


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
        self._folder = Path(folder)
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"snapshots: cannot use {str(folder)!r} as a folder: {error.strerror}") from error

    def save(self, key: str, snapshot: bytes) -> None:
        """Keep a snapshot under this key, in the place of an older one.

        Raises:
            ConfigError: the key is empty or too long for a file name, or the folder cannot be written.
        """
        target = self._path(key)
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
            raise ConfigError(f"snapshots: cannot write {str(target)!r}: {error.strerror}") from error

    def load(self, key: str) -> bytes:
        """The snapshot under this key.

        Raises:
            SnapshotError: there is none, or it cannot be read.
        """
        try:
            return self._path(key).read_bytes()
        except OSError as error:
            raise SnapshotError(f"snapshots: none of {key!r} in {str(self._folder)!r}: {error.strerror}") from error

    def remove(self, key: str) -> None:
        """Forget the snapshot under this key, if there is one."""
        self._path(key).unlink(missing_ok=True)
        self._flush_folder()

    def keys(self) -> list[str]:
        """The keys under which there is a snapshot, sorted."""
        return sorted(self._keys())

    def _keys(self) -> Iterator[str]:
        for path in self._folder.iterdir():
            if path.name.endswith(_SUFFIX) and not path.name.startswith("."):
                yield unquote(path.name.removesuffix(_SUFFIX))

    def _path(self, key: str) -> Path:
        name = quote(key, safe="").replace(".", "%2E") + _SUFFIX
        if not key or len(name) > 255:
            raise ConfigError(f"snapshots: expected a key of 1 to about 240 letters, got {key[:40]!r} of {len(key)}")
        return self._folder / name

    def _flush_folder(self) -> None:
        if os.name != "posix":  # elsewhere a folder cannot be opened
            return
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
