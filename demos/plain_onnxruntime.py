"""Streams any edgeseq stream file with onnxruntime, numpy and json alone: nothing of edgeseq is imported.

What must be known stands in the file's metadata (docs/model-file.md). The same few lines work in any language that has
ONNX Runtime.

    python -m demos.plain_onnxruntime tests/data/tiny.stream.onnx
"""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from typing import Any

import numpy as np
import onnxruntime as ort

NEVER = 2**40  # what the input ``end`` takes until the number of samples is known

Array = np.ndarray[Any, Any]


class PlainStream:
    """One stream: ``push`` takes samples (T, C) by input and gives rows (R, K) by output, ``flush`` ends it."""

    def __init__(self, path: str) -> None:
        self.session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.about = json.loads(self.session.get_modelmeta().custom_metadata_map["edgeseq"])
        self.inputs, self.outputs = self.about["inputs"], self.about["outputs"]
        self.state = {s["input"]: np.full((1, *s["shape"]), s["initial"], s["dtype"]) for s in self.about["state"]}
        self.waiting = self.zeros(self.about["phase"])  # zeros that belong to no sample come first
        self.fed = 0  # samples that the graph has seen, those zeros included
        self.given = [0] * len(self.outputs)  # rows that the graph gave, of each output
        self.n_samples = 0

    def push(self, samples: dict[str, Array]) -> dict[str, Array]:
        """Take the next samples, any number of them; give the rows that are due."""
        self.n_samples += len(next(iter(samples.values())))
        rows = {name: np.concatenate([self.waiting[name], x]) for name, x in samples.items()}
        n_rows = len(next(iter(rows.values())))
        whole = n_rows - n_rows % self.about["granule"]  # a call takes a multiple of the granule; the rest waits
        self.waiting = {name: x[whole:] for name, x in rows.items()}
        return self.run({name: x[:whole] for name, x in rows.items()}, NEVER)

    def flush(self) -> dict[str, Array]:
        """End the sequence; give the rows that are owed."""
        if self.n_samples == 0:
            return self.run(self.zeros(0), 0)
        last = max(  # the sample after which the graph has given every row of the sequence
            -(-(self.count_rows(port, self.n_samples) + port["timing"]["delay"]) * port["timing"]["hop"][0])
            // port["timing"]["hop"][1]
            for port in self.outputs
        )
        granule = self.about["granule"]
        more = self.zeros(max(0, -(-(last - self.fed) // granule) * granule))
        for name, x in more.items():
            x[: len(self.waiting[name])] = self.waiting[name][: len(x)]
        return self.run(more, self.n_samples)

    def run(self, rows: dict[str, Array], end: int) -> dict[str, Array]:
        """Run the graph, with no call across a cut and none of no samples; drop the rows that belong to no sample."""
        total = len(next(iter(rows.values())))
        cuts = {cut - self.fed for cut in self.about["cuts"] if 0 < cut - self.fed < total}
        places = sorted({0, total, *cuts})
        parts: list[list[Array]] = [[np.zeros((0, *port["shape"]), port["dtype"])] for port in self.outputs]
        names = [*(port["name"] for port in self.outputs), *(s["output"] for s in self.about["state"])]
        for start, stop in pairwise(places):
            feeds = {name: x[None, start:stop] for name, x in rows.items()} | self.state
            if self.about["end"] is not None:
                feeds[self.about["end"]] = np.array([end])
            results = self.session.run(names, feeds)
            self.state = dict(zip(self.state, results[len(self.outputs) :], strict=True))
            for i, port in enumerate(self.outputs):
                y = results[i][0]
                first = self.given[i] - port["timing"]["delay"]  # the number of the first of these rows
                last = len(y) if end == NEVER else self.count_rows(port, end) - first
                parts[i].append(y[max(0, -first) : max(0, last)])
                self.given[i] += len(y)
        self.fed += total
        return {port["name"]: np.concatenate(part) for port, part in zip(self.outputs, parts, strict=True)}

    def count_rows(self, port: dict[str, Any], n: int) -> int:
        """How many rows n samples have."""
        for multiply, add, divide in port["timing"]["rows"]:
            n = max(0, (n * multiply + add) // divide)
        return n

    def zeros(self, n: int) -> dict[str, Array]:
        """So many samples of zeros, for each input."""
        return {port["name"]: np.zeros((n, *port["shape"]), port["dtype"]) for port in self.inputs}


def main(path: str) -> None:
    """Stream 20 random samples, one at a time, and print how many rows each gave."""
    stream, rng = PlainStream(path), np.random.default_rng(0)
    for t in range(20):
        samples = {p["name"]: rng.normal(size=(1, *p["shape"])).astype(p["dtype"]) for p in stream.inputs}
        print(f"sample {t}:", {name: y.tolist() for name, y in stream.push(samples).items()})
    print("flush:", {name: y.tolist() for name, y in stream.flush().items()})


if __name__ == "__main__":
    main(sys.argv[1])
