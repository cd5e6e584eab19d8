"""app: the standalone page."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..errors import SettingsError
from ..texts import say
from ..views.terminal import put


def app(asked: argparse.Namespace) -> int:
    """Serve the page until it is ended."""
    from ..app import FIRST_PORT, serve
    port = None
    if asked.port is not None:
        if not asked.port.isdigit():
            raise SettingsError("--port is '{value}'. It takes a whole number, such as {port}.", value=asked.port,
                                port=FIRST_PORT)
        port = int(asked.port)
    missing = [folder for folder in asked.folder if not folder.is_dir()]
    if missing:
        raise SettingsError("There is no folder {folder}. Check the path.", folder=str(missing[0]))

    def told(address: str) -> None:
        taken = int(address.rstrip("/").rpartition(":")[2])
        if port is None and taken != FIRST_PORT:
            put(say("Port {port} is in use; the page takes {free}.", port=FIRST_PORT, free=taken))
        put(say("The page is at {address} (Ctrl+C ends it; runs are saved and stopped then).", address=address))

    serve(port, Path(asked.out), asked.folder, told)
    return 0
