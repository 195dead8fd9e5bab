"""The names of ports."""

from __future__ import annotations

from typing import Any

import keras
from keras import layers as L  # noqa: N812

from edgeseq.export.signature import signature


def names(model: Any) -> list[str]:
    return [port.name for port in signature(model).outputs]


def test_an_output_that_is_an_input_gets_a_name_that_is_free() -> None:
    x = keras.Input((None, 3), name="x")
    z = keras.Input((None, 3), name="z")
    assert names(keras.Model([x, z], [x, L.Dense(2, name="x_output")(z)])) == ["x_output_1", "x_output"]
    y = keras.Input((None, 3), name="x_output")
    assert names(keras.Model([x, y], [x, L.Dense(2, name="y")(y)])) == ["x_output_1", "y"]


def test_keys_of_a_dict_that_are_no_strings() -> None:
    x = keras.Input((None, 3))
    ports = signature(keras.Model(x, {2: L.Dense(4)(x), 1: L.Dense(5)(x)})).outputs
    assert [(port.name, port.shape) for port in ports] == [("1", (5,)), ("2", (4,))]
