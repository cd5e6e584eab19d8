"""What our part costs ComfyUI: its load time, a worker's start, the server's loop, the page's frames.

    COMFYUI_DIR=folder COMFYUI_PYTHON=its python    python -m benchmarks.comfyui

writes `benchmarks/hosts/comfyui-speed.json`. Each figure is the median of several; the bounds are those of the design: 0.3 s to
load, 8 s to start a worker, 50 ms of the host's thread for any callback, 100 kB of scripts, 8 ms a frame with ten runs of ten
thousand points. A name behind it (`load`, `worker`, `page`, `loop`) measures that one anew and leaves the others.

`load`: `load_ms` is our own part, with bytecode in place and the nodes' descriptions included. The host's log counts more of
its own under our name: where no other extension came before, the import of what it reads `pyproject.toml` with (`reader_ms`);
and where its heap has just grown enough, a collection of all of it (`collection_ms`, how long one takes).

`worker`: what a training node's own client (`nodes/runs.py`) adds to a run on micro with eight pictures, in ComfyUI's Python
with ComfyUI's modules loaded, without its server. `added_s`: from the node's call until it has its result, less the steps
(`step_s`, the median) and the sample pictures (`drawing_s`); within it, `ready_s` until the worker has its libraries and
`opened_s` until micro is open. Read from the times that the run's own events tell. Caches are empty, no file is read for the
first time.

The loop's figure is the longest time for which the server's event loop did not come round while an answer was made; the page's
is the time of scripts, styles, layout and painting of a frame, while each of ten panels gets a step every ten frames
(`frame_cpu_ms`: the mean of the processor's time, whatever else the machine does).
"""

from __future__ import annotations

import asyncio
import gc
import importlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "hosts" / "comfyui-speed.json"
STEPS, RUNS, FRAMES = 10_000, 10, 60
LESSON = 30  # steps of a run whose start is measured
PANELS = """async ([steps, runs, texts]) => {
    document.body.style.cssText = 'margin:0;display:grid;grid-template-columns:repeat(5,420px)'
    window.panels = [...Array(runs)].map((_, i) => { const panel = document.createElement('aprendiz-run')
        panel.texts = texts; panel.name = `run ${i}`; panel.state = 'running'; document.body.append(panel)
        panel.take([...Array(steps)].map((_, n) => ({ event: 'step', attempt: 1, step: n + 1, steps: 2 * steps, time: n / 3,
            loss: 0.1 + 0.05 * Math.sin(n / 50) + 0.02 * ((n * 7919) % 101) / 101 })))
        return panel })
    await new Promise(done => setTimeout(done, 2000)) }"""
DRAW = """async ([steps, runs, frames]) => {
    const channel = new MessageChannel(), spent = []
    let start = 0, number = 0
    // What is posted at a frame's beginning arrives when its scripts, styles, layout and painting are done.
    channel.port1.onmessage = () => spent.push(performance.now() - start)
    const step = n => ({ event: 'step', attempt: 1, step: steps + n + 1, steps: 2 * steps, time: (steps + n) / 3, loss: 0.1 })
    await new Promise(done => {
        const first = () => {                          // before the panels' own work, in every frame
            start = performance.now()
            channel.port2.postMessage(0)
            if (number === runs * frames) return done()
            requestAnimationFrame(first)
            if (number++ % runs === 0) for (const panel of panels) panel.take([step(number)])
        }
        requestAnimationFrame(first)
    })
    return spent }"""


