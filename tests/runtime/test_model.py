"""Loading: what a good file gives, and how each bad one is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgeseq import runtime as rt
from edgeseq.errors import ModelFileError, ModelNotFoundError
from edgeseq.model_file import FORMAT_VERSION, Description

STREAM, OFFLINE = Path("tests/data/tiny.stream.onnx"), Path("tests/data/tiny.onnx")


def rewrite(path: Path, source: Path, **fields: Any) -> Path:
    """A copy of a model file with other fields in its description."""
    proto = onnx.load(source)
    description = Description.from_json(proto.metadata_props[0].value)
    proto.metadata_props[0].value = replace(description, **fields).to_json()
    path.write_bytes(proto.SerializeToString(deterministic=True))
    return path


def test_the_file_describes_itself() -> None:
    model = rt.load(STREAM)
    assert (model.name, model.receptive_field, model.lookahead, model.warm_up) == ("tiny", (6, 0), 0, 6)
    assert model.hop == 1
    assert (model.input.shape, model.output.shape, model.rate_hz) == ((3,), (2,), 50.0)
    assert (model.feature_names, model.label_names) == (("x", "y", "z"), ("rest", "move"))
    assert model.state_bytes == 4 * (3 * 1 + 4 * 1 + 4 * 2 + 4 * 2)
    assert model.description.offline is not None
    assert model.description.offline.graph_sha256 == rt.load_offline(OFFLINE).description.graph_sha256
    assert "tiny" in repr(model)


@pytest.mark.parametrize("loader", [rt.load, rt.load_offline])
def test_a_missing_file_is_ours_and_a_file_not_found_error(loader: Callable[[str], Any]) -> None:
    with pytest.raises(ModelNotFoundError, match=r"no model file at 'gone\.onnx'; check the path"):
        loader("gone.onnx")
    with pytest.raises(FileNotFoundError):
        loader("gone.onnx")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="cannot read"):
        rt.load(tmp_path)


def test_the_other_kind_is_named_with_its_loader() -> None:
    with pytest.raises(
        ModelFileError, match=r"expected a model of kind 'stream', got 'offline'; open it with load_off"
    ):
        rt.load(OFFLINE)
    with pytest.raises(ModelFileError, match=r"got 'stream'; open it with load\(\)"):
        rt.load_offline(STREAM)


@pytest.mark.parametrize("size", [0, 1, 100, 4000])
def test_a_truncated_file_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(STREAM.read_bytes()[:size])
    with pytest.raises(ModelFileError, match=r"cut\.onnx"):
        rt.load(path)


def test_a_foreign_onnx_file_is_refused(tmp_path: Path) -> None:
    proto = onnx.load(STREAM)
    del proto.metadata_props[:]
    onnx.save(proto, tmp_path / "foreign.onnx")
    with pytest.raises(ModelFileError, match="no edgeseq description in it"):
        rt.load(tmp_path / "foreign.onnx")


def test_a_changed_weight_is_noticed(tmp_path: Path) -> None:
    proto = onnx.load(STREAM)
    weight = max(proto.graph.initializer, key=lambda t: len(t.raw_data))
    weight.raw_data = bytes([weight.raw_data[0] ^ 1]) + weight.raw_data[1:]
    onnx.save(proto, tmp_path / "changed.onnx")
    with pytest.raises(ModelFileError, match="the file was changed after its export"):
        rt.load(tmp_path / "changed.onnx")


def test_ports_must_be_those_of_the_description(tmp_path: Path) -> None:
    state = rt.load(STREAM).description.state
    wrong = rewrite(tmp_path / "ports.onnx", STREAM, fast=None, state=(replace(state[0], input="nowhere"), *state[1:]))
    with pytest.raises(ModelFileError, match=r"names the inputs .*'nowhere'"):
        rt.load(wrong)


def test_the_description_must_fit_the_graph(tmp_path: Path) -> None:
    d = rt.load(STREAM).description
    for fields, message in (
        ({"outputs": (replace(d.output, shape=(5,), names=None),)}, "names the outputs"),
        ({"inputs": (replace(d.input, shape=(4,), names=None),)}, "names the inputs"),
        ({"inputs": (replace(d.input, length=9),)}, "names the inputs"),
        ({"state": (replace(d.state[0], output=d.state[1].output), *d.state[1:])}, "names the outputs"),
        ({"state": (replace(d.state[0], shape=(3, 2)), *d.state[1:])}, "names the inputs"),
        ({"outputs": (replace(d.output, names=("a", "b", "c")),)}, r"names: expected one for each of \(2,\)"),
    ):
        with pytest.raises(ModelFileError, match=message):
            rt.load(rewrite(tmp_path / "wrong.onnx", STREAM, fast=None, **fields))


def test_a_stream_without_timing_is_refused(tmp_path: Path) -> None:
    d = rt.load(STREAM).description
    with pytest.raises(ModelFileError, match="lacks the timing of an output; export it again"):
        rt.load(rewrite(tmp_path / "untimed.onnx", STREAM, outputs=(replace(d.output, timing=None),)))


@pytest.mark.parametrize("path", [STREAM, *sorted(Path("tests/data").glob("format*.stream.onnx"))])
def test_files_of_every_format_stream(path: Path) -> None:
    assert rt.load(path).description.format_version == FORMAT_VERSION
    assert rt.load(path).stream().step(np.zeros(3, np.float32)).shape == (2,)


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"newer\.onnx': model file of format 99: this edgeseq reads formats"):
        rt.load(rewrite(tmp_path / "newer.onnx", STREAM, format_version=99))
