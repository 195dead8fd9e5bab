"""A replay: a recording fed to up to three models, so that one sees when each of them knows what. No clock, no I/O.

The served model is stepped sample by sample, and each step is timed. A stream with lookahead is fed the same samples,
and says later what it says. The offline model sees the recording once it has ended. Owns which prediction came when,
in samples; refuses models that do not take the same input and give the same output.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from edgeseq.errors import ConfigError
from edgeseq.model_file import Port
from edgeseq.runtime.inputs import Array
from edgeseq.runtime.latency import Latency
from edgeseq.runtime.model import Model
from edgeseq.runtime.offline import OfflineModel
from edgeseq.runtime.serve.recording import Recording, check_port
from edgeseq.runtime.serve.streams import ServedStream


@dataclass
class Track:
    """The predictions of one of the models: rows (n, K) of the samples (n,), in their order."""

    samples: list[int] = field(default_factory=list)
    rows: list[Array] = field(default_factory=list)

    def add(self, port: Port, first: int, rows: Array) -> None:
        """Take rows that have come."""
        assert port.timing is not None
        hop, n = port.timing.hop
        self.samples += [(first + j) * hop // n for j in range(len(rows))]
        self.rows += list(rows)

    def by_place(self) -> dict[tuple[int, int], Array]:
        """Every row by its sample, and by its number among the rows of that sample."""
        seen: Counter[int] = Counter()
        placed = {}
        for sample, row in zip(self.samples, self.rows, strict=True):
            placed[sample, seen[sample]] = row
            seen[sample] += 1
        return placed


class Replay:
    """One run over a recording.

    Raises:
        ConfigError: the page cannot show the model, or the three do not fit together.

    Example:
        >>> from edgeseq import runtime as rt
        >>> model = rt.load("tests/data/tiny.stream.onnx")
        >>> offline = rt.load_offline("tests/data/tiny.onnx")
        >>> x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
        >>> replay = Replay(model, Recording("noise", x), offline=offline)
        >>> replay.advance(20)
        20
        >>> replay.finish(replay.run_offline())
        >>> replay.agreement()["causal"]["same_label"]
        1.0
    """

    def __init__(
        self,
        model: Model,
        recording: Recording,
        *,
        lookahead: Model | None = None,
        offline: OfflineModel | None = None,
    ) -> None:
        check_port(model.input, len(model.description.inputs))
        check_together(model, lookahead, offline)
        self.recording, self._offline = recording, offline
        self._models = {"causal": model} | ({} if lookahead is None else {"lookahead": lookahead})
        self.tracks = {name: Track() for name in (*self._models, *([] if offline is None else ["offline"]))}
        self.position, self.has_ended = 0, False
        self._streams = {
            name: ServedStream(each.stream(f"replay, {name}"), each.description.outputs, keep=False)
            for name, each in self._models.items()
        }

    @property
    def latency(self) -> Latency:
        """How long the served model's steps took."""
        return self._streams["causal"].stream.latency

    def lookaheads(self) -> dict[str, int]:
        """How many samples after its own each stream's prediction comes."""
        return {name: model.lookahead for name, model in self._models.items()}

    def advance(self, n: int) -> int:
        """Feed up to so many samples, one by one; returns how many there were left to feed."""
        chunk = self.recording.samples[self.position : self.position + n]
        for sample in chunk:
            for name, served in self._streams.items():
                self._add(name, served.take(sample[None]))
            self.position += 1
        return len(chunk)

    def run_offline(self) -> Any:
        """What the offline model says of all samples so far; may run in another thread. None if there is no model."""
        if self._offline is None or self.position == 0:
            return None
        y = self._offline.run(self.recording.samples[: self.position])
        return next(iter(y.values())) if isinstance(y, dict) else y

    def finish(self, offline: Any) -> None:
        """The end: what lookahead owes, and what ``run_offline`` gave."""
        for name, served in self._streams.items():
            self._add(name, served.flush())
        self.has_ended = True
        if offline is None:
            return
        by_row = offline.ndim > len(self._models["causal"].output.shape)
        rows = offline if by_row else offline[None]
        causal, n = self.tracks["causal"].samples, len(rows)
        samples = causal if by_row and len(causal) == n else [self.position - 1] if n == 1 else list(range(n))
        self.tracks["offline"] = Track(list(samples), list(rows))

    def agreement(self) -> dict[str, dict[str, float]]:
        """How far each stream's predictions are from the offline model's, where both said something.

        ``same_label`` is the share of samples of the same largest output, ``largest_difference`` is in units of the
        output.
        """
        offline = self.tracks.get("offline")
        if offline is None or not offline.rows:
            return {}
        truth, told = offline.by_place(), {}
        for name in self._models:
            pairs = [(y, truth[place]) for place, y in self.tracks[name].by_place().items() if place in truth]
            if pairs:
                a, b = (np.stack(side).reshape(len(pairs), -1) for side in zip(*pairs, strict=True))
                same = float((a.argmax(axis=1) == b.argmax(axis=1)).mean())
                told[name] = {"same_label": same, "largest_difference": float(np.abs(a - b).max())}
        return told

    def _add(self, name: str, rows: list[tuple[int, Array]]) -> None:
        self.tracks[name].add(self._models[name].output, *rows[0])


def check_together(model: Model, lookahead: Model | None, offline: OfflineModel | None) -> None:
    """Whether the page can lay the models' predictions over each other.

    Raises:
        ConfigError: they take or give different things.
    """
    mine = (model.input.shape, model.input.dtype, model.output.shape, model.label_names)
    others = {"--lookahead": lookahead, "--offline": offline}
    for option, other in others.items():
        if other is None:
            continue
        port, output = other.description.inputs[0], other.description.outputs[0]
        theirs = (port.shape, port.dtype, output.shape, output.names)
        if len(other.description.inputs) != 1 or theirs != mine:
            raise ConfigError(
                f"{option} {other.description.name!r}: expected a model of the input, output and labels of "
                f"{model.name!r}, {mine}, got {theirs}"
            )
