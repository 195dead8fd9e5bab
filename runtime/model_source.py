"""Opening a model file: read it, check it against what it says of itself, and make the ONNX Runtime session.

Invariant: what leaves here has an intact graph (its hash is the one in its description) whose inputs and outputs are
those that the description names. Sessions run on the CPU and on one thread unless one asks for more: small models are
slower on two. They never spin: idle workers would burn the processor.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from edgeseq.errors import ConfigError, ModelFileError, ModelNotFoundError
from edgeseq.model_file import METADATA_KEY, Description, Kind, graph_sha256

_TYPES = {"float32": "tensor(float)", "float64": "tensor(double)", "int32": "tensor(int32)", "int64": "tensor(int64)"}
_LOADERS: dict[Kind, str] = {"stream": "load()", "offline": "load_offline()"}


Provider = str | tuple[str, Mapping[str, Any]]
"""An execution provider by ONNX Runtime's name, alone or with its options."""


@dataclass(frozen=True)
class Execution:
    """What ONNX Runtime computes with: execution providers, the preferred first, and threads within an operator."""

    providers: tuple[Provider, ...] = ("CPUExecutionProvider",)
    threads: int = 1


@dataclass(frozen=True)
class Source:
    """A model file that was checked: its bytes, its description and an ``ort.InferenceSession`` on its graph."""

    data: bytes
    description: Description
    ort_session: Any
    execution: Execution = Execution()


def open_model(path: str | os.PathLike[str], kind: Kind, execution: Execution = Execution()) -> Source:
    """Read a model file of this kind.

    Raises:
        ConfigError: it cannot be computed with that.
        ModelNotFoundError: there is no such file (also a ``FileNotFoundError``).
        ModelFileError: the file is damaged, was not written by edgeseq, is of the other kind, or of a newer format.
    """
    source = _open(path, execution)
    if (found := source.description.kind) != kind:
        raise ModelFileError(
            f"{os.fspath(path)!r}: expected a model of kind {kind!r}, got {found!r}; open it with {_LOADERS[found]}"
        )
    return source


def describe(path: str | os.PathLike[str]) -> Description:
    """What a model file of either kind says of itself, after the same checks as ``open_model``."""
    return _open(path).description


def _open(path: str | os.PathLike[str], execution: Execution = Execution()) -> Source:
    where = os.fspath(path)
    try:
        data = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise ModelNotFoundError(
            f"no model file at {where!r}; check the path, or make one with edgeseq export MODEL.keras -o DIR"
        ) from error
    except OSError as error:
        raise ModelFileError(f"cannot read {where!r}: {error.strerror}") from error
    try:
        found = graph_sha256(data)
        ort_session = session(data, execution)
        text = ort_session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
        if text is None:
            raise ModelFileError("no edgeseq description in it; export the model with edgeseq.export")
        description = Description.from_json(text)
        _check(description, found, ort_session)
    except ModelFileError as error:
        raise ModelFileError(f"{where!r}: {error}") from error
    return Source(data, description, ort_session, execution)


def check_execution(providers: Sequence[Provider] | None, threads: int) -> Execution:
    """What a user asked for, None being the CPU.

    Raises:
        ConfigError: a provider is unknown or not there, or ``threads`` is not a whole number of 1 or more.
    """
    if type(threads) is not int or threads < 1:
        raise ConfigError(f"load: expected threads, a whole number of 1 or more, got {threads!r}; 1 suits small models")
    if providers is None:
        return Execution(threads=threads)
    there = ort.get_available_providers()
    if isinstance(providers, str) or not isinstance(providers, Sequence) or not providers:
        raise ConfigError(f"load: expected a list of execution providers, got {providers!r}; available are {there}")
    for provider in providers:
        name, options = provider if isinstance(provider, tuple) and len(provider) == 2 else (provider, {})
        if not isinstance(name, str) or not isinstance(options, Mapping):
            raise ConfigError(f"load: expected a provider's name, or (name, options), got {provider!r}")
        if name not in there:
            raise ConfigError(
                f"load: execution provider {name!r} is not in the installed onnxruntime; available are {there}"
            )
    return Execution(tuple(providers), threads)


def session(data: bytes, execution: Execution = Execution()) -> Any:
    """An ``ort.InferenceSession`` that runs with this and nothing else; by default, on one thread of the CPU.

    Raises:
        ModelFileError: ONNX Runtime cannot open the model.
        ConfigError: a provider cannot be started, or does not take its options.
    """
    plain = execution.providers == Execution.providers
    try:
        ort_session = ort.InferenceSession(data, _options(execution), providers=list(execution.providers))
    except Exception as error:  # ORT's exception classes have no public common base
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        if plain:
            raise ModelFileError(f"ONNX Runtime cannot open it: {reason}") from error
        session(data)  # if the file is to blame, this says so
        raise ConfigError(f"load: ONNX Runtime cannot use {list(execution.providers)}: {reason}") from error
    names = [provider if isinstance(provider, str) else provider[0] for provider in execution.providers]
    if missing := sorted(set(names) - set(ort_session.get_providers())):  # ORT goes on with the CPU, and only prints
        raise ConfigError(
            f"load: the execution providers {missing} could not be started, only {ort_session.get_providers()}; "
            "check their drivers and libraries"
        )
    return ort_session


def is_cpu(ort_session: Any) -> bool:
    """Whether the CPU computes all: others may copy what was bound when it is bound, and never look at it again."""
    return list(ort_session.get_providers()) == ["CPUExecutionProvider"]


def _options(execution: Execution) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = execution.threads
    options.inter_op_num_threads = 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 4  # errors are raised, and need not be printed, too
    return options


def _check(description: Description, found: str, ort_session: Any) -> None:
    if description.graph_sha256 != found:
        raise ModelFileError(
            f"the graph's hash is {found[:12]}..., its description says {description.graph_sha256[:12]}...; "
            "the file was changed after its export, export it again"
        )
    d = description
    inputs = [(port.name, port.dtype, (None, *port.array_shape)) for port in d.inputs]
    outputs = [(port.name, port.dtype, (None, *port.array_shape)) for port in d.outputs]
    if d.end is not None:
        inputs.append((d.end, "int64", (None,)))
    for state in d.state:
        inputs.append((state.input, state.dtype, (None, *state.shape)))
        outputs.append((state.output, state.dtype, (None, *state.shape)))
    for what, expected, nodes in (
        ("inputs", inputs, ort_session.get_inputs()),
        ("outputs", outputs, ort_session.get_outputs()),
    ):
        named = [(name, _TYPES[dtype], shape) for name, dtype, shape in expected]
        got = [(n.name, n.type, tuple(size if isinstance(size, int) else None for size in n.shape)) for n in nodes]
        if sorted(got, key=str) != sorted(named, key=str):
            raise ModelFileError(f"its description names the {what} {named}, its graph has {got}")
