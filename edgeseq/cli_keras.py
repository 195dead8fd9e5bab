"""What the commands need of Keras: the packages, quietly, a saved model, and what stands beside it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from edgeseq.errors import ConfigError, ExportError, MissingDependencyError


class needs:  # noqa: N801  reads as a statement: with needs("train")
    """Turns a missing package into the extra that brings it."""

    def __init__(self, *extras: str) -> None:
        self._extras = ",".join(extras)

    def __enter__(self) -> None:
        return None

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if isinstance(error, ModuleNotFoundError):
            raise MissingDependencyError(
                f'this command needs the package {error.name!r}; install it with pip install "edgeseq[{self._extras}]"'
            ) from error


def load_keras(path: Path) -> Any:
    """A saved model.

    Raises:
        ExportError: there is none, or Keras cannot load it.
    """
    import keras

    if not path.is_file():
        raise ExportError(f"no Keras model at {str(path)!r}; check the path")
    try:
        return keras.saving.load_model(path, compile=False)
    except (TypeError, ValueError, OSError) as error:  # OSError: h5py on a damaged file
        told = (str(error).splitlines() or [type(error).__name__])[0]
        if "safe_mode=False" in str(error):
            raise ExportError(
                f"{str(path)!r} holds a Lambda layer with a Python function, which Keras does not load from a file "
                "unless it is told that the file can be trusted; if it can, export from Python: "
                f"edgeseq.export.export_model(keras.saving.load_model({str(path)!r}, safe_mode=False), FOLDER)"
            ) from error
        fix = (
            "check that the file is whole, and a model saved by Keras 3"
            if isinstance(error, OSError)
            else "if it holds layers of your own, name their module with --import"
        )
        raise ExportError(f"Keras cannot load {str(path)!r}: {told}; {fix}") from error


def import_from_here(modules: Sequence[str]) -> None:
    """Import modules that are installed or lie in the current folder, where ``python -m`` would find them, too.

    Raises:
        ConfigError: there is no such module.
    """
    here = os.getcwd()
    if modules and here not in sys.path:
        sys.path.insert(0, here)
    for module in modules:
        try:
            import_module(module)
        except ModuleNotFoundError as error:
            missing = "" if error.name == module else f" (it needs {error.name!r})"
            raise ConfigError(
                f"--import {module}: no such module in {here!r} or among the installed ones{missing}; give the name "
                "that Python imports it by, without .py"
            ) from error


def names_beside(model: Path) -> dict[str, Any]:
    """Names and rate from NAME.json beside NAME.keras, as ``edgeseq train`` writes it; nothing where there is none.

    Raises:
        ConfigError: the file is no such JSON.
    """
    beside = model.with_suffix(".json")
    if not beside.is_file():
        return {}
    try:
        written = json.loads(beside.read_text(encoding="utf-8"))
        return {key: written[key] for key in ("feature_names", "label_names", "rate_hz")}
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{str(beside)!r}: expected JSON with feature_names, label_names and rate_hz ({error!r}); "
            "mend it, or move it away to export without names"
        ) from error


def quiet_tensorflow() -> None:
    """Let TensorFlow, which is imported later, not log at its start."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
