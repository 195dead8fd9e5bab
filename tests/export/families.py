"""The catalogue of model families that the exporter is held to: one small model for each thing that a layer can do.

The tests export and compare every family; the compatibility table lists them by these names. But for the last three
groups every model takes (batch, time, 4) or tokens (batch, time) below 11, batch and time unknown, and has one output.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.export import layer_families as layers
from tests.export import recurrent_families as recurrent
from tests.export import whole_models as models
from tests.export.small_models import SMALL, Build, chain, time_distributed

__all__ = ["FAMILIES", "SMALL", "Family", "chain", "time_distributed"]


@dataclass(frozen=True)
class Family:
    """How one family's model is built and compared.

    ``min_length``: Keras itself needs as many steps. ``padded``: the batch holds sequences with zeros at the end
    and inside. ``extended``: one of many alike, run by the extended tests only.
    """

    group: str
    build: Build
    min_length: int = 1
    padded: bool = False
    extended: bool = False


def _groups() -> Iterable[tuple[str, Iterable[Any], bool]]:
    """(group, its families, whether they take padded batches)."""
    yield "TCN", layers.tcns(), False
    yield "builders", layers.builders(), False
    yield "recurrent", recurrent.lone(), False
    yield "recurrent", recurrent.stacks_of_cells(), False
    yield "recurrent", recurrent.states(), False
    yield "bidirectional", recurrent.bidirectional(), False
    yield "masks", recurrent.masked(), True
    yield "text", recurrent.text(), True
    yield "TimeDistributed", layers.time_distributed_layers(), False
    yield "convolution", layers.convolutions(), False
    yield "pooling", layers.poolings(), False
    yield "reshaping", layers.reshaping(), False
    yield "normalisation", layers.normalisations(), False
    yield "activation", layers.activations(), False
    yield "merging", layers.merging(), False
    yield "training only", layers.training_only(), False
    yield "attention", layers.attention(), False
    yield "composition", layers.composition(), False
    yield "several inputs and outputs", models.ports(), False
    yield "built for one length", models.of_one_length(), False
    yield "stateful", models.with_memory(), False


def _catalogue() -> dict[str, Family]:
    families: dict[str, Family] = {}
    for group, entries, padded in _groups():
        for name, build, *options in entries:
            assert name not in families, name
            families[name] = Family(group, build, padded=padded, **(options[0] if options else {}))
    return families


FAMILIES: dict[str, Family] = _catalogue()
