"""Work that is done by the command line in a process of its own: drawing, walks, checks.

Arguments only, no shell. Where the queue is interrupted the process is ended.
"""

from __future__ import annotations

import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from ..aprendiz.errors import RunError
from . import host

PROGRAM = Path(__file__).with_name("command.py")
COUNTED = re.compile(r"\b(\d+)/(\d+)\b")


class Failed(Exception):
    """What the command line said when it could not do it; it is already a sentence for people."""


def ask(arguments: Sequence[str], progress: Callable[[int, int], None] | None = None) -> str:
    """Run one command; what it printed. Raises Failed with its own words, RunError where no Python can be started."""
    python = os.environ.get("APRENDIZ_PYTHON") or sys.executable
    environment = {**os.environ, "PYTHONUTF8": "1", "PYTHONUNBUFFERED": "1"}
    hidden = {"creationflags": subprocess.CREATE_NO_WINDOW} if sys.platform == "win32" else {}
    try:
        process = subprocess.Popen([python, str(PROGRAM), *arguments], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, env=environment, encoding="utf-8", errors="replace", **hidden)
    except OSError as error:
        raise RunError("The Python for the worker could not be started: {python} ({reason}). Set APRENDIZ_PYTHON to one that "
                       "has torch and diffusers.", python=python, reason=error.strerror or str(error)) from error
    lines: queue.SimpleQueue[tuple[str, str | None]] = queue.SimpleQueue()
    for name, stream in (("out", process.stdout), ("err", process.stderr)):
        threading.Thread(target=_read, args=(name, stream, lines), daemon=True).start()
    said: dict[str, list[str]] = {"out": [], "err": []}
    try:
        _listen(lines, said, progress)
        process.wait()
    except BaseException:
        process.kill()
        process.wait()
        raise
    if process.returncode:
        raise Failed("\n".join(line for line in said["err"] if line.strip()).strip() or f"exit code {process.returncode}")
    return "\n".join(said["out"])


def _read(name: str, stream: object, lines: queue.SimpleQueue[tuple[str, str | None]]) -> None:
    for line in stream:  # type: ignore[attr-defined]
        lines.put((name, line.rstrip("\n")))
    lines.put((name, None))


def _listen(lines: queue.SimpleQueue[tuple[str, str | None]], said: dict[str, list[str]],
            progress: Callable[[int, int], None] | None) -> None:
    """Gather what is printed until both streams end."""
    ended = 0
    while ended < 2:
        host.stop_here()
        try:
            name, line = lines.get(timeout=0.25)
        except queue.Empty:
            continue
        if line is None:
            ended += 1
            continue
        counted = COUNTED.search(line)
        if name == "out" and counted and progress is not None:
            progress(int(counted.group(1)), int(counted.group(2)))
        said[name].append(line)
