"""What our part costs ComfyUI: its load time, the server's loop, the page's frames.

    COMFYUI_DIR=folder COMFYUI_PYTHON=its python    python -m benchmarks.comfyui

writes `benchmarks/hosts/comfyui-speed.json`. Each figure is the median of several; the bounds are those of the design: 0.3 s to
load, 50 ms of the host's thread for any callback, 100 kB of scripts, 8 ms a frame with ten runs of ten thousand points.

The loop's figure is the longest time for which the server's event loop did not come round while an answer was made; the page's
is the time of scripts, styles, layout and painting of a frame, while each of ten panels gets a step every ten frames
(`frame_cpu_ms`: the mean of the processor's time, whatever else the machine does).
"""

from __future__ import annotations

import asyncio
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
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
LOAD = ("import importlib.util as u, sys, time, asyncio; sys.path[:0] = [{host!r}]; sys.argv = ['main.py', '--cpu']; "
        "import comfy.options; comfy.options.enable_args_parsing(); "
        "import utils.install_util, comfy_api.latest, folder_paths, nodes, server; "
        "began = time.perf_counter(); s = u.spec_from_file_location('door', {door!r} + '/__init__.py', "
        "submodule_search_locations=[{door!r}]); m = u.module_from_spec(s); sys.modules['door'] = m; s.loader.exec_module(m); "
        "e = asyncio.run(m.comfy_entrypoint()); n = asyncio.run(e.get_node_list()); loaded = time.perf_counter(); "
        "[one.GET_NODE_INFO_V1() for one in n]; print('FIGURES', loaded - began, time.perf_counter() - loaded)")
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


def load() -> dict[str, float]:
    """Milliseconds to load the door in a real ComfyUI, and to describe all nodes to a page."""
    code = LOAD.format(host=os.environ["COMFYUI_DIR"], door=str(ROOT))
    found = []
    for _ in range(5):
        done = subprocess.run([os.environ["COMFYUI_PYTHON"], "-c", code], capture_output=True, text=True, check=True,
                              cwd=os.environ["COMFYUI_DIR"])
        line = next(line for line in done.stdout.splitlines() if line.startswith("FIGURES"))
        found.append([1000 * float(word) for word in line.split()[1:]])
    loads, describes = zip(*found)
    return {"load_ms": round(statistics.median(loads), 1), "describe_nodes_ms": round(statistics.median(describes), 1)}


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
    from playwright.sync_api import sync_playwright

    from aprendiz.views import panel
    browser = next(found for name in BROWSERS if (found := shutil.which(name)))
    script = panel.SCRIPT.read_text(encoding="utf-8")
    with sync_playwright() as started:
        opened = started.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
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
        opened.close()
    return {"frame_ms": round(statistics.median(spent), 2), "frame_ms_95": round(spent[int(0.95 * len(spent))], 2),
            "frame_cpu_ms": round(taken / len(spent), 2),
            "scripts_kb": round(sum(file.stat().st_size for file in (ROOT / "web" / "aprendiz.js", panel.SCRIPT)) / 1000, 1)}


def main() -> None:
    """Measure and write."""
    sys.path.insert(0, str(ROOT / "tests"))
    with tempfile.TemporaryDirectory() as folder:
        os.environ["APRENDIZ_HOME"] = str(Path(folder) / "home")
        from aprendiz import run
        figures: dict[str, Any] = {**load(), **page()}
        ids = long_runs(Path(folder) / "output")
        run._remember(Path(folder) / "output")
        figures["loop_away_ms"] = loop(ids)
    RESULT.write_text(json.dumps(figures, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(json.dumps(figures, indent=2, sort_keys=True))


if __name__ == "__main__":
    main()
