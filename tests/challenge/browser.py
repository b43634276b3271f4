"""A headless Chromium for tests of pages, driven through its DevTools pipe."""

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
TIMEOUT_S = 60  # for an answer; the machine may be busy

# Chromium reads commands from descriptor 3 and writes answers to descriptor 4.
LAUNCHER = "import os, sys; i, o, *c = sys.argv[1:]; os.dup2(int(i), 3); os.dup2(int(o), 4); "
LAUNCHER += "os.execvp(c[0], c)"


def find_browser() -> str | None:
    """The path of a browser on this machine, if there is one."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """A browser with one page.

    Args:
        profile: Folder of its user profile.
    """

    def __init__(self, profile: Path):
        commands, self._write = os.pipe()
        self._read, answers = os.pipe()
        launch = [sys.executable, "-c", LAUNCHER, str(commands), str(answers), str(find_browser())]
        self._process = subprocess.Popen(
            [*launch, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(commands, answers),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._buffer, self._message_ids, self._events = b"", itertools.count(1), []
        self._session: dict[str, str] = {}
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        self.call("Browser.close")
        self._process.wait(TIMEOUT_S)
        os.close(self._write)
        os.close(self._read)

    def call(self, method: str, **params: Any) -> Any:
        """Send one command of the DevTools protocol, and return its result."""
        message_id = next(self._message_ids)
        message = {"id": message_id, "method": method, "params": params, **self._session}
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while (answer := self._next_message()).get("id") != message_id:
            self._events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _next_message(self) -> Any:
        while b"\0" not in self._buffer:
            assert select.select([self._read], [], [], TIMEOUT_S)[0], "the browser does not answer"
            self._buffer += os.read(self._read, 1 << 20)
        message, _, self._buffer = self._buffer.partition(b"\0")
        return json.loads(message)

    def open(self, page: Path, width: int = 1280, *, dark: bool = False) -> None:
        """Open a file in a window of that width, and clear console messages and requests."""
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setDeviceMetricsOverride", **size)
        self.call("Emulation.setTouchEmulationEnabled", enabled=width < 500)
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self._events.clear()
        self.call("Page.navigate", url=page.as_uri())
        self.wait_until("document.readyState === 'complete' && location.protocol === 'file:'")
        self.wait_for_frames()

    def wait_for_frames(self) -> None:
        """Wait for three animation frames, after which everything is drawn."""
        frame = "requestAnimationFrame"
        self.js(f"new Promise(done => {frame}(() => {frame}(() => {frame}(done))))")

    def js(self, expression: str) -> Any:
        """The value of an expression in the page."""
        answer = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_until(self, condition: str) -> None:
        """Wait until an expression is true in the page."""
        end = time.monotonic() + TIMEOUT_S
        while not self.js(f"Boolean({condition})"):
            assert time.monotonic() < end, f"never became true: {condition}"
            time.sleep(0.02)

    def point_in(self, selector: str, fraction: float = 0.5) -> dict[str, float]:
        """A point of the first matching element, scrolled into view, at a fraction of its width."""
        point = self.js(
            f"(() => {{ const e = document.querySelector({json.dumps(selector)});"
            " e.scrollIntoView({block: 'center', inline: 'center', behavior: 'instant'});"
            " const b = e.getBoundingClientRect();"
            f" return {{x: b.left + b.width * {fraction}, y: b.top + b.height / 2}}; }})()"
        )
        self.wait_for_frames()  # listeners of scroll events run first
        return point

    def mouse(self, event: str, point: dict[str, float], **options: Any) -> None:
        self.call("Input.dispatchMouseEvent", type=f"mouse{event}", **point, **options)

    def hover(self, selector: str) -> None:
        self.mouse("Moved", self.point_in(selector))
        self.wait_for_frames()

    def click(self, selector: str) -> None:
        point = self.point_in(selector)
        for event in ("Pressed", "Released"):
            self.mouse(event, point, button="left", clickCount=1)
        self.wait_for_frames()

    def drag(self, selector: str, start: float, end: float) -> None:
        """Drag with the left button, from one fraction of the width to another."""
        points = [self.point_in(selector, at) for at in (start, (start + end) / 2, end)]
        self.mouse("Pressed", points[0], button="left", buttons=1, clickCount=1)
        for point in points[1:]:
            self.mouse("Moved", point, button="left", buttons=1)
        self.mouse("Released", points[-1], button="left", clickCount=1)
        self.wait_for_frames()

    def swipe(self, selector: str, start: float, end: float) -> None:
        """Drag with a finger, from one fraction of the width to another."""
        points = [self.point_in(selector, start + (end - start) * k / 8) for k in range(9)]
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=points[:1])
        for point in points[1:]:
            self.call("Input.dispatchTouchEvent", type="touchMove", touchPoints=[point])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.wait_for_frames()

    def tap(self, selector: str) -> None:
        point = self.point_in(selector)
        self.call("Input.dispatchTouchEvent", type="touchStart", touchPoints=[point])
        self.call("Input.dispatchTouchEvent", type="touchEnd", touchPoints=[])
        self.wait_for_frames()

    def key(self, name: str) -> None:
        codes = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Escape": 27}
        params = {"key": name, "code": name, "windowsVirtualKeyCode": codes[name]}
        for event in ("rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=event, **params)
        self.wait_for_frames()

    def screenshot(self, path: Path) -> None:
        """Save the full page as a PNG file."""
        height = self.js("document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": self.js("innerWidth"), "height": height, "scale": 1}
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    @property
    def console_messages(self) -> list[Any]:
        """Console output, exceptions and log entries since the page was opened."""
        self.js("0")  # a round trip, after which all earlier events have arrived
        methods = ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded")
        return [event["params"] for event in self._events if event.get("method") in methods]

    @property
    def requests(self) -> list[str]:
        """URLs requested since the page was opened, without data URIs."""
        self.js("0")
        method = "Network.requestWillBeSent"
        events = [event["params"] for event in self._events if event.get("method") == method]
        urls = [event["request"]["url"] for event in events]
        return [url for url in urls if not url.startswith("data:")]
