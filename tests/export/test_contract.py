"""The contract check: what keeps it, and that every clause is seen to break."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from edgeseq import export
from edgeseq import runtime as rt
from edgeseq.errors import ConfigError, ModelFileError, ModelNotFoundError, VerificationError
from edgeseq.export import verify
from edgeseq.export.contract.clauses import CLAUSES
from edgeseq.runtime.model_source import open_model
from tests.export.stream_files import GRAPHS, offline_file, rewrite, stream_file

KINDS = [kind for kind in GRAPHS if kind != "channels first"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_keeps_its_contract(tmp_path: Path, kind: str) -> None:
    stream, offline = stream_file(tmp_path, kind)
    report = verify(stream, offline)
    assert list(report.clauses) == list(CLAUSES)
    assert report.worst < 1e-5
    assert report.certificate.clauses.keys() == CLAUSES.keys()
    assert not [note for note in report.notes if "only its last row" not in note]
    assert report.took_s < 3


# What is done to the file, of which graph, the clause that breaks, and what the message says.
Breakage = tuple[str, Callable[[Path], None], str, str]


def _growing(graph: onnx.GraphProto) -> None:
    (cut,) = [node for node in graph.node if "next_0_rows" in node.output or node.output[0].startswith("next_0")]
    cut.op_type = "Identity"
    del cut.input[1:]


def _kept_from_the_front(graph: onnx.GraphProto) -> None:
    """Right after one sample: the last two rows of three are those from the first on."""
    (cut,) = [node for node in graph.node if node.output[0].startswith("next_0")]
    for place, number in ((1, 1), (2, 3)):
        name = f"number_{number}"
        graph.initializer.append(onnx.numpy_helper.from_array(np.array([number]), name))
        cut.input[place] = name


def _unmasked(graph: onnx.GraphProto) -> None:
    for node in graph.node:
        if node.op_type == "Where":
            kept = node.input[1]
            node.op_type = "Identity"
            del node.input[:]
            node.input.append(kept)


def _leaking(graph: onnx.GraphProto) -> None:
    """2 y minus the batch's mean of y: nothing to see with a batch of 1."""
    for node in graph.node:
        node.output[:] = ["alone" if name == "output" else name for name in node.output]
    graph.initializer.append(onnx.numpy_helper.from_array(np.array([0]), "first_axis"))
    graph.node.extend(
        [
            onnx.helper.make_node("ReduceMean", ["alone", "first_axis"], ["mean"], keepdims=1),
            onnx.helper.make_node("Add", ["alone", "alone"], ["twice"]),
            onnx.helper.make_node("Sub", ["twice", "mean"], ["output"]),
        ]
    )


def _timing(**changed: Any) -> Callable[[Path], None]:
    return lambda path: rewrite(path, description=lambda raw: raw["outputs"][0]["timing"].update(changed))


def _initial(value: float) -> Callable[[Path], None]:
    return lambda path: rewrite(path, description=lambda raw: raw["state"][0].update(initial=value))


def _graph(change: Callable[[onnx.GraphProto], None]) -> Callable[[Path], None]:
    return lambda path: rewrite(path, graph=change)


BREAKAGES: dict[str, Breakage] = {
    "a state that grows": (
        "causal",
        _graph(_growing),
        "state",
        r"call 1, 1 samples .*: expected float32 \(1, 4, 2\)",
    ),
    "a wrong initial state": ("causal", _initial(1.0), "steps", r"1 samples in single steps: first difference at step"),
    "a wrong delay": ("same", _timing(delay=2), "steps", "first difference at step"),
    "a wrong hop": ("strided", _timing(hop=[1, 1]), "hop", r"makes it 2 rows, .*; got \(1, 1, 2\)"),
    "a wrong number of rows": ("strided", _timing(rows=[[1, 3, 2]]), "steps", "expected output shape"),
    "a pool without a row": ("mean", _timing(rows=[[1, -1, 1]]), "steps", "1 samples in single steps: .* no row"),
    "a dropped mask": ("same", _graph(_unmasked), "steps", "first difference at step"),
    "a state of the wrong rows": (
        "causal",
        _graph(_kept_from_the_front),
        "chunks",
        "in chunks of [24]: first",
    ),
    "an understated lookahead": ("same", _timing(lookahead=2), "lookahead", "step 2: .* 1 rows due, 0 have come"),
    "streams that leak": ("causal", _graph(_leaking), "batch", "beside 4 other streams: first difference"),
    "an understated future": ("same", _timing(receptive_field=[3, 2]), "causality", "3 samples after the row's own; 2"),
    "a past understated at a stride": (
        "strided",
        _timing(receptive_field=[3, 2]),
        "receptive field",
        "4 samples before",
    ),
    "an understated past": (
        "same",
        _timing(receptive_field=[2, 3]),
        "receptive field",
        "3 samples before .*; 2",
    ),
}