def in_host(what: str, times: int) -> list[dict[str, float]]:
    """Figures that this file measures in ComfyUI's Python, each time in a new process; the first, which compiles, is left out."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": folder, "PYTHONDONTWRITEBYTECODE": ""}
        for _ in range(times + 1):
            done = subprocess.run([os.environ["COMFYUI_PYTHON"], __file__, what], capture_output=True, text=True, check=True,
                                  cwd=os.environ["COMFYUI_DIR"], env=environment)
            line = next(line for line in done.stdout.splitlines() if line.startswith("FIGURES"))
            found.append(json.loads(line.partition(" ")[2]))
    return found[1:]


def middle(found: list[dict[str, float]], digits: int) -> dict[str, float]:
    """The median of each figure."""
    return {name: round(statistics.median(one[name] for one in found), digits) for name in found[0]}


def host_modules() -> None:
    """What ComfyUI has loaded before it comes to extensions."""
    sys.path[:0] = [os.getcwd()]
    sys.argv[1:] = ["--cpu"]
    import comfy.options
    comfy.options.enable_args_parsing()
    for name in ("utils.install_util", "comfy_api.latest", "folder_paths", "nodes", "server"):
        importlib.import_module(name)


def load_here() -> dict[str, float]:
    """Load the door as ComfyUI does, in milliseconds."""
    host_modules()
    gc.collect()
    began = time.perf_counter()
    gc.collect()
    collected = time.perf_counter()
    importlib.import_module("comfy_config.config_parser")
    read = time.perf_counter()
    gc.disable()  # whether a collection of the host's heap falls into this is chance, and told apart
    from comfy_door import door
    extension = asyncio.run(door().comfy_entrypoint())
    found = asyncio.run(extension.get_node_list())
    for node in found:
        node.GET_SCHEMA()
    loaded = time.perf_counter()
    for node in found:
        node.GET_NODE_INFO_V1()
    described = time.perf_counter()
    return {"load_ms": 1000 * (loaded - read), "describe_nodes_ms": 1000 * (described - loaded),
            "reader_ms": 1000 * (read - collected), "collection_ms": 1000 * (collected - began)}


def worker_here() -> dict[str, float]:
    """Train as a node does and read from the events what was no step, in seconds."""
    host_modules()
    from comfy_door import Host, door
    runs, settings, run_module = door("nodes.runs"), door("aprendiz.settings"), door("aprendiz.run")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["APRENDIZ_HOME"] = str(Path(folder) / "home")
        door("aprendiz.micro.pictures").write_pictures(Path(folder) / "pictures", "fish", count=8)
        job = settings.Job.read({"data": str(Path(folder) / "pictures"), "steps": LESSON, "device": "cpu", "name": "fish"})
        run = run_module.Run.create(Path(folder) / "output", job, "digest")
        host = Host(Path(folder) / "host")
        began = time.time()
        watch = runs.take_up(run, host, None, False)
        runs.attend(watch, host, lambda event: None)
        runs.place(run, host)
        ended = time.time()
        events = run.events()
    times = [began, *(event["time"] for event in events if event["attempt"]), ended]
    kinds = [*(event["event"] for event in events[1:]), "end"]
    spent = [(kind, later - earlier) for kind, earlier, later in zip(kinds, times, times[1:])]
    steps = [seconds for kind, seconds in spent if kind == "step"]
    drawn = sum(seconds for kind, seconds in spent if kind == "sample")
    step = statistics.median(steps)
    ready = next(event["time"] for event in events if event["event"] == "ready")
    opened = next(event["time"] for event in events if event["event"] == "caching")
    return {"ready_s": ready - began, "opened_s": opened - began, "step_s": step, "drawing_s": drawn,
            "added_s": ended - began - LESSON * step - drawn}


def load() -> dict[str, float]:
    """Milliseconds to load the door in a real ComfyUI, and to describe all nodes to a page."""
    return middle(in_host("load", 5), 1)


def worker() -> dict[str, dict[str, float]]:
    """Seconds that a worker's start and end add to a training."""
    return {"worker": middle(in_host("worker", 3), 2)}


