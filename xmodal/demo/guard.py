"""What the page's server lets through: the paths that the page needs, in bounded requests; the rest is not there."""

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import PlainTextResponse

from xmodal.demo.uploads import MOST_BYTES

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_JOIN, _UPLOAD = "/gradio_api/queue/join", "/gradio_api/upload"
_OPEN = {
    "GET": re.compile(
        r"/|/(photo|map)/\d|/(config|theme\.css|favicon\.ico|robots\.txt|manifest\.json)|/(assets|static)/[\w./-]+"
        r"|/gradio_api/(queue/data|heartbeat/\w+|startup-events|app_id|upload_progress)"
    ),
    "HEAD": re.compile("/"),
    "POST": re.compile(f"{_JOIN}|{_UPLOAD}|/gradio_api/(reset|cancel)"),
}
_MOST_JSON = 64 * 1024
_MOST_AROUND = 64 * 1024  # of an upload beside its file
_FILE = "gradio.FileData"

# Gradio evaluates its own templates, hence unsafe-eval; what a caption holds is escaped, and could load nothing.
HEADERS = {
    "content-security-policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; object-src 'none'; base-uri 'self'; "
        "form-action 'self'; frame-ancestors 'self'"
    ),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


class Guard:
    """Stands before the whole application (ASGI).

    Gradio's server can do more than this page needs: it serves files by their paths, fetches addresses, hands out its
    API. None of that can be reached. An event may not name files either: Gradio would copy or fetch them for it.
    """

    def __init__(self, app: Application) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        answer = self._refusal(scope)
        if answer is None and scope["path"].rstrip("/") == _JOIN:
            answer, receive = await _checked(receive)
        await (self._app if answer is None else answer)(scope, receive, _with_headers(send))

    def _refusal(self, scope: Scope) -> Application | None:
        path = scope["path"].rstrip("/") or "/"
        known = _OPEN.get(scope["method"])
        if known is None or not known.fullmatch(path) or ".." in path:
            return PlainTextResponse("Not found", 404)
        if scope["method"] != "POST":
            return None
        length = dict(scope["headers"]).get(b"content-length", b"")
        if not length.isdigit():
            return PlainTextResponse("A request must say how long it is", 411)
        most = MOST_BYTES + _MOST_AROUND if path == _UPLOAD else _MOST_JSON
        return PlainTextResponse("Too large", 413) if int(length) > most else None


async def _checked(receive: Receive) -> tuple[Application | None, Receive]:
    """A refusal of an event that names files; and the event, to be read again."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return PlainTextResponse("", 400), receive
        body, more = body + message.get("body", b""), message.get("more_body", False)
    try:
        told = json.dumps(json.loads(body))
    except (ValueError, RecursionError):
        return PlainTextResponse("Not JSON", 400), receive
    if _FILE in told:
        return PlainTextResponse("Events name no files", 400), receive
    return None, _again(body, receive)


def _again(body: bytes, receive: Receive) -> Receive:
    is_read = False

    async def once() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once


def _with_headers(send: Send) -> Send:
    added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]

    async def complete(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *added]}
        await send(message)

    return complete
