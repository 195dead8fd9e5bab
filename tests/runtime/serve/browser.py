"""A headless Chromium, driven over its DevTools protocol: enough to click, ask the page, and take a picture."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """``async with Browser() as page``. Console errors of the page are kept in ``errors``."""

    def __init__(self, *, width: int = 1100, height: int = 1000, dark: bool = False) -> None:
        self.errors: list[str] = []
        self._size, self._dark = (width, height), dark
        self._n = 0

    async def __aenter__(self) -> Browser:
        assert CHROMIUM is not None
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        self._process = await asyncio.create_subprocess_exec(
            CHROMIUM,
            *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *("--remote-debugging-port=0", f"--user-data-dir={self._profile.name}", "about:blank"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        self._http = aiohttp.ClientSession()
        port = await self._port()
        async with self._http.get(f"http://127.0.0.1:{port}/json/list") as answer:
            pages = [each for each in await answer.json() if each["type"] == "page"]
        self._ws = await self._http.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
        for domain in ("Page", "Runtime", "Log"):
            await self.call(f"{domain}.enable")
        width, height = self._size
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        await self.call("Emulation.setDeviceMetricsOverride", **metrics)
        await self.call("Emulation.setScrollbarsHidden", hidden=True)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if self._dark else "light"}
        await self.call("Emulation.setEmulatedMedia", features=[scheme])
        return self

    async def _port(self) -> int:
        told = Path(self._profile.name) / "DevToolsActivePort"
        async with asyncio.timeout(60):
            while not (told.is_file() and told.read_text().strip()):
                await asyncio.sleep(0.05)
        return int(told.read_text().splitlines()[0])

    async def __aexit__(
        self, _type: type[BaseException] | None, _error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        await self._ws.close()
        await self._http.close()
        self._process.terminate()
        await self._process.wait()
        self._profile.cleanup()

    async def call(self, method: str, **params: Any) -> Any:
        """One call of the DevTools protocol."""
        self._n += 1
        await self._ws.send_json({"id": self._n, "method": method, "params": params})
        async with asyncio.timeout(30):
            while True:
                told = json.loads((await self._ws.receive()).data)
                if told.get("id") == self._n:
                    assert "error" not in told, told
                    return told["result"]
                self._note(told)

    def _note(self, told: dict[str, Any]) -> None:
        if told["method"] == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(told["params"]["exceptionDetails"])[:400])
        if told["method"] == "Log.entryAdded" and told["params"]["entry"]["level"] == "error":
            self.errors.append(told["params"]["entry"]["text"] + " " + told["params"]["entry"].get("url", ""))

    async def ask(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        told = await self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in told, told
        return told["result"].get("value")

    async def until(self, expression: str, timeout_s: float = 30) -> None:
        """Wait until an expression is true."""
        async with asyncio.timeout(timeout_s):
            while not await self.ask(f"!!({expression})"):
                await asyncio.sleep(0.05)

    async def picture(self, path: Path) -> None:
        """Write a picture of the whole page."""
        told = await self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(told["data"]))
