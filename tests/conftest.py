"""Shared by all tests: quiet TensorFlow, and models with random weights, biases and statistics everywhere."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
import pytest


def random_weights(model: Any, seed: int = 0) -> Any:
    """Make every weight random, since a fresh model's zero biases hide mistakes."""
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        shape = tuple(weight.shape)
        value = rng.normal(size=shape) * (0.7 / np.sqrt(np.prod(shape[:-1])) if len(shape) > 1 else 0.3)
        weight.assign(np.abs(value) + 0.5 if "variance" in weight.path else value)
    return model


@pytest.fixture(scope="session")
def randomise() -> Callable[..., Any]:
    """``random_weights(model, seed=0)``."""
    return random_weights
