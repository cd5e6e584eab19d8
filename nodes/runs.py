"""The runs that this host has started: a worker each, a thread that follows it, its result put where ComfyUI looks.

The host is never blocked by a worker: a node waits in short steps (`Watch.news`), and an interrupted node leaves at once
while the worker saves and ends. Nothing here touches ComfyUI but through the `host` module that is handed in.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..aprendiz.errors import AprendizError
from ..aprendiz.run import Run
from ..aprendiz.views import results
from ..aprendiz.views.card import on_card
from ..aprendiz.views.comfy_nodes import FOLDERS
from ..aprendiz.views.status import check_end
from ..aprendiz.worker.client import Worker, follow, start
from ..aprendiz.worker.messages import ENDS
from .sharing import share

logger = logging.getLogger(__name__)

GLANCE = 0.1  # seconds between two looks at whether the queue was interrupted


class Watch:
    """A run that is followed by a thread of its own until it ends, and its result placed then.

    worker: None where another program trains it. node, graph: what trains it on a page, by their ids.
    """

    def __init__(self, run: Run, worker: Worker | None, host: Any, node: str | None, graph: str | None) -> None:
        self.run, self.worker, self.host, self.node, self.graph = run, worker, host, node, graph
        self.news: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self.last: dict[str, Any] = {}
        self.reported = False  # whether a node has shown how it failed, or given its result
        self._thread = threading.Thread(target=self._follow, name=f"aprendiz {run.name}", daemon=True)

    def begin(self) -> None:
        """Tell the page of it and follow; it is among the watches by then, because the page asks at once how it stands."""
        self.host.send("run", {**shown(self.run, self.graph), "node": self.node})
        self._thread.start()

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return not self._thread.is_alive()

    def wait(self, seconds: float) -> bool:
        """Wait for its end; whether it came."""
        self._thread.join(seconds)
        return self.over

    def _follow(self) -> None:
        try:
            for event in follow(self.worker or self.run):
                self.last = event
                self.news.put(event)
        except OSError as error:  # the run's folder was removed, or its disk is gone
            logger.warning("The run %s can no longer be followed: %s", self.run.name, error)
        finally:
            if self.worker is not None:
                self.worker.let_go()
                self.worker.process.wait()
            self._place()
            self.host.send("end", {"id": run_id(self.run.folder), "name": self.run.name, "node": self.node,
                               "state": self.last.get("event", "failed") if self.last.get("event") in ENDS else "failed"})
            self.news.put(None)

    def _place(self) -> None:
        """Put the result where ComfyUI looks before anybody is told of the end: lists are read anew then."""
        if self.last.get("event") == "finished":
            try:
                place(self.run, self.host)
            except (AprendizError, OSError) as error:  # the node says it when it places it itself
                logger.warning("The result of %s was not placed: %s", self.run.name, error)


WATCHES: dict[Path, Watch] = {}
_TAKING = threading.Lock()


def take_up(run: Run, host: Any, node: str | None, keep_running: bool, graph: str | None = None) -> Watch:
    """Train a run, or follow it where somebody does already; a worker that was told to stop is waited for.

    node: the one of `graph` that the queue is at; None from the page, beside the queue. Raises RunError, and ComfyUI's exception
    where the queue is interrupted meanwhile.
    """
    known = WATCHES.get(run.folder)
    if known is not None and not known.over and run.folder in _STOPPING:
        while not known.wait(GLANCE):
            host.stop_here()
    with _TAKING:
        known = WATCHES.get(run.folder)
        if known is None or known.over:
            _STOPPING.discard(run.folder)
            worker = None
            if not run.is_locked:
                if on_card(run, host.place()):
                    if node is None:
                        host.free_models_soon()
                    else:
                        host.free_models()
                worker = start(run, keep_running=keep_running)
            known = WATCHES[run.folder] = Watch(run, worker, host, node, graph)
            known.begin()
            if on_card(run, host.place()):
                threading.Thread(target=share, args=(run, host, known.wait), daemon=True).start()
    return known


def state(run: Run) -> str:
    """A run's state; one that was just taken up is queued until its worker speaks."""
    told, watch = run.state, WATCHES.get(run.folder)
    worker = watch.worker if watch is not None else None
    if told not in ("stopped", "failed", "dead") or worker is None or not worker.alive or not worker.silent:
        return told
    return "queued"


_STOPPING: set[Path] = set()


def stop(run: Run) -> None:
    """Tell a run to save and end, without waiting for it."""
    _STOPPING.add(run.folder)
    run.tell("stop")


def attend(watch: Watch, host: Any, show: Callable[[dict[str, Any]], None]) -> None:
    """Stay with a run until it ends; `show` gets every event. Where the queue is interrupted the run is told to stop, and this
    leaves at once. Raises what the run failed with.
    """
    try:
        while True:
            host.stop_here()
            try:
                event = watch.news.get(timeout=GLANCE)
            except queue.Empty:
                continue
            if event is None:
                break
            show(event)
    except AprendizError:
        raise
    except BaseException:
        # ComfyUI's exception for an interrupted queue is an Exception in some versions and none in others.
        stop(watch.run)
        raise
    check_end(watch.run.name, watch.last)


def to_hand_out(identity: str, node: str | None) -> Run | None:
    """The finished run of a job, by its hash, whose result this node has not given yet; else one that it was asked for `again`.

    A node in the background is asked whenever a run ends, whichever: an unchanged graph is to give what it gave.
    """
    for watch in WATCHES.values():
        if watch.node in (node, None) and watch.run.state == "finished" and watch.run.first_event.get("job") == identity:
            if not watch.reported or watch.run.values()["output"]["again"]:
                return watch.run
    return None


def states() -> tuple[tuple[str, str], ...]:
    """The runs that this host started, with how they stand: what a node in the background waits to see changed."""
    return tuple(sorted((str(folder), "over" if watch.over else "runs") for folder, watch in WATCHES.items()))


def shown(run: Run, graph: str | None) -> dict[str, Any]:
    """What a page is told of a run, and of the graph whose node shows it."""
    return {"id": run_id(run.folder), "name": run.name, "graph": graph}


def run_id(folder: Path) -> str:
    """A name for a run's folder that tells nothing of where it is."""
    return hashlib.sha256(str(Path(folder).absolute()).encode()).hexdigest()[:16]


# The result


def place(run: Run, host: Any) -> dict[str, Path]:
    """Put a run's files where ComfyUI looks for them, never over another: where each stands, by its kind. Raises RunError."""
    return results.place(run, lambda kind: host.place_for(FOLDERS[kind]))


def last_samples(run: Run) -> list[Path]:
    """The sample pictures of the last step that has any."""
    drawn = [event for event in run.events() if event["event"] == "sample"]
    newest = max((event["step"] for event in drawn), default=None)
    files = [run.folder / event["file"] for event in drawn if event["step"] == newest]
    return [file for file in dict.fromkeys(files) if file.is_file()]


def losses(run: Run) -> list[float]:
    """The loss of each step."""
    return [event["loss"] for event in run.events() if event["event"] == "step" and event.get("loss") is not None]
