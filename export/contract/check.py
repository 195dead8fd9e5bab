"""The contract check: whether a stream file keeps, for any chunking, the law that it equals its offline model.

``verify`` holds a pair to every clause of ``edgeseq.export.contract.clauses.CLAUSES``; the first one that is broken
ends it. What was seen is written into the stream file as its certificate.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnxruntime as ort

import edgeseq
from edgeseq.certificate import Certificate, metadata_sha256
from edgeseq.errors import ConfigError, InputError, VerificationError
from edgeseq.export.certify import write_certificate
from edgeseq.export.contract.bounded import BOUNDED_CLAUSES, bounded_function
from edgeseq.export.contract.clauses import CLAUSES, Clause, Seen
from edgeseq.export.contract.offline_function import OfflineFunction, OfflineModel, offline_function
from edgeseq.export.contract.pair import Pair
from edgeseq.export.graph.vocabulary import vocabulary_of
from edgeseq.export.streaming.step_model import Options
from edgeseq.export.streaming.time_axis import TimeAxes
from edgeseq.runtime.model_source import open_model

CheckInput = np.ndarray[Any, Any] | Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class ContractReport:
    """What ``verify`` saw, clause by clause, in the order in which they were checked.

    ``worst`` is the largest difference of an output, in units of its scale. ``notes`` are no mistakes, but worth
    knowing: a receptive field or a lookahead that is declared larger than was seen, for one.
    """

    stream: Path
    offline: str
    clauses: Mapping[str, Seen]
    worst: float
    notes: tuple[str, ...]
    certificate: Certificate
    took_s: float


def verify(
    stream: str | os.PathLike[str],
    offline: OfflineModel,
    *,
    time_axis: TimeAxes = None,
    vocabulary: int | None = None,
    check_inputs: Sequence[CheckInput] = (),
    pooling_window: int | None = None,
    length_modulo: tuple[int, int] | None = None,
    write: bool = True,
) -> ContractReport:
    """Hold a stream file to its contract with its offline model, and write the certificate into it.

    Shapes: an offline function takes (1, T, C), or as ``time_axis`` says, or a mapping of such, and gives (1, R, K), or
    (1, K) or (1, 1, K) behind a pool; several outputs as a mapping or in order. A file has its own layout, which the
    stream file tells.

    Args:
        stream: a stream file.
        offline: its offline file, ours or another exporter's; or a function, a Keras model for one, unless the stream
            has a bounded lookahead.
        time_axis: of the offline model's inputs, or by an input's name, where it is not the one in the stream file.
        vocabulary: of a model of tokens, how many there are; found in the graph where it can be.
        check_inputs: sequences (T, C) of your own data, verified beside random ones; for several inputs mappings.
        pooling_window: of a file that does not say it itself, with which the stream was made: a pool is compared while
            so many rows have come, since the offline model pools over all.
        length_modulo: of a file that does not say it itself: only lengths are tried that it promises.
        write: whether the certificate is written.

    Raises:
        VerificationError: the first clause that is broken, with the output, the step and the numbers. The file stays as
            it was.
        ModelNotFoundError, ModelFileError: a file is missing, damaged, or of another kind.
        ConfigError: the two are no pair, or an argument is not what it should be, or the file cannot be written.

    Example:
        >>> report = verify("tests/data/tiny.stream.onnx", "tests/data/tiny.onnx", write=False)
        >>> list(report.clauses)[:3], report.worst < 1e-5
        (['state', 'hop', 'steps'], True)
    """
    start = perf_counter()
    path = Path(stream)
    _check_arguments(vocabulary, check_inputs)
    description = open_model(path, "stream").description
    function = offline_function(offline, description, time_axis)
    told = description.conditions
    options = Options(
        told.pooling_window if pooling_window is None else pooling_window,
        told.length_modulo if length_modulo is None else length_modulo,
    )
    wanted, reference = CLAUSES, function
    if description.lookahead is not None:
        wanted, reference = CLAUSES | BOUNDED_CLAUSES, bounded_function(offline, function, description)
    pair = Pair(path, reference, vocabulary or vocabulary_of(path), check_inputs, options)
    pair.whole = function
    seen = {name: _held(name, clause, pair) for name, clause in wanted.items()}
    notes = (*dict.fromkeys(pair.notes), *(note for each in seen.values() for note in each.notes))
    origin = description.offline
    if origin is not None and function.graph_sha256 not in (None, origin.graph_sha256):
        notes += (f"the file names another offline graph, {origin.file} ({origin.graph_sha256[:12]})",)
    certificate = _certificate(pair, function, seen, notes)
    if write:
        write_certificate(path, certificate)
    return ContractReport(
        stream=path,
        offline=function.name,
        clauses=seen,
        worst=max(each.worst or 0.0 for each in seen.values()),
        notes=notes,
        certificate=certificate,
        took_s=perf_counter() - start,
    )


def _check_arguments(vocabulary: Any, check_inputs: Any) -> None:
    if vocabulary is not None and (not isinstance(vocabulary, int) or vocabulary < 1):
        raise ConfigError(f"vocabulary: expected the number of tokens, got {vocabulary!r}")
    if not isinstance(check_inputs, Sequence) or isinstance(check_inputs, (str, bytes)):
        raise ConfigError(
            f"check_inputs: expected a list of sequences, got {type(check_inputs).__name__}; put it into a list"
        )


def _held(name: str, clause: Clause, pair: Pair) -> Seen:
    try:
        return clause(pair)
    except (VerificationError, InputError) as error:  # the runtime says InputError of what ONNX Runtime cannot run
        raise VerificationError(f"{pair.path.name}, clause {name!r}: {error}") from error


def _certificate(
    pair: Pair, function: OfflineFunction, seen: Mapping[str, Seen], notes: tuple[str, ...]
) -> Certificate:
    return Certificate(
        graph_sha256=pair.description.graph_sha256,
        metadata_sha256=metadata_sha256(pair.ort_session.get_modelmeta().custom_metadata_map),
        offline=function.name,
        offline_sha256=function.graph_sha256,
        clauses={name: _told(each) for name, each in seen.items()},
        notes=notes,
        versions={"edgeseq": edgeseq.__version__, "onnxruntime": ort.__version__, "numpy": np.__version__},
    )


def _told(seen: Seen) -> str:
    return seen.text if seen.worst is None else f"{seen.text}; differs by {seen.worst:.1e} of the output's scale"
