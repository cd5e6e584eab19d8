"""What the page asks for, below /aprendiz: the runs, their events and pictures; and what it may tell them.

A run is named by a digest of its folder, and only folders of known runs are looked into: no path comes from outside. Posts of
another origin are refused. Work that reads the disk is done beside the server's loop.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..aprendiz.errors import AprendizError, Problem, ProblemsError
from ..aprendiz.events import read_events
from ..aprendiz.run import Run, find_runs
from ..aprendiz.settings import SCHEMA, Job
from ..aprendiz.texts import label, nearest
from ..aprendiz.views.comfy import widget_values
from ..aprendiz.views.comfy_nodes import node_id, nodes
from ..aprendiz.views.panel import (
    NO_COMMAND,
    NO_FILE_MANAGER,
    NO_INPUT_FOLDER,
    NO_JSON,
    NO_NODE,
    NO_OFFSET,
    NO_PICTURE,
    NO_SUCH_RUN,
    NOT_TO_GO_ON,
    ONLY_JSON,
    ONLY_THERE,
    OTHER_PAGE,
    SCRIPT,
    event_in,
    texts,
)
from ..aprendiz.worker.messages import COMMANDS
from . import host, runs, sources

MOST_EVENTS = 20000   # that one answer holds
PICTURES = {".png": "image/png", ".jpg": "image/jpeg", ".webp": "image/webp"}
FOLDER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,120}")  # a plain name, nothing that leads elsewhere
TAIL = 1 << 14        # bytes of a run's events that the list reads
_registered = False
_known: dict[str, Path] = {}


class Refused(AprendizError):
    """An answer other than 200: status and sentence."""

    def __init__(self, status: int, template: str) -> None:
        super().__init__(template)
        self.status = status


def register() -> None:
    """Add the routes to ComfyUI's server, once."""
    global _registered
    from server import PromptServer
    if _registered or getattr(PromptServer, "instance", None) is None:
        return
    _registered = True
    table = PromptServer.instance.routes
    table.get("/aprendiz/panel.js")(answer(panel))
    table.get("/aprendiz/texts")(answer(panel_texts))
    table.get("/aprendiz/nodes")(answer(node_table))
    table.get("/aprendiz/runs")(answer(run_list))
    table.get("/aprendiz/runs/{id}/events")(answer(run_events))
    table.get("/aprendiz/runs/{id}/job")(answer(run_job))
    table.get("/aprendiz/runs/{id}/file/{path:.+}")(answer(run_file))
    table.post("/aprendiz/runs/{id}/tell")(answer(tell))
    table.post("/aprendiz/ready")(answer(ready))


def answer(work: Callable[[Any], Awaitable[Any]]) -> Callable[[Any], Awaitable[Any]]:
    """A handler that answers mistakes with a sentence, in the person's language."""
    from aiohttp import web

    async def handle(request: Any) -> Any:
        await asyncio.to_thread(host.follow_language)
        try:
            return await work(request)
        except Refused as refused:
            return web.json_response({"error": str(refused)}, status=refused.status)
        except AprendizError as error:
            return web.json_response({"error": str(error)}, status=400)

    return handle


# Pure parts, which are tested without a server


def same_origin(headers: Any, own_host: str) -> bool:
    """Whether a request comes from the host's own page, or from no page at all."""
    if headers.get("Sec-Fetch-Site", "same-origin") not in ("same-origin", "none"):
        return False
    origin = headers.get("Origin")
    return origin is None or urlsplit(origin).netloc == own_host


def find(id: str) -> Run:
    """The run of a name. Raises Refused."""
    folder = _known.get(id)
    if folder is None or not (folder / "job.json").is_file():
        _known.update({runs.run_id(run.folder): run.folder for run in all_runs()})
        folder = _known.get(id)
    if folder is None or not (folder / "job.json").is_file():
        raise Refused(404, NO_SUCH_RUN)
    return Run(folder)


def all_runs() -> list[Run]:
    """Every run of the output folders that were ever used, changed last first."""
    return find_runs()


def inside(folder: Path, path: str) -> Path:
    """A picture within a run's folder. Raises Refused for everything else, links that lead out included."""
    root = folder.resolve()
    file = (root / path).resolve()
    if not file.is_relative_to(root) or file.suffix.lower() not in PICTURES or not file.is_file():
        raise Refused(404, NO_PICTURE)
    return file


