"""Snapshots with another header whose checksum fits, as somebody could write them who knows the format."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def changed(whole: bytes, **fields: Any) -> bytes:
    """A snapshot with another header, and a checksum that fits."""
    return signed(whole, json.dumps({**header(whole), **fields}, sort_keys=True).encode())


def header(whole: bytes) -> Any:
    return json.loads(whole[12 : 12 + int.from_bytes(whole[8:12], "little")])


def signed(whole: bytes, header: bytes, arrays: bytes | None = None) -> bytes:
    """The bytes of a snapshot around another header, and perhaps other arrays, with a checksum that fits."""
    old = whole[12 + int.from_bytes(whole[8:12], "little") : -32] if arrays is None else arrays
    body = whole[:8] + len(header).to_bytes(4, "little") + header + old
    return body + hashlib.sha256(body).digest()