@pytest.mark.filterwarnings("ignore:.*its fast form fails:RuntimeWarning")  # which it is broken for, too
@pytest.mark.parametrize("what", BREAKAGES)
def test_a_broken_clause_is_named(tmp_path: Path, what: str) -> None:
    kind, change, clause, told = BREAKAGES[what]
    stream, offline = stream_file(tmp_path, kind)
    change(stream)
    before = stream.read_bytes()
    with pytest.raises(VerificationError, match=rf"^{stream.name}, clause '{clause}': .*output'?.*{told}"):
        verify(stream, offline)
    assert stream.read_bytes() == before


def test_a_pool_that_is_right_only_for_some_prefixes(tmp_path: Path) -> None:
    stream, offline = stream_file(tmp_path, "maximum")
    model = open_model_of(offline)

    def wrong_for_some(x: Any) -> Any:
        return model(x) + np.float32(x.shape[1] in range(12, 20))

    verify(stream, model, write=False)
    with pytest.raises(VerificationError, match=r"clause 'prefix': output 'output', row 11, against the first 12"):
        verify(stream, wrong_for_some)


def open_model_of(path: Path) -> Callable[[Any], Any]:
    import onnxruntime as ort

    ort_session = ort.InferenceSession(path)
    return lambda x: ort_session.run(None, {"input": x})[0]


def test_a_reset_that_forgets_to_clear_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream, offline = stream_file(tmp_path, "causal")

    def leaves_its_state(self: Any) -> None:
        self._position = self._fed = 0
        self._ended = False

    monkeypatch.setattr(rt.Stream, "reset", leaves_its_state)
    with pytest.raises(VerificationError, match=r"clause 'reset': output 'output', row 0: a new stream gives"):
        verify(stream, offline)


def test_every_clause_was_seen_to_break() -> None:
    assert {clause for _, _, clause, _ in BREAKAGES.values()} | {"prefix", "reset"} == set(CLAUSES)


def test_overstating_is_reported_and_no_mistake(tmp_path: Path) -> None:
    stream, offline = stream_file(tmp_path, "same")
    _timing(receptive_field=[5, 4], lookahead=7)(stream)
    notes = verify(stream, offline).notes
    assert "output 'output': 5 past samples are declared, 3 were seen to matter" in notes
    assert "output 'output': 4 future samples are declared, 3 were seen to matter" in notes
    assert "output 'output': lookahead 7 is declared, rows came 3 samples after their own" in notes


def test_another_model_is_seen_and_another_graph_of_the_same_values_is_noted(tmp_path: Path) -> None:
    stream, offline = stream_file(tmp_path, "causal")
    model = onnx.load(offline)
    model.graph.node[1].name = "renamed"
    onnx.save(model, offline)
    assert any("names another offline graph, causal.onnx" in note for note in verify(stream, offline).notes)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "D")
    bias.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(bias) * np.float32(1.001), "D"))
    onnx.save(model, offline)
    with pytest.raises(VerificationError, match="clause 'steps'"):
        verify(stream, offline)


def test_an_offline_model_of_channels_first(tmp_path: Path) -> None:
    stream, _ = stream_file(tmp_path, "same")
    offline = offline_file(tmp_path, "channels first")
    assert verify(stream, offline).worst < 1e-5
    assert verify(stream, offline, time_axis=-1).worst < 1e-5
    with pytest.raises(VerificationError, match="it cannot run them"):
        verify(stream, offline, time_axis=1)
    with pytest.raises(ConfigError, match="time_axis: expected an axis of"):
        verify(stream, offline, time_axis=3)


def test_a_function_that_does_not_do(tmp_path: Path) -> None:
    stream, offline = stream_file(tmp_path, "causal")
    function = open_model_of(offline)
    assert verify(stream, {"f": lambda x: [function(x)]}["f"]).certificate.offline_sha256 is None
    with pytest.raises(VerificationError, match=r"expected 3 axes, got shape \(\d+, 2\)"):
        verify(stream, lambda x: function(x)[0])
    with pytest.raises(VerificationError, match="expected 1 outputs, got 2"):
        verify(stream, lambda x: [function(x)] * 2)
    with pytest.raises(VerificationError, match="it cannot run them: no"):
        verify(stream, _raises)