def summary(run: Run) -> dict[str, Any]:
    """One line of the list."""
    size = run.events_file.stat().st_size
    last, _ = read_events(run.events_file, max(size - TAIL, 0))
    steps = [event for event in last if event.get("event") == "step"]
    pictures = [event for event in last if event.get("event") == "sample"]
    values = run.values()
    base = Path(str(values.get("base", {}).get("path", ""))).name
    return {"id": runs.run_id(run.folder), "name": run.name, "state": runs.state(run),
            "step": steps[-1]["step"] if steps else run.step,
            "steps": steps[-1].get("steps") if steps else values.get("training", {}).get("steps"),
            "method": values.get("method", {}).get("name"), "rank": values.get("method", {}).get("rank"), "base": base,
            "picture": pictures[-1]["file"] if pictures else None, "changed": last[-1].get("time") if last else None}


def events_since(run: Run, offset: int, language: str) -> dict[str, Any]:
    """Events from a byte offset on, the offset to ask from next time, and when the run was made.

    The last tells a run that was deleted and made anew under the same name: its offsets are others.
    """
    found, after = read_events(run.events_file, max(offset, 0))
    shown = found if len(found) <= MOST_EVENTS else thinned(found)
    return {"events": [event_in(event, language) for event in shown], "offset": after, "state": runs.state(run), "name": run.name,
            "began": run.first_event.get("time")}


