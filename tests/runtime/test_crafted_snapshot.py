"""Crafted snapshots, with a checksum that fits, are refused: never loaded, never another exception, never slow."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keras import layers as L  # noqa: N812

from edgeseq import runtime as rt
from edgeseq.export import export_model
from edgeseq.runtime.snapshot import pack, unpack
from tests.export.small_models import chain
from tests.runtime.signed_snapshots import changed, header, signed

TINY = rt.load("tests/data/tiny.stream.onnx")


def _samples(n: int, channels: int = 3, seed: int = 0) -> Any:
    return np.random.default_rng(seed).normal(size=(n, channels)).astype(np.float32)


@pytest.fixture(scope="module")
def granular(tmp_path_factory: pytest.TempPathFactory) -> rt.Model:
    """A model that takes samples three at a time, counts them, and starts with zeros."""
    made = chain(*(L.Conv1D(3, 3, padding="same") for _ in range(2)), L.Conv1D(2, 3, strides=3))
    path = export_model(made, tmp_path_factory.mktemp("granular"), name="m").stream
    assert path is not None
    model = rt.load(path)
    assert model.description.granule == 3
    assert any(state.input.endswith("_position") for state in model.description.state)
    return model


def _refused(model: rt.Model, broken: Any, match: str) -> None:
    with pytest.raises(rt.SnapshotError, match=match) as caught:
        model.restore(broken)
    assert len(str(caught.value)) < 800
    str(caught.value).encode()


DEEP = b"[" * 100_000
FIELDS: dict[str, tuple[Any, ...]] = {
    "format_version": (0, -1, "9", True, 2.5, None, [1]),
    "position": (-5, 2**70, 2**41, "5", 2.7, None, True, [1], float("inf"), 8, "x" * 10_000),
    "fed": (-1, 1, 2**70, "11", 11.0, None, False, 0),
    "ended": ("false", 0, 1, None, []),
    "graph_sha256": (None, 5, "", "\ud800", ["x"] * 1000),
    "arrays": (None, 5, "x", {}, [], [None], [[]], [5], [{}], ["waiting input"]),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in FIELDS.items() for value in values])
def test_fields_of_the_wrong_kind_or_out_of_range_are_refused(name: str, value: Any, granular: rt.Model) -> None:
    for model, channels in ((TINY, 3), (granular, 4)):
        stream = model.stream()
        stream.push(_samples(11, channels))
        whole = stream.snapshot()
        _refused(model, changed(whole, **{name: value}), "snapshot: (damaged, .*expected|of another model, expected)")
        fields = header(whole)
        del fields[name]
        _refused(model, signed(whole, json.dumps(fields).encode()), "expected")
    _refused(TINY, changed(TINY.stream().snapshot(), further=1), "its fields: expected .*'further'")


DTYPES = (
    "O",
    "f4,,",
    "f4,i4",
    "S0",
    "V0",
    "M8",
    "M8[s]",
    "float16",
    "complex64",
    "f4",
    "<f4",
    "",
    None,
    4,
    ["float32"],
)
SHAPES: tuple[Any, ...] = (
    [0, 10**30], [2**63, 0], [-1, -12], [1] * 100, [1] * 100_000, [float("inf")], [float("nan")], [12.0], [True, 12],
    ["12"], None, 12, "12", {"0": 1}, [10**4000] * 30, [0, 2**31, 2**31], [1], [], [1, 4], [1, 3, 1, 1], [3, 1],
)  # fmt: skip
ENTRIES: list[dict[str, Any]] = [
    *({"dtype": dtype} for dtype in DTYPES),
    *({"shape": shape} for shape in SHAPES),
    *({"name": name} for name in (None, 5, "", "other", ["a"], "state_1_conv_rows", "waiting input", "\ud800")),
    {"further": 1},
]


@pytest.mark.parametrize("entry", range(len(ENTRIES)))
def test_arrays_of_another_layout_are_refused(entry: int) -> None:
    whole = TINY.stream().snapshot()
    listed = header(whole)["arrays"]
    listed[1] |= ENTRIES[entry]
    _refused(TINY, changed(whole, arrays=listed), "damaged|truncated")
    for key in ENTRIES[entry]:
        del listed[1][key]
        if key != "further":
            _refused(TINY, changed(whole, arrays=listed), "expected objects of name, dtype and shape")


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (1, 1, 1), (1, 3, 1), (2, 3, 1), (0, 3, 1), (1, 1, 3), (3, 1)])
def test_a_state_of_another_shape_or_dtype_is_refused_also_with_its_own_bytes(dtype: Any, shape: Any) -> None:
    fields, arrays = unpack(TINY.stream().snapshot())
    arrays["state_0_conv_rows"] = np.ones(shape, dtype)
    broken = pack(fields, list(arrays.items()))
    if (dtype, shape) == ("float32", (1, 3, 1)):
        TINY.restore(broken)
    else:
        _refused(TINY, broken, "'state_0_conv_rows': expected .*float32.* 3, 1.* got ")


def test_the_set_of_arrays_is_the_models() -> None:
    fields, arrays = unpack(TINY.stream().snapshot())
    pairs = list(arrays.items())
    for left_out in range(len(pairs)):
        broken = pack(fields, pairs[:left_out] + pairs[left_out + 1 :])
        _refused(TINY, broken, f"'missing': .'{pairs[left_out][0]}'")
    _refused(TINY, pack(fields, [*pairs, ("further", np.ones(1, np.float32))]), "'unknown': .'further'")
    _refused(TINY, pack(fields, [*pairs, pairs[0]]), "expected each name once")


@pytest.mark.parametrize("n", range(8))
def test_what_waits_and_what_was_counted_must_fit_the_position(n: int, granular: rt.Model) -> None:
    stream = granular.stream()
    stream.push(_samples(n, 4))
    fields, arrays = unpack(stream.snapshot())
    (waiting,) = (name for name in arrays if name.startswith("waiting"))
    n_waiting = granular.description.phase + n - fields["fed"]
    assert arrays[waiting].shape == (n_waiting, 4)
    for shape in [(w, 4) for w in range(5) if w != n_waiting] + [(n_waiting, 3), (n_waiting, 5), (n_waiting,)]:
        broken = {**arrays, waiting: np.zeros(shape, np.float32)}
        _refused(granular, pack(fields, list(broken.items())), "'waiting .*expected .*float32")
    (counter,) = (name for name in arrays if name.endswith("_position"))
    assert arrays[counter].tolist() == [[fields["fed"]]]
    for count in (fields["fed"] + 1, -1, 2**62):
        broken = {**arrays, counter: np.array([[count]], np.int64)}
        _refused(granular, pack(fields, list(broken.items())), "expected as many samples as were fed")
    for wrong in ({"position": n + 3}, {"fed": fields["fed"] + 3}, {"position": n + 1, "fed": fields["fed"] + 1}):
        _refused(granular, pack({**fields, **wrong}, list(arrays.items())), "damaged, its field")
    stream.flush()
    assert granular.restore(stream.snapshot()).snapshot() == stream.snapshot()


@pytest.mark.parametrize(
    "text",
    [
        *(DEEP, DEEP + b"]" * 100_000, b'{"a":' * 50_000, b"", b"null", b"1", b'"x"', b"[]", b"{", b"{}", b"\xff"),
        *(b"1" * 5000, '{"a": 1}'.encode("utf-16"), b" " * 2**20 + b"{}"),
    ],
)
def test_headers_that_are_no_headers_are_refused(text: bytes) -> None:
    whole = TINY.stream().snapshot()
    _refused(TINY, signed(whole, text), "damaged")
    _refused(TINY, signed(whole, text, b""), "damaged")
    _refused(TINY, signed(whole, text)[:-33], "damaged|truncated")


def test_a_declared_length_is_believed_within_bounds_alone() -> None:
    whole = TINY.stream().snapshot()
    _refused(TINY, whole[:8] + b"\xff\xff\xff\x7f" + whole[12:], "damaged, its checksum")
    _refused(TINY, whole[:8] + (2**19).to_bytes(4, "little") + whole[12:], "truncated")
    flipped = whole.replace(b'"format_version":1', b'"format_version":2')
    _refused(TINY, flipped, "damaged, its checksum")  # so it is not said to be of a newer format


@pytest.mark.parametrize("data", [None, "edgeseq", 5, [1], np.zeros(3), object()])
def test_what_is_no_bytes_is_refused(data: Any) -> None:
    _refused(TINY, data, f"expected bytes, got {type(data).__name__}")


def test_every_kind_of_bytes_is_read() -> None:
    stream = TINY.stream()
    stream.push(_samples(11))
    whole = stream.snapshot()
    twice = bytes(byte for byte in whole for _ in range(2))
    for data in (bytearray(whole), memoryview(whole), memoryview(bytearray(whole)), memoryview(twice)[::2]):
        assert TINY.restore(data).snapshot() == whole
    gone = memoryview(whole)
    gone.release()
    _refused(TINY, gone, "a memoryview that cannot be read")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(DTYPES[:9]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=5,
)


@settings(max_examples=400, deadline=None)
@given(st.data())
def test_a_header_changed_anywhere_is_refused_or_the_same(data: Any) -> None:
    stream = TINY.stream()
    stream.push(_samples(11))
    whole = stream.snapshot()
    old = header(whole)
    new = copy.deepcopy(old)
    at: Any = new
    while True:  # down to some value of the header, which is replaced, or taken away
        keys = range(len(at)) if isinstance(at, list) else sorted(at)
        key = data.draw(st.sampled_from(keys))
        if not (isinstance(at[key], (dict, list)) and at[key] and data.draw(st.booleans())):
            break
        at = at[key]
    if data.draw(st.booleans()):
        at[key] = data.draw(VALUES | st.just(at[key]))
    else:
        del at[key]
    broken = signed(whole, json.dumps(new).encode())
    if new == {**old, "ended": True} and new["ended"] is True:  # that is another stream's, and whole
        with pytest.raises(rt.StreamEndedError):
            TINY.restore(broken).step(_samples(1)[0])
    elif json.dumps(new) == json.dumps(old):
        assert TINY.restore(broken).snapshot() == whole
    else:
        _refused(TINY, broken, "^snapshot: ")
