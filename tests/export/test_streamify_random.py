"""Random graphs with strides, paddings of any size, pools, crops, repetition, reversal and recurrence keep the law."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgeseq.export.streaming.step_model import streamify
from tests.export.test_streamify import EVERY_STEP, TO_CHANNELS, Array, parse, session, stream, weights

WIDTH = 4


class Drawn:
    """A graph while it is drawn: its text, its constants, and how long each tensor is for a sequence of n steps."""

    def __init__(self, draw: Any) -> None:
        self.draw = draw
        self.body = [TO_CHANNELS]
        self.constants: dict[str, Array] = {}
        self.length: dict[str, Callable[[int], int]] = {"t": lambda n: n}
        self.backwards = {"t": False}

    def name(self) -> str:
        return f"v{len(self.body)}"

    def add(self, text: str, source: str, length: Callable[[int], int], *, backwards: bool | None = None) -> None:
        name = self.name()
        self.body.append(f"{name} = {text}")
        before = self.length[source]
        self.length[name] = lambda n: max(0, length(before(n)))
        self.backwards[name] = self.backwards[source] if backwards is None else backwards

    def between(self, text: str) -> str:
        """A tensor that no block takes up; its name."""
        name = self.name()
        self.body.append(f"{name} = {text}")
        return name

    def alike(self, source: str) -> list[str]:
        """The tensors that are as long as this one, whatever the sequence's length, and run in its direction."""
        return [
            other
            for other in self.length
            if self.backwards[other] == self.backwards[source]
            and all(self.length[other](n) == self.length[source](n) for n in range(40, 70))
        ]

    def constant(self, value: Array) -> str:
        name = f"C{len(self.constants)}"
        self.constants[name] = value
        return name


