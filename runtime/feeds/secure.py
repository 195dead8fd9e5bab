"""TLS and secrets of network addresses: certificates, and passwords and tokens from files.

A secret in an address can be read by whoever lists the processes of the machine, so each can stand in a file instead.
"""

from __future__ import annotations

import ssl
from pathlib import Path

from edgeseq.errors import ConfigError


def client_tls(ca: str | None, cert: str | None, key: str | None) -> ssl.SSLContext:
    """What a client needs: ``ca``, the file of the authority, the system's by default; ``cert`` and ``key``, its own.

    Raises:
        ConfigError: a file cannot be used.
    """
    try:
        context = ssl.create_default_context(cafile=ca)
        if cert is not None:
            context.load_cert_chain(cert, key)
        return context
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"TLS: cannot use ca={ca!r}, cert={cert!r}, key={key!r}: {error}") from error


def server_tls(cert: str | None, key: str | None) -> ssl.SSLContext:
    """What a server needs: its certificate and key.

    Raises:
        ConfigError: there is none, or a file cannot be used.
    """
    if cert is None:
        raise ConfigError("TLS: a server needs a certificate; give ?cert=FILE&key=FILE")
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(cert, key)
        return context
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"TLS: cannot use cert={cert!r}, key={key!r}: {error}") from error


def secret(given: str | None, file: str | None, what: str) -> str | None:
    """A secret as it was given, or the first line of a file.

    Raises:
        ConfigError: both are given, or the file cannot be read or is empty.
    """
    if file is None:
        return given
    if given is not None:
        raise ConfigError(f"{what}: expected it in the address or in a file, got both")
    try:
        lines = Path(file).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{what}: cannot read {file!r}: {error}") from error
    if not lines or not lines[0]:
        raise ConfigError(f"{what}: expected it on the first line of {file!r}, got nothing")
    return lines[0]
