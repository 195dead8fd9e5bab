"""The registry of lowering rules: what it replaces, and that it puts everything back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import pytest
from keras import layers as L  # noqa: N812

from edgeseq.errors import ExportError
from edgeseq.export.convert import to_onnx
from edgeseq.export.lowering.registry import RULES, lowered, register_lowering


class Inheriting(L.Dense):  # type: ignore[misc]
    """Has no call of its own."""


@pytest.fixture
def zeroed() -> Iterator[None]:
    @register_lowering(Inheriting, why="test")
    def _zero(_native: Any, layer: Any, inputs: Any, training: Any = None) -> Any:
        return keras.ops.zeros_like(inputs[..., : layer.units])

    yield
    del RULES[Inheriting]


@pytest.mark.usefixtures("zeroed")
def test_a_rule_for_a_class_that_inherits_its_call() -> None:
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, Inheriting(2)(inputs))
    assert "MatMul" not in {node.op_type for node in to_onnx(model).model.graph}
    assert "call" not in vars(Inheriting)


def _fail_while_lowered() -> None:
    with lowered():
        raise RuntimeError("in between")


def test_everything_is_put_back_after_an_error() -> None:
    before = {cls: vars(cls).get("call") for cls in RULES}
    with pytest.raises(RuntimeError, match="in between"):
        _fail_while_lowered()
    assert {cls: vars(cls).get("call") for cls in RULES} == before
    with lowered() as native:  # and the lock is free
        assert native.handlers()


def test_one_export_at_a_time() -> None:
    with lowered(), pytest.raises(ExportError, match="another export runs"), lowered():
        pytest.fail("a second export began")
