"""The page on the Gradios of AUTOMATIC1111 (3.41.2) and Forge (4.40.0), in a real browser: from click to finished file.

Each has an environment of its own, which the first run makes (`.venv-gradio-VERSION`, about 400 MB, with a connection to the
package index). There is no torch in it: training is done by the Python of the tests, as `APRENDIZ_PYTHON` lends it to hosts.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect
from test_page import ARTIFACTS, PATIENCE, ROOT, browser, fill, fill_in, panel, press

from aprendiz.micro.pictures import write_pictures
from aprendiz.run import Run

__all__ = ["browser"]  # a fixture

PINS = {"3.41.2": ("fastapi==0.94.0", "httpx==0.24.1", "pydantic==1.10.17", "numpy<2", "huggingface_hub<0.26"),
        "4.40.0": ("fastapi==0.104.1", "pydantic==2.8.2", "numpy<2", "huggingface_hub==0.26.2")}

pytestmark = [pytest.mark.webui, pytest.mark.page]


@pytest.fixture(scope="module", params=PINS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def python(version: str) -> Path:
    """The Python of an environment with this Gradio."""
    folder = ROOT / f".venv-gradio-{version}"
    program = folder / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    if not (folder / "complete").is_file():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        outside = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        pip = [str(program), "-m", "pip", "install", "--quiet", f"gradio=={version}", *PINS[version]]
        subprocess.run(pip, check=True, env=outside)
        (folder / "complete").write_text("", encoding="utf-8")
    return program


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, version: str) -> Path:
    place = tmp_path_factory.mktemp(f"gradio-{version}")
    write_pictures(place / "fish", "fish", count=3)
    return place


@pytest.fixture(scope="module")
def address(place: Path, python: Path) -> Iterator[str]:
    """The page, served."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "APRENDIZ_HOME": str(place / "user"), "APRENDIZ_PYTHON": sys.executable,
                   "GRADIO_ANALYTICS_ENABLED": "False", "PYTHONPATH": ""}
    command = [str(python), str(Path(__file__).with_name("old_gradio_page.py")), str(port), str(place / "out"), str(place)]
    with open(place / "log.txt", "wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=place)
    served = f"http://127.0.0.1:{port}/"
    while True:
        assert server.poll() is None, (place / "log.txt").read_text(encoding="utf-8", errors="replace")
        try:
            urllib.request.urlopen(served + "aprendiz/runs").close()
            break
        except (urllib.error.URLError, ConnectionError):
            pass
    yield served
    server.terminate()
    server.wait(60)


@pytest.fixture
def page(browser: Browser, address: str, version: str) -> Iterator[Page]:
    """The page, opened; errors of its script fail the test, and what it looked like in the end is kept."""
    wrong: list[str] = []
    page = browser.new_page(viewport={"width": 1280, "height": 950}, reduced_motion="reduce")
    page.set_default_timeout(PATIENCE)
    page.on("pageerror", lambda error: wrong.append(str(error)))
    opened(page, address)
    yield page
    ARTIFACTS.mkdir(exist_ok=True)
    page.screenshot(path=ARTIFACTS / f"gradio-{version}.png", full_page=True)
    page.close()
    assert wrong == []


def opened(page: Page, address: str) -> None:
    """Open it, and bring its script in once it stands, as the hosts' extension does."""
    page.goto(address)
    page.get_by_text("Opening the page").wait_for()
    page.add_script_tag(url="aprendiz/page.js", type="module")
    page.locator("#aprendiz-live .ap-runs").wait_for()


def test_from_click_to_finished_file_with_pause_reload_stop_and_resume(page: Page, place: Path, address: str) -> None:
    fill(page, "training-steps", "0")
    page.locator("#aprendiz-start").click()
    expect(page.locator("#aprendiz-training-steps .ap-problem")).to_contain_text("training.steps is 0.", timeout=PATIENCE)
    fill_in(page, place, "swimmer", 20)
    page.locator("#aprendiz-start").click()
    press(page, "Pause")  # it is there before the first step, and may be heard before it too
    panel(page, "Paused; the memory is free.")
    opened(page, address)  # a reloaded page finds the run by itself
    panel(page, "Paused; the memory is free.")
    press(page, "Resume")
    press(page, "Stop")
    panel(page, "Stopped")  # before the first step, or after some
    press(page, "Go on")
    panel(page, "Done after 20 steps. The result is swimmer.safetensors.")
    run = Run.open(place / "out" / "aprendiz" / "swimmer")
    steps = [event["step"] for event in run.events() if event["event"] == "step"]
    assert steps == list(range(1, 21)) and run.file.stat().st_size > 10_000
    row = page.locator('[data-run="swimmer"]')
    row.get_by_label("Compare").check()
    expect(page.locator(".ap-comparison .ap-head")).to_have_text(["swimmer step 20"], timeout=PATIENCE)
    page.locator(".ap-trying > summary").click()
    page.get_by_label("What was learned").select_option("A file by its path")
    page.get_by_label("Condition picture", exact=True).set_input_files(place / "fish" / "fish-01.png")
    expect(page.locator("img.ap-condition")).to_be_visible(timeout=PATIENCE)
    page.set_viewport_size({"width": 390, "height": 844})
    for part in ("#aprendiz-base-path", "#aprendiz-section-output", "#aprendiz-live .ap-pictures"):
        page.locator(part).scroll_into_view_if_needed()
        expect(page.locator("#aprendiz-start")).to_be_in_viewport(ratio=1, timeout=PATIENCE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.set_viewport_size({"width": 1280, "height": 950})
    row.get_by_role("button", name="Use its settings").click()
    expect(page.locator("#aprendiz-training-steps >> css=textarea, input").first).to_have_value("20", timeout=PATIENCE)
