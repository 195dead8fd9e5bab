"""export_model: what it writes, what it says of it, and that a wrong model leaves nothing behind."""

from __future__ import annotations

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import keras
import numpy as np
import onnx
import pytest
from keras import layers as L  # noqa: N812

from edgeseq import bilstm_tagger, bilstm_text_tagger, tcn_classifier, tcn_tagger
from edgeseq import runtime as rt
from edgeseq.errors import ConfigError, ExportError, ModelFileError, VerificationError
from edgeseq.export import export_model, exporter, register_lowering
from edgeseq.export.lowering.registry import RULES
from edgeseq.export.verification import verify_offline

Randomise = Callable[..., Any]
SMALL: dict[str, Any] = {"nb_filters": 4, "kernel_size": 2, "dilations": (1, 2)}


def test_a_causal_tagger_gets_both_files(tmp_path: Path, randomise: Randomise) -> None:
    model = randomise(tcn_tagger(3, 2, **SMALL))
    x = np.random.default_rng(0).normal(size=(50, 3)).astype(np.float32)
    report = export_model(
        model, tmp_path / "new", name="g", feature_names="abc", label_names=["p", "q"], rate_hz=50, check_inputs=[x]
    )
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == ["g.onnx", "g.stream.onnx"]
    assert report.not_streamable is None
    assert report.verification.offline < 1e-5
    assert report.verification.stream is not None
    assert report.verification.stream < 1e-5
    stream, offline = rt.load(tmp_path / "new" / "g.stream.onnx"), rt.load_offline(tmp_path / "new" / "g.onnx")
    expected = model(x[None], training=False).numpy()[0]
    np.testing.assert_allclose(stream.stream().push(x), expected, atol=1e-5)
    np.testing.assert_allclose(offline.run(x), expected, atol=1e-5)
    d = stream.description
    assert (d.input.names, d.output.names, d.rate_hz) == (("a", "b", "c"), ("p", "q"), 50.0)
    assert d.output.timing is not None
    assert (d.output.timing.receptive_field, d.output.timing.law) == ((6, 0), "equal")
    assert d.offline is not None
    assert (d.offline.file, d.offline.graph_sha256) == ("g.onnx", offline.description.graph_sha256)


@pytest.mark.parametrize("pooling", ["max", "average", "last"])
def test_a_classifier_streams_the_prefix_law(tmp_path: Path, randomise: Randomise, pooling: Any) -> None:
    model = randomise(tcn_classifier(3, 2, pooling=pooling, **SMALL))
    export_model(model, tmp_path, name="c")
    streaming, offline = rt.load(tmp_path / "c.stream.onnx"), rt.load_offline(tmp_path / "c.onnx")
    timing = streaming.description.output.timing
    assert timing is not None
    assert timing.law == "prefix"
    x = np.random.default_rng(0).normal(size=(30, 3)).astype(np.float32)
    stream = streaming.stream()
    mixed = np.concatenate([stream.push(x[:11]), [stream.step(s) for s in x[11:20]], stream.push(x[20:])])
    np.testing.assert_allclose(mixed, [offline.run(x[: t + 1]) for t in range(30)], atol=1e-5)


def test_a_bidirectional_model_is_offline_with_the_reason(tmp_path: Path, randomise: Randomise) -> None:
    report = export_model(randomise(bilstm_tagger(3, 2, units=4)), tmp_path, name="b")
    assert report.stream is None
    assert "backward half starts at the end of the sequence" in str(report.not_streamable)
    assert [p.name for p in tmp_path.iterdir()] == ["b.onnx"]


def test_tokens(tmp_path: Path, randomise: Randomise) -> None:
    export_model(randomise(bilstm_text_tagger(9, 2, embedding_dim=3, units=4)), tmp_path, name="t")
    offline = rt.load_offline(tmp_path / "t.onnx")
    assert offline.run(np.array([1, 5, 8], np.int32)).shape == (3, 2)
    with pytest.raises(rt.InputError, match=r"expected tokens from 0 to [0-9]+, got 99"):
        offline.run(np.array([1, 99], np.int32))


