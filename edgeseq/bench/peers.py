"""Other ways to stream the same model, and the same architecture in libraries that cannot take the model itself.

Each peer is checked before it is timed: one that takes the model's own files must give what the offline model gives on
the samples of ``Target.check``, the others what they give offline. Peers run on one thread, as ours does, and get their
best form: bound buffers, no copy that they do not need. Their packages are imported by the process of their row alone.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from edgeseq.bench.case import Array, Case, LeftOutError, Prepared, Target, equal

_CHECKED_WINDOWS = 4
_CHECKED_STEPS = 300
_REFERENCE = "it cannot take a model of yours; edgeseq bench --reference compares an architecture"


def _checked_samples(target: Target) -> tuple[Array, Array]:
    """``x`` (T, C) and ``y`` (T, K) of the check, which only a model with its offline file has."""
    if target.check is None:
        raise LeftOutError(
            "it needs a causal model of one input and one output that gives a row a sample, with its offline file"
        )
    with np.load(target.check) as saved:
        return saved["x"], saved["y"]


def _stepper(target: Target, step: Callable[[Array], Array]) -> Prepared:
    """A peer that takes (C,) and gives (K,), and keeps its state itself."""
    x, y = _checked_samples(target)
    got = np.stack([np.array(step(sample)) for sample in x])
    return Prepared(step, list(x), difference=equal(y, got))


def _windowed(target: Target, run: Callable[[Array], Array]) -> Prepared:
    """A peer that takes (1, T, C) and gives (1, T, K): one receptive field again for each sample."""
    x, y = _checked_samples(target)
    size = _window(target)
    ends = np.linspace(size, len(x), _CHECKED_WINDOWS).astype(int)
    got = np.stack([run(x[None, end - size : end])[0, -1] for end in ends])
    apart = equal(y[ends - 1], got)
    return Prepared(run, [x[None, i : i + size].copy() for i in range(min(8, len(x) - size + 1))], difference=apart)


def _window(target: Target) -> int:
    assert target.check is not None
    with np.load(target.check) as saved:
        return int(saved["window"])


def _keras_window(target: Target) -> Prepared:
    path = target.need(".keras", "save the Keras model there")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import keras

    keras_tcn = ["tcn"] if find_spec("tcn") else []
    for module in ("edgeseq.builders", *keras_tcn):  # they register the layers that a file may hold
        import_module(module)
    model = keras.saving.load_model(path, compile=False)
    return _windowed(target, lambda window: np.asarray(model.predict(window, verbose=0)))


def _ort_window(target: Target) -> Prepared:
    _checked_samples(target)
    import onnxruntime as ort

    session = ort.InferenceSession(target.offline, _one_thread(ort), providers=["CPUExecutionProvider"])
    taken = session.get_inputs()[0].name
    return _windowed(target, lambda window: np.asarray(session.run(None, {taken: window})[0]))


def _one_thread(ort: Any) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


def _litert(target: Target) -> Prepared:
    path = target.need(".tflite", _REFERENCE)
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(str(path), num_threads=1)
    interpreter.allocate_tensors()
    taken, given = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]

    def step(sample: Array) -> Array:
        interpreter.set_tensor(taken, sample[None, None])
        interpreter.invoke()
        prediction: Array = interpreter.get_tensor(given)[0, 0]
        return prediction

    return _stepper(target, step)


def _tract(target: Target) -> Prepared:
    _checked_samples(target)  # it ends the process on some models that cannot be checked
    import tract
    from tract.transform import Pulse, SetSymbols

    try:
        model = tract.onnx().load(target.offline).into_model()
        batch, time, *_ = (str(size) for size in model.input_fact(0).dims())
        if not batch.isdigit():
            model.transform(SetSymbols({batch: 1}))
        model.transform(Pulse(1, symbol=time))
        delay = int(np.ravel(model.property("pulse.delay").to_numpy())[0])
        state = model.into_runnable().spawn_state()
    except tract.TractError as error:
        raise LeftOutError(f"tract cannot pulse it: {str(error).splitlines()[0]}") from error
    if delay:
        raise LeftOutError(f"tract's pulse is {delay} samples late, ours is not")
    return _stepper(target, lambda sample: np.asarray(state.run([sample[None, None]])[0].to_numpy()[0, 0]))


def _pytorch_tcn(target: Target) -> Prepared:
    """pytorch-tcn's TCN of the same sizes, with weights of its own, as ONNX with its buffers as inputs and outputs."""
    sizes = json.loads(target.need(".sizes.json", _REFERENCE).read_text(encoding="utf-8"))
    import onnxruntime as ort

    from edgeseq.bench.torch_peer import export

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pytorch_tcn.onnx"
        x, y = export(sizes, path, _CHECKED_STEPS)
        session = ort.InferenceSession(str(path), _one_thread(ort), providers=["CPUExecutionProvider"])
    step = _BoundStep(ort, session, sizes["n_labels"])
    got = np.stack([step(sample) for sample in x])
    return Prepared(step, list(x), difference=equal(y, got))


class _BoundStep:
    """A step graph whose further inputs are the further outputs of the call before; copies the sample and the row.

    The first input is (1, C, 1), the first output (1, K, 1).
    """

    def __init__(self, ort: Any, session: Any, n_labels: int) -> None:
        sample, *now = [np.zeros(each.shape, np.float32) for each in session.get_inputs()]
        following = [np.zeros_like(array) for array in now]
        self._sample, self._row = sample, np.zeros((1, n_labels, 1), np.float32)
        self._session = session
        self._call, self._call_after = self._bind(ort, now, following), self._bind(ort, following, now)

    def _bind(self, ort: Any, read: list[Array], write: list[Array]) -> Any:
        binding = self._session.io_binding()
        for port, array in zip(self._session.get_inputs(), [self._sample, *read], strict=True):
            binding.bind_ortvalue_input(port.name, ort.OrtValue.ortvalue_from_numpy(array))
        for port, array in zip(self._session.get_outputs(), [self._row, *write], strict=True):
            binding.bind_ortvalue_output(port.name, ort.OrtValue.ortvalue_from_numpy(array))
        return binding

    def __call__(self, sample: Array) -> Array:
        """(C,) -> (K,)."""
        self._sample[0, :, 0] = sample
        self._session.run_with_iobinding(self._call)
        self._call, self._call_after = self._call_after, self._call
        row: Array = self._row[0, :, 0].copy()
        return row


_ROWS = (
    Case("keras", "Keras predict on a sliding window", _keras_window, "keras"),
    Case("ort_window", "the sliding window in ONNX Runtime", _ort_window, "onnxruntime"),
    Case("litert", "LiteRT, state in internal variables", _litert, "ai-edge-litert"),
    Case("pytorch_tcn", "pytorch-tcn's ONNX, buffers bound in ONNX Runtime", _pytorch_tcn, "pytorch-tcn"),
    Case("tract", "tract, pulse of one sample", _tract, "tract"),
)
PEERS = {case.key: case for case in _ROWS}
