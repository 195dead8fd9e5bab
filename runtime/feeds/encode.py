"""From predictions to lines: JSON, CSV and InfluxDB's line protocol."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable

from edgeseq.errors import ConfigError
from edgeseq.runtime.prediction import Prediction

CSV_COLUMNS = (
    "stream_id",
    "index",
    "sample",
    "time_s",
    "output_name",
    "label",
    "score",
    "warm_up",
    "after_gap",
    "provisional",
    "output",
)

Encoder = Callable[[Prediction], str]


def to_csv(prediction: Prediction) -> str:
    """One line under ``CSV_COLUMNS``; the output is a JSON list in one cell, booleans are 0 and 1."""
    given = prediction.to_dict()
    cells = [int(x) if isinstance(x, bool) else x for x in (given[name] for name in CSV_COLUMNS[:-1])]
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow([*cells, json.dumps(given["output"])])
    return line.getvalue()


def to_influx(prediction: Prediction) -> str:
    """``edgeseq,stream_id=...,output_name=... label="...",score=0.9,index=4i 80000000``; time in nanoseconds.

    Example:
        >>> import numpy as np
        >>> print(to_influx(Prediction("pump 7", 4, 4, 0.08, np.array([0.25, 0.75], np.float32), "y", "move", 0.75)))
        edgeseq,stream_id=pump\\ 7,output_name=y index=4i,output_0=0.25,output_1=0.75,label="move",score=0.75 80000000
    """
    fields = [f"index={prediction.index}i"]
    finite = prediction.to_dict()["output"]
    for i, value in enumerate(finite if isinstance(finite, list) else [finite]):
        if isinstance(value, (int, float)):  # NaN and infinity have no place in the protocol
            fields.append(f"output_{i}={value!r}")
    if prediction.label is not None:
        quoted = prediction.label.replace("\\", "\\\\").replace('"', '\\"')
        fields.append(f'label="{quoted}"')
    if prediction.score is not None and abs(prediction.score) < float("inf"):
        fields.append(f"score={float(prediction.score)!r}")
    fields += [f"{name}=true" for name in ("warm_up", "after_gap", "provisional") if getattr(prediction, name)]
    tags = f"stream_id={_tag(prediction.stream_id)},output_name={_tag(prediction.output_name)}"
    time = "" if prediction.time_s is None else f" {round(prediction.time_s * 1e9)}"
    return f"edgeseq,{tags} {','.join(fields)}{time}"


def _tag(text: str) -> str:
    for special in (",", "=", " "):
        text = text.replace(special, "\\" + special)
    return text.replace("\n", "\\n")


ENCODERS: dict[str, Encoder] = {"jsonl": Prediction.to_json, "csv": to_csv, "influx": to_influx}


def encoder(format_name: str) -> Encoder:
    """The encoder of a format.

    Raises:
        ConfigError: there is no such format.
    """
    if format_name not in ENCODERS:
        raise ConfigError(f"sink: expected a format among {sorted(ENCODERS)}, got {format_name!r}")
    return ENCODERS[format_name]


def header(format_name: str) -> str | None:
    """The first line of a format that has one."""
    return ",".join(CSV_COLUMNS) if format_name == "csv" else None
