"""What the page costs: a folder of 5,000 pictures, and what our tab adds to a host's page.

    python -m benchmarks.page folder
    WEBUI_DIR=folder WEBUI_PYTHON=its python python -m benchmarks.page host

write `benchmarks/hosts/page-speed.json`, each leaving what the other measured. Every figure is the median of several. The bounds
are those of the design: 3 s until 5,000 pictures are listed, 0.2 s that opening the tab adds to the host's page.

`folder`: `answer_s`, the route alone; `listed_s`, in Chromium, from the folder's name standing in its field until the first
pictures with their captions are there and counted (the page waits 0.6 s for more typing, which is in it). `scroll_frame_ms`:
scripts, styles, layout and painting of a frame while 600 of them are scrolled through (95 in 100 take less than
`scroll_frame_95_ms`).

`host`: two hosts, one of them with our extension, are asked in turns. `loaded_s`: from the request until the page has its last
change and stays as it is for a second. `tab_s`: from the click on our tab until it is drawn with its runs. `busy`: the machine's
load, beside which the figures are to be read.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

from .browser import browser

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "hosts" / "page-speed.json"
PICTURES, TIMES, LOADS = 5000, 5, 9
# From the navigation's start until the last change of the page, once it stays as it is for a second.
SETTLED = """() => new Promise(done => {
    let last = performance.now()
    new MutationObserver(() => { last = performance.now() }).observe(document, { subtree: true, childList: true })
    const look = () => document.querySelector('#txt2img_prompt textarea') && performance.now() - last > 1000
        ? done(last / 1000) : setTimeout(look, 50)
    look() })"""
SCROLL = """async frames => {
    const channel = new MessageChannel(), spent = []
    let start = 0
    channel.port1.onmessage = () => spent.push(performance.now() - start)
    const step = scrollY => new Promise(done => requestAnimationFrame(() => {
        start = performance.now()
        channel.port2.postMessage(0)  // arrives when the frame is done
        window.scrollTo(0, scrollY)
        done() }))
    for (let frame = 0; frame < frames; frame++) await step(document.documentElement.scrollHeight * frame / frames)
    return spent }"""


def write_pictures(folder: Path) -> Path:
    """5,000 pictures with captions of their own."""
    from PIL import Image
    folder.mkdir()
    data = BytesIO()
    Image.effect_noise((512, 384), 60).convert("RGB").save(data, "JPEG", quality=80)
    for number in range(PICTURES):
        (folder / f"p{number:05}.jpg").write_bytes(data.getvalue())
        (folder / f"p{number:05}.txt").write_text(f"a fish, number {number}, red, small", encoding="utf-8")
    return folder


@contextmanager
def standalone(place: Path) -> Iterator[str]:
    """The page's address."""
    command = [sys.executable, "-m", "aprendiz", "app", "--out", str(place / "out"), "--folder", str(place)]
    environment = {**os.environ, "APRENDIZ_HOME": str(place / "user"), "APRENDIZ_LANGUAGE": "en"}
    with open(place / "log.txt", "wb") as log, subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True,
                                                                env=environment) as server:
        assert server.stdout is not None
        said = next(line for line in server.stdout if "http://" in line)
        yield said[said.index("http://"):].split()[0]
        server.terminate()


