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
from edgeseq.model_file import FORMAT_VERSION, Description, OfflineReference, Port, StateSpec, graph_sha256

TINY = Path("tests/data/tiny.stream.onnx").read_bytes()

names = st.none() | st.lists(st.text(max_size=8), max_size=4).map(tuple)
shapes = st.lists(st.integers(0, 99), max_size=3).map(tuple)
ports = st.builds(Port, st.text(max_size=8), st.sampled_from(["float32", "int32", "int64"]), shapes)
states = st.builds(
    StateSpec,
    st.text(max_size=8),
    st.text(max_size=8),
    st.sampled_from(["float32", "float64"]),
    shapes,
    st.floats(allow_nan=False, allow_infinity=False),
)
descriptions = st.builds(
    Description,
    kind=st.sampled_from(["offline", "stream"]),
    name=st.text(max_size=8),
    input=ports,
    output=ports,
    per_step=st.booleans(),
    receptive_field=st.tuples(st.none() | st.integers(0, 999), st.none() | st.integers(0, 999)),
    law=st.sampled_from(["equal", "prefix"]),
    lookahead=st.integers(0, 99),
    hop=st.integers(1, 99),
    state=st.lists(states, max_size=3).map(tuple),
    feature_names=names,
    label_names=names,
    rate_hz=st.none() | st.floats(0.1, 1e6),
    offline=st.none() | st.builds(OfflineReference, st.text(max_size=8), st.text(max_size=8)),
    graph_sha256=st.text(max_size=64),
)
EXAMPLE = Description(
    "stream", "m", Port("x", "float32", (6,)), Port("y", "float32", (7,)), per_step=True, receptive_field=(12, 0)
)


STATE = {"input": "a", "output": "b", "dtype": "float32", "shape": [1], "initial": 0.0}


@given(descriptions)
def test_round_trip(description: Description) -> None:
    assert Description.from_json(description.to_json()) == description
    assert Description.from_json(description.to_json()).to_json() == description.to_json()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": FORMAT_VERSION + 1}, "this edgeseq reads format 1; export the model again"),
        ({"format_version": None}, "model file of format None"),
        ({"kind": "other"}, "kind: expected one of"),
        ({"law": 3}, "law: expected one of"),
        ({"hop": 0}, "expected hop >= 1"),
        ({"lookahead": -1}, "lookahead >= 0"),
        ({"surprise": 1}, "unknown fields .'surprise'."),
        ({"input": {"name": "x"}}, "'dtype'"),
        ({"input": {"name": "x", "dtype": "float32", "shape": [-1]}}, "shape: expected sizes of 0 or more"),
        ({"input": {"name": "x", "dtype": "float16", "shape": [3]}}, "dtype: expected one of"),
        ({"name": 5}, "names: expected texts"),
        ({"rate_hz": "fast"}, "rate_hz: expected a number"),
        ({"per_step": "no"}, "per_step: expected true or false"),
        ({"receptive_field": ["a", 0]}, "receptive_field: expected two counts"),
        (
            {"state": [{"input": "a", "output": "b", "dtype": "float32", "shape": [1], "initial": None}]},
            "initial: expected",
        ),
        ({"state": [{"input": "a"}]}, "the file is damaged"),
        ({"label_names": "abc"}, "expected a list of names"),
        ({"receptive_field": [1, 2, 3]}, "the file is damaged"),
    ],
)
def test_a_wrong_description_is_refused(change: dict[str, Any], message: str) -> None:
    text = json.dumps({**json.loads(EXAMPLE.to_json()), **change})
    with pytest.raises(ModelFileError, match=message):
        Description.from_json(text)


@pytest.mark.parametrize(("text", "message"), [("{", "expected JSON"), ("[]", "expected a JSON object, got list")])
def test_a_description_that_is_none_is_refused(text: str, message: str) -> None:
    with pytest.raises(ModelFileError, match=message):
        Description.from_json(text)


def test_a_missing_field_is_named() -> None:
    raw = json.loads(EXAMPLE.to_json())
    del raw["law"]
    with pytest.raises(ModelFileError, match=r"missing fields .'law'."):
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
