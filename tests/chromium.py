"""A headless Chromium, spoken to in the WebDriver protocol (w3.org/TR/webdriver2)."""

from __future__ import annotations

import base64
import json
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

ARGUMENTS = (
    "--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu",
    "--hide-scrollbars", "--no-first-run",
)  # fmt: skip
DIRECT = build_opener(ProxyHandler({}))  # whatever proxy the machine has
WAIT = 30  # seconds until what must become true counts as false
KEYS = {
    "Tab": "\ue004", "Enter": "\ue007", "End": "\ue010", "Left": "\ue012", "Right": "\ue014",
}  # fmt: skip


def missing() -> str | None:
    """Why there can be no browser, and what to do; None where there can."""
    if all(map(shutil.which, ("chromium", "chromedriver"))):
        return None
    return "no chromium and chromedriver here: apt-get install chromium chromium-driver"


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser, which is closed in the end."""
    command = ["chromedriver", "--port=0"]
    with ended(subprocess.Popen(command, stdout=subprocess.PIPE, text=True)) as process:
        assert process.stdout is not None
        says = re.compile(r"successfully on port (\d+)").search
        port = next(filter(None, map(says, process.stdout)))[1]
        browser = Browser(f"http://127.0.0.1:{port}")
        try:
            yield browser
        finally:
            browser.ask("", method="DELETE")


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """A process, which is told to end and waited for, whatever happens."""
    with process:
        try:
            yield process
        finally:
            process.terminate()


class Browser:
    """One window, and those that are opened from it.

    Args:
        driver: address of a chromedriver.
    """

    def __init__(self, driver: str) -> None:
        self.url = f"{driver}/session"
        options = {"args": ARGUMENTS, "binary": shutil.which("chromium")}
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"performance": "ALL"}}
        self.url += f"/{self.ask('', capabilities={'alwaysMatch': wanted})['sessionId']}"

    def ask(self, command: str, method: str = "POST", **values: Any) -> Any:
        """A command of the protocol, and its value."""
        body = json.dumps(values).encode() if method == "POST" else None
        request = Request(f"{self.url}{command}", body, method=method)
        try:
            with DIRECT.open(request, timeout=2 * WAIT) as answer:
                return json.load(answer)["value"]
        except HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def devtools(self, command: str, **values: Any) -> Any:
        """A command of Chromium's own protocol."""
        return self.ask("/goog/cdp/execute", cmd=command, params=values)

    def open(self, url: str) -> None:
        """Loads a page from the start, also where only the fragment differs."""
        self.ask("/url", url="about:blank")
        self.ask("/url", url=url)

    @contextmanager
    def new_window(self, url: str) -> Iterator[None]:
        """Another window as the current one."""
        before = self.ask("/window", method="GET")
        self.ask("/window", handle=self.ask("/window/new", type="window")["handle"])
        self.open(url)
        yield
        self.ask("/window", method="DELETE")
        self.ask("/window", handle=before)

    def show(self, width: int, height: int, dark: bool = False, scale: float = 1) -> None:
        """Takes the size of a screen and a colour scheme, and lets nothing move."""
        self.devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=scale, mobile=width < 500,
        )  # fmt: skip
        wishes = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce",
        }
        features = [{"name": name, "value": value} for name, value in wishes.items()]
        self.devtools("Emulation.setEmulatedMedia", features=features)

    def run(self, script: str, *args: Any) -> Any:
        """Runs the body of an async function with these `args`; what it returns."""
        body = f"return (async (...args) => {{ {script} }})(...arguments)"
        return self.ask("/execute/sync", script=body, args=args)

    def until(self, script: str, *args: Any) -> Any:
        """Waits until an expression is true; its value."""
        end = time.monotonic() + WAIT
        while time.monotonic() < end:
            if value := self.run(f"return {script}", *args):
                return value
            time.sleep(0.05)
        shown = self.run("return document.body.innerText")
        raise AssertionError(f"was not true for {WAIT} s: {script}\n{shown}")

    def press(self, *keys: str) -> None:
        """Presses keys one after the other, by their names in `KEYS` or by the character."""
        actions = [
            {"type": kind, "value": KEYS.get(key, key)}
            for key in keys
            for kind in ("keyDown", "keyUp")
        ]
        self.ask("/actions", actions=[{"type": "key", "id": "keys", "actions": actions}])

    def point(self, x: float, y: float) -> None:
        """Moves the pointer to a place of the window, in CSS pixels."""
        move = {"type": "pointerMove", "x": round(x), "y": round(y), "duration": 0}
        self.ask("/actions", actions=[{"type": "pointer", "id": "mouse", "actions": [move]}])

    def requests(self) -> list[str]:
        """The addresses asked for since the last call, of this window."""
        entries = self.ask("/se/log", type="performance")
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def picture(self, file: Path) -> None:
        """Writes what is shown as PNG."""
        file.write_bytes(base64.b64decode(self.ask("/screenshot", method="GET")))
