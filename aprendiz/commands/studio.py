"""studio: draws what pages ask for, one thing after another, with the base kept open in between.

A line of JSON on standard input asks: {"id": "...", "arguments": ["--base", "micro", "--prompt=...", ...]}, the arguments being
those of `generate`. Lines of JSON answer: {"id", "waits", "by"} while a run holds the device, {"id", "done", "total"} while it
draws, then {"id", "files"} or {"id", "problems"}. It ends with its standard input, and by itself where nothing was asked for a
while, so that the memory is free.

It takes the lock of its device as runs do, for as long as it draws, so that a run and a picture never share a card unasked. While
the run that holds the device is paused its memory is free, and pictures are drawn. Where somebody wants the device, the base that
is kept open makes room.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import Any

from ..errors import AprendizError, Problem
from ..locks import devices_locked, holder_of, is_wanted
from ..run import Run
from ..views.terminal import own_output
from . import drawing

IDLE = 600.0  # seconds without a question after which the base is let go
LOOK = 2.0  # seconds between two looks at who wants the device
OF_BASE = ("base", "vae", "text_encoder", "prediction", "clip_skip", "device", "precision")  # arguments that open another base


class Studio:
    """A base that stays open from one picture to the next."""

    def __init__(self, parse: Callable[[list[str]], argparse.Namespace], tell: Callable[[dict[str, Any]], None]) -> None:
        self.parse, self.tell = parse, tell
        self.opened: tuple[Any, Any] | None = None  # what it was opened by, and the base
        self.device = ""  # of that base

    def answer(self, question: dict[str, Any]) -> None:
        """Draw what one question asks for and tell of it; nothing is raised but what ends the process."""
        about = {"id": question.get("id")}
        try:
            asked = self.parse([str(word) for word in question["arguments"]])
            order = drawing.read_order(asked)
            with on_device(device_of(asked), lambda device, by: self.tell({**about, "waits": device, "by": by})) as device:
                self.device = device
                base = self._base(asked)
                files = drawing.carry_out(order, base, lambda done, total: self.tell({**about, "done": done, "total": total}))
        except AprendizError as error:
            self.tell({**about, "problems": [{**asdict(problem), "text": str(problem)} for problem in error.problems]})
        except (Exception, SystemExit) as error:  # noqa: BLE001 - the page is told, the next question may be a better one
            traceback.print_exc()
            problem = Problem("The picture could not be drawn ({error}). The log beside the pictures tells more.",
                              {"error": f"{type(error).__name__}: {error}"})
            self.tell({**about, "problems": [{**asdict(problem), "text": str(problem)}]})
        else:
            self.tell({**about, "files": [str(file) for file in files]})

    def _base(self, asked: argparse.Namespace) -> Any:
        """The base of a question; the one before makes room for another."""
        key = [vars(asked)[name] for name in OF_BASE] + [_changed(asked.base)]
        if self.opened is None or self.opened[0] != key:
            self.opened = None
            self.opened = (key, drawing.open_base(asked))
        return self.opened[1]

    def make_room(self) -> None:
        """Let the base go where a run wants its device."""
        if self.opened is not None and is_wanted(self.device):
            from .. import devices
            self.opened = None
            gc.collect()
            devices.release(devices.device(self.device))


class _Paused(Exception):
    """The run that holds the device is paused: what it held there is free."""


@contextmanager
def on_device(device: str, waits: Callable[[str, str], None]) -> Iterator[str]:
    """Hold a device, or use that of a paused run; until then `waits(device, name of the run)` is called, once for each run."""
    told: list[str] = []

    def waiting(ahead: int) -> None:
        holder = holder_of(device)
        name = holder.name if holder is not None else ""
        if holder is not None and Run(holder).state == "paused":
            raise _Paused
        if told[-1:] != [name]:
            told.append(name)
            waits(device, name)

    with ExitStack() as stack:
        try:
            stack.enter_context(devices_locked([device], waiting))
        except _Paused:
            pass
        yield device


def device_of(asked: argparse.Namespace) -> str:
    """The device that a question is drawn on. Raises AprendizError."""
    from .. import devices
    return str(devices.device(drawing.read_settings(asked)[1].device))


def _changed(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def studio(asked: argparse.Namespace) -> int:
    """Answer questions until there are no more."""
    out = own_output()
    os.dup2(2, 1)  # what libraries print goes where errors go
    lock = threading.Lock()

    def tell(value: dict[str, Any]) -> None:
        with lock:
            print(json.dumps(value, ensure_ascii=False, default=str), file=out, flush=True)

    room = Studio(asked.generate.parse_args, tell)
    questions: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(_own_input(), questions), daemon=True).start()
    last = time.monotonic()
    while time.monotonic() - last < IDLE:
        try:
            question = questions.get(timeout=LOOK)
        except queue.Empty:
            room.make_room()
            continue
        if question is None:
            break
        room.answer(question)
        last = time.monotonic()
    return 0


def _own_input() -> Any:
    """Standard input under a number of its own: on Windows, libraries that look at it while a thread reads it would hang."""
    pipe = os.dup(0)
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    return open(pipe, encoding="utf-8", errors="replace")


def _listen(lines: Any, questions: queue.SimpleQueue[dict[str, Any] | None]) -> None:
    """Queue each question; None at the end."""
    for line in lines:
        try:
            question = json.loads(line)
        except ValueError:
            continue
        if isinstance(question, dict) and isinstance(question.get("arguments"), list):
            questions.put(question)
    questions.put(None)
