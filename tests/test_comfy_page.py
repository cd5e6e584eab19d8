"""The run panel in a real browser, fed with the events of a run; a picture of each case is kept in tests/artifacts."""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from conftest import BROWSERS

from aprendiz.settings import Job
from aprendiz.views import panel

playwright = pytest.importorskip("playwright.sync_api", reason="the page lane has playwright installed")
pytestmark = pytest.mark.page
ARTIFACTS = Path(__file__).parent / "artifacts"
BROWSER = next((found for name in BROWSERS if (found := shutil.which(name))), "")


class Quiet(SimpleHTTPRequestHandler):
    """Serves files and says nothing."""

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing."""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A page with the panel's script beside it, and sample pictures."""
    from PIL import Image
    folder = tmp_path_factory.mktemp("page")
    shutil.copyfile(panel.SCRIPT, folder / "panel.js")
    (folder / "index.html").write_text('<!doctype html><meta charset="utf-8"><body style="margin:0"><script type="module">'
                                       'import "./panel.js"</script>', encoding="utf-8")
    for step in (0, 100, 200):
        Image.new("RGB", (128, 128), (255, 255 - step, 255 - step)).save(folder / f"{step}.png")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=BROWSER, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def events(steps: int = 200, done: int = 200, end: str | None = "finished") -> list[dict[str, Any]]:
    """A run's events as the worker writes them."""
    sample = {"attempt": 1, "event": "sample", "prompt": "a red fish", "seed": 1, "index": 0}
    told: list[dict[str, Any]] = [{"attempt": 0, "event": "queued"}, {"attempt": 1, "event": "queued"},
                                  {"attempt": 1, "event": "ready"},
                                  {"attempt": 1, "event": "preflight", "steps": steps, "pictures": 16, "problems": []},
                                  {**sample, "step": 0, "file": "0.png"}]
    for step in range(1, done + 1):
        loss = 0.05 + 0.2 * math.exp(-step / 40) + (0.5 if step == 77 else 0)
        told.append({"attempt": 1, "event": "step", "step": step, "steps": steps, "loss": loss, "time": step / 3,
                     "memory_gb": 1.1, "peak_memory_gb": 1.3})
        if step % 100 == 0:
            told.append({**sample, "step": step, "file": f"{step}.png"})
            told.append({"attempt": 1, "event": "validation", "step": step, "loss": 0.1 - step / 10000})
            told.append({"attempt": 1, "event": "checkpoint", "step": step, "file": "f.safetensors", "folder": "c"})
    if end:
        told.append({"attempt": 1, "event": end, "step": done, "file": "fish.safetensors",
                     "problems": [{"text": "The disk is full."}] if end == "failed" else None})
    return told


def show(browser: Any, address: str, told: list[dict[str, Any]], name: str, width: int = 900, language: str = "en",
         colours: str = "") -> Any:
    """A page on which the panel has drawn these events."""
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.errors = []
    page.on("pageerror", lambda error: page.errors.append(str(error)))
    page.goto(address)
    job = Job.read({"data": "pictures", "rank": 8}).values()
    page.evaluate("""([events, texts, job, colours]) => {
        document.body.style.cssText += colours
        const panel = window.panel = document.createElement('aprendiz-run')
        panel.texts = texts; panel.name = 'fish'; panel.job = job; panel.fileUrl = path => path
        window.told = []; panel.addEventListener('tell', event => window.told.push(event.detail.command))
        document.body.append(panel); panel.take(events)
        return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done))) }""",
                  [json.loads(json.dumps(told)), panel.texts(language), json.loads(json.dumps(job)), colours])
    page.wait_for_timeout(200)
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=str(ARTIFACTS / f"panel-{name}.png"), full_page=True)
    return page


def words(page: Any, selector: str) -> str:
    """The text of a part of the panel."""
    return str(page.evaluate("selector => panel.shadowRoot.querySelector(selector).textContent", selector))


