"""Transposed convolutions: every kernel, stride, dilation and crop, at both edges, and what they say of their reach."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from keras import layers as L  # noqa: N812

from edgeseq.errors import NotStreamableError
from edgeseq.export.convert import to_onnx
from edgeseq.export.streaming.step_model import streamify
from tests.export.small_models import chain
from tests.export.test_streamify import EVERY_STEP, TO_CHANNELS, Array, parse, session, stream, weights

Spec = tuple[int, int, int, tuple[int, int], int]

RNG = np.random.default_rng(3)


def specs() -> list[Spec]:
    """(kernel, stride, dilation, pads, output_padding)"""
    every = itertools.product((1, 2, 3, 5), (1, 2, 3), (1, 2), ((0, 0), (1, 0), (0, 2), (2, 1)), (0, 1))
    return [(k, s, d, pads, more) for k, s, d, pads, more in every if more < s]  # as ONNX Runtime wants it


def model(spec: Spec, *, behind: str) -> Any:
    kernel, stride, dilation, (before, after), more = spec
    attributes = f"strides=[{stride}], dilations=[{dilation}], pads=[{before},{after}], output_padding=[{more}]"
    body = f"{TO_CHANNELS} {behind} y = ConvTranspose<{attributes}>(u, W, B) output = Transpose<perm=[0,2,1]>(y)"
    constants = {"W": weights(4, 3, kernel), "B": weights(3)}
    return parse(body, EVERY_STEP, constants | ({"V": weights(4, 4, 3), "A": weights(4)} if "V" in behind else {}))


@pytest.mark.parametrize("behind", ["u = Identity(t)", "u = Conv<pads=[1,1]>(t, V, A)"], ids=["alone", "lookahead"])
@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.extended) for part in range(1, 6))])
def test_equals_the_offline_model_at_every_length(part: int, behind: str) -> None:
    for spec in specs()[part::6]:
        offline = model(spec, behind=behind)
        step, reference = streamify(offline), session(offline)
        (timing,) = step.timings
        for length in (1, 2, 5, 9):
            if timing.count_rows(length) <= 0:
                continue
            x = RNG.normal(size=(2, length, 4)).astype(np.float32)
            (expected,) = reference.run(None, {"input": x})
            for sizes in ([1] * length, [length], [2, 1, 3, 3]):
                np.testing.assert_allclose(stream(step, x, sizes), expected, atol=1e-5, err_msg=f"{spec} {length}")


SEEN: list[Spec] = [(3, 2, 1, (0, 1), 0), (5, 3, 2, (2, 1), 1), (1, 3, 1, (0, 0), 2), (4, 1, 1, (0, 3), 0)]


@pytest.mark.parametrize("spec", SEEN)
def test_declares_the_samples_that_a_row_sees(spec: Spec) -> None:
    offline = model(spec, behind="u = Identity(t)")
    (timing,), reference = streamify(offline).timings, session(offline)
    x = RNG.normal(size=(1, 12, 4)).astype(np.float32)
    (whole,) = reference.run(None, {"input": x})
    past = future = 0.0
    for at in range(12):
        moved = x.copy()
        moved[:, at] += 1
        rows = np.flatnonzero(np.abs(reference.run(None, {"input": moved})[0] - whole).max(axis=(0, 2)) > 1e-6)
        places = rows * timing.hop[0] / timing.hop[1]
        past, future = max(past, *(places - at)), max(future, *(at - places))
    assert timing.receptive_field == (int(np.ceil(past)), int(np.ceil(future)))


def test_lookahead_is_what_the_crop_needs() -> None:
    (timing,) = streamify(model((4, 2, 1, (0, 2), 0), behind="u = Identity(t)")).timings
    assert (timing.lookahead, timing.hop) == (0, (1, 2))  # two rows with every sample, none of them late
    (timing,) = streamify(model((4, 2, 1, (2, 0), 0), behind="u = Identity(t)")).timings
    assert timing.lookahead == 1


@pytest.mark.parametrize("attribute", [ir.AttrString("auto_pad", "SAME_UPPER"), ir.AttrInt64s("output_shape", [9])])
def test_paddings_left_to_onnx_runtime_are_refused(attribute: ir.Attr) -> None:
    offline = model((3, 2, 1, (0, 0), 0), behind="u = Identity(t)")
    (node,) = (n for n in offline.graph if n.op_type == "ConvTranspose")
    node.attributes.pop("pads", None)  # ONNX takes one or the other
    node.attributes[attribute.name] = attribute
    with pytest.raises(NotStreamableError, match="give pads, and neither auto_pad nor output_shape"):
        streamify(offline)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_a_strided_encoder_and_a_transposed_decoder(padding: str, randomise: Callable[..., Any]) -> None:
    encoder = L.Conv1D(6, 4, strides=2, padding="causal", activation="relu")
    offline = to_onnx(randomise(chain(encoder, L.Conv1DTranspose(3, 4, 2, padding=padding)))).model
    step = streamify(offline)
    (timing,) = step.timings
    assert timing.hop == (1, 1)
    for length in (1, 8, 21):
        x: Array = RNG.normal(size=(3, length, 4)).astype(np.float32)
        expected = session(offline).run(None, {"input": x})[0]
        for sizes in ([1] * length, [length], [3, 4, 1, 9, 4]):
            np.testing.assert_allclose(stream(step, x, sizes), expected, atol=1e-5)
