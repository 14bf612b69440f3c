"""A visitor of the page of `xmodal demo`, who asks over HTTP what a browser asks."""

import json
from typing import Any
from uuid import uuid4

import httpx

SECONDS = 60.0  # that an answer may take


class Visitor:
    """One session; its controls go by what they start: ``type``, ``ask``, ``visit``, ``change`` and ``send``.

    Args:
        address: of the page, ``http://127.0.0.1:7860/``.
    """

    def __init__(self, address: str) -> None:
        self.http = httpx.Client(base_url=address, timeout=SECONDS, trust_env=False)
        self.session = uuid4().hex
        config = self.http.get("config").raise_for_status().json()
        self._events = {one["api_name"]: one for one in config["dependencies"]}

    def __enter__(self) -> "Visitor":
        return self

    def __exit__(self, *reason: object) -> None:
        self.http.close()

    def type(self, text: str, target: str = "images", split: str = "all", k: int = 12) -> str:
        """Type a sentence and press Enter; the HTML of the results."""
        return self.use("type", [text, target, split, k, None])[-1]

    def ask(self, target: str = "images", split: str = "all", k: int = 12, **clicked: str) -> str:
        """Click something."""
        return self.use("ask", [target, split, k, None], {"ask": "item", **clicked})[-1]

    def visit(self, address: str) -> list[Any]:
        """Open an address of a query: sentence, side, split, number, and the HTML of the results."""
        text, target, split, k, _, shown = self.use("visit", [], {"address": address})
        return [text, target, split, k, shown]

    def send(self, content: bytes, name: str = "photo.jpg", target: str = "images") -> str:
        """Choose a photo."""
        answer = self.http.post("gradio_api/upload", files={"files": (name, content)})
        path = answer.raise_for_status().json()[0]
        return self.use("send", [target, "all", 12, None], {"path": path, "name": name})[-1]

    def use(self, name: str, values: list[Any], event: dict[str, str] | None = None) -> list[Any]:
        """What an event gives to the controls of the page."""
        sent = {
            "data": values,
            "event_data": event,
            "fn_index": self._events[name]["id"],
            "trigger_id": None,
            "session_hash": self.session,
        }
        self.http.post("gradio_api/queue/join", json=sent).raise_for_status()
        with self.http.stream("GET", "gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                told = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if told.get("msg") == "process_completed":
                    if not told["success"]:
                        raise RuntimeError(f"The page failed: {told['output']}")
                    return told["output"]["data"]
        raise RuntimeError("The page ended the connection without an answer.")
