"""A headless Chromium, spoken to by its DevTools protocol: what a page is like in front of somebody."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tornado.websocket import WebSocketClientConnection, websocket_connect

__all__ = ["Browser", "find_browser", "started_browser"]

_NAMES = ("chromium", "chromium-browser", "google-chrome")
# Without a network it must look for none.
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
)
_LIMIT_S = 60.0


def find_browser() -> str | None:
    """Path of a Chromium, or None."""
    return next((path for name in _NAMES if (path := shutil.which(name))), None)


@contextmanager
def started_browser(program: str, profile: Path) -> Iterator[Browser]:
    """A browser with a new profile, gone at the end of the block."""
    command = [program, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        port_file = profile / "DevToolsActivePort"
        until = time.monotonic() + _LIMIT_S
        while not (port_file.exists() and port_file.read_text().strip()):
            assert process.poll() is None, "the browser has ended"
            assert time.monotonic() < until, "the browser does not answer"
            time.sleep(0.05)
        yield Browser(int(port_file.read_text().split()[0]))
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(10)
        process.kill()
        process.wait()


class Browser:
    """A browser that listens on this machine."""

    def __init__(self, port: int) -> None:
        self._port = port

    def look_at(self, page: Path, *, width: int = 1100) -> dict[str, Any]:
        """Open a page and tell what is seen of it.

        Args:
            page: HTML file.
            width: Width of the window in pixels.

        Returns:
            ``errors``: what the console and uncaught exceptions say; ``requests``: what was fetched besides
            the page; ``screen`` and ``print``: see ``_LOOK``; ``pdf``: the page as printed; ``png``: a
            screenshot.
        """
        return asyncio.run(asyncio.wait_for(self._look_at(page.resolve().as_uri(), width), _LIMIT_S))

    async def _look_at(self, address: str, width: int) -> dict[str, Any]:
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}/json/new?about:blank", method="PUT")
        with urllib.request.urlopen(request, timeout=_LIMIT_S) as answer:
            tab = json.load(answer)
        socket = await websocket_connect(tab["webSocketDebuggerUrl"], max_message_size=2**28)
        try:
            return await self._seen(_Connection(socket), address, width)
        finally:
            socket.close()
            # Its last words come with the next turn of the loop.
            await socket.read_message()

    async def _seen(self, connection: _Connection, address: str, width: int) -> dict[str, Any]:
        for domain in ("Page", "Runtime", "Log", "Network"):
            await connection.call(f"{domain}.enable")
        size = {"width": width, "height": 1400, "deviceScaleFactor": 1, "mobile": False}
        await connection.call("Emulation.setDeviceMetricsOverride", **size)
        await connection.call("Page.navigate", url=address)
        await connection.event("Page.loadEventFired")
        seen: dict[str, Any] = {"screen": await connection.evaluate(_LOOK)}
        seen["png"] = await connection.data("Page.captureScreenshot")
        # A sheet of A4 between its margins.
        await connection.call("Emulation.setDeviceMetricsOverride", **size | {"width": 718})
        await connection.call("Emulation.setEmulatedMedia", media="print")
        seen["print"] = await connection.evaluate(_LOOK)
        seen["pdf"] = await connection.data("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)
        seen["errors"] = connection.complaints()
        seen["requests"] = [url for url in connection.fetched() if url != address]
        return seen


# Once all figures are decoded: each with its pixels and where it is shown; whether the page is wider than its
# window; how many tables are wider than the page.
_LOOK = """
(async () => {
  const images = [...document.images];
  await Promise.all(images.map(image => image.decode().catch(() => {})));
  const width = document.documentElement.clientWidth;
  return {
    width,
    scrollWidth: document.documentElement.scrollWidth,
    title: document.title,
    images: images.map(image => {
      const box = image.getBoundingClientRect();
      return {
        natural: image.naturalWidth, width: box.width, height: box.height, left: box.left, right: box.right,
      };
    }),
    cut: [...document.querySelectorAll('table')].filter(
      table => table.checkVisibility() && table.getBoundingClientRect().right > width + 1
    ).length,
    equations: [...document.querySelectorAll('math[display=block]')].map(equation => {
      const box = equation.getBoundingClientRect();
      return [box.width, box.height];
    }),
  };
})()
"""


class _Connection:
    """Questions and answers of the protocol, in turn; events are kept."""

    def __init__(self, socket: WebSocketClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._events: list[dict[str, Any]] = []

    async def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        number = next(self._numbers)
        await self._socket.write_message(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            message = await self._read()
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message['error']}"
                result: dict[str, Any] = message["result"]
                return result

    async def event(self, method: str) -> None:
        while not any(event["method"] == method for event in self._events):
            await self._read()

    async def evaluate(self, expression: str) -> Any:
        found = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"]["value"]

    async def data(self, method: str, **parameters: Any) -> bytes:
        return base64.b64decode((await self.call(method, **parameters))["data"])

    def complaints(self) -> list[str]:
        kinds = {"Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"}
        return [json.dumps(event["params"])[:4000] for event in self._events if event["method"] in kinds]

    def fetched(self) -> list[str]:
        sent = [
            e["params"]["request"]["url"] for e in self._events if e["method"] == "Network.requestWillBeSent"
        ]
        return [url for url in sent if not url.startswith("data:")]

    async def _read(self) -> dict[str, Any]:
        text = await self._socket.read_message()
        assert text is not None, "the browser has gone"
        message: dict[str, Any] = json.loads(text)
        if "method" in message:
            self._events.append(message)
        return message
