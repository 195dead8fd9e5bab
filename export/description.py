"""What an exported file will say of itself: the ports of the conversion, and the names that the user gives them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import TYPE_CHECKING

from edgeseq.errors import ConfigError
from edgeseq.export.streaming.step_model import StepModel
from edgeseq.model_file import Description, OfflineReference, Port

if TYPE_CHECKING:
    from edgeseq.export.signature import Signature

Names = Sequence[str] | Mapping[str, Sequence[str]] | None


@dataclass(frozen=True)
class About:
    """What the user says of the model."""

    name: str
    feature_names: Names
    label_names: Names
    rate_hz: float | None


def describe_offline(ports: Signature, about: About, vocabularies: Mapping[str, int | None]) -> Description:
    """The description of an offline file, but for its receptive field and its graph's hash.

    Raises:
        ConfigError: a name or a number of names does not fit the ports, or the sample rate is none.
    """
    from edgeseq.export.convert import OPSET  # it needs TensorFlow, the rest of this file does not

    return Description(
        kind="offline",
        name=about.name,
        inputs=tuple(
            replace(port, vocabulary=vocabularies.get(port.name))
            for port in named("feature_names", ports.inputs, about.feature_names)
        ),
        outputs=named("label_names", ports.outputs, about.label_names),
        rate_hz=checked_rate(about.rate_hz),
        provenance={
            "opset": str(OPSET),
            **{package: version(package) for package in ("edgeseq", "keras", "tensorflow", "tf2onnx", "onnx")},
        },
    )


def checked_rate(rate_hz: float | None) -> float | None:
    """``rate_hz``, if it can be samples per second.

    Raises:
        ConfigError: it cannot.
    """
    is_number = isinstance(rate_hz, (int, float)) and not isinstance(rate_hz, bool)
    if rate_hz is not None and not (is_number and 0 < rate_hz < float("inf")):
        raise ConfigError(f"rate_hz: expected samples per second above 0, got {rate_hz}")
    return None if rate_hz is None else float(rate_hz)


def named(what: str, ports: Sequence[Port], given: Names) -> tuple[Port, ...]:
    """The ports with the names of their channels; of several ports, by port.

    Raises:
        ConfigError: a name or a number of names does not fit.
    """
    by_port = given if isinstance(given, Mapping) else {ports[0].name: given}
    if unknown := set(by_port) - {port.name for port in ports}:
        raise ConfigError(f"{what}: expected the ports {[p.name for p in ports]}, got {sorted(unknown, key=str)}")
    if given is not None and not isinstance(given, Mapping) and len(ports) > 1:
        raise ConfigError(f"{what}: expected a mapping from the ports {[p.name for p in ports]} to names, got {given}")
    return tuple(replace(port, names=_checked_names(what, port, by_port.get(port.name))) for port in ports)


def _checked_names(what: str, port: Port, names: Sequence[str] | None) -> tuple[str, ...] | None:
    if names is None:
        return None
    size = port.shape[-1] if port.shape else 0
    if not isinstance(names, Sequence) or isinstance(names, bytes):
        raise ConfigError(
            f"{what}: expected a list of {size} names, got {type(names).__name__}; give strings in a list"
        )
    if len(names) != size or not all(isinstance(n, str) for n in names) or len(set(names)) != size:
        raise ConfigError(f"{what}: expected {size} different names, one for each, got {list(names)}")
    return tuple(names)


def describe_stream(offline: Description, step: StepModel, offline_file: str) -> Description:
    """The description of the step graph of an offline file."""
    return replace(
        offline,
        kind="stream",
        outputs=tuple(replace(port, has_time=True, length=None, shape=_row(port, step)) for port in offline.outputs),
        state=step.state,
        granule=step.granule,
        phase=step.phase,
        cuts=step.cuts,
        end=step.end,
        fast=step.fast,
        not_fast=step.not_fast,
        lookahead=step.lookahead,
        offline=OfflineReference(offline_file, offline.graph_sha256, _axes(offline.inputs, step)),
    )


def _row(port: Port, step: StepModel) -> tuple[int, ...]:
    """The shape of an output's row: the port's, without an axis of one step that a pool over time keeps."""
    axes = step.axes[port.name]
    if port.has_time or axes.time is None:
        return port.shape
    kept = axes.time - (axes.batch < axes.time)
    return port.shape[:kept] + port.shape[kept + 1 :]


def _axes(inputs: Sequence[Port], step: StepModel) -> dict[str, tuple[int, int]]:
    """Where the offline model's inputs have batch and time."""
    places = {port.name: step.axes[port.name] for port in inputs}
    return {name: (axes.batch, axes.time) for name, axes in places.items() if axes.time is not None}


def file_stem(name: str) -> str:
    """``name``, if it can be the name of a file.

    Raises:
        ConfigError: it cannot.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name) or name.endswith(".stream"):
        raise ConfigError(
            f"name: expected letters, digits, '_', '-' and '.', not ending in '.stream', got {name!r}; "
            "it becomes a file name"
        )
    return name
