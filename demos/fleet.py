"""A fleet over MQTT: 20 simulated sensors at 50 Hz, a broker, ``edgeseq run``'s loop, and how long a prediction took.

    python -m demos.fleet MODEL.stream.onnx --broker 127.0.0.1:1883

Without a model, a small one that ships with the tests is used. Without a broker, mosquitto is started on a free port.
End to end is from just before a sensor publishes to when its prediction arrives at a subscriber: twice through the
broker. Sensors, run and subscriber share this process, so the figures are on the safe side.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiomqtt
import numpy as np

from edgeseq import runtime as rt
from edgeseq.runtime import feeds

_MODEL = Path(__file__).parent.parent / "tests" / "data" / "tiny.stream.onnx"


def main() -> None:
    """Run the fleet and print the latencies."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(_MODEL))
    parser.add_argument("--broker", help="HOST:PORT; without it, mosquitto is started")
    parser.add_argument("--sensors", type=int, default=20)
    parser.add_argument("--rate-hz", type=float, default=50.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    given = parser.parse_args()
    model = rt.load(given.model)
    with _broker(given.broker) as (host, port):
        felt = asyncio.run(_fleet(model, host, port, given))
    expected = given.sensors * int(given.seconds * given.rate_hz)
    print(f"{given.sensors} sensors at {given.rate_hz:g} Hz: {felt.count} of {expected} predictions")
    print(f"end to end, through the broker twice: p50 {felt.p50_us / 1e3:.2f} ms, p99 {felt.p99_us / 1e3:.2f} ms")


@contextmanager
def _broker(place: str | None) -> Iterator[tuple[str, int]]:
    if place is not None:
        host, _, port = place.rpartition(":")
        yield host, int(port)
        return
    found = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if found is None:
        raise SystemExit("fleet: mosquitto is not installed; install it, or give --broker HOST:PORT")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free: int = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder, "mosquitto.conf")
        config.write_text(f"listener {free} 127.0.0.1\nallow_anonymous true\nset_tcp_nodelay true\n")
        process = subprocess.Popen([found, "-c", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            time.sleep(0.5)
            yield "127.0.0.1", free
        finally:
            process.terminate()
            process.wait()


async def _fleet(model: rt.Model, host: str, port: int, given: argparse.Namespace) -> rt.Latency:
    n, rate_hz = given.sensors, given.rate_hz
    felt = rt.Latency()
    sent: dict[tuple[str, int], int] = {}  # (sensor, number) -> when
    place = f"mqtt://{host}:{port}"
    run = feeds.run(model, f"{place}/sensors/+/raw", f"{place}/predictions/{{stream_id}}")
    n_samples = int(given.seconds * rate_hz)

    async def sensor(client: aiomqtt.Client, name: str, seed: int) -> None:
        rng, begin = np.random.default_rng(seed), time.perf_counter() + seed / n / rate_hz
        shape = model.description.inputs[0].shape
        for number in range(n_samples):
            await asyncio.sleep(max(0, begin + number / rate_hz - time.perf_counter()))
            values = rng.normal(size=shape).round(4).tolist()
            sent[name, number] = time.perf_counter_ns()
            message = json.dumps({"sequence": number, "timestamp_s": number / rate_hz, "values": values})
            await client.publish(f"sensors/{name}/raw", message, qos=1)

    async def listen(client: aiomqtt.Client) -> None:
        async for message in client.messages:
            if isinstance(message.payload, bytes):
                prediction = json.loads(message.payload)
                felt.record(time.perf_counter_ns() - sent[prediction["stream_id"], prediction["sample"]])
                if felt.count == n * n_samples:
                    return

    options = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)]
    async with (
        aiomqtt.Client(host, port, socket_options=options) as listener,
        aiomqtt.Client(host, port, socket_options=options) as client,
    ):
        client.pending_calls_threshold = n
        await listener.subscribe("predictions/#", qos=1)
        listening = asyncio.ensure_future(listen(listener))
        running = asyncio.ensure_future(_until_done(run))
        await asyncio.sleep(1)
        await asyncio.gather(*(sensor(client, f"wrist-{i}", i) for i in range(n)))
        await asyncio.wait({listening}, timeout=10)
        listening.cancel()
        run.stop()
        print(f"edgeseq run: {await running}")
    return felt


async def _until_done(run: feeds.Run) -> feeds.RunReport:
    return await run


if __name__ == "__main__":
    main()
