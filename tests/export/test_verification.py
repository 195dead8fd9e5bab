"""The comparison that guards every export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from edgeseq import tcn_tagger
from edgeseq.errors import ExportError, VerificationError
from edgeseq.export import export_model, register_lowering
from edgeseq.export.comparison import TOLERANCE, compare
from edgeseq.export.lowering.registry import RULES


def test_the_first_wrong_step_is_named_not_the_first_wrong_element() -> None:
    expected = np.zeros((2, 5, 3))
    got = expected.copy()
    got[0, 4, 0] = got[1, 2, 1] = 0.5
    with pytest.raises(VerificationError, match=r"a and b: first difference at step \(1, 2, 1\): expected 0, got 0.5"):
        compare(expected, got, "a and b")


def test_the_tolerance_is_of_the_output_scale() -> None:
    expected = np.array([[1000.0], [1.0]])
    assert compare(expected, expected + 5e-3, "x") == pytest.approx(5e-6)
    with pytest.raises(VerificationError):
        compare(expected / 1000, expected / 1000 + 2 * TOLERANCE, "x")


def test_nan_is_a_difference() -> None:
    with pytest.raises(VerificationError, match="got nan"):
        compare(np.zeros((1, 2)), np.array([[0.0, np.nan]]), "x")


def test_shapes_must_agree() -> None:
    with pytest.raises(VerificationError, match=r"expected output shape \(2, 77, 2\), got \(2, 2, 2\)"):
        compare(np.zeros((2, 77, 2)), np.zeros((2, 2, 2)), "x")


def test_an_ill_conditioned_model_is_held_to_what_rounding_does_and_no_more(tmp_path: Path) -> None:
    inputs = keras.Input((None, 2))
    model = keras.Model(inputs, keras.ops.sin(inputs * 3000.0))  # the last bit of the input moves the output by 1e-4
    seen = export_model(model, tmp_path, name="m").verification
    assert seen.stream is not None
    for seed in range(5):
        keras.utils.set_random_seed(seed)
        export_model(tcn_tagger(6, 7), tmp_path, name="fresh")


def test_an_ill_conditioned_channel_does_not_loosen_the_others(tmp_path: Path) -> None:
    class Slope(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return x * 2.0

    @register_lowering(Slope, why="test")
    def _steeper(_native: Any, _layer: Any, x: Any) -> Any:
        return x * 2.05

    inputs = keras.Input((None, 2))
    chaos = keras.ops.sin(inputs * 1e9)
    try:
        with pytest.raises(VerificationError, match="tolerance 1e-05"):
            export_model(
                keras.Model(inputs, keras.ops.concatenate([chaos * 1e-6, Slope()(inputs)])), tmp_path, name="m"
            )
        with pytest.raises(VerificationError, match=r"tolerance 0\.001"):  # chaos alone is beyond what is allowed
            export_model(keras.Model(inputs, chaos + Slope()(inputs) * 10), tmp_path, name="m")
    finally:
        del RULES[Slope]


def test_a_difference_of_a_thousandth_is_a_mistake_even_there() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=(1, 50, 3))
    with pytest.raises(VerificationError, match=r"tolerance 4e-05"):
        compare(y, y + 1e-3, "x", tolerance=4e-5)


@pytest.fixture
def shifted() -> Any:
    """A layer whose lowering is off by a part of its output."""

    class Same(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return x * 1.0

    yield Same
    del RULES[Same]


def test_small_outputs_are_checked_too(tmp_path: Path, shifted: Any) -> None:
    @register_lowering(shifted, why="test")
    def _off(_native: Any, _layer: Any, x: Any) -> Any:
        return x * 1.1

    inputs = keras.Input((None, 2))
    for small in (1e-6, 1e-9):
        with pytest.raises(VerificationError, match="first difference"):
            export_model(keras.Model(inputs, shifted()(inputs) * small), tmp_path, name="m")
    beside = keras.ops.concatenate([inputs * 1e-4, shifted()(inputs) * 1e-6])
    with pytest.raises(VerificationError, match="first difference"):  # also beside a channel a hundred times as large
        export_model(keras.Model(inputs, beside), tmp_path, name="m")


def test_an_overflow_of_large_values_is_seen(tmp_path: Path, shifted: Any) -> None:
    @register_lowering(shifted, why="test")
    def _overflows(_native: Any, _layer: Any, x: Any) -> Any:
        return keras.ops.log(keras.ops.exp(x))

    inputs = keras.Input((None, 2))
    for length in (None, 20):
        inputs = keras.Input((length, 2))
        with pytest.raises(VerificationError, match=r"x 100: first difference .* got -?inf"):
            export_model(keras.Model(inputs, shifted()(inputs)), tmp_path, name="m", dynamic_time=False)


def test_outputs_that_are_zero_throughout(tmp_path: Path) -> None:
    inputs = keras.Input((None, 2))
    assert export_model(keras.Model(inputs, inputs * 0.0), tmp_path, name="m").verification.offline == 0


def test_no_number_does_not_loosen_the_tolerance(tmp_path: Path, shifted: Any) -> None:
    @register_lowering(shifted, why="test")
    def _gives_nan(_native: Any, _layer: Any, x: Any) -> Any:
        return keras.ops.sqrt(x)

    inputs = keras.Input((None, 2))
    with pytest.raises(VerificationError, match="got nan"):
        export_model(keras.Model(inputs, shifted()(inputs)), tmp_path, name="m")


def test_a_model_that_takes_one_batch_size_only(tmp_path: Path) -> None:
    class OfTwo(keras.layers.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            if x.shape[0] not in (None, 2):
                raise ValueError("two, please")
            return x * 2.0

    inputs = keras.Input((20, 2))
    with pytest.raises(ExportError, match="cannot run the model on a batch of 1, but on others: two, please"):
        export_model(keras.Model(inputs, OfTwo()(inputs)), tmp_path, name="m", dynamic_time=False)
