"""Headless Chromium, driven over its own debugging protocol: open a page, click on what a reader would click on, look.

`websockets` comes with Prefect.
"""

import base64
import contextlib
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)


class Browser:
    """One tab."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._number = 0
        self.requested: list[str] = []  # addresses that pages asked for since `watch`

    def watch(self) -> None:
        """Keep what is asked for in `requested`."""
        self._call("Network.enable")

    def press(self, key: str, *, text: str = "") -> None:
        """Press a key, by its name (Tab, Enter, ArrowRight); `text` is what it types."""
        code = {"Tab": 9, "Enter": 13, "ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, " ": 32}.get(key, 0)
        for kind in ("keyDown", "keyUp"):
            given = {"text": text} if text and kind == "keyDown" else {}
            self._call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **given)

    def tab_to(self, element: str) -> None:
        """Press Tab until the focus is on an element of a CSS selector."""
        for _ in range(100):
            self.press("Tab")
            if self.ask(f"document.activeElement.matches({json.dumps(element)})"):
                return
        raise AssertionError(f"{element}: Tab does not lead there")

    def named(self) -> list[tuple[str, str]]:
        """Role and name of everything that a screen reader is told of."""
        nodes = self._call("Accessibility.getFullAXTree")["nodes"]
        return [(one["role"]["value"], one.get("name", {}).get("value", "")) for one in nodes if not one["ignored"]]

    def type(self, text: str) -> None:
        """Type into what has the focus."""
        self._call("Input.insertText", text=text)

    def open(self, address: str) -> None:
        """Go to an address."""
        self._call("Page.navigate", url=address)

    def show_as(self, *, width: int, scheme: str) -> None:
        """Make the window `width` pixels wide, for a reader who prefers a light or a dark scheme."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=1000, deviceScaleFactor=1, mobile=False)
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def wait_for(self, condition: str, *, within_s: float = 120.0) -> Any:
        """Wait until an expression of JavaScript is true (or truthy); its value."""
        end = time.monotonic() + within_s
        value: Any = None
        while time.monotonic() < end:
            value = self.ask(condition)
            if value:
                return value
            time.sleep(0.2)
        raise AssertionError(f"{condition}: still {value!r} at {self.ask('location.href')}")

    def ask(self, expression: str) -> Any:
        """The value of an expression of JavaScript; None while a page is on its way."""
        return self._call("Runtime.evaluate", expression=expression, returnByValue=True).get("result", {}).get("value")

    def click(self, elements: str, text: str) -> None:
        """Press the mouse on the first of the elements (a CSS selector) that bears a text, once it stands still in view."""
        find = (
            f"(() => {{ const found = [...document.querySelectorAll({json.dumps(elements)})]"
            f".find(element => element.textContent.includes({json.dumps(text)})); if (!found) return null;"
            "found.scrollIntoView({block: 'center', behavior: 'instant'}); const box = found.getBoundingClientRect();"
            "return box.width ? [box.x + box.width / 2, box.y + box.height / 2] : null; })()"
        )
        place, before = self.wait_for(find), None
        while place != before:  # graphs and pictures come later than the text, and move what is below them
            time.sleep(0.5)
            place, before = self.wait_for(find), place
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=place[0], y=place[1], button="left", clickCount=1)

    def picture(self, path: Path) -> None:
        """Keep what is seen as a PNG."""
        path.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format="png")["data"]))

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._number += 1
        self._connection.send(json.dumps({"id": self._number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self._connection.recv(timeout=60))
            if answer.get("method") == "Network.requestWillBeSent":
                self.requested.append(answer["params"]["request"]["url"])
            if answer.get("id") == self._number:
                return dict(answer.get("result", {}))


@contextlib.contextmanager
def browser(home: Path, *, width: int = 1280, height: int = 1000) -> Iterator[Browser]:
    """Start Chromium with an empty profile in the folder `home`; it may not reach anything but this machine."""
    assert CHROMIUM is not None
    command = [
        CHROMIUM,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--remote-debugging-port=0",
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        f"--user-data-dir={home}",
        f"--window-size={width},{height}",
        "about:blank",
    ]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as chromium:
        try:
            assert chromium.stderr is not None
            listening = next(line for line in chromium.stderr if line.startswith("DevTools listening on "))
            with connect(listening.split()[-1], max_size=None, compression=None) as root:
                tabs = _ask(root, "Target.getTargets")["targetInfos"]
                tab = next(tab["targetId"] for tab in tabs if tab["type"] == "page")
            port = listening.split(":")[2].split("/")[0]
            with connect(f"ws://127.0.0.1:{port}/devtools/page/{tab}", max_size=None, compression=None) as connection:
                yield Browser(connection)
        finally:
            chromium.terminate()


def _ask(connection: ClientConnection, method: str) -> dict[str, Any]:
    connection.send(json.dumps({"id": 1, "method": method}))
    return dict(json.loads(connection.recv(timeout=60))["result"])
