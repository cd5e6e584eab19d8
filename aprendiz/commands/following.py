"""runs, watch, tell: the runs there are, whichever door started them."""

from __future__ import annotations

import argparse
from typing import Any

from ..errors import RunError
from ..run import find_run, find_runs
from ..texts import say
from ..views.terminal import STATES, Screen, own_output, put, put_json
from ..worker.client import follow
from .training import quoted, tell_result

ALIVE = ("queued", "running", "paused")


def runs(asked: argparse.Namespace) -> int:
    """The runs there are."""
    found = find_runs(asked.folder)
    for run in found:
        steps = [event for event in run.events() if event["event"] == "step"]
        step, total = (steps[-1]["step"], steps[-1].get("steps")) if steps else (0, None)
        if asked.json:
            put_json({"name": run.name, "state": run.state, "step": step, "steps": total, "folder": str(run.folder)})
        else:
            put(f"{run.name:30} {say(STATES[run.state]):10} {step:>7}/{total or '?':<7} {run.folder}")
    if not found and not asked.json:
        put(say("There are no runs yet."))
    return 0


def watch(asked: argparse.Namespace) -> int:
    """Follow a run to its end; ending this leaves the run alone. 0 finished, 1 failed, 130 stopped."""
    run = find_run(asked.run)
    screen = Screen(own_output(), asked.json)
    last: dict[str, Any] = {}
    for last in follow(run):
        screen.show(last)
    screen.close()
    if last.get("event") == "failed":
        for problem in last.get("problems", []):
            put(say(problem["template"], **problem["fields"]), error=True)
    elif last.get("event") == "finished" and not asked.json:
        tell_result(run, screen)
    return {"finished": 0, "stopped": 130}.get(str(last.get("event")), 1)


def tell(asked: argparse.Namespace) -> int:
    """Steer a run."""
    run = find_run(asked.run)
    if run.state == "finished":
        raise RunError("{name} has finished, so nothing can be told to it.", name=run.name)
    if run.state not in ALIVE:
        raise RunError("{name} is not being trained ({state}), so nothing can be told to it. Go on with: "
                       "python -m aprendiz resume {folder}",
                       name=run.name, state=say(STATES[run.state]), folder=quoted(run.folder))
    run.tell(asked.what)
    return 0
