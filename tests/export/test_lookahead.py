"""Bounded lookahead of recurrent layers that run backwards, against a slow reference in numpy and the offline model."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgeseq import runtime as rt
from edgeseq.errors import ConfigError, NotStreamableError, VerificationError
from edgeseq.export import streamify, verify
from edgeseq.export.streaming.step_model import StepModel
from edgeseq.export.streaming.step_model import streamify as derive
from tests.export.latency_controlled import Stack, run_blocks, run_rows, stack, write
from tests.export.stream_files import rewrite
from tests.export.test_streamify import stream as streamed

Array = np.ndarray[Any, Any]
RNG = np.random.default_rng(0)

# A stack, and how it is written: one bidirectional node for a layer, or one node each way between two reversals.
STACKS: dict[str, tuple[Stack, bool]] = {
    "LSTM, concat": (stack("LSTM"), True),
    "LSTM, sum, one node each way": (stack("LSTM", merge="sum"), False),
    "LSTM, ave, two layers": (stack("LSTM", merge="ave", n_layers=2), True),
    "LSTM, concat, three layers": (stack("LSTM", n_layers=3), True),
    "GRU, mul": (stack("GRU", merge="mul"), True),
    "GRU, concat, three layers, one node each way": (stack("GRU", n_layers=3), False),
    "RNN, sum": (stack("RNN", merge="sum"), True),
    "RNN, concat, two layers, one node each way": (stack("RNN", n_layers=2), False),
}
SIZES = [(1, 0), (1, 5), (3, 0), (3, 1), (8, 5), (8, 30)]  # (chunk, steps)


def bounded(path: Path, *, chunk: int, steps: int) -> StepModel:
    return derive(ir.load(path), 1, lookahead=steps, chunk=chunk)


@pytest.mark.parametrize("kind", STACKS)
def test_it_is_the_algorithm_for_any_chunking(kind: str, tmp_path: Path) -> None:
    model, one_node = STACKS[kind]
    path = write(tmp_path / "m.onnx", model, one_node=one_node)
    for chunk, steps in SIZES:
        step = bounded(path, chunk=chunk, steps=steps)
        (timing,) = step.timings
        n_layers = len(model.layers)
        assert (timing.law, timing.lookahead, timing.delay) == (
            "lookahead",
            n_layers * steps + chunk - 1,
            n_layers * steps,
        )
        assert step.granule == chunk
        for n in (1, 7, 17):
            x = RNG.normal(size=(3, n, 3)).astype(np.float32)
            expected = np.stack([model.latency_controlled(each, chunk=chunk, steps=steps) for each in x])
            for sizes in ([], [1] * n, [3, 1, 10, 2]):
                np.testing.assert_allclose(
                    streamed(step, x, sizes), expected, atol=1e-5, err_msg=f"{chunk} {steps} {n}"
                )
            np.testing.assert_allclose(streamed(step, x[:1], [5]), expected[:1], atol=1e-5)


@pytest.mark.parametrize("kind", STACKS)
def test_a_lookahead_to_the_end_is_the_offline_model(kind: str, tmp_path: Path) -> None:
    model, one_node = STACKS[kind]
    path = write(tmp_path / "m.onnx", model, one_node=one_node)
    offline = ort.InferenceSession(path)
    for chunk, steps in ((1, 25), (8, 25), (3, 100)):
        step = bounded(path, chunk=chunk, steps=steps)
        for n in (1, 13, 25):
            x = RNG.normal(size=(2, n, 3)).astype(np.float32)
            (expected,) = offline.run(None, {"input": x})
            np.testing.assert_allclose(expected[0], model.offline(x[0]), atol=1e-5)
            np.testing.assert_allclose(streamed(step, x, [4, 1]), expected, atol=1e-5)


@pytest.mark.parametrize(("chunk", "steps"), SIZES)
def test_the_last_rows_of_one_layer_are_the_offline_model(chunk: int, steps: int, tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", stack("LSTM", gain=3))
    step = bounded(path, chunk=chunk, steps=steps)
    x = RNG.normal(size=(1, 61, 3)).astype(np.float32)
    (expected,) = ort.InferenceSession(path).run(None, {"input": x})
    got = streamed(step, x, [7])
    last = max(1, steps)  # the very last row needs nothing that comes later
    np.testing.assert_allclose(got[:, -last:], expected[:, -last:], atol=1e-5)
    if steps < 30:
        assert np.abs(got - expected).max() > 1e-3  # and the others are not: it is an approximation


@pytest.mark.extended
@pytest.mark.parametrize("seed", range(40))
def test_random_stacks_sizes_and_chunkings(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    model = stack(
        str(rng.choice(["LSTM", "GRU", "RNN"])),
        merge=str(rng.choice(["concat", "sum", "mul", "ave"])),
        **{name: int(n) for name, n in zip(("n_layers", "units", "n_in"), rng.integers(1, 4, size=3), strict=True)},
        gain=float(rng.uniform(0.5, 2.5)),
        seed=seed,
    )
    path = write(tmp_path / "m.onnx", model, one_node=bool(rng.integers(2)), turned=bool(rng.integers(2)))
    chunk, steps, n = (int(high) for high in rng.integers([1, 0, 1], [10, 12, 40]))
    x = rng.normal(size=(2, n, model.layers[0][0].w.shape[1])).astype(np.float32) * rng.choice([1, 30])
    expected = np.stack([model.latency_controlled(each, chunk=chunk, steps=steps) for each in x])
    scale = max(1.0, float(np.abs(expected).max()))
    for sizes in ([], [int(size) for size in rng.integers(1, 12, size=20)]):
        got = streamed(bounded(path, chunk=chunk, steps=steps), x.astype(np.float32), sizes)
        np.testing.assert_allclose(got, expected, atol=2e-5 * scale, err_msg=f"{chunk}, {steps}, {n}")


@pytest.mark.parametrize("op_type", ["LSTM", "GRU"])
def test_directions_count_from_the_samples(op_type: str, tmp_path: Path) -> None:
    """A node of the direction "reverse" runs backwards, unless time was reversed before it."""
    model = stack(op_type, n_layers=2, seed=3)
    path = write(tmp_path / "m.onnx", model, one_node=False, turned=True)
    step = bounded(path, chunk=3, steps=4)
    assert step.lookahead is not None
    assert [layer.node for layer in step.lookahead.layers] == ["back_0", "back_1"]
    x = RNG.normal(size=(2, 20, 3)).astype(np.float32)
    expected = np.stack([model.latency_controlled(each, chunk=3, steps=4) for each in x])
    for sizes in ([], [1] * 20, [7, 4]):
        np.testing.assert_allclose(streamed(step, x, sizes), expected, atol=1e-5)
    with pytest.raises(NotStreamableError, match="its backward half starts at the end"):
        derive(ir.load(path), 1)
    assert streamify(path, tmp_path / "m.stream.onnx", 1, lookahead=4, chunk=3).contract.worst < 1e-5


def test_the_reference_does_what_the_definition_says() -> None:
    model = stack("GRU", seed=4)
    back = model.layers[0][1]
    x = RNG.normal(size=(10, 3))
    got = run_blocks("GRU", back, x, chunk=3, steps=2, delay=0)
    # Blocks end where 3, 6, 9 ... rows have come, two of which are no block's yet: rows 0; 1, 2, 3; 4, 5, 6; 7, 8, 9.
    for rows, until in (((0, 1), 3), ((1, 4), 6), ((4, 7), 9), ((7, 10), 10)):
        seen = x[rows[0] : until]
        np.testing.assert_allclose(
            got[slice(*rows)], run_rows("GRU", back, seen[::-1])[::-1][: rows[1] - rows[0]], err_msg=str(rows)
        )


def test_what_was_given_out_never_changes(tmp_path: Path) -> None:
    """Every row comes once, with the block that completes it, whatever the samples after that block are."""
    path = write(tmp_path / "m.onnx", stack("LSTM", n_layers=2))
    out = tmp_path / "m.stream.onnx"
    streamify(path, out, 1, lookahead=4, chunk=3)
    model = rt.load(out)
    x = RNG.normal(size=(40, 3)).astype(np.float32)
    first, second = model.stream(), model.stream()
    rows = first.push(x[:30])
    assert len(rows) == 30 - 2 * 4
    np.testing.assert_array_equal(rows, second.push(x[:30]))
    given = np.concatenate([rows, first.push(x[30:]), first.flush()])
    others = np.concatenate([rows, second.push(100 * x[30:]), second.flush()])
    assert len(given) == len(others) == 40
    assert np.abs(given[22:] - others[22:]).max() > 1e-2
    steps = model.stream()
    one_by_one = [y for sample in x if (y := steps.step(sample)) is not None]
    np.testing.assert_allclose(np.concatenate([np.concatenate(one_by_one), steps.flush()]), given, atol=1e-6)


def test_agreement_rises_with_the_lookahead(tmp_path: Path) -> None:
    model = stack("LSTM", n_layers=2, units=8, gain=0.6, seed=2)
    path = write(tmp_path / "m.onnx", model)
    x = RNG.normal(size=(1, 120, 3)).astype(np.float32)
    (expected,) = ort.InferenceSession(path).run(None, {"input": x})
    far = [
        np.abs(streamed(bounded(path, chunk=4, steps=steps), x, [40]) - expected).mean() for steps in (0, 2, 4, 8, 16)
    ]
    assert all(later < earlier / 1.5 for earlier, later in pairwise(far)), far


def test_runtime_snapshots_resets_and_batches(tmp_path: Path) -> None:
    model = stack("GRU", n_layers=2, merge="sum")
    path, out = write(tmp_path / "m.onnx", model), tmp_path / "m.stream.onnx"
    streamify(path, out, 1, lookahead=5, chunk=3)
    loaded = rt.load(out)
    x = RNG.normal(size=(33, 3)).astype(np.float32)
    expected = model.latency_controlled(x, chunk=3, steps=5)
    stream = loaded.stream()
    stream.push(RNG.normal(size=(7, 3)).astype(np.float32))
    stream.reset()
    rows = [stream.push(x[:16])]
    twin = loaded.restore(stream.snapshot())
    rows += [twin.push(x[16:]), twin.flush()]
    np.testing.assert_allclose(np.concatenate(rows), expected, atol=1e-5)


def operators(step: StepModel) -> list[str]:
    return [node.op_type for node in step.model.graph]


@pytest.mark.parametrize("kind", STACKS)
def test_it_is_one_native_operator_each_way(kind: str, tmp_path: Path) -> None:
    model, one_node = STACKS[kind]
    step = bounded(write(tmp_path / "m.onnx", model, one_node=one_node), chunk=4, steps=6)
    names = operators(step)
    assert names.count(model.op_type) == 2 * len(model.layers)
    assert not {"Loop", "Scan", "If", "SequenceMap"} & set(names)
    assert len(names) <= 15 + 50 * len(model.layers), len(names)


def rows_run(step: StepModel, n_samples: int, calls: int) -> list[int]:
    """How many rows (time and batch) entered each recurrent operator, in ``calls`` calls of ``n_samples``."""
    model = ir.to_proto(step.model)
    recurrent = [node for node in model.graph.node if node.op_type == "LSTM"]
    for i, node in enumerate(recurrent):
        model.graph.node.append(onnx.helper.make_node("Shape", [node.input[0]], [f"shape_{i}"]))
        model.graph.output.append(onnx.helper.make_tensor_value_info(f"shape_{i}", onnx.TensorProto.INT64, [3]))
    ort_session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    state = {s.input: np.zeros((1, *s.shape), s.dtype) for s in step.state}
    names = [f"shape_{i}" for i in range(len(recurrent))]
    seen = np.zeros(len(recurrent), int)
    for _ in range(calls):
        x = RNG.normal(size=(1, n_samples, 3)).astype(np.float32)
        feeds = {"input": x, **state, **({str(step.end): np.full(1, 2**40)} if step.end else {})}
        shapes = ort_session.run(names, feeds)
        seen += [int(shape[0] * shape[1]) for shape in shapes]
    return sorted(int(n) for n in seen)


@pytest.mark.parametrize(("chunk", "steps"), [(1, 0), (8, 16), (1, 5), (4, 30)])
def test_the_work_a_sample_is_what_the_docs_derive(chunk: int, steps: int, tmp_path: Path) -> None:
    step = bounded(write(tmp_path / "m.onnx", stack("LSTM", n_layers=2)), chunk=chunk, steps=steps)
    forward, backward = 240, 240 * (chunk + steps) // chunk
    for n_samples in (chunk, 10 * chunk):
        calls = 240 // n_samples
        done = calls * n_samples
        assert rows_run(step, n_samples, calls) == sorted([forward * done // 240, backward * done // 240] * 2)


def test_the_state_is_the_lookahead_and_one_step(tmp_path: Path) -> None:
    step = bounded(write(tmp_path / "m.onnx", stack("LSTM", n_layers=2, units=5)), chunk=8, steps=16)
    kept = {s.input.split("_", 2)[2]: s.shape for s in step.state if s.dtype == "float32"}
    assert sorted(s.shape for s in step.state if s.dtype == "float32") == [(5,)] * 4 + [(16, 3), (16, 10)], kept


# What the file says, and what it is held to.


def test_the_file_says_what_it_approximates(tmp_path: Path) -> None:
    path, out = write(tmp_path / "m.onnx", stack("LSTM", n_layers=2)), tmp_path / "m.stream.onnx"
    report = streamify(path, out, 1, lookahead=6, chunk=4)
    d = rt.load(out).description
    assert d == report.description
    assert d.lookahead is not None
    assert (d.lookahead.steps, d.lookahead.chunk, d.lookahead.total) == (6, 4, 15)
    assert [(layer.node, layer.delay) for layer in d.lookahead.layers] == [("both_0", 0), ("both_1", 6)]
    assert (d.output.timing is not None, d.granule, rt.load(out).lookahead) == (True, 4, 15)
    assert report.contract.certificate.clauses["approximation"].startswith("the offline model's rows on sequences of 1")
    notes = " ".join(report.contract.notes)
    assert "in blocks of 4 steps, which see 6 steps behind them, and not to the offline model itself" in notes
    assert "of the output's scale from the offline model's" in notes
    again = verify(out, path, write=False)
    assert list(again.clauses) == list(report.contract.clauses)


def test_channels_first(tmp_path: Path) -> None:
    path, out = write(tmp_path / "m.onnx", stack("GRU")), tmp_path / "m.stream.onnx"
    model = onnx.load(path)
    graph = model.graph
    graph.node[-1].output[0] = "rows"
    graph.node.append(onnx.helper.make_node("Transpose", ["rows"], ["output"], perm=[0, 2, 1]))
    graph.node.insert(0, onnx.helper.make_node("Transpose", ["input"], ["steps"], perm=[0, 2, 1]))
    next(node for node in graph.node if node.name == "time_first").input[0] = "steps"
    for port, size in ((graph.input[0], 3), (graph.output[0], 2)):
        port.CopyFrom(onnx.helper.make_tensor_value_info(port.name, onnx.TensorProto.FLOAT, ["batch", size, "time"]))
    onnx.save(model, path)
    assert streamify(path, out, lookahead=5, chunk=2).contract.worst < 1e-5
    x = RNG.normal(size=(17, 3)).astype(np.float32)
    stream = rt.load(out).stream()
    expected = stack("GRU").latency_controlled(x, chunk=2, steps=5)
    np.testing.assert_allclose(np.concatenate([stream.push(x), stream.flush()]), expected, atol=1e-5)


def test_the_contract_finds_another_algorithm(tmp_path: Path) -> None:
    path, out = write(tmp_path / "m.onnx", stack("LSTM")), tmp_path / "m.stream.onnx"
    streamify(path, out, 1, lookahead=6, chunk=4)
    shifted = tmp_path / "shifted.onnx"
    shifted.write_bytes(out.read_bytes())
    rewrite(shifted, description=lambda raw: raw["lookahead"]["layers"][0].update(delay=1))
    with pytest.raises(VerificationError, match="clause 'steps'"):
        verify(shifted, path, write=False)
    fewer = tmp_path / "fewer.onnx"
    fewer.write_bytes(out.read_bytes())
    rewrite(fewer, description=lambda raw: raw["lookahead"].update(steps=5))
    with pytest.raises(VerificationError, match="clause 'steps'"):
        verify(fewer, path, write=False)
    exact = tmp_path / "exact.onnx"
    exact.write_bytes(out.read_bytes())

    def claim(raw: dict[str, Any]) -> None:
        raw["lookahead"] = None
        raw["outputs"][0]["timing"]["law"] = "equal"

    rewrite(exact, description=claim)
    with pytest.raises(VerificationError, match="the stream is not the offline model"):
        verify(exact, path, write=False)


@pytest.mark.parametrize("steps", [0, 1, 3, 4, 9])
def test_a_padding_before_a_layer_leaves_fewer_sequences_that_it_sees_whole(steps: int, tmp_path: Path) -> None:
    """The layer has four rows more than there are samples, so its lookahead reaches the end of fewer sequences."""
    model = onnx.load(write(tmp_path / "m.onnx", stack("GRU")))
    graph = model.graph
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([4, 0, 0, 0, 0, 0]), "pads"))
    padding = onnx.helper.make_node("Pad", ["time_first", "pads"], ["padded"])
    for node in graph.node:
        node.input[:] = ["padded" if name == "time_first" else name for name in node.input]
    graph.node.insert(1, padding)
    graph.output[0].type.tensor_type.shape.dim[1].dim_param = "rows"
    onnx.save(model, tmp_path / "m.onnx")
    report = streamify(tmp_path / "m.onnx", tmp_path / "m.stream.onnx", 1, lookahead=steps, chunk=2)
    told = {
        0: "no sequence is short",
        1: "no sequence is short",
        3: "no sequence is short",
        4: "of 1 s",
        9: "of 1, 4 s",
    }
    assert told[steps] in report.contract.clauses["approximation"].text


def test_its_contract_needs_the_file(tmp_path: Path) -> None:
    path, out = write(tmp_path / "m.onnx", stack("LSTM")), tmp_path / "m.stream.onnx"
    streamify(path, out, 1, lookahead=6, chunk=4)
    with pytest.raises(ConfigError, match="give the offline file"):
        verify(out, lambda x: x, write=False)
    other = write(tmp_path / "other.onnx", stack("LSTM", seed=1), one_node=False)
    with pytest.raises(ConfigError, match=r"the offline model has no layers \['both_0'\]"):
        verify(out, other, write=False)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lookahead": -1}, "lookahead: expected a number of steps from 0 to 100000, or None, got -1"),
        ({"lookahead": 1.5}, "lookahead: expected a number of steps"),
        ({"lookahead": True}, "lookahead: expected a number of steps"),
        ({"lookahead": 10**9}, "lookahead: expected a number of steps from 0 to 100000, or None, got 1000000000"),
        ({"lookahead": 3, "chunk": 10**9}, "chunk: expected a number of steps from 1 to 100000, got 1000000000"),
        ({"lookahead": 3, "chunk": 0}, "chunk: expected a number of steps from 1 to 100000, got 0"),
        ({"chunk": 3}, "chunk: it is the block of a bounded lookahead; give lookahead, too"),
    ],
)
def test_wrong_sizes(given: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", stack("LSTM"))
    with pytest.raises(ConfigError, match=message):
        streamify(path, tmp_path / "m.stream.onnx", 1, **given)
    assert not (tmp_path / "m.stream.onnx").exists()


def test_a_causal_model_has_no_use_for_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the model has no recurrent layer that runs backwards; leave it out"):
        streamify("tests/data/tiny.onnx", tmp_path / "m.stream.onnx", lookahead=3)


def test_without_it_the_refusal_names_it(tmp_path: Path) -> None:
    path = write(tmp_path / "m.onnx", stack("LSTM"))
    with pytest.raises(NotStreamableError, match=r"its backward half starts at the end .*lookahead=N_r, chunk=N_c"):
        streamify(path, tmp_path / "m.stream.onnx", 1)
