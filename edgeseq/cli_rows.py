"""What the commands print: tables of names and values, and the rows that several commands share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from edgeseq.certificate import certificate_of
from edgeseq.model_file import Conditions


def print_table(title: str, rows: dict[str, str]) -> None:
    """Print names beside their values."""
    table = Table(title=title, title_justify="left", show_header=False, box=None)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for key, value in rows.items():
        table.add_row(key, value)
    Console().print(table)


def lowered_rows(lowered: Sequence[Any]) -> dict[str, str]:
    """One row for each kind of layer and reason: how many, and why."""
    counted = Counter((each.kind, each.why) for each in lowered)
    return {f"lowered {n} {kind}": why for (kind, why), n in counted.items()}


def contract_rows(report: Any) -> dict[str, str]:
    """The clauses of a contract check, and its notes."""
    rows = {f"clause {name}": told for name, told in report.certificate.clauses.items()}
    return rows | {f"note {i}": note for i, note in enumerate(report.notes, start=1)}


def condition_rows(conditions: Conditions) -> dict[str, str]:
    """Under what a stream equals its offline model, if not always."""
    rows = {}
    if conditions.length_modulo is not None:
        modulus, remainder = conditions.length_modulo
        rows["if the length is"] = f"{remainder} samples modulo {modulus}, by your promise"
    if conditions.pooling_window is not None:
        rows["pools over"] = f"the last {conditions.pooling_window} rows; the offline model over all"
    return rows


def certificate_row(metadata: Mapping[str, str], graph_sha256: str) -> str:
    """What a file's certificate says, and whether it is of this file."""
    certificate = certificate_of(metadata)
    if certificate is None:
        return "no certificate; edgeseq verify writes one"
    if (why := certificate.mismatch(metadata, graph_sha256)) is not None:
        return f"does not belong to this file: {why}; verify it again"
    made_with = ", ".join(f"{package} {version}" for package, version in certificate.versions.items())
    return f"{len(certificate.clauses)} clauses held against {certificate.offline} ({made_with})"


def timing_rows(timing: Any) -> dict[str, str]:
    """What an output is to time."""
    past, future = ("all" if n is None else str(n) for n in timing.receptive_field)
    samples, given = timing.hop
    return {
        "  receptive field": f"{past} past, {future} future samples",
        "  lookahead": f"{timing.lookahead} samples",
        "  hop": f"{samples} samples" if given == 1 else f"{samples} samples for {given} rows",
        "  law": timing.law,
    }


def shape(port: Any) -> str:
    """The shape of a port's array, as Python writes it."""
    sizes = ["time" if n is None else str(n) for n in port.array_shape]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"
