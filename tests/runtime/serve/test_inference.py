from __future__ import annotations

import asyncio
import io
import threading
from typing import Any

import numpy as np
import pytest

from edgeseq import runtime as rt
from edgeseq.errors import DTypeError, EdgeseqError, InputError, NonFiniteError, ShapeError
from edgeseq.runtime.serve import app
from edgeseq.runtime.serve.inference import Inference
from tests.runtime.serve.serving import OFFLINE, TINY, noise, run, serving


def tensor(x: Any, **more: Any) -> dict[str, Any]:
    return {"name": "input", "datatype": "FP32", "shape": list(x.shape), "data": x.reshape(-1).tolist(), **more}


@pytest.fixture(scope="module")
def inference() -> Inference:
    return Inference(rt.load(TINY), 100)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize(("n_windows", "n_samples"), [(1, 1), (1, 37), (3, 20)])
def test_windows_give_the_offline_rows(inference: Inference, n_windows: int, n_samples: int, nested: bool) -> None:
    x = noise(n_windows * n_samples).reshape(n_windows, n_samples, 3)
    given = tensor(x, data=x.tolist()) if nested else tensor(x)
    answer = inference.infer({"inputs": [given]})
    (output,) = answer["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("output", "FP32", [n_windows, n_samples, 2])
    offline = rt.load_offline(OFFLINE)
    expected = np.stack([offline.run(window) for window in x])
    np.testing.assert_allclose(np.array(output["data"]).reshape(expected.shape), expected, atol=1e-5)
    assert "id" not in answer


X = noise(4).reshape(1, 4, 3)


@pytest.mark.parametrize(
    ("request_", "error", "told"),
    [
        ([], InputError, "a JSON object"),
        ({}, InputError, "list of inputs"),
        ({"inputs": []}, InputError, "each once"),
        ({"inputs": [tensor(X), tensor(X)]}, InputError, "each once"),
        ({"inputs": [tensor(X, name="other")]}, InputError, "other"),
        ({"inputs": [tensor(X, name=None)]}, InputError, "each once"),
        ({"inputs": [tensor(X, datatype="FP64")]}, DTypeError, "'FP32'"),
        ({"inputs": [tensor(X, datatype=[])]}, DTypeError, "'FP32'"),
        ({"inputs": [tensor(X, shape=[4, 3])]}, ShapeError, "windows, samples"),
        ({"inputs": [tensor(X, shape=[1, -4, 3])]}, ShapeError, "windows, samples"),
        ({"inputs": [tensor(X, shape=[1, 5, 3])]}, ShapeError, "as many numbers"),
        ({"inputs": [tensor(X, shape=[10**30, 10**30, 3])]}, ShapeError, "as many numbers"),
        ({"inputs": [tensor(X, data=None)]}, InputError, "binary_data=False"),
        ({"inputs": [tensor(X, data=[True] * 12)]}, DTypeError, "bool"),
        ({"inputs": [tensor(X, data=["1"] * 12)]}, DTypeError, "str"),
        ({"inputs": [tensor(X, data=[1e39] * 12)]}, NonFiniteError, "NaN or infinity|non-finite|finite"),
        ({"inputs": [tensor(X, data=[10**400] * 12)]}, InputError, "cannot hold"),
        ({"inputs": [tensor(np.zeros((0, 4, 3)))]}, ShapeError, "1 to 100 samples"),
        ({"inputs": [tensor(np.zeros((1, 0, 3)))]}, ShapeError, "1 to 100 samples"),
        ({"inputs": [tensor(np.zeros((51, 2, 3)))]}, ShapeError, "1 to 100 samples"),
        ({"inputs": [tensor(X)], "outputs": [{"name": "nothing"}]}, InputError, "nothing"),
        ({"inputs": [tensor(X)], "outputs": [{"name": []}]}, InputError, "output"),
        ({"inputs": [tensor(X)], "outputs": ["output"]}, InputError, "JSON objects"),
        (
            {"inputs": [tensor(X)], "outputs": [{"name": "output", "parameters": {"binary_data": True}}]},
            InputError,
            "JSON",
        ),
    ],
)
def test_what_is_no_request_is_refused(
    inference: Inference, request_: Any, error: type[EdgeseqError], told: str
) -> None:
    with pytest.raises(error, match=told):
        inference.infer(request_)


def test_the_protocol_over_http() -> None:
    async def test() -> None:
        async with serving() as served:
            model = served.base + "/v2/models/tiny"
            for url, expected in {
                served.base + "/v2": {"name": "edgeseq", "version": "0.1.0", "extensions": []},
                served.base + "/v2/health/live": {"live": True},
                served.base + "/v2/health/ready": {"ready": True},
                model + "/ready": {"name": "tiny", "ready": True},
                model + "/versions/1/ready": {"name": "tiny", "ready": True},
            }.items():
                async with served.http.get(url) as answer:
                    assert (answer.status, await answer.json()) == (200, expected)
            async with served.http.get(model) as answer:
                told = await answer.json()
            assert told["inputs"] == [{"name": "input", "datatype": "FP32", "shape": [-1, -1, 3]}]
            assert told["outputs"] == [{"name": "output", "datatype": "FP32", "shape": [-1, -1, 2]}]
            async with served.http.post(model + "/infer", json={"id": "42", "inputs": [tensor(X)]}) as answer:
                given = await answer.json()
            assert (given["model_name"], given["id"], given["outputs"][0]["shape"]) == ("tiny", "42", [1, 4, 2])
            for body in (b"", b"{", b"[" * 5000, b"\xff", b"{}"):
                async with served.http.post(model + "/infer", data=body) as answer:
                    assert answer.status == 400
                    assert "expected" in (await answer.json())["error"]
            async with served.http.post(model + "/infer", data=io.BytesIO(b" " * (2**20 + 1))) as answer:
                assert answer.status == 413
            async with served.http.post(served.base + "/v2/models/other/infer", json={}) as answer:
                assert answer.status == 404

    run(test)


def test_only_so_many_windows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with serving() as served:
            free = threading.Event()
            monkeypatch.setattr(Inference, "infer", lambda self, given: {"waited": free.wait(10)})
            url = served.base + "/v2/models/tiny/infer"

            async def post() -> int:
                async with served.http.post(url, json={}) as answer:
                    return answer.status

            waiting = [asyncio.create_task(post()) for _ in range(2)]
            while served.server.windows < 2:
                await asyncio.sleep(0.01)
            monkeypatch.setattr(app, "MOST_WINDOWS", 2)
            assert await post() == 503
            free.set()
            assert await asyncio.gather(*waiting) == [200, 200]
            assert (await post(), served.server.windows) == (200, 0)

    run(test)


def test_tritons_own_client() -> None:
    client_module = pytest.importorskip("tritonclient.http")
    x = noise(40).reshape(2, 20, 3)

    def ask(address: str) -> Any:
        client = client_module.InferenceServerClient(address)
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("tiny")
        assert client.get_server_metadata()["name"] == "edgeseq"
        assert client.get_model_metadata("tiny")["inputs"][0]["shape"] == [-1, -1, 3]
        given = client_module.InferInput("input", list(x.shape), "FP32")
        given.set_data_from_numpy(x, binary_data=False)
        wanted = client_module.InferRequestedOutput("output", binary_data=False)
        answer = client.infer("tiny", [given], outputs=[wanted], request_id="7")
        given.set_data_from_numpy(x)  # binary
        with pytest.raises(Exception, match="binary_data=False"):
            client.infer("tiny", [given], outputs=[wanted])
        client.close()
        return answer.as_numpy("output")

    async def test() -> None:
        async with serving() as served:
            got = await asyncio.to_thread(ask, served.base.removeprefix("http://"))
            offline = rt.load_offline(OFFLINE)
            np.testing.assert_allclose(got, np.stack([offline.run(window) for window in x]), atol=1e-5)

    run(test)
