"""The command ``edgeseq serve``."""

from __future__ import annotations

from pathlib import Path

from edgeseq.errors import MissingDependencyError
from edgeseq.runtime.serve.limits import Limits


def serve(
    model: Path,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8765,
    token_file: Path | None = None,
    tls_cert: Path | None = None,
    tls_key: Path | None = None,
    lookahead: Path | None = None,
    offline: Path | None = None,
    replay: Path | None = None,
    max_frame_bytes: int = Limits.frame_bytes,
    max_samples: int = Limits.samples,
    max_window_samples: int = Limits.window_samples,
    max_streams: int = Limits.streams,
    max_all_streams: int = Limits.all_streams,
    max_kept: int = Limits.kept,
    max_connections: int = Limits.connections,
    slow_s: float = Limits.slow_s,
    idle_s: float = Limits.idle_s,
) -> None:
    """Serve a model: a WebSocket for streams, a live page, /metrics, and single windows over HTTP.

    Args:
        model: a stream file, NAME.stream.onnx.
        host: the address to listen on; one that is not loopback needs a token.
        port: 0 for any that is free.
        token_file: a file with the token that clients must show; EDGESEQ_TOKEN in the environment otherwise.
        tls_cert: a file of the certificate chain, in PEM; the server then speaks TLS.
        tls_key: a file of its key, in PEM, where that is another.
        lookahead: for the live page, a stream file that sees a little of the future.
        offline: for the live page, an offline file, which sees all of it.
        replay: for the live page, a CSV file with a header and a column for each channel.
        max_frame_bytes: of one WebSocket message or HTTP body.
        max_samples: of one frame; while it is computed, others wait.
        max_window_samples: of all windows of one HTTP request.
        max_streams: that one connection may have open.
        max_all_streams: that all connections together may have open.
        max_kept: streams that outlive their connections.
        max_connections: at a time.
        slow_s: seconds that a client may leave an answer unread.
        idle_s: seconds after which a kept stream to which nobody came back is closed.
    """
    try:
        from edgeseq.runtime.serve.server import ServeOptions
        from edgeseq.runtime.serve.server import serve as run
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f'this command needs the package {error.name!r}; install it with pip install "edgeseq[serve]"'
        ) from error
    limits = Limits(
        frame_bytes=max_frame_bytes,
        samples=max_samples,
        window_samples=max_window_samples,
        streams=max_streams,
        all_streams=max_all_streams,
        kept=max_kept,
        connections=max_connections,
        slow_s=slow_s,
        idle_s=idle_s,
    )
    run(model, ServeOptions(host, port, token_file, tls_cert, tls_key, lookahead, offline, replay, limits))
