"""Files as feeds and sinks: formats, pace, headers, and what they refuse."""

from __future__ import annotations

import asyncio
import csv
import json
import time
from pathlib import Path
from typing import Any

import pytest

from edgeseq import runtime as rt
from edgeseq.errors import ConfigError, FeedError
from edgeseq.runtime import feeds
from edgeseq.runtime.feeds.frame import LONGEST_FRAME
from tests.runtime.feeds.running import MODEL, direct, read, walk, write_jsonl


def go(feed: str, sink: str, **settings: Any) -> feeds.RunReport:
    return asyncio.run(feeds.run(rt.load(MODEL), feed, sink, feeds.RunSettings(**settings))._run())


def test_csv_out_holds_what_json_holds(tmp_path: Path) -> None:
    samples = [*walk(5, ["a,b", 'c"d']), rt.Sample("e", [1, 2, 3])]
    sent = write_jsonl(tmp_path / "sent", samples)
    go(f"jsonl:{sent}", f"csv:{tmp_path}/out.csv")
    with (tmp_path / "out.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row, expected in zip(rows, direct(samples), strict=True):
        assert row["stream_id"] == expected["stream_id"]
        assert json.loads(row["output"]) == expected["output"]
        assert float(row["score"]) == expected["score"]
        assert row["warm_up"] == str(int(expected["warm_up"]))
        assert row["time_s"] == ("" if expected["time_s"] is None else str(expected["time_s"]))


def test_influx_in_and_out(tmp_path: Path) -> None:
    samples = walk(5, ["w 0", "w,1"])
    lines = []
    for s in samples:
        tag = s.stream_id.replace(" ", "\\ ").replace(",", "\\,")
        x, y, z = map(repr, s.values)
        nanoseconds = round((s.timestamp_s or 0) * 1e9)
        lines.append(f"imu,stream_id={tag} x={x},y={y},z={z},sequence={s.sequence}i {nanoseconds}")
    (tmp_path / "sent").write_text("# a comment\n" + "\n".join(lines) + "\n")
    go(f"influx:{tmp_path}/sent", f"jsonl:{tmp_path}/out")
    assert read(tmp_path / "out") == direct(samples)
    go(f"influx:{tmp_path}/sent", f"influx:{tmp_path}/out.influx")
    first = (tmp_path / "out.influx").read_text().splitlines()[1]
    assert first.startswith("edgeseq,stream_id=w\\,1,output_name=output index=0i,output_0=")
    assert first.endswith(" 0")


def test_the_pace_is_that_of_the_timestamps(tmp_path: Path) -> None:
    sent = write_jsonl(tmp_path / "sent", walk(26, ["w"]))  # half a second
    began = time.monotonic()
    go(f"jsonl:{sent}?speed=1", f"jsonl:{tmp_path}/true")
    true_s = time.monotonic() - began
    assert true_s >= 0.5
    (tmp_path / "bare").write_text("[1, 2, 3]\n" * 26)
    began = time.monotonic()
    go(f"jsonl:{tmp_path}/bare?speed=2&rate=100", f"jsonl:{tmp_path}/fast")
    assert time.monotonic() - began >= 0.125


def test_a_line_that_is_too_long_is_counted_and_the_next_one_read(tmp_path: Path) -> None:
    (tmp_path / "sent").write_text("[1,2,3]\n[" + "1," * LONGEST_FRAME + "\n[4,5,6]\n" + "\n[7,8,9]")
    report = go(f"jsonl:{tmp_path}/sent", f"jsonl:{tmp_path}/out")
    assert report.errors == {"too_long": 1}
    assert read(tmp_path / "out") == direct([rt.Sample("stream", [i, i + 1, i + 2]) for i in (1, 4, 7)])


def test_csv_headers(tmp_path: Path) -> None:
    (tmp_path / "sent").write_text("\ufeffz, y ,x\r\n3,2,1\r\n,2,1\r\n")
    report = go(f"csv:{tmp_path}/sent?id=w", f"jsonl:{tmp_path}/out")
    assert report.errors == {"not_finite": 1}  # a missing value, and the clock was not told what to do
    assert read(tmp_path / "out") == direct([rt.Sample("w", [1, 2, 3])])
    (tmp_path / "bare").write_text("5,1,2,3\n")
    go(f"csv:{tmp_path}/bare?columns=sequence,x,y,z", f"jsonl:{tmp_path}/out2")
    assert read(tmp_path / "out2") == direct([rt.Sample("stream", [1, 2, 3], sequence=5)])
    for wrong in ("x,x,y\n1,2,3\n", "", "sequence\n1\n", '"x\n'):
        (tmp_path / "wrong").write_text(wrong)
        with pytest.raises(FeedError, match=r"give \?columns="):
            go(f"csv:{tmp_path}/wrong", f"jsonl:{tmp_path}/out3?mode=overwrite")


def test_1000_malformed_lines_are_counted(tmp_path: Path) -> None:
    bad = ["{", "7", '"x"', "[1]", '[1,2,"3"]', "[1,2,true]", '{"values":[1,2,3],"timestamp_s":"now"}', "[1,2,1e999]"]
    good = walk(3, ["w"])
    sent = write_jsonl(tmp_path / "sent", good)
    sent.write_text("\n".join(bad[i % len(bad)] for i in range(1000)) + "\n" + sent.read_text())
    report = go(f"jsonl:{sent}", f"jsonl:{tmp_path}/out")
    assert report.errors == {
        "not_json": 125,
        "not_a_sample": 250,
        "wrong_shape": 125,
        "wrong_type": 250,
        "bad_field": 125,
        "not_finite": 125,
    }
    assert read(tmp_path / "out") == direct(good)


def test_a_sink_does_not_overwrite_unless_it_is_told_to(tmp_path: Path) -> None:
    sent, out = write_jsonl(tmp_path / "sent", walk(2, ["w"])), tmp_path / "out"
    out.write_text("precious\n")
    with pytest.raises(FeedError, match=r"holds 9 bytes already; add \?mode=append or \?mode=overwrite"):
        go(f"jsonl:{sent}", f"jsonl:{out}")
    assert out.read_text() == "precious\n"
    go(f"jsonl:{sent}", f"jsonl:{out}?mode=append")
    assert out.read_text().startswith("precious\n{")
    go(f"jsonl:{sent}", f"jsonl:{out}?mode=overwrite")
    assert read(out) == direct(walk(2, ["w"]))


def test_addresses_that_cannot_be(tmp_path: Path) -> None:
    for address, told in (
        ("walk.csv", "expected SCHEME:"),
        ("csv:", "expected csv:PATH"),
        ("csv://host/x", "expected csv:PATH"),
        ("csv:x?speed=fast", "expected speed, 'max' or a number"),
        ("csv:x?speed=0", "expected a speed above 0"),
        ("csv:x?speed=nan", "expected a speed above 0"),
        ("csv:x?rate=-1", "expected a rate above 0"),
        ("csv:x?speed", "expected SCHEME:PATH"),
        ("csv:x?id=a&id=b", "expected each option once"),
        ("csv:x?columns=x,x", "each once"),
        ("jsonl:-?resend=perhaps", "expected resend as bool"),
        ("xml:x", "expected a scheme among"),
    ):
        with pytest.raises(ConfigError, match=told):
            feeds.open_feed(address)
    with pytest.raises(ConfigError, match="expected mode"):
        feeds.open_sink("csv:x?mode=w")
    with pytest.raises(ConfigError, match="is no sink"):
        feeds.open_sink("serial:/dev/x")
    for feed, sink in ((f"csv:{tmp_path}/none", "-"), (f"jsonl:{tmp_path}", f"jsonl:{tmp_path}/none/x")):
        with pytest.raises(FeedError, match="cannot be opened"):
            go(feed, sink)