def test_causal_tokens_stream(tmp_path: Path, randomise: Randomise) -> None:
    inputs = keras.Input((None,), dtype="int32")
    hidden = L.GRU(4, return_sequences=True)(L.Embedding(9, 3)(inputs))
    export_model(randomise(keras.Model(inputs, L.Dense(2)(hidden))), tmp_path, name="t")
    x = np.array([3, 8, 1, 0, 4], np.int32)
    stream = rt.load(tmp_path / "t.stream.onnx").stream()
    got = np.stack([stream.step(int(token)) for token in x[:3]] + [stream.step(token) for token in x[3:]])
    np.testing.assert_allclose(got, rt.load_offline(tmp_path / "t.onnx").run(x), atol=1e-5)
    position = stream.position
    with pytest.raises(rt.InputError, match="sample 5: expected a token from 0 to 8, got 99"):
        stream.step(99)
    with pytest.raises(rt.InputError, match="sample 5: expected tokens from 0 to 8, got 99"):
        stream.push(np.array([1, 99], np.int32))
    assert stream.position == position


def test_several_inputs_and_outputs(tmp_path: Path, randomise: Randomise) -> None:
    acc, site = keras.Input((None, 3), name="acc"), keras.Input((2,), name="site")
    hidden = L.GRU(2, return_sequences=True)(acc, initial_state=site)
    outputs = {"step": L.Dense(2)(hidden), "whole": L.Dense(4)(L.GlobalAveragePooling1D()(hidden))}
    model = randomise(keras.Model([acc, site], outputs))
    x, s = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32), np.ones(2, np.float32)
    report = export_model(
        model,
        tmp_path,
        name="m",
        feature_names={"acc": "xyz"},
        label_names={"whole": ["a", "b", "c", "d"], "step": ["p", "q"]},
        check_inputs=[{"acc": x, "site": s}],
    )
    assert set(report.verification.by_output) == {"step", "whole"}
    assert report.stream is None
    assert "input 'site' of shape" in str(report.not_streamable)
    assert "has no time" in str(report.not_streamable)
    offline = rt.load_offline(tmp_path / "m.onnx")
    assert [(p.name, p.array_shape, p.names) for p in (*offline.description.inputs, *offline.description.outputs)] == [
        ("acc", (None, 3), ("x", "y", "z")),
        ("site", (2,), None),
        ("step", (None, 2), ("p", "q")),
        ("whole", (4,), ("a", "b", "c", "d")),
    ]
    got = offline.run({"acc": x, "site": s})
    for name, expected in model([x[None], s[None]]).items():
        np.testing.assert_allclose(got[name], expected[0], atol=1e-5)
    with pytest.raises(rt.DTypeError, match=r"a mapping with the inputs \['acc', 'site'\], got ndarray; pass a dict"):
        offline.run(x)
    with pytest.raises(rt.InputError, match=r"expected the inputs \['acc', 'site'\], got \['acc'\]; name each once"):
        offline.run({"acc": x})
    with pytest.raises(rt.ShapeError, match=r"model 'm', input 'site': expected float32 \(2,\), got float32 \(3,\)"):
        offline.run({"acc": x, "site": np.ones(3, np.float32)})
    with pytest.raises(rt.ShapeError, match="expected at least 1 samples, got 0; fewer have no prediction"):
        offline.run({"acc": x[:0], "site": s})


def test_a_model_built_for_one_length_takes_any(tmp_path: Path, randomise: Randomise) -> None:
    inputs = keras.Input((100, 3))
    model = randomise(keras.Model(inputs, L.Dense(2)(L.Conv1D(4, 3, padding="causal")(inputs))))
    report = export_model(model, tmp_path, name="any")
    assert report.one_length is None
    assert report.stream is not None
    x = np.random.default_rng(0).normal(size=(250, 3)).astype(np.float32)
    whole = rt.load_offline(tmp_path / "any.onnx").run(x)
    np.testing.assert_allclose(whole[:100], model(x[None, :100])[0], atol=1e-5)
    np.testing.assert_allclose(rt.load(tmp_path / "any.stream.onnx").stream().push(x), whole, atol=1e-5)


