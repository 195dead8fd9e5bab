"""The few bytes of protobuf that the runtime reads and writes itself, since it does not import onnx.

Source: the wire format, https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from edgeseq.errors import ModelFileError


@dataclass(frozen=True)
class Field:
    """One field of a message: its number, all its bytes, and the bytes of its value (empty for a number)."""

    number: int
    whole: memoryview
    value: memoryview


def fields(message: bytes | memoryview) -> Iterator[Field]:
    """The top-level fields of a message, in order.

    Raises:
        ModelFileError: the bytes are not a well-formed message.

    Example:
        >>> [(field.number, bytes(field.value)) for field in fields(text(7, "abc") + number(1, 300))]
        [(7, b'abc'), (1, b'')]
    """
    view = memoryview(message)
    position = 0
    while position < len(view):
        start = position
        key, position = _varint(view, position)
        number, wire = key >> 3, key & 7
        begin = position
        if wire == 0:
            _, position = _varint(view, position)
            begin = position
        elif wire == 2:
            size, begin = _varint(view, position)
            position = begin + size
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
        else:
            raise ModelFileError(f"not an ONNX file: protobuf wire type {wire} at byte {start}")
        if number == 0 or position > len(view):
            raise ModelFileError(f"not an ONNX file, or a truncated one: field {number} at byte {start} of {len(view)}")
        yield Field(number, view[start:position], view[begin:position])


def message(number: int, *parts: bytes | memoryview) -> bytes:
    """A field that holds a message, or bytes, made of these parts."""
    body = b"".join(parts)
    return _as_varint(number << 3 | 2) + _as_varint(len(body)) + body


def text(number: int, value: str) -> bytes:
    """A field that holds a text."""
    return message(number, value.encode())


def number(number: int, value: int) -> bytes:
    """A field that holds a whole number of 0 or more."""
    return _as_varint(number << 3) + _as_varint(value)


def _as_varint(value: int) -> bytes:
    groups = []
    while value > 0x7F:
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def _varint(view: memoryview, position: int) -> tuple[int, int]:
    value = shift = 0
    while position < len(view) and shift < 64:
        byte = view[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ModelFileError(f"not an ONNX file, or a truncated one: broken number at byte {position} of {len(view)}")
