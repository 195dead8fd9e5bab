"""The model file: what an edgeseq ``.onnx`` file says of itself, and how its graph is hashed.

This is the one thing that the exporter (which writes it) and the runtime (which reads it) share; neither imports the
other for it, and this module needs the standard library alone. The description is one JSON object under the metadata
key ``edgeseq``. Fields are documented in ``docs/model-file.md``; reading refuses a description that lacks one, has one
of the wrong kind, or is of a newer format; older formats are read for ever. Invariant:
``Description.from_json(d.to_json()) == d``.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal, get_args

from edgeseq.errors import ModelFileError
from edgeseq.fast_form import FastForm, check_fast_form, read_fast_form
from edgeseq.lookahead import Lookahead, check_lookahead, read_lookahead
from edgeseq.protobuf import fields

FORMAT_VERSION = 3
METADATA_KEY = "edgeseq"

Kind = Literal["offline", "stream"]
Law = Literal["equal", "prefix", "window", "lookahead"]
DTypeName = Literal["float32", "float64", "int32", "int64"]

NEVER = 2**40
"""What a stream's input ``end`` is given until the number of samples is known: 34 years at 1 kHz."""

# Field 14 of ModelProto in onnx.proto: metadata_props.
_METADATA_PROPS = 14


@dataclass(frozen=True)
class Timing:
    """When a stream gives the rows of one output, and what they equal.

    ``hop`` is (samples, rows): so many samples give so many rows, and row j belongs to sample j · samples / rows. The
    first ``delay`` rows of the step graph belong to no sample and are dropped. ``lookahead`` is how many samples after
    its own a row comes at the latest. ``receptive_field`` is (past, future) in samples beside a row's own; None means
    unbounded. ``law`` is "equal" when row j equals the offline model's row j, and "prefix" when it equals the offline
    model's output on the samples that it has seen; "lookahead" is an approximation, which ``Lookahead`` defines.
    ``rows`` says how many rows n samples have: for each (multiply, add, divide) in turn, n becomes max(0, (n · multiply
    + add) // divide). The offline model is defined from ``shortest`` samples on: of fewer, some window inside it fits
    nowhere.
    """

    receptive_field: tuple[int | None, int | None]
    law: Law = "equal"
    lookahead: int = 0
    hop: tuple[int, int] = (1, 1)
    delay: int = 0
    rows: tuple[tuple[int, int, int], ...] = ()
    shortest: int = 1

    @property
    def by_row(self) -> bool:
        """Whether row j is held to row j of the offline model, rather than to its one value for the sequence."""
        return self.law in ("equal", "lookahead")

    def count_rows(self, n_samples: int) -> int:
        """How many rows the offline model has for so many samples.

        Example:
            >>> Timing((0, 2), rows=((1, -2, 1), (1, 1, 2))).count_rows(10)  # a valid convolution, then a stride of 2
            4
        """
        n = n_samples
        for multiply, add, divide in self.rows:
            n = max(0, (n * multiply + add) // divide)
        return n


@dataclass(frozen=True)
class Port:
    """A named input or output of the graph.

    ``shape`` leaves out batch and time: it is (C,) for a sensor of C channels, () for a token. ``has_time`` is False
    for a port with one value for the whole sequence, and ``length`` is the number of steps of a model that takes (or
    gives) no other, None for any. ``names`` are those of the channels. ``timing``, of an output, is known where the
    model streams exactly. Tokens are below ``vocabulary``; it is None where nothing is known of that.
    """

    name: str
    dtype: DTypeName
    shape: tuple[int, ...]
    has_time: bool = True
    length: int | None = None
    names: tuple[str, ...] | None = None
    timing: Timing | None = None
    vocabulary: int | None = None

    @property
    def array_shape(self) -> tuple[int | None, ...]:
        """The shape of one sequence's array: ``shape``, after the number of steps (None for any) where there is time.

        Example:
            >>> Port("x", "float32", (6,)).array_shape, Port("x", "int32", (), length=100).array_shape
            ((None, 6), (100,))
        """
        return (self.length, *self.shape) if self.has_time else self.shape


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
    """The offline model that a stream equals: its file name and the hash of its graph.

    ``axes`` says of its inputs, by name, where they have (batch, time); without an entry that is (0, 1).
    """

    file: str
    graph_sha256: str
    axes: dict[str, tuple[int, int]] = field(default_factory=dict, hash=False)


@dataclass(frozen=True)
class Conditions:
    """Under which a stream equals its offline model.

    ``length_modulo``: (modulus, remainder) of the length of every sequence. ``pooling_window``: so many rows, after
    which a pool sees the last ones alone. None for no such condition.
    """

    length_modulo: tuple[int, int] | None = None
    pooling_window: int | None = None

    def allow(self, n_samples: int) -> bool:
        """Whether a sequence may have so many samples.

        Example:
            >>> Conditions(length_modulo=(4, 1)).allow(9), Conditions(length_modulo=(4, 1)).allow(8)
            (True, False)
        """
        modulus, remainder = self.length_modulo or (1, 0)
        return n_samples % modulus == remainder


_LEFT_OUT = {"conditions": asdict(Conditions()), "lookahead": None}
"""Fields that are not written where they say nothing, so that readers of before there were any read the file."""


@dataclass(frozen=True)
class Description:
    """Everything that a model file says of itself.

    Of a stream: every call takes a multiple of ``granule`` samples, the first ``phase`` of a stream being zeros that
    belong to no sample; a call does not reach across one of the positions ``cuts``, in samples from the start, those
    zeros included; and the input ``end`` takes, for each sequence, how many samples it has (``NEVER`` until that is
    known). ``lookahead`` says how its layers that run backwards are approximated, None for a stream that equals the
    offline model. ``fast`` is its fast form, ``not_fast`` the reason why there is none. ``provenance`` names what the
    file was made from and with.

    Example:
        >>> d = Description(kind="offline", name="m", inputs=(Port("x", "float32", (6,)),),
        ...                 outputs=(Port("y", "float32", (7,)),))
        >>> Description.from_json(d.to_json()) == d
        True
    """

    kind: Kind
    name: str
    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    state: tuple[StateSpec, ...] = ()
    granule: int = 1
    phase: int = 0
    cuts: tuple[int, ...] = ()
    end: str | None = None
    rate_hz: float | None = None
    provenance: dict[str, str] = field(default_factory=dict, hash=False)
    offline: OfflineReference | None = None
    fast: FastForm | None = None
    not_fast: str | None = None
    conditions: Conditions = Conditions()
    lookahead: Lookahead | None = None
    graph_sha256: str = ""
    format_version: int = field(default=FORMAT_VERSION)

    @property
    def input(self) -> Port:
        """The input of a model that has one."""
        (port,) = self.inputs
        return port

    @property
    def output(self) -> Port:
        """The output of a model that has one."""
        (port,) = self.outputs
        return port

    @property
    def state_bytes(self) -> int:
        """Bytes of state that one stream carries from step to step."""
        return sum(math.prod(s.shape) * int(re.sub(r"\D", "", s.dtype)) // 8 for s in self.state)

    def to_json(self) -> str:
        """The description as one JSON object with sorted keys, the same text for equal descriptions."""
        raw = asdict(self)
        for name, nothing in _LEFT_OUT.items():
            if raw[name] == nothing:
                del raw[name]
        for port in (*raw["inputs"], *raw["outputs"]):
            if port["vocabulary"] is None:
                del port["vocabulary"]
        return json.dumps(raw, sort_keys=True)

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
        if version in _OLDER:
            raw = _OLDER[version](raw)
        elif version != FORMAT_VERSION:
            raise ModelFileError(
                f"model file of format {version!r}: this edgeseq reads formats 1 to {FORMAT_VERSION}; "
                "export the model again, or install the edgeseq that wrote it"
            )
        return _from_dict(raw)


def _from_format_1(old: dict[str, Any]) -> dict[str, Any]:
    """Format 1 had one input and one output, and the names of their channels beside them."""
    try:
        raw = dict(old)
        source, output = raw.pop("input"), raw.pop("output")
        source = {**source, "has_time": True, "length": None, "names": raw.pop("feature_names"), "timing": None}
        output = {**output, "has_time": raw.pop("per_step"), "length": None, "names": raw.pop("label_names")}
        timing: dict[str, Any] = {key: raw.pop(key) for key in ("receptive_field", "law", "lookahead", "hop")}
        output["timing"] = {**timing, "hop": [timing["hop"], 1], "delay": 0, "rows": [], "shortest": 1}
        if raw["kind"] == "offline" and timing["receptive_field"] == [None, None]:  # it was not analysed
            output["timing"] = None
    except (KeyError, TypeError) as error:
        raise _damaged(error) from error
    new = {"inputs": [source], "outputs": [output], "granule": 1, "phase": 0, "cuts": [], "end": None, "provenance": {}}
    return _from_format_2({**raw, **new})


def _from_format_2(old: dict[str, Any]) -> dict[str, Any]:
    """Format 2 had no fast form, and did not say where the offline model has batch and time: first and second."""
    origin = old.get("offline")
    axes = {"offline": {**origin, "axes": {}}} if isinstance(origin, dict) else {}
    return {**old, **axes, "fast": None, "not_fast": None, "format_version": FORMAT_VERSION}


_OLDER = {1: _from_format_1, 2: _from_format_2}


def _damaged(error: Exception) -> ModelFileError:
    return ModelFileError(f"metadata {METADATA_KEY!r}: {error}; the file is damaged, export it again")


def _from_dict(raw: dict[str, Any]) -> Description:
    known = {f.name for f in dataclasses.fields(Description)}
    raw = {**_LEFT_OUT, **raw}
    if set(raw) != known:
        missing, unknown = sorted(known - set(raw)), sorted(set(raw) - known)
        raise ModelFileError(f"metadata {METADATA_KEY!r}: missing fields {missing}, unknown fields {unknown}")
    try:
        offline = raw["offline"]
        description = Description(
            **{
                **raw,
                "inputs": tuple(_port(port) for port in raw["inputs"]),
                "outputs": tuple(_port(port) for port in raw["outputs"]),
                "cuts": tuple(raw["cuts"]),
                "state": tuple(StateSpec(**{**s, "shape": tuple(s["shape"])}) for s in raw["state"]),
                "offline": None if offline is None else _offline(offline),
                "conditions": _conditions(raw["conditions"]),
                "lookahead": None if raw["lookahead"] is None else read_lookahead(raw["lookahead"]),
                "fast": None if raw["fast"] is None else read_fast_form(raw["fast"]),
            }
        )
        _check(description)
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(error) from error
    return description


def _check(d: Description) -> None:
    """Raise ValueError for a field of the wrong kind."""

    def expect(what: str, expected: str, value: Any, *, right: bool) -> None:
        if not right:
            raise ValueError(f"{what}: expected {expected}, got {value!r}")

    expect("kind", f"one of {get_args(Kind)}", d.kind, right=d.kind in get_args(Kind))
    expect("inputs and outputs", "one at least of each", (d.inputs, d.outputs), right=bool(d.inputs and d.outputs))
    ports = [*d.inputs, *d.outputs]
    tensors: list[Port | StateSpec] = [*ports, *d.state]
    for each in tensors:
        expect("dtype", f"one of {get_args(DTypeName)}", each.dtype, right=each.dtype in get_args(DTypeName))
        expect("shape", "sizes of 0 or more", each.shape, right=all(_is_count(n) for n in each.shape))
    for state in d.state:
        expect("initial", "a number", state.initial, right=_is_number(state.initial))
    for port in ports:
        expect("has_time", "true or false", port.has_time, right=isinstance(port.has_time, bool))
        right = port.length is None or (port.has_time and _is_count(port.length))
        expect("length", "steps, or null for any, or without time", port.length, right=right)
        right = port.names is None or port.shape[-1:] == (len(port.names),)
        expect("names", f"one for each of {port.shape}", port.names, right=right)
        right = port.vocabulary is None or (_is_count(port.vocabulary) and port.dtype in {"int32", "int64"})
        expect("vocabulary", "how many tokens there are, or null", port.vocabulary, right=right)
        if port.timing is not None:
            _check_timing(port.timing, expect)
    names = [d.name, d.graph_sha256, *(p.name for p in ports), *(n for s in d.state for n in (s.input, s.output))]
    names += [*d.provenance, *d.provenance.values()]
    expect("names", "texts", names, right=all(isinstance(n, str) for n in names))
    expect("granule", "granule >= 1", d.granule, right=_is_count(d.granule) and d.granule >= 1)
    expect("phase", "phase >= 0", d.phase, right=_is_count(d.phase))
    expect("cuts", "positions", d.cuts, right=all(_is_count(n) for n in d.cuts))
    expect("end", "the name of an input, or null", d.end, right=d.end is None or isinstance(d.end, str))
    expect("conditions", "whole numbers, a remainder below its modulus", d.conditions, right=_are_right(d.conditions))
    if d.lookahead is not None:
        check_lookahead(d.lookahead, expect)
    if d.fast is not None:
        check_fast_form(d.fast, {state.input: state for state in d.state}, expect)
    if d.offline is not None:
        named = [*d.offline.axes.values()]
        right = all(_is_count(b) and _is_count(t) and b != t for b, t in named)
        right = right and set(d.offline.axes) <= {port.name for port in d.inputs}
        expect("axes", "(batch, time) by input", d.offline.axes, right=right)
    expect("rate_hz", "a number above 0, or null", d.rate_hz, right=d.rate_hz is None or _is_number(d.rate_hz))


def _are_right(conditions: Conditions) -> bool:
    promise, window = conditions.length_modulo, conditions.pooling_window
    right = promise is None or (len(promise) == 2 and all(map(_is_count, promise)) and promise[1] < promise[0])
    return right and (window is None or (_is_count(window) and window > 0))


def _check_timing(t: Timing, expect: Callable[..., None]) -> None:
    expect("law", f"one of {get_args(Law)}", t.law, right=t.law in get_args(Law))
    reach = t.receptive_field
    expect("receptive_field", "two counts or null", reach, right=all(n is None or _is_count(n) for n in reach))
    right = len(t.hop) == 2 and all(_is_count(n) and n >= 1 for n in t.hop)
    expect("hop", "two numbers >= 1", t.hop, right=right)
    expect("lookahead", "lookahead >= 0", t.lookahead, right=_is_count(t.lookahead))
    expect("delay", "delay >= 0", t.delay, right=_is_count(t.delay))
    expect("shortest", "shortest >= 1", t.shortest, right=_is_count(t.shortest) and t.shortest >= 1)
    right = all(len(step) == 3 and all(type(n) is int for n in step) and step[2] >= 1 for step in t.rows)
    expect("rows", "triples of whole numbers", t.rows, right=right)


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _port(raw: Mapping[str, Any]) -> Port:
    timing = raw["timing"]
    if timing is not None:
        past, future = timing["receptive_field"]
        rows = tuple(tuple(step) for step in timing["rows"])
        timing = Timing(**{**timing, "receptive_field": (past, future), "hop": tuple(timing["hop"]), "rows": rows})
    return Port(**{**raw, "shape": tuple(raw["shape"]), "names": _names(raw["names"]), "timing": timing})


def _offline(raw: Mapping[str, Any]) -> OfflineReference:
    axes = {name: (batch, time) for name, (batch, time) in raw["axes"].items()}
    return OfflineReference(**{**raw, "axes": axes})


def _conditions(raw: Mapping[str, Any]) -> Conditions:
    given = {**raw}
    if given.get("length_modulo") is not None:
        given["length_modulo"] = tuple(given["length_modulo"])
    return Conditions(**given)


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
    """
    digest = hashlib.sha256()
    for each in fields(model):
        if each.number != _METADATA_PROPS:
            digest.update(each.whole)
    return digest.hexdigest()
