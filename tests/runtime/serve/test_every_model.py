"""Connections, single windows and replays give what a lone stream gives, for every way in which streams behave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from edgeseq import runtime as rt
from edgeseq.errors import ConfigError
from edgeseq.runtime.serve.connection import Connection
from edgeseq.runtime.serve.counters import Counters
from edgeseq.runtime.serve.inference import DATATYPES, Inference
from edgeseq.runtime.serve.limits import Limits
from edgeseq.runtime.serve.recording import Recording
from edgeseq.runtime.serve.replay import Replay
from edgeseq.runtime.serve.server import ServeOptions, listening, make_server
from edgeseq.runtime.serve.streams import Streams
from tests.runtime.pool_models import MODELS, part, samples
from tests.runtime.serve.serving import run

LoadModel = Callable[[str], rt.Model]
N = 41


def _lists(x: Any) -> Any:
    return {name: each.tolist() for name, each in x.items()} if isinstance(x, dict) else x.tolist()


@pytest.mark.parametrize("name", MODELS)
def test_frames_of_any_sizes_give_every_row_once(name: str, pool_model: LoadModel) -> None:
    model = pool_model(name)
    x, connection = samples(model, N, 3), Connection(Streams(model, Limits(), Counters()))
    records: dict[str, list[dict[str, Any]]] = {port.name: [] for port in model.description.outputs}

    def ask(**frame: Any) -> None:
        answer = json.loads(connection.take(json.dumps({"stream_id": "a", **frame})))
        assert answer["type"] == "predictions", answer
        for record in answer["predictions"]:
            records[record["output_name"]].append(record)

    start = 0
    for size in (1, 1, 4, 1, 0, 9, 1, 1, 2, 13, 1, 7):
        if size == 1:
            ask(type="sample", values=_lists(part(x, start)))
        else:
            ask(type="chunk", values=_lists(part(x, slice(start, start + size))))
        start += size
    assert start == N
    ask(type="flush")

    alone = model.stream()
    pushed, owed = alone.push(x), alone.flush()
    for port in model.description.outputs:
        one = len(model.description.outputs) == 1
        y = np.concatenate([pushed, owed] if one else [pushed[port.name], owed[port.name]])
        made = records[port.name]
        assert [record["index"] for record in made] == list(range(len(y)))
        np.testing.assert_allclose(np.array([record["output"] for record in made]).reshape(y.shape), y, atol=1e-5)
        assert port.timing is not None
        is_prefix = port.timing.law == "prefix"
        assert [record["provisional"] for record in made[:-1]] == [is_prefix] * (len(made) - 1)
        assert all(0 <= record["sample"] < N + port.timing.hop[0] for record in made)


@pytest.mark.parametrize("name", MODELS)
def test_a_window_gives_all_rows_or_the_last_one(name: str, pool_model: LoadModel) -> None:
    model = pool_model(name)
    windows = [samples(model, N, seed) for seed in (1, 2)]
    inputs = []
    for port in model.description.inputs:
        x = np.stack([w[port.name] if isinstance(w, dict) else w for w in windows])
        told = {"name": port.name, "datatype": DATATYPES[port.dtype], "shape": list(x.shape)}
        inputs.append({**told, "data": x.reshape(-1).tolist()})
    answer = json.loads(json.dumps(Inference(model, 1000).infer({"inputs": inputs})))
    for i, port in enumerate(model.description.outputs):
        got = np.array(answer["outputs"][i]["data"]).reshape(answer["outputs"][i]["shape"])
        for window, y in zip(windows, got, strict=True):
            alone = model.stream()
            rows: list[Any] = []
            for given in (alone.push(window), alone.flush()):
                rows += list(given[port.name] if isinstance(given, dict) else given)
            assert port.timing is not None
            expected = rows[-1] if port.timing.law == "prefix" else np.stack(rows)
            np.testing.assert_allclose(y, expected, atol=1e-5)


class _Offline:
    """An offline model that gives what the stream gives: by the law, they are one."""

    def __init__(self, model: rt.Model) -> None:
        self._model, self.description = model, model.description

    def run(self, x: Any) -> Any:
        stream = self._model.stream()
        rows = np.concatenate([stream.push(x), stream.flush()])
        timing = self.description.outputs[0].timing
        return rows[-1] if timing is not None and timing.law == "prefix" else rows


SHOWN = [name for name in MODELS if name not in ("tokens", "ports")]
LONG = [(name, N) for name in SHOWN]
SHORT = [(name, n) for name in SHOWN for n in (1, 2) if "strided" not in name]  # those have no row then


@pytest.mark.parametrize(("name", "n"), LONG + SHORT)
def test_a_replay_agrees_with_the_same_model_offline(name: str, n: int, pool_model: LoadModel) -> None:
    model = pool_model(name)
    offline: Any = _Offline(model)
    x = samples(model, n, 5)
    replay = Replay(model, Recording("noise", x), lookahead=model, offline=offline)
    while replay.advance(7):
        pass
    replay.finish(replay.run_offline())
    assert len(replay.tracks["offline"].rows) > 0
    for told in replay.agreement().values():
        assert told["largest_difference"] < 1e-5
    assert set(replay.agreement()) == {"causal", "lookahead"}
    if replay.tracks["offline"].samples != [n - 1]:
        assert replay.tracks["offline"].samples == replay.tracks["causal"].samples


def test_inputs_of_different_lengths_are_refused(pool_model: LoadModel) -> None:
    model = pool_model("ports")
    connection = Connection(Streams(model, Limits(), Counters()))
    acc, gyro = ([0.0] * port.shape[0] for port in model.description.inputs)
    for n, m in ((1, 0), (0, 1), (2, 1)):
        values = {model.description.inputs[0].name: [acc] * n, model.description.inputs[1].name: [gyro] * m}
        answer = json.loads(connection.take(json.dumps({"type": "chunk", "stream_id": "a", "values": values})))
        assert (answer["type"], answer["error"]) == ("error", "InputError"), answer
    assert len(connection) == 0


def test_the_page_says_why_it_shows_no_model_of_tokens(pool_model: LoadModel) -> None:
    model = pool_model("tokens")
    with pytest.raises(ConfigError, match="live page"):
        make_server(model, ServeOptions(replay=Path("tests/data/any.csv")))
    server, _ = make_server(model, ServeOptions(port=0))

    async def test() -> None:
        async with listening(server, ServeOptions(port=0)) as port, aiohttp.ClientSession() as http:
            ws = await http.ws_connect(f"http://127.0.0.1:{port}/live")
            told = await ws.receive_json()
            assert told["type"] == "nothing"
            assert "one input of shape (C,)" in told["reason"]
            await ws.close()

    run(test)