def long_runs(output: Path) -> list[str]:
    """Ten runs of ten thousand steps below an output folder; their names on the page."""
    from comfy_door import door
    recorded = ROOT / "tests" / "recorded_run"
    head = [json.loads(line) for line in (recorded / "events.jsonl").read_text(encoding="utf-8").splitlines()]
    step = next(event for event in head if event["event"] == "step")
    ids = []
    for number in range(RUNS):
        folder = output / "aprendiz" / f"long-{number}"
        folder.mkdir(parents=True)
        shutil.copyfile(recorded / "job.json", folder / "job.json")
        events = [*head[:4], *({**step, "step": n, "steps": STEPS} for n in range(1, STEPS + 1))]
        (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")
        ids.append(door("nodes.runs").run_id(folder))
    return ids


async def away(work: Callable[[], Awaitable[Any]]) -> float:
    """The longest time in milliseconds for which the loop did not come round while something was answered."""
    longest, last, over = 0.0, time.perf_counter(), False

    async def watch() -> None:
        nonlocal longest, last
        last = time.perf_counter()
        while not over:
            await asyncio.sleep(0)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    watcher = asyncio.create_task(watch())
    await asyncio.sleep(0.05)
    longest = 0.0
    await work()
    over = True
    await watcher
    return 1000 * longest


def loop(ids: list[str]) -> dict[str, float]:
    """The event loop's longest absence for each of our answers."""
    from comfy_door import door
    routes = door("nodes.routes")

    async def json_of(work: Callable[..., Any], *given: Any) -> str:
        return await asyncio.to_thread(lambda: routes.written(work(*given)))  # as `routes.told`, which needs aiohttp

    asked: dict[str, Callable[[], Awaitable[Any]]] = {
        "runs": lambda: json_of(routes.run_lines), "texts": lambda: json_of(routes.texts, "es"),
        "nodes": lambda: json_of(routes.widgets), "job": lambda: json_of(lambda: routes.as_node(routes.find(ids[0]))),
        "events_of_10000_steps": lambda: json_of(lambda: routes.events_since(routes.find(ids[0]), 0, "es"))}
    return {name: round(statistics.median(asyncio.run(away(work)) for _ in range(5)), 2) for name, work in asked.items()}


def busy(client: Any) -> float:
    """Milliseconds of the processor that the page's thread has had."""
    told = {one["name"]: one["value"] for one in client.send("Performance.getMetrics")["metrics"]}
    return 1000 * float(told["TaskDuration"])


def page() -> dict[str, Any]:
    """Milliseconds of a frame with ten panels of ten thousand points, each drawing one step more."""
    from aprendiz.views import panel

    from .browser import browser
    script = panel.SCRIPT.read_text(encoding="utf-8")
    with browser("--disable-gpu") as opened:
        shown = opened.new_page(viewport={"width": 2200, "height": 1400})
        shown.set_content("<!doctype html><body></body>")
        shown.add_script_tag(content=script, type="module")
        shown.wait_for_function("!!customElements.get('aprendiz-run')")
        client = shown.context.new_cdp_session(shown)
        client.send("Performance.enable", {"timeDomain": "threadTicks"})
        shown.evaluate(PANELS, [STEPS, RUNS, panel.texts("en")])
        before = busy(client)
        spent = sorted(shown.evaluate(DRAW, [STEPS, RUNS, FRAMES]))
        taken = busy(client) - before
    return {"frame_ms": round(statistics.median(spent), 2), "frame_ms_95": round(spent[int(0.95 * len(spent))], 2),
            "frame_cpu_ms": round(taken / len(spent), 2),
            "scripts_kb": round(sum(file.stat().st_size for file in (ROOT / "web" / "aprendiz.js", panel.SCRIPT)) / 1000, 1)}


def answers() -> dict[str, Any]:
    """How long the server's loop is away for each of our answers."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["APRENDIZ_HOME"] = str(Path(folder) / "home")
        from aprendiz import run
        ids = long_runs(Path(folder) / "output")
        run._remember(Path(folder) / "output")
        return {"loop_away_ms": loop(ids)}


PARTS: dict[str, Callable[[], dict[str, Any]]] = {"load": load, "worker": worker, "page": page, "loop": answers}


def main(asked: list[str]) -> None:
    """Measure and write."""
    figures = json.loads(RESULT.read_text(encoding="utf-8")) if asked else {}
    for name in asked or PARTS:
        figures |= PARTS[name]()
    RESULT.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2, sort_keys=True))


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    if sys.path[1] == str(Path(__file__).parent):  # run by its path, in ComfyUI's Python
        del sys.path[1]
        print("FIGURES", json.dumps({"load": load_here, "worker": worker_here}[sys.argv[1]]()))
    else:
        main(sys.argv[1:])
