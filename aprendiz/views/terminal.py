"""A run on the command line: a bar with loss, speed and time left, and a line for everything else that is worth one.

On a terminal the bar is drawn in place; elsewhere (a file, a pipe, a service's log) one plain line is written every so often.
Standard library only.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from typing import Any, TextIO

from ..texts import say

WIDTH = 24          # characters of the bar
QUIET = 10.0        # seconds between two lines where there is no terminal
SMOOTH = 0.9        # of the shown loss and of the shown speed, for each event
CACHING = {"pictures": "Encoding pictures", "captions": "Encoding captions",
           "pictures of the base's own": "Drawing the base's own pictures", "condition pictures": "Making condition pictures",
           "speed": "Measuring how long a step takes"}
STATES = {"queued": "queued", "running": "running", "paused": "paused", "stopped": "stopped", "finished": "finished",
          "failed": "failed", "dead": "dead"}


class Screen:
    """Draws events. `stream` is what people see; `json_lines` prints the events themselves instead."""

    def __init__(self, stream: TextIO, json_lines: bool = False) -> None:
        self.stream, self.json_lines = stream, json_lines
        self.live = not json_lines and _is_terminal(stream)
        self.fancy = can_encode(stream, "█░·")
        self._drawn = 0
        self._said = 0.0
        self._loss: float | None = None
        self._pace: float | None = None         # seconds a step
        self._before: tuple[int, float] | None = None

    def show(self, event: Mapping[str, Any]) -> None:
        """Draw one event. Where nobody reads any more, training goes on unseen."""
        try:
            self._show(event)
        except BrokenPipeError:
            self.stream = open(os.devnull, "w", encoding="utf-8")

    def _show(self, event: Mapping[str, Any]) -> None:
        if self.json_lines:
            self.stream.write(json.dumps(event, ensure_ascii=False) + "\n")
            self.stream.flush()
            return
        kind = event["event"]
        if kind == "step":
            self._step(event)
        elif kind == "caching":
            what = event.get("what", "")
            title = say(CACHING[what]) if what in CACHING else str(what)
            self.progress(title, event.get("done", 0), event.get("total", 0), now=event["time"])
        else:
            sentence = words(event)
            if sentence:
                self.line(sentence)

    def line(self, text: str) -> None:
        """Write a line of its own, above the bar."""
        self.close()
        self.stream.write(text + "\n")
        self.stream.flush()

    def close(self) -> None:
        """Clear what is drawn in place."""
        if self._drawn:
            self.stream.write("\r" + " " * self._drawn + "\r")
            self._drawn = 0

    def _step(self, event: Mapping[str, Any]) -> None:
        step, steps, now = event["step"], event.get("steps") or event["step"], event["time"]
        if event.get("loss") is not None:
            self._loss = event["loss"] if self._loss is None else SMOOTH * self._loss + (1 - SMOOTH) * event["loss"]
        if self._before and step > self._before[0]:
            pace = (now - self._before[1]) / (step - self._before[0])
            self._pace = pace if self._pace is None else SMOOTH * self._pace + (1 - SMOOTH) * pace
        self._before = (step, now)
        parts = []
        if self._loss is not None:
            parts.append(say("loss {loss}", loss=f"{self._loss:.4f}"))
        if event.get("pictures_per_second"):
            parts.append(say("{speed} pictures/s", speed=f"{event['pictures_per_second']:.1f}"))
        if event.get("peak_memory_gb"):
            parts.append(f"{event['peak_memory_gb']:.1f} GB")
        if self._pace is not None:
            parts.append(say("{time} left", time=clock(self._pace * (steps - step))))
        self.progress(say("Training"), step, steps, (" · " if self.fancy else ", ").join(parts), now)

    def progress(self, title: str, done: int, total: int, rest: str = "", now: float | None = None) -> None:
        """Draw how much of something is done; `now` in seconds."""
        now = time.time() if now is None else now
        counted = f"{title} {done}/{total}"
        if self.live:
            columns = shutil.get_terminal_size().columns - 1
            width = max(min(WIDTH, columns - len(counted) - len(rest) - 2), 0)
            filled = round(width * done / total) if total else 0
            full, empty = ("█", "░") if self.fancy else ("#", "-")
            text = f"{counted} {full * filled}{empty * (width - filled)} {rest}".rstrip()[:columns]
            self.stream.write("\r" + text + " " * (self._drawn - len(text)))
            self.stream.flush()
            self._drawn = len(text)
            if done == total:
                self.stream.write("\n")
                self._drawn = 0
        elif done == total or now - self._said >= QUIET:
            self._said = now
            self.line(f"{counted} {rest}".rstrip())


def words(event: Mapping[str, Any]) -> str:
    """One event as a sentence for people; empty where none is needed."""
    kind, step = event["event"], event.get("step")
    if kind == "queued" and event.get("ahead"):
        return say("Waiting for {device}: {ahead} before this one.", device=event.get("device"), ahead=event["ahead"])
    if kind == "ready":
        return say("Training on {device}.", device=event.get("device"))
    if kind in ("message", "warning"):
        text = say(event["template"], **event.get("fields", {})) if event.get("template") else str(event.get("text", ""))
        return say("Warning: {text}", text=text) if kind == "warning" else text
    if kind == "preflight":
        warnings = [say("Warning: {text}", text=told(problem)) for problem in event.get("problems") or []]
        return "\n".join([*warnings, preflight_words(event)])
    if kind == "validation":
        return say("Step {step}: loss {loss} on the pictures kept apart.", step=step, loss=f"{event['loss']:.4f}")
    if kind == "sample" and not event.get("index"):  # one line for the pictures of a step
        return say("Step {step}: picture {file}", step=step, file=event.get("file"))
    if kind == "checkpoint":
        return say("Step {step}: saved {file}", step=step, file=event.get("file") or event.get("folder"))
    if kind == "paused" and event.get("by"):
        return say("Paused after step {step} while pictures are drawn on the same card; it goes on by itself.", step=step)
    if kind == "paused":
        return say("Paused after step {step}.", step=step)
    if kind == "resumed":
        return say("Going on from step {step}.", step=step)
    return ""


def preflight_words(event: Mapping[str, Any]) -> str:
    """What the check before training found, in one line."""
    pictures, steps = event.get("pictures"), event.get("steps")
    if pictures is None or steps is None:
        return str(event.get("text") or say("Everything was checked."))
    text = say("{pictures} pictures, {steps} steps.", pictures=pictures, steps=steps)
    if event.get("seconds"):
        text += " " + say("About {time}.", time=clock(event["seconds"]))
    return text


def told(problem: Mapping[str, Any]) -> str:
    """A problem of an event in the person's language."""
    return say(problem["template"], **problem.get("fields", {}))


