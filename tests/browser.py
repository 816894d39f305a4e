"""A headless Chromium that a test drives: it opens pages of a server, clicks, types and uploads.

It speaks the DevTools protocol over two pipes, so that no other package is needed: JSON messages
that end in a zero byte.
"""

import base64
import contextlib
import fcntl
import io
import json
import os
import pathlib
import select
import subprocess
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import PIL.Image

from tests import chromium

SECONDS = 300.0  # that a page may take, on a busy machine


class Browser:
    """One page. `requests` has the address of each request that it made."""

    def __init__(self, write: int, read: int) -> None:
        self._write, self._read, self._rest = write, read, b""
        self._number, self._session = 0, ""
        self.requests: list[str] = []
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Network", "Runtime", "DOM", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command and returns its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer["error"])
                return answer["result"]

    def open(self, url: str, *, width: int = 1320, height: int = 900) -> None:
        """Opens an address in a window of a given size."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.call("Page.navigate", url=url)

    def run(self, script: str) -> Any:
        """Returns the value of a JavaScript expression."""
        found = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, (script, found["exceptionDetails"])
        return found["result"].get("value")

    def wait(self, script: str, *, until: Callable[[Any], bool] = bool) -> Any:
        """Returns the value of an expression as soon as it is true, or `until` accepts it."""
        end = time.monotonic() + SECONDS
        while not until(value := self.run(script)):
            assert time.monotonic() < end, f"{script} is {value!r}, and stays so: {self.text()}"
            time.sleep(0.2)
        return value

    def text(self) -> str:
        """Returns the text of the page."""
        return self.run("document.body ? document.body.innerText : ''")

    def click(self, selector: str) -> None:
        """Clicks an element as soon as it is there."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.wait(f"!!{found} && !{found}.disabled")
        self.run(f"{found}.click()")

    def click_text(self, tag: str, text: str) -> None:
        """Clicks the first visible element of a tag that has exactly this text."""
        found = (
            f"[...document.querySelectorAll({json.dumps(tag)})].find(e => "
            "e.offsetParent && getComputedStyle(e).visibility === 'visible' && "
            f"e.innerText.trim() === {json.dumps(text)})"
        )
        self.wait(f"!!{found}")
        self.run(f"{found}.click()")

    def type(self, selector: str, text: str) -> None:
        """Replaces the text of a field."""
        found = f"document.querySelector({json.dumps(selector)})"
        self.wait(f"!!{found}")
        self.run(f"{found}.focus(); {found}.select()")
        self.call("Input.insertText", text=text)

    def upload(self, selector: str, *files: pathlib.Path) -> None:
        """Gives files to the input of type "file" inside of an element."""
        self.wait(f"!!document.querySelector({json.dumps(selector)})")
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def screenshot(self, file: pathlib.Path | None = None) -> np.ndarray:
        """Returns the window, uint8[height, width, 3]; writes it to a file too."""
        data = base64.b64decode(self.call("Page.captureScreenshot")["data"])
        if file is not None:
            file.write_bytes(data)
        return np.asarray(PIL.Image.open(io.BytesIO(data)).convert("RGB"))

    def _message(self) -> dict[str, Any]:
        end = time.monotonic() + SECONDS
        while b"\0" not in self._rest:
            ready, *_ = select.select([self._read], [], [], max(end - time.monotonic(), 0))
            assert ready, f"Chromium did not answer for {SECONDS:.0f} s"
            data = os.read(self._read, 1 << 20)
            assert data, "Chromium ended"
            self._rest += data
        line, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(line)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])
        elif method == "Network.webSocketCreated":
            self.requests.append(params["url"])
        elif method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"])[:500])


@contextlib.contextmanager
def opened(tmp_path: pathlib.Path) -> Iterator[Browser]:
    """Yields a browser; the test is skipped where Chromium is not installed."""
    program = chromium.program()
    ours_read, theirs_write = _pipe()
    theirs_read, ours_write = _pipe()
    # Chromium reads from descriptor 3 and writes to 4.
    start = f'exec "$@" 3<&{theirs_read} 4>&{theirs_write}'
    options = [*chromium.OPTIONS, f"--user-data-dir={tmp_path / 'browser'}"]
    process = subprocess.Popen(
        ["bash", "-c", start, "bash", program, *options, "--remote-debugging-pipe"],
        pass_fds=(theirs_read, theirs_write),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    for descriptor in (theirs_read, theirs_write):
        os.close(descriptor)
    try:
        yield Browser(ours_write, ours_read)
    finally:
        process.terminate()
        process.wait(20)
        for descriptor in (ours_read, ours_write):
            os.close(descriptor)


def _pipe() -> tuple[int, int]:
    """Returns the ends of a pipe, both above 4, which Chromium's own are."""
    ends = os.pipe()
    moved = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return moved[0], moved[1]
