"""Schemes of addresses, and the modules that open them. A module is imported when an address first names its scheme.

A module of a scheme has ``open_feed(address, context)``, ``open_sink(address)``, or both, and imports the library that
it stands on at its top. ``register`` adds one of your own.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import import_module
from types import ModuleType
from typing import cast

from edgeseq.errors import ConfigError, MissingDependencyError
from edgeseq.runtime.feeds.address import Address
from edgeseq.runtime.feeds.frame import Feed, Sink
from edgeseq.runtime.model import Model

_HERE = "edgeseq.runtime.feeds"
SCHEMES = {
    "csv": f"{_HERE}.files",
    "jsonl": f"{_HERE}.files",
    "influx": f"{_HERE}.files",
    "serial": f"{_HERE}.serial_port",
    "mqtt": f"{_HERE}.mqtt",
    "mqtts": f"{_HERE}.mqtt",
    "ws": f"{_HERE}.websocket",
    "wss": f"{_HERE}.websocket",
    "ws+listen": f"{_HERE}.websocket",
    "wss+listen": f"{_HERE}.websocket",
}
"""The module of each scheme."""


@dataclass(frozen=True, slots=True)
class Context:
    """What a feed must know of the model: whether it names its channels, its rate, and the numbers of a sample."""

    named: bool = True
    rate_hz: float | None = None
    n_values: int | None = None

    @classmethod
    def of(cls, model: Model) -> Context:
        """The context of a model."""
        ports = model.description.inputs
        named = all(port.names is not None for port in ports)
        return cls(named, model.rate_hz, sum(math.prod(size or 1 for size in port.shape) for port in ports))


def register(scheme: str, module: str) -> None:
    """Let a module open the addresses of a scheme.

    Raises:
        ConfigError: the scheme is taken.
    """
    if scheme in SCHEMES:
        raise ConfigError(f"feeds: expected a scheme that is not taken, got {scheme!r}")
    SCHEMES[scheme] = module


def open_feed(address: str | Address, model: Model | Context | None = None) -> Feed:
    """The feed at an address; the model says how its channels are named and its rate.

    Raises:
        ConfigError: no scheme, an option that it does not know, or a sink's address.
        MissingDependencyError: the library of this scheme is not installed.

    Example:
        >>> open_feed("csv:walk.csv?speed=1").replays
        True
        >>> open_feed("smoke:signals")
        Traceback (most recent call last):
        edgeseq.errors.ConfigError: feed 'smoke:signals': expected a scheme among ['csv', ...
    """
    address, module = _module(address, "feed")
    context = model if isinstance(model, Context) else Context() if model is None else Context.of(model)
    return cast(Feed, module.open_feed(address, context))


def open_sink(address: str | Address) -> Sink:
    """The sink at an address.

    Raises:
        ConfigError, MissingDependencyError: as for ``open_feed``.
    """
    address, module = _module(address, "sink")
    return cast(Sink, module.open_sink(address))


def _module(address: str | Address, what: str) -> tuple[Address, ModuleType]:
    if isinstance(address, str):
        address = Address.parse(address)
    if address.scheme not in SCHEMES:
        raise ConfigError(f"{what} '{address}': expected a scheme among {sorted(SCHEMES)}, got {address.scheme!r}")
    try:
        module = import_module(SCHEMES[address.scheme])
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"{what} '{address}': needs the package {error.name!r}; install it with pip install \"edgeseq[feeds]\""
        ) from error
    if not hasattr(module, f"open_{what}"):
        raise ConfigError(f"{what} '{address}': {address.scheme}: is no {what}; choose another scheme")
    return address, module
