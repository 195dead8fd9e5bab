"""Addresses and schemes: what they read, what they hide, and a library that is not there."""

from __future__ import annotations

import subprocess
import sys

import pytest

from edgeseq.errors import ConfigError, MissingDependencyError
from edgeseq.runtime import feeds
from edgeseq.runtime.feeds.address import Address, host_and_port


@pytest.mark.parametrize(
    "text", ["csv:a b/ü%20.csv", "mqtts://u@h/a/+/#?qos=1", "ws+listen://[::1]:8765/x", "influx:-"]
)
def test_an_address_prints_as_it_was_given(text: str) -> None:
    assert str(Address.parse(str(Address.parse(text)))) == str(Address.parse(text))
    assert Address.parse(text).scheme == (text.partition(":")[0] if text != "-" else "jsonl")


def test_secrets_are_never_printed() -> None:
    for text in ("mqtt://me:sesame@h/t", "ws://h:1?token=sesame", "mqtt://me:ses%61me@h/t"):
        assert "sesame" not in f"{Address.parse(text)} {Address.parse(text)!r}"
    for text in ("mqtt://me:sesame@h:port/t", "mqtt://me:sesame@h/t?qos"):
        with pytest.raises(ConfigError) as error:
            Address.parse(text)
        assert "sesame" not in str(error.value)


def test_places() -> None:
    assert host_and_port("0.0.0.0:80") == ("0.0.0.0", 80)
    assert host_and_port("[::1]:80") == ("::1", 80)
    for wrong in ("9100", ":", ":-1", ":65536", ":²"):
        with pytest.raises(ConfigError, match="expected HOST:PORT"):
            host_and_port(wrong)


@pytest.mark.parametrize(
    ("address", "package", "module"),
    [
        ("mqtt://h/t", "aiomqtt", "mqtt"),
        ("ws://h:1", "websockets.asyncio.client", "websocket"),
        ("serial:/dev/x?columns=x", "serial", "serial_port"),
    ],
)
def test_a_library_that_is_missing_names_the_extra(
    address: str, package: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(sys.modules, f"edgeseq.runtime.feeds.{module}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingDependencyError, match=r'pip install "edgeseq\[feeds\]"'):
        feeds.open_feed(address)


def test_the_core_needs_none_of_it() -> None:
    names = ("edgeseq.runtime.feeds", "rich", "aiomqtt", "asyncio")
    code = f"import sys, edgeseq.runtime; print([m for m in sys.modules if m.startswith({names})])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_scheme_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edgeseq.runtime.feeds.registry.SCHEMES", dict(feeds.SCHEMES))
    with pytest.raises(ConfigError, match="is not taken"):
        feeds.register("csv", "nowhere")
    feeds.register("mine", "edgeseq.runtime.feeds.files")
    with pytest.raises(ConfigError, match="expected a format among"):  # the module is asked
        feeds.open_feed("mine:x")
