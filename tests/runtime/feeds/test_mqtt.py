"""MQTT over a real broker: equal to the direct replay, acknowledged late, connected again, secured."""

from __future__ import annotations

import asyncio
import gc
import json
import shutil
import subprocess
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiomqtt
import pytest

from edgeseq import runtime as rt
from edgeseq.errors import ConfigError, FeedError
from edgeseq.runtime import feeds
from tests.runtime.feeds.brokers import MOSQUITTO, Broker
from tests.runtime.feeds.running import MODEL, as_json, by_stream, direct, edgeseq_run, read, wait_until, walk

pytestmark = pytest.mark.usefixtures("nothing_left_open")
needs_mosquitto = pytest.mark.skipif(
    not MOSQUITTO, reason="mosquitto is not installed (Debian: apt-get install mosquitto)"
)


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    made = Broker(tmp_path / "broker")
    yield made
    made.kill()


@pytest.fixture
def durable_broker(tmp_path: Path) -> Iterator[Broker]:
    """A broker that writes its database with every change, so that it keeps what it acknowledged, also when killed."""
    made = Broker(tmp_path / "broker", lines="allow_anonymous true\nautosave_interval 1\nautosave_on_changes true")
    yield made
    made.kill()


def numbered(sample: rt.Sample) -> str:
    """A sample without its stream id, which the topic says."""
    facts = json.loads(as_json(sample))
    del facts["stream_id"]
    return json.dumps(facts)


async def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


async def running(run: feeds.Run, use: Callable[[], Awaitable[None]]) -> feeds.RunReport:
    """Use a run while it goes on, then stop it."""
    task = asyncio.ensure_future(run._run())
    using = asyncio.ensure_future(use())
    either: set[asyncio.Future[Any]] = {task, using}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if using.done():
            using.result()
            run.stop()
        return await task
    finally:
        using.cancel()
        task.cancel()


def test_a_fleet_over_a_broker_equals_the_direct_replay(broker: Broker, tmp_path: Path) -> None:
    samples, out = walk(40), tmp_path / "out.jsonl"
    run = feeds.run(rt.load(MODEL), broker.address("sensors/+/imu"), f"jsonl:{out}")

    async def publish() -> None:
        await until(lambda: run.now().transport["mqtt_connections"] == 1)
        async with aiomqtt.Client("127.0.0.1", broker.port) as client:
            await asyncio.sleep(0.2)  # until the subscription is there
            for sample in samples:
                await client.publish(f"sensors/{sample.stream_id}/imu", numbered(sample), qos=1)
            await until(lambda: run.report.predictions == len(samples))

    asyncio.run(running(run, publish))
    assert by_stream(read(out)) == by_stream(direct(samples))


def test_predictions_are_published_by_stream(broker: Broker, tmp_path: Path) -> None:
    samples = walk(10)
    (tmp_path / "sent.jsonl").write_text("".join(as_json(s) + "\n" for s in samples))
    run = feeds.run(rt.load(MODEL), f"jsonl:{tmp_path}/sent.jsonl", broker.address("predictions/{stream_id}"))
    got: list[tuple[str, dict[str, Any]]] = []

    async def subscribe() -> None:
        async with aiomqtt.Client("127.0.0.1", broker.port) as client:
            await client.subscribe("predictions/#", qos=1)
            await run
            async with asyncio.timeout(30):
                async for message in client.messages:
                    assert isinstance(message.payload, bytes)
                    got.append((str(message.topic), json.loads(message.payload)))
                    if len(got) == len(samples):
                        return

    asyncio.run(subscribe())
    assert [prediction for _, prediction in got] == direct(samples)
    assert all(topic == f"predictions/{prediction['stream_id']}" for topic, prediction in got)


@needs_mosquitto
@pytest.mark.parametrize("n_kills", [3, pytest.param(20, marks=pytest.mark.extended)])
def test_a_broker_that_is_killed_loses_and_repeats_nothing(
    durable_broker: Broker, tmp_path: Path, n_kills: int
) -> None:
    broker = durable_broker
    samples, out = walk(30 * (n_kills + 1), ["w0", "w1"]), tmp_path / "out.jsonl"
    run = feeds.run(
        rt.load(MODEL),
        broker.address("sensors/+/imu?client=run"),
        f"jsonl:{out}",
        feeds.RunSettings(clock=rt.SensorClock(rate_hz=50, gap="raise")),
    )

    async def publish() -> None:
        await until(lambda: run.now().transport["mqtt_connections"] == 1)
        await asyncio.sleep(0.3)
        left, kills = list(samples), n_kills
        while left:
            try:
                async with aiomqtt.Client(
                    "127.0.0.1", broker.port, identifier="sensors", clean_session=False
                ) as client:
                    while left:
                        if kills and len(left) <= len(samples) * kills / (n_kills + 1):
                            kills -= 1
                            await asyncio.sleep(0.3)  # mosquitto writes its database after it acknowledged
                            broker.kill()
                            await asyncio.to_thread(broker.start)
                        await client.publish(f"sensors/{left[0].stream_id}/imu", numbered(left[0]), qos=1, timeout=5)
                        left.pop(0)
            except aiomqtt.MqttError:
                await asyncio.sleep(0.1)
        await until(lambda: run.report.predictions >= len(samples))

    report = asyncio.run(running(run, publish))
    assert report.errors == {}
    assert report.transport["mqtt_connections"] > n_kills / 2
    assert by_stream(read(out)) == by_stream(direct(samples))


