"""A headless Chromium, driven over its debugging pipe as a reader's hand would drive it."""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-dev-shm-usage --hide-scrollbars "
    "--remote-debugging-pipe --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync"
).split()
PATIENCE = 60  # seconds for an answer; the machine may be busy

# Chromium reads commands from descriptor 3 and answers on 4.
BECOME = "import os, sys; i, o, *c = sys.argv[1:]; os.dup2(int(i), 3); os.dup2(int(o), 4); "
BECOME += "os.execvp(c[0], c)"


def found() -> str | None:
    """The browser on this machine, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One page at a time. complaints: what was said on its console. asked: what it requested."""

    def __init__(self, profile: Path):
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        become = [sys.executable, "-c", BECOME, str(commands), str(answers), str(found())]
        self._process = subprocess.Popen(
            [*become, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._held, self._numbers, self._events = b"", itertools.count(1), []
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for part in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{part}.enable")

    def close(self) -> None:
        self.call("Browser.close")
        self._process.wait(PATIENCE)
        os.close(self._write)
        os.close(self._read)

    def call(self, method: str, **params: Any) -> Any:
        """One command of the DevTools protocol, and its answer."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": params, **self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != number:
            self._events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next(self) -> Any:
        while b"\0" not in self._held:
            assert select.select([self._read], [], [], PATIENCE)[0], "the browser says nothing"
            self._held += os.read(self._read, 1 << 20)
        message, _, self._held = self._held.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path, width: int = 1280, *, dark: bool = False) -> None:
        """Show a file in a window of that width, and forget what was said before."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setTouchEmulationEnabled", enabled=width < 500)
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self.call("Page.navigate", url=page.as_uri())
        self.until("document.readyState === 'complete' && location.protocol === 'file:'")
        self.settle()

    def settle(self) -> None:
        """Wait until what has to be drawn is drawn."""
        frame = "requestAnimationFrame"
        self.js(f"new Promise(done => {frame}(() => {frame}(() => {frame}(done))))")

    def js(self, expression: str) -> Any:
        """What an expression gives in the page."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until a condition holds in the page."""
        end = time.monotonic() + PATIENCE
        while not self.js(f"Boolean({condition})"):
            assert time.monotonic() < end, f"never came true: {condition}"
            time.sleep(0.02)

    def middle(self, selector: str, at: float = 0.5) -> dict[str, float]:
        """A point of the first such element, brought into view; `at` of its width."""
        box = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center', inline: 'center', behavior: 'instant'});"
            " const b = e.getBoundingClientRect();"
            f" return {{x: b.left + b.width * {at}, y: b.top + b.height / 2}}; }})()"
        )
        self.settle()  # what was scrolled tells those who listen
        return box

    def mouse(self, what: str, point: dict[str, float], **more: Any) -> None:
        self.call("Input.dispatchMouseEvent", type=f"mouse{what}", **point, **more)

    def hover(self, selector: str) -> None:
        self.mouse("Moved", self.middle(selector))
        self.settle()

    def click(self, selector: str) -> None:
        point = self.middle(selector)
        for what in ("Pressed", "Released"):
            self.mouse(what, point, button="left", clickCount=1)
        self.settle()

    def drag(self, selector: str, start: float, end: float) -> None:
        """With the left button held, from one part of the width to another."""
        points = [self.middle(selector, at) for at in (start, (start + end) / 2, end)]
        self.mouse("Pressed", points[0], button="left", buttons=1, clickCount=1)
        for point in points[1:]:
            self.mouse("Moved", point, button="left", buttons=1)
        self.mouse("Released", points[-1], button="left", clickCount=1)
        self.settle()

    def swipe(self, selector: str, start: float, end: float) -> None:
        """With a finger."""
        points = [self.middle(selector, start + (end - start) * k / 8) for k in range(9)]
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=points[:1])
        for point in points[1:]:
            self.call("Input.dispatchTouchEvent", type="touchMove", touchPoints=[point])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.settle()

    def tap(self, selector: str) -> None:
        point = self.middle(selector)
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[point])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.settle()

    def key(self, name: str) -> None:
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Escape": 27}
        pressed = {"key": name, "code": name, "windowsVirtualKeyCode": codes[name]}
        for what in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=what, **pressed)
        self.settle()

    def picture(self, path: Path) -> None:
        """The page as a PNG, from its top to its bottom."""
        height = self.js("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": self.js("innerWidth"), "height": height, "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    @property
    def complaints(self) -> list[Any]:
        self.js("0")  # so that all that was said has arrived
        said = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for event in self._events if event.get("method") in said]

    @property
    def asked(self) -> list[str]:
        self.js("0")
        method = "Network.requestWillBeSent"
        events = [event["params"] for event in self._events if event.get("method") == method]
        urls = [event["request"]["url"] for event in events]
        return [url for url in urls if not url.startswith("data:")]