def of_folder(place: Path) -> dict[str, float]:
    """How long a folder of 5,000 pictures takes to be listed, and a frame of scrolling through it."""
    from aprendiz.views.desk import Desk, at_once
    from aprendiz.views.routes import Request, Routes
    folder = write_pictures(place / "pictures")
    routes = Routes(Desk(lambda: place / "out", at_once([place])))
    body = json.dumps({"form": {"method": "lora", "controls": {"aprendiz-data-path": str(folder)}}, "count": 60}).encode()
    answers, listed = [], []
    for _ in range(TIMES):
        began = time.perf_counter()
        assert routes.handle(Request("POST", "pictures", body=body)).status == 200
        answers.append(time.perf_counter() - began)
    with standalone(place) as address, browser() as chromium:
        for _ in range(TIMES):
            page = chromium.new_page(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
            page.goto(address)
            page.locator("#aprendiz-live .ap-runs").wait_for()
            page.wait_for_timeout(1500)
            field = page.locator("#aprendiz-data-path >> css=textarea, input").first
            began = time.perf_counter()
            field.fill(str(folder))
            page.locator("#aprendiz-counted").wait_for()
            page.locator("#aprendiz-live figure").nth(59).wait_for(state="attached")
            listed.append(time.perf_counter() - began)
            while page.locator("#aprendiz-live figure").count() < 600:
                page.locator("#aprendiz-live .ap-next").click()
                page.wait_for_timeout(200)
            frames = page.evaluate(SCROLL, 120)
            page.close()
    return {"answer_s": round(statistics.median(answers), 2), "listed_s": round(statistics.median(listed), 2),
            "listed_longest_s": round(max(listed), 2), "scroll_frame_ms": round(statistics.median(frames), 1),
            "scroll_frame_95_ms": round(statistics.quantiles(frames, n=20)[-1], 1), "pictures": PICTURES, "times": TIMES}


def of_host(place: Path) -> dict[str, Any]:
    """What our tab adds to a host's page, the page of one without us being loaded in turns with it."""
    sys.path.append(str(ROOT / "tests" / "hosts"))
    import webui_host

    from aprendiz.micro.widen import write_micro_checkpoint
    loaded: dict[str, list[float]] = {"without": [], "with": []}
    tab = []
    with ExitStack() as stack:
        hosts = {}
        for name in loaded:
            data = webui_host.prepare(place / name)
            write_micro_checkpoint(data / "models" / "Stable-diffusion" / "micro.safetensors")
            webui_host.add_ourselves(data) if name == "with" else webui_host.add_clip(data)
            hosts[name] = webui_host.start(Path(os.environ["WEBUI_DIR"]), os.environ["WEBUI_PYTHON"], data, "micro", page=True)
            stack.callback(hosts[name].stop)
        chromium = stack.enter_context(browser())
        for turn in range(LOADS + 1):
            for name in sorted(hosts, reverse=bool(turn % 2)):
                page = chromium.new_page(viewport={"width": 1400, "height": 1000}, reduced_motion="reduce")
                page.goto(f"http://127.0.0.1:{hosts[name].port}/", wait_until="commit")
                seconds = page.evaluate(SETTLED)
                if name == "with" and turn:
                    tab.append(open_tab(page))
                if turn:  # the first of each is not counted: files are read for the first time
                    loaded[name].append(seconds)
                page.close()
        host = hosts["with"]
        middle = {name: statistics.median(found) for name, found in loaded.items()}
        return {"host": host.name, "version": host.version, "commit": host.commit, "loads": LOADS,
                "loaded_s": {name: round(value, 2) for name, value in middle.items()},
                "adds_s": round(statistics.median(one - other for one, other in zip(loaded["with"], loaded["without"])), 2),
                "tab_s": round(statistics.median(tab), 2), "busy": round(os.getloadavg()[0], 1)}


def open_tab(page: Any) -> float:
    """Seconds from the click on our tab until it is drawn with its runs."""
    page.locator("#tabs button").filter(has_text="Train").first.click()
    inner = page.locator("#train_tabs button").filter(has_text="Aprendiz").first
    began = time.perf_counter()
    if inner.count():
        inner.click()
    page.locator("#aprendiz-live .ap-runs").wait_for()
    return time.perf_counter() - began


def main(wanted: list[str]) -> None:
    """Measure what is wanted and keep it."""
    known = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.is_file() else {}
    os.environ["NO_PROXY"] = os.environ["no_proxy"] = "localhost,127.0.0.1"
    with tempfile.TemporaryDirectory() as folder:
        os.environ["APRENDIZ_HOME"] = str(Path(folder) / "user")
        if "folder" in wanted:
            known["folder"] = {**of_folder(Path(folder)), "busy": round(os.getloadavg()[0], 1)}
        if "host" in wanted:
            told = of_host(Path(folder))
            known[told["host"].lower()] = told
    RESULT.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    print(json.dumps(known, indent=2, sort_keys=True))


if __name__ == "__main__":
    main(sys.argv[1:])