def test_a_length_that_the_user_wants_to_keep(tmp_path: Path) -> None:
    inputs = keras.Input((20, 3))
    report = export_model(keras.Model(inputs, L.Dense(2)(inputs)), tmp_path, name="kept", dynamic_time=False)
    assert (report.one_length, report.stream) == ("dynamic_time=False", None)
    assert "sequences of exactly 20 steps" in str(report.not_streamable)
    offline = rt.load_offline(tmp_path / "kept.onnx")
    assert offline.description.input.length == offline.description.output.length == 20
    assert offline.run(np.zeros((20, 3), np.float32)).shape == (20, 2)
    with pytest.raises(rt.ShapeError, match="exactly 20 steps"):
        offline.run(np.zeros((21, 3), np.float32))


class AddsItsLength(L.Layer):  # type: ignore[misc]
    """Builds what it adds from the length that it is built with."""

    def build(self, shape: Any) -> None:
        self.shift = float(shape[1] or 0)

    def call(self, x: Any) -> Any:
        return x + self.shift


class CutsIntoFives(L.Layer):  # type: ignore[misc]
    """Cuts time into parts, which no config tells."""

    def call(self, x: Any) -> Any:
        return keras.ops.max(keras.ops.reshape(x, (-1, keras.ops.shape(x)[1] // 5, 5, 3)), axis=2)

    def compute_output_shape(self, shape: Any) -> Any:
        return (shape[0], None if shape[1] is None else shape[1] // 5, 3)


LENGTH_MATTERS: dict[str, Callable[[Any], Any]] = {
    "cannot be built for any length": lambda x: L.Dense(2)(L.Flatten()(x)),
    "Keras cannot run the model at 21 steps": CutsIntoFives(),
    "first difference": AddsItsLength(),
}


@pytest.mark.parametrize("reason", LENGTH_MATTERS)
def test_a_model_that_depends_on_its_length_keeps_it_or_raises(tmp_path: Path, reason: str) -> None:
    inputs = keras.Input((20, 3))
    model = keras.Model(inputs, LENGTH_MATTERS[reason](inputs))
    report = export_model(model, tmp_path, name="fixed")
    assert reason in str(report.one_length)
    x = np.random.default_rng(0).normal(size=(20, 3)).astype(np.float32)
    np.testing.assert_allclose(rt.load_offline(tmp_path / "fixed.onnx").run(x), model(x[None])[0], atol=1e-5)
    with pytest.raises(ExportError, match=rf"depends on its length: .*{reason}.*; export it with dynamic_time=False"):
        export_model(model, tmp_path / "new", name="any", dynamic_time=True)
    assert not (tmp_path / "new").exists()


def test_stateful_layers_start_anew_offline_and_carry_their_state_in_a_stream(
    tmp_path: Path, randomise: Randomise
) -> None:
    for length in (None, 30):
        inputs = keras.Input(batch_shape=(2, length, 3))
        lstm = L.LSTM(4, stateful=True, return_sequences=True)
        model = randomise(keras.Model(inputs, L.Dense(2)(lstm(inputs))))
        lstm.states[0].assign(np.ones((2, 4)))
        export_model(model, tmp_path, name="s")
        assert np.array_equal(lstm.states[0], np.ones((2, 4)))
        lstm.reset_state()
        x = np.random.default_rng(0).normal(size=(2, 30, 3)).astype(np.float32)
        parts = [x[:, :30]] if length else [x[:, :11], x[:, 11:]]
        expected = np.concatenate([model(part) for part in parts], axis=1)  # Keras carries the state between batches
        np.testing.assert_allclose(rt.load_offline(tmp_path / "s.onnx").run(x[1]), expected[1], atol=1e-5)
        stream = rt.load(tmp_path / "s.stream.onnx").stream()
        got = np.concatenate([stream.push(x[0, :7]), stream.push(x[0, 7:])])
        np.testing.assert_allclose(got, expected[0], atol=1e-5)


def test_the_report_tells_what_was_done(tmp_path: Path, randomise: Randomise) -> None:
    report = export_model(randomise(tcn_tagger(3, 2, use_batch_norm=True, **SMALL)), tmp_path, name="g")
    assert {"Conv1D", "BatchNormalization", "Dense"} <= {note.kind for note in report.lowered}
    assert all(note.why for note in report.lowered)
    assert report.n_nodes < report.n_nodes_before
    assert report.offline_bytes == (tmp_path / "g.onnx").stat().st_size
    assert report.opset == onnx.load(tmp_path / "g.onnx").opset_import[0].version
    assert report.loops == ()
    assert rt.load(tmp_path / "g.stream.onnx").description.provenance["keras"] == keras.__version__


@pytest.fixture
def wrong_rule() -> Any:
    """A layer whose lowering forgets what the layer does at step 3 and after."""

    class Ramp(L.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            steps = keras.ops.cast(keras.ops.arange(keras.ops.shape(x)[1]), "float32")
            return x + keras.ops.maximum(steps - 2.0, 0.0)[None, :, None]

    @register_lowering(Ramp, why="test")
    def _forgetful(_native: Any, _layer: Any, x: Any) -> Any:
        return x * 1.0

    yield Ramp
    del RULES[Ramp]


def test_a_wrong_conversion_names_the_first_step_and_writes_nothing(tmp_path: Path, wrong_rule: Any) -> None:
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, wrong_rule()(inputs))
    before = b"an older export"
    (tmp_path / "w.onnx").write_bytes(before)
    message = r"Keras and w\.onnx on input \(3, 7, 3\): first difference at step \(0, 3, 0\): .* nothing was written"
    with pytest.raises(VerificationError, match=message):
        export_model(model, tmp_path, name="w")
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("w.onnx", before)]


def test_the_same_model_gives_the_same_bytes(tmp_path: Path, randomise: Randomise) -> None:
    model = randomise(tcn_tagger(3, 2, mean=[1, 2, 3], std=[1, 2, 3], use_layer_norm=True, **SMALL))
    for folder in ("a", "b"):
        export_model(model, tmp_path / folder, name="m")
    for name in ("m.onnx", "m.stream.onnx"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_older_step_graph_of_the_name_does_not_outlive_its_model(tmp_path: Path, randomise: Randomise) -> None:
    export_model(randomise(tcn_tagger(3, 2, **SMALL)), tmp_path, name="g")
    export_model(randomise(bilstm_tagger(3, 2, units=4)), tmp_path, name="g")
    assert [p.name for p in tmp_path.iterdir()] == ["g.onnx"]


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((5, 3)), r"check_inputs\[0\], input: expected float32"),
        (np.full((5, 3), np.nan, np.float32), "expected finite values"),
        (np.zeros((0, 3), np.float32), "expected at least one sample"),
    ],
)
def test_wrong_check_inputs(tmp_path: Path, x: Any, message: str) -> None:
    with pytest.raises((ConfigError, rt.InputError), match=message):
        export_model(tcn_tagger(3, 2, **SMALL), tmp_path / "new", check_inputs=[x])
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("out_dir", ["file", "file/under/it"])
def test_a_file_is_no_folder(tmp_path: Path, out_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(exporter, "to_onnx", lambda model: pytest.fail("converted, to be written nowhere"))
    with pytest.raises(ConfigError, match="expected a folder, got the file"):
        export_model(tcn_tagger(3, 2, **SMALL), tmp_path / out_dir)


def test_a_disk_that_fails_leaves_the_older_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tcn_tagger(3, 2, **SMALL)
    for name in ("g.onnx", "g.stream.onnx"):
        (tmp_path / name).write_bytes(b"older")
    write = Path.write_bytes

    def full(self: Path, data: bytes) -> int:
        if self.name == ".g.stream.onnx.new":
            raise OSError(28, "No space left on device")
        return write(self, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(ConfigError, match=r"cannot write into .*No space left"):
        export_model(model, tmp_path, name="g")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == {"g.onnx": b"older", "g.stream.onnx": b"older"}


def test_an_own_sequence_that_keras_cannot_run(tmp_path: Path) -> None:
    inputs = keras.Input((None, 3))
    model = keras.Model(inputs, L.Conv1D(2, 6)(inputs))
    with pytest.raises(ConfigError, match=r"check_inputs\[1\]: Keras itself cannot run the model on it"):
        export_model(model, tmp_path, check_inputs=[np.zeros((n, 3), np.float32) for n in (9, 5)])
    assert list(tmp_path.iterdir()) == []


def test_a_second_export_in_another_thread_is_refused_and_keras_is_put_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, call = tcn_tagger(3, 2, **SMALL), L.Layer.__call__

    def meanwhile(*args: Any, **kwargs: Any) -> Any:  # the trace is done, and its own lock is free
        with ThreadPoolExecutor(1) as pool, pytest.raises(ExportError, match="another export runs in this process"):
            pool.submit(export_model, model, tmp_path / "other").result()
        return verify_offline(*args, **kwargs)

    monkeypatch.setattr(exporter, "verify_offline", meanwhile)
    export_model(model, tmp_path, name="g")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["g.onnx", "g.stream.onnx"]
    assert L.Layer.__call__ is call


@pytest.mark.parametrize("seeded", [True, False])
def test_an_export_draws_none_of_the_users_random_numbers(tmp_path: Path, seeded: bool) -> None:
    inputs = keras.Input((20, 3))
    model = keras.Model(inputs, L.Dense(2)(L.Dropout(0.5)(L.Conv1D(4, 3, padding="causal")(inputs))))
    drawn = []
    for export in (False, True):
        keras.utils.clear_session()
        keras.utils.set_random_seed(7)
        if seeded:
            keras.random.normal((1,))
        if export:
            export_model(model, tmp_path, name="g")
        drawn.append((random.random(), np.random.default_rng(0).random(), np.random.rand(), _keras_number()))  # noqa: NPY002
    assert drawn[0] == drawn[1]


def _keras_number() -> float:
    return float(keras.ops.convert_to_numpy(keras.random.normal(())))


def test_a_wrong_conversion_of_a_model_of_one_length_is_no_reason_to_keep_it(tmp_path: Path, wrong_rule: Any) -> None:
    inputs = keras.Input((2, 3))  # at its own two steps the wrong rule is right
    model = keras.Model(inputs, wrong_rule()(inputs))
    for dynamic_time in (None, True):
        with pytest.raises(VerificationError, match="first difference at step"):
            export_model(model, tmp_path, name="w", dynamic_time=dynamic_time)
    assert list(tmp_path.iterdir()) == []


def test_the_reason_for_one_length_does_not_say_that_nothing_was_written(tmp_path: Path) -> None:
    inputs = keras.Input((20, 3))
    report = export_model(keras.Model(inputs, AddsItsLength()(inputs)), tmp_path, name="w")
    assert "first difference" in str(report.one_length)
    assert "nothing was written" not in str(report.one_length)


FROZEN: dict[str, Callable[[Any], Any]] = {
    "operation GetItem holds 10": lambda x: x[:, x.shape[1] // 2],
    "operation GetItem holds 5,": lambda x: keras.ops.concatenate([x[:, :5], x[:, -5:]], axis=1),
    "operation TrueDivide holds 20": lambda x: keras.ops.sum(x, axis=1) / x.shape[1],
    "operation Multiply holds 0.05": lambda x: keras.ops.sum(x, axis=1) * (1 / x.shape[1]),
    "operation Take holds 10": lambda x: keras.ops.take(x, 10, axis=1),
    "(RepeatVector) holds 20": lambda x: L.RepeatVector(20)(L.GlobalMaxPooling1D()(x)),
    "(AveragePooling1D) holds 20": L.AveragePooling1D(20, padding="same"),
    "(Reshape) holds 20": L.Reshape((20, 3, 1)),
}


@pytest.mark.parametrize("reason", FROZEN)
def test_a_length_that_is_seen_in_the_model_is_kept_with_the_reason(tmp_path: Path, reason: str) -> None:
    inputs = keras.Input((20, 3))
    model = keras.Model(inputs, FROZEN[reason](inputs))
    report = export_model(model, tmp_path, name="f")
    assert reason in str(report.one_length)
    assert rt.load_offline(tmp_path / "f.onnx").description.input.length == 20


def test_the_user_knows_better_than_a_length_that_is_seen(tmp_path: Path) -> None:
    inputs = keras.Input((20, 3))
    model = keras.Model(inputs, inputs[:, 2:] * 10.0)
    assert "GetItem holds 2" in str(export_model(model, tmp_path, name="f").one_length)
    assert export_model(model, tmp_path, name="f", dynamic_time=True).one_length is None
    assert rt.load_offline(tmp_path / "f.onnx").description.input.length is None


def test_a_model_of_one_length_is_verified_at_other_batch_sizes(tmp_path: Path, wrong_batch: Any) -> None:
    inputs = keras.Input((20, 3))
    model = keras.Model(inputs, wrong_batch()(inputs))
    with pytest.raises(VerificationError, match=r"input \(3, 20, 3\): first difference at step \(2, 0, 0\)"):
        export_model(model, tmp_path, name="w", dynamic_time=False)


@pytest.fixture
def wrong_batch() -> Any:
    """A layer whose lowering is wrong from the third sequence of a batch on."""

    class Same(L.Layer):  # type: ignore[misc]
        def call(self, x: Any) -> Any:
            return x * 1.0

    @register_lowering(Same, why="test")
    def _later(_native: Any, _layer: Any, x: Any) -> Any:
        place = keras.ops.cast(keras.ops.arange(keras.ops.shape(x)[0]), "float32")
        return x + keras.ops.maximum(place - 1.0, 0.0)[:, None, None]

    yield Same
    del RULES[Same]


class OfItsBatch(L.Layer):  # type: ignore[misc]
    """Takes the one batch size that it was built with."""

    def build(self, shape: Any) -> None:
        if shape[0] is None:
            raise ValueError("the batch must be known")

    def call(self, x: Any) -> Any:
        return x * 2.0


@pytest.mark.parametrize("dynamic_time", [None, False])
@pytest.mark.parametrize("length", [None, 20])
def test_a_fixed_batch_that_cannot_be_opened_is_refused(tmp_path: Path, length: Any, dynamic_time: Any) -> None:
    inputs = keras.Input(batch_shape=(2, length, 3))
    model = keras.Model(inputs, OfItsBatch()(inputs))
    message = "is built for a batch of 2, and the file must take any: .* the batch must be known; build it with a batch"
    with pytest.raises(ExportError, match=message):
        export_model(model, tmp_path, dynamic_time=dynamic_time)
    assert list(tmp_path.iterdir()) == []


def test_a_fixed_batch_is_opened_where_the_length_is_kept(tmp_path: Path) -> None:
    inputs = keras.Input(batch_shape=(2, 20, 3))
    model = keras.Model(inputs, L.Dense(2)(L.Flatten()(inputs)))
    assert "cannot be built for any length" in str(export_model(model, tmp_path, name="f").one_length)
    assert rt.load_offline(tmp_path / "f.onnx").run(np.zeros((20, 3), np.float32)).shape == (2,)


def test_a_file_that_the_runtime_refuses_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> None:
        raise ModelFileError("the runtime says no")

    monkeypatch.setattr(exporter, "load_offline", refuse)
    with pytest.raises(ExportError, match=r"edgeseq\.runtime cannot open the file that was made: the runtime says no"):
        export_model(bilstm_tagger(3, 2, units=4), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_one_input_of_any_length_and_one_of_its_own(tmp_path: Path, randomise: Randomise) -> None:
    a, b = keras.Input((None, 3), name="a"), keras.Input((20, 3), name="b")
    joined = L.Concatenate()([L.GRU(2)(a), L.Flatten()(b)])
    report = export_model(randomise(keras.Model([a, b], L.Dense(2)(joined))), tmp_path, name="m")
    assert report.one_length is not None
    assert report.verification.n_sequences > 10
    assert [p.length for p in rt.load_offline(tmp_path / "m.onnx").description.inputs] == [None, 20]


@pytest.mark.filterwarnings("ignore:Layer .* was passed an input with a mask:UserWarning")
def test_masked_models_are_verified_on_padding(tmp_path: Path, randomise: Randomise) -> None:
    inputs = keras.Input((None, 3))
    masked = L.LSTM(4, return_sequences=True)(L.Masking()(inputs))
    export_model(randomise(keras.Model(inputs, L.Dense(2)(masked))), tmp_path, name="right")
    # Keras repeats the last output over padding, where ONNX gives zeros, and this convolution looks into the padding.
    looking = L.Conv1D(2, 3, padding="same")(masked)
    export_model(randomise(keras.Model(inputs, looking)), tmp_path, name="looking")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "g.stream"}, "not ending in '.stream'"),
        ({"rate_hz": "50"}, "rate_hz: expected samples per second"),
        ({"label_names": [0, 1]}, "label_names: expected 2 different names"),
        ({"name": "../up"}, "name: expected letters"),
        ({"name": ".hidden"}, "it becomes a file name"),
        ({"label_names": ["a"]}, "label_names: expected 2 different names"),
        ({"label_names": ["a", "a"]}, "label_names: expected 2 different names"),
        ({"feature_names": ["a"] * 4}, "feature_names: expected 3 different names"),
        ({"label_names": {"gone": "ab"}}, r"label_names: expected the ports \['output'\], got \['gone'\]"),
        ({"check_inputs": [{"gone": 1}]}, r"check_inputs\[0\]: expected the inputs \['input'\], got \['gone'\]"),
        ({"rate_hz": 0}, "rate_hz: expected samples per second above 0, got 0"),
        ({"rate_hz": True}, "rate_hz: expected samples per second above 0, got True"),
        ({"name": 5}, "name: expected letters"),
        ({"name": ""}, "name: expected letters"),
        ({"feature_names": 3}, "feature_names: expected a list of 3 names, got int"),
        ({"label_names": [["a"], ["b"]]}, "label_names: expected 2 different names"),
        ({"label_names": {0: "ab", "x": "ab"}}, "label_names: expected the ports"),
        ({"check_inputs": np.zeros((5, 3), np.float32)}, "check_inputs: expected a list of sequences, got ndarray"),
        ({"dynamic_time": "yes"}, "dynamic_time: expected None, True or False, got 'yes'"),
    ],
)
def test_wrong_arguments(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        export_model(tcn_tagger(3, 2, **SMALL), tmp_path, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_tokens_without_an_embedding_cannot_be_checked(tmp_path: Path) -> None:
    inputs = keras.Input((None,), dtype="int32")
    model = keras.Model(inputs, keras.ops.cast(inputs, "float32")[..., None] * 2.0)
    with pytest.raises(ExportError, match="has no Embedding layer to tell their range"):
        export_model(model, tmp_path, name="t")
    assert list(tmp_path.iterdir()) == []
    export_model(model, tmp_path, name="t", check_inputs=[np.array([4, 0, 2], np.int32)])
    assert rt.load_offline(tmp_path / "t.onnx").run(np.array([4], np.int32)) == [[8.0]]
