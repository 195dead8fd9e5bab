"""``edgeseq run`` as a process: killed, stopped, started again, in a pipe, and scraped."""

from __future__ import annotations

import http.client
import os
import random
import re
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.runtime.feeds.running import (
    as_json,
    by_stream,
    direct,
    edgeseq_run,
    n_lines,
    read,
    wait_until,
    walk,
    write_jsonl,
)


def kill_and_restart(tmp_path: Path, n_kills: int, n_samples: int, speed: float) -> None:
    """Kill a run over a file so many times, at random moments; it must end as if nothing had happened."""
    samples = walk(n_samples)
    sent, out = write_jsonl(tmp_path / "sent.jsonl", samples), tmp_path / "out.jsonl"
    arguments: list[Any] = ["--from", f"jsonl:{sent}?speed={speed}", "--to", f"jsonl:{out}"]
    arguments += ["--snapshot-dir", tmp_path / "state", "--snapshot-every-s", "0.05"]
    rng = random.Random(n_kills)
    at = sorted(rng.sample(range(1, len(samples) - 1), n_kills))
    for n in at:
        process = edgeseq_run(*arguments)
        wait_until(lambda n=n, process=process: n_lines(out) >= n or process.poll() is not None)
        process.kill()
        process.communicate()
    process = edgeseq_run(*arguments)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert read(out) == direct(samples)


def test_a_run_that_is_killed_twice_ends_as_if_undisturbed(tmp_path: Path) -> None:
    kill_and_restart(tmp_path, 2, 300, speed=6)


@pytest.mark.extended
def test_a_run_that_is_killed_20_times_ends_as_if_undisturbed(tmp_path: Path) -> None:
    kill_and_restart(tmp_path, 20, 3000, speed=10)


def test_a_run_that_was_at_its_end_adds_nothing(tmp_path: Path) -> None:
    samples = walk(20)
    sent, out = write_jsonl(tmp_path / "sent.jsonl", samples), tmp_path / "out.jsonl"
    for _ in range(2):
        process = edgeseq_run("--from", f"jsonl:{sent}", "--to", f"jsonl:{out}", "--snapshot-dir", tmp_path / "state")
        process.communicate()
        assert process.returncode == 0
        assert read(out) == direct(samples)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_run_that_can_go_on(tmp_path: Path, number: signal.Signals) -> None:
    samples = walk(200, ["w"])
    sent, out = write_jsonl(tmp_path / "sent.jsonl", samples), tmp_path / "out.jsonl"
    arguments = ["--to", f"jsonl:{out}", "--snapshot-dir", tmp_path / "state", "--from"]
    process = edgeseq_run(*arguments, f"jsonl:{sent}?speed=2")
    wait_until(lambda: n_lines(out) >= 20)
    process.send_signal(number)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 0, told
    before = read(out)
    assert 20 <= len(before) < len(samples)
    process = edgeseq_run(*arguments, f"jsonl:{sent}")
    process.communicate(timeout=60)
    assert process.returncode == 0
    assert read(out) == direct(samples)


def test_a_pipe_that_is_killed_goes_on_where_the_producer_begins_anew(tmp_path: Path) -> None:
    samples = walk(100)
    lines = [as_json(s).encode() + b"\n" for s in samples]
    out = tmp_path / "out.jsonl"
    arguments = ["--from", "jsonl:-?resend=true", "--to", f"jsonl:{out}", "--snapshot-dir", tmp_path / "state"]
    process = edgeseq_run(*arguments, "--snapshot-every-s", "0.01", stdin=subprocess.PIPE)
    for line in lines[:150]:
        _send(process, line)
    wait_until(lambda: n_lines(out) >= 120)
    process.kill()
    process.communicate()
    process = edgeseq_run(*arguments, stdin=subprocess.PIPE)
    process.communicate(b"".join(lines))
    assert process.returncode == 0
    assert read(out) == direct(samples)


def test_a_pipe_that_is_killed_keeps_what_it_read_and_knows_what_is_sent_again(tmp_path: Path) -> None:
    samples = walk(100)
    lines = [as_json(s).encode() + b"\n" for s in samples]
    arguments = ["--from", "-", "--snapshot-dir", tmp_path / "state", "--snapshot-every-s", "60"]
    with (tmp_path / "first.jsonl").open("wb") as first:
        process = edgeseq_run(*arguments, stdin=subprocess.PIPE, stdout=first)
        for line in lines[:150]:
            _send(process, line)
        wait_until(lambda: n_lines(tmp_path / "first.jsonl") == 150)
        wait_until(lambda: _noted(tmp_path / "state" / "journal-1.jsonl") == 150)
        process.kill()
        process.communicate()
    process = edgeseq_run(*arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    (tmp_path / "second.jsonl").write_bytes(process.communicate(b"".join(lines[120:]))[0])  # 30 of them again
    both = [*read(tmp_path / "first.jsonl"), *read(tmp_path / "second.jsonl")]
    assert by_stream(both) == by_stream(direct(samples))


def _send(process: subprocess.Popen[bytes], line: bytes) -> None:
    assert process.stdin is not None
    process.stdin.write(line)
    process.stdin.flush()


def _noted(journal: Path) -> int:
    return sum(int(line) for line in journal.read_text().splitlines() if line.isdigit())


def test_metrics_are_served_while_it_runs(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = edgeseq_run("--from", "-", "--metrics", f":{port}", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        for sample in walk(5):
            _send(process, as_json(sample).encode() + b"\n")
        _send(process, b"{\n")
        assert process.stdout is not None
        for _ in range(15):
            assert process.stdout.readline()
        wait_until(lambda: "edgeseq_run_frames_total 16" in _scrape(port)[1])
        status, text = _scrape(port)
        assert status == 200
        assert 'edgeseq_run_frame_errors_total{kind="not_json"} 1' in text
        assert "edgeseq_feed_used_total 15" in text
        assert "edgeseq_step_seconds_count 15" in text
        for line in text.splitlines():
            assert re.fullmatch(r'# (HELP|TYPE) \w+ .+|\w+(\{\w+="[^"]*"\})? [-+.\deInf]+', line), line
        assert _scrape(port, "/nothing")[0] == 404
    finally:
        process.communicate()
    assert process.returncode == 0


def _scrape(port: int, path: str = "/metrics") -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read().decode()
    except ConnectionRefusedError:
        return 0, ""
    finally:
        connection.close()


def test_a_reader_that_goes_away_is_an_error_that_says_so(tmp_path: Path) -> None:
    sent = write_jsonl(tmp_path / "sent.jsonl", walk(2000))
    reading, writing = os.pipe()
    process = edgeseq_run("--from", f"jsonl:{sent}", stdout=writing)
    os.close(writing)
    os.read(reading, 100)
    os.close(reading)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert b"output: cannot be written: Broken pipe" in told


def test_a_second_run_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    arguments: list[Any] = ["--from", "-", "--snapshot-dir", tmp_path / "state"]
    process = edgeseq_run(*arguments, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    wait_until(lambda: (tmp_path / "state" / "run.snapshot").exists())
    other = edgeseq_run(*arguments, stdin=subprocess.DEVNULL)
    _, told = other.communicate(timeout=60)
    assert other.returncode == 1
    assert b"another run uses" in told
    process.communicate()
    assert process.returncode == 0