def thinned(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Fewer steps of a very long run; everything else is kept."""
    every = -(-len(events) // MOST_EVENTS)
    return [event for i, event in enumerate(events) if event.get("event") != "step" or i % every == 0]


def as_node(run: Run, speaks: str = "en") -> dict[str, Any]:
    """The training node that asks for this run, with those before it: their types and their widgets' values; and what was set."""
    values = run.values()
    id = node_id(str(values.get("method", {}).get("name", "lora")))
    if id not in nodes():
        raise Refused(404, NO_NODE)
    asked = as_widgets(id, values)
    # Not the widgets' defaults: the job of a run says what suits its method where nothing was set.
    usual = as_widgets(id, Job.read({"method": {"name": values["method"]["name"]}, "data": {"path": "."}}).values())
    changed = {name: {one: value for one, value in inner.items() if value != usual[name].get(one)}
               for name, inner in asked.items()}
    path = values.get("base", {}).get("path")
    return {"type": id, "widgets": asked[id], "job": values, "options": changed["AprendizDatasetOptions"],
            "base": {**asked["AprendizBase"], "base": path if path == "micro" else "micro",
                     "elsewhere": "" if path == "micro" else path},
            "dataset": {**asked["AprendizDatasetFolder"], "folder": values.get("data", {}).get("path") or ""},
            "settings": [[label(one.label, speaks), written_out(changed[name][one.id])] for name in asked
                         for one in nodes()[name].inputs if one.id in changed[name]]}


def as_widgets(id: str, values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """A job's values as the widgets of a training node and of those before it."""
    return {name: widget_values(nodes()[name].inputs, values)
            for name in ("AprendizBase", "AprendizDatasetFolder", "AprendizDatasetOptions", id)}


def written_out(value: Any) -> str:
    """A widget's value as it is read."""
    return {True: "✓", False: "✗"}[value] if isinstance(value, bool) else f"{value:g}" if isinstance(value, float) else str(value)


def ready_for(asked: Any) -> dict[str, Any]:
    """Nodes for a folder of pictures that was just uploaded below the input folder. Raises Refused for all but a plain name."""
    name = asked.get("folder") if isinstance(asked, dict) else None
    if not isinstance(name, str) or not FOLDER.fullmatch(name) or not (host.input_folder() / name).is_dir():
        raise Refused(404, NO_INPUT_FOLDER)
    values = sources.ready_values(name)
    return {"type": node_id("lora"), "widgets": widget_values(nodes()[node_id("lora")].inputs, values),
            "base": {"base": values["base"]["path"]},
            "dataset": {**widget_values(nodes()["AprendizDatasetFolder"].inputs, values), "folder": name}}


def written(value: Any) -> str:
    """A value as JSON, long lists item by item: written in one go, they would keep the interpreter from the server's loop."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)}: {written(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(json.dumps(item) for item in value) + "]"
    return json.dumps(value)


def widgets() -> dict[str, Any]:
    """What the page has to know of our nodes: order, which are folded, on what they depend; and the schema's version."""
    shown = {id: [{"id": one.id, "advanced": one.advanced, "when": one.when, "default": one.default} for one in node.widgets]
             for id, node in nodes().items()}
    return {"schema": SCHEMA, "nodes": shown}


def command(run: Run, word: str) -> None:
    """Tell a run something, or take it up again. Raises Refused."""
    if word == "start":
        if runs.state(run) not in ("stopped", "failed", "dead", "queued"):
            raise Refused(409, NOT_TO_GO_ON)
        runs.take_up(run, host, None, run.job().output.keep_running)
    elif word == "stop":
        runs.stop(run)
    elif word in COMMANDS:
        run.tell(word)
    else:
        raise Refused(400, NO_COMMAND)


def open_folder(run: Run) -> None:
    """Show a run's folder in the system's file manager. Raises ProblemsError where there is none."""
    try:
        if sys.platform == "win32":
            os.startfile(run.folder)
        else:
            subprocess.Popen(["open" if sys.platform == "darwin" else "xdg-open", str(run.folder)], stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    except OSError as error:
        raise ProblemsError([Problem(NO_FILE_MANAGER, {"folder": str(run.folder)})]) from error


# Handlers


def language(request: Any) -> str:
    """The language a page asks for."""
    return nearest(request.query.get("language", "en"))


async def panel(request: Any) -> Any:
    """The run panel's script."""
    from aiohttp import web
    return web.FileResponse(SCRIPT, headers={"Content-Type": "text/javascript; charset=utf-8", "Cache-Control": "no-cache"})


async def told(work: Callable[..., Any], *given: Any) -> Any:
    """An answer in JSON; the work and its writing down are done beside the server's loop, which other pages wait for."""
    from aiohttp import web
    text = await asyncio.to_thread(lambda: written(work(*given)))
    return web.Response(text=text, content_type="application/json")


async def panel_texts(request: Any) -> Any:
    """The texts of the page parts."""
    return await told(texts, language(request))


async def node_table(request: Any) -> Any:
    """What the page has to know of our nodes."""
    return await told(widgets)


def run_lines() -> list[dict[str, Any]]:
    """The runs, a line each."""
    found = []
    for run in all_runs()[:200]:
        _known[runs.run_id(run.folder)] = run.folder
        try:
            found.append(summary(run))
        except (OSError, AprendizError, ValueError):
            continue  # removed or half-written while it was looked at
    return found


async def run_list(request: Any) -> Any:
    """The runs."""
    return await told(run_lines)


async def run_events(request: Any) -> Any:
    """A run's events since an offset."""
    try:
        offset = int(request.query.get("offset", "0"))
    except ValueError:
        raise Refused(400, NO_OFFSET) from None
    id, speaks = request.match_info["id"], language(request)
    return await told(lambda: events_since(find(id), offset, speaks))


async def run_job(request: Any) -> Any:
    """A run's settings, as a node too."""
    id, speaks = request.match_info["id"], language(request)
    return await told(lambda: as_node(find(id), speaks))


async def run_file(request: Any) -> Any:
    """A picture of a run."""
    from aiohttp import web
    id, path = request.match_info["id"], request.match_info["path"]
    file = await asyncio.to_thread(lambda: inside(find(id).folder, path))
    return web.FileResponse(file, headers={"Content-Type": PICTURES[file.suffix.lower()], "X-Content-Type-Options": "nosniff"})


async def posted(request: Any) -> Any:
    """The JSON of a post. Raises Refused for other pages' posts and for anything else than JSON."""
    if not same_origin(request.headers, request.host):
        raise Refused(403, OTHER_PAGE)
    if request.content_type != "application/json":
        raise Refused(415, ONLY_JSON)
    try:
        return await request.json()
    except json.JSONDecodeError:
        raise Refused(400, NO_JSON) from None


async def ready(request: Any) -> Any:
    """Nodes for a folder of pictures that was dropped."""
    return await told(ready_for, await posted(request))


async def tell(request: Any) -> Any:
    """Steer a run: pause, resume, stop, save, sample, start (go on), open (its folder, asked from this machine alone)."""
    asked = await posted(request)
    word = asked.get("command") if isinstance(asked, dict) else None
    run = await asyncio.to_thread(find, request.match_info["id"])
    if word == "open":
        if request.remote not in ("127.0.0.1", "::1"):
            raise Refused(403, ONLY_THERE)
        await asyncio.to_thread(open_folder, run)
    else:
        await asyncio.to_thread(command, run, str(word))
    return await told(lambda: {"state": runs.state(run)})
