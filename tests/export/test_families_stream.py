"""Which families of the catalogue stream: all but those listed here with the reason, and they keep the law."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from edgeseq.errors import NotStreamableError
from edgeseq.export.convert import to_onnx
from edgeseq.export.signature import signature
from edgeseq.export.streaming.step_model import StepModel, streamify
from edgeseq.model_file import NEVER
from tests.export.families import FAMILIES
from tests.export.judging import sequences
from tests.export.test_streamify import Array, session

pytestmark = [
    pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask:UserWarning"),
    pytest.mark.filterwarnings("ignore:You are using a softmax over axis:UserWarning"),
]

TOLERANCE = 1e-5

BACKWARD = "its backward half starts at the end"
LENGTH_PADDING = "its padding depends on the length"
LENGTH = "it asks for the length of the sequence"
ATTENTION = "attention over time cannot stream"

# What needs the whole sequence, or its length, by construction. (pattern of names, text of the refusal)
WHOLE_SEQUENCE: list[tuple[str, str]] = [
    (r"bilstm_tagger.*|a sensor and tokens|an output a step and one a sequence|a dict of outputs", BACKWARD),
    (r"nested models|subclasses of layers|stateful Bidirectional.*|bilstm_text_tagger, mask_zero=False", BACKWARD),
    (r"Bidirectional(?!\((edgeseq|keras-tcn))(?!.*of 20 steps).*", BACKWARD),
    (r"(LSTM|GRU|SimpleRNN|GRU\(reset_after=False\)|RNN of three stacked cells), go_backwards.*", BACKWARD),
    (r"(edgeseq|keras-tcn) TCN, go_backwards", "runs backwards, so its first step needs the last sample"),
    (r"Bidirectional\(.*TCN\), merge_mode='sum', one step out", "last step of reversed time is the first one"),
    (r".*TCN, padding='same', one step out", LENGTH),  # the middle step
    (r"(LSTM|GRU|SimpleRNN), return_state into initial_state", "depends on more of the sequence than its first"),
    (r"Masking, encoder states into a decoder", "depends on more of the sequence than its first|weights or shape"),
    (r"(Separable|Depthwise)?Conv1D\(.*padding='same', strides=[23].*", LENGTH_PADDING),
    (r".*Pooling1D\(pool_size=(2, strides=(None|2)|3, strides=(None|[23])), padding='same'\)", LENGTH_PADDING),
    (r"strided encoder, transposed decoder|CNN, then BiLSTM", LENGTH_PADDING),
    (r".*(Conv1D\(.*padding='same', strides=5|Pooling1D\(pool_size=3, strides=5, padding='same')\)", LENGTH),
    (r"(Masking, )?Softmax over time", "Softmax over time needs the whole sequence"),
    (r"(Layer|Unit)Normalization over time|squeeze and excitation", "early outputs depend on late samples"),
    (r"LayerNormalization over time and channels", "reduces time together with other axes"),
    (r"GroupNormalization.*", "normalises over the whole sequence"),
    (r"Concatenate over time", "joins sequences end to end"),
    (r"RepeatVector", "it repeats the sequence"),
    (r"Dot|Attention|MultiHeadAttention|GroupQueryAttention|AdditiveAttention|Masking, self-attention", ATTENTION),
    (r".*of 20 steps|stateful GRU, one length", "takes sequences of exactly 20 steps"),
    (r"Masking, (.*go_backwards.*|Bidirectional.*|TimeDistributed.*)|bilstm_text_tagger", BACKWARD),
]  # fmt: skip

# What needs no later step, but a state that grows with the sequence, where a stream's has one size for ever.
UNBOUNDED: list[tuple[str, str]] = [
    (r"(MultiHeadAttention|Attention|AdditiveAttention), use_causal_mask|transformer block",
     "what a stream would have to keep grows with the sequence"),
]  # fmt: skip

# What is given once for a sequence: a stream file has no port for it.
WITHOUT_TIME: list[tuple[str, str]] = [(r"a sensor and an initial state", "has no time.*nothing once at its start")]

REFUSED = [*WHOLE_SEQUENCE, *UNBOUNDED, *WITHOUT_TIME]

SAMPLE = [
    *("edgeseq TCN", "edgeseq TCN, use_batch_norm", "edgeseq TCN, padding='same'", "keras-tcn TCN, go_backwards"),
    *("edgeseq TCN, padding='causal', one step out", "Bidirectional(edgeseq TCN), merge_mode='concat'"),
    *("tcn_classifier, average", "LSTM", "GRU", "SimpleRNN, last output", "GRU(reset_after=False)", "LSTM over LSTM"),
    *("RNN of stacked cells, return_state", "RNN of a stack of one cell, return_state", "TimeDistributed(Dense)"),
    *("Conv1D(filters=6, groups=2, kernel_size=3, padding='causal', strides=2, dilation_rate=1)", "RNN(LSTMCell)"),
    *("Conv1DTranspose(filters=3, kernel_size=3, padding='same', strides=2)", "UpSampling1D(2)", "Lambda"),
    *("AveragePooling1D(pool_size=3, strides=1, padding='same')", "WaveNet gated unit", "Cropping1D((1, 2))"),
    *("two sensors, two branches, one output", "Embedding, int32, Conv1D", "Masking, LSTM", "MultiHeadAttention"),
    *("Bidirectional(LSTM), merge_mode='concat'", "GlobalMaxPooling1D(keepdims=False)", "GroupNormalization"),
    *("GlobalMaxPooling1D(keepdims=True)", "GlobalAveragePooling1D(keepdims=True)"),
]


def reason(name: str) -> str | None:
    """The text of the refusal that a family meets, or None if it must stream."""
    return next((text for pattern, text in REFUSED if re.fullmatch(pattern, name)), None)


def test_nothing_is_refused_that_no_family_is_like() -> None:
    for pattern, _ in REFUSED:
        assert any(re.fullmatch(pattern, name) for name in FAMILIES), pattern
    assert sum(reason(name) is None for name in FAMILIES) >= 382


def _parameters() -> Iterator[Any]:
    assert set(SAMPLE) <= set(FAMILIES), set(SAMPLE) - set(FAMILIES)
    for name in FAMILIES:
        yield pytest.param(name, marks=() if name in SAMPLE else pytest.mark.extended)


@pytest.mark.parametrize("name", list(_parameters()))
def test_streams_or_says_why_not(name: str, randomise: Callable[..., Any]) -> None:
    family = FAMILIES[name]
    model = randomise(family.build())
    converted = to_onnx(model)
    text = reason(name)
    if text is not None:
        with pytest.raises(NotStreamableError, match=text):
            streamify(converted.model)
        return
    step = streamify(converted.model)
    offline, stepped = session(converted.model), session(step.model)
    length = max(family.min_length, *(t.shortest for t in step.timings)) + 22
    inputs = [x[:2] for x in sequences(signature(model), length, padded=family.padded)]
    names = [str(value.name) for value in converted.model.graph.inputs]
    expected = offline.run(None, dict(zip(names, inputs, strict=True)))
    sizes = [1] * length, [3, 1, 7, 2, length]
    for got in (streamed(step, stepped, dict(zip(names, inputs, strict=True)), cut) for cut in sizes):
        for rows, whole, timing in zip(got, expected, step.timings, strict=True):
            scale = max(1.0, float(np.abs(whole).max()))
            if timing.law == "equal":
                np.testing.assert_allclose(rows, whole, atol=TOLERANCE * scale)
                continue
            kept = rows[:, -1].shape  # without the axis of one step that a pool may keep
            np.testing.assert_allclose(rows[:, -1], whole.reshape(kept), atol=TOLERANCE * scale)
            if timing.lookahead == 0 and not timing.rows and len(expected) == 1:
                part = offline.run(None, {n: x[:, :-5] for n, x in zip(names, inputs, strict=True)})[0]
                np.testing.assert_allclose(rows[:, -6], part.reshape(kept), atol=TOLERANCE * scale)


def streamed(step: StepModel, ort_session: Any, inputs: dict[str, Array], sizes: list[int]) -> list[Array]:
    """All rows of each output, by the description and with plain ``session.run``."""
    first = next(iter(inputs.values()))
    batch, length = first.shape[:2]
    state = {s.input: np.full((batch, *s.shape), s.initial, s.dtype) for s in step.state}
    names = [*(o.name for o in ort_session.get_outputs()[: len(step.timings)]), *(s.output for s in step.state)]
    owed = [timing.count_rows(length) + timing.delay for timing in step.timings]
    needed = [-(-rows * t.hop[0] // t.hop[1]) for rows, t in zip(owed, step.timings, strict=True)]
    total = -(-max(*needed, step.phase + length) // step.granule) * step.granule
    fed = {name: np.zeros((batch, total, *x.shape[2:]), x.dtype) for name, x in inputs.items()}
    for name, x in inputs.items():
        fed[name][:, step.phase : step.phase + length] = x
    wanted = {int(c) // step.granule * step.granule for c in np.cumsum([0, *sizes]) if c < total}
    rows: list[list[Array]] = [[] for _ in step.timings]
    for start, stop in pairwise(sorted(wanted | {c for c in step.cuts if c <= total} | {total})):
        given = {name: x[:, start:stop] for name, x in fed.items()} | state
        if step.end is not None:
            given[step.end] = np.full(batch, length if stop > step.phase + length else NEVER)
        results = ort_session.run(names, given)
        state = dict(zip(state, results[len(rows) :], strict=True))
        for part, y in zip(rows, results, strict=False):
            part.append(y)
    joined = (np.concatenate(part, axis=1) for part in rows)
    return [y[:, timing.delay : n] for y, timing, n in zip(joined, step.timings, owed, strict=True)]
