"""The lines of JSON in a run's folder: events that the worker appends, commands that any door does. None is ever changed.

Standard library only: hosts import this.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

TAIL = 1 << 16  # bytes from the end of events.jsonl that mostly tell a run's state


def read_events(file: Path, offset: int = 0) -> tuple[list[dict[str, Any]], int]:
    """Lines of JSON from a byte offset on, and the offset to read from next time. Torn and foreign lines are left out."""
    try:
        with open(file, "rb") as handle:
            handle.seek(offset)
            data = handle.read()
    except (FileNotFoundError, NotADirectoryError):
        return [], 0
    whole = data.rfind(b"\n") + 1
    lines = []
    for raw in data[:whole].splitlines():
        with suppress(ValueError):
            line = json.loads(raw)
            if isinstance(line, dict):
                lines.append(line)
    return lines, offset + whole


def last_attempts(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events less those of steps that a later attempt did again."""
    first: dict[int, float] = {}
    for event in events:
        step, attempt = event.get("step"), event.get("attempt", 0)
        if event.get("event") in ("step", "resumed") and step is not None:
            first[attempt] = min(first.get(attempt, math.inf), step + (event["event"] == "resumed"))
    repeated = {attempt: min((step for later, step in first.items() if later > attempt), default=math.inf)
                for attempt in {event.get("attempt", 0) for event in events}}
    return [event for event in events if event.get("step") is None or event["step"] < repeated[event.get("attempt", 0)]]


def last_events(file: Path) -> list[dict[str, Any]]:
    """The newest events, at least one where there is one: a `failed` with hundreds of problems is longer than TAIL."""
    whole, tail = length(file), TAIL
    while True:
        start = max(whole - tail, 0)
        found = [line for line in read_events(file, start)[0] if "event" in line and isinstance(line.get("attempt"), int)]
        if found or not start:
            return found
        tail *= 2


def length(file: Path) -> int:
    """Its bytes; 0 where there is none."""
    try:
        return file.stat().st_size
    except OSError:
        return 0


def append(file: Path, line: dict[str, Any]) -> None:
    """One line in one write; begun on a new line where the last one was torn. Raises OSError."""
    data = (json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n").encode()
    with open(file, "ab+", buffering=0) as handle:
        if handle.seek(0, os.SEEK_END):
            handle.seek(-1, os.SEEK_END)
            if handle.read(1) != b"\n":
                data = b"\n" + data
        written = handle.write(data)
        if written != len(data):
            handle.write(data[written:])  # the rest does not fit either, and now the system says why
