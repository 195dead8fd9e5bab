"""The command in a process of its own, TLS, and a clean end."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import ssl
import subprocess
import sys
from pathlib import Path

import aiohttp
import pytest

from edgeseq import runtime as rt
from edgeseq.errors import ConfigError
from edgeseq.runtime.serve.server import ServeOptions, listening, make_server
from tests.runtime.serve.serving import TINY, ask, run, serving

SERVE = [sys.executable, "-m", "edgeseq", "serve", str(TINY), "--port", "0"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(number: int) -> None:
    async def test() -> None:
        process = await asyncio.create_subprocess_exec(
            *SERVE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        assert process.stdout is not None
        line = (await process.stdout.readline()).decode()
        url = line.split(" at ")[1].strip()
        async with aiohttp.ClientSession() as http:
            ws = await http.ws_connect(url + "ws")
            assert (await ws.receive_json())["model"] == "tiny"
            assert (await ask(ws, type="sample", stream_id="a", values=[0, 0, 0]))["position"] == 1
            idle = await http.get(url + "healthz")
            process.send_signal(number)
            assert (await ws.receive()).data == 1001
            await ws.close()
            idle.close()
        out, err = await process.communicate()
        assert (process.returncode, out.decode().strip(), err) == (0, "edgeseq: stopped", b"")

    run(test)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--host", "0.0.0.0"], "expected a token, got none"),
        (["--max-streams", "0"], "expected streams, a number of 1 or more"),
        (["--offline", "nowhere.onnx"], "no model file at 'nowhere.onnx'"),
        (["--tls-cert", "nowhere.pem"], "nowhere.pem"),
    ],
)
def test_wrong_arguments_are_one_line(arguments: list[str], told: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "EDGESEQ_TOKEN"}
    done = subprocess.run(
        [*SERVE, *arguments], capture_output=True, text=True, env=environment, timeout=60, check=False
    )
    assert done.returncode == 1
    assert done.stderr.startswith("edgeseq: ")
    assert told in done.stderr
    assert "Traceback" not in done.stderr


def test_a_port_that_is_taken_is_named() -> None:
    async def test() -> None:
        async with serving() as served:
            options = ServeOptions(port=int(served.base.rsplit(":", 1)[1]))
            server, _ = make_server(rt.load(TINY), options)
            with pytest.raises(ConfigError, match="cannot listen"):
                async with listening(server, options):
                    pass

    run(test)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_tls(tmp_path: Path) -> None:
    key, cert, token = tmp_path / "key.pem", tmp_path / "cert.pem", tmp_path / "token"
    token.write_text("a-token-of-some-length\n")
    made = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost -addext"
    made_of = [*made.split(), "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(made_of, check=True, capture_output=True)
    trusted = ssl.create_default_context(cafile=str(cert))

    async def test() -> None:
        async with serving(host="0.0.0.0", token_file=token, tls_cert=cert, tls_key=key) as served:
            headers = {"Authorization": "Bearer a-token-of-some-length"}
            async with served.http.get(served.base + "/ws", ssl=trusted) as answer:
                assert answer.status == 401
            ws = await served.ws(ssl=trusted, headers=headers)
            assert (await ask(ws, type="sample", stream_id="a", values=[0, 0, 0]))["position"] == 1
            await ws.close()
            login, data = served.base + "/login", {"token": "a-token-of-some-length"}
            async with served.http.post(login, data=data, ssl=trusted, allow_redirects=False) as answer:
                assert "Secure" in answer.headers["Set-Cookie"]
            with pytest.raises(aiohttp.ClientError):
                await served.http.get(served.base.replace("https", "http") + "/healthz")

    run(test)
