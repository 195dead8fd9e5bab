"""Writing a certificate into a stream file, and nothing else of the file changed."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

import onnx

from edgeseq.certificate import CERTIFICATE_KEY, Certificate
from edgeseq.errors import ConfigError, ModelFileError
from edgeseq.model_file import graph_sha256


def write_certificate(path: Path, certificate: Certificate) -> None:
    """Put the certificate in the place of an older one; the file is replaced as a whole, or stays as it was.

    Raises:
        ModelFileError: the file is no longer the one that the certificate is of.
        ConfigError: the file cannot be written.
    """
    model = onnx.ModelProto.FromString(path.read_bytes())
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key != CERTIFICATE_KEY}
    del model.metadata_props[:]
    for key, value in {**kept, CERTIFICATE_KEY: certificate.to_json()}.items():
        model.metadata_props.add(key=key, value=value)
    data = model.SerializeToString(deterministic=True)
    if (why := certificate.mismatch(kept, graph_sha256(data))) is not None:
        raise ModelFileError(f"{str(path)!r} was changed while it was verified: {why}; verify it again")
    replace_file(path, data)


def replace_file(path: Path, data: bytes) -> None:
    """Write a file as a whole: a reader sees the old one or the new one.

    Raises:
        ConfigError: it cannot be written.
    """
    new = path.with_name(f".{path.name}.new")
    try:
        new.write_bytes(data)
        os.replace(new, path)
    except OSError as error:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        raise ConfigError(f"cannot write {str(path)!r}: {error.strerror}; choose another place") from error
