"""The law, end to end: what a stream gives equals what Keras gives, for drawn models, lengths and chunkings."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from keras import layers as L  # noqa: N812

from edgeseq import TCN, TimeDistributed, tcn_classifier
from edgeseq import runtime as rt
from edgeseq.export import export_model

CHANNELS = 3
ATOL = 1e-5  # the project's promise, for outputs of order one

tcns = st.fixed_dictionaries(
    {
        "nb_filters": st.integers(1, 6),
        "kernel_size": st.integers(1, 4),
        "nb_stacks": st.integers(1, 2),
        "dilations": st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=3).map(tuple),
        "use_skip_connections": st.booleans(),
        "activation": st.sampled_from(["relu", "tanh", "elu"]),
        "norm": st.sampled_from([{}, {"use_batch_norm": True}, {"use_layer_norm": True}]),
    }
)
recurrent = st.tuples(st.sampled_from(["LSTM", "GRU", "SimpleRNN"]), st.integers(1, 6))
stacks = st.lists(tcns | recurrent, min_size=1, max_size=3)


def build(stack: list[Any]) -> Any:
    """A causal tagger: normalisation, then the drawn layers, then a head."""
    inputs = keras.Input((None, CHANNELS))
    x = L.Normalization(mean=[1.0, 0.0, -1.0], variance=[1.0, 2.0, 4.0])(inputs)
    for part in stack:
        if isinstance(part, tuple):
            x = getattr(L, part[0])(part[1], return_sequences=True)(x)
        else:
            arguments = {**part, **part["norm"]}
            del arguments["norm"]
            x = TCN(return_sequences=True, **arguments)(x)
    return keras.Model(inputs, TimeDistributed(L.Dense(2, activation="softmax"))(x))


def check(model: Any, sizes: list[int], seed: int) -> None:
    """Stream chunks of these sizes, a chunk of one sample as a step, and compare with Keras on the whole."""
    x = np.random.default_rng(seed).normal(size=(sum(sizes), CHANNELS)).astype(np.float32)
    expected = model(x[None], training=False).numpy()[0]
    with tempfile.TemporaryDirectory() as folder:
        report = export_model(model, folder, name="m")
        stream = rt.load(Path(folder) / "m.stream.onnx").stream()
        assert report.verification.stream is not None
    outputs, start = [], 0
    for size in sizes:
        chunk = x[start : start + size]
        outputs.append(stream.step(chunk[0])[None] if size == 1 else stream.push(chunk))
        start += size
    np.testing.assert_allclose(np.concatenate([*outputs, stream.flush()]), expected, atol=ATOL)


chunkings = st.lists(st.sampled_from([0, 1, 1, 2, 5, 17]), min_size=1, max_size=9).filter(sum)
# An example is an export of seconds: shrinking one would take minutes, and the drawn stack is small as it is.
SLOW = settings(
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)


@settings(SLOW, max_examples=6)
@given(stacks, chunkings, st.integers(0, 99))
def test_drawn_models(randomise: Callable[..., Any], stack: list[Any], sizes: list[int], seed: int) -> None:
    check(randomise(build(stack), seed), sizes, seed)


@pytest.mark.extended
@settings(SLOW, max_examples=60)
@given(stacks, chunkings, st.integers(0, 99))
def test_many_drawn_models(randomise: Callable[..., Any], stack: list[Any], sizes: list[int], seed: int) -> None:
    check(randomise(build(stack), seed), sizes, seed)


@pytest.mark.parametrize("pooling", ["max", "average", "last"])
def test_a_pooled_stream_is_keras_on_every_prefix(randomise: Callable[..., Any], tmp_path: Path, pooling: Any) -> None:
    model = randomise(tcn_classifier(CHANNELS, 2, pooling=pooling, nb_filters=4, dilations=(1, 3)))
    export_model(model, tmp_path, name="m")
    x = np.random.default_rng(0).normal(size=(25, CHANNELS)).astype(np.float32)
    got = rt.load(tmp_path / "m.stream.onnx").stream().push(x)
    expected = [model(x[None, : t + 1], training=False).numpy()[0] for t in range(25)]
    np.testing.assert_allclose(got, expected, atol=ATOL)


@pytest.mark.parametrize("cell", ["tcn", "gru"])
def test_no_drift_over_twenty_thousand_steps(randomise: Callable[..., Any], tmp_path: Path, cell: str) -> None:
    part: Any = ("GRU", 4) if cell == "gru" else {"nb_filters": 4, "dilations": (1, 2, 4), "norm": {}}
    export_model(randomise(build([part])), tmp_path, name="m")
    x = np.random.default_rng(0).normal(size=(20_000, CHANNELS)).astype(np.float32)
    stream = rt.load(tmp_path / "m.stream.onnx").stream()
    got = np.stack([stream.step(sample) for sample in x])
    np.testing.assert_allclose(got, rt.load_offline(tmp_path / "m.onnx").run(x), atol=ATOL)
