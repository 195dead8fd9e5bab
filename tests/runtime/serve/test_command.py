from __future__ import annotations

import sys
from pathlib import Path

import pytest

from edgeseq.errors import ConfigError, MissingDependencyError
from edgeseq.runtime.serve.command import serve


def test_without_aiohttp_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith(("aiohttp", "edgeseq.runtime.serve.server"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "edgeseq.runtime.serve.app", raising=False)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    with pytest.raises(MissingDependencyError, match=r"edgeseq\[serve\]"):
        serve(Path("tests/data/tiny.stream.onnx"))


def test_limits_come_from_the_options() -> None:
    with pytest.raises(ConfigError, match="slow_s, seconds above 0"):
        serve(Path("tests/data/tiny.stream.onnx"), slow_s=0)
