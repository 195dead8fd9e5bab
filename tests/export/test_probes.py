"""The sequences on which an export is verified."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers as L  # noqa: N812

from edgeseq.export.probes import LENGTHS, Probe, padded_places, probes
from edgeseq.export.signature import signature


def made(model: Any, must_run: Any = ()) -> list[Probe]:
    return list(probes(model, signature(model), [], must_run))


def masking(batch: int | None, length: int | None, *values: float) -> Any:
    inputs = keras.Input(batch_shape=(batch, length, 3))
    x = inputs
    for value in values:
        x = L.Masking(value)(x)
    return keras.Model(inputs, L.LSTM(2)(x))


def masked(probe: Probe, value: float) -> Any:
    return np.all(probe.inputs[0] == np.float32(value), axis=-1)


def test_a_model_of_one_length_gets_every_batch_size_and_must_run_it() -> None:
    plain = [probe.inputs[0].shape for probe in made(masking(None, 20)) if probe.must_run]
    assert plain == [(1, 20, 3), (2, 20, 3), (3, 20, 3)]


def test_a_fixed_batch_of_one_is_masked_too() -> None:
    for length in (None, 20):
        probes_ = made(masking(1, length, 0.0))
        assert {len(probe.inputs[0]) for probe in probes_} == {1}
        assert any(masked(probe, 0.0).any() for probe in probes_)


def test_every_mask_value_and_gaps_at_random() -> None:
    for length in (None, 20):
        gaps = made(masking(None, length, 0.0, 0.1))
        for value in (0.0, 0.1):
            seen = [masked(probe, value) for probe in gaps if masked(probe, value).any()]
            assert any(0 < where[:, 1:].mean() < 1 and (np.diff(where.astype(int)) < 0).any() for where in seen)


def test_inputs_of_higher_rank_are_masked_in_part() -> None:
    inputs = keras.Input((None, 4, 3))
    model = keras.Model(inputs, L.Masking(0.5)(inputs))
    partial = [masked(probe, 0.5) for probe in made(model)]
    assert any((where.any(-1) & ~where.all(-1)).any() for where in partial)
    probe = next(probe for probe, where in zip(made(model), partial, strict=True) if where.any())
    (kept,) = padded_places(model, signature(model), probe.inputs)
    assert np.array_equal(kept[..., 0], masked(probe, 0.5))


@pytest.mark.parametrize("mask_zero", [True, False])
def test_tokens_contain_zeros(mask_zero: bool) -> None:
    inputs = keras.Input((None,), dtype="int32")
    model = keras.Model(inputs, L.LSTM(2)(L.Embedding(9, 2, mask_zero=mask_zero)(inputs)))
    assert any(0 < (probe.inputs[0] == 0).mean() < 1 for probe in made(model))
    assert not any(probe.large for probe in made(model))


def test_large_values() -> None:
    for length in (None, 20):
        assert any(probe.large and np.abs(probe.inputs[0]).max() > 100 for probe in made(masking(None, length)))


def test_an_input_of_its_own_length_beside_one_of_any() -> None:
    a, b = keras.Input((None, 3)), keras.Input((20, 2))
    model = keras.Model([a, b], [L.Dense(2)(a), L.Dense(2)(b)])
    shapes = [tuple(x.shape[1] for x in probe.inputs) for probe in made(model)]
    assert {own for _, own in shapes} == {20}
    assert {*LENGTHS, 20} <= {any_length for any_length, _ in shapes}
