"""Serial ports, over a pty: lines, binary frames, noise, and a cable that is pulled."""

from __future__ import annotations

import asyncio
import os
import pty
import random
import struct
import tty
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeseq import runtime as rt
from edgeseq.errors import ConfigError, FeedError
from edgeseq.runtime import feeds
from tests.runtime.feeds.running import MODEL, direct, read, walk
from tests.runtime.feeds.test_mqtt import running, until


class Cable:
    """A pty whose near end writes, under a name that stays when it is pulled."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "port"
        self.plug()

    def plug(self) -> None:
        self.near, self._far = pty.openpty()
        tty.setraw(self.near)
        tty.setraw(self._far)
        os.set_blocking(self.near, False)
        self.path.symlink_to(os.ttyname(self._far))

    def pull(self) -> None:
        self.path.unlink()
        os.close(self.near)
        os.close(self._far)

    async def send(self, data: bytes) -> None:
        while data:
            try:
                data = data[os.write(self.near, data) :]
            except BlockingIOError:
                await asyncio.sleep(0.001)


@pytest.fixture
def cable(tmp_path: Path) -> Iterator[Cable]:
    made = Cable(tmp_path)
    yield made
    made.pull()


def plain(samples: list[rt.Sample]) -> list[rt.Sample]:
    """Samples as a port gives them, with nothing but values."""
    return [rt.Sample("stream", s.values) for s in samples]


def use(cable: Cable, options: str, pieces: list[bytes], n: int, out: Path) -> feeds.RunReport:
    run = feeds.run(rt.load(MODEL), f"serial:{cable.path}?{options}", f"jsonl:{out}")

    async def send() -> None:
        await until(lambda: run.now().transport["serial_opened"] == 1)
        for piece in pieces:
            await cable.send(piece)
        await until(lambda: run.report.predictions == n)

    return asyncio.run(running(run, send))


def test_lines_equal_the_direct_replay(cable: Cable, tmp_path: Path) -> None:
    samples = walk(50, ["w"])
    text = "".join(f"{s.sequence},{','.join(map(repr, s.values))}\r\n" for s in samples).encode()
    pieces = [text[i : i + 7] for i in range(0, len(text), 7)]
    report = use(cable, "columns=sequence,x,y,z&id=w", pieces, len(samples), tmp_path / "out.jsonl")
    untimed = [rt.Sample("w", s.values, sequence=s.sequence) for s in samples]
    assert read(tmp_path / "out.jsonl") == direct(untimed)
    assert report.errors == {}


@pytest.mark.parametrize("check", ["none", "sum8", "crc32"])
def test_binary_frames_equal_the_direct_replay(cable: Cable, tmp_path: Path, check: str) -> None:
    samples = walk(50, ["w"])
    ends: dict[str, Callable[[bytes], bytes]] = {
        "none": lambda _: b"",
        "sum8": lambda payload: bytes([sum(payload) % 256]),
        "crc32": lambda payload: zlib.crc32(payload).to_bytes(4, "little"),
    }
    payloads = [struct.pack("<3f", *s.values) for s in samples]
    data = b"".join(b"\xaa\x55" + payload + ends[check](payload) for payload in payloads)
    pieces = [data[i : i + 11] for i in range(0, len(data), 11)]
    report = use(cable, f"format=f4&check={check}", pieces, len(samples), tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl") == direct(plain(samples))
    assert report.transport["serial_skipped_bytes"] == 0


def test_frames_are_found_again_behind_noise_and_damage(cable: Cable, tmp_path: Path) -> None:
    samples, rng = walk(200, ["w"]), random.Random(0)
    pieces, n_damaged = [], 0
    for sample in samples:
        payload = struct.pack("<3f", *sample.values)
        frame = b"\xaa\x55" + payload + zlib.crc32(payload).to_bytes(4, "little")
        if rng.random() < 0.3:
            wrong = bytearray(frame)
            wrong[rng.randrange(2, len(wrong))] ^= 1 << rng.randrange(8)
            pieces.append(bytes(wrong))
            n_damaged += 1
        if rng.random() < 0.3:
            pieces.append(rng.choice([b"\xaa", b"\xaa\x55", b"\xaa\xaa", rng.randbytes(9)]))
        pieces.append(frame)
    report = use(cable, "format=f4&check=crc32", pieces, len(samples), tmp_path / "out.jsonl")
    assert read(tmp_path / "out.jsonl") == direct(plain(samples))
    assert report.transport["serial_bad_checks"] >= n_damaged


def test_what_is_no_sample_is_counted_by_name(cable: Cable, tmp_path: Path) -> None:
    bad = [b"1,2", b"a,b,c", b"\xff,1,2", b'"1,2,3', b"1,,3", b"nan,1,2", b"1e999,1,2", b"1_0,2,3"]
    good = walk(5, ["w"])
    lines = [bad[i % len(bad)] + b"\n" for i in range(1000)]
    lines += [",".join(map(repr, s.values)).encode() + b"\n" for s in good]
    report = use(cable, "columns=x,y,z", [b"".join(lines)], len(good), tmp_path / "out.jsonl")
    assert report.errors == {"not_csv": 250, "bad_number": 250, "not_utf8": 125, "not_finite": 375}
    assert read(tmp_path / "out.jsonl") == direct(plain(good))


def test_a_cable_that_was_pulled_and_plugged_in_again(cable: Cable, tmp_path: Path) -> None:
    samples, out = walk(20, ["w"]), tmp_path / "out.jsonl"
    run = feeds.run(rt.load(MODEL), f"serial:{cable.path}?columns=x,y,z", f"jsonl:{out}")
    lines = [",".join(map(repr, s.values)).encode() + b"\n" for s in samples]

    async def send() -> None:
        await until(lambda: run.now().transport["serial_opened"] == 1)
        await cable.send(b"".join(lines[:10]))
        await until(lambda: run.report.predictions == 10)
        cable.pull()
        await asyncio.sleep(0.3)
        cable.plug()
        await until(lambda: run.now().transport["serial_opened"] == 2)
        await cable.send(b"".join(lines[10:]))
        await until(lambda: run.report.predictions == 20)

    asyncio.run(running(run, send))
    assert read(out) == direct(plain(samples))


def test_a_port_that_is_not_there(tmp_path: Path) -> None:
    run: Any = feeds.run(rt.load(MODEL), f"serial:{tmp_path}/none?columns=x,y,z", f"jsonl:{tmp_path}/out.jsonl")
    with pytest.raises(FeedError, match="cannot be opened"):
        asyncio.run(run._run())


def test_addresses_that_cannot_be() -> None:
    for address, told in (
        ("serial:", "expected serial:DEVICE"),
        ("serial:/dev/x", "give \\?columns="),
        ("serial:/dev/x?format=f4&sync=xyz&size=4", "expected sync in hexadecimal"),
        ("serial:/dev/x?format=f4&size=3", "whole numbers of 4 bytes"),
        ("serial:/dev/x?format=f4&size=4&check=md5", "expected check, one of"),
        ("serial:/dev/x?format=xml", "expected a format among"),
        ("serial:/dev/x?baud=fast", "expected baud as int"),
    ):
        with pytest.raises(ConfigError, match=told):
            feeds.open_feed(address)