def _conv(d: Drawn, source: str) -> None:
    kernel, dilation = d.draw(st.integers(1, 4)), d.draw(st.integers(1, 3))
    stride = 1 if d.backwards[source] else d.draw(st.sampled_from([1, 1, 1, 2, 3]))
    before, after = d.draw(st.integers(0, 5)), d.draw(st.integers(0, 4))
    reach = (kernel - 1) * dilation
    w, b = d.constant(weights(WIDTH, WIDTH, kernel)), d.constant(weights(WIDTH))
    attributes = f"pads=[{before},{after}], dilations=[{dilation}], strides=[{stride}]"
    d.add(f"Conv<{attributes}>({source}, {w}, {b})", source, lambda n: (n + before + after - reach - 1) // stride + 1)


def _pool(d: Drawn, source: str) -> None:
    size = d.draw(st.integers(1, 4))
    stride = 1 if d.backwards[source] else d.draw(st.integers(1, 3))
    before, after = d.draw(st.integers(0, size - 1)), d.draw(st.integers(0, size - 1))
    kind = d.draw(st.sampled_from(["MaxPool", "AveragePool", "AveragePool"]))
    more = f", count_include_pad={d.draw(st.integers(0, 1))}" if kind == "AveragePool" else ""
    attributes = f"kernel_shape=[{size}], pads=[{before},{after}], strides=[{stride}]{more}"
    d.add(f"{kind}<{attributes}>({source})", source, lambda n: (n + before + after - size) // stride + 1)


def _crop(d: Drawn, source: str) -> None:
    start, end = d.draw(st.integers(0, 3)), d.draw(st.sampled_from([2**31 - 1, -1, -2]))
    stride = 1 if d.backwards[source] else d.draw(st.sampled_from([1, 1, 2]))
    given = [d.constant(np.array([n])) for n in (start, end, 2, stride)]
    d.add(f"Slice({source}, {', '.join(given)})", source, lambda n: -(-(n - start + (end if end < 0 else 0)) // stride))


def _pad(d: Drawn, source: str) -> None:
    before, after = d.draw(st.integers(0, 3)), d.draw(st.integers(0, 3))
    pads, number = (
        d.constant(np.array([0, 0, before, 0, 0, after])),
        d.constant(np.array(d.draw(st.sampled_from([0.5, -1.0])), np.float32)),
    )
    d.add(f"Pad({source}, {pads}, {number})", source, lambda n: n + before + after)


def _repeat(d: Drawn, source: str) -> None:
    times = d.draw(st.integers(2, 3))
    scales = d.constant(np.array([1, 1, times], np.float32))
    how = 'mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"'
    d.add(f"Resize<{how}>({source}, , {scales})", source, lambda n: n * times)


def _conv_transpose(d: Drawn, source: str) -> None:
    kernel, dilation, stride = d.draw(st.integers(1, 4)), d.draw(st.integers(1, 3)), d.draw(st.integers(1, 3))
    before, after = d.draw(st.integers(0, 3)), d.draw(st.integers(0, 3))
    more = 0 if d.backwards[source] else d.draw(st.integers(0, stride - 1))
    group = d.draw(st.sampled_from([1, 2]))
    reach = (kernel - 1) * dilation
    w, b = d.constant(weights(WIDTH, WIDTH // group, kernel)), d.constant(weights(WIDTH))
    attributes = f"pads=[{before},{after}], dilations=[{dilation}], strides=[{stride}], output_padding=[{more}]"
    d.add(
        f"ConvTranspose<{attributes}, group={group}>({source}, {w}, {b})",
        source,
        lambda n: (n - 1) * stride + reach + 1 + more - before - after,
    )


def _reverse(d: Drawn, source: str) -> None:
    given = [d.constant(np.array([n])) for n in (-1, -(2**31), 2, -1)]
    d.add(f"Slice({source}, {', '.join(given)})", source, lambda n: n, backwards=not d.backwards[source])


def _gru(d: Drawn, source: str) -> None:
    if d.backwards[source]:
        return
    w, r, b = (d.constant(weights(*shape)) for shape in ((1, 3 * WIDTH, WIDTH), (1, 3 * WIDTH, WIDTH), (1, 6 * WIDTH)))
    axes = d.constant(np.array([1]))
    d.add(f"Transpose<perm=[2,0,1]>({source})", source, lambda n: n)
    time_first = list(d.length)[-1]
    d.add(f"GRU<hidden_size={WIDTH}, linear_before_reset=1>({time_first}, {w}, {r}, {b})", time_first, lambda n: n)
    every = list(d.length)[-1]
    d.add(f"Squeeze({every}, {axes})", every, lambda n: n)
    squeezed = list(d.length)[-1]
    d.add(f"Transpose<perm=[1,2,0]>({squeezed})", squeezed, lambda n: n)
    for name in (time_first, every, squeezed):
        del d.length[name]


def _pointwise(d: Drawn, source: str) -> None:
    d.add(f"{d.draw(st.sampled_from(['Relu', 'Tanh', 'Neg', 'Sigmoid', 'Softplus']))}({source})", source, lambda n: n)


def _merge(d: Drawn, source: str) -> None:
    other = d.draw(st.sampled_from(d.alike(source)))
    d.add(f"{d.draw(st.sampled_from(['Add', 'Mul', 'Max']))}({source}, {other})", source, lambda n: n)


def _chomp(d: Drawn, source: str) -> None:
    """Padding at both ends, an activation, and the end cut off: more of it, as much, or less."""
    reach, after = 2 * d.draw(st.integers(1, 3)), d.draw(st.integers(0, 4))
    w, b = d.constant(weights(WIDTH, WIDTH, 3)), d.constant(weights(WIDTH))
    conv = d.between(f"Conv<pads=[{reach},{after}], dilations=[{reach // 2}]>({source}, {w}, {b})")
    act = d.between(f"{d.draw(st.sampled_from(['Relu', 'Sigmoid', 'Softplus']))}({conv})")
    cut = d.draw(st.integers(1, 5))
    given = [d.constant(np.array([n])) for n in (0, -cut, 2)]
    d.add(f"Slice({act}, {', '.join(given)})", source, lambda n: n + after - cut)


def _one_axis(d: Drawn, source: str) -> None:
    """Batch and time as one axis, a product of two such tensors, and as two again."""
    other = d.draw(st.sampled_from(d.alike(source)))
    order = d.draw(st.sampled_from(["0,2,1", "2,0,1"]))
    back = {"0,2,1": "0,2,1", "2,0,1": "1,2,0"}[order]
    rows = [d.between(f"Transpose<perm=[{order}]>({name})") for name in (source, other)]
    flat, (zero, two, width) = d.constant(np.array([-1, WIDTH])), (d.constant(np.array([n])) for n in (0, 2, WIDTH))
    merged = [d.between(f"Reshape({name}, {flat})") for name in rows]
    product = d.between(f"MatMul({merged[0]}, {d.constant(weights(WIDTH, WIDTH))})")
    mixed = d.between(f"{d.draw(st.sampled_from(['Add', 'Mul', 'Max']))}({product}, {merged[1]})")
    sizes = d.between(f"Slice({d.between(f'Shape({rows[0]})')}, {zero}, {two})")
    apart = d.between(f"Reshape({mixed}, {d.between(f'Concat<axis=0>({sizes}, {width})')})")
    d.add(f"Transpose<perm=[{back}]>({apart})", source, lambda n: n)


def _over_channels(d: Drawn, source: str) -> None:
    how = d.draw(
        st.sampled_from(["Softmax<axis=1>({})", "CumSum({}, {one})", 'Einsum<equation="bct,cd->bdt">({}, {w})'])
    )
    given = {"one": "", "w": ""}
    if "{one}" in how:
        given["one"] = d.constant(np.array(1))
    if "{w}" in how:
        given["w"] = d.constant(weights(WIDTH, WIDTH))
    d.add(how.format(source, **given), source, lambda n: n)


def _running_sum(d: Drawn, source: str) -> None:
    if not d.backwards[source]:
        d.add(f"CumSum({source}, {d.constant(np.array(2))})", source, lambda n: n)


BLOCKS = [_conv, _conv, _conv, _conv_transpose, _pool, _crop, _pad, _repeat, _reverse, _gru, _pointwise, _merge, _merge]
BLOCKS += [_chomp, _one_axis, _over_channels, _running_sum]


def _draw_graph(draw: Any) -> tuple[str, dict[str, Array], Callable[[int], bool]]:
    d = Drawn(draw)
    for block in draw(st.lists(st.sampled_from(BLOCKS), min_size=1, max_size=6)):
        block(d, draw(st.sampled_from(list(d.length)[-3:])))
    last = list(d.length)[-1]
    if d.backwards[last]:
        _reverse(d, last)
        last = list(d.length)[-1]
    lengths = list(d.length.values())
    body = " ".join([*d.body, f"output = Transpose<perm=[0,2,1]>({last})"])
    return body, d.constants, lambda n: min(length(n) for length in lengths) > 0


def _check(data: Any, sizes: list[int], batch: int) -> None:
    body, constants, long_enough = _draw_graph(data.draw)
    x = np.random.default_rng(sum(sizes)).normal(size=(batch, sum(sizes), WIDTH)).astype(np.float32)
    offline = parse(body, EVERY_STEP, constants)
    step = streamify(offline)
    if not long_enough(x.shape[1]):  # ONNX Runtime is undefined on empty tensors, or ends the process
        return
    (expected,) = session(offline).run(None, {"input": x})
    (timing,) = step.timings
    assert timing.count_rows(x.shape[1]) == expected.shape[1], body
    for n in range(timing.shortest, timing.shortest + 9):  # no row comes before it is certain that there is one
        fed = (step.phase + n) // step.granule * step.granule
        assert fed * timing.hop[1] // timing.hop[0] - timing.delay <= timing.count_rows(n), body
    got = stream(step, x, sizes)
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, atol=1e-5 * max(1.0, float(np.abs(expected).max())), err_msg=body)


chunks = st.lists(st.integers(1, 9), min_size=1, max_size=8)
QUIET: dict[str, Any] = {"deadline": None, "suppress_health_check": list(HealthCheck)}


@settings(max_examples=100, **QUIET)
@given(st.data(), chunks, st.integers(1, 3))
def test_random_graphs_stream_exactly(data: st.DataObject, sizes: list[int], batch: int) -> None:
    _check(data, sizes, batch)


@pytest.mark.extended
@settings(max_examples=2000, **QUIET)
@given(st.data(), chunks, st.integers(1, 3))
def test_many_random_graphs_stream_exactly(data: st.DataObject, sizes: list[int], batch: int) -> None:
    _check(data, sizes, batch)
