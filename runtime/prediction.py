"""What comes out of a feed: a record for every row that the model gives."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from edgeseq.runtime.inputs import Array


@dataclass(frozen=True, slots=True, eq=False)
class Prediction:
    """One row of one output of a model, and the sample that it belongs to.

    Attributes:
        stream_id: of the sensor.
        index: the row's number among this output's rows of the stream; it never repeats and never goes back, also
            when the model starts anew after a gap.
        sample: the number of the row's own sample among the stream's samples; of a model with lookahead, not the
            newest.
        time_s: the timestamp of that sample; None if samples carry none.
        output: (K,), as the model gave it.
        output_name: which of the model's outputs.
        label, score: the name of the largest of the K outputs and its value, after smoothing if there is one; None if
            the file names no labels.
        warm_up: the row still sees the zeros before the start.
        after_gap: the receptive field holds a sample that was made up, in whole or in part.
        provisional: a later prediction of the sequence will replace it: the model gives one value for a sequence, and
            this is that of the samples so far.

    Example:
        >>> import numpy as np
        >>> p = Prediction("pump-7", 4, 4, 0.08, np.array([0.25, 0.75], np.float32), "output", "move", 0.75)
        >>> p.to_json()
        '{"stream_id": "pump-7", "index": 4, "sample": 4, "time_s": 0.08, "output": [0.25, 0.75], "output_name": \
"output", "label": "move", "score": 0.75, "warm_up": false, "after_gap": false, "provisional": false}'
    """

    stream_id: str
    index: int
    sample: int
    time_s: float | None
    output: Array
    output_name: str
    label: str | None = None
    score: float | None = None
    warm_up: bool = False
    after_gap: bool = False
    provisional: bool = False

    def to_dict(self) -> dict[str, Any]:
        """The fields by name, of types that JSON has; NaN and infinity, which it has not, as None."""
        given = {name: getattr(self, name) for name in self.__slots__}
        given["output"] = _finite(self.output.tolist())
        given["score"] = _finite(self.score)
        return given

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value