@needs_mosquitto
def test_a_run_that_is_killed_gets_what_it_had_not_acknowledged(broker: Broker, tmp_path: Path) -> None:
    samples, out = walk(60, ["w0", "w1"]), tmp_path / "out.jsonl"
    arguments = ["--from", broker.address("sensors/+/imu?client=run"), "--to", f"jsonl:{out}"]
    arguments += ["--snapshot-dir", str(tmp_path / "state")]

    async def publish(some: list[rt.Sample]) -> None:
        async with aiomqtt.Client("127.0.0.1", broker.port) as client:
            for sample in some:
                await client.publish(f"sensors/{sample.stream_id}/imu", numbered(sample), qos=1)

    process = edgeseq_run(*arguments)
    wait_until(lambda: (tmp_path / "state" / "run.snapshot").exists())
    asyncio.run(until_subscribed(broker))
    asyncio.run(publish(samples[:80]))
    wait_until(lambda: len(read(out)) >= 40)
    process.kill()
    process.communicate()
    asyncio.run(publish(samples[80:]))  # while nobody is there
    process = edgeseq_run(*arguments)
    wait_until(lambda: len(read(out)) >= len(samples) or process.poll() is not None)
    process.terminate()
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0, told
    assert by_stream(read(out)) == by_stream(direct(samples))


async def until_subscribed(broker: Broker) -> None:
    """Until the broker counts one session that subscribes."""
    async with aiomqtt.Client("127.0.0.1", broker.port) as client:
        await client.subscribe("$SYS/broker/subscriptions/count")
        await asyncio.sleep(1.0)


def test_what_is_no_sample_is_counted_by_name(broker: Broker, tmp_path: Path) -> None:
    good = walk(5, ["w"])
    run = feeds.run(rt.load(MODEL), broker.address("raw"), f"jsonl:{tmp_path}/out.jsonl")
    bad = [
        b"",
        b"{",
        b"\xff\xfe",
        b"7",
        b'{"values": "x"}',
        b"[1, 2]",
        b"[1, 2, NaN]",
        b'{"sequence": 1.5, "values": []}',
    ]

    async def publish() -> None:
        await until(lambda: run.now().transport["mqtt_connections"] == 1)
        async with aiomqtt.Client("127.0.0.1", broker.port) as client:
            await asyncio.sleep(0.2)
            for i in range(1000):
                await client.publish("raw", bad[i % len(bad)], qos=1)
            for sample in good:
                await client.publish("raw", as_json(sample), qos=1)
            await until(lambda: run.report.predictions == len(good))

    report = asyncio.run(running(run, publish))
    assert report.errors == {
        "not_json": 125,
        "not_utf8": 125,
        "not_a_sample": 125,
        "wrong_type": 125,
        "wrong_shape": 125,
        "not_finite": 125,
        "bad_field": 125,
    }
    assert read(tmp_path / "out.jsonl") == direct(good)


@needs_mosquitto
def test_a_wrong_password_is_refused_and_not_shown(tmp_path: Path) -> None:
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-b", "-c", str(passwords), "me", "right"], check=True)
    broker = Broker(tmp_path / "broker", lines=f"allow_anonymous false\npassword_file {passwords}")
    try:
        (tmp_path / "secret").write_text("right\n")
        model = rt.load(MODEL)
        bad = feeds.run(model, f"mqtt://me:wrong@127.0.0.1:{broker.port}/raw", "jsonl:-")
        with pytest.raises(FeedError, match=r"mqtt://me:\*\*\*@.*the connection was refused"):
            asyncio.run(bad._run())
        right = feeds.run(model, f"mqtt://me@127.0.0.1:{broker.port}/raw?password_file={tmp_path}/secret", "jsonl:-")

        async def connected() -> None:
            await until(lambda: right.now().transport["mqtt_connections"] == 1)

        asyncio.run(running(right, connected))
    finally:
        broker.kill()


@needs_mosquitto
@pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)  # paho leaves the socket to the collector
@pytest.mark.skipif(not shutil.which("openssl"), reason="openssl is not installed")
def test_tls_with_an_authority_of_its_own(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost", "-days", "2"]
    make += ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(make, check=True, capture_output=True)
    broker = Broker(tmp_path / "broker", lines=f"allow_anonymous true\ncertfile {cert}\nkeyfile {key}")
    try:
        place = f"mqtts://127.0.0.1:{broker.port}/raw"
        run = feeds.run(rt.load(MODEL), f"{place}?ca={cert}", "jsonl:-")

        async def connected() -> None:
            await until(lambda: run.now().transport["mqtt_connections"] == 1)

        asyncio.run(running(run, connected))
        stranger = feeds.run(rt.load(MODEL), place, "jsonl:-")
        with pytest.raises(FeedError, match=r"refused: .*CERTIFICATE_VERIFY_FAILED.*give the authority's certificate"):
            asyncio.run(stranger._run())
        del stranger  # it holds the error, which holds the socket
        gc.collect()
    finally:
        broker.kill()


def test_addresses_that_cannot_be() -> None:
    model = rt.load(MODEL)
    for address, told in (
        ("mqtt://host", "expected mqtt://HOST/TOPIC"),
        ("mqtt://host/raw?qos=3", "expected qos, 0, 1 or 2"),
        ("mqtt://host/raw?format=csv", "messages have no header"),
        ("mqtt://host/raw?colour=red", "expected options among"),
        ("mqtt://host/raw?password_file=/nowhere", "cannot read '/nowhere'"),
        ("mqtts://host/raw?ca=/nowhere", "TLS: cannot use"),
    ):
        with pytest.raises(ConfigError, match=told):
            feeds.open_feed(address, model)
    with pytest.raises(ConfigError, match="without wildcards"):
        feeds.open_sink("mqtt://host/predictions/+")
