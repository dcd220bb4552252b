"""A headless Chromium with one page, driven over the DevTools protocol: clicks, keys, console, requests, pictures."""

import asyncio
import base64
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

CHROMIUM = shutil.which("chromium")
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
FLAGS = (
    "--headless --remote-debugging-port=0 --no-sandbox --disable-gpu --disable-quic --disable-background-networking "
    "--disable-component-update --disable-sync --no-first-run --hide-scrollbars"
)
START_S, REPLY_S = 60, 60
KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40}
KEYS |= {"Enter": 13, "Tab": 9, "Escape": 27, "Home": 36, "End": 35}


class BrowserPage:
    """The one page. What it says and asks for is kept: `console` (errors, warnings, logs), `requests` (addresses)."""

    def __init__(self, runner: asyncio.Runner, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._runner = runner
        self._socket = socket
        self._number = 0
        self._loaded = False
        self.console: list[str] = []
        self.requests: list[str] = []

    def send(self, method: str, **settings: Any) -> dict[str, Any]:
        """One command of the protocol and its result; what happened meanwhile is noted."""
        self._number += 1
        return self._runner.run(asyncio.wait_for(self._send(self._number, method, settings), REPLY_S))

    async def _send(self, number: int, method: str, settings: dict[str, Any]) -> dict[str, Any]:
        await self._socket.send_json({"id": number, "method": method, "params": settings})
        while True:
            message = await self._socket.receive_json()
            if message.get("id") == number:
                assert "error" not in message, f"{method}: {message.get('error')}"
                return message["result"]
            self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        kind, settings = event.get("method"), event.get("params", {})
        if kind == "Runtime.consoleAPICalled":
            self.console.append(" ".join(str(part.get("value", part.get("description"))) for part in settings["args"]))
        elif kind == "Runtime.exceptionThrown":
            self.console.append(str(settings["exceptionDetails"]))
        elif kind == "Log.entryAdded":
            self.console.append(settings["entry"]["text"])
        elif kind == "Network.requestWillBeSent":
            self.requests.append(settings["request"]["url"])
        elif kind == "Page.loadEventFired":
            self._loaded = True

    def open(self, path: Path, width: int = 1280, height: int = 900, dark: bool = False, scripts: bool = True) -> None:
        """Opens a file at a size and in a colour scheme, and waits until it is loaded."""
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.send("Emulation.setEmulatedMedia", features=[scheme])
        self.send("Emulation.setScriptExecutionDisabled", value=not scripts)
        self._loaded = False
        self.send("Page.navigate", url=path.resolve().as_uri())
        self._runner.run(asyncio.wait_for(self._load(), START_S))

    async def _load(self) -> None:
        while not self._loaded:
            self._note(await self._socket.receive_json())

    def value(self, code: str) -> Any:
        """The value of a JavaScript expression, by the debugger: the page's own policy does not stop it."""
        found = self.send("Runtime.evaluate", expression=code, returnByValue=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, code: str) -> None:
        """Waits until a JavaScript expression is true."""
        end = time.monotonic() + REPLY_S
        while not self.value(code):
            assert time.monotonic() < end, f"never true: {code}"
            time.sleep(0.02)

    def place(self, selector: str) -> tuple[float, float]:
        """The middle of an element in the window, after scrolling it there."""
        code = (
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: 'center', "
            "behavior: 'instant'}); const r = e.getBoundingClientRect(); "
            "return [r.left + r.width / 2, r.top + r.height / 2]; })()"
        )
        return tuple(self.value(code))

    def hover(self, selector: str) -> None:
        """Moves the mouse onto an element."""
        x, y = self.place(selector)
        self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    def click(self, selector: str) -> None:
        """Clicks into the middle of an element, whatever lies there."""
        self.hover(selector)
        x, y = self.place(selector)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, *keys: str) -> None:
        """Presses keys by name, one after the other."""
        for key in keys:
            text = {"text": "\r"} if key == "Enter" else {}
            named = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
            self.send("Input.dispatchKeyEvent", type="keyDown", **named, **text)
            self.send("Input.dispatchKeyEvent", type="keyUp", **named)

    def picture(self, path: Path, selector: str = "html") -> None:
        """Writes a PNG of an element as the page shows it."""
        code = (
            f"(() => {{ const r = document.querySelector({selector!r}).getBoundingClientRect(); return "
            "{x: r.left + scrollX, y: r.top + scrollY, width: r.width, height: r.height, scale: 1}; })()"
        )
        found = self.send("Page.captureScreenshot", clip=self.value(code), captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(found["data"]))


@contextmanager
def browser(folder: Path) -> Iterator[BrowserPage]:
    """A Chromium of its own, its profile in `folder`, gone at the end."""
    port = folder / "DevToolsActivePort"
    port.unlink(missing_ok=True)
    process = subprocess.Popen(
        [str(CHROMIUM), *FLAGS.split(), f"--user-data-dir={folder}", "about:blank"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        end = time.monotonic() + START_S
        while not (port.exists() and "\n" in port.read_text()):
            assert process.poll() is None, "chromium ended before it was up"
            assert time.monotonic() < end, "chromium did not come up"
            time.sleep(0.05)
        with asyncio.Runner() as runner:
            session, socket = runner.run(_connect(int(port.read_text().split()[0])))
            try:
                yield BrowserPage(runner, socket)
            finally:
                runner.run(_disconnect(session, socket))
    finally:
        process.terminate()
        process.wait(START_S)


async def _connect(port: int) -> tuple[aiohttp.ClientSession, aiohttp.ClientWebSocketResponse]:
    session = aiohttp.ClientSession()
    try:
        async with session.get(f"http://127.0.0.1:{port}/json/list") as reply:
            pages = [target for target in await reply.json() if target["type"] == "page"]
        return session, await session.ws_connect(pages[0]["webSocketDebuggerUrl"], max_msg_size=0)
    except BaseException:
        await session.close()
        raise


async def _disconnect(session: aiohttp.ClientSession, socket: aiohttp.ClientWebSocketResponse) -> None:
    await socket.close()
    await session.close()
