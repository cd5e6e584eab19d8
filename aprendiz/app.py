"""The standalone page: `python -m aprendiz app`. The same page as in the hosts, served to this machine alone.

This is the one module that imports gradio.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .errors import RunError
from .views.desk import Desk, at_once
from .views.gradio import build
from .views.routes import Routes, mount

ADDRESS = "127.0.0.1"
FIRST_PORT = 7860  # as Gradio's own pages
PORTS = 200
NAMES = ("127.0.0.1", "localhost", "::1")
# A browser never asks again for a module that failed, nor for one that this one imports: the next time they have other names.
HEAD = """<script type="module">
const bring = (again = 0) => import(again ? `./aprendiz/again-${again}/page.js` : './aprendiz/page.js')
  .catch(() => setTimeout(bring, Math.min(5, 2 ** again) * 1000, again + 1))
bring()
</script>"""


def open_port(wanted: int | None) -> socket.socket:
    """A listening socket on the port asked for, or on the first that is free from 7860 on. Raises RunError."""
    first = FIRST_PORT if wanted is None else wanted
    if not 1 <= first <= 65535:
        raise RunError("--port is {port}, which is no port. Choose one from 1024 to 65535.", port=first)
    if wanted is not None:
        found = _listen(wanted)
        if found is None:
            with _first_free(wanted + 1) as free:
                other = free.getsockname()[1]
            raise RunError("Port {port} is in use, or may not be used. The next free one is {free}: python -m aprendiz app "
                           "--port {free}", port=wanted, free=other)
        return found
    return _first_free(first)


def _first_free(first: int) -> socket.socket:
    for port in range(first, min(first + PORTS, 65536)):
        found = _listen(port)
        if found is not None:
            return found
    found = _listen(0)
    if found is None:
        raise RunError("No port of this machine is free for the page. Close other servers.")
    return found


def _listen(port: int) -> socket.socket | None:
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    # On Windows a plain bind succeeds on a port that another server has with SO_REUSEADDR; elsewhere that option only skips the
    # wait after a server that has just ended.
    option = socket.SO_EXCLUSIVEADDRUSE if sys.platform == "win32" else socket.SO_REUSEADDR
    listening.setsockopt(socket.SOL_SOCKET, option, 1)
    try:
        listening.bind((ADDRESS, port))
        listening.listen(128)
    except OSError:
        listening.close()
        return None
    return listening


def application(output: Path, folders: Sequence[Path] = ()) -> Any:
    """The ASGI application: our routes and the page. folders: what may be opened beside the home and the current folder."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    try:
        import gradio as gr
        from fastapi import FastAPI
    except ImportError as error:
        raise RunError("The page needs gradio, which cannot be imported ({reason}). Install it with: {python} -m pip install "
                       "\"gradio>=6\"", reason=str(error), python=sys.executable) from error
    roots = (Path.home(), Path.cwd(), *folders)
    desk = Desk(lambda: output, at_once(roots))
    with gr.Blocks(title="Aprendiz", analytics_enabled=False) as blocks:
        build(gr)
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    fonts = ["Inter", "system-ui", "sans-serif"]  # of this machine: nothing is fetched
    theme = gr.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"])
    app = gr.mount_gradio_app(app, blocks, path="/", theme=theme, head=HEAD, ssr_mode=False, footer_links=[], server_name=ADDRESS)
    mount(app, Routes(desk), public=NAMES)
    return app


def serve(port: int | None, output: Path, folders: Sequence[Path], told: Callable[[str], None]) -> None:
    """Serve the page until Ctrl+C; `told` is called with its address once it can be opened. Raises RunError."""
    listening = open_port(port)
    try:
        app = application(output.absolute(), folders)
        import uvicorn
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=2))
        told(f"http://{ADDRESS}:{listening.getsockname()[1]}/")
        server.run(sockets=[listening])
    finally:
        listening.close()
