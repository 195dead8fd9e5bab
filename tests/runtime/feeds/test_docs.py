"""The recipes of docs/feeds.md: every command is one that the command line and the schemes take."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from edgeseq import cli
from edgeseq import runtime as rt
from edgeseq.runtime import feeds
from edgeseq.runtime.feeds.decode import KINDS
from tests.runtime.feeds.running import MODEL

PAGE = (Path(__file__).parents[3] / "docs" / "feeds.md").read_text(encoding="utf-8")
COMMANDS = [
    line[line.index("edgeseq run") :]
    for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if "edgeseq run" in line
]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_recipe_can_be_run(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "edge.pw").write_text("sesame\n")
    asked: list[Any] = []

    def note(model: rt.Model, feed: str, sink: str, settings: feeds.RunSettings, *, metrics: str | None) -> Any:
        asked.append((feeds.open_feed(feed, model), feeds.open_sink(sink), settings, metrics))
        return feeds.RunReport()

    monkeypatch.setattr("edgeseq.runtime.feeds.command.run_until_stopped", note)
    words = shlex.split(command.replace("/etc/edge.pw", str(tmp_path / "edge.pw")))[1:]
    with pytest.raises(SystemExit) as end:
        cli.app([str(MODEL) if word.endswith(".stream.onnx") else word for word in words])
    assert not end.value.code
    assert len(asked) == 1


def test_there_are_recipes_and_every_scheme_and_count_is_told() -> None:
    assert len(COMMANDS) >= 7
    for name in (*feeds.SCHEMES, *KINDS):
        assert name in PAGE, name
