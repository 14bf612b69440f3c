"""A real browser, driven over its DevTools pipe: no library, no port, no network."""

import base64
import itertools
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-extensions", "--no-first-run", "--hide-scrollbars",
    "--remote-debugging-pipe",
)  # fmt: skip


def browser_found() -> str | None:
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """One page of one browser.

    Attributes:
        requests: addresses that the page asked for, but for itself.
        errors: what went to its console as an error or a warning, and exceptions.
    """

    def __init__(self, program: str, profile: Path) -> None:
        (from_us, to_browser), (from_browser, to_us) = os.pipe(), os.pipe()
        # the browser reads from descriptor 3 and writes to descriptor 4
        shell = f'exec 3<&{from_us} 4>&{to_us}; exec "$@"'
        words = ["bash", "-c", shell, "browser", program, *FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self.process = subprocess.Popen(words, pass_fds=(from_us, to_us), stderr=subprocess.DEVNULL)
        os.close(from_us)
        os.close(to_us)
        self.writing, self.reading = os.fdopen(to_browser, "wb", 0), os.fdopen(from_browser, "rb")
        self.numbers = itertools.count(1)
        self.events: list[dict[str, Any]] = []
        self.session = None
        target = next(t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page")
        self.session = self.send("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def open(self, address: str, width: int = 1400, scheme: str = "light", scripts: bool = True) -> None:
        """Load a page as a reader with this window and these wishes has it."""
        self.events.clear()
        is_phone = width < 600
        self.send("Emulation.setScriptExecutionDisabled", value=not scripts)
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=is_phone)
        self.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self.send("Page.navigate", url=address)
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self._read()
        self.address = address

    def value(self, expression: str) -> Any:
        """Of JavaScript, in the page."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def picture(self, path: Path, top: float = 0, height: float | None = None) -> None:
        """A part of the page, or all of it."""
        size = self.send("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": top, "width": size["width"], "height": height or size["height"] - top, "scale": 1}
        found = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(found["data"]))

    @property
    def requests(self) -> list[str]:
        sent = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in sent if not url.startswith("data:") and url != self.address]

    @property
    def errors(self) -> list[str]:
        said = {"Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled"}
        return [json.dumps(event["params"]) for event in self.events if event["method"] in said]

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(30)
        self.writing.close()
        self.reading.close()

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session:
            message["sessionId"] = self.session
        self.writing.write(json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        message = bytearray()
        while (byte := self.reading.read(1)) != b"\0":
            assert byte, "the browser has ended"
            message += byte
        answer = json.loads(message)
        if "method" in answer:
            self.events.append(answer)
        return answer


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = browser_found()
    if program is None:
        pytest.skip(f"no browser is installed ({', '.join(NAMES)})")
    found = Browser(program, tmp_path_factory.mktemp("profile"))
    yield found
    found.close()
