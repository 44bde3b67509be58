"""Opens pages in headless Chromium, through pipes and its DevTools protocol."""

import base64
import json
import os
import shutil
import subprocess

import pytest

_OPTIONS = ("--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe")
# Events of messages and requests of the page.
_DOMAINS = ("Page", "Runtime", "Log", "Network", "DOM")


class Page:
    """A page in a browser of its own; a context manager that ends the browser.

    Attributes:
      events: The events of the browser, in order.
    """

    def __init__(self, folder, *, size=(1200, 900)):
        """Starts Chromium, or skips the test without it.

        Args:
          folder: The folder for the browser's profile.
          size: The width and height of the window, px.
        """
        chromium = shutil.which("chromium")
        if chromium is None:
            pytest.skip("Chromium is not installed.")
        self.events, self._number, self._session = [], 0, None
        commands, self._writer = os.pipe()
        self._reader, answers = os.pipe()
        options = f"--user-data-dir={folder} --window-size={size[0]},{size[1]}"
        # Chromium reads commands from descriptor 3 and writes answers to 4.
        shell = f'exec "$0" "$@" {options} 3<&{commands} 4>&{answers}'
        self._process = subprocess.Popen(
            ["bash", "-c", shell, chromium, *_OPTIONS],
            pass_fds=(commands, answers),
            stderr=subprocess.DEVNULL,
        )
        os.close(commands)
        os.close(answers)
        self._answers = os.fdopen(self._reader, "rb")
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        for domain in _DOMAINS:
            self.call(f"{domain}.enable")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        self._answers.close()
        os.close(self._writer)

    def call(self, method, **params):
        """Returns the result of a method of the protocol."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self.events.append(answer)

    def _receive(self):
        text = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "Chromium has ended."
            text += byte
        return json.loads(text)

    def open(self, address):
        """Opens an address and waits until it is loaded."""
        self.call("Page.navigate", url=address)
        while not any(e["method"] == "Page.loadEventFired" for e in self.events):
            self.events.append(self._receive())

    def evaluate(self, expression):
        """Returns the value of a JavaScript expression; a promise is awaited."""
        answer = self.call(
            "Runtime.evaluate",
            expression=expression,
            awaitPromise=True,
            returnByValue=True,
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait_for(self, condition, *, secs=120):
        """Waits until a JavaScript expression is true; fails after some time."""
        self.evaluate(
            "new Promise((resolve, reject) => { const check = () => "
            f"({condition}) ? resolve() : setTimeout(check, 50); check(); "
            f"setTimeout(() => reject(Error('timeout')), {1000 * secs}); }})"
        )

    def choose_files(self, selector, paths):
        """Chooses files in an input element, as a user would."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(p) for p in paths])

    def screenshot(self, path):
        """Writes a PNG file of the whole page."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))

    def messages(self):
        """Returns the messages on the console, with exceptions and refused loads."""
        methods = ("consoleAPICalled", "exceptionThrown", "entryAdded")
        return [e for e in self.events if e["method"].endswith(methods)]

    def requests(self):
        """Returns the addresses that the page requested."""
        sent = [e for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [e["params"]["request"]["url"] for e in sent]
