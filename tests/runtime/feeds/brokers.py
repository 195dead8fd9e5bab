"""Real MQTT brokers: mosquitto where it is installed, amqtt otherwise."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

_PATH = "/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin"
MOSQUITTO = None if os.environ.get("EDGESEQ_TEST_BROKER") == "amqtt" else shutil.which("mosquitto", path=_PATH)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Broker:
    """A broker of its own on a loopback port, which can be killed and started again."""

    def __init__(self, folder: Path, *, lines: str = "") -> None:
        self.port = free_port()
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        if MOSQUITTO:
            config = folder / "mosquitto.conf"
            access = lines or "allow_anonymous true"
            config.write_text(
                f"listener {self.port} 127.0.0.1\nuser root\npersistence true\npersistence_location {folder}/\n"
                f"max_queued_messages 0\n{access}\n"
            )
            self._command = [MOSQUITTO, "-c", str(config)]
        else:
            config = folder / "amqtt.yaml"
            config.write_text(
                f"listeners:\n  default:\n    type: tcp\n    bind: 127.0.0.1:{self.port}\n"
                "plugins:\n  amqtt.plugins.authentication.AnonymousAuthPlugin:\n    allow_anonymous: true\n"
            )
            self._command = [sys.executable, "-m", "amqtt.scripts.broker_script", "-c", str(config)]
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        end = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                assert self._process.poll() is None, "the broker did not start"
                assert time.monotonic() < end, "the broker did not start"
                time.sleep(0.02)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def address(self, rest: str) -> str:
        return f"mqtt://127.0.0.1:{self.port}/{rest}"
