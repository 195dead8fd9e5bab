"""The description of a model file and the hash of its graph."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgeseq.errors import ModelFileError
from edgeseq.lookahead import Lookahead, LookaheadLayer
from edgeseq.model_file import (
    FORMAT_VERSION,
    Conditions,
    Description,
    OfflineReference,
    Port,
    StateSpec,
    Timing,
    graph_sha256,
)

TINY = Path("tests/data/tiny.stream.onnx").read_bytes()

shapes = st.lists(st.integers(0, 99), max_size=3).map(tuple)

timings = st.builds(
    Timing,
    receptive_field=st.tuples(st.none() | st.integers(0, 999), st.none() | st.integers(0, 999)),
    law=st.sampled_from(["equal", "prefix", "window", "lookahead"]),
    lookahead=st.integers(0, 99),
    hop=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    delay=st.integers(0, 99),
    rows=st.lists(st.tuples(st.integers(1, 3), st.integers(-9, 9), st.integers(1, 3)), max_size=3).map(tuple),
)


@st.composite
def _ports(draw: Any) -> Port:
    shape, has_time = draw(shapes), draw(st.booleans())
    length = draw(st.none() | st.integers(0, 99)) if has_time else None
    names = None
    if shape and shape[-1] < 5:
        names = tuple(draw(st.lists(st.text(max_size=8), min_size=shape[-1], max_size=shape[-1])))
    dtype = draw(st.sampled_from(["float32", "int32", "int64"]))
    timing, n_tokens = draw(st.none() | timings), draw(st.none() | st.integers(0, 99)) if dtype[0] == "i" else None
    return Port(draw(st.text(max_size=8)), dtype, shape, has_time, length, names, timing, n_tokens)


several_ports = st.lists(_ports(), min_size=1, max_size=3).map(tuple)
states = st.builds(
    StateSpec,
    st.text(max_size=8),
    st.text(max_size=8),
    st.sampled_from(["float32", "float64"]),
    shapes,
    st.floats(allow_nan=False, allow_infinity=False),
)
layers = st.lists(
    st.builds(LookaheadLayer, st.text(max_size=8), st.integers(0, 99), st.booleans()), min_size=1, max_size=3
).map(tuple)
descriptions = st.builds(
    Description,
    kind=st.sampled_from(["offline", "stream"]),
    name=st.text(max_size=8),
    inputs=several_ports,
    outputs=several_ports,
    granule=st.integers(1, 99),
    phase=st.integers(0, 99),
    cuts=st.lists(st.integers(0, 99), max_size=3).map(tuple),
    end=st.none() | st.text(max_size=8),
    state=st.lists(states, max_size=3).map(tuple),
    provenance=st.dictionaries(st.text(max_size=8), st.text(max_size=8), max_size=3),
    rate_hz=st.none() | st.floats(0.1, 1e6),
    conditions=st.sampled_from([Conditions(), Conditions((5, 2)), Conditions((1, 0), 7), Conditions(None, 3)]),
    offline=st.none() | st.builds(OfflineReference, st.text(max_size=8), st.text(max_size=8), st.just({})),
    lookahead=st.none() | st.builds(Lookahead, st.integers(0, 99), st.integers(1, 99), layers),
    graph_sha256=st.text(max_size=64),
)
EXAMPLE = Description(
    "stream", "m", (Port("x", "float32", (6,)),), (Port("y", "float32", (7,), timing=Timing((12, 0))),)
)

FAST: dict[str, Any] = {"function": "FastStep", "start": 0, "buffers": [], "states": [], "position": None}
BUFFER = {
    "array": "ring_4",
    "rows": "rows_4",
    "width": 4,
    "rings": [{"state": "s", "axis": 1, "first": 0, "size": 2}],
    "reads": [{"slots": "slots_4", "taps_each": 1, "taps": [[0, 1]]}],
}
WRONG_READ = {"slots": "slots_4", "taps_each": 1, "taps": [[0, 9]]}
LAYER = {"node": "a", "delay": 0, "reversed_input": False}
LOOKAHEAD = {"steps": 3, "chunk": 2, "layers": [LAYER]}
RING_STATE = {"input": "s", "output": "t", "dtype": "float32", "shape": [4, 2], "initial": 0.0}

PORT = {"name": "x", "dtype": "float32", "shape": [3], "has_time": True, "length": None, "names": None, "timing": None}
TIMING: dict[str, Any] = {
    "receptive_field": [3, 0],
    "law": "equal",
    "lookahead": 0,
    "hop": [1, 1],
    "delay": 0,
    "rows": [],
}
_WRONG_TIMINGS: list[tuple[dict[str, Any], str]] = [
    ({"law": 3}, "law: expected one of"),
    ({"hop": [0, 1]}, "hop: expected two numbers >= 1"),
    ({"lookahead": -1}, "lookahead >= 0"),
    ({"delay": -1}, "delay >= 0"),
    ({"shortest": 0}, "shortest >= 1"),
    ({"rows": [[1, 2]]}, "rows: expected triples of whole numbers"),
    ({"receptive_field": ["a", 0]}, "receptive_field: expected two counts"),
    ({"receptive_field": [1, 2, 3]}, "the file is damaged"),
]
OFFLINE: dict[str, Any] = {"file": "m.onnx", "graph_sha256": ""}
STATE = {"input": "a", "output": "b", "dtype": "float32", "shape": [1], "initial": 0.0}


@given(descriptions)
def test_round_trip(description: Description) -> None:
    assert Description.from_json(description.to_json()) == description
    assert Description.from_json(description.to_json()).to_json() == description.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": FORMAT_VERSION + 1}, "this edgeseq reads formats 1 to 3; export the model again"),
        ({"format_version": None}, "model file of format None"),
        ({"kind": "other"}, "kind: expected one of"),
        ({"granule": 0}, "expected granule >= 1"),
        ({"phase": -1}, "expected phase >= 0"),
        ({"cuts": [-1]}, "cuts: expected positions"),
        ({"end": 3}, "end: expected the name of an input"),
        *(({"outputs": [{**PORT, "timing": {**TIMING, **change}}]}, message) for change, message in _WRONG_TIMINGS),
        ({"conditions": {"length_modulo": [2, 2]}}, "conditions: expected whole numbers, a remainder below"),
        ({"conditions": {"length_modulo": [2]}}, "conditions: expected whole numbers"),
        ({"conditions": {"length_modulo": 2}}, "the file is damaged"),
        ({"conditions": {"pooling_window": 0}}, "conditions: expected whole numbers"),
        ({"conditions": {"surprise": 0}}, "the file is damaged"),
        ({"conditions": None}, "the file is damaged"),
        ({"surprise": 1}, "unknown fields .'surprise'."),
        ({"inputs": [{"name": "x"}]}, "'timing'"),
        ({"inputs": []}, "inputs and outputs: expected one at least of each"),
        ({"inputs": [{**PORT, "shape": [-1]}]}, "shape: expected sizes of 0 or more"),
        ({"inputs": [{**PORT, "dtype": "float16"}]}, "dtype: expected one of"),
        ({"outputs": [{**PORT, "length": -1}]}, "length: expected steps, or null"),
        ({"outputs": [{**PORT, "has_time": False, "length": 3}]}, "length: expected steps, or null"),
        ({"outputs": [{**PORT, "has_time": "no"}]}, "has_time: expected true or false"),
        ({"outputs": [{**PORT, "names": ["a"]}]}, r"names: expected one for each of \(3,\)"),
        ({"outputs": [{**PORT, "names": "abc"}]}, "expected a list of names"),
        ({"provenance": {"keras": 3}}, "names: expected texts"),
        ({"name": 5}, "names: expected texts"),
        ({"rate_hz": "fast"}, "rate_hz: expected a number"),
        ({"rate_hz": float("inf")}, "rate_hz: expected a number"),
        ({"state": [{**STATE, "initial": float("nan")}]}, "initial: expected a number, got nan"),
        (
            {"state": [{"input": "a", "output": "b", "dtype": "float32", "shape": [1], "initial": None}]},
            "initial: expected",
        ),
        ({"state": [{"input": "a"}]}, "the file is damaged"),
        ({"offline": {"file": "m.onnx", "graph_sha256": ""}}, "'axes'; the file is damaged"),
        ({"offline": {**OFFLINE, "axes": {"x": [0]}}}, "the file is damaged"),
        ({"offline": {**OFFLINE, "axes": {"x": [0, -1]}}}, "axes: expected .batch, time. by input"),
        ({"offline": {**OFFLINE, "axes": {"x": [1, 1]}}}, "axes: expected .batch, time. by input"),
        ({"offline": {**OFFLINE, "axes": {"nothing": [0, 1]}}}, "axes: expected .batch, time. by input"),
        ({"state": [RING_STATE], "fast": {**FAST, "start": -1}}, "fast: start: expected start >= 0, got -1"),
        ({"state": [RING_STATE], "fast": {**FAST, "states": ["h"]}}, "fast: states: expected each state once"),
        ({"state": [RING_STATE], "fast": {**FAST, "position": "nowhere"}}, "fast: states: expected each state once"),
        ({"state": [RING_STATE], "fast": {**FAST, "buffers": []}}, "fast: states: expected each state once"),
        (
            {
                "state": [RING_STATE],
                "fast": {**FAST, "buffers": [{**BUFFER, "reads": [WRONG_READ]}]},
            },
            r"fast: taps: expected a row of a ring",
        ),
        (
            {"state": [RING_STATE], "fast": {**FAST, "buffers": [{**BUFFER, "width": 5}]}},
            "fast: ring: expected rows of",
        ),
        ({"fast": {"function": "f"}}, "the file is damaged"),
        ({"lookahead": {**LOOKAHEAD, "chunk": 0}}, "lookahead: expected steps >= 0 and chunk >= 1"),
        ({"lookahead": {**LOOKAHEAD, "steps": -1}}, "lookahead: expected steps >= 0 and chunk >= 1"),
        ({"lookahead": {**LOOKAHEAD, "layers": []}}, "lookahead: expected one layer at least"),
        ({"lookahead": {**LOOKAHEAD, "layers": [{**LAYER, "delay": -1}]}}, "lookahead: expected layers of a name"),
        ({"lookahead": {**LOOKAHEAD, "layers": [{"node": "a"}]}}, "the file is damaged"),
        ({"lookahead": {"steps": 1}}, "the file is damaged"),
    ],
)
def test_a_wrong_description_is_refused(change: dict[str, Any], message: str) -> None:
    text = json.dumps({**json.loads(EXAMPLE.to_json()), **change})
    with pytest.raises(ModelFileError, match=message):
        Description.from_json(text)


def test_a_stream_that_is_no_approximation_does_not_speak_of_one() -> None:
    assert "lookahead" not in json.loads(EXAMPLE.to_json())
    bounded = replace(EXAMPLE, lookahead=Lookahead(3, 2, (LookaheadLayer("a", 0),)))
    assert json.loads(bounded.to_json())["lookahead"] == LOOKAHEAD


def test_format_2_is_read_for_ever() -> None:
    text = onnx.load("tests/data/format2.stream.onnx").metadata_props[0].value
    assert json.loads(text)["format_version"] == 2
    d = Description.from_json(text)
    assert (d.fast, d.not_fast, d.output.timing) == (None, None, Timing((6, 0)))
    assert d.offline is not None
    assert d.offline.axes == {}


def test_the_offline_layout_is_kept() -> None:
    origin = OfflineReference("m.onnx", "ab", {"x": (1, 0)})
    assert Description.from_json(replace(EXAMPLE, offline=origin).to_json()).offline == origin


@pytest.mark.parametrize(("name", "kind"), [("format1.onnx", "offline"), ("format1.stream.onnx", "stream")])
def test_format_1_is_read_for_ever(name: str, kind: str) -> None:
    text = onnx.load(Path("tests/data") / name).metadata_props[0].value
    assert json.loads(text)["format_version"] == 1
    d = Description.from_json(text)
    assert (d.kind, d.input.names, d.output.names, d.output.has_time) == (kind, ("x", "y", "z"), ("rest", "move"), True)
    assert d.provenance == {}
    assert d.output.timing == Timing((6, 0))
    old = json.loads(text)
    del old["feature_names"]
    with pytest.raises(ModelFileError, match=r"'feature_names'; the file is damaged"):
        Description.from_json(json.dumps(old))


@pytest.mark.parametrize(("text", "message"), [("{", "expected JSON"), ("[]", "expected a JSON object, got list")])
def test_a_description_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        Description.from_json(text)


def test_a_missing_field_is_named() -> None:
    raw = json.loads(EXAMPLE.to_json())
    del raw["state"]
    with pytest.raises(ModelFileError, match=r"missing fields .'state'."):
        Description.from_json(json.dumps(raw))


def test_the_hash_ignores_metadata_and_sees_everything_else() -> None:
    proto = onnx.load_from_string(TINY)
    original = graph_sha256(TINY)
    proto.metadata_props[0].value = replace(EXAMPLE, name="another").to_json()
    assert graph_sha256(proto.SerializeToString(deterministic=True)) == original
    del proto.metadata_props[:]
    assert graph_sha256(proto.SerializeToString(deterministic=True)) == original
    weight = proto.graph.initializer[0]
    weight.raw_data = bytes([weight.raw_data[0] ^ 1]) + weight.raw_data[1:]
    assert graph_sha256(proto.SerializeToString(deterministic=True)) != original


@given(st.binary(max_size=64))
def test_arbitrary_bytes_are_hashed_or_refused(data: bytes) -> None:
    with contextlib.suppress(ModelFileError):
        assert len(graph_sha256(data)) == 64


@given(st.integers(1, len(TINY) - 1))
def test_a_truncated_file_never_has_the_whole_hash(size: int) -> None:
    with contextlib.suppress(ModelFileError):
        assert graph_sha256(TINY[:size]) != graph_sha256(TINY)


@pytest.mark.parametrize("data", [b"\xff" * 20, b"\x0a", b"\x0a\x05ab", b"\x03", b"\x00\x00", TINY[:-1]])
def test_what_is_no_message_is_named(data: bytes) -> None:
    with pytest.raises(ModelFileError, match="not an ONNX file"):
        graph_sha256(data)
