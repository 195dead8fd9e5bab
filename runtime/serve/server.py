"""Running the server: files, address, TLS, and a clean end at SIGTERM."""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from aiohttp import web

from edgeseq.errors import ConfigError
from edgeseq.runtime.model import Model, load
from edgeseq.runtime.offline import OfflineModel, load_offline
from edgeseq.runtime.serve.access import Access
from edgeseq.runtime.serve.app import Server
from edgeseq.runtime.serve.counters import Counters
from edgeseq.runtime.serve.inference import Inference
from edgeseq.runtime.serve.limits import Limits
from edgeseq.runtime.serve.live import GUESSED_RATE_HZ, Live
from edgeseq.runtime.serve.recording import Recording, check_port, made_up, read_csv
from edgeseq.runtime.serve.replay import Replay
from edgeseq.runtime.serve.streams import Streams

_DRAIN_S = 5.0


@dataclass(frozen=True)
class ServeOptions:
    """What ``edgeseq serve`` is told.

    Attributes:
        host, port: to listen on; port 0 is any that is free.
        token_file: a file that holds the token; EDGESEQ_TOKEN otherwise.
        tls_cert, tls_key: files of a certificate chain and its key, in PEM.
        lookahead, offline, replay: for the live page: a second stream file, an offline file, a CSV file.
        limits: of clients.
    """

    host: str = "127.0.0.1"
    port: int = 8765
    token_file: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    lookahead: Path | None = None
    offline: Path | None = None
    replay: Path | None = None
    limits: Limits = field(default_factory=Limits)


def serve(model: Path, options: ServeOptions) -> None:
    """Serve a stream file until SIGTERM or SIGINT, then end all connections and return.

    Raises:
        ConfigError: the options do not fit together, or the address cannot be listened on.
        ModelFileError: a file is no model of its kind.
    """
    server, context = make_server(load(model), options)
    asyncio.run(_run(server, options, context))


def make_server(model: Model, options: ServeOptions) -> tuple[Server, ssl.SSLContext | None]:
    """All that can be checked before a socket is opened.

    Raises:
        ConfigError, ModelFileError: as ``serve``.
    """
    access, context = Access(options.host, _token(options.token_file)), _tls(options)
    counters = Counters()
    streams = Streams(model, options.limits, counters)
    server = Server(
        streams,
        access,
        _live(model, options, counters),
        Inference(model, options.limits.window_samples),
        uses_tls=context is not None,
    )
    return server, context


async def _run(server: Server, options: ServeOptions, context: ssl.SSLContext | None) -> None:
    stopping = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stopping.set)
    async with listening(server, options, context) as port:
        scheme = "http" if context is None else "https"
        host = f"[{options.host}]" if ":" in options.host else options.host
        print(f"edgeseq serves {server.streams.model.name!r} at {scheme}://{host}:{port}/", flush=True)
        if context is None and not server.access.is_loopback:
            print("warning: without TLS the token can be read on the way; see --tls-cert", file=sys.stderr, flush=True)
        await stopping.wait()
    print("edgeseq: stopped", flush=True)


class listening:  # noqa: N801  reads as a statement: async with listening(...) as port
    """Listens while the block runs; gives the port."""

    def __init__(self, server: Server, options: ServeOptions, context: ssl.SSLContext | None = None) -> None:
        self._runner = web.AppRunner(
            server.app(), access_log=None, handle_signals=False, keepalive_timeout=15.0, shutdown_timeout=_DRAIN_S
        )
        self._options, self._context = options, context

    async def __aenter__(self) -> int:
        await self._runner.setup()
        site = web.TCPSite(self._runner, self._options.host, self._options.port, ssl_context=self._context)
        try:
            await site.start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(
                f"serve: cannot listen on {self._options.host!r}, port {self._options.port} ({error.strerror}); choose "
                "another with --host and --port"
            ) from error
        return int(self._runner.addresses[0][1])

    async def __aexit__(self, *_error: object) -> None:
        await self._runner.cleanup()


def _token(path: Path | None) -> str | None:
    if path is None:
        return os.environ.get("EDGESEQ_TOKEN") or None
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file {str(path)!r}: expected a readable file of one token ({error})") from error


def _tls(options: ServeOptions) -> ssl.SSLContext | None:
    cert, key = options.tls_cert, options.tls_key
    if cert is None:
        if key is not None:
            raise ConfigError("serve: --tls-key needs --tls-cert, the certificate that belongs to it")
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(cert, key)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"serve: expected PEM files of a certificate and its key, got --tls-cert {str(cert)!r} and --tls-key "
            f"{str(key)!r} ({error})"
        ) from error
    return context


def _live(model: Model, options: ServeOptions, counters: Counters) -> Live | ConfigError:
    """The page's replay; an error where nobody asked for one and the page cannot show the model."""
    asked = any((options.lookahead, options.offline, options.replay))
    try:
        check_port(model.input, len(model.description.inputs))
    except ConfigError as error:
        if asked:
            raise
        return error
    lookahead = None if options.lookahead is None else load(options.lookahead)
    offline = None if options.offline is None else load_offline(options.offline)
    if options.replay is None:
        recording = made_up(model.input, model.rate_hz or GUESSED_RATE_HZ)
    else:
        recording = read_csv(options.replay, model.input)
    return Live(_maker(model, recording, lookahead, offline), model, counters)


def _maker(
    model: Model, recording: Recording, lookahead: Model | None, offline: OfflineModel | None
) -> Callable[[], Replay]:
    return lambda: Replay(model, recording, lookahead=lookahead, offline=offline)