@pytest.mark.parametrize(("name", "width", "colours"), [
    ("light-wide", 1100, ""), ("light-narrow", 320, ""),
    ("dark-wide", 1100, "--comfy-menu-bg:#1e2025;--fg-color:#e4e6ea;--p-primary-color:#f0954b;background:#1e2025"),
])
def test_a_finished_run_shows_its_curve_its_pictures_and_what_it_came_to(name: str, width: int, colours: str, browser: Any,
                                                                         address: str) -> None:
    page = show(browser, address, events(), name, width, colours=colours)
    assert words(page, ".say") == "Done after 200 steps. The result is fish.safetensors."
    assert words(page, ".state") == "finished"
    captions = page.evaluate("[...panel.shadowRoot.querySelectorAll('figcaption')].map(one => one.textContent)")
    assert captions == ["before", "step 200 · best"]
    assert page.evaluate("panel.shadowRoot.querySelectorAll('svg path').length") == 4  # raw, smoothed, two saves
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.errors == []
    page.close()


def test_a_spike_is_never_lost_and_ten_thousand_steps_are_few_points(browser: Any, address: str) -> None:
    page = show(browser, address, events(10000, 10000), "long")
    drawn = page.evaluate("panel.shadowRoot.querySelector('svg path').getAttribute('d')")
    heights = [float(point.split(" ")[1]) for point in drawn[1:].split("L")]
    assert len(heights) < 4 * 900 and min(heights) < 100 < sorted(heights)[2]
    page.close()


def test_buttons_tell_and_follow_the_state(browser: Any, address: str) -> None:
    page = show(browser, address, events(done=150, end=None), "running")
    buttons = "[...panel.shadowRoot.querySelectorAll('button')].map(one => one.dataset.command)"
    assert page.evaluate(buttons) == ["pause", "sample", "save", "stop"]
    page.evaluate("panel.shadowRoot.querySelector('[data-command=pause]').click()")
    page.evaluate("panel.take([{event: 'paused', step: 150, attempt: 1}])")
    page.wait_for_timeout(100)
    assert page.evaluate(buttons) == ["resume", "stop"] and page.evaluate("window.told") == ["pause"]
    assert "step 150" in words(page, ".say")
    page.close()


def test_a_resumed_run_draws_its_last_attempts_steps_alone(browser: Any, address: str) -> None:
    page = show(browser, address, events(done=150, end=None), "resumed")
    page.evaluate("""panel.take([{event: 'queued', attempt: 2}, {event: 'ready', attempt: 2},
        {event: 'resumed', attempt: 2, step: 100}, {event: 'step', attempt: 2, step: 101, steps: 200, loss: 0.01, time: 900}])""")
    page.wait_for_timeout(100)
    assert "step 101 of 200" in words(page, ".figures")
    assert page.evaluate("panel.shadowRoot.querySelector('svg').getAttribute('aria-label')").endswith("at step 101")
    page.close()


def test_the_curve_is_read_with_the_keyboard_and_the_slider_moves_the_pictures(browser: Any, address: str) -> None:
    page = show(browser, address, events(), "keys")
    page.evaluate("panel.shadowRoot.querySelector('svg').focus()")
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(100)
    assert words(page, ".read").startswith("step 199 · 0.05")
    page.evaluate("""{ const slider = panel.shadowRoot.querySelector('input')
        slider.value = '1'; slider.dispatchEvent(new Event('input')) }""")
    page.wait_for_timeout(100)
    shown = page.evaluate("[...panel.shadowRoot.querySelectorAll('.pics img')].map(one => one.getAttribute('src'))")
    assert shown == ["0.png", "100.png"]
    page.close()


@pytest.mark.parametrize(("language", "stop"), [("es", "Detener"), ("pt-BR", "Parar")])
def test_the_panel_speaks_the_persons_language(language: str, stop: str, browser: Any, address: str) -> None:
    page = show(browser, address, events(done=50, end=None), language, language=language)
    assert page.evaluate("panel.shadowRoot.querySelector('[data-command=stop]').textContent") == stop
    page.close()


def test_text_from_outside_stays_text(browser: Any, address: str) -> None:
    told = events(end="failed")
    told[-1]["problems"] = [{"text": "<img src=x onerror=window.hacked=1>"}]
    told[4]["prompt"] = "<script>window.hacked = 1</script>"
    page = show(browser, address, told, "hostile")
    assert page.evaluate("window.hacked") is None and "<img" in words(page, ".say")
    page.close()
