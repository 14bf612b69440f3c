"""The server of the page: Gradio, the photos and the map, on one address."""

import logging
import os
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse
from starlette.responses import PlainTextResponse

from xmodal.demo.collection import Collection
from xmodal.demo.guard import Application, Guard
from xmodal.demo.map import points
from xmodal.demo.page import Page, mount
from xmodal.demo.photos import Photos
from xmodal.errors import ConfigError

_FRESH = {"cache-control": "private, max-age=3600"}
_WAITING = 2048  # connections that are not taken yet; uvicorn's own number
_PATIENCE = 1  # seconds that open connections are given at the end


@contextmanager
def folder_of_uploads() -> Iterator[Path]:
    """Where Gradio puts what is sent, from now on; it is gone afterwards."""
    earlier = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="xmodal-demo-") as folder:
        os.environ["GRADIO_TEMP_DIR"] = folder
        try:
            yield Path(folder)
        finally:
            if earlier is None:
                os.environ.pop("GRADIO_TEMP_DIR", None)
            else:
                os.environ["GRADIO_TEMP_DIR"] = earlier


def application(collections: Sequence[Collection], folder: Path) -> Application:
    """Everything that is served, behind a guard.

    Args:
        folder: of what is sent, as ``folder_of_uploads`` gives it.
    """
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    _add_photos(app, Photos(collections))
    _add_maps(app, collections)
    mount(Page(collections, folder), app)
    return Guard(app)


def _add_photos(app: FastAPI, photos: Photos) -> None:
    @app.get("/photo/{place}")
    def photo(place: int, id: str, size: str = "small") -> Response:
        content = photos.jpeg(place, id, size)
        if content is None:
            return PlainTextResponse("Not found", 404)
        return Response(content, media_type="image/jpeg", headers=_FRESH)


def _add_maps(app: FastAPI, collections: Sequence[Collection]) -> None:
    @cache
    def drawn(place: int) -> dict[str, Any]:
        return points(collections[place])

    @app.get("/map/{place}")
    def map_of(place: int) -> Response:
        if not 0 <= place < len(collections):
            return PlainTextResponse("Not found", 404)
        return JSONResponse(drawn(place), headers=_FRESH)


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens on this address; port 0 is any free one.

    Several may be bound to one port, only one listens there: it is claimed before models load.

    Raises:
        ConfigError: the port is taken, or there is no such address here.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    opened = socket.socket(family, socket.SOCK_STREAM)
    opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        opened.bind((host, port))
        opened.listen(_WAITING)
    except (OSError, OverflowError) as error:
        opened.close()
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"The page can't be served at {host}, port {port} ({reason}). Choose another port: --port {port + 1}, or "
            "--port 0 for any that is free."
        ) from error
    return opened


def address(opened: socket.socket) -> str:
    host, port = opened.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


class Server(uvicorn.Server):
    """Says where it can be visited once it can be."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            for opened in sockets or []:
                print(f"The page is at {address(opened)} (Ctrl-C ends it)", flush=True)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # streams to visitors who stay are cut off, which is no fault to be told with a traceback
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
        await super().shutdown(sockets)


def server(app: Application) -> Server:
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=_PATIENCE, server_header=False
    )
    return Server(config)
