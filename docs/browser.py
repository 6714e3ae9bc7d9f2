"""A browser that a program drives: headless Chromium over its DevTools protocol, with what is installed already.

aiohttp, which Ray brings, speaks the protocol; so nothing of a browser is among the packages that everyone installs.
"""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_S = 60.0


def executable() -> str | None:
    """Chromium or Chrome of this machine; None where there is none."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, loop: asyncio.AbstractEventLoop) -> None:
        self._socket, self._loop, self._last = socket, loop, 0
        self.call("Page.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command of the protocol, and its result; raises RuntimeError where the browser refuses it."""
        return self._loop.run_until_complete(asyncio.wait_for(self._call(method, params), PATIENCE_S))

    async def _call(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        self._last += 1
        await self._socket.send_json({"id": self._last, "method": method, "params": params})
        while True:
            message = json.loads((await self._socket.receive()).data)
            if message.get("id") == self._last:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)

    def evaluate(self, expression: str) -> Any:
        """The JSON value of a JavaScript expression."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(found["exceptionDetails"]["exception"].get("description", expression))
        return found["result"].get("value")

    def text(self) -> str:
        """What the page shows."""
        return self.evaluate("document.body ? document.body.innerText : ''") or ""

    def wait_for(self, expression: str, seconds: float = PATIENCE_S) -> Any:
        """The first true value of a JavaScript expression; raises TimeoutError with what the page shows by then."""
        deadline = time.monotonic() + seconds
        while not (found := self.evaluate(expression)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{expression} did not become true on a page that shows {self.text()[:2000]!r}")
            time.sleep(0.2)
        return found

    def wait_for_text(self, *texts: str) -> None:
        for text in texts:
            self.wait_for(f"document.body && document.body.innerText.includes({json.dumps(text)})")

    def click(self, text: str, within: str = "button, a, label, [role=tab], [role=menuitem], span") -> None:
        """Click the element of that text, with the mouse."""
        find = (
            f"[...document.querySelectorAll({json.dumps(within)})]"
            f".filter(e => e.innerText && e.innerText.trim() === {json.dumps(text)} && e.getClientRects().length).pop()"
        )
        self.wait_for(f"!!{find}")
        box = self.evaluate(
            f"(() => {{ const e = {find}; e.scrollIntoView({{block: 'center'}}); const r = e.getBoundingClientRect();"
            " return [r.x + r.width / 2, r.y + r.height / 2]; })()"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


@contextmanager
def page(width: int = 1500, height: int = 900):
    """A tab of a browser that lives as long as the block, with a profile of its own."""
    found = executable()
    if found is None:
        raise RuntimeError(f"one of {', '.join(NAMES)} must be installed")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        flags += ["--disable-background-networking", "--hide-scrollbars", f"--window-size={width},{height}"]
        command = [found, *flags, f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        loop = asyncio.new_event_loop()
        try:
            port = _port(Path(profile) / "DevToolsActivePort")
            session, socket = loop.run_until_complete(_connect(port))
            try:
                yield Page(socket, loop)
            finally:
                loop.run_until_complete(session.close())
        finally:
            process.terminate()
            process.wait()
            loop.close()


def _port(file: Path) -> int:
    deadline = time.monotonic() + PATIENCE_S
    while not file.exists() or not file.read_text().strip():
        if time.monotonic() > deadline:
            raise TimeoutError("the browser did not start")
        time.sleep(0.1)
    return int(file.read_text().split()[0])


async def _connect(port: int) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
    session = aiohttp.ClientSession()
    async with session.get(f"http://127.0.0.1:{port}/json") as answer:
        [tab] = [target for target in await answer.json() if target["type"] == "page"]
    return session, await session.ws_connect(tab["webSocketDebuggerUrl"], max_msg_size=0)