def clock(seconds: float) -> str:
    """0:42, 12:05, 3:00:00."""
    whole = max(round(seconds), 0)
    hours, minutes = whole // 3600, whole // 60 % 60
    return f"{hours}:{minutes:02}:{whole % 60:02}" if hours else f"{minutes}:{whole % 60:02}"


def can_encode(stream: TextIO, text: str) -> bool:
    """Whether a stream's encoding has these characters."""
    try:
        text.encode(stream.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def utf8(stream: TextIO) -> None:
    """Make a standard stream write UTF-8 on Windows, where pipes and old consoles do not; elsewhere never fail at a character."""
    if stream is not None and hasattr(stream, "reconfigure"):
        if sys.platform == "win32":
            stream.reconfigure(encoding="utf-8", errors="replace")
        else:
            stream.reconfigure(errors="replace")


def own_output() -> TextIO:
    """Standard output under a number of its own: while training, what libraries print there goes into the log."""
    sys.stdout.flush()
    return open(os.dup(1), "w", encoding=sys.stdout.encoding or "utf-8", errors="replace", closefd=True)


def put(text: str, *, error: bool = False) -> None:
    """Print a line on standard output, or on standard error."""
    print(text, file=sys.stderr if error else sys.stdout, flush=True)


def put_json(value: Mapping[str, Any]) -> None:
    """Print a value as one line of JSON."""
    put(json.dumps(value, ensure_ascii=False, default=str))


def _is_terminal(stream: TextIO) -> bool:
    return stream.isatty() and os.environ.get("TERM") != "dumb"
