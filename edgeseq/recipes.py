"""How each architecture is built and trained: one recipe per name, so that a new architecture is one entry."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from edgeseq.builders import bilstm_tagger, tcn_tagger

__all__ = ["RECIPES", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """How one architecture is built and trained.

    The learning rate rises over the first twentieth of the steps, then falls along a half cosine; gradients are
    clipped to norm 1. An epoch is a number of random windows, not a pass over the data.

    Args:
        build: the builder: (n_channels, n_labels, *, output_activation, mean, std, ...) -> model.
        arguments: further keyword arguments of the builder.
        learning_rate: the peak of Adam's learning rate.
        window_steps: samples in a training window.
        batch_size: windows in a step.
        steps_per_epoch: steps between two validations.
        epochs: most epochs; training stops early after `patience` epochs without a better validation accuracy.
        patience: see `epochs`.
    """

    build: Callable[..., Any]
    arguments: Mapping[str, Any]
    learning_rate: float
    window_steps: int = 512
    batch_size: int = 16
    steps_per_epoch: int = 100
    epochs: int = 10
    patience: int = 6


# Learning rates, windows and dropout were chosen by accuracy on training subjects of `edgeseq.watch` that were left out
# whole (two folds, one seed), within about a minute of training on two cores. The TCN sees the last 10 s at 50 Hz.
RECIPES: Mapping[str, Recipe] = {
    "tcn": Recipe(
        tcn_tagger,
        {"nb_filters": 48, "kernel_size": 3, "dilations": (1, 2, 4, 8, 16, 32, 64), "dropout_rate": 0.05},
        learning_rate=0.01,
        window_steps=512,
        batch_size=16,
        epochs=12,
    ),
    # Time in an LSTM is spent step after step: short windows, more of them, cost half as much for as many samples.
    "bilstm": Recipe(
        bilstm_tagger,
        {"units": 48, "layers": 1, "dropout_rate": 0.3},
        learning_rate=0.01,
        window_steps=256,
        batch_size=32,
        epochs=8,
    ),
}
