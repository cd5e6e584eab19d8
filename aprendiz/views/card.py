"""One card, two programs: the host's own model makes room for a run, and a run for the pictures that the host draws meanwhile.

Where the card holds both nothing happens. Where it does not, the host's model leaves it before a worker starts. When the host
is asked for a picture, the runs on the card pause between two steps, which frees what they hold, and the model comes back; once
the host has been quiet for a while the model leaves again and the runs go on, exactly where they were. The same goes for the
computer's memory where the host draws on the processor. Standard library only.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from ..events import last_events, read_events
from ..run import Run

logger = logging.getLogger(__name__)

DRIVER = 1 << 30  # bytes that the driver keeps for a process of its own
SPARE = 2 << 30  # bytes beside the base where nobody counted: what is trained, activations, the driver's own
QUIET = 20.0  # seconds without a picture after which runs go on
PATIENCE = 180.0  # seconds for which a run is waited for: a step, and its pause
PLACES = ("auto", "cuda", "cuda:0", "mps", "xpu", "cpu")  # devices of a job, of which the host's own is one
WISHES = ("auto", "always", "never")  # when the host's model leaves: where memory does not hold both, or as the person has it


class HostModel(Protocol):
    """What a host can do with the model that it draws with."""

    def place(self) -> str:
        """What it draws with: cuda, mps, xpu or cpu."""

    def wish(self) -> str:
        """When it is to leave, one of `WISHES`."""

    def there(self) -> bool:
        """Whether it is in memory at all."""

    def free(self) -> int | None:
        """Bytes free where it draws; None where nobody knows."""

    def leave(self) -> None:
        """Take it off the card."""

    def come_back(self) -> None:
        """Put it on the card again."""

    def drawing(self) -> bool:
        """Whether the host is at a picture."""

    def lacks(self) -> bool:
        """Whether what it is about to draw with finds too little room as things are, though nothing was made to leave."""


@dataclass
class Card:
    """The card of a host, and who may use it. busy: the runs that are on it now."""

    model: HostModel
    busy: Callable[[], list[Run]]
    _away: bool = False
    _asked: dict[Run, int] = field(default_factory=dict)  # and how long its events were then, in bytes
    _clock: threading.Timer | None = None
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def before_run(self, run: Run, wanted: int | None = None) -> None:
        """Make room for a run that is about to begin, if it needs some; a picture that is being drawn is waited for.

        wanted: bytes that a step of it takes, where somebody has counted.
        """
        if not self._in_the_way(run, wanted):
            return
        _wait_while(self.model.drawing)
        with self._lock:
            if self.model.drawing() or not self._in_the_way(run, wanted):
                return
            logger.info("the host's model leaves the card for %s; it comes back when it is next asked for", run.name)
            self.model.leave()
            self._away = True

    def _in_the_way(self, run: Run, wanted: int | None) -> bool:
        if self._away or self.model.wish() == "never" or not on_card(run, self.model.place()) or not self.model.there():
            return False
        free = self.model.free()
        needs = guess(run) if wanted is None else wanted + DRIVER
        return self.model.wish() == "always" or (free is not None and free < needs)

    def before_drawing(self) -> None:
        """The host is about to draw: its model comes back, and runs that are in its way pause first."""
        with self._lock:
            self._stop_clock()
            if not self._away and not self.model.lacks():
                return self._start_clock()
            self._forget()
            asked = {run.folder for run in self._asked}
            for run in self.busy():
                if run.folder not in asked and on_card(run, self.model.place()) and run.state == "running":
                    self._asked[run] = run.events_file.stat().st_size
                    run.tell("pause", by="host")
            # One that still encodes pauses at its first step, which may be minutes away.
            learning = [run for run in self._asked if _learning(run)]
            _wait_while(lambda: any(run.state == "running" for run in learning))
            self.model.come_back()
            self._away = False
            self._start_clock()

    def go_on(self) -> None:
        """Once the host is quiet its model leaves again, and the runs that paused for it go on."""
        with self._lock:
            self._forget()
            paused = [run for run in self._asked if run.state == "paused"]
            if self.model.drawing():
                for run in paused:
                    run.tell("pause", by="host")  # or it would go on by itself
                return self._start_clock()
            if paused and self.model.wish() != "never":
                self.model.leave()
                self._away = True
            for run in paused:
                run.tell("resume")
                del self._asked[run]
            self._start_clock()

    def _forget(self) -> None:
        """Let go of the runs that ended, and of those that heard and run again: a person told them to."""
        self._asked = {run: since for run, since in self._asked.items()
                       if run.state == "paused" or (run.state == "running" and not _heard(run, since))}

    def _start_clock(self) -> None:
        if self._asked:
            self._clock = threading.Timer(QUIET, self.go_on)
            self._clock.daemon = True
            self._clock.start()

    def _stop_clock(self) -> None:
        if self._clock is not None:
            self._clock.cancel()
            self._clock = None


def _wait_while(busy: Callable[[], bool]) -> None:
    """Wait for the end of something, `PATIENCE` at most; it is looked at ten times a second."""
    until = time.monotonic() + PATIENCE
    while busy() and time.monotonic() < until:
        time.sleep(0.1)


def _learning(run: Run) -> bool:
    """Whether a run's present attempt has done a step."""
    return any(event["event"] == "step" and event["attempt"] == run.attempt for event in last_events(run.events_file))


def _heard(run: Run, since: int) -> bool:
    """Whether a run has paused, or was begun anew and knows nothing of it."""
    return any(event.get("event") in ("paused", "queued") for event in read_events(run.events_file, since)[0])


CARDS: dict[str, Card] = {}  # of hosts that execute their own scripts anew within one process


def on_card(run: Run, place: str) -> bool:
    """Whether a run trains where the host draws."""
    device = str(run.values().get("training", {}).get("device", "auto"))
    return device in PLACES and device.partition(":")[0] in ("auto", place)


def guess(run: Run) -> int:
    """Bytes that a run is likely to want where nobody counted, from the size of its base: twice its file, and something beside.

    Only whether the host's model leaves hangs on it; how the run fits what it finds is the worker's to plan.
    """
    base = Path(str(run.values().get("base", {}).get("path", "")))
    try:
        files = [base] if base.is_file() else list(base.rglob("*.safetensors")) if base.is_dir() else []
        return SPARE + 2 * sum(file.stat().st_size for file in files)
    except OSError:
        return SPARE
