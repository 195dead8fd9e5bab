"""The model file: what an edgeseq ``.onnx`` file says of itself, and how its graph is hashed.

This is the one thing that the exporter (which writes it) and the runtime (which reads it) share; neither imports the
other for it, and this module needs the standard library alone. The description is one JSON object under the metadata
key ``edgeseq``. Fields are documented in ``docs/model-file.md``; reading refuses a description that lacks one, has one
of the wrong kind, or is of a newer format. Invariant: ``Description.from_json(d.to_json()) == d``.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from edgeseq.errors import ModelFileError

FORMAT_VERSION = 1
METADATA_KEY = "edgeseq"

Kind = Literal["offline", "stream"]
Law = Literal["equal", "prefix"]
DTypeName = Literal["float32", "float64", "int32", "int64"]

# Field 14 of ModelProto in onnx.proto: metadata_props.
_METADATA_PROPS = 14


@dataclass(frozen=True)
class Port:
    """A named tensor of the graph, without batch and time: ``shape`` is (C,), or () for a token."""

    name: str
    dtype: DTypeName
    shape: tuple[int, ...]


@dataclass(frozen=True)
class StateSpec:
    """One array that is carried from step to step.

    The graph takes it as ``input`` and gives its successor as ``output``; both have a leading batch axis before
    ``shape``. A new stream starts with every element equal to ``initial``.
    """

    input: str
    output: str
    dtype: DTypeName
    shape: tuple[int, ...]
    initial: float


@dataclass(frozen=True)
class OfflineReference:
    """The offline model that a stream equals: its file name and the hash of its graph."""

    file: str
    graph_sha256: str


@dataclass(frozen=True)
class Description:
    """Everything that a model file says of itself.

    ``receptive_field`` is (past, future) in steps beside the current one; None means unbounded. ``lookahead`` and
    ``hop`` are in steps. ``law`` is "equal" when output t equals the offline model's output t, and "prefix" when it
    equals the offline model's output on samples 0..t.

    Example:
        >>> d = Description(kind="offline", name="m", input=Port("x", "float32", (6,)),
        ...                 output=Port("y", "float32", (7,)), per_step=True, receptive_field=(None, None))
        >>> Description.from_json(d.to_json()) == d
        True
    """

    kind: Kind
    name: str
    input: Port
    output: Port
    per_step: bool
    receptive_field: tuple[int | None, int | None]
    law: Law = "equal"
    lookahead: int = 0
    hop: int = 1
    state: tuple[StateSpec, ...] = ()
    feature_names: tuple[str, ...] | None = None
    label_names: tuple[str, ...] | None = None
    rate_hz: float | None = None
    offline: OfflineReference | None = None
    graph_sha256: str = ""
    format_version: int = field(default=FORMAT_VERSION)

    def to_json(self) -> str:
        """The description as one JSON object with sorted keys, the same text for equal descriptions."""
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Description:
        """Read what ``to_json`` wrote.

        Raises:
            ModelFileError: the text is no such object; a field is missing, unknown or of the wrong kind; or the format
                is newer than this version of edgeseq.
        """
        try:
            raw = json.loads(text)
        except ValueError as error:
            raise ModelFileError(f"metadata {METADATA_KEY!r}: expected JSON, got {text[:60]!r} ({error})") from error
        if not isinstance(raw, dict):
            raise ModelFileError(f"metadata {METADATA_KEY!r}: expected a JSON object, got {type(raw).__name__}")
        version = raw.get("format_version")
        if version != FORMAT_VERSION:
            raise ModelFileError(
                f"model file of format {version!r}: this edgeseq reads format {FORMAT_VERSION}; "
                "export the model again, or install the edgeseq that wrote it"
            )
        return _from_dict(raw)


def _from_dict(raw: dict[str, Any]) -> Description:
    known = {f.name for f in fields(Description)}
    if set(raw) != known:
        missing, unknown = sorted(known - set(raw)), sorted(set(raw) - known)
        raise ModelFileError(f"metadata {METADATA_KEY!r}: missing fields {missing}, unknown fields {unknown}")
    try:
        past, future = raw["receptive_field"]
        offline = raw["offline"]
        description = Description(
            **{
                **raw,
                "input": _port(raw["input"]),
                "output": _port(raw["output"]),
                "receptive_field": (past, future),
                "state": tuple(StateSpec(**{**s, "shape": tuple(s["shape"])}) for s in raw["state"]),
                "feature_names": _names(raw["feature_names"]),
                "label_names": _names(raw["label_names"]),
                "offline": None if offline is None else OfflineReference(**offline),
            }
        )
        _check(description)
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(f"metadata {METADATA_KEY!r}: {error}; the file is damaged, export it again") from error
    return description


def _check(d: Description) -> None:
    """Raise ValueError for a field of the wrong kind."""

    def expect(what: str, expected: str, value: Any, *, right: bool) -> None:
        if not right:
            raise ValueError(f"{what}: expected {expected}, got {value!r}")

    for what, value, allowed in (("kind", d.kind, get_args(Kind)), ("law", d.law, get_args(Law))):
        expect(what, f"one of {allowed}", value, right=value in allowed)
    tensors: list[Port | StateSpec] = [d.input, d.output, *d.state]
    for each in tensors:
        expect("dtype", f"one of {get_args(DTypeName)}", each.dtype, right=each.dtype in get_args(DTypeName))
        expect("shape", "sizes of 0 or more", each.shape, right=all(_is_count(n) for n in each.shape))
    for state in d.state:
        expect("initial", "a number", state.initial, right=_is_number(state.initial))
    names = [d.name, d.graph_sha256, d.input.name, d.output.name, *(n for s in d.state for n in (s.input, s.output))]
    expect("names", "texts", names, right=all(isinstance(n, str) for n in names))
    reach = d.receptive_field
    expect("receptive_field", "two counts or null", reach, right=all(n is None or _is_count(n) for n in reach))
    expect("hop", "hop >= 1", d.hop, right=_is_count(d.hop) and d.hop >= 1)
    expect("lookahead", "lookahead >= 0", d.lookahead, right=_is_count(d.lookahead))
    expect("per_step", "true or false", d.per_step, right=isinstance(d.per_step, bool))
    expect("rate_hz", "a number above 0, or null", d.rate_hz, right=d.rate_hz is None or _is_number(d.rate_hz))


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _port(raw: Mapping[str, Any]) -> Port:
    return Port(name=raw["name"], dtype=raw["dtype"], shape=tuple(raw["shape"]))


def _names(raw: Any) -> tuple[str, ...] | None:
    if raw is None:
        return None
    if not isinstance(raw, list) or not all(isinstance(n, str) for n in raw):
        raise ValueError(f"expected a list of names, got {raw!r}")
    return tuple(raw)


def graph_sha256(model: bytes) -> str:
    """SHA-256 of a serialised ONNX model without its metadata, as hex.

    The hash covers every top-level field of the ModelProto but ``metadata_props``, so it stays the same when a
    description is written into the file, and changes with any weight, node or opset.

    Raises:
        ModelFileError: the bytes are not a well-formed protobuf message.

    Example:
        >>> graph_sha256(b"") == hashlib.sha256(b"").hexdigest()
        True

    Source: protobuf wire format, https://protobuf.dev/programming-guides/encoding/
    """
    digest = hashlib.sha256()
    view = memoryview(model)
    position = 0
    while position < len(view):
        start = position
        key, position = _varint(view, position)
        number, wire = key >> 3, key & 7
        if wire == 0:
            _, position = _varint(view, position)
        elif wire == 2:
            size, position = _varint(view, position)
            position += size
        elif wire in (1, 5):
            position += 8 if wire == 1 else 4
        else:
            raise ModelFileError(f"not an ONNX file: protobuf wire type {wire} at byte {start}")
        if number == 0 or position > len(view):
            raise ModelFileError(f"not an ONNX file, or a truncated one: field {number} at byte {start} of {len(view)}")
        if number != _METADATA_PROPS:
            digest.update(view[start:position])
    return digest.hexdigest()


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
