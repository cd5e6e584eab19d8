"""The graph that trained a file: ComfyUI's `workflow` and `prompt`, which its page opens from a file dropped on its canvas.

The door keeps the graph as it is in the run's folder (`graph.json`), as private as `job.json` beside it. What is written into
files for others is a copy without paths, without the names of the user and of the machine, and only where the job lets
everything be told (`output.metadata` full, captions too). Standard library only: hosts import this.

Both texts are ASCII: in a PNG they are plain `tEXt` chunks, which every version of the page reads.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import write_json
from .metadata import bare, private_words

if TYPE_CHECKING:
    from ..settings import Job

FILE = "graph.json"
KEYS = ("workflow", "prompt")
LARGEST = 512_000  # characters; ComfyUI shows no metadata of a file whose header is over 1 MiB
OWN = ("aprendiz_run",)  # properties of a node that mean something on one machine alone
COMMON = {"root", "user", "admin", "administrator", "ubuntu", "localhost"}  # names of users and machines that tell of nobody
# From a root (/, ~/, C:\, \\server) over at least one folder to the last part; not within a word or an address (https://...).
PATH = re.compile(r"(?<![\w.:/\\~])(?:[A-Za-z]:[\\/]|\\\\|~[\\/]|/)(?:[^\s\"'<>|*?:\\/]+[\\/]+)+")


def keep(folder: Path, graph: Mapping[str, Any]) -> None:
    """Leave the graph in a run's folder, in place of an older one. Raises RunError."""
    write_json(folder / FILE, {key: graph[key] for key in KEYS if graph.get(key)})


def texts(folder: Path, job: Job) -> dict[str, str]:
    """The graph of a run as texts for the files that it writes; nothing where there is none, or it is not to be told."""
    if job.output.metadata != "full" or not job.output.captions_in_metadata:
        return {}
    try:
        graph = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(graph, dict):
        return {}
    found = {key: json.dumps(public(graph[key]), separators=(",", ":")) for key in KEYS if isinstance(graph.get(key), dict)}
    return found if sum(map(len, found.values())) <= LARGEST else {}


def public(value: Any) -> Any:
    """A graph without what belongs to one machine or person."""
    if isinstance(value, dict):
        return {key: public(inner) for key, inner in value.items() if key not in OWN}
    if isinstance(value, (list, tuple)):
        return [public(inner) for inner in value]
    return text(value) if isinstance(value, str) else value


def text(value: str) -> str:
    """A text with every path cut to its last part, and the user's and the machine's names put out of it."""
    lines = [bare(line.strip()) if _is_path(line.strip()) else PATH.sub("", line) for line in value.split("\n")]
    found = "\n".join(lines)
    for word in private_words() - COMMON:
        found = re.sub(rf"(?<![^\W_]){re.escape(word)}(?![^\W_])", "private", found, flags=re.IGNORECASE)
    return found


def _is_path(line: str) -> bool:
    """Whether a line is a path and nothing else; its folders may have spaces then."""
    return re.match(r"(?:[A-Za-z]:[\\/]|\\\\|~[\\/]|/)[^\n]*$", line) is not None and not line.startswith("//")
