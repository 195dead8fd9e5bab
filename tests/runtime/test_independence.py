"""The runtime imports numpy and onnxruntime, and nothing of the training side."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import edgeseq

FORBIDDEN = {"keras", "tensorflow", "tf2onnx", "onnx", "onnx_ir", "onnxscript", "jax", "torch"}


def _modules_after(code: str) -> set[str]:
    script = f"import sys; {code}; print(' '.join({{name.split('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "code",
    [
        "import edgeseq.runtime",
        "from edgeseq import runtime as rt",
        "import edgeseq.runtime as rt; s = rt.load('tests/data/tiny.stream.onnx').stream(); "
        "import numpy as np; s.step(np.zeros(3, np.float32))",
    ],
)
def test_a_fresh_process_loads_no_training_package(code: str) -> None:
    modules = _modules_after(code)
    assert "onnxruntime" in modules
    assert not modules & FORBIDDEN


def test_the_package_alone_loads_nothing() -> None:
    assert not _modules_after("import edgeseq") & {"numpy", "onnxruntime", *FORBIDDEN}


def test_every_public_name_resolves() -> None:
    for name in edgeseq.__all__:
        assert getattr(edgeseq, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        edgeseq.nonsense  # noqa: B018


def test_the_exporter_is_not_imported_by_the_runtime() -> None:
    for path in Path("runtime").glob("*.py"):
        assert "edgeseq.export" not in path.read_text(encoding="utf-8").replace(
            "export the model with edgeseq.export", ""
        )
