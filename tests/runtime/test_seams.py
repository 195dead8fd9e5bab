"""Where several ways to stream meet: any chunking, a snapshot at any sample, and a pool give what one chunk gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgeseq import runtime as rt
from tests.export.stream_files import rewrite
from tests.runtime.pool_models import assert_close, bits, part, samples
from tests.runtime.seams import SEAMS, write

Load = Callable[[str], rt.Model]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Load:
    """The streaming model of a seam, made once."""
    made: dict[str, rt.Model] = {}

    def model(name: str) -> rt.Model:
        if name not in made:
            made[name] = rt.load(write(name, tmp_path_factory.mktemp("seam")))
        return made[name]

    return model


def _sequence(model: rt.Model, n: int, seed: int) -> Any:
    """Of as many samples as are promised, about n, with steps that a mask leaves out, the first two among them."""
    modulus, remainder = model.description.conditions.length_modulo or (1, 0)
    x = samples(model, n // modulus * modulus + remainder, seed)
    given = x["input"] if isinstance(x, dict) else x
    masked = np.random.default_rng(seed).random(len(given)) < 0.4
    masked[:2] = True
    given[masked] = -np.abs(given[masked])
    return x


def _length(x: Any) -> int:
    return len(x["input"] if isinstance(x, dict) else x)


def _joined(model: rt.Model, given: list[Any]) -> dict[str, Any]:
    """All rows of each output, of what calls gave."""
    rows: dict[str, list[Any]] = {port.name: [np.zeros((0, *port.shape))] for port in model.description.outputs}
    for each in given:
        for port in model.description.outputs:
            y = each[port.name] if isinstance(each, dict) else each
            if y is not None:
                rows[port.name].append(y.reshape(-1, *port.shape))
    return {name: np.concatenate(parts).astype(np.float32) for name, parts in rows.items()}


def _whole(model: rt.Model, x: Any) -> dict[str, Any]:
    stream = model.stream()
    return _joined(model, [stream.push(x), stream.flush()])


@pytest.mark.parametrize("name", SEAMS)
def test_a_snapshot_at_any_sample_continues_bitwise(name: str, load: Load) -> None:
    model = load(name)
    x = _sequence(model, 22, 0)
    n, stream = _length(x), model.stream()
    snapshots, given = [], []
    for i in range(n):
        snapshots.append(stream.snapshot())
        given.append(stream.step(part(x, i)))
    snapshots.append(stream.snapshot())
    given.append(stream.flush())
    assert_close(_joined(model, given), _whole(model, x))
    for i, snapshot in enumerate(snapshots):
        twin = model.restore(snapshot)
        assert twin.snapshot() == snapshot
        again = [twin.step(part(x, j)) for j in range(i, n)]
        assert [bits(y) for y in (*again, twin.flush())] == [bits(y) for y in given[i:]]
        assert twin.snapshot() == stream.snapshot()
    stream.reset()
    assert stream.snapshot() == snapshots[0]
    assert all(len(rows) == 0 for rows in _joined(model, [stream.flush()]).values())


@pytest.mark.parametrize("name", SEAMS)
def test_a_pool_gives_what_lone_streams_give(name: str, load: Load) -> None:
    model, rng = load(name), np.random.default_rng(1)
    data = {str(i): _sequence(model, int(rng.integers(1, 40)), i) for i in range(9)}
    given: dict[str, list[Any]] = {i: [] for i in data}
    pool = model.pool(slab=4, shards=2)
    for i in data:
        pool.open(i)
    left = list(data)
    while left:
        some = [i for i in left if rng.random() < 0.7]
        sizes = {i: min(int(rng.choice([0, 1, 2, 5])), _length(data[i]) - pool.position(i)) for i in some}
        if rng.integers(2):
            chunks = {i: part(data[i], slice(pool.position(i), pool.position(i) + n)) for i, n in sizes.items()}
            got = pool.push(chunks)
        else:
            got = pool.step({i: part(data[i], pool.position(i)) for i in some if sizes[i] or pool.position(i) == 0})
        for i, y in got.items():
            given[i].append(y)
        for i in [i for i in left if pool.position(i) == _length(data[i])]:
            given[i].append(pool.flush(i))
            left.remove(i)
        snapshot = pool.snapshot()
        pool = model.restore_pool(snapshot, slab=int(rng.integers(1, 9)), shards=2)
        assert pool.snapshot() == snapshot
        assert all(model.restore(pool.snapshot(i)).snapshot() == pool.snapshot(i) for i in data)
    for i, x in data.items():
        assert_close(_joined(model, given[i]), _whole(model, x))


def _damage(raw: dict[str, Any], change: dict[str, Any]) -> None:
    (output,) = raw["outputs"]
    output["timing"].update(change.pop("timing", {}))
    raw.update(change)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"phase": 2}, "phase: expected less than the granule of 2, got 2"),
        ({"phase": 2**50}, "phase: expected less than the granule of 2"),
        ({"cuts": [4, 3]}, r"cuts: expected multiples of the granule of 2, got \(4, 3\)"),
        (
            {"timing": {"hop": [3, 1]}},
            r"hop: expected whole rows for each 2 samples, which outputs \['output'\] do not",
        ),
        ({"timing": {"law": "equal"}}, "lookahead: expected it where an output's law is 'lookahead'"),
        ({"lookahead": None}, "lookahead: expected it where an output's law is 'lookahead', got None"),
    ],
)
def test_a_description_that_contradicts_itself_is_refused(change: dict[str, Any], told: str, tmp_path: Path) -> None:
    path = write("both ways, under the first step", tmp_path)
    rewrite(path, description=lambda raw: _damage(raw, dict(change)))
    with pytest.raises(rt.ModelFileError, match=f"{told}.*; the file is damaged, export it again"):
        rt.load(path)


def test_a_pool_refuses_a_length_that_was_not_promised(load: Load) -> None:
    model = load("both ways, by a promise")
    x = samples(model, 9, 0)
    pool, stream = model.pool(), model.stream("a")
    pool.open("a")
    assert len(pool.flush("a")) == 0  # of nothing, as a stream
    pool.reset("a")
    pool.push({"a": x[:8]})
    stream.push(x[:8])
    before = pool.snapshot()
    with pytest.raises(rt.InputError) as of_stream:
        stream.flush()
    with pytest.raises(rt.InputError, match=r"stream 'a', sample 8: expected 1 samples modulo 2 at flush") as of_pool:
        pool.flush("a")
    assert str(of_pool.value) == str(of_stream.value)
    assert pool.snapshot() == before
    assert_close(pool.push({"a": x[8:]})["a"], stream.push(x[8:]))
    assert_close(pool.flush("a"), stream.flush())
    assert len(pool.flush("a")) == 0


def test_a_token_out_of_the_vocabulary_is_refused_at_once_and_harms_nobody(load: Load) -> None:
    model = load("both ways, of two inputs")
    x = samples(model, 9, 0)
    bad = {name: value.copy() for name, value in x.items()}
    bad["word"][0] = 11  # of 11
    pool, stream = model.pool(), model.stream("a")
    pool.open("a")
    pool.open("b")
    before = pool.snapshot()
    calls: list[Callable[[], Any]] = [
        lambda: stream.step(part(bad, 0)),
        lambda: stream.push(bad),
        lambda: pool.step({"b": part(x, 0), "a": part(bad, 0)}),
        lambda: pool.push({"b": x, "a": bad}),
    ]
    for call in calls:
        with pytest.raises(
            rt.InputError, match="stream 'a', sample 0, input 'word': expected tokens from 0 to 10, got 11"
        ):
            call()
    assert pool.snapshot() == before
    assert_close(_joined(model, [stream.push(x), stream.flush()]), _whole(model, x))


def test_a_token_that_the_graph_refuses_after_it_waited_is_told(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the file does not know the vocabulary, nobody does before the graph runs: it is not the newest sample."""
    model = load("both ways, of two inputs")
    monkeypatch.setattr(model._checks["word"], "_last_token", 10**6)
    x = samples(model, 9, 0)
    x["word"][1] = 99  # of 11
    pool, stream = model.pool(), model.stream("a")
    pool.open("a")
    for i in range(3):
        assert pool.step({"a": part(x, i)}) == {"a": stream.step(part(x, i))}
    told = r"stream 'a', sample 3: ONNX Runtime rejected the input: .*one of the 3 samples that waited.*: reset\(\)"
    calls: list[Callable[[], Any]] = [
        lambda: stream.step(part(x, 3)),
        lambda: stream.push(part(x, slice(3, 9))),
        stream.flush,
        lambda: pool.step({"a": part(x, 3)}),
        lambda: pool.push({"a": part(x, slice(3, 9))}),
        lambda: pool.flush("a"),
    ]
    for call in calls:
        with pytest.raises(rt.InputError, match=told):
            call()
    pool.reset("a")
    x["word"][1] = 3
    assert_close(_joined(model, [pool.push({"a": x})["a"], pool.flush("a")]), _whole(model, x))
