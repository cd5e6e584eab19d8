"""A run in one line, and how it ended: what a node, a tab or a status bar shows while it lives. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import AprendizError, Problem, ProblemsError, RunError
from ..texts import say
from .terminal import CACHING, clock, words

SMOOTH = 0.9  # of the loss and of the pace that are shown, for each event


class Status:
    """Follows a run's events; `line` is what is happening, (done, total) how far it is."""

    def __init__(self) -> None:
        self.line = ""
        self.done, self.total = 0, 1
        self._loss: float | None = None
        self._pace: float | None = None  # seconds a step
        self._before: tuple[int, float] | None = None

    def take(self, event: Mapping[str, Any]) -> None:
        """One event, in order."""
        kind = event.get("event")
        if kind == "step":
            self._step(event)
        elif kind == "caching":
            what = str(event.get("what", ""))
            title = say(CACHING[what]) if what in CACHING else what
            self.line = f"{title} {event.get('done', 0)}/{event.get('total', 0)}"
        elif kind == "queued" and not event.get("ahead"):
            self.line = say("Starting")
        else:
            self.line = words(event).splitlines()[-1] if words(event) else self.line

    def _step(self, event: Mapping[str, Any]) -> None:
        step, now = event["step"], event["time"]
        self.done, self.total = step, event.get("steps") or step
        if event.get("loss") is not None:
            self._loss = event["loss"] if self._loss is None else SMOOTH * self._loss + (1 - SMOOTH) * event["loss"]
        if self._before and step > self._before[0]:
            pace = (now - self._before[1]) / (step - self._before[0])
            self._pace = pace if self._pace is None else SMOOTH * self._pace + (1 - SMOOTH) * pace
        self._before = (step, now)
        parts = [say("step {step} of {steps}", step=step, steps=self.total)]
        if self._loss is not None:
            parts.append(say("loss {loss}", loss=f"{self._loss:.4f}"))
        if event.get("pictures_per_second"):
            parts.append(say("{speed} pictures/s", speed=f"{event['pictures_per_second']:.1f}"))
        if self._pace is not None:
            parts.append(say("{time} left", time=clock(self._pace * (self.total - step))))
        self.line = " · ".join(parts)


def check_end(name: str, last: Mapping[str, Any]) -> None:
    """Raises what a run failed with, or that it was stopped; `last` is its last event."""
    if last.get("event") == "finished":
        return
    if last.get("event") == "stopped":
        raise RunError("{name} was stopped after step {step} and can go on from there: start the same job again.",
                       name=name, step=last.get("step", 0))
    raise failure(name, last)


def failure(name: str, last: Mapping[str, Any]) -> AprendizError:
    """A run's last event as the error that a person is shown."""
    told = [problem for problem in last.get("problems", []) if not problem.get("warning")]
    if told:
        return ProblemsError([Problem(one["template"], one.get("fields", {}), one.get("where", "")) for one in told])
    return RunError("The run {name} can no longer be followed: its folder is gone. Start its job again.", name=name)
