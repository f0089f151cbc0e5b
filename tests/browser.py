"""Headless Chromium without a network but this machine's own, steered over a pipe."""

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any

CHROMIUM = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)

SIZES = ((360, 740), (1280, 900))
SCHEMES = ("light", "dark")


class Browser:
    """One headless Chromium with one page. What goes wrong in the page is kept in `faults`."""

    def __init__(self, profile: Path) -> None:
        read_end, commands = os.pipe()
        events, write_end = os.pipe()
        arguments = [
            CHROMIUM,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--remote-debugging-pipe",
            "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
            f"--user-data-dir={profile}",
        ]
        nothing = os.open(os.devnull, os.O_RDWR)
        # Numbers above 4 first: none of ours is overwritten before it was copied.
        ends = [os.dup(end) for end in (read_end, write_end)]
        while min(ends) < 5:
            ends = [os.dup(end) for end in ends]
        self.process = os.posix_spawn(
            CHROMIUM,
            arguments,
            {**os.environ, "HOME": str(profile)},
            file_actions=[
                (os.POSIX_SPAWN_DUP2, nothing, 1),
                (os.POSIX_SPAWN_DUP2, nothing, 2),
                (os.POSIX_SPAWN_DUP2, ends[0], 3),
                (os.POSIX_SPAWN_DUP2, ends[1], 4),
            ],
            setpgroup=0,
        )
        for end in (read_end, write_end, nothing, *ends):
            os.close(end)
        self.commands, self.events = os.fdopen(commands, "wb", 0), os.fdopen(events, "rb")
        self.rest = b""
        self.calls = 0
        self.session: str | None = None
        self.faults: list[str] = []
        self.requests: list[str] = []
        self.loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self.calls += 1
        message: dict[str, Any] = {"id": self.calls, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        self.commands.write(json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != message["id"]:
            pass
        assert "error" not in answer, (method, answer["error"])
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, page: Path | str, *, size: tuple[int, int], scheme: str = "light") -> None:
        """Loads a page and waits until it is there."""
        self.faults, self.requests, self.loaded = [], [], False
        width, height = size
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 600,
        )
        self.media(scheme)
        self.call("Page.navigate", url=page if isinstance(page, str) else page.as_uri())
        while not self.loaded:
            self._next()

    def media(self, scheme: str, kind: str = "") -> None:
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", media=kind, features=features)

    def ask(self, expression: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        found = self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def choose(self, selector: str, *files: Path) -> None:
        """Chooses files in an input, as a user does."""
        chosen = self.call("Runtime.evaluate", expression=f"document.querySelector({selector!r})")
        self.call(
            "DOM.setFileInputFiles",
            files=[str(file) for file in files],
            objectId=chosen["result"]["objectId"],
        )

    def wait(self, expression: str, seconds: float = 60) -> None:
        """Waits until an expression is true in the page."""
        self.ask(f"""new Promise((resolve, reject) => {{
            const end = Date.now() + {1000 * seconds};
            const look = () => {{
                if ({expression}) resolve(true);
                else if (Date.now() > end) reject(new Error({expression!r} + " never came true"));
                else setTimeout(look, 50);
            }};
            look();
        }})""")

    def close(self) -> None:
        os.killpg(self.process, signal.SIGKILL)
        os.waitpid(self.process, 0)
        self.commands.close()
        self.events.close()

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            more = os.read(self.events.fileno(), 1 << 20)
            assert more, "the browser is gone"
            self.rest += more
        text, _, self.rest = self.rest.partition(b"\0")
        event: dict[str, Any] = json.loads(text)
        self._note(event.get("method", ""), event.get("params", {}))
        return event

    def _note(self, method: str, told: dict[str, Any]) -> None:
        match method:
            case "Page.loadEventFired":
                self.loaded = True
            case "Runtime.exceptionThrown":
                self.faults.append(json.dumps(told["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if told["type"] in {"error", "warning", "assert"}:
                self.faults.append(json.dumps(told["args"]))
            case "Log.entryAdded" if told["entry"]["level"] in {"error", "warning"}:
                self.faults.append(json.dumps(told["entry"]))
            case "Network.requestWillBeSent":
                self.requests.append(told["request"]["url"][:200])
