"""Shared by the tests of the runtime: the models of the tests of pools, each exported once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from edgeseq import runtime as rt
from edgeseq.export import export_model
from tests.runtime.pool_models import MODELS


@pytest.fixture(scope="session")
def pool_model(tmp_path_factory: pytest.TempPathFactory, randomise: Callable[..., Any]) -> Callable[[str], rt.Model]:
    """The streaming model of this name in ``MODELS``."""
    made: dict[str, rt.Model] = {}

    def model(name: str) -> rt.Model:
        if name not in made:
            folder = tmp_path_factory.mktemp("pool")
            report = export_model(randomise(MODELS[name](), 3), folder, name="m")
            assert report.stream is not None, report
            made[name] = rt.load(report.stream)
        return made[name]

    return model
