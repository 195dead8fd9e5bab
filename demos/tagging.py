"""What one later token buys a tagger of Python's names: ``python -m demos.tagging --out runs/tagging``.

Trains a bidirectional tagger and a causal one, and measures what every token of delay buys the bidirectional one. Owns
how both are trained and exported, and the budget; `demos.tokens` owns the data. Files are split by file: the first
fifth of them are held out.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Keras and TensorFlow are imported where they are used, so that this stands before them.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np

import edgeseq
from demos.methods import Say
from demos.tokens import IGNORED, LABELS, VOCABULARY, TaggedSource, majority_rate, standard_library
from edgeseq import runtime
from edgeseq.budget_curve import BudgetCurve
from edgeseq.errors import EdgeseqError

_WINDOW = 64  # tokens in a training window
_BATCH = 64
_LEARNING_RATE = 0.005
_HELD_OUT = 0.2
_TARGET = "accuracy=0.99"


def split(sources: Sequence[TaggedSource]) -> tuple[list[TaggedSource], list[TaggedSource]]:
    """Files to train on, and files held out."""
    n_held_out = max(1, int(len(sources) * _HELD_OUT))
    return list(sources[n_held_out:]), list(sources[:n_held_out])


def build(architecture: str) -> Any:
    """An untrained tagger: "bilstm", or "tcn", which is causal. Tokens (B, T) -> (B, T, n_labels)."""
    import keras

    if architecture == "bilstm":
        return edgeseq.bilstm_text_tagger(
            len(VOCABULARY), len(LABELS), embedding_dim=24, units=48, mask_zero=False, dropout_rate=0.0
        )
    tokens = keras.Input((None,), dtype="int32", name="tokens")
    x = keras.layers.Embedding(len(VOCABULARY), 24)(tokens)
    x = edgeseq.TCN(48, 3, dilations=(1, 2, 4, 8), dropout_rate=0.0, return_sequences=True)(x)
    x = edgeseq.TimeDistributed(keras.layers.Dense(len(LABELS), activation="softmax"))(x)
    return keras.Model(tokens, x, name="tcn_text_tagger")


def train(architecture: str, sources: Sequence[TaggedSource], *, steps: int, seed: int = 0) -> Any:
    """Train on random windows for so many steps; only names count."""
    import keras

    keras.utils.set_random_seed(seed)
    model = build(architecture)
    rate = keras.optimizers.schedules.CosineDecay(_LEARNING_RATE, steps)
    model.compile(keras.optimizers.Adam(rate, global_clipnorm=1.0), "sparse_categorical_crossentropy")
    tokens, labels = (np.concatenate([getattr(s, part) for s in sources]) for part in ("tokens", "labels"))
    starts = np.random.default_rng(seed).integers(0, len(tokens) - _WINDOW, (steps * _BATCH, 1))
    places = starts + np.arange(_WINDOW)
    counts = labels[places] != IGNORED
    model.fit(
        tokens[places], np.maximum(labels[places], 0), sample_weight=counts, batch_size=_BATCH, verbose=0, shuffle=False
    )
    return model


def accuracy(path: Path, sources: Sequence[TaggedSource]) -> float:
    """The share of names whose use an offline file tells, each source in one piece."""
    model = runtime.load_offline(path)
    right = counted = 0
    for source in sources:
        names = source.labels != IGNORED
        right += int((model.run(source.tokens).argmax(-1) == source.labels)[names].sum())
        counted += int(names.sum())
    return right / counted


def train_and_export(out: Path, say: Say, *, n_files: int | None = None, steps: int = 600) -> list[TaggedSource]:
    """Write bilstm and tcn (.keras, .onnx, .stream.onnx where it streams) and return the files held out."""
    from edgeseq.export import export_model

    out.mkdir(parents=True, exist_ok=True)
    training, held_out = split(standard_library(n_files))
    names = sum(int((s.labels != IGNORED).sum()) for s in held_out)
    say(
        f"{len(training)} files of the standard library to train on, {len(held_out)} held out with {names:,} names; "
        f"the most frequent use is {majority_rate(held_out):.3f} of them"
    )
    for architecture in ("bilstm", "tcn"):
        model = train(architecture, training, steps=steps)
        model.save(out / f"{architecture}.keras")
        offline = export_model(model, out, name=architecture, label_names=LABELS).offline
        say(f"{architecture}: {accuracy(offline, held_out):.3f} of the names in unseen files are told right")
    return held_out


def waiting(out: Path, held_out: Sequence[TaggedSource], say: Say, **arguments: Any) -> BudgetCurve:
    """Print what every token of delay buys, and write budget.json and budget.png; ``arguments`` as for the budget."""
    curve = edgeseq.budget(
        out / "bilstm.onnx",
        [(source.tokens, source.labels) for source in held_out],
        causal=out / "tcn.stream.onnx",
        target=_TARGET,
        **arguments,
    )
    (out / "budget.json").write_text(curve.to_json() + "\n", encoding="utf-8")
    curve.save_plot(out / "budget.png")
    say(str(curve))
    return curve


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and export both; see the module docstring."""
    parser = argparse.ArgumentParser(prog="python -m demos.tagging", description="Tag Python's names.")
    parser.add_argument("--out", type=Path, default=Path("runs/tagging"), help="the folder to write to")
    options = parser.parse_args(arguments)
    try:
        waiting(options.out, train_and_export(options.out, print), print)
    except EdgeseqError as error:
        raise SystemExit(f"tagging: {error}") from error
    print(options.out / "budget.png")


if __name__ == "__main__":
    main()
