"""The ComfyUI shell as ComfyUI imports it (a package of any name), and a stand-in for the host that keeps what it is told."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NAME = "custom_nodes_aprendiz"


def door(module: str = "") -> Any:
    """The repository as a package, or a module of it: `door("nodes.runs")`."""
    if NAME not in sys.modules:
        spec = importlib.util.spec_from_file_location(NAME, ROOT / "__init__.py", submodule_search_locations=[str(ROOT)])
        assert spec is not None and spec.loader is not None
        sys.modules[NAME] = package = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(package)
    return importlib.import_module(f"{NAME}.{module}") if module else sys.modules[NAME]


class Interrupted(BaseException):
    """What newer versions of ComfyUI raise where the queue is interrupted: no Exception."""


class Host:
    """Folders, and a queue that can be interrupted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.sent: list[tuple[str, dict[str, Any]]] = []
        self.freed: list[str] = []
        self.drawn_with = "cpu"
        self.stopping = False
        self.prompt: str | None = None  # that the queue is at
        self.lacking = False

    def runs_folder(self) -> Path:
        """Where runs are kept."""
        return self.folder

    def place_for(self, kind: str) -> Path:
        """Where files of a kind are put."""
        return self.folder / kind

    def place(self) -> str:
        """What it draws with."""
        return self.drawn_with

    def free_models(self) -> None:
        """Keeps."""
        self.freed.append("now")

    def free_models_soon(self) -> None:
        """Keeps."""
        self.freed.append("soon")

    def prompt_in_hand(self) -> str | None:
        """The prompt that the queue is at."""
        return self.prompt

    def lacks_room(self) -> bool:
        """Whether its models find too little room."""
        return self.lacking

    def send(self, name: str, values: dict[str, Any]) -> None:
        """Keeps."""
        self.sent.append((name, values))

    def stop_here(self) -> None:
        """Raises once after `stopping` was set, as ComfyUI does."""
        if self.stopping:
            self.stopping = False
            raise Interrupted
