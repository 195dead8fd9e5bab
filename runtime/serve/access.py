"""Who may talk to the server: the token, the page's origin, and the name under which a loopback server is asked.

A server on loopback is reached by every program of the machine, browsers included, so a page of somebody else's could
ask it for data. Requests with a foreign Origin are refused, and on loopback those for a foreign Host, by which a name
that was made to point at 127.0.0.1 gives itself away (DNS rebinding).
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from edgeseq.errors import ConfigError

COOKIE = "edgeseq_token"
SHORTEST_TOKEN = 16
_HOW = 'make one with: python -c "import secrets; print(secrets.token_urlsafe())"'


@dataclass(frozen=True)
class Refusal:
    """Why a request is refused: the HTTP status, the name that it is counted under, and what the client is told."""

    status: int
    kind: str
    message: str


class Access:
    """Judges requests by their headers.

    Raises:
        ConfigError: the address is not loopback and there is no token, or the token is too short.

    Example:
        >>> access = Access("127.0.0.1", None)
        >>> access.refusal({"Host": "localhost:8765"}, None) is None
        True
        >>> access.refusal({"Host": "localhost:8765", "Origin": "https://example.org"}, None).kind
        'origin'
        >>> Access("0.0.0.0", None)
        Traceback (most recent call last):
        edgeseq.errors.ConfigError: serve: '0.0.0.0' is not a loopback address, so others can reach it: expected a ...
    """

    def __init__(self, host: str, token: str | None) -> None:
        self.is_loopback = is_loopback(host)
        if token is None and not self.is_loopback:
            raise ConfigError(
                f"serve: {host!r} is not a loopback address, so others can reach it: expected a token, got none; "
                f"{_HOW} and give it with --token-file, or in EDGESEQ_TOKEN"
            )
        if token is not None and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable()):
            raise ConfigError(
                f"serve: expected a token of {SHORTEST_TOKEN} or more printable ASCII characters, got {len(token)} "
                f"characters; {_HOW}"
            )
        self._token = token

    @property
    def needs_token(self) -> bool:
        """Whether there is one."""
        return self._token is not None

    def refusal(self, headers: Mapping[str, str], cookie: str | None) -> Refusal | None:
        """None if the request may go on. ``headers`` are looked up by their usual capitals."""
        return self.foreign(headers) or self._unknown(headers.get("Authorization"), cookie)

    def foreign(self, headers: Mapping[str, str]) -> Refusal | None:
        """Whether the request comes from another site's page, or for another site's name."""
        host = headers.get("Host", "")
        origin = headers.get("Origin")
        if self.is_loopback and not is_loopback(_name(host)):
            return Refusal(403, "host", f"expected a Host of this machine, such as localhost, got {host[:80]!r}")
        if origin is not None and origin.partition("://")[2].lower() != host.lower():
            return Refusal(403, "origin", f"pages of {origin[:80]!r} may not use this server")
        return None

    def is_token(self, given: str) -> bool:
        """Whether this is the token; takes as long for one that is nearly right as for one that is not."""
        return self._token is not None and hmac.compare_digest(given.encode("utf-8", "replace"), self._token.encode())

    def _unknown(self, authorization: str | None, cookie: str | None) -> Refusal | None:
        if self._token is None:
            return None
        scheme, _, given = (authorization or "").partition(" ")
        if scheme.lower() == "bearer" and self.is_token(given.strip()):
            return None
        if cookie is not None and self.is_token(cookie):
            return None
        return Refusal(401, "token", "expected the header Authorization: Bearer TOKEN, or the page's cookie")


def is_loopback(name: str) -> bool:
    """Whether a host's name or address is this machine's own.

    Example:
        >>> [is_loopback(name) for name in ("localhost", "127.0.0.1", "::1", "0.0.0.0", "example.org", "")]
        [True, True, True, False, False, False]
    """
    if name.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _name(host: str) -> str:
    """The name in a Host header, without the port."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
