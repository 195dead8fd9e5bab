"""Decoders: whatever the bytes, a sample, nothing, or a named error; and what no run may stumble over."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgeseq import runtime as rt
from edgeseq.errors import FrameError
from edgeseq.runtime import feeds
from edgeseq.runtime.feeds.address import Address
from edgeseq.runtime.feeds.decode import DECODERS, KINDS, decoder
from edgeseq.runtime.feeds.lines import InputFeed
from edgeseq.runtime.feeds.registry import Context
from tests.runtime.feeds.running import MODEL, as_json, walk

PARTS = ['{"', '"', "values", "sequence", ":", "[", "]", "}", ",", "1", "-", ".5", "e", " ", "=", "i"]
ALIKE = st.lists(st.sampled_from(PARTS))


@pytest.mark.parametrize("name", sorted(DECODERS))
@settings(max_examples=200, deadline=None)
@given(data=st.one_of(st.binary(max_size=60), ALIKE.map(lambda parts: "".join(parts).encode())))
def test_any_bytes_are_a_sample_nothing_or_a_named_error(name: str, data: bytes) -> None:
    made = decoder(name, "sequence,timestamp_s,stream_id,x,y")
    try:
        got: object = made.sample(data, "here", "w")
    except FrameError as error:
        got = error
    if isinstance(got, FrameError):
        assert got.kind in KINDS
        assert str(got).startswith("here: expected")
    else:
        assert got is None or isinstance(got, rt.Sample)


@pytest.mark.parametrize(
    "text",
    [
        '{"stream_id": "\\ud800", "values": [1, 2, 3]}',
        '{"stream_id": "' + "w" * 1001 + '", "values": [1, 2, 3]}',
        '{"stream_id": "", "values": [1, 2, 3]}',
        '{"sequence": true, "values": [1, 2, 3]}',
        '{"sequence": ' + "9" * 30 + ', "values": [1, 2, 3]}',
        '{"timestamp_s": NaN, "values": [1, 2, 3]}',
        '{"timestamp_s": ' + "9" * 400 + ', "values": [1, 2, 3]}',
    ],
)
def test_fields_that_cannot_be(text: str) -> None:
    with pytest.raises(FrameError) as error:
        decoder("jsonl").sample(text.encode(), "here", "w")
    assert error.value.kind == "bad_field"
    assert len(str(error.value)) < 300


def test_no_depth_of_nesting_ends_a_run_that_keeps_a_journal(tmp_path: Path) -> None:
    deep = ['{"values": ' + "[" * n + "]" * n + "}" for n in range(900, 1000, 3)]
    good = walk(3, ["w"])
    (tmp_path / "sent").write_text("\n".join(deep) + "\n" + "".join(as_json(s) + "\n" for s in good))
    with (tmp_path / "sent").open("rb") as file:
        feed = InputFeed(Address.parse("jsonl:-"), Context(), file.fileno())
        run = feeds.run(
            rt.load(MODEL), feed, f"influx:{tmp_path}/out", feeds.RunSettings(snapshot_dir=tmp_path / "state")
        )
        report = asyncio.run(run._run())
    assert report.predictions == 3
    assert sum(report.errors.values()) == len(deep)


def test_a_bare_value_of_any_json_type_is_no_sample() -> None:
    for value in (None, True, 1, "x"):
        with pytest.raises(FrameError) as error:
            decoder("jsonl").sample(json.dumps(value).encode(), "here", "w")
        assert error.value.kind == "not_a_sample"
