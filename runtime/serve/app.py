"""The HTTP side, on aiohttp: which path does what, and the loops that carry frames.

Everything that decides stands in modules without I/O; here are sockets, time-outs and the headers of answers.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from importlib import resources

from aiohttp import WSCloseCode, WSMsgType, web

from edgeseq.errors import ConfigError, EdgeseqError, FrameError
from edgeseq.runtime.serve import frames
from edgeseq.runtime.serve.access import COOKIE, Access, Refusal
from edgeseq.runtime.serve.connection import Connection, hello
from edgeseq.runtime.serve.inference import VERSION, Inference
from edgeseq.runtime.serve.live import Live, Viewer, no_live
from edgeseq.runtime.serve.streams import Streams

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

PAGE = {
    "index.html": "text/html",
    "live.css": "text/css",
    "live.js": "text/javascript",
    "charts.js": "text/javascript",
    "uPlot.iife.min.js": "text/javascript",
    "uPlot.min.css": "text/css",
}
"""The files of the page, all of which are in the package."""

MOST_WINDOWS = 8
"""Single windows that are computed at a time, in threads; more are refused by status 503."""

OPEN = {"/healthz", "/login"}
"""Paths that need no token."""

HEADERS = {
    # uPlot places its parts by style attributes that scripts set, which this policy does not forbid.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer, under which browsers send forms with the Origin "null", which is refused.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}

LOGIN = """<!doctype html><html lang="en"><meta charset="utf-8"><title>edgeseq</title>
<meta name="viewport" content="width=device-width"><form method="post" action="/login">
<p>{told}</p><label>Token <input type="password" name="token" autofocus></label> <button>Open</button></form></html>"""


@dataclass(eq=False)
class Server:
    """What the handlers share. ``live`` is the page's replay, or why there is none."""

    streams: Streams
    access: Access
    live: Live | ConfigError
    inference: Inference
    uses_tls: bool = False
    sockets: set[web.WebSocketResponse] = field(default_factory=set)
    under_way: int = 0
    windows: int = 0

    def app(self) -> web.Application:
        """The application, to be run by aiohttp."""
        app = web.Application(middlewares=[self._guard], client_max_size=self.streams.limits.frame_bytes)
        app.add_routes(
            [
                web.get("/", self._page),
                web.get("/static/{name}", self._page),
                web.post("/login", self._login),
                web.get("/healthz", self._health),
                web.get("/metrics", self._metrics),
                web.get("/ws", self._ws),
                web.get("/live", self._live),
                web.get("/v2", self._v2_server),
                web.get("/v2/health/{what:live|ready}", self._v2_ready),
            ]
        )
        for path in ("/v2/models/{model}", f"/v2/models/{{model}}/versions/{VERSION}"):
            app.add_routes([web.get(path, self._v2_metadata), web.get(f"{path}/ready", self._v2_ready)])
            app.add_routes([web.post(f"{path}/infer", self._v2_infer)])
        app.on_shutdown.append(self._shut_down)
        app.cleanup_ctx.append(self._expiring)
        return app

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse what may not be asked; give all answers their headers."""
        refusal = self.access.foreign(request.headers)
        if refusal is None and request.path not in OPEN:
            refusal = self.access.refusal(request.headers, request.cookies.get(COOKIE))
        if refusal is not None:
            response: web.StreamResponse = self._refused(request, refusal)
        else:
            self.under_way += 1
            try:
                response = await self._answer(request, handler)
            except web.HTTPException as error:
                self.streams.counters.add("refused_total", f"http_{error.status}")
                response = _json({"error": error.reason}, error.status)
            finally:
                self.under_way -= 1
        if not response.prepared:
            response.headers.update(HEADERS)
        return response

    async def _answer(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        limit = self.streams.limits.connections
        if self.under_way - len(self.sockets) > limit:
            raise web.HTTPServiceUnavailable(reason=f"there are {limit} requests under way already")
        return await handler(request)

    def _refused(self, request: web.Request, refusal: Refusal) -> web.Response:
        self.streams.counters.add("refused_total", refusal.kind)
        if refusal.kind == "token" and request.path == "/":
            return _login_page("This page needs its token.")
        extra = {"WWW-Authenticate": "Bearer"} if refusal.status == 401 else {}
        return _json({"error": refusal.message}, refusal.status, extra)

    async def _login(self, request: web.Request) -> web.Response:
        given = (await request.post()).get("token")
        if not isinstance(given, str) or not self.access.is_token(given.strip()):
            self.streams.counters.add("refused_total", "token")
            return _login_page("That is not the token.")
        response = web.Response(status=303, headers={"Location": "/"})
        response.set_cookie(COOKIE, given.strip(), httponly=True, samesite="Strict", secure=self.uses_tls)
        return response

    async def _page(self, request: web.Request) -> web.Response:
        name = request.match_info.get("name", "index.html")
        if name not in PAGE:
            raise web.HTTPNotFound
        text = resources.files("edgeseq.runtime.serve").joinpath("page", name).read_text(encoding="utf-8")
        return web.Response(text=text, content_type=PAGE[name], charset="utf-8")

    async def _health(self, _request: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def _metrics(self, _request: web.Request) -> web.Response:
        text = self.streams.metrics()
        return web.Response(text=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})

    async def _ws(self, request: web.Request) -> web.StreamResponse:
        async with self._socket(request, "ws") as ws:
            connection = Connection(self.streams)
            try:
                await self._send(request, ws, hello(self.streams))
                async for message in ws:
                    if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                        self._broken(message.type)
                        break
                    await self._send(request, ws, connection.take(message.data))
                    await asyncio.sleep(0)  # a client that floods leaves the others their turn
            finally:
                connection.close()
            return ws

    async def _live(self, request: web.Request) -> web.StreamResponse:
        async with self._socket(request, "live") as ws:
            if isinstance(self.live, ConfigError):
                await self._send(request, ws, no_live(self.live))
                await ws.close()
                return ws
            viewer = self.live.join()
            telling = asyncio.create_task(self._tell(request, ws, viewer))
            try:
                async for message in ws:
                    if message.type is not WSMsgType.TEXT:
                        self._broken(message.type)
                        break
                    await self._ask(request, ws, message.data)
            finally:
                self.live.leave(viewer)
                telling.cancel()
                await asyncio.gather(telling, return_exceptions=True)
            return ws

    async def _ask(self, request: web.Request, ws: web.WebSocketResponse, text: str) -> None:
        assert isinstance(self.live, Live)
        try:
            self.live.take(text)
        except FrameError as error:
            self.streams.counters.add("malformed_total", error.kind)
            self.streams.counters.add("errors_total", type(error).__name__)
            await self._send(request, ws, frames.error_frame(error, None, None))

    async def _tell(self, request: web.Request, ws: web.WebSocketResponse, viewer: Viewer) -> None:
        while not ws.closed:
            await self._send(request, ws, await viewer.get())

    @asynccontextmanager
    async def _socket(self, request: web.Request, kind: str) -> AsyncIterator[web.WebSocketResponse]:
        counters, limits = self.streams.counters, self.streams.limits
        if len(self.sockets) >= limits.connections:
            counters.add("refused_total", "connections")
            raise web.HTTPServiceUnavailable(reason=f"there are {limits.connections} connections already")
        # No compression: it would cost 300 kB a connection, and a small frame could grow to a large one.
        ws = web.WebSocketResponse(max_msg_size=limits.frame_bytes, heartbeat=30.0, compress=False)
        self.sockets.add(ws)  # before the first await, so that the limit holds
        counters.add("connections_total", kind)
        counters.add("connections", kind)
        try:
            await ws.prepare(request)
            yield ws
        except (ConnectionError, TimeoutError):
            pass  # the client is gone, or was ended for not reading: counted where it happened
        finally:
            self.sockets.discard(ws)
            counters.add("connections", kind, -1)

    async def _send(self, request: web.Request, ws: web.WebSocketResponse, frame: str | bytes) -> None:
        """Send an answer; nothing more is read from the client until it has been sent.

        Raises:
            TimeoutError, ConnectionError: the client does not read, and was cut off; or is gone.
        """
        try:
            async with asyncio.timeout(self.streams.limits.slow_s):
                await (ws.send_str(frame) if isinstance(frame, str) else ws.send_bytes(frame))
        except TimeoutError:
            self.streams.counters.add("slow_clients_total")
            if request.transport is not None:
                request.transport.abort()
            raise

    def _broken(self, kind: WSMsgType) -> None:
        """A client broke the WebSocket protocol itself, or sent too large a frame; aiohttp has closed it."""
        self.streams.counters.add("refused_total", "websocket" if kind is WSMsgType.ERROR else "websocket_frame")

    async def _v2_server(self, _request: web.Request) -> web.Response:
        return _json(self.inference.server())

    async def _v2_ready(self, request: web.Request) -> web.Response:
        self._check_name(request)
        what = request.match_info.get("what")
        return _json({"name": request.match_info["model"], "ready": True} if what is None else {what: True})

    async def _v2_metadata(self, request: web.Request) -> web.Response:
        self._check_name(request)
        return _json(self.inference.metadata())

    async def _v2_infer(self, request: web.Request) -> web.Response:
        self._check_name(request)
        if "Inference-Header-Content-Length" in request.headers:
            return self._bad_window("expected JSON, got the binary extension; send binary_data=False", "InputError")
        body = await request.read()
        if self.windows >= MOST_WINDOWS:  # numbers take far more memory as Python's than as text
            raise web.HTTPServiceUnavailable(reason=f"there are {MOST_WINDOWS} windows under way already")
        self.windows += 1
        try:
            given = json.loads(body)
            return _json(await asyncio.to_thread(self.inference.infer, given))
        except EdgeseqError as error:
            return self._bad_window(str(error), type(error).__name__)
        except (ValueError, RecursionError):
            return self._bad_window("expected JSON", "FrameError")
        finally:
            self.windows -= 1

    def _bad_window(self, message: str, kind: str) -> web.Response:
        self.streams.counters.add("errors_total", kind)
        return _json({"error": message}, 400)

    def _check_name(self, request: web.Request) -> None:
        if request.match_info.get("model", self.streams.model.name) != self.streams.model.name:
            raise web.HTTPNotFound(reason=f"the model here is {self.streams.model.name!r}")

    async def _shut_down(self, _app: web.Application) -> None:
        if isinstance(self.live, Live):
            await self.live.close()
        closing = [ws.close(code=WSCloseCode.GOING_AWAY, message=b"the server stops") for ws in list(self.sockets)]
        await asyncio.wait_for(asyncio.gather(*closing, return_exceptions=True), timeout=5)

    async def _expiring(self, _app: web.Application) -> AsyncIterator[None]:
        async def expire() -> None:
            while True:
                await asyncio.sleep(min(60.0, self.streams.limits.idle_s))
                self.streams.expire()

        task = asyncio.create_task(expire())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _login_page(told: str) -> web.Response:
    return web.Response(status=401, text=LOGIN.format(told=told), content_type="text/html")


def _json(value: object, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    return web.json_response(value, status=status, headers=headers)
