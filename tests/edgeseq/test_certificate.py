"""The certificate: what it says, of which file it is, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest

from edgeseq.certificate import CERTIFICATE_KEY, Certificate, certificate_of, metadata_sha256
from edgeseq.errors import ConfigError, ModelFileError
from edgeseq.export.certify import write_certificate
from edgeseq.model_file import graph_sha256

TINY = Path("tests/data/tiny.stream.onnx").read_bytes()


def metadata_of(path: Path) -> dict[str, str]:
    return {entry.key: entry.value for entry in onnx.load(path).metadata_props}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.stream.onnx"
    path.write_bytes(TINY)
    return path


@pytest.fixture
def certificate(path: Path) -> Certificate:
    told = {"state": "seen", "steps": "seen"}
    digest = metadata_sha256(metadata_of(path))
    return Certificate(graph_sha256(TINY), digest, "tiny.onnx", None, told, ("a note",), {"numpy": "2.0"})


def test_it_is_read_as_it_was_written_and_changes_no_hash(path: Path, certificate: Certificate) -> None:
    assert certificate_of(metadata_of(path)) is None
    for _ in range(2):
        write_certificate(path, certificate)
        assert certificate_of(metadata_of(path)) == certificate
        assert graph_sha256(path.read_bytes()) == graph_sha256(TINY)
        assert certificate.mismatch(metadata_of(path), graph_sha256(path.read_bytes())) is None
    assert len(onnx.load(path).metadata_props) == 2
    assert list(path.parent.iterdir()) == [path]


def test_a_change_of_graph_or_description_is_seen(path: Path, certificate: Certificate) -> None:
    metadata = metadata_of(path)
    assert certificate.mismatch(metadata, "another") == "the graph is another one than was verified"
    for changed in ({"edgeseq": metadata["edgeseq"] + " "}, {**metadata, "more": "beside it"}):
        why = certificate.mismatch(changed, certificate.graph_sha256)
        assert why == "its description is another one than was verified"


def test_a_file_that_changed_meanwhile_gets_none(path: Path, certificate: Certificate) -> None:
    with pytest.raises(ModelFileError, match=r"was changed while it was verified: the graph is another one"):
        write_certificate(path, replace(certificate, graph_sha256="another"))
    assert path.read_bytes() == TINY


def test_a_place_that_cannot_be_written(path: Path, certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(ConfigError, match=r"cannot write .*No space left on device; choose another place"):
        write_certificate(path, certificate)
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() == TINY


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"certificate_version": 2}, "certificate of version 2: this edgeseq reads version 1"),
        ({"clauses": None}, "not a certificate"),
        ({"unknown": 1}, "not a certificate"),
    ],
)
def test_what_is_no_certificate(certificate: Certificate, change: dict[str, Any], told: str) -> None:
    with pytest.raises(ModelFileError, match=told):
        Certificate.from_json(json.dumps({**json.loads(certificate.to_json()), **change}))


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", "{"])
def test_what_is_not_even_json(text: str) -> None:
    with pytest.raises(ModelFileError, match="verify the file again"):
        certificate_of({CERTIFICATE_KEY: text})
