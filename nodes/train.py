"""The training nodes: a job from the widgets, a worker for it, its events on the node, its result for the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..aprendiz.formats.graph import keep
from ..aprendiz.run import Run
from ..aprendiz.settings import Job
from ..aprendiz.views.comfy import job_values
from ..aprendiz.views.comfy_nodes import BACKGROUND, nodes
from ..aprendiz.views.status import Status, check_end
from . import host, pictures, runs, sources


def read_job(id: str, base: Mapping[str, Any], dataset: Mapping[str, Any], given: Mapping[str, Any]) -> Job:
    """The job that a training node asks for. Raises ProblemsError."""
    values = job_values(nodes()[id].inputs, given)
    values.setdefault("method", {})["name"] = nodes()[id].method
    values["base"] = dict(base)
    values["data"] = dict(dataset["data"])
    return Job.read(values)


def train(id: str, node: str | None, base: Mapping[str, Any], dataset: Mapping[str, Any], given: Mapping[str, Any],
          graph: Mapping[str, Any]) -> tuple[Run, bool]:
    """Train a node's job to its end, or start it in the background: its run, and whether that has finished.

    graph: `workflow` and `prompt` as ComfyUI has them, which the files will carry.

    Raises AprendizError, and ComfyUI's exception where the queue was interrupted.
    """
    from ..aprendiz.data.folder import scan
    job = read_job(id, base, dataset, given)
    digest = scan(job.data, sources.heed).digest
    background = given.get("when") == BACKGROUND
    # Wanted `again`, a job is made anew each time; what the background has finished of it is to be had first.
    done = runs.to_hand_out(job.hash(digest), node) if background else None
    run = done or Run.create(host.runs_folder(), job, digest)
    before = runs.WATCHES.get(run.folder)
    if run.state == "finished":
        if before is not None:
            before.reported = True
        host.send("run", {**runs.shown(run, graph_id(graph)), "node": node})
        return run, True
    keep(run.folder, graph)
    if background and before is not None and before.over and before.last.get("event") == "failed" and not before.reported:
        before.reported = True
        check_end(run.name, before.last)
    watch = runs.take_up(run, host, node, job.output.keep_running, graph_id(graph))
    if background:
        return run, False
    runs.attend(watch, host, Teller(run, node).show)
    watch.reported = True
    return run, True


def graph_id(graph: Mapping[str, Any]) -> str | None:
    """The id of a queued graph; None where it came without."""
    return (graph.get("workflow") or {}).get("id")


class Teller:
    """Shows a run's events on a node: the bar, the last sample picture, a line of text."""

    def __init__(self, run: Run, node: str | None) -> None:
        self.run, self.display, self.status = run, host.Display(node), Status()

    def show(self, event: dict[str, Any]) -> None:
        """One event. Raises ComfyUI's exception where the queue was interrupted."""
        self.status.take(event)
        self.display.say(self.status.line)
        if event["event"] == "step":
            self.display.progress(self.status.done, self.status.total)
        elif event["event"] == "sample" and not event.get("index") and (self.run.folder / event["file"]).is_file():
            picture = pictures.open_rgb(self.run.folder / event["file"])
            self.display.progress(self.status.done, self.status.total, picture)


def result(id: str, run: Run, model: Any, clip: Any) -> list[Any]:
    """A finished run as the outputs of its node. What cannot be made is blocked: nothing behind it runs."""
    spec = nodes()[id]
    files = runs.place(run, host)
    lora, embedding = files.get("lora"), files.get("embedding")
    drawn = [pictures.open_rgb(file) for file in runs.last_samples(run)]
    made: dict[str, Any] = {"file": (lora or next(iter(files.values()), run.file)).name, "losses": {"loss": runs.losses(run)}}
    if drawn:
        made["samples"] = pictures.to_tensor(drawn)
    if embedding is not None:
        made["word"] = f"embedding:{embedding.stem}"
    if lora is not None:
        made["lora"] = host.load_tensors(lora)
        tuned = host.apply_lora(model, clip, made["lora"])
        made |= {"tuned_model": tuned[0], "tuned_clip": tuned[1]}
    return [host.blocked() if made.get(one.id) is None else made[one.id] for one in spec.outputs]


def nothing_yet(id: str) -> list[Any]:
    """The outputs of a node whose run goes on in the background."""
    return [host.blocked() for _ in nodes()[id].outputs]
