"""The compatibility table is of the families that the tests run, and says of each that edgeseq exports it right."""

from __future__ import annotations

import re
from pathlib import Path

from tests.export.compatibility import BEGIN, END
from tests.export.families import FAMILIES

ROWS = re.findall(
    r"^\| (.+?) \| (\S+) \(\d+\) \| .* \|$", Path("docs/compatibility.md").read_text(encoding="utf-8"), re.M
)


def test_the_table_has_every_family_and_no_other() -> None:
    assert [name for name, _ in ROWS] == list(FAMILIES), "run make compatibility"


def test_every_family_is_right() -> None:
    assert {verdict for _, verdict in ROWS} == {"right"}


def test_the_summary_counts_them() -> None:
    summary = Path("docs/export.md").read_text(encoding="utf-8").split(BEGIN)[1].split(END)[0]
    assert f"| **all** | {len(FAMILIES)} | {len(FAMILIES)} |" in summary, "run make compatibility"
