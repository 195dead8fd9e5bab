"""Our own rows of the interleaved run: steps, the bare call beneath them, chunks, pools, and the offline model."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import numpy as np
import onnxruntime as ort

from edgeseq import runtime as rt
from edgeseq.bench.case import Case, LeftOutError, Prepared, Target
from edgeseq.bench.inputs import batches, samples, sequence
from edgeseq.errors import ModelFileError
from edgeseq.protobuf import message, number, text
from edgeseq.runtime.model_source import session

DIFFERENT = 256
"""Samples that the calls go round, so that no branch predictor or cache learns one by heart."""
SEQUENCE_STEPS = 2000
_WARM = 16
_BATCHES = 16
_CHUNK_SAMPLES = 2048


def _step(target: Target, *, fast: bool) -> Prepared:
    model = rt.load(target.stream, fast=fast)
    return _each_run(
        model, model.stream().step, samples(model.description.inputs, max(DIFFERENT, model.description.granule))
    )


def _each_run(model: rt.Model, step: Callable[[Any], Any], given: list[Any], n_streams: int = 1) -> Prepared:
    """Calls that each run the graph once: of a model with strides, so many steps as its graph takes samples."""
    granule = model.description.granule
    if granule == 1:
        return Prepared(step, given, n_streams)

    def steps(group: list[Any]) -> None:
        for sample in group:
            step(sample)

    groups = [given[i : i + granule] for i in range(0, len(given) - granule + 1, granule)]
    return Prepared(steps, groups, granule * n_streams)


def _bare(target: Target) -> Prepared:
    """The very call that a step ends in, seen by looking on, so that it is the same whatever form runs."""
    real = ort.InferenceSession.run_with_iobinding
    with mock.patch.object(ort.InferenceSession, "run_with_iobinding", autospec=True, side_effect=real) as call:
        model = rt.load(target.stream)
        stream = model.stream()
        for sample in samples(model.description.inputs, max(_WARM, _start(model) + _WARM)):
            stream.step(sample)
    if call.call_args is None:
        raise LeftOutError("its steps make no bound call of ONNX Runtime")
    session, binding = call.call_args.args[:2]
    return Prepared(partial(real, session), [binding], model.description.granule, keeps=stream)


def _start(model: rt.Model) -> int:
    fast = model.description.fast
    return model.description.granule if fast is None else fast.start


def _nothing(_: Target) -> Prepared:
    """A bound call of a graph of one node on one number: what any call costs."""
    ort_session = session(_one_node())
    binding, arrays = ort_session.io_binding(), [np.zeros(1, np.float32) for _ in range(2)]
    binding.bind_ortvalue_input("x", ort.OrtValue.ortvalue_from_numpy(arrays[0]))
    binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_numpy(arrays[1]))
    return Prepared(ort_session.run_with_iobinding, [binding], keeps=arrays)


def _one_node() -> bytes:
    # ModelProto: ir_version 1, graph 7, opset_import 8. GraphProto: node 1, name 2, input 11, output 12.
    # ValueInfoProto: name 1, type 2, of it tensor_type 1: elem_type 1, shape 2: dim 1: dim_value 1.
    float_of_one = message(2, message(1, number(1, 1), message(2, message(1, number(1, 1)))))
    ports = message(11, text(1, "x"), float_of_one), message(12, text(1, "y"), float_of_one)
    node = message(1, text(1, "x"), text(2, "y"), text(4, "Neg"))
    return number(1, 8) + message(7, node, text(2, "g"), *ports) + message(8, number(2, 18))


def _chunk(target: Target, *, steps: int) -> Prepared:
    model = rt.load(target.stream)
    chunks = [sequence(model.description.inputs, steps, seed) for seed in range(max(2, _CHUNK_SAMPLES // steps))]
    return Prepared(model.stream().push, chunks, steps)


def _pool(target: Target, *, n_streams: int, spread: bool = False) -> Prepared:
    """``n_streams`` in every call; with ``spread``, each at a position of its own."""
    model = rt.load(target.stream)
    ids = [f"stream-{i}" for i in range(n_streams)]
    pool = model.pool(n_streams)
    for name in ids:
        pool.open(name)
    if spread:
        _apart(model, pool, ids)
    given = batches(model.description.inputs, max(_BATCHES, model.description.granule), n_streams)
    return _each_run(model, partial(pool.step, ids), given, n_streams)


def _apart(model: rt.Model, pool: rt.Pool, ids: list[str]) -> None:
    """Let each stream be ahead of the last one by a random number of samples, up to a receptive field or 256."""
    longest = min(model.warm_up or 256, 256)
    ahead = np.random.default_rng(0).integers(0, longest + 1, len(ids))
    for step in range(longest):
        going = [name for name, n in zip(ids, ahead, strict=True) if step < n]
        if going:
            pool.step(going, sequence(model.description.inputs, len(going), step))


def _offline(target: Target, *, window: bool) -> Prepared:
    stream = rt.load(target.stream, fast=False)
    if target.offline is None:
        raise LeftOutError("no offline file of edgeseq for the same model is beside it")
    past, future = stream.receptive_field
    if window and (past is None or future is None):
        raise LeftOutError("its receptive field has no bound, so no window gives its outputs")
    steps = past + 1 + future if window and past is not None and future is not None else SEQUENCE_STEPS
    try:
        offline = rt.load_offline(target.offline)
    except ModelFileError as error:
        raise LeftOutError(str(error)) from error
    ports = offline.description.inputs
    sequences = [sequence(ports, steps, seed) for seed in range(8 if window else 2)]
    return Prepared(offline.run, sequences, 1 if window else steps)


_ROWS = (
    Case("step", "Stream.step, all checks on", partial(_step, fast=True)),
    Case("bare", "the bare ONNX Runtime call in that step", _bare, "onnxruntime"),
    Case("call", "ONNX Runtime called for nothing: one node", _nothing, "onnxruntime"),
    Case("graph", "Stream.step on the step graph (fast=False)", partial(_step, fast=False)),
    *(Case(f"chunk_{t}", f"Stream.push of {t} samples", partial(_chunk, steps=t)) for t in (8, 32, 512)),
    *(Case(f"pool_{b}", f"Pool.step, {b} streams in step", partial(_pool, n_streams=b)) for b in (64, 512)),
    *(
        Case(f"pool_{b}_apart", f"Pool.step, {b} at random positions", partial(_pool, n_streams=b, spread=True))
        for b in (64, 512)
    ),
    Case("window", "offline model, one receptive field a sample", partial(_offline, window=True)),
    Case("sequence", f"offline model, {SEQUENCE_STEPS} samples at once", partial(_offline, window=False)),
)
OURS = {case.key: case for case in _ROWS}
