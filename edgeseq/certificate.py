"""The certificate of a stream file: what the contract check saw, and of exactly which file.

It is one JSON object under a metadata key of its own, ``edgeseq.certificate``. It names the graph (the file without its
metadata) and everything else in the metadata by their SHA-256, so that writing it changes neither, and a change of
either is seen. That is integrity, not authenticity: who can write the file can write a certificate. This module needs
the standard library alone; ``edgeseq.export.verify`` makes certificates.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from edgeseq.errors import ModelFileError

CERTIFICATE_VERSION = 1
CERTIFICATE_KEY = "edgeseq.certificate"


@dataclass(frozen=True)
class Certificate:
    """What was verified, with what, and what was seen.

    ``clauses`` are those of the contract that were held, in order, each with what was seen; ``notes`` what is worth
    knowing beside them. ``offline`` is the name of the offline model, ``offline_sha256`` its graph's hash (None for a
    function). ``versions`` are those of the packages that checked.

    Example:
        >>> c = Certificate("a1", "b2", "m.onnx", "c3", {"state": "2 arrays"}, (), {"numpy": "2.0"})
        >>> Certificate.from_json(c.to_json()) == c
        True
    """

    graph_sha256: str
    metadata_sha256: str
    offline: str
    offline_sha256: str | None
    clauses: Mapping[str, str]
    notes: tuple[str, ...]
    versions: Mapping[str, str]
    certificate_version: int = CERTIFICATE_VERSION

    def to_json(self) -> str:
        """The certificate as one JSON object, the same text for equal certificates; clauses keep their order."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Certificate:
        """Read what ``to_json`` wrote.

        Raises:
            ModelFileError: the text is no certificate, or one of a newer version.
        """
        try:
            raw = json.loads(text)
            if raw["certificate_version"] != CERTIFICATE_VERSION:
                raise ModelFileError(
                    f"certificate of version {raw['certificate_version']!r}: this edgeseq reads version "
                    f"{CERTIFICATE_VERSION}; verify the file again, or install the edgeseq that wrote it"
                )
            return cls(**{**raw, "notes": tuple(raw["notes"]), "clauses": dict(raw["clauses"])})
        except (KeyError, TypeError, ValueError) as error:
            raise ModelFileError(
                f"metadata {CERTIFICATE_KEY!r}: not a certificate ({error!r}); verify the file again"
            ) from error

    def mismatch(self, metadata: Mapping[str, str], graph_sha256: str) -> str | None:
        """Why this certificate is not of the file with this metadata and graph; None if it is."""
        if self.graph_sha256 != graph_sha256:
            return "the graph is another one than was verified"
        if self.metadata_sha256 != metadata_sha256(metadata):
            return "its description is another one than was verified"
        return None


def certificate_of(metadata: Mapping[str, str]) -> Certificate | None:
    """The certificate in a file's metadata; None without one. Whether it is of this file, ``mismatch`` says.

    Raises:
        ModelFileError: there is one, but it is damaged, or of a newer version.
    """
    text = metadata.get(CERTIFICATE_KEY)
    return None if text is None else Certificate.from_json(text)


def metadata_sha256(metadata: Mapping[str, str]) -> str:
    """SHA-256 of a file's metadata but for the certificate: of the JSON object of it, keys sorted, as hex.

    Example:
        >>> metadata_sha256({"edgeseq": "{}"}) == metadata_sha256({"edgeseq.certificate": "...", "edgeseq": "{}"})
        True
    """
    rest = {key: value for key, value in metadata.items() if key != CERTIFICATE_KEY}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()