def test_an_offline_model_that_fails_on_short_sequences_is_compared_on_the_others(tmp_path: Path) -> None:
    stream, offline = stream_file(tmp_path, "causal")
    function = open_model_of(offline)

    def fails_if_short(x: Any) -> Any:
        return function(x) if x.shape[1] > 2 else _raises(x)

    notes = verify(stream, fails_if_short).notes
    assert [note.split(",")[0] for note in notes] == [f"not compared at {n} samples" for n in (1, 2)]


def _raises(x: Any) -> Any:
    raise RuntimeError("no")


def test_sequences_of_the_users_own(tmp_path: Path) -> None:
    stream, offline = stream_file(tmp_path, "valid")
    x = np.random.default_rng(1).normal(size=(33, 4)).astype(np.float32)
    plain = verify(stream, offline).clauses["steps"].text
    report = verify(stream, offline, check_inputs=[x, {"input": x[:20]}])
    assert report.clauses["steps"].text.startswith(f"{2 + int(plain.split()[0])} sequences")
    for wrong, told in (
        ([x[:3]], "of 7 samples at least"),
        (x, "put it into a list"),
        ([{"other": x}], r"expected the inputs \['input'\]"),
    ):
        with pytest.raises(ConfigError, match=told):
            verify(stream, offline, check_inputs=wrong)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="vocabulary: expected the number"):
        verify(stream, offline, vocabulary=0)


def test_what_is_no_pair(tmp_path: Path) -> None:
    stream, offline = stream_file(tmp_path, "causal")
    with pytest.raises(ModelFileError, match="expected a model of kind 'offline', got 'stream'"):
        verify(stream, stream)
    with pytest.raises(ModelFileError, match="no edgeseq description in it"):
        verify(offline, offline)
    with pytest.raises(ModelNotFoundError, match="no model file at"):
        verify(stream, tmp_path / "gone.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelFileError, match="ONNX Runtime cannot open it"):
        verify(stream, tmp_path / "text.onnx")
    model = onnx.load(offline)
    model.graph.input[0].name = model.graph.node[0].input[0] = "sensor"
    onnx.save(model, offline)
    with pytest.raises(ConfigError, match=r"has the inputs \['sensor'\]"):
        verify(stream, offline)


def test_the_certificate_is_of_this_file_and_keeps_its_hash(tmp_path: Path) -> None:
    stream, offline = stream_file(tmp_path, "causal")
    first = stream.read_bytes()
    report = verify(stream, offline)
    assert stream.read_bytes() == first  # the same check of the same file
    source = open_model(stream, "stream")
    description, ort_session = source.description, source.ort_session
    assert report.certificate.graph_sha256 == description.graph_sha256
    assert (
        report.certificate.mismatch(ort_session.get_modelmeta().custom_metadata_map, description.graph_sha256) is None
    )
    assert set(report.certificate.versions) == {"edgeseq", "onnxruntime", "numpy"}
    verify(stream, open_model_of(offline), write=False)
    assert stream.read_bytes() == first
    report = verify(stream, open_model_of(offline))
    assert stream.read_bytes() != first  # against a function: another certificate in its place
    assert len(onnx.load(stream).metadata_props) == 2
    assert open_model(stream, "stream").description == description


def test_a_file_of_format_1(tmp_path: Path) -> None:
    stream = tmp_path / "old.stream.onnx"
    stream.write_bytes(Path("tests/data/format1.stream.onnx").read_bytes())
    assert verify(stream, "tests/data/format1.onnx").worst < 1e-5
    about = {entry.key: entry.value for entry in onnx.load(stream).metadata_props}
    assert json.loads(about["edgeseq"])["format_version"] == 1


def test_tokens_are_drawn_from_the_table_of_the_graph(tmp_path: Path) -> None:
    from edgeseq.export.graph.vocabulary import vocabulary_of

    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 18]>
        g (int64[batch, time] input) => (float[batch, time, 3] output) { output = Gather(T, input) }"""
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((11, 3), np.float32), "T"))
    onnx.save(model, tmp_path / "tokens.onnx")
    assert vocabulary_of(tmp_path / "tokens.onnx") == 11
    report = export_tokens(tmp_path)
    assert report.contract.worst == 0


def export_tokens(folder: Path) -> Any:
    return export.streamify(folder / "tokens.onnx", folder / "tokens.stream.onnx")


def test_the_lazy_names_are_there() -> None:
    for name in export.__all__:
        assert callable(getattr(export, name))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        export.nonsense  # noqa: B018
