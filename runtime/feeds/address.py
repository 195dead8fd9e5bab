"""Addresses of feeds and sinks: one URL style for all of them.

``SCHEME:PATH?option=value`` names a file, ``SCHEME://user:password@host:port/path?option=value`` a place on a network,
and ``-`` the standard input or output. An address never prints its password, and an option that its scheme does not
know is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar
from urllib.parse import parse_qsl, unquote, urlsplit

from edgeseq.errors import ConfigError

Options = TypeVar("Options")
_LONGEST_PORT = 65535
_SECRETS = ("token", "password")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a feed or a sink is.

    Example:
        >>> address = Address.parse("mqtt://me:secret@broker:1884/sensors/+/raw?qos=1")
        >>> address.scheme, address.host, address.port, address.path
        ('mqtt', 'broker', 1884, '/sensors/+/raw')
        >>> print(address)
        mqtt://me:***@broker:1884/sensors/+/raw?qos=1
        >>> Address.parse("-").scheme, Address.parse("csv:walk.csv?speed=1").path
        ('jsonl', 'walk.csv')
    """

    scheme: str
    path: str
    host: str | None = None
    port: int | None = None
    user: str | None = None
    password: str | None = field(default=None, repr=False)
    options: tuple[tuple[str, str], ...] = field(default=(), repr=False)  # a token may be among them

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read an address.

        Raises:
            ConfigError: it is none.
        """
        whole = "jsonl:-" if text == "-" else text
        scheme, colon, _ = whole.partition(":")
        if not colon or not scheme:
            raise ConfigError(f"address: expected SCHEME:..., such as csv:walk.csv or mqtt://host/topic, got {text!r}")
        try:
            parts = urlsplit(whole, allow_fragments=False)
            port = parts.port
            options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        except ValueError as error:
            raise ConfigError(f"address: expected SCHEME:PATH?option=value, got {_hidden(text)!r} ({error})") from error
        twice = {name for name, _ in options if [n for n, _ in options].count(name) > 1}
        if twice:
            raise ConfigError(f"address: expected each option once, got {sorted(twice)} twice in {_hidden(text)!r}")
        return cls(
            parts.scheme,
            unquote(parts.path),
            parts.hostname,
            port,
            None if parts.username is None else unquote(parts.username),
            None if parts.password is None else unquote(parts.password),
            tuple(options),
        )

    def read(self, options: type[Options]) -> Options:
        """The options as a dataclass, whose fields say their types and what they are by default.

        Raises:
            ConfigError: an option that the dataclass does not have, or a value that is not of its type.
        """
        known: dict[str, Any] = {each.name: each for each in fields(options)}  # type: ignore[arg-type]
        values = {}
        for name, text in self.options:
            if name not in known:
                raise ConfigError(f"{self}: expected options among {sorted(known)}, got {name!r}")
            type_name = str(known[name].type).removesuffix(" | None")
            try:
                values[name] = _READERS[type_name](text)
            except ValueError as error:
                raise ConfigError(f"{self}: expected {name} as {type_name}, got {text!r}") from error
        return options(**values)

    def __str__(self) -> str:
        place = ""
        if self.host is not None:
            user = "" if self.user is None else self.user + ("" if self.password is None else ":***") + "@"
            host = f"[{self.host}]" if ":" in self.host else self.host
            place = f"//{user}{host}" + ("" if self.port is None else f":{self.port}")
        options = "&".join(f"{name}={'***' if name in _SECRETS else value}" for name, value in self.options)
        return f"{self.scheme}:{place}{self.path}" + (f"?{options}" if options else "")


def host_and_port(text: str, *, host: str = "127.0.0.1") -> tuple[str, int]:
    """What ``HOST:PORT`` or ``:PORT`` names.

    Raises:
        ConfigError: it is none.

    Example:
        >>> host_and_port(":9100")
        ('127.0.0.1', 9100)
    """
    given, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > _LONGEST_PORT:
        raise ConfigError(f"address: expected HOST:PORT or :PORT, got {text!r}")
    return given.strip("[]") or host, int(port)


def _hidden(text: str) -> str:
    """An address that could not be read, without what may be a password."""
    before, at, after = text.rpartition("@")
    return f"{before.partition(':')[0]}://***@{after}" if at else text


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
        raise ValueError(text)
    return text.lower() in ("true", "1", "yes")


_READERS: dict[str, Callable[[str], Any]] = {"str": str, "int": int, "float": float, "bool": _boolean}
